//! Records on their way into partitions: which batch goes next, and what is still on its way (pure).
//!
//! Each partition has one append under way; what comes meanwhile makes the next batch, so batches grow
//! with the load and a lone record goes at once. A batch is built and stamped once and repeated
//! as it is, so the leader knows a repetition when it sees one. Appends travel over pooled connections,
//! which do not keep the order of two requests: hence not several at a time.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::{CheckpointId, JobId, TopicPartition};
use common::limits::{MAX_MESSAGE_BYTES, TARGET_BATCH_BYTES};
use common::log_batch::{HEADER_BYTES, LogBatchBuilder};
use common::protocol::metadata::JobImage;
use common::time::Timestamp;

use super::SinkError;
use super::transactions::{NoTransaction, Transactions, Writer};

/// No topic takes a larger record.
const MAX_RECORD_BYTES: usize = MAX_MESSAGE_BYTES as usize;

/// One writer's records for any number of partitions.
#[derive(Debug, Default)]
pub struct WriteQueue {
    /// `None`: records count as soon as they are written.
    transactions: Option<Transactions>,
    partitions: BTreeMap<TopicPartition, Partition>,
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

/// A batch to be appended, and repeated as it is until it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextAppend {
    pub partition: TopicPartition,
    pub batch: Bytes,
    /// What it counts as, to be given back once it is stored.
    pub bytes: usize,
}

/// What it means that an append was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A repetition of what was stored before is as good as the first time.
    StoredBefore,
    /// The same batch may be accepted later.
    ForNow,
    ForGood(SinkError),
}

impl WriteQueue {
    /// Writes in transactions, labelled from the restored checkpoint on.
    pub fn exactly_once(writer: Writer, restored: Option<CheckpointId>) -> WriteQueue {
        WriteQueue {
            transactions: Some(Transactions::new(writer, restored)),
            ..WriteQueue::default()
        }
    }

    pub fn at_least_once() -> WriteQueue {
        WriteQueue::default()
    }

    /// Takes a record.
    pub fn push(
        &mut self,
        now: Timestamp,
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
        open.push(now, key, value, &[]);
        self.bytes += open.encoded_bytes() - before;
        Ok(())
    }

    /// The next append to begin, if a partition has something and nothing under way.
    pub fn next_append(&mut self) -> Result<Option<NextAppend>, NoTransaction> {
        let ready = self.partitions.iter_mut().find(|(_, queue)| {
            !queue.under_way && (queue.open.is_some() || !queue.full.is_empty())
        });
        let Some((partition, queue)) = ready else {
            return Ok(None);
        };
        let records = queue.full.front().or(queue.open.as_ref());
        let records = records.map_or(0, LogBatchBuilder::record_count);
        let stamp = match &mut self.transactions {
            Some(transactions) => Some(transactions.stamp(*partition, records)?),
            None => None,
        };
        let next = queue.full.pop_front().or_else(|| queue.open.take());
        let builder = next.expect("it was found because it has one");
        queue.under_way = true;
        let bytes = builder.encoded_bytes() - HEADER_BYTES;
        let batch = match stamp {
            Some(stamp) => builder.transactional(stamp).build(),
            None => builder.build(),
        };
        Ok(Some(NextAppend {
            partition: *partition,
            batch: batch.into_bytes(),
            bytes,
        }))
    }

    /// An append of so many bytes is done.
    pub fn stored(&mut self, partition: TopicPartition, bytes: usize) {
        self.bytes -= bytes;
        if let Some(queue) = self.partitions.get_mut(&partition) {
            queue.under_way = false;
        }
    }

    /// What was taken and is not stored yet.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Everything taken so far belongs to this checkpoint.
    pub fn seal(&mut self, checkpoint: CheckpointId) {
        assert_eq!(self.bytes, 0, "everything that was taken is stored");
        if let Some(transactions) = &mut self.transactions {
            transactions.seal(checkpoint);
        }
    }

    /// The checkpoint is completed: its transactions are decided.
    pub fn completed(&mut self, checkpoint: CheckpointId) {
        if let Some(transactions) = &mut self.transactions {
            transactions.completed(checkpoint);
        }
    }

    /// Whether something waits to be written, or for its checkpoint.
    pub fn is_undecided(&self) -> bool {
        let transactions = self.transactions.as_ref();
        self.bytes > 0 || transactions.is_some_and(Transactions::is_undecided)
    }

    /// By these facts: the completed checkpoint that decides the oldest undecided transaction.
    pub fn decided(
        &self,
        oldest: CheckpointId,
        jobs: &BTreeMap<JobId, JobImage>,
    ) -> Option<CheckpointId> {
        let Writer {
            job, generation, ..
        } = self.transactions.as_ref()?.writer();
        let facts = jobs.get(&job)?;
        let counts = facts.counts(generation, oldest) == Some(true);
        facts.completed.filter(|_| counts)
    }
}

/// What a writer makes of the refusal of a batch.
pub fn judge(partition: TopicPartition, problem: &Problem) -> Refusal {
    if problem.code == ErrorCode::DuplicateSequence {
        return Refusal::StoredBefore;
    }
    if problem.code.is_retriable() {
        return Refusal::ForNow;
    }
    let detail = format!("partition {partition}: {problem}");
    Refusal::ForGood(match problem.code {
        ErrorCode::InvalidRecord
        | ErrorCode::RecordTooLarge
        | ErrorCode::UnknownTopic
        | ErrorCode::UnknownPartition
        | ErrorCode::CorruptLog => SinkError::Fatal(detail),
        // A newer generation writes; or the leader's view of this writer and our own differ.
        _ => SinkError::Broken(detail),
    })
}

#[cfg(test)]
mod tests {
    use common::ids::{Generation, JobName};
    use common::log_batch::LogBatch;

    use super::*;
    use crate::test_log::partition;

    const WRITER: Writer = Writer {
        job: JobId(3),
        generation: Generation(2),
        task: 5,
    };

    fn push(queue: &mut WriteQueue, to: u32, value: &[u8]) {
        queue
            .push(Timestamp(0), partition(to), None, Some(value))
            .unwrap();
    }

    fn facts(generation: u32, completed: u64) -> BTreeMap<JobId, JobImage> {
        let image = JobImage {
            id: JobId(3),
            name: JobName::new("job").unwrap(),
            generation: Generation(generation),
            completed: Some(CheckpointId(completed)),
            finals: BTreeMap::new(),
            running: true,
            deleted: false,
        };
        BTreeMap::from([(JobId(3), image)])
    }

    #[test]
    fn a_partition_has_one_append_under_way_and_the_next_takes_what_came_meanwhile() {
        let mut queue = WriteQueue::exactly_once(WRITER, None);
        push(&mut queue, 0, b"a");
        let first = queue.next_append().unwrap().unwrap();
        push(&mut queue, 0, b"b");
        push(&mut queue, 0, b"c");
        push(&mut queue, 1, b"d");
        let other = queue.next_append().unwrap().unwrap();
        assert_eq!(other.partition, partition(1));
        assert_eq!(queue.next_append(), Ok(None));
        queue.stored(first.partition, first.bytes);
        let second = queue.next_append().unwrap().unwrap();
        let sequence = |append: &NextAppend| {
            let batch = LogBatch::parse(append.batch.clone()).unwrap();
            let stamp = batch.header().producer.unwrap();
            (stamp.base_sequence, batch.header().record_count)
        };
        assert_eq!(sequence(&first), (0, 1));
        assert_eq!(sequence(&second), (1, 2));
        queue.stored(second.partition, second.bytes);
        queue.stored(other.partition, other.bytes);
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn what_waits_for_a_decision_is_not_lost_and_goes_once_it_is_made() {
        let mut queue = WriteQueue::exactly_once(WRITER, None);
        let mut sealed = 0;
        let oldest = loop {
            push(&mut queue, 0, b"x");
            match queue.next_append() {
                Ok(append) => {
                    let append = append.unwrap();
                    queue.stored(append.partition, append.bytes);
                }
                Err(NoTransaction::AllUndecided { oldest }) => break oldest,
                Err(other) => panic!("{other}"),
            }
            sealed += 1;
            queue.seal(CheckpointId(sealed));
        };
        assert_eq!(oldest, CheckpointId(1));
        assert_eq!(queue.decided(oldest, &facts(2, 0)), None);
        assert_eq!(queue.decided(oldest, &facts(3, 1)), None, "it was fenced");
        let decided = queue.decided(oldest, &facts(2, 1)).unwrap();
        queue.completed(decided);
        assert!(queue.next_append().unwrap().is_some());
    }
}
