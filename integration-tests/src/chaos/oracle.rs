//! What must come out, computed from the input alone with plain maps.

use std::collections::BTreeMap;

use super::jobs::{DELAY_MS, SIZE_MS, SLIDE_MS};
use super::stream::{END, Event};

/// What is known of an account: in all, or in a stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub events: u64,
    pub total: i64,
    pub highest: u64,
}

/// The beginning of a stretch of event time, and an account.
pub type TimeAndAccount = (i64, i64);

/// Everything that follows from a prefix of the input.
#[derive(Clone, Debug)]
pub struct Oracle {
    totals: BTreeMap<i64, Sum>,
    slices: BTreeMap<TimeAndAccount, Sum>,
    /// By partition, the latest event time.
    latest: Vec<Option<i64>>,
}

impl Oracle {
    pub fn new(partitions: u32) -> Oracle {
        Oracle {
            totals: BTreeMap::new(),
            slices: BTreeMap::new(),
            latest: vec![None; partitions as usize],
        }
    }

    pub fn add(&mut self, partition: u32, event: &Event) {
        self.totals.entry(event.account).or_default().add(event);
        let slice = event.ts - event.ts.rem_euclid(SLIDE_MS);
        let sum = self.slices.entry((slice, event.account)).or_default();
        sum.add(event);
        let latest = &mut self.latest[partition as usize];
        *latest = (*latest).max(Some(event.ts));
    }

    pub fn totals(&self) -> &BTreeMap<i64, Sum> {
        &self.totals
    }

    /// Up to when everything has been read; `None` while a partition has no event.
    pub fn watermark(&self) -> Option<i64> {
        let least = self.latest.iter().copied().min().flatten()?;
        Some(least - DELAY_MS)
    }

    /// The slices that a window still needs at this watermark.
    pub fn open_slices(&self, watermark: i64) -> BTreeMap<TimeAndAccount, Sum> {
        let open = |(start, _): TimeAndAccount| start + SIZE_MS > watermark;
        let slices = self.slices.iter().filter(|(slice, _)| open(**slice));
        slices.map(|(slice, sum)| (*slice, *sum)).collect()
    }

    /// Forgets what no window needs any more, for whoever only goes forward.
    pub fn forget_before(&mut self, watermark: i64) {
        self.slices
            .retain(|(start, _), _| start + SIZE_MS > watermark);
    }

    /// The windows that have come out once every event was read, and the one that ends the stream too.
    pub fn windows(&self) -> BTreeMap<TimeAndAccount, Sum> {
        let mut windows: BTreeMap<TimeAndAccount, Sum> = BTreeMap::new();
        for ((slice, account), sum) in &self.slices {
            let starts = (0..SIZE_MS / SLIDE_MS).map(|earlier| slice - earlier * SLIDE_MS);
            for start in starts.filter(|_| *account != END) {
                windows.entry((start, *account)).or_default().merge(sum);
            }
        }
        windows
    }
}

impl Sum {
    fn add(&mut self, event: &Event) {
        self.merge(&Sum {
            events: 1,
            total: event.amount,
            highest: event.serial,
        });
    }

    fn merge(&mut self, other: &Sum) {
        self.events += other.events;
        self.total += other.total;
        self.highest = self.highest.max(other.highest);
    }
}

/// What differs between what should be there and what is, in a few lines; `None`: nothing does.
pub fn difference<K: Ord + std::fmt::Debug>(
    expected: &BTreeMap<K, Sum>,
    found: &BTreeMap<K, Sum>,
) -> Option<String> {
    const SHOWN: usize = 5;
    let mut lines = Vec::new();
    for (key, sum) in expected {
        match found.get(key) {
            None => lines.push(format!("{key:?} is missing, it should be {sum:?}")),
            Some(other) if other != sum => {
                lines.push(format!("{key:?} is {other:?}, it should be {sum:?}"));
            }
            Some(_) => {}
        }
    }
    let unexpected = found.iter().filter(|(key, _)| !expected.contains_key(key));
    lines.extend(unexpected.map(|(key, sum)| format!("{key:?} should not be there: {sum:?}")));
    let count = lines.len();
    lines.truncate(SHOWN);
    (count > 0).then(|| format!("{count} entries differ: {}", lines.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(account: i64, amount: i64, ts: i64) -> Event {
        Event {
            producer: 0,
            serial: 1,
            account,
            amount,
            ts,
        }
    }

    #[test]
    fn an_event_is_in_every_window_that_covers_it() {
        let mut oracle = Oracle::new(1);
        oracle.add(0, &event(3, 10, 7_000));
        oracle.add(0, &event(3, -4, 12_000));
        oracle.add(0, &event(END, 0, 90_000));
        let sum = |events, total| Sum {
            events,
            total,
            highest: 1,
        };
        let expected = [
            ((0, 3), sum(1, 10)),
            ((5_000, 3), sum(2, 6)),
            ((10_000, 3), sum(1, -4)),
        ];
        assert_eq!(oracle.windows(), BTreeMap::from(expected));
        assert_eq!(oracle.totals()[&3], sum(2, 6));
    }

    #[test]
    fn a_difference_of_either_kind_is_told() {
        let one = BTreeMap::from([(1, Sum::default())]);
        assert_eq!(difference(&one, &one), None);
        assert!(
            difference(&one, &BTreeMap::new())
                .unwrap()
                .contains("missing")
        );
        assert!(
            difference(&BTreeMap::new(), &one)
                .unwrap()
                .contains("should not")
        );
    }
}
