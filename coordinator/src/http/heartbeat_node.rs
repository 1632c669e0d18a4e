//! A worker lives, and says what it does.

use common::error::Problem;
use common::protocol::node::{Heartbeat, HeartbeatReply};

use super::gate::Reigning;

pub async fn handle(reign: Reigning, heartbeat: Heartbeat) -> Result<HeartbeatReply, Problem> {
    reign.liveness.heard(heartbeat).await
}
