//! A worker's tasks have sealed a checkpoint, and it is on their worker's disk.

use common::error::Problem;
use common::protocol::checkpoint::{AckCheckpoint, Acknowledged};

use crate::job::jobs_actor::Jobs;

pub(crate) async fn handle(jobs: Jobs, ack: AckCheckpoint) -> Result<Acknowledged, Problem> {
    jobs.acknowledge(ack).await
}
