//! What is done to a log while it is away from its actor, on a thread that may block.
//!
//! Everything that waits goes at once: markers that the cluster's facts call for, every append that has
//! queued up, retention. Each append stands or falls by itself.

use std::sync::Arc;

use common::error::Problem;
use common::ids::LeaderEpoch;
use common::log_batch::LogBatch;
use common::offset::Offset;
use common::protocol::produce::{Acks, AppendedBatch};
use common::protocol::topic::TopicConfig;
use common::seglog::LogError;
use common::time::Timestamp;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinError;

use super::machine::AppendRefusal;
use super::problems;
use super::replica_work::{Followed, QueuedNews};
use super::waiting::Readable;
use crate::log::partition_log::{AppendError, PartitionLog, Placed};
use crate::metadata_image::MetadataImage;

/// How an append is answered: one place per batch.
pub type AppendReply = oneshot::Sender<Result<Vec<AppendedBatch>, Problem>>;

/// Batches that are appended one after another, with nothing between them.
#[derive(Debug)]
pub struct QueuedAppend {
    pub batches: Vec<LogBatch>,
    pub acks: Acks,
    pub reply: AppendReply,
}

#[derive(Debug)]
pub struct Work {
    pub log: Box<PartitionLog>,
    pub appends: Vec<QueuedAppend>,
    /// `None`: this node does not lead the partition, and nothing may be appended.
    pub leader_epoch: Option<LeaderEpoch>,
    /// The reign it follows, if another node leads, and what it has heard of it.
    pub follows: Option<LeaderEpoch>,
    pub news: Option<QueuedNews>,
    pub committed: Offset,
    pub image: Arc<MetadataImage>,
    /// The worker's steady time.
    pub steady: Timestamp,
    pub retain: Option<Retain>,
    pub close: bool,
}

/// Remove what is too old or too much, but nothing from this offset on.
#[derive(Debug)]
pub struct Retain {
    pub config: TopicConfig,
    pub limit: Offset,
    /// For what goes by its age.
    pub now: Timestamp,
}

/// The log, and what came of it.
#[derive(Debug)]
pub struct Done {
    pub log: Box<PartitionLog>,
    pub written: Vec<Written>,
    pub followed: Followed,
    /// After this nothing may be answered any more.
    pub fatal: Option<LogError>,
    pub disk_full: bool,
}

/// An append whose batches are in the log, and up to where.
#[derive(Debug)]
pub struct Written {
    pub acks: Acks,
    pub reply: AppendReply,
    pub batches: Vec<AppendedBatch>,
    pub end: Offset,
}

impl Retain {
    /// What a job may read again (`held`) stays, and what not every reader may have read.
    pub fn at(
        now: Timestamp,
        config: &TopicConfig,
        readable: Readable,
        held: Option<Offset>,
    ) -> Retain {
        Retain {
            config: config.clone(),
            limit: held.map_or(readable.last_stable, |held| held.min(readable.last_stable)),
            now,
        }
    }
}

impl Work {
    /// May block.
    pub fn run(self) -> Done {
        let mut done = Done {
            log: self.log,
            written: Vec::with_capacity(self.appends.len()),
            followed: Followed::default(),
            fatal: None,
            disk_full: false,
        };
        done.log.committed(self.committed);
        if let Some(epoch) = self.leader_epoch {
            let reconciled = done.log.reconcile(epoch, &self.image.jobs, self.steady);
            done.note(reconciled);
        }
        for append in self.appends {
            let Some(epoch) = self.leader_epoch.filter(|_| done.fatal.is_none()) else {
                let refusal = AppendRefusal::NotLeader { leader: None };
                answer(append.reply, Err(problems::append_refused(refusal)));
                continue;
            };
            done.append(append, epoch, &self.image, self.steady);
        }
        if let Some(news) = self.news {
            done.followed = news.run(&mut done.log, self.follows, self.committed, self.steady);
            if let Some(error) = done.followed.error.take() {
                done.note(Err::<(), LogError>(error));
            }
        }
        if let Some(Retain { config, limit, now }) = &self.retain {
            done.log.forget_silent(self.steady);
            let retained = done.log.retain(config, *limit, *now);
            if let Some(Some(removal)) = done.note(retained) {
                done.note(removal.run());
            }
        }
        let saved = match self.close {
            true => done.log.sync().and_then(|_| done.log.save(true)),
            false => done.log.save(false),
        };
        done.note(saved);
        done
    }
}

impl Done {
    fn append(
        &mut self,
        append: QueuedAppend,
        epoch: LeaderEpoch,
        image: &MetadataImage,
        steady: Timestamp,
    ) {
        let mut batches = Vec::with_capacity(append.batches.len());
        let mut end = Offset::ZERO;
        for batch in &append.batches {
            match self.log.append(batch, epoch, &image.jobs, steady) {
                Ok(placed) => {
                    end = end.max(placed.base_offset.plus(u64::from(placed.records)));
                    batches.push(to_answer(placed));
                }
                Err(error) => {
                    answer(append.reply, Err(problems::append_failed(&error)));
                    if let AppendError::Log(error) = error {
                        self.note(Err::<(), LogError>(error));
                    }
                    return;
                }
            }
        }
        self.written.push(Written {
            acks: append.acks,
            reply: append.reply,
            batches,
            end,
        });
    }

    /// A failure of the disk: fatal, or to be tried again with the next work.
    fn note<T>(&mut self, result: Result<T, LogError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if error.is_fatal() => {
                self.fatal.get_or_insert(error);
                None
            }
            Err(LogError::DiskFull) => {
                self.disk_full = true;
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a partition's log could not be changed");
                None
            }
        }
    }
}

/// Whoever asked may have gone; then nobody needs the answer.
pub fn answer<T>(reply: oneshot::Sender<T>, value: T) {
    drop(reply.send(value));
}

/// Runs on a blocking thread, when the disk has room for one more.
pub async fn on_disk<T: Send + 'static>(
    disk: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let _permit = disk.acquire_owned().await;
    tokio::task::spawn_blocking(work).await
}

pub fn describe(error: &LogError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn to_answer(placed: Placed) -> AppendedBatch {
    AppendedBatch {
        base_offset: placed.base_offset,
        records: placed.records,
        duplicate: placed.duplicate,
        timestamp: placed.max_timestamp,
    }
}
