//! A worker cannot take part in a checkpoint.

use common::error::Problem;
use common::protocol::checkpoint::{Acknowledged, DeclineCheckpoint};

use super::gate::Reigning;

pub(crate) async fn handle(
    reign: Reigning,
    decline: DeclineCheckpoint,
) -> Result<Acknowledged, Problem> {
    reign.jobs.decline(decline).await
}
