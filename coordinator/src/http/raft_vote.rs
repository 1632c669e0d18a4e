//! Consensus: a candidate asks for this coordinator's vote.

use common::error::Problem;
use common::protocol::coordinator::{RaftReply, RaftVote};

use crate::raft::Group;

pub async fn handle(group: Group, request: RaftVote) -> Result<RaftReply, Problem> {
    group.vote(request).await
}
