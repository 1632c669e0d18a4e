//! Consensus: entries of the leader, or the word that it is there.

use common::error::Problem;
use common::protocol::coordinator::{RaftAppend, RaftReply};

use crate::raft::Group;

pub async fn handle(group: Group, request: RaftAppend) -> Result<RaftReply, Problem> {
    group.append(request).await
}
