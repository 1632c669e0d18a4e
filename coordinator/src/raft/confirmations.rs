//! Before the leader answers what it knows, the group confirms that it still leads.
//!
//! A leader that was cut off, or stopped for a while, does not know that others have gone on without it. What it
//! answers is therefore read after most members have said, since the question came, that they follow it, and
//! after everything that was committed by then is applied here (ReadIndex: Ongaro, "Consensus: Bridging Theory and
//! Practice", §6.4). One such round serves every question that came before it began.

use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot, watch};

use common::time::Span;

use super::Raft;

/// Questions that wait for a round; more have to wait before they wait.
pub(super) const MAX_WAITING: usize = 1_024;
/// Members that do not answer are not waited for any longer: whoever asked can ask another coordinator.
const PATIENCE: Span = Span::from_secs(2);
const ASK_AGAIN: Span = Span::from_millis(20);

/// The group has not said that this member leads: another one does, or too few of them answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotConfirmed;

pub(super) type Waiting = oneshot::Sender<Result<(), NotConfirmed>>;

/// Runs until nobody can ask any more.
pub(super) async fn confirm(
    raft: watch::Receiver<Option<Raft>>,
    mut waiting: mpsc::Receiver<Waiting>,
) {
    let mut round = Vec::new();
    while waiting.recv_many(&mut round, MAX_WAITING).await > 0 {
        let raft = raft.borrow().clone();
        let confirmed = match raft {
            Some(raft) => ask(&raft).await,
            None => Err(NotConfirmed),
        };
        for waiting in round.drain(..) {
            // Who has gone meanwhile does not want to know.
            waiting.send(confirmed).ok();
        }
    }
}

async fn ask(raft: &Raft) -> Result<(), NotConfirmed> {
    // Nobody could have gone on without it, also while its disk is full and it can decide nothing.
    if is_alone(raft) {
        return Ok(());
    }
    let asking = async {
        loop {
            match raft.ensure_linearizable().await {
                Ok(_) => return Ok(()),
                // Members that are busy take longer than a round waits.
                Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                    tokio::time::sleep(ASK_AGAIN.as_duration()).await;
                }
                Err(_) => return Err(NotConfirmed),
            }
        }
    };
    let asked = tokio::time::timeout(PATIENCE.as_duration(), asking).await;
    asked.unwrap_or(Err(NotConfirmed))
}

fn is_alone(raft: &Raft) -> bool {
    let metrics = raft.metrics();
    let metrics = metrics.borrow();
    let mut voters = metrics.membership_config.voter_ids();
    voters.next() == Some(metrics.id) && voters.next().is_none()
}
