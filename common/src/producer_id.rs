//! The producer ids of jobs' own writers: whoever reads one knows which transaction it stands for.
//!
//! ```text
//! bit 63  62  61        44 43        28 27     16 15  12 11        0
//!      0 | 1 | job number | generation | task    | slot | window    |   producer id
//!                                          label mod 32000              producer epoch
//! ```
//!
//! A transaction's label is one more than the last checkpoint sealed at its writer: a lower bound of the
//! checkpoint that will close it. `label = window × 32000 + producer epoch`, so that the epoch grows with
//! every transaction, as Kafka's rules want. No registry has to be kept or replicated: any leader that
//! meets an open transaction can ask the metadata whether it belongs to its job's past.

use crate::ids::{CheckpointId, Generation, JobId, ProducerEpoch, ProducerId};
use crate::limits::{MAX_TASKS_PER_JOB, TRANSACTION_SLOTS};

const INTERNAL: i64 = 1 << 62;
const LABELS_PER_WINDOW: u64 = 32_000;
const WINDOWS: u64 = 1 << 12;
const GENERATIONS: u32 = 1 << 16;
const JOBS: u32 = 1 << 18;

/// A transaction of a job's writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InternalPid {
    pub job: JobId,
    pub generation: Generation,
    /// The writing task's number in its job.
    pub task: u16,
    /// Which of the writer's undecided transactions.
    pub slot: u8,
    /// The last checkpoint sealed at the writer, plus one.
    pub label: CheckpointId,
}

/// A counter has outgrown its bits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value} is too large to be part of a producer id, the limit is {limit}")]
pub struct OutOfBits {
    pub what: &'static str,
    pub value: u64,
    pub limit: u64,
}

impl InternalPid {
    pub fn encode(self) -> Result<(ProducerId, ProducerEpoch), OutOfBits> {
        let window = self.label.0 / LABELS_PER_WINDOW;
        let parts = [
            ("job number", u64::from(self.job.0), u64::from(JOBS)),
            (
                "generation",
                u64::from(self.generation.0),
                u64::from(GENERATIONS),
            ),
            (
                "task number",
                u64::from(self.task),
                u64::from(MAX_TASKS_PER_JOB),
            ),
            ("slot", u64::from(self.slot), u64::from(TRANSACTION_SLOTS)),
            ("checkpoint", self.label.0, WINDOWS * LABELS_PER_WINDOW),
        ];
        for (what, value, limit) in parts {
            if value >= limit {
                return Err(OutOfBits { what, value, limit });
            }
        }
        let id = INTERNAL
            | (i64::from(self.job.0) << 44)
            | (i64::from(self.generation.0) << 28)
            | (i64::from(self.task) << 16)
            | (i64::from(self.slot) << 12)
            | i64::try_from(window).expect("a window has 12 bits");
        let epoch = i16::try_from(self.label.0 % LABELS_PER_WINDOW).expect("32000 fits in 15 bits");
        Ok((ProducerId(id), ProducerEpoch(epoch)))
    }

    /// The transaction this producer id stands for; `None` if it is not one of a job's writers.
    pub fn decode(id: ProducerId, epoch: ProducerEpoch) -> Option<InternalPid> {
        if !is_internal(id) {
            return None;
        }
        let label_in_window = u64::try_from(epoch.0).ok()?;
        if label_in_window >= LABELS_PER_WINDOW {
            return None;
        }
        let field = |shift: u32, bits: u32| -> u64 {
            u64::try_from(id.0 >> shift).expect("an internal id is positive") & ((1 << bits) - 1)
        };
        let window = field(0, 12);
        Some(InternalPid {
            job: JobId(u32::try_from(field(44, 18)).expect("18 bits")),
            generation: Generation(u32::try_from(field(28, 16)).expect("16 bits")),
            task: u16::try_from(field(16, 12)).expect("12 bits"),
            slot: u8::try_from(field(12, 4)).expect("4 bits"),
            label: CheckpointId(window * LABELS_PER_WINDOW + label_in_window),
        })
    }
}

/// Whether this id is one of a job's writers. Such ids are never given to clients.
pub fn is_internal(id: ProducerId) -> bool {
    id.0 >= INTERNAL
}

const _: () = assert!(MAX_TASKS_PER_JOB == 1 << 12);
const _: () = assert!(TRANSACTION_SLOTS == 1 << 4);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_transaction_reads_back_from_its_producer_id(
            job in 0..JOBS,
            generation in 0..GENERATIONS,
            task in 0..u16::try_from(MAX_TASKS_PER_JOB).unwrap(),
            slot in 0..TRANSACTION_SLOTS,
            label in 0..WINDOWS * LABELS_PER_WINDOW,
        ) {
            let transaction = InternalPid {
                job: JobId(job),
                generation: Generation(generation),
                task,
                slot,
                label: CheckpointId(label),
            };
            let (id, epoch) = transaction.encode().unwrap();
            prop_assert!(is_internal(id));
            prop_assert!(id.0 > 0);
            prop_assert_eq!(InternalPid::decode(id, epoch), Some(transaction));
        }

        #[test]
        fn the_epoch_of_a_writers_id_grows_with_every_transaction(
            label in 0..WINDOWS * LABELS_PER_WINDOW - 1,
        ) {
            let at = |label| InternalPid {
                job: JobId(1),
                generation: Generation(2),
                task: 3,
                slot: 4,
                label: CheckpointId(label),
            }.encode().unwrap();
            let ((id, epoch), (next_id, next_epoch)) = (at(label), at(label + 1));
            prop_assert!((next_id, next_epoch) > (id, epoch));
        }
    }

    #[test]
    fn clients_ids_are_not_internal_and_counters_out_of_bits_are_refused() {
        assert_eq!(
            InternalPid::decode(ProducerId(INTERNAL - 1), ProducerEpoch(0)),
            None
        );
        assert_eq!(InternalPid::decode(ProducerId(-1), ProducerEpoch(-1)), None);
        assert_eq!(
            InternalPid::decode(ProducerId(INTERNAL), ProducerEpoch(32_000)),
            None
        );
        let too_late = InternalPid {
            job: JobId(0),
            generation: Generation(GENERATIONS),
            task: 0,
            slot: 0,
            label: CheckpointId(0),
        };
        assert_eq!(too_late.encode().unwrap_err().what, "generation");
    }
}
