//! A worker lives, and says what it does.

use common::error::Problem;
use common::protocol::node::{Heartbeat, HeartbeatReply};

use crate::liveness::Liveness;

pub async fn handle(liveness: Liveness, heartbeat: Heartbeat) -> Result<HeartbeatReply, Problem> {
    liveness.heard(heartbeat).await
}
