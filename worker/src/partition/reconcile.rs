//! What becomes of the transactions of jobs: open transaction × the cluster's facts → commit, abort, wait.
//!
//! A job's writer appends under a producer id that says which job, generation and checkpoint the records
//! belong to. Nobody sends "commit": once a checkpoint is completed, that is a fact of the metadata, and
//! every leader of a partition with an open transaction draws the same conclusion from it. A marker that
//! is lost with its leader is written again by the next, with the same outcome, since facts never change.

use std::collections::BTreeMap;

use common::ids::{JobId, ProducerEpoch, ProducerId};
use common::log_batch::{ProducerStamp, TransactionOutcome};
use common::producer_id::{InternalPid, is_internal};
use common::protocol::metadata::JobImage;

use super::transactions::Transactions;

/// What the cluster knows of its jobs, as of one metadata version.
pub type JobFacts = BTreeMap<JobId, JobImage>;

/// What is to become of an open transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    End(TransactionOutcome),
    /// The facts known here do not decide it.
    Wait,
}

/// A marker to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Marker {
    pub producer: ProducerId,
    pub epoch: ProducerEpoch,
    pub outcome: TransactionOutcome,
}

/// Why a batch may not join a transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionRefusal {
    #[error("this node has yet to hear of generation {} of job {}", pid.generation, pid.job)]
    NotHeardOf { pid: InternalPid },
    #[error("generation {} of job {} has been replaced", pid.generation, pid.job)]
    FencedGeneration { pid: InternalPid },
    #[error("checkpoint {} of job {} is complete, nothing more belongs to it", pid.label, pid.job)]
    Completed { pid: InternalPid },
    #[error("an earlier transaction of producer {} is not decided yet", producer.0)]
    EarlierIsOpen { producer: ProducerId },
    #[error("a job's writer appends within a transaction only")]
    NotTransactional,
    #[error("producer id {} says nothing that makes sense", producer.0)]
    Malformed { producer: ProducerId },
}

impl TransactionRefusal {
    /// Whether the same batch may be accepted later.
    pub fn is_temporary(&self) -> bool {
        match self {
            TransactionRefusal::NotHeardOf { .. } | TransactionRefusal::EarlierIsOpen { .. } => {
                true
            }
            TransactionRefusal::FencedGeneration { .. }
            | TransactionRefusal::Completed { .. }
            | TransactionRefusal::NotTransactional
            | TransactionRefusal::Malformed { .. } => false,
        }
    }
}

/// What becomes of a transaction of this producer, by these facts.
pub fn decide(producer: ProducerId, epoch: ProducerEpoch, facts: &JobFacts) -> Decision {
    let Some(pid) = InternalPid::decode(producer, epoch) else {
        // A client's transaction is ended by its coordinator.
        return Decision::Wait;
    };
    // A job that is not known yet will be: jobs are forgotten only once nothing of them is open.
    let Some(job) = facts.get(&pid.job) else {
        return Decision::Wait;
    };
    match job.counts(pid.generation, pid.label) {
        Some(true) => Decision::End(TransactionOutcome::Commit),
        Some(false) => Decision::End(TransactionOutcome::Abort),
        None => Decision::Wait,
    }
}

/// The markers that these facts call for, in the order the transactions began.
pub fn markers(transactions: &Transactions, facts: &JobFacts) -> Vec<Marker> {
    let mut decided: Vec<_> = transactions
        .open()
        .filter_map(
            |(producer, open)| match decide(producer, open.epoch, facts) {
                Decision::End(outcome) => Some((
                    open.first_offset,
                    Marker {
                        producer,
                        epoch: open.epoch,
                        outcome,
                    },
                )),
                Decision::Wait => None,
            },
        )
        .collect();
    decided.sort_unstable();
    decided.into_iter().map(|(_, marker)| marker).collect()
}

/// Whether a batch of a job's writer may be appended. Safety comes from `decide` alone: what a writer of
/// the past gets in is aborted. Refusing it here saves the work.
pub fn admit(
    stamp: ProducerStamp,
    transactional: bool,
    transactions: &Transactions,
    facts: &JobFacts,
) -> Result<(), TransactionRefusal> {
    let producer = stamp.id;
    let epoch = stamp.epoch;
    if !is_internal(producer) {
        return match transactions.open_of(producer) {
            Some(open) if open.epoch != epoch => {
                Err(TransactionRefusal::EarlierIsOpen { producer })
            }
            Some(_) | None => Ok(()),
        };
    }
    let pid =
        InternalPid::decode(producer, epoch).ok_or(TransactionRefusal::Malformed { producer })?;
    if !transactional {
        return Err(TransactionRefusal::NotTransactional);
    }
    let Some(job) = facts.get(&pid.job) else {
        return Err(TransactionRefusal::NotHeardOf { pid });
    };
    if pid.generation > job.generation {
        return Err(TransactionRefusal::NotHeardOf { pid });
    }
    if pid.generation < job.generation || job.deleted {
        return Err(TransactionRefusal::FencedGeneration { pid });
    }
    if job
        .completed
        .is_some_and(|completed| pid.label <= completed)
    {
        return Err(TransactionRefusal::Completed { pid });
    }
    match transactions.open_of(producer) {
        Some(open) if open.epoch != epoch => Err(TransactionRefusal::EarlierIsOpen { producer }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::{CheckpointId, Generation, JobName, LeaderEpoch};
    use common::log_batch::LogBatchBuilder;
    use common::offset::Offset;
    use common::time::Timestamp;
    use proptest::prelude::*;

    const JOB: JobId = JobId(3);

    fn pid(generation: u32, label: u64) -> InternalPid {
        InternalPid {
            job: JOB,
            generation: Generation(generation),
            task: 1,
            slot: 2,
            label: CheckpointId(label),
        }
    }

    fn stamp(pid: InternalPid) -> ProducerStamp {
        let (id, epoch) = pid.encode().unwrap();
        ProducerStamp {
            id,
            epoch,
            base_sequence: 0,
        }
    }

    fn job(generation: u32, completed: Option<u64>, finals: &[(u32, Option<u64>)]) -> JobImage {
        JobImage {
            id: JOB,
            name: JobName::new("job").unwrap(),
            generation: Generation(generation),
            completed: completed.map(CheckpointId),
            finals: finals
                .iter()
                .map(|(generation, last)| (Generation(*generation), last.map(CheckpointId)))
                .collect(),
            running: true,
            deleted: false,
        }
    }

    fn facts(image: JobImage) -> JobFacts {
        JobFacts::from([(JOB, image)])
    }

    #[test]
    fn a_transaction_is_decided_by_generation_and_checkpoint() {
        let commit = Decision::End(TransactionOutcome::Commit);
        let abort = Decision::End(TransactionOutcome::Abort);
        let now = facts(job(5, Some(20), &[(3, None), (4, Some(12))]));
        for (generation, label, expected) in [
            (5, 20, commit),
            (5, 21, Decision::Wait),
            (6, 1, Decision::Wait),
            (4, 12, commit),
            (4, 13, abort),
            (3, 1, abort),
            (2, 1, abort),
        ] {
            let stamp = stamp(pid(generation, label));
            assert_eq!(
                decide(stamp.id, stamp.epoch, &now),
                expected,
                "generation {generation} label {label}"
            );
        }
        let stamp = stamp(pid(5, 20));
        assert_eq!(
            decide(stamp.id, stamp.epoch, &JobFacts::new()),
            Decision::Wait
        );
        assert_eq!(
            decide(ProducerId(9), ProducerEpoch(0), &now),
            Decision::Wait
        );
    }

    #[test]
    fn a_deleted_job_leaves_nothing_open() {
        let mut image = job(5, Some(20), &[]);
        image.deleted = true;
        let stamp = stamp(pid(5, 21));
        assert_eq!(
            decide(stamp.id, stamp.epoch, &facts(image)),
            Decision::End(TransactionOutcome::Abort)
        );
    }

    #[test]
    fn writers_of_the_past_are_refused_and_those_of_the_future_told_to_wait() {
        let now = facts(job(5, Some(20), &[(4, Some(12))]));
        let none = Transactions::default();
        let admit = |pid| admit(stamp(pid), true, &none, &now);
        assert_eq!(admit(pid(5, 21)), Ok(()));
        assert!(admit(pid(6, 21)).unwrap_err().is_temporary());
        for past in [pid(4, 21), pid(5, 20)] {
            assert!(!admit(past).unwrap_err().is_temporary());
        }
        assert_eq!(
            super::admit(stamp(pid(5, 21)), false, &none, &now),
            Err(TransactionRefusal::NotTransactional)
        );
    }

    #[test]
    fn a_slot_is_not_used_again_while_its_transaction_is_open() {
        let now = facts(job(5, Some(20), &[]));
        let mut transactions = Transactions::default();
        let mut builder = LogBatchBuilder::new().transactional(stamp(pid(5, 21)));
        builder.push(Timestamp(0), None, None, &[]);
        let mut batch = builder.build();
        batch.stamp(Offset(7), LeaderEpoch(0));
        transactions.record(batch.header());
        assert_eq!(admit(stamp(pid(5, 21)), true, &transactions, &now), Ok(()));
        let next = admit(stamp(pid(5, 22)), true, &transactions, &now);
        assert!(next.unwrap_err().is_temporary());
    }

    proptest! {
        /// Facts only grow: generations are superseded with what was completed, checkpoints complete.
        /// Whatever leader looks at whatever time, a decision once made is never made otherwise.
        #[test]
        fn every_leader_that_decides_decides_the_same(
            history in proptest::collection::vec(any::<bool>(), 1..40),
            generation in 1_u32..6,
            label in 1_u64..20,
        ) {
            let stamp = stamp(pid(generation, label));
            let mut image = job(1, None, &[]);
            let mut decided = None;
            for supersede in history {
                if supersede {
                    image.finals.insert(image.generation, image.completed);
                    image.generation = image.generation.next();
                } else {
                    image.completed =
                        Some(image.completed.map_or(CheckpointId(1), CheckpointId::next));
                }
                let decision = decide(stamp.id, stamp.epoch, &facts(image.clone()));
                if let Some(before) = decided {
                    prop_assert_eq!(decision, before);
                } else if decision != Decision::Wait {
                    decided = Some(decision);
                }
            }
        }
    }
}
