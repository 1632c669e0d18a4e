//! Records on their way into partitions: gathered into batches, appended in order, repeated until stored.
//!
//! Each partition has one append under way; what comes meanwhile makes the next batch, so batches grow
//! with the load and a lone record goes at once. A batch is built and stamped once and repeated
//! as it is, so the leader knows a repetition when it sees one. Appends travel over pooled connections,
//! which do not keep the order of two requests: hence not several at a time.
//!
//! With transactions, readers of committed records see a batch once its checkpoint is completed; without,
//! at once, and perhaps twice.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::{CheckpointId, TopicPartition};
use common::limits::{CHECKPOINT_TIMEOUT, MAX_MESSAGE_BYTES, TARGET_BATCH_BYTES};
use common::log_batch::LogBatchBuilder;
use common::time::Clock;
use common::transport::retry::Backoff;
use tokio::task::JoinSet;
use tracing::warn;

use super::SinkError;
use super::transactions::{NoTransaction, Transactions, Writer};
use crate::log_client::LogClient;

/// What may be gathered and under way in all; beyond that, writing waits.
const MAX_BYTES: usize = 16 << 20;
/// No topic takes a larger record.
const MAX_RECORD_BYTES: usize = MAX_MESSAGE_BYTES as usize;
/// After so many attempts without success it is worth telling a person, once.
const ATTEMPTS_UNTIL_WARNING: u32 = 10;

/// Writes to any number of partitions.
#[derive(Debug)]
pub struct TransactionalWriter {
    log: LogClient,
    clock: Arc<dyn Clock>,
    /// `None`: records count as soon as they are written.
    transactions: Option<Transactions>,
    partitions: BTreeMap<TopicPartition, Partition>,
    appends: JoinSet<Appended>,
    /// Gathered and under way.
    bytes: usize,
}

#[derive(Debug, Default)]
struct Partition {
    /// Batches that are full, and the one that is being filled.
    full: VecDeque<LogBatchBuilder>,
    open: Option<LogBatchBuilder>,
    under_way: bool,
}

#[derive(Debug)]
struct Appended {
    partition: TopicPartition,
    bytes: usize,
    result: Result<(), SinkError>,
}

impl TransactionalWriter {
    /// Writes in transactions, labelled from the restored checkpoint on.
    pub fn exactly_once(
        log: LogClient,
        clock: Arc<dyn Clock>,
        writer: Writer,
        restored: Option<CheckpointId>,
    ) -> TransactionalWriter {
        let transactions = Some(Transactions::new(writer, restored));
        TransactionalWriter {
            transactions,
            ..TransactionalWriter::at_least_once(log, clock)
        }
    }

    pub fn at_least_once(log: LogClient, clock: Arc<dyn Clock>) -> TransactionalWriter {
        TransactionalWriter {
            log,
            clock,
            transactions: None,
            partitions: BTreeMap::new(),
            appends: JoinSet::new(),
            bytes: 0,
        }
    }

    /// Takes a record. It goes with `send` or `drain`, or when writing on needs room.
    pub fn push(
        &mut self,
        partition: TopicPartition,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), SinkError> {
        let payload = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        if payload > MAX_RECORD_BYTES {
            return Err(SinkError::Fatal(format!(
                "a record for partition {partition} has {payload} bytes, the limit is {MAX_RECORD_BYTES}"
            )));
        }
        let needed = LogBatchBuilder::bytes_of_record(payload, 0);
        let queue = self.partitions.entry(partition).or_default();
        let is_full = |open: &mut LogBatchBuilder| {
            !open.is_empty() && open.encoded_bytes() + needed > TARGET_BATCH_BYTES
        };
        queue.full.extend(queue.open.take_if(is_full));
        let open = queue.open.get_or_insert_default();
        let before = open.encoded_bytes();
        open.push(self.clock.wall(), key, value, &[]);
        self.bytes += open.encoded_bytes() - before;
        Ok(())
    }

    /// Puts under way what can go now; waits while too much is on its way.
    pub async fn send(&mut self) -> Result<(), SinkError> {
        self.collect()?;
        self.dispatch().await?;
        while self.bytes > MAX_BYTES {
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
        assert_eq!(self.bytes, 0, "everything that was taken is stored");
        Ok(())
    }

    /// Everything taken so far is stored and belongs to this checkpoint.
    pub async fn prepare(&mut self, checkpoint: CheckpointId) -> Result<(), SinkError> {
        self.drain().await?;
        if let Some(transactions) = &mut self.transactions {
            transactions.seal(checkpoint);
        }
        Ok(())
    }

    /// The checkpoint is completed: its transactions are decided.
    pub fn completed(&mut self, checkpoint: CheckpointId) {
        if let Some(transactions) = &mut self.transactions {
            transactions.completed(checkpoint);
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
        appended.result?;
        self.bytes -= appended.bytes;
        if let Some(queue) = self.partitions.get_mut(&appended.partition) {
            queue.under_way = false;
        }
        Ok(())
    }

    /// Begins the next append of every partition that has none under way.
    async fn dispatch(&mut self) -> Result<(), SinkError> {
        let ready: Vec<TopicPartition> = self
            .partitions
            .iter()
            .filter(|(_, queue)| {
                !queue.under_way && (queue.open.is_some() || !queue.full.is_empty())
            })
            .map(|(partition, _)| *partition)
            .collect();
        for partition in ready {
            let queue = self
                .partitions
                .get_mut(&partition)
                .expect("it was just listed");
            let next = queue.full.pop_front().or_else(|| queue.open.take());
            let builder = next.expect("it was listed because it has one");
            queue.under_way = true;
            let bytes = builder.encoded_bytes() - common::log_batch::HEADER_BYTES;
            let batch = self.finished(partition, builder).await?;
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
        Ok(())
    }

    /// The batch with its stamp; waits if all transactions are undecided.
    async fn finished(
        &mut self,
        partition: TopicPartition,
        builder: LogBatchBuilder,
    ) -> Result<Bytes, SinkError> {
        let Some(transactions) = &mut self.transactions else {
            return Ok(builder.build().into_bytes());
        };
        loop {
            match transactions.stamp(partition, builder.record_count()) {
                Ok(stamp) => return Ok(builder.transactional(stamp).build().into_bytes()),
                Err(NoTransaction::OutOfBits(error)) => {
                    return Err(SinkError::Fatal(error.to_string()));
                }
                Err(NoTransaction::AllUndecided { oldest }) => {
                    wait_for_decision(&self.log, transactions, oldest).await?;
                }
            }
        }
    }
}

/// Waits for the fact that a checkpoint at or after the oldest undecided one is completed. The news of it
/// comes to the sink as well, but behind what is being written now.
async fn wait_for_decision(
    log: &LogClient,
    transactions: &mut Transactions,
    oldest: CheckpointId,
) -> Result<(), SinkError> {
    let Writer {
        job, generation, ..
    } = transactions.writer();
    let mut image = log.image();
    let decided = async {
        let completed = |job: &common::protocol::metadata::JobImage| {
            let counts = job.counts(generation, oldest) == Some(true);
            job.completed.filter(|_| counts)
        };
        let found = image
            .wait_for(|image| image.jobs.get(&job).and_then(completed).is_some())
            .await
            .map_err(|_| SinkError::Broken("the node is stopping".to_owned()))?;
        Ok::<_, SinkError>(found.jobs.get(&job).and_then(completed).unwrap_or(oldest))
    };
    match tokio::time::timeout(CHECKPOINT_TIMEOUT.as_duration(), decided).await {
        Ok(completed) => {
            transactions.completed(completed?);
            Ok(())
        }
        Err(_) => Err(SinkError::Broken(format!(
            "no checkpoint from {oldest} on was completed for {CHECKPOINT_TIMEOUT}"
        ))),
    }
}

/// Appends the same bytes until they are stored, or can never be.
async fn append(log: &LogClient, partition: TopicPartition, batch: Bytes) -> Result<(), SinkError> {
    let mut attempt = 0;
    loop {
        let problem = match log.append(partition, batch.clone()).await {
            // A repetition of what was stored before is as good.
            Ok(_) => return Ok(()),
            Err(problem) if problem.code == ErrorCode::DuplicateSequence => return Ok(()),
            Err(problem) => problem,
        };
        if !problem.code.is_retriable() {
            return Err(failure(partition, &problem));
        }
        if attempt == ATTEMPTS_UNTIL_WARNING {
            warn!(%partition, %problem, "a partition does not take a job's output; trying on");
        }
        let seed = u64::from(partition.partition.0);
        tokio::time::sleep(Backoff::CALLS.delay(attempt, seed).as_duration()).await;
        attempt = attempt.saturating_add(1);
    }
}

fn failure(partition: TopicPartition, problem: &Problem) -> SinkError {
    let detail = format!("partition {partition}: {problem}");
    match problem.code {
        ErrorCode::InvalidRecord
        | ErrorCode::RecordTooLarge
        | ErrorCode::UnknownTopic
        | ErrorCode::UnknownPartition
        | ErrorCode::CorruptLog => SinkError::Fatal(detail),
        // A newer generation writes; or the leader's view of this writer and our own differ.
        _ => SinkError::Broken(detail),
    }
}
