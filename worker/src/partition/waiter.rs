//! Who waits at a partition's actor, and for what.

use common::error::Problem;
use common::protocol::produce::AppendedBatch;
use tokio::sync::oneshot;

use super::messages::{Followed, Granted};
use super::replica_work::PositionReply;
use super::work::{AppendReply, answer};

pub(super) type GrantReply = oneshot::Sender<Result<Granted, Problem>>;
pub(super) type FollowReply = oneshot::Sender<Result<Followed, Problem>>;

#[derive(Debug)]
pub(super) enum Waiter {
    Append {
        batches: Vec<AppendedBatch>,
        reply: AppendReply,
    },
    Fetch {
        reply: GrantReply,
    },
    Follower {
        reply: FollowReply,
    },
    Position {
        reply: PositionReply,
    },
}

impl Waiter {
    pub(super) fn refuse(self, problem: Problem) {
        match self {
            Waiter::Append { reply, .. } => answer(reply, Err(problem)),
            Waiter::Fetch { reply } => answer(reply, Err(problem)),
            Waiter::Follower { reply } => answer(reply, Err(problem)),
            Waiter::Position { reply } => answer(reply, Err(problem)),
        }
    }
}
