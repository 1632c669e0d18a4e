//! A standby has what tasks on other workers have sealed on its disk.

use common::error::Problem;
use common::protocol::checkpoint::Acknowledged;
use common::protocol::standby::AckStandby;

use super::gate::Reigning;

pub(crate) async fn handle(reign: Reigning, ack: AckStandby) -> Result<Acknowledged, Problem> {
    reign.jobs.hold(ack).await
}
