//! Committed output equals what an oracle counts from the input, and so does the state at every epoch.
//!
//! The job numbers the clicks of each key, in whatever order it meets them. So the output is right if
//! each click came out once and each key's numbers are 1, 2, 3 and so on, each once; and the state at an
//! epoch is right if each key was counted as often as it is in the input before the epoch's positions.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{CheckpointId, TopicPartition};
use common::offset::Offset;

use super::Verdict;
use crate::sim::tally::{Click, Tally};

/// Split → the position after the last row before a barrier, of all sources together.
pub type Positions = BTreeMap<u32, i64>;

#[derive(Debug, Default)]
pub struct ExactlyOnce {
    produced: BTreeMap<i64, Click>,
    outputs: BTreeMap<(TopicPartition, Offset), Tally>,
    /// Click → its number.
    counted: BTreeMap<i64, i64>,
    numbers: BTreeSet<(i64, i64)>,
    windows: BTreeMap<(i64, i64), i64>,
    late: BTreeMap<(i64, i64), BTreeSet<i64>>,
    epochs: BTreeMap<CheckpointId, Positions>,
}

impl ExactlyOnce {
    /// A click that will be produced.
    pub fn produced(&mut self, click: Click) {
        self.produced.insert(click.id, click);
    }

    /// How many clicks have come out.
    pub fn counted(&self) -> usize {
        self.counted.len()
    }

    pub fn expected(&self) -> usize {
        self.produced.len()
    }

    /// Somebody read this as committed.
    pub fn output(&mut self, partition: TopicPartition, offset: Offset, tally: Tally) -> Verdict {
        match self.outputs.insert((partition, offset), tally) {
            Some(before) if before == tally => return Ok(()),
            Some(before) => {
                return Err(format!(
                    "the output at {offset} of {partition} was {before:?} and is {tally:?} now"
                ));
            }
            None => {}
        }
        match tally {
            Tally::Running { key, count, id } => {
                let click = self.produced.get(&id);
                if click.is_none_or(|click| click.key != key) {
                    return Err(format!("{tally:?} came out, and {click:?} went in"));
                }
                if let Some(before) = self.counted.insert(id, count) {
                    return Err(format!("click {id} came out as {before} and as {count}"));
                }
                if !self.numbers.insert((key, count)) {
                    return Err(format!("two clicks of key {key} came out as {count}"));
                }
            }
            Tally::Window { key, end, count } => {
                if let Some(before) = self.windows.insert((key, end), count) {
                    return Err(format!(
                        "the window of key {key} to {end} came out with {before} and with {count}"
                    ));
                }
            }
            Tally::Late { key, end, id } => {
                let click = self.produced.get(&id);
                if click.is_none_or(|click| (click.key, click.window_end()) != (key, end)) {
                    return Err(format!("{tally:?} came out, and {click:?} went in"));
                }
                if !self.late.entry((key, end)).or_default().insert(id) {
                    return Err(format!("click {id} was late twice"));
                }
            }
        }
        Ok(())
    }

    /// A checkpoint is complete; this is the input it holds.
    pub fn completed(&mut self, checkpoint: CheckpointId, positions: Positions) {
        self.epochs.insert(checkpoint, positions);
    }

    /// The counts of a task at a completed checkpoint against those of the input before it.
    pub fn state<'a>(
        &self,
        at: CheckpointId,
        counts: &BTreeMap<i64, i64>,
        owns: impl Fn(i64) -> bool,
        input: impl Iterator<Item = (u32, Offset, &'a [u8])>,
    ) -> Verdict {
        let Some(positions) = self.epochs.get(&at) else {
            return Err(format!("checkpoint {at} was restored, but never completed"));
        };
        let mut expected: BTreeMap<i64, i64> = BTreeMap::new();
        let mut before: BTreeMap<u32, i64> = BTreeMap::new();
        for (split, offset, value) in input {
            if positions
                .get(&split)
                .is_none_or(|position| offset.0 >= *position)
            {
                continue;
            }
            *before.entry(split).or_default() += 1;
            let click = Click::decode(value);
            if owns(click.key) {
                *expected.entry(click.key).or_default() += 1;
            }
        }
        if let Some((split, position)) = positions
            .iter()
            .find(|(split, position)| before.get(split).copied().unwrap_or(0) != **position)
        {
            return Err(format!(
                "checkpoint {at} lies behind offset {position} of split {split}, of which not all was read"
            ));
        }
        if *counts == expected {
            return Ok(());
        }
        let differs = counts
            .keys()
            .chain(expected.keys())
            .find(|key| counts.get(key) != expected.get(key));
        let key = differs.copied().unwrap_or_default();
        Err(format!(
            "at checkpoint {at} key {key} was counted {:?} times, the input before it has it {:?} times",
            counts.get(&key),
            expected.get(&key)
        ))
    }

    /// All input has been read and all output is committed. `drained`: every window has closed.
    pub fn finished(&self, drained: bool) -> Verdict {
        if let Some(id) = self
            .produced
            .keys()
            .find(|id| !self.counted.contains_key(id))
        {
            return Err(format!("click {id} never came out"));
        }
        let mut last: BTreeMap<i64, i64> = BTreeMap::new();
        for (key, count) in &self.numbers {
            let before = last.insert(*key, *count).unwrap_or(0);
            if *count != before + 1 {
                return Err(format!(
                    "key {key} was counted {before} times and then {count}"
                ));
            }
        }
        let mut expected: BTreeMap<(i64, i64), i64> = BTreeMap::new();
        for click in self.produced.values() {
            *expected.entry((click.key, click.window_end())).or_default() += 1;
        }
        for (window, clicks) in &expected {
            let (key, end) = window;
            let late = self.late.get(window).map_or(0, BTreeSet::len);
            let late = i64::try_from(late).expect("a small number");
            let came = match self.windows.get(window) {
                Some(count) => count + late,
                // All of its clicks may have been late.
                None if drained || late > 0 => late,
                None => continue,
            };
            if came != *clicks {
                return Err(format!(
                    "of the {clicks} clicks of key {key} in the window to {end} {came} came out"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{PartitionId, TopicId};
    use uuid::Uuid;

    use super::*;

    const PARTITION: TopicPartition = TopicPartition {
        topic: TopicId(Uuid::from_u128(1)),
        partition: PartitionId(0),
    };

    fn checker() -> ExactlyOnce {
        let mut checker = ExactlyOnce::default();
        for id in 1..=3 {
            checker.produced(Click {
                key: 7,
                id,
                time: 10,
            });
        }
        checker
    }

    fn running(count: i64, id: i64) -> Tally {
        Tally::Running { key: 7, count, id }
    }

    #[test]
    fn output_that_repeats_skips_or_invents_is_noticed() {
        let mut right = checker();
        for (offset, id) in [(0, 2), (1, 1), (2, 3)] {
            let tally = running(offset + 1, id);
            right.output(PARTITION, Offset(offset), tally).unwrap();
            right.output(PARTITION, Offset(offset), tally).unwrap();
        }
        right.finished(false).unwrap();
        assert!(right.finished(true).is_err(), "no window came out");
        for second in [running(2, 2), running(1, 1), running(2, 9)] {
            let mut wrong = checker();
            wrong.output(PARTITION, Offset(0), running(1, 2)).unwrap();
            assert!(wrong.output(PARTITION, Offset(1), second).is_err());
        }
        let mut incomplete = checker();
        incomplete
            .output(PARTITION, Offset(0), running(1, 1))
            .unwrap();
        assert!(incomplete.finished(false).is_err());
    }

    #[test]
    fn state_is_compared_with_the_input_before_the_epoch() {
        let mut checker = checker();
        checker.completed(CheckpointId(4), Positions::from([(0, 2)]));
        let values: Vec<Vec<u8>> = (1..=3)
            .map(|id| {
                Click {
                    key: 7,
                    id,
                    time: 10,
                }
                .encode()
            })
            .collect();
        let input = || {
            (0..)
                .zip(&values)
                .map(|(offset, value)| (0, Offset(offset), &value[..]))
        };
        let at = CheckpointId(4);
        let counts = |count| BTreeMap::from([(7, count)]);
        checker.state(at, &counts(2), |_| true, input()).unwrap();
        assert!(checker.state(at, &counts(3), |_| true, input()).is_err());
        assert!(checker.state(at, &counts(2), |_| false, input()).is_err());
    }
}
