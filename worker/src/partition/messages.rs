//! How everyone but its actor speaks to a partition.

use std::sync::Arc;

use actix::{Addr, MailboxError, Message};
use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::{LeaderEpoch, NodeId, TopicPartition, WorkerEpoch};
use common::limits::MAX_WAIT;
use common::log_batch::LogBatch;
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::fetch::{FetchBatches, FetchedBatches, PartitionOffsets};
use common::protocol::metadata::PartitionImage;
use common::protocol::produce::{Acks, AppendedBatch};
use common::protocol::replicate::{ReplicaPosition, Verdict};
use common::protocol::topic::TopicConfig;
use common::time::{Clock, Span, Timestamp};

use super::actor::PartitionActor;
use super::problems;
use super::waiting::Readable;
use crate::log::leader_epochs::EpochEnd;
use crate::log::reader::LogReader;

/// A partition, as everyone but its actor sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartitionHandle {
    pub(super) id: TopicPartition,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) actor: Addr<PartitionActor>,
}

impl PartitionHandle {
    pub fn id(&self) -> TopicPartition {
        self.id
    }

    /// The metadata says this of the partition now.
    pub async fn assign(&self, image: PartitionImage, config: TopicConfig) -> Result<(), Problem> {
        let sent = self.actor.send(Assign { image, config }).await;
        sent.map_err(|error| self.gone(&error))
    }

    /// Appends a batch. Its records must have been validated. See [`PartitionHandle::append_all`].
    pub async fn append(
        &self,
        batch: LogBatch,
        acks: Acks,
        leader_epoch: Option<LeaderEpoch>,
    ) -> Result<AppendedBatch, Problem> {
        let mut placed = self.append_all(vec![batch], acks, leader_epoch).await?;
        placed
            .pop()
            .ok_or_else(|| Problem::new(ErrorCode::Internal, "an append has no result"))
    }

    /// Appends batches one after another, with nothing between them, and waits as `acks` says. An error
    /// may leave some of them in the log; an answer that never comes says nothing.
    pub async fn append_all(
        &self,
        batches: Vec<LogBatch>,
        acks: Acks,
        leader_epoch: Option<LeaderEpoch>,
    ) -> Result<Vec<AppendedBatch>, Problem> {
        let append = Append {
            batches,
            acks,
            leader_epoch,
        };
        let sent = self.actor.send(append).await;
        sent.map_err(|error| self.gone(&error))?
    }

    /// Whole batches from an offset on. Waits while there is nothing, as long as the request says.
    pub async fn fetch(&self, request: &FetchBatches) -> Result<FetchedBatches, Problem> {
        let isolation = request.isolation;
        let max_bytes = usize::try_from(request.max_bytes).unwrap_or(usize::MAX);
        let mut from = request.offset;
        let deadline = self.clock.tick().plus(request.wait.min(MAX_WAIT));
        loop {
            let wait = deadline.since(self.clock.tick());
            let granted = self.grant(Some((from, isolation)), wait).await?;
            let reader = granted.reader;
            let end = granted.readable.end_for(isolation);
            let log_start_offset = reader.start();
            if from > granted.log_end {
                let end = granted.log_end;
                return Err(problems::out_of_range(from, log_start_offset, end));
            }
            // What lies between the end for this reader and the end of the log is yet to be decided.
            let read = blocking(move || reader.read(from, end.max(from), max_bytes, isolation))
                .await?
                .map_err(|error| problems::read_failed(&error))?;
            let progress = read.next_offset > from;
            from = read.next_offset;
            if read.bytes.is_empty() && progress && wait > Span(0) {
                // Everything there was is hidden from this reader: it goes on waiting.
                continue;
            }
            return Ok(FetchedBatches {
                batches: read.bytes,
                next_offset: from,
                log_start_offset,
                end_offset: end,
            });
        }
    }

    /// Where the partition starts and ends, and which offset a time has.
    pub async fn offsets(&self, at: Option<Timestamp>) -> Result<PartitionOffsets, Problem> {
        let granted = self.grant(None, Span(0)).await?;
        let Readable {
            committed,
            last_stable,
        } = granted.readable;
        let reader = granted.reader;
        let log_start_offset = reader.start();
        let found = match at {
            Some(time) => blocking(move || reader.offset_at(time, committed))
                .await?
                .map_err(|error| problems::read_failed(&error))?,
            None => None,
        };
        Ok(PartitionOffsets {
            log_start_offset,
            last_stable_offset: last_stable,
            committed_offset: committed,
            log_end_offset: granted.log_end,
            at: found,
        })
    }

    /// A follower in this life is at a position: what the leader says to it, once there is more than that or
    /// the wait is over.
    pub async fn followed(
        &self,
        life: (NodeId, WorkerEpoch),
        at: ReplicaPosition,
        wait: Span,
    ) -> Result<Followed, Problem> {
        let sent = self.actor.send(Follow { life, at, wait }).await;
        sent.map_err(|error| self.gone(&error))?
    }

    /// Where this follower's log is, in this reign. Answers once all of it is safe here.
    pub async fn position(&self, leader_epoch: LeaderEpoch) -> Result<ReplicaPosition, Problem> {
        let sent = self.actor.send(Position { leader_epoch }).await;
        sent.map_err(|error| self.gone(&error))?
    }

    /// Does what the leader says to a position of this follower's log. Answers once that is safe here.
    pub async fn apply(
        &self,
        at: ReplicaPosition,
        verdict: Verdict,
        batches: Bytes,
    ) -> Result<ReplicaPosition, Problem> {
        let news = ApplyNews {
            at,
            verdict,
            batches,
        };
        let sent = self.actor.send(news).await;
        sent.map_err(|error| self.gone(&error))?
    }

    /// Makes everything durable, saves, and ends the actor.
    pub async fn close(&self) {
        // One that has ended already is closed.
        self.actor.send(Close).await.unwrap_or_default();
    }

    async fn grant(
        &self,
        from: Option<(Offset, Isolation)>,
        wait: Span,
    ) -> Result<Granted, Problem> {
        let sent = self.actor.send(Grant { from, wait }).await;
        sent.map_err(|error| self.gone(&error))?
    }

    fn gone(&self, error: &MailboxError) -> Problem {
        match error {
            MailboxError::Closed => Problem::new(
                ErrorCode::LeaderUnavailable,
                format!("partition {} has been closed on this node", self.id),
            ),
            MailboxError::Timeout => {
                Problem::new(ErrorCode::Timeout, format!("partition {} is busy", self.id))
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Problem::new(
            ErrorCode::Internal,
            format!("reading a log failed: {error}"),
        )
    })
}

/// The metadata says this of the partition now.
#[derive(Debug)]
pub(super) struct Assign {
    pub(super) image: PartitionImage,
    pub(super) config: TopicConfig,
}

/// Appends batches one after another; answered as `acks` says.
#[derive(Debug)]
pub(super) struct Append {
    pub(super) batches: Vec<LogBatch>,
    pub(super) acks: Acks,
    pub(super) leader_epoch: Option<LeaderEpoch>,
}

/// Asks what may be read. With an offset: once something at it may be, or after `wait`.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) from: Option<(Offset, Isolation)>,
    pub(super) wait: Span,
}

/// Up to where the partition may be read, and with what.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    pub(super) reader: LogReader,
    pub(super) readable: Readable,
    pub(super) log_end: Offset,
}

/// A follower is here, and would have what comes next.
#[derive(Debug)]
pub(super) struct Follow {
    pub(super) life: (NodeId, WorkerEpoch),
    pub(super) at: ReplicaPosition,
    pub(super) wait: Span,
}

/// What a leader has for a follower.
#[derive(Clone, Debug)]
pub enum Followed {
    /// What its log has is what ours begins with.
    Continues {
        reader: LogReader,
        log_end: Offset,
        committed: Offset,
    },
    Diverges(EpochEnd),
    /// Its log ends before ours begins.
    Removed {
        log_start: Offset,
    },
}

/// Asks a follower where its log is, once all of it is safe.
#[derive(Debug)]
pub(super) struct Position {
    pub(super) leader_epoch: LeaderEpoch,
}

/// What the leader says to a position of this follower.
#[derive(Debug)]
pub(super) struct ApplyNews {
    pub(super) at: ReplicaPosition,
    pub(super) verdict: Verdict,
    pub(super) batches: Bytes,
}

/// Makes everything durable, saves, and ends the actor.
#[derive(Debug)]
pub(super) struct Close;

impl Message for Assign {
    type Result = ();
}

impl Message for Append {
    type Result = Result<Vec<AppendedBatch>, Problem>;
}

impl Message for Grant {
    type Result = Result<Granted, Problem>;
}

impl Message for Follow {
    type Result = Result<Followed, Problem>;
}

impl Message for Position {
    type Result = Result<ReplicaPosition, Problem>;
}

impl Message for ApplyNews {
    type Result = Result<ReplicaPosition, Problem>;
}

impl Message for Close {
    type Result = ();
}
