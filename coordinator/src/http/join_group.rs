//! Somebody takes this coordinator into a group.

use common::error::Problem;
use common::protocol::coordinator::{JoinGroup, JoinedGroup};

use super::gate::Gate;

pub async fn handle(gate: Gate, request: JoinGroup) -> Result<JoinedGroup, Problem> {
    gate.group.join(request, &gate.peers).await
}
