//! Records live on workers: requests for them that come here go on to the partition's leader, or to any
//! active worker, which knows where to go from there.

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};

use common::error::{ErrorCode, Problem};
use common::ids::{NodeId, TopicName};
use common::limits::{MAX_REQUEST_BYTES, MAX_WAIT};
use common::time::Span;
use common::transport::server::{forward, read_body};

use super::State;
use crate::controller::topics::find;
use crate::metadata::ClusterMetadata;

/// For the head of the answer: longer than a worker makes a long poll wait.
const DEADLINE: Span = Span(MAX_WAIT.0 + 10_000);

pub(crate) async fn forward_records(
    state: Data<State>,
    path: Path<(String, String)>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let (topic, rest) = path.into_inner();
    let topic = TopicName::new(topic)?;
    let address = state
        .controller
        .view()
        .read(|metadata| receiver(metadata, &topic, &rest))?;
    let body = read_body(payload, MAX_REQUEST_BYTES).await?;
    forward(&state.transport, &address, &request, body, DEADLINE).await
}

/// The worker that a request for `/v1/topics/{topic}/{rest}` is sent to.
fn receiver(metadata: &ClusterMetadata, topic: &TopicName, rest: &str) -> Result<String, Problem> {
    let row = find(metadata, topic)?;
    let leaders = match partition_of(rest) {
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

/// The partition in `partitions/{number}/…`.
fn partition_of(rest: &str) -> Option<usize> {
    let mut parts = rest.split('/');
    (parts.next() == Some("partitions"))
        .then(|| parts.next()?.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_names_a_partition_goes_to_its_leader() {
        assert_eq!(partition_of("partitions/3/records"), Some(3));
        assert_eq!(partition_of("partitions/x/records"), None);
        assert_eq!(partition_of("records"), None);
        assert_eq!(partition_of(""), None);
    }
}
