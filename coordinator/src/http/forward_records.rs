//! Records live on workers: requests for them that come here go on to the partition's leader, or to any
//! active worker, which knows where to go from there.

use actix_web::web::{Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;

use common::error::{ErrorCode, Problem};
use common::ids::{NodeId, TopicName};
use common::limits::{MAX_REQUEST_BYTES, MAX_WAIT};
use common::time::Span;
use common::transport::server::{Onward, forward, read_body};

use super::gate::Reigning;
use crate::controller::topics::find;
use crate::metadata::ClusterMetadata;

/// For the head of the answer: longer than a worker makes a long poll wait.
const DEADLINE: Span = Span(MAX_WAIT.0 + 10_000);

/// What is asked about: a topic, or one of its partitions.
#[derive(Debug, Deserialize)]
pub(crate) struct TopicPath {
    topic: String,
    partition: Option<usize>,
}

pub(crate) async fn forward_records(
    state: Reigning,
    path: Path<TopicPath>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let TopicPath { topic, partition } = path.into_inner();
    let topic = TopicName::new(topic)?;
    let address = state
        .controller
        .view()
        .read(|metadata| receiver(metadata, &topic, partition))?;
    let body = read_body(payload, MAX_REQUEST_BYTES).await?;
    let onward = Onward {
        transport: &state.transport,
        address: &address,
        deadline: DEADLINE,
        stopping: state.stopping.clone(),
    };
    let answer = forward(onward, &request, body).await;
    answer.map_err(|error| error.into_problem(ErrorCode::LeaderUnavailable))
}

/// The worker that a request for records of a topic, or of one of its partitions, is sent to.
fn receiver(
    metadata: &ClusterMetadata,
    topic: &TopicName,
    partition: Option<usize>,
) -> Result<String, Problem> {
    let row = find(metadata, topic)?;
    let leaders = match partition {
        Some(number) => {
            let partition = row.partitions.get(number).ok_or_else(|| {
                let has = row.partitions.len();
                Problem::new(
                    ErrorCode::UnknownPartition,
                    format!("topic \"{topic}\" has no partition {number}, it has {has} from 0"),
                )
            })?;
            partition.leader.into_iter().collect::<Vec<NodeId>>()
        }
        None => row.partitions.iter().filter_map(|p| p.leader).collect(),
    };
    let leader = leaders.into_iter().find_map(|node| metadata.worker(node));
    let any = || metadata.active_workers().next();
    leader
        .or_else(any)
        .map(|row| row.address.clone())
        .ok_or_else(|| {
            Problem::new(
                ErrorCode::NoWorkers,
                "no worker is active, so there is nobody who has records",
            )
            .hint("GET /v1/workers shows the workers the cluster knows.")
        })
}
