//! A worker's tasks have sealed a checkpoint, and it is on their worker's disk.

use common::error::Problem;
use common::protocol::checkpoint::{AckCheckpoint, Acknowledged};

use super::gate::Reigning;

pub(crate) async fn handle(reign: Reigning, ack: AckCheckpoint) -> Result<Acknowledged, Problem> {
    reign.jobs.acknowledge(ack).await
}
