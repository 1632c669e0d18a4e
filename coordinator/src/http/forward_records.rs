//! Records live on workers: requests for them that come here go on to the partition's leader, or to any
//! active worker, which knows where to go from there.

use std::sync::Arc;

use actix_web::web::{Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;

use common::error::{ErrorCode, Problem};
use common::ids::{NodeId, TopicName, WorkerEpoch};
use common::limits::{MAX_REQUEST_BYTES, MAX_WAIT};
use common::time::Span;
use common::transport::server::{Onward, forward, read_body};

use super::gate::Reigning;
use crate::controller::topics::find;
use crate::metadata::ClusterMetadata;
use crate::metadata::nodes::WorkerRow;
use crate::metadata_log::MetadataView;

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
    let view = state.controller.view();
    let receiver = view.read(|metadata| receiver(metadata, &topic, partition))?;
    let worker = receiver.id;
    let body = read_body(payload, MAX_REQUEST_BYTES).await?;
    let onward = Onward {
        transport: &state.transport,
        address: &receiver.address,
        deadline: DEADLINE,
        stopping: state.stopping.clone(),
    };
    tokio::select! {
        answer = forward(onward, &request, body) => {
            answer.map_err(|error| error.into_problem(ErrorCode::LeaderUnavailable))
        }
        () = is_lost(view, worker, receiver.epoch) => {
            let detail = format!("worker {worker} was lost before it had answered");
            Err(Problem::new(ErrorCode::LeaderUnavailable, detail)
                .hint("Ask again: others lead by now. What was sent may be there already; under the same Idempotency-Key it comes once."))
        }
    }
}

/// Returns when the life of a worker is over that was active then.
async fn is_lost(view: &MetadataView, worker: NodeId, life: WorkerEpoch) {
    let mut changes = view.changes();
    let lives = |metadata: &ClusterMetadata| {
        let row = metadata.worker(worker);
        metadata.is_active(worker) && row.is_some_and(|row| row.epoch == life)
    };
    while view.read(lives) {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The worker that a request for records of a topic, or of one of its partitions, is sent to.
fn receiver(
    metadata: &ClusterMetadata,
    topic: &TopicName,
    partition: Option<usize>,
) -> Result<Arc<WorkerRow>, Problem> {
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
    let mut active = leaders.into_iter().filter(|node| metadata.is_active(*node));
    let leader = active.find_map(|node| metadata.worker(node));
    let any = || metadata.active_workers().next();
    leader.or_else(any).cloned().ok_or_else(|| {
        Problem::new(
            ErrorCode::NoWorkers,
            "no worker is active, so there is nobody who has records",
        )
        .hint("GET /v1/workers shows the workers the cluster knows.")
    })
}
