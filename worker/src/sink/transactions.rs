//! Which transaction a writer's records belong to (pure).
//!
//! A transaction holds what was written between two checkpoints and is labelled with the last checkpoint
//! sealed before it, plus one: a lower bound of the one that will complete it. Several may be undecided
//! at once, since records are written while earlier checkpoints complete, so each takes one of sixteen
//! slots when its first record comes, and a slot is free again only when its transaction is decided.
//! In every partition a transaction's sequence numbers start at 0.

use std::collections::BTreeMap;

use common::ids::{CheckpointId, Generation, JobId, TopicPartition};
use common::limits::TRANSACTION_SLOTS;
use common::log_batch::ProducerStamp;
use common::producer_id::{InternalPid, OutOfBits};

/// Who writes: one task of one generation of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Writer {
    pub job: JobId,
    pub generation: Generation,
    /// The task's number in its job.
    pub task: u16,
}

/// The transactions of one writer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transactions {
    writer: Writer,
    /// The label of what is written now.
    label: CheckpointId,
    /// The labels of the transactions that are not decided, by slot.
    slots: [Option<CheckpointId>; TRANSACTION_SLOTS as usize],
    /// The slot of what is written now, once there was something.
    current: Option<u8>,
    /// How many records of the current transaction each partition has been given.
    sequences: BTreeMap<TopicPartition, i32>,
}

/// Why a batch cannot be written now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTransaction {
    /// Something must be decided first.
    #[error("all transactions of the writer are undecided, the oldest of checkpoint {oldest}")]
    AllUndecided { oldest: CheckpointId },
    #[error(transparent)]
    OutOfBits(#[from] OutOfBits),
}

impl Transactions {
    /// `restored`: the checkpoint the writer starts from.
    pub fn new(writer: Writer, restored: Option<CheckpointId>) -> Transactions {
        Transactions {
            writer,
            label: restored.unwrap_or_default().next(),
            slots: [None; TRANSACTION_SLOTS as usize],
            current: None,
            sequences: BTreeMap::new(),
        }
    }

    /// What the next batch for a partition, of so many records, is stamped with.
    pub fn stamp(
        &mut self,
        partition: TopicPartition,
        records: u32,
    ) -> Result<ProducerStamp, NoTransaction> {
        let slot = match self.current {
            Some(slot) => slot,
            None => self.free_slot()?,
        };
        let pid = InternalPid {
            job: self.writer.job,
            generation: self.writer.generation,
            task: self.writer.task,
            slot,
            label: self.label,
        };
        let (id, epoch) = pid.encode()?;
        self.slots[usize::from(slot)] = Some(self.label);
        self.current = Some(slot);
        let next = self.sequences.entry(partition).or_insert(0);
        let base_sequence = *next;
        let records = i32::try_from(records).expect("a batch has fewer than 2^31 records");
        // After the largest number comes 0, as Kafka has it.
        *next = base_sequence.wrapping_add(records) & i32::MAX;
        Ok(ProducerStamp {
            id,
            epoch,
            base_sequence,
        })
    }

    /// Everything stamped so far belongs to this checkpoint; what follows does not.
    pub fn seal(&mut self, checkpoint: CheckpointId) {
        assert!(
            checkpoint >= self.label,
            "checkpoint {checkpoint} was sealed after one before {}",
            self.label
        );
        self.label = checkpoint.next();
        self.current = None;
        self.sequences.clear();
    }

    /// The checkpoint is completed: so are all transactions labelled up to it.
    pub fn completed(&mut self, checkpoint: CheckpointId) {
        for (slot, label) in (0_u8..).zip(&mut self.slots) {
            if Some(slot) != self.current && label.is_some_and(|label| label <= checkpoint) {
                *label = None;
            }
        }
    }

    /// Whether a transaction is open or waits for its checkpoint.
    pub fn is_undecided(&self) -> bool {
        self.slots.iter().any(Option::is_some)
    }

    pub fn writer(&self) -> Writer {
        self.writer
    }

    fn free_slot(&self) -> Result<u8, NoTransaction> {
        let free = (0_u8..).zip(&self.slots).find(|(_, label)| label.is_none());
        match free {
            Some((slot, _)) => Ok(slot),
            None => Err(NoTransaction::AllUndecided {
                oldest: self
                    .slots
                    .iter()
                    .flatten()
                    .min()
                    .copied()
                    .unwrap_or_default(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_log::partition;

    const WRITER: Writer = Writer {
        job: JobId(3),
        generation: Generation(2),
        task: 5,
    };

    fn decode(stamp: ProducerStamp) -> InternalPid {
        InternalPid::decode(stamp.id, stamp.epoch).unwrap()
    }

    #[test]
    fn records_are_labelled_with_the_last_sealed_checkpoint_plus_one_and_numbered_per_partition() {
        let mut transactions = Transactions::new(WRITER, Some(CheckpointId(10)));
        let first = transactions.stamp(partition(0), 7).unwrap();
        assert_eq!(decode(first).label, CheckpointId(11));
        assert_eq!(decode(first).task, 5);
        let second = transactions.stamp(partition(0), 1).unwrap();
        let other = transactions.stamp(partition(1), 1).unwrap();
        assert_eq!(
            (
                first.base_sequence,
                second.base_sequence,
                other.base_sequence
            ),
            (0, 7, 0)
        );
        // The checkpoints in between were given up.
        transactions.seal(CheckpointId(14));
        let next = transactions.stamp(partition(0), 1).unwrap();
        assert_eq!(
            (decode(next).label, next.base_sequence),
            (CheckpointId(15), 0)
        );
        assert_ne!(decode(next).slot, decode(first).slot);
    }

    #[test]
    fn an_empty_epoch_takes_no_slot_and_a_full_pool_waits_for_a_decision() {
        let mut transactions = Transactions::new(WRITER, None);
        for epoch in 1..=100 {
            transactions.seal(CheckpointId(epoch));
        }
        for epoch in 101..117 {
            transactions.stamp(partition(0), 1).unwrap();
            transactions.seal(CheckpointId(epoch));
        }
        let oldest = CheckpointId(101);
        let full = transactions.stamp(partition(0), 1);
        assert_eq!(full, Err(NoTransaction::AllUndecided { oldest }));
        transactions.completed(CheckpointId(100));
        assert!(transactions.stamp(partition(0), 1).is_err());
        transactions.completed(CheckpointId(101));
        assert!(transactions.stamp(partition(0), 1).is_ok());
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Write(u32, u32),
        /// Seals the checkpoint so many after the last.
        Seal(u64),
        /// Completes one of the sealed ones.
        Complete(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3_u32, 1..10_u32).prop_map(|(partition, records)| Step::Write(partition, records)),
            2 => (1..4_u64).prop_map(Step::Seal),
            1 => (0..6_u64).prop_map(Step::Complete),
        ]
    }

    proptest! {
        /// The leader's side as the model: what it knows of each producer id.
        #[test]
        fn a_leader_accepts_every_batch(steps in prop::collection::vec(step(), 0..300)) {
            let mut transactions = Transactions::new(WRITER, None);
            let (mut sealed, mut completed) = (CheckpointId(0), CheckpointId(0));
            // (producer id, partition) → epoch and label of its transaction, next sequence.
            let mut known: BTreeMap<_, (i16, CheckpointId, i32)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Write(number, records) => {
                        let undecided = known
                            .iter()
                            .filter(|(_, (_, label, _))| *label > completed)
                            .map(|((id, _), _)| *id)
                            .collect::<std::collections::BTreeSet<_>>();
                        let Ok(stamp) = transactions.stamp(partition(number), records) else {
                            prop_assert_eq!(undecided.len(), usize::from(TRANSACTION_SLOTS));
                            continue;
                        };
                        let pid = decode(stamp);
                        prop_assert_eq!(pid.label, sealed.next());
                        let before = known.get(&(stamp.id, partition(number))).copied();
                        let expected = match before {
                            Some((epoch, _, next)) if epoch == stamp.epoch.0 => next,
                            // Another transaction of this producer: the last must be decided, and the
                            // epoch must have grown.
                            Some((epoch, label, _)) => {
                                prop_assert!(label <= completed);
                                prop_assert!(stamp.epoch.0 > epoch);
                                0
                            }
                            None => 0,
                        };
                        prop_assert_eq!(stamp.base_sequence, expected);
                        let next = expected + i32::try_from(records).unwrap();
                        known.insert((stamp.id, partition(number)), (stamp.epoch.0, pid.label, next));
                    }
                    Step::Seal(after) => {
                        sealed = CheckpointId(sealed.0 + after);
                        transactions.seal(sealed);
                    }
                    Step::Complete(before) => {
                        let checkpoint = CheckpointId(sealed.0.saturating_sub(before));
                        completed = completed.max(checkpoint);
                        transactions.completed(checkpoint);
                    }
                }
            }
        }
    }
}
