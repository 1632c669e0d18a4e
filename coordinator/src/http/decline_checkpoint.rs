//! A worker cannot take part in a checkpoint.

use common::error::Problem;
use common::protocol::checkpoint::{Acknowledged, DeclineCheckpoint};

use crate::job::jobs_actor::Jobs;

pub(crate) async fn handle(
    jobs: Jobs,
    decline: DeclineCheckpoint,
) -> Result<Acknowledged, Problem> {
    jobs.decline(decline).await
}
