//! Records into partitions, in order, repeated until stored: what the write queue has ready is appended.
//!
//! With transactions, readers of committed records see a batch once its checkpoint is completed; without,
//! at once, and perhaps twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use common::ids::{CheckpointId, TopicPartition};
use common::limits::CHECKPOINT_TIMEOUT;
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::fetch::FetchBatches;
use common::time::{Clock, Span};
use common::transport::retry::Backoff;
use futures_util::future::join_all;
use tokio::task::JoinSet;
use tracing::warn;

use super::SinkError;
use super::transactions::{NoTransaction, Writer};
use super::write_queue::{self, NextAppend, Refusal, WriteQueue};
use crate::log_client::LogClient;

/// What may be gathered and under way in all; beyond that, writing waits.
const MAX_BYTES: usize = 16 << 20;
/// After so many attempts without success it is worth telling a person, once.
const ATTEMPTS_UNTIL_WARNING: u32 = 10;
/// Leaders decide a transaction within milliseconds. What takes longer is the open transaction of another
/// writer before it, or a leader that is away: nothing that a job should wait for.
const SHOWN_WITHIN: Span = Span::from_secs(5);

/// Writes to any number of partitions.
#[derive(Debug)]
pub struct TransactionalWriter {
    log: LogClient,
    clock: Arc<dyn Clock>,
    queue: WriteQueue,
    appends: JoinSet<Appended>,
    /// A record of the last batch of each partition that readers of committed records may not see yet.
    hidden: BTreeMap<TopicPartition, Offset>,
}

#[derive(Debug)]
struct Appended {
    partition: TopicPartition,
    bytes: usize,
    /// Where it is, if that was told.
    result: Result<Option<Offset>, SinkError>,
}

impl TransactionalWriter {
    /// Writes in transactions, labelled from the restored checkpoint on.
    pub fn exactly_once(
        log: LogClient,
        clock: Arc<dyn Clock>,
        writer: Writer,
        restored: Option<CheckpointId>,
    ) -> TransactionalWriter {
        TransactionalWriter::over(WriteQueue::exactly_once(writer, restored), log, clock)
    }

    pub fn at_least_once(log: LogClient, clock: Arc<dyn Clock>) -> TransactionalWriter {
        TransactionalWriter::over(WriteQueue::at_least_once(), log, clock)
    }

    fn over(queue: WriteQueue, log: LogClient, clock: Arc<dyn Clock>) -> TransactionalWriter {
        TransactionalWriter {
            log,
            clock,
            queue,
            appends: JoinSet::new(),
            hidden: BTreeMap::new(),
        }
    }

    /// Takes a record. It goes with `send` or `drain`, or when writing on needs room.
    pub fn push(
        &mut self,
        partition: TopicPartition,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), SinkError> {
        self.queue.push(self.clock.wall(), partition, key, value)
    }

    /// Puts under way what can go now; waits while too much is on its way.
    pub async fn send(&mut self) -> Result<(), SinkError> {
        self.collect()?;
        self.dispatch().await?;
        while self.queue.bytes() > MAX_BYTES {
            self.wait_for_one().await?;
            self.dispatch().await?;
        }
        Ok(())
    }

    /// Waits until everything taken so far is stored.
    pub async fn drain(&mut self) -> Result<(), SinkError> {
        self.dispatch().await?;
        while !self.appends.is_empty() {
            self.wait_for_one().await?;
            self.dispatch().await?;
        }
        Ok(())
    }

    /// Everything taken so far is stored and belongs to this checkpoint.
    pub async fn prepare(&mut self, checkpoint: CheckpointId) -> Result<(), SinkError> {
        self.drain().await?;
        self.queue.seal(checkpoint);
        Ok(())
    }

    /// The checkpoint is completed: its transactions are decided.
    pub fn completed(&mut self, checkpoint: CheckpointId) {
        self.queue.completed(checkpoint);
    }

    /// Waits until readers of committed records see everything, so that a job that has ended has shown what it
    /// gave. What is undecided is not waited for.
    pub async fn shown(&mut self) {
        if self.queue.is_undecided() || !self.appends.is_empty() {
            return;
        }
        let log = &self.log;
        let hidden = std::mem::take(&mut self.hidden).into_iter();
        let shown = hidden.map(|(partition, offset)| readable(log, partition, offset));
        let shown = tokio::time::timeout(SHOWN_WITHIN.as_duration(), join_all(shown)).await;
        if shown.is_err() {
            warn!("what was committed is still hidden by an open transaction of another writer");
        }
    }

    /// Takes in the results that are there.
    fn collect(&mut self) -> Result<(), SinkError> {
        while let Some(joined) = self.appends.try_join_next() {
            self.take(joined)?;
        }
        Ok(())
    }

    async fn wait_for_one(&mut self) -> Result<(), SinkError> {
        match self.appends.join_next().await {
            Some(joined) => self.take(joined),
            None => Ok(()),
        }
    }

    fn take(&mut self, joined: Result<Appended, tokio::task::JoinError>) -> Result<(), SinkError> {
        let appended =
            joined.map_err(|error| SinkError::Broken(format!("an append was lost: {error}")))?;
        if let Some(offset) = appended.result? {
            self.hidden.insert(appended.partition, offset);
        }
        self.queue.stored(appended.partition, appended.bytes);
        Ok(())
    }

    /// Begins the next append of every partition that has none under way; waits if all transactions are
    /// undecided.
    async fn dispatch(&mut self) -> Result<(), SinkError> {
        loop {
            match self.queue.next_append() {
                Ok(None) => return Ok(()),
                Ok(Some(next)) => self.begin(next),
                Err(NoTransaction::OutOfBits(error)) => {
                    return Err(SinkError::Fatal(error.to_string()));
                }
                Err(NoTransaction::AllUndecided { oldest }) => {
                    self.wait_for_decision(oldest).await?;
                }
            }
        }
    }

    fn begin(&mut self, next: NextAppend) {
        let NextAppend {
            partition,
            batch,
            bytes,
        } = next;
        let log = self.log.clone();
        self.appends.spawn(async move {
            let result = append(&log, partition, batch).await;
            Appended {
                partition,
                bytes,
                result,
            }
        });
    }

    /// Waits for the fact that a checkpoint at or after the oldest undecided one is completed. The news
    /// of it comes to the sink as well, but behind what is being written now.
    async fn wait_for_decision(&mut self, oldest: CheckpointId) -> Result<(), SinkError> {
        let mut image = self.log.image();
        let queue = &self.queue;
        let decided = async {
            let found = image
                .wait_for(|image| queue.decided(oldest, &image.jobs).is_some())
                .await
                .map_err(|_| SinkError::Broken("the node is stopping".to_owned()))?;
            Ok::<_, SinkError>(queue.decided(oldest, &found.jobs).unwrap_or(oldest))
        };
        match tokio::time::timeout(CHECKPOINT_TIMEOUT.as_duration(), decided).await {
            Ok(completed) => {
                self.queue.completed(completed?);
                Ok(())
            }
            Err(_) => Err(SinkError::Broken(format!(
                "no checkpoint from {oldest} on was completed for {CHECKPOINT_TIMEOUT}"
            ))),
        }
    }
}

/// Waits until a reader of committed records sees this record, or nobody can.
async fn readable(log: &LogClient, partition: TopicPartition, offset: Offset) {
    let mut attempt = 0;
    loop {
        let request = FetchBatches {
            partition,
            offset,
            max_bytes: 1,
            wait: Span::from_millis(500),
            isolation: Isolation::ReadCommitted,
        };
        match log.fetch(request).await {
            Ok(reply) if reply.next_offset > offset => return,
            Ok(_) => {}
            Err(problem) if problem.code.is_retriable() => {}
            // Deleted since, for example.
            Err(_) => return,
        }
        let seed = u64::from(partition.partition.0);
        tokio::time::sleep(Backoff::CALLS.delay(attempt, seed).as_duration()).await;
        attempt = attempt.saturating_add(1);
    }
}

/// Appends the same bytes until they are stored, or can never be.
async fn append(
    log: &LogClient,
    partition: TopicPartition,
    batch: Bytes,
) -> Result<Option<Offset>, SinkError> {
    let mut attempt = 0;
    loop {
        let problem = match log.append(partition, batch.clone()).await {
            Ok(appended) => return Ok(Some(appended.base_offset)),
            Err(problem) => problem,
        };
        match write_queue::judge(partition, &problem) {
            Refusal::StoredBefore => return Ok(None),
            Refusal::ForNow => {}
            Refusal::ForGood(error) => return Err(error),
        }
        if attempt == ATTEMPTS_UNTIL_WARNING {
            warn!(%partition, %problem, "a partition does not take a job's output; trying on");
        }
        let seed = u64::from(partition.partition.0);
        tokio::time::sleep(Backoff::CALLS.delay(attempt, seed).as_duration()).await;
        attempt = attempt.saturating_add(1);
    }
}
