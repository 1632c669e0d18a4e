//! Open transactions and the last stable offset.
//!
//! A transaction is open from its first batch to the marker that ends it. Readers of committed data read
//! up to the first open transaction, so that they see all of it or nothing, in the order of the log.

use std::collections::BTreeMap;

use common::ids::{ProducerEpoch, ProducerId};
use common::log_batch::{BatchHeader, TransactionOutcome};
use common::offset::Offset;
use serde::{Deserialize, Serialize};

/// A partition's transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Transactions {
    open: BTreeMap<ProducerId, OpenTransaction>,
    /// Ended, but by markers that may still be lost: where each began, by where its marker lies.
    ending: BTreeMap<Offset, Offset>,
    /// In the order of their markers.
    aborted: Vec<AbortedTransaction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OpenTransaction {
    pub epoch: ProducerEpoch,
    pub first_offset: Offset,
}

/// The records of this producer from `first_offset` to before `marker` never happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AbortedTransaction {
    pub producer: ProducerId,
    pub first_offset: Offset,
    pub marker: Offset,
}

impl Transactions {
    /// A batch that is not a marker is in the log now.
    pub fn record(&mut self, header: &BatchHeader) {
        assert!(!header.control, "a marker is recorded by what it says");
        if !header.transactional {
            return;
        }
        let Some(stamp) = header.producer else { return };
        self.open.entry(stamp.id).or_insert(OpenTransaction {
            epoch: stamp.epoch,
            first_offset: header.base_offset,
        });
    }

    /// A marker is in the log now. One that ends nothing says nothing.
    pub fn end(&mut self, producer: ProducerId, outcome: TransactionOutcome, marker: Offset) {
        let Some(ended) = self.open.remove(&producer) else {
            return;
        };
        self.ending.insert(marker, ended.first_offset);
        if outcome == TransactionOutcome::Abort {
            self.aborted.push(AbortedTransaction {
                producer,
                first_offset: ended.first_offset,
                marker,
            });
        }
    }

    pub fn open(&self) -> impl Iterator<Item = (ProducerId, OpenTransaction)> + '_ {
        self.open.iter().map(|(id, open)| (*id, *open))
    }

    pub fn open_of(&self, producer: ProducerId) -> Option<OpenTransaction> {
        self.open.get(&producer).copied()
    }

    /// Up to where readers of committed data may read.
    pub fn last_stable_offset(&self, committed: Offset) -> Offset {
        self.undecided().last_stable_offset(committed)
    }

    pub fn undecided(&self) -> Undecided {
        Undecided {
            open: self.open.values().map(|open| open.first_offset).min(),
            ending: self.ending.clone(),
        }
    }

    /// Markers before this offset can no longer be lost.
    pub fn committed(&mut self, committed: Offset) {
        self.ending = self.ending.split_off(&committed);
    }

    /// The aborted transactions the log still has records of, in the order of their markers.
    pub fn aborted(&self) -> &[AbortedTransaction] {
        &self.aborted
    }

    /// The log now starts here: what lies before need not be told apart any more.
    pub fn drop_before(&mut self, log_start: Offset) {
        self.aborted.retain(|t| t.marker >= log_start);
    }
}

/// What of a partition's transactions holds readers back, apart from the log that knows it: what is
/// appended later lies beyond what is committed now, and holds nobody back yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Undecided {
    open: Option<Offset>,
    /// Where each began that has ended, by where its marker lies.
    ending: BTreeMap<Offset, Offset>,
}

impl Undecided {
    /// Never goes back: a transaction counts as ended only once its marker is committed too.
    pub fn last_stable_offset(&self, committed: Offset) -> Offset {
        let ending = self.ending.range(committed..).map(|(_, first)| *first);
        let first = ending.chain(self.open).min();
        first.unwrap_or(committed).min(committed)
    }

    /// Whether a transaction waits for its marker.
    pub fn has_open(&self) -> bool {
        self.open.is_some()
    }
}

/// Of these, in the order of their markers, the transactions that have records in `from..to`.
pub fn touching(
    aborted: &[AbortedTransaction],
    from: Offset,
    to: Offset,
) -> Vec<AbortedTransaction> {
    let first = aborted.partition_point(|transaction| transaction.marker <= from);
    aborted[first..]
        .iter()
        .filter(|transaction| transaction.first_offset < to)
        .copied()
        .collect()
}

impl AbortedTransaction {
    /// Whether a batch is part of it.
    pub fn covers(&self, header: &BatchHeader) -> bool {
        header.transactional
            && header
                .producer
                .is_some_and(|stamp| stamp.id == self.producer)
            && self.first_offset <= header.base_offset
            && header.base_offset < self.marker
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::LeaderEpoch;
    use common::log_batch::{LogBatch, LogBatchBuilder, ProducerStamp, end_transaction};
    use common::time::Timestamp;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Plain,
        Write(i64),
        End(i64, bool),
        Commit(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => Just(Step::Plain),
            4 => (0_i64..4).prop_map(Step::Write),
            2 => (0_i64..4, any::<bool>()).prop_map(|(p, commit)| Step::End(p, commit)),
            2 => (0_usize..8).prop_map(Step::Commit),
        ]
    }

    fn data(producer: Option<i64>, at: i64) -> LogBatch {
        let mut builder = LogBatchBuilder::new();
        if let Some(id) = producer {
            builder = builder.transactional(ProducerStamp {
                id: ProducerId(id),
                epoch: ProducerEpoch(0),
                base_sequence: 0,
            });
        }
        builder.push(Timestamp(0), None, None, &[]);
        let mut batch = builder.build();
        batch.stamp(Offset(at), LeaderEpoch(0));
        batch
    }

    fn at(index: usize) -> Offset {
        Offset(i64::try_from(index).unwrap())
    }

    /// What the log's records became, looking at all of it: `None` while undecided at `committed`.
    fn fate(log: &[Step], index: usize, committed: usize) -> Option<bool> {
        let Step::Write(producer) = log[index] else {
            return Some(true);
        };
        log[index..committed].iter().find_map(|step| match step {
            Step::End(ended, commit) if *ended == producer => Some(*commit),
            _ => None,
        })
    }

    proptest! {
        /// The reference looks at the whole log: what may be read is decided, complete, and never changes.
        #[test]
        fn readers_see_decided_transactions_only_and_in_the_order_of_the_log(
            steps in proptest::collection::vec(step(), 1..80),
        ) {
            let mut transactions = Transactions::default();
            let mut log: Vec<Step> = Vec::new();
            let mut batches = Vec::new();
            let mut committed = 0;
            let mut stable_before = Offset::ZERO;
            for step in steps {
                let offset = at(log.len());
                match step {
                    Step::Plain | Step::Write(_) => {
                        let producer = if let Step::Write(p) = step { Some(p) } else { None };
                        let batch = data(producer, offset.0);
                        transactions.record(batch.header());
                        batches.push(batch);
                        log.push(step);
                    }
                    Step::End(producer, commit) => {
                        let outcome = if commit {
                            TransactionOutcome::Commit
                        } else {
                            TransactionOutcome::Abort
                        };
                        let id = ProducerId(producer);
                        let mut marker =
                            end_transaction(id, ProducerEpoch(0), outcome, Timestamp(0));
                        marker.stamp(offset, LeaderEpoch(0));
                        transactions.end(id, outcome, offset);
                        batches.push(marker);
                        log.push(step);
                    }
                    Step::Commit(more) => {
                        committed = (committed + more).min(log.len());
                        transactions.committed(at(committed));
                    }
                }
                let stable = transactions.last_stable_offset(at(committed));
                prop_assert!(stable <= at(committed));
                prop_assert!(stable >= stable_before, "it went back");
                stable_before = stable;
                let first_undecided = (0..committed)
                    .find(|index| fate(&log, *index, committed).is_none())
                    .unwrap_or(committed);
                prop_assert_eq!(stable, at(first_undecided));

                let aborted = touching(transactions.aborted(), Offset::ZERO, stable);
                for (index, batch) in batches.iter().enumerate().take(first_undecided) {
                    let header = batch.header();
                    if header.control { continue; }
                    let hidden = aborted.iter().any(|transaction| transaction.covers(header));
                    prop_assert_eq!(hidden, fate(&log, index, committed) == Some(false));
                }
            }
        }
    }

    #[test]
    fn only_aborted_transactions_that_touch_the_range_are_listed() {
        let mut transactions = Transactions::default();
        for (producer, first, marker) in [(1, 0, 5), (2, 6, 9), (1, 10, 12)] {
            transactions.record(data(Some(producer), first).header());
            transactions.end(
                ProducerId(producer),
                TransactionOutcome::Abort,
                Offset(marker),
            );
        }
        let listed = |from, to| -> Vec<i64> {
            touching(transactions.aborted(), Offset(from), Offset(to))
                .iter()
                .map(|transaction| transaction.first_offset.0)
                .collect()
        };
        assert_eq!(listed(0, 20), [0, 6, 10]);
        assert_eq!(listed(5, 10), [6]);
        assert_eq!(listed(4, 7), [0, 6]);
        transactions.drop_before(Offset(9));
        assert_eq!(transactions.aborted().len(), 2);
    }
}
