//! Consensus: a piece of the metadata as a whole, to catch up with.

use common::error::Problem;
use common::protocol::coordinator::{RaftReply, RaftSnapshot};

use crate::raft::Group;

pub async fn handle(group: Group, request: RaftSnapshot) -> Result<RaftReply, Problem> {
    group.snapshot(request).await
}
