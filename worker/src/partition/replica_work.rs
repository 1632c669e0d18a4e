//! What a follower's log is told by its leader, done to it on a thread that may block.

use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::LeaderEpoch;
use common::log_batch::{LogBatch, LogBatches};
use common::offset::Offset;
use common::protocol::replicate::{ReplicaPosition, Verdict};
use common::seglog::LogError;
use common::time::Timestamp;
use tokio::sync::oneshot;

use super::problems;
use crate::log::leader_epochs::EpochEnd;
use crate::log::partition_log::{CutError, PartitionLog, ReplicaError};

/// How a replica answers: where its log is then.
pub type PositionReply = oneshot::Sender<Result<ReplicaPosition, Problem>>;

/// The leader's answer to a position.
#[derive(Debug)]
pub struct QueuedNews {
    pub at: ReplicaPosition,
    pub verdict: Verdict,
    pub batches: Bytes,
    pub reply: PositionReply,
}

/// What became of the log.
#[derive(Debug, Default)]
pub struct Followed {
    /// It was cut off here, or begun anew.
    pub cut: Option<Offset>,
    pub committed: Option<Offset>,
    pub reply: Option<PositionReply>,
    pub error: Option<LogError>,
}

impl QueuedNews {
    /// May block. `follows`: the reign the replica follows now. `known`: what it knows to be committed.
    pub fn run(
        self,
        log: &mut PartitionLog,
        follows: Option<LeaderEpoch>,
        known: Offset,
        steady: Timestamp,
    ) -> Followed {
        let mut followed = Followed::default();
        match self.apply(log, follows, known, steady, &mut followed) {
            Ok(()) => followed.reply = Some(self.reply),
            // Whoever asked may have gone.
            Err(problem) => drop(self.reply.send(Err(problem))),
        }
        followed
    }

    fn apply(
        &self,
        log: &mut PartitionLog,
        follows: Option<LeaderEpoch>,
        known: Offset,
        steady: Timestamp,
        followed: &mut Followed,
    ) -> Result<(), Problem> {
        if follows != Some(self.at.leader_epoch) || log.end_offset() != self.at.log_end {
            let detail = format!("the log has moved on since it was at {}", self.at.log_end);
            return Err(Problem::new(ErrorCode::MetadataStale, detail));
        }
        match &self.verdict {
            Verdict::Continues { committed, .. } => {
                followed.committed = Some(*committed);
                for batch in LogBatches::new(self.batches.clone()) {
                    let batch = batch.map_err(Problem::from)?;
                    self.check_reign(&batch)?;
                    log.append_verbatim(&batch, steady)
                        .map_err(|error| not_appended(error, followed))?;
                }
                Ok(())
            }
            Verdict::Diverges { epoch, end } => {
                let theirs = EpochEnd {
                    epoch: *epoch,
                    end: *end,
                };
                let ours = log.derived().epochs.end_of(*epoch, log.end_offset());
                let start = log.start_offset();
                let mut to = cut_at(ours, theirs);
                // Where ours begins with what theirs has not, all of ours goes. With nothing left of it, theirs ends
                // before ours begins, as it may when a leader had to begin that lacks committed records.
                let anew = to < start && log.end_offset() == start;
                if !anew {
                    to = to.max(start);
                }
                assert!(
                    to >= known,
                    "{}: what is committed up to {known} would be cut off at {to}",
                    self.at.partition
                );
                let cut = match anew {
                    true => log.begin_anew(to),
                    false => log.truncate(to, steady),
                };
                followed.cut = Some(to);
                cut.map_err(|error| not_cut(error, followed))
            }
            Verdict::Removed { log_start } => {
                let begun = log.begin_anew(*log_start);
                begun.map_err(|error| not_cut(error, followed))
            }
            Verdict::Refused { problem } => Err(problem.clone()),
        }
    }

    /// A leader reads a while after it has looked: its log may be cut off by then, and be another leader's.
    fn check_reign(&self, batch: &LogBatch) -> Result<(), Problem> {
        let (found, reign) = (batch.header().leader_epoch, self.at.leader_epoch);
        if found > reign {
            let detail = format!("a batch of epoch {found} comes from the leader of {reign}");
            return Err(Problem::new(ErrorCode::MetadataStale, detail));
        }
        Ok(())
    }
}

/// Where a log is cut off: where the leader's newest epoch of those up to our last ends, and what we have of that
/// epoch or before it ends.
pub fn cut_at(ours: Option<EpochEnd>, theirs: EpochEnd) -> Offset {
    match ours {
        Some(ours) if ours.epoch == theirs.epoch => ours.end.min(theirs.end),
        // The leader's end may lie in the middle of a batch of ours. What comes later goes, and we ask again
        // with our own epoch.
        Some(ours) => ours.end,
        None => Offset::ZERO,
    }
}

fn not_appended(error: ReplicaError, followed: &mut Followed) -> Problem {
    match error {
        ReplicaError::Broken(error) => {
            let detail = format!("what the leader sent does not fit: {error}");
            Problem::new(ErrorCode::CorruptLog, detail)
        }
        ReplicaError::Log(error) => failed(error, followed),
    }
}

fn not_cut(error: CutError, followed: &mut Followed) -> Problem {
    match error {
        CutError::Log(error) => failed(error, followed),
        CutError::Reopen(error) => problems::open_failed(&error),
        CutError::Saved(error) => Problem::new(ErrorCode::Internal, error.to_string()),
    }
}

fn failed(error: LogError, followed: &mut Followed) -> Problem {
    let problem = problems::log_failed(&error);
    followed.error = Some(error);
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(epoch: i32, end: i64) -> EpochEnd {
        EpochEnd {
            epoch: LeaderEpoch(epoch),
            end: Offset(end),
        }
    }

    #[test]
    fn a_log_is_cut_off_where_one_of_its_own_batches_begins() {
        for (ours, theirs, cut) in [
            (Some(end(3, 9)), end(3, 7), 7),
            (Some(end(3, 7)), end(3, 9), 7),
            // Of the leader's epoch 6 there is nothing here: its end says nothing of a batch of epoch 3.
            (Some(end(3, 9)), end(6, 7), 9),
            (None, end(6, 7), 0),
        ] {
            assert_eq!(cut_at(ours, theirs), Offset(cut), "{ours:?} {theirs:?}");
        }
    }
}
