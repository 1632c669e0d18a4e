//! From the door of the metadata log to Raft and back: what was proposed is answered once it is applied.

use std::sync::Arc;

use openraft::raft::ClientWriteResponse;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::warn;

use common::error::{ErrorCode, Problem};
use common::ids::MetadataVersion;
use common::limits::MAX_COMMAND_BYTES;
use common::time::Span;
use common::transport::msgpack;

use super::Raft;
use super::leadership::Leadership;
use super::types::{Applied, TypeConfig};
use crate::metadata_log::{Committed, Proposal, ProposeError};

/// Proposals that wait; more have to wait before they wait.
pub(super) const MAX_WAITING: usize = 1_024;
/// Proposals that Raft has and has not answered.
const MAX_UNDER_WAY: usize = 256;
/// After this nobody waits any longer to hear whether it became a fact.
const PATIENCE: Span = Span::from_secs(10);

/// What the proposals of this node meet.
pub(super) struct Proposals {
    pub(super) raft: watch::Receiver<Option<Raft>>,
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) full: watch::Receiver<bool>,
}

impl Proposals {
    /// Runs until nobody can propose any more or it is stopped; what is waiting then is still answered.
    pub(super) async fn run(
        self,
        mut waiting: mpsc::Receiver<Proposal>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let room = Arc::new(Semaphore::new(MAX_UNDER_WAY));
        let mut under_way = JoinSet::new();
        let mut stopping = false;
        loop {
            let proposal = tokio::select! {
                biased;
                proposal = waiting.recv() => proposal,
                _ = &mut stopped, if !stopping => {
                    stopping = true;
                    waiting.close();
                    continue;
                }
                Some(_) = under_way.join_next() => continue,
            };
            let Some(Proposal { entry, answer }) = proposal else {
                break;
            };
            let accepted = self.accept(&entry);
            let raft = match accepted {
                Ok(raft) => raft,
                Err(problem) => {
                    // Who no longer waits does not want to know.
                    answer.send(Err(ProposeError::NotAccepted(problem))).ok();
                    continue;
                }
            };
            let permit = Arc::clone(&room).acquire_owned().await;
            // In the order in which they came.
            let Ok(outcome) = raft.client_write_ff(entry).await else {
                answer.send(Err(ProposeError::NotAccepted(failed()))).ok();
                continue;
            };
            under_way.spawn(async move {
                let outcome = tokio::time::timeout(PATIENCE.as_duration(), outcome).await;
                answer
                    .send(match outcome {
                        Ok(Ok(Ok(written))) => committed(written),
                        // Its leader was replaced while it was on its way; or the log has failed; or too few
                        // members answer.
                        Ok(Ok(Err(_)) | Err(_)) | Err(_) => Err(ProposeError::Unknown),
                    })
                    .ok();
                drop(permit);
            });
        }
        while under_way.join_next().await.is_some() {}
    }

    fn accept(&self, entry: &crate::metadata::command::Entry) -> Result<Raft, Problem> {
        if !matches!(*self.leadership.borrow(), Leadership::Leads { .. }) {
            return Err(Problem::new(
                ErrorCode::CoordinatorUnavailable,
                "this coordinator does not lead",
            )
            .hint("Try again: another coordinator takes over within seconds."));
        }
        let bytes = msgpack::encode(entry).map_or(usize::MAX, |bytes| bytes.len());
        if bytes > MAX_COMMAND_BYTES {
            return Err(Problem::new(
                ErrorCode::RequestTooLarge,
                format!("a command of {bytes} bytes is too large"),
            ));
        }
        if *self.full.borrow() {
            warn!("the disk is full: a command was refused");
            return Err(Problem::new(ErrorCode::DiskFull, "the disk is full")
                .hint("Free space where the coordinator keeps its data."));
        }
        self.raft.borrow().clone().ok_or_else(failed)
    }
}

fn failed() -> Problem {
    Problem::new(
        ErrorCode::ShuttingDown,
        "the coordinator's log has ended, and so does the coordinator",
    )
}

fn committed(written: ClientWriteResponse<TypeConfig>) -> Result<Committed, ProposeError> {
    let index = MetadataVersion(written.log_id.index);
    let Applied { outcome } = written.data;
    let outcome = outcome.ok_or(ProposeError::Unknown)??;
    Ok(Committed { index, outcome })
}
