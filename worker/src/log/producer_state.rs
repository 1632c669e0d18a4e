//! Duplicates, gaps and fenced producers: what the log remembers of those who number their batches.
//!
//! A producer that numbers its batches may send one again when it does not know whether it arrived. The
//! log keeps the last five batches of each, as many as a producer may have on their way at once, so that
//! a repetition is answered with the place of the original. A number that skips ahead is refused, since
//! the batch before it is missing. An older epoch is refused, since its producer was replaced.

use std::collections::{BTreeMap, VecDeque};

use common::ids::{ProducerEpoch, ProducerId};
use common::log_batch::{BatchHeader, ProducerStamp};
use common::offset::Offset;
use common::producer_id::is_internal;
use common::time::{Span, Timestamp};
use serde::{Deserialize, Serialize};

/// How many batches a producer may have on their way at once.
const REMEMBERED_BATCHES: usize = 5;
/// A producer that was silent for so long is forgotten.
pub const PRODUCER_EXPIRY: Span = Span::from_secs(24 * 60 * 60);
/// Producers one partition remembers. Beyond it the longest silent are forgotten, an eighth at a time.
pub const MAX_PRODUCERS: usize = 64 << 10;

/// Everything known of a partition's producers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProducerState {
    producers: BTreeMap<ProducerId, Producer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Producer {
    epoch: ProducerEpoch,
    /// The newest last.
    batches: VecDeque<RememberedBatch>,
    /// A marker has ended this epoch's transaction, and the epoch is never used again.
    ended: bool,
    /// When it was last heard of, on the wall clock of the leader at that time.
    seen: Timestamp,
}

/// A batch that may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RememberedBatch {
    pub base_sequence: i32,
    pub records: u32,
    pub base_offset: Offset,
    pub max_timestamp: Timestamp,
}

/// What a sound number says about its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Next,
    /// It is in the log already, here.
    Duplicate(RememberedBatch),
}

/// Why a numbered batch is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProducerRefusal {
    #[error("producer {} has moved on to epoch {}, the batch has epoch {}", producer.0, current.0, found.0)]
    Fenced {
        producer: ProducerId,
        current: ProducerEpoch,
        found: ProducerEpoch,
    },
    #[error("the transaction of producer {} in epoch {} has ended", producer.0, epoch.0)]
    Ended {
        producer: ProducerId,
        epoch: ProducerEpoch,
    },
    #[error("producer {} should send sequence {expected} next, it sent {found}", producer.0)]
    OutOfOrder {
        producer: ProducerId,
        expected: i32,
        found: i32,
    },
    #[error("sequence {found} of producer {} was appended too long ago to tell where", producer.0)]
    LongAgo { producer: ProducerId, found: i32 },
}

impl ProducerState {
    /// Whether a batch of so many records with this stamp comes next.
    pub fn check(&self, stamp: ProducerStamp, records: u32) -> Result<Verdict, ProducerRefusal> {
        let ProducerStamp {
            id: producer,
            epoch,
            base_sequence: found,
        } = stamp;
        let out_of_order = |expected| ProducerRefusal::OutOfOrder {
            producer,
            expected,
            found,
        };
        let Some(known) = self.producers.get(&producer) else {
            // A client's producer may have been forgotten after a long silence; a job's writer never is
            // while it can still write.
            return if found == 0 || !is_internal(producer) {
                Ok(Verdict::Next)
            } else {
                Err(out_of_order(0))
            };
        };
        if epoch < known.epoch {
            return Err(ProducerRefusal::Fenced {
                producer,
                current: known.epoch,
                found: epoch,
            });
        }
        if epoch > known.epoch {
            return if found == 0 {
                Ok(Verdict::Next)
            } else {
                Err(out_of_order(0))
            };
        }
        let repeated = known
            .batches
            .iter()
            .find(|batch| batch.base_sequence == found && batch.records == records);
        if let Some(batch) = repeated {
            return Ok(Verdict::Duplicate(*batch));
        }
        if known.ended {
            return Err(ProducerRefusal::Ended { producer, epoch });
        }
        let Some(last) = known.batches.back() else {
            // Only a marker of this epoch is left in the log.
            return Ok(Verdict::Next);
        };
        let expected = last.next_sequence(epoch, producer);
        if found == expected {
            return Ok(Verdict::Next);
        }
        // Sequences wrap: of the two ways round, the shorter says whether it lies ahead or behind.
        const HALF: i64 = 1 << 30;
        let ahead = (i64::from(found) - i64::from(expected)).rem_euclid(2 * HALF);
        Err(if ahead < HALF {
            out_of_order(expected)
        } else {
            ProducerRefusal::LongAgo { producer, found }
        })
    }

    /// This batch is in the log now. Also used to rebuild from the log, so it trusts what it is told.
    /// `seen`: the worker's steady time.
    pub fn record(&mut self, header: &BatchHeader, seen: Timestamp) {
        let Some(stamp) = header.producer else { return };
        let producer = self.producers.entry(stamp.id).or_insert_with(|| Producer {
            epoch: stamp.epoch,
            batches: VecDeque::new(),
            ended: false,
            seen,
        });
        if producer.epoch != stamp.epoch {
            producer.epoch = stamp.epoch;
            producer.batches.clear();
            producer.ended = false;
        }
        producer.seen = producer.seen.max(seen);
        if header.control {
            // A client goes on in the same epoch with its next transaction; a job's writer never does.
            producer.ended = is_internal(stamp.id);
            return;
        }
        if producer.batches.len() == REMEMBERED_BATCHES {
            producer.batches.pop_front();
        }
        producer.batches.push_back(RememberedBatch {
            base_sequence: stamp.base_sequence,
            records: header.record_count,
            base_offset: header.base_offset,
            max_timestamp: header.max_timestamp,
        });
        if self.producers.len() > MAX_PRODUCERS {
            self.forget_longest_silent();
        }
    }

    /// Forgets who was silent for too long. `is_open`: producers with an open transaction stay.
    pub fn expire(&mut self, steady: Timestamp, is_open: impl Fn(ProducerId) -> bool) {
        let oldest = steady.minus(PRODUCER_EXPIRY);
        self.producers
            .retain(|id, producer| producer.seen >= oldest || is_open(*id));
    }

    pub fn len(&self) -> usize {
        self.producers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    fn forget_longest_silent(&mut self) {
        let mut seen: Vec<Timestamp> = self.producers.values().map(|p| p.seen).collect();
        let eighth = seen.len() / 8;
        let (_, threshold, _) = seen.select_nth_unstable(eighth);
        let threshold = *threshold;
        let mut left = eighth;
        self.producers.retain(|_, producer| {
            let forget = producer.seen <= threshold && left > 0;
            left -= usize::from(forget);
            !forget
        });
    }
}

impl RememberedBatch {
    fn next_sequence(&self, epoch: ProducerEpoch, id: ProducerId) -> i32 {
        ProducerStamp {
            id,
            epoch,
            base_sequence: self.base_sequence,
        }
        .last_sequence(self.records + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::log_batch::LogBatchBuilder;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);
    const CLIENT: i64 = 7;
    const WRITER: i64 = (1 << 62) | 7;

    fn stamp(id: i64, epoch: i16, base_sequence: i32) -> ProducerStamp {
        ProducerStamp {
            id: ProducerId(id),
            epoch: ProducerEpoch(epoch),
            base_sequence,
        }
    }

    fn header(stamp: ProducerStamp, records: u32, base_offset: i64) -> BatchHeader {
        let mut builder = LogBatchBuilder::new().producer(stamp);
        for _ in 0..records {
            builder.push(NOW, None, None, &[]);
        }
        let mut header = *builder.build().header();
        header.base_offset = Offset(base_offset);
        header
    }

    #[test]
    fn a_writer_starts_at_zero_and_a_forgotten_client_anywhere() {
        let state = ProducerState::default();
        assert_eq!(state.check(stamp(CLIENT, 0, 500), 1), Ok(Verdict::Next));
        assert_eq!(state.check(stamp(WRITER, 0, 0), 1), Ok(Verdict::Next));
        assert!(state.check(stamp(WRITER, 0, 500), 1).is_err());
    }

    #[test]
    fn a_new_epoch_starts_at_zero_and_fences_the_old_one() {
        let mut state = ProducerState::default();
        state.record(&header(stamp(CLIENT, 3, 0), 10, 0), NOW);
        assert!(state.check(stamp(CLIENT, 4, 10), 1).is_err());
        assert_eq!(state.check(stamp(CLIENT, 4, 0), 1), Ok(Verdict::Next));
        state.record(&header(stamp(CLIENT, 4, 0), 1, 10), NOW);
        assert!(matches!(
            state.check(stamp(CLIENT, 3, 10), 1),
            Err(ProducerRefusal::Fenced { .. })
        ));
    }

    #[test]
    fn a_marker_ends_a_writers_epoch_but_not_a_clients() {
        for (id, ends) in [(WRITER, true), (CLIENT, false)] {
            let mut state = ProducerState::default();
            state.record(&header(stamp(id, 3, 0), 2, 0), NOW);
            let marker = common::log_batch::end_transaction(
                ProducerId(id),
                ProducerEpoch(3),
                common::log_batch::TransactionOutcome::Commit,
                NOW,
            );
            state.record(marker.header(), NOW);
            assert_eq!(state.check(stamp(id, 3, 2), 1).is_err(), ends);
            assert!(matches!(
                state.check(stamp(id, 3, 0), 2),
                Ok(Verdict::Duplicate(_))
            ));
            assert_eq!(state.check(stamp(id, 4, 0), 1), Ok(Verdict::Next));
        }
    }

    #[test]
    fn silent_producers_are_forgotten_but_for_those_with_an_open_transaction() {
        let mut state = ProducerState::default();
        for id in [1, 2] {
            state.record(&header(stamp(id, 0, 0), 1, id), NOW);
        }
        let later = NOW.plus(PRODUCER_EXPIRY).plus(Span(1));
        state.record(&header(stamp(3, 0, 0), 1, 3), later);
        state.expire(later, |id| id == ProducerId(2));
        assert_eq!(state.len(), 2);
        assert!(matches!(
            state.check(stamp(1, 0, 700), 1),
            Ok(Verdict::Next)
        ));
        assert!(state.check(stamp(2, 0, 700), 1).is_err());
    }

    #[test]
    fn no_more_producers_are_kept_than_the_limit_and_the_newest_stay() {
        let mut state = ProducerState::default();
        for id in 0..i64::try_from(MAX_PRODUCERS).unwrap() + 100 {
            state.record(
                &header(stamp(id, 0, 0), 1, id),
                NOW.plus(Span(id.cast_unsigned())),
            );
            assert!(state.len() <= MAX_PRODUCERS);
        }
        let newest = i64::try_from(MAX_PRODUCERS).unwrap() + 99;
        assert!(matches!(
            state.check(stamp(newest, 0, 0), 1),
            Ok(Verdict::Duplicate(_))
        ));
    }

    #[derive(Clone, Debug)]
    enum Sent {
        /// The next batch.
        Next(u32),
        /// A batch sent before, counted from the newest.
        Again(usize),
        /// A batch that skips so many records.
        Gap(i32),
    }

    fn sent() -> impl Strategy<Value = Sent> {
        prop_oneof![
            3 => (1_u32..2_000).prop_map(Sent::Next),
            2 => (0_usize..12).prop_map(Sent::Again),
            1 => (1_i32..1_000_000).prop_map(Sent::Gap),
        ]
    }

    proptest! {
        /// The reference is everything ever sent: nothing is appended twice and nothing is skipped, also
        /// where sequences wrap.
        #[test]
        fn each_batch_is_appended_once_and_in_order(
            start in prop_oneof![Just(0), Just(i32::MAX), i32::MAX - 5_000..i32::MAX],
            steps in proptest::collection::vec(sent(), 1..60),
        ) {
            let mut state = ProducerState::default();
            let mut history: Vec<(ProducerStamp, u32, i64)> = Vec::new();
            let mut next = start;
            let mut offset = 0;
            for step in steps {
                match step {
                    Sent::Next(records) => {
                        let stamp = stamp(CLIENT, 1, next);
                        prop_assert_eq!(state.check(stamp, records), Ok(Verdict::Next));
                        state.record(&header(stamp, records, offset), NOW);
                        history.push((stamp, records, offset));
                        offset += i64::from(records);
                        next = stamp.last_sequence(records + 1);
                    }
                    Sent::Again(back) => {
                        let Some((stamp, records, at)) = history.iter().rev().nth(back) else {
                            continue;
                        };
                        match state.check(*stamp, *records) {
                            Ok(Verdict::Duplicate(batch)) => {
                                prop_assert!(back < REMEMBERED_BATCHES);
                                prop_assert_eq!(batch.base_offset, Offset(*at));
                            }
                            Err(ProducerRefusal::LongAgo { .. }) => {
                                prop_assert!(back >= REMEMBERED_BATCHES);
                            }
                            other => prop_assert!(false, "{other:?}"),
                        }
                    }
                    Sent::Gap(skipped) => {
                        if history.is_empty() { continue; }
                        let ahead = (i64::from(next) + i64::from(skipped)) % (1 << 31);
                        let stamp = stamp(CLIENT, 1, i32::try_from(ahead).unwrap());
                        let refused = matches!(
                            state.check(stamp, 1),
                            Err(ProducerRefusal::OutOfOrder { .. })
                        );
                        prop_assert!(refused);
                    }
                }
            }
        }
    }
}
