//! What the splits of a source say about event time (pure).
//!
//! A split's clock is its latest event time less the allowed delay; the source's watermark is the least
//! clock of the splits that count. A split counts from the start, even before it was read, because what
//! it holds may be old. It stops counting when it is idle: everything was read, and nothing came for the
//! idle timeout, or nothing ever came at all. It counts again with its next row.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::time::{Span, Tick, Timestamp};

use crate::task::message::Signal;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Watermarks {
    /// `None`: the source has no event time; only its end says something.
    delay: Option<Span>,
    idle_timeout: Option<Span>,
    splits: BTreeMap<Arc<str>, SplitClock>,
    /// What was last said; never falls.
    said: Timestamp,
    idle: bool,
    /// It is known that there is no split yet.
    waiting: bool,
    exhausted: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct SplitClock {
    latest: Option<Timestamp>,
    /// Since when everything that may be read has been.
    drained: Option<Tick>,
    idle: bool,
    ended: bool,
}

impl Watermarks {
    /// `said`: the watermark of the checkpoint the source starts from.
    pub fn new(delay: Option<Span>, idle_timeout: Option<Span>, said: Timestamp) -> Watermarks {
        Watermarks {
            delay,
            idle_timeout,
            splits: BTreeMap::new(),
            said,
            idle: false,
            waiting: false,
            exhausted: false,
        }
    }

    /// A split is going to be read; `latest`: the latest event time read of it in a former life.
    pub fn add(&mut self, split: &Arc<str>, latest: Option<Timestamp>) {
        let clock = SplitClock {
            latest,
            ..SplitClock::default()
        };
        self.splits.insert(split.clone(), clock);
    }

    /// Rows were read, the latest of this time (`None`: none has one). Answers what has to be said before
    /// them.
    pub fn rows(&mut self, split: &Arc<str>, latest: Option<Timestamp>) -> Option<Signal> {
        let clock = self.splits.entry(split.clone()).or_default();
        clock.latest = clock.latest.max(latest);
        clock.drained = None;
        clock.idle = false;
        std::mem::replace(&mut self.idle, false).then_some(Signal::Active)
    }

    /// At this time everything that may be read of the split had been. Idleness is known only from these:
    /// a split of which nothing is heard may simply not be read, because what follows is busy.
    pub fn caught_up(&mut self, split: &Arc<str>, at: Tick) {
        let idle_timeout = self.idle_timeout;
        let clock = self.splits.entry(split.clone()).or_default();
        let quiet_for = at.since(*clock.drained.get_or_insert(at));
        clock.idle =
            clock.latest.is_none() || idle_timeout.is_some_and(|timeout| quiet_for >= timeout);
    }

    /// There is no split, and nobody knows when there will be one.
    pub fn waiting(&mut self) {
        self.waiting = true;
    }

    /// Nothing will ever come of the split again.
    pub fn ended(&mut self, split: &Arc<str>) {
        self.splits.entry(split.clone()).or_default().ended = true;
    }

    /// Nothing will ever come of any split again.
    pub fn exhausted(&mut self) {
        self.exhausted = true;
    }

    /// What is to be said now, if it is news.
    pub fn advance(&mut self) -> Option<Signal> {
        if self.exhausted {
            return self.say(Timestamp::MAX);
        }
        let delay = self.delay?;
        let counting: Vec<&SplitClock> = self
            .splits
            .values()
            .filter(|clock| !clock.idle && !clock.ended)
            .collect();
        if counting.is_empty() {
            // Before the splits are known, what they hold may be old.
            let known = self.waiting || !self.splits.is_empty();
            let news = known && !std::mem::replace(&mut self.idle, true);
            return news.then_some(Signal::Idle);
        }
        // One that has said nothing yet holds all back.
        let least = counting.iter().map(|clock| clock.latest).min().flatten()?;
        self.say(least.minus(delay))
    }

    /// Split → latest event time, for checkpoints.
    pub fn latest(&self) -> impl Iterator<Item = (&Arc<str>, Timestamp)> {
        self.splits
            .iter()
            .filter_map(|(split, clock)| Some((split, clock.latest?)))
    }

    fn say(&mut self, watermark: Timestamp) -> Option<Signal> {
        if watermark <= self.said {
            return None;
        }
        self.said = watermark;
        Some(Signal::Watermark(watermark))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(index: usize) -> Arc<str> {
        Arc::from(index.to_string())
    }

    fn two_splits(idle_timeout: Option<Span>) -> Watermarks {
        let mut watermarks = Watermarks::new(Some(Span(5)), idle_timeout, Timestamp::MIN);
        watermarks.add(&split(0), None);
        watermarks.add(&split(1), None);
        watermarks
    }

    fn at(ms: i64) -> Option<Signal> {
        Some(Signal::Watermark(Timestamp(ms)))
    }

    #[test]
    fn a_split_that_was_not_read_yet_holds_the_watermark_back() {
        let mut watermarks = two_splits(None);
        watermarks.rows(&split(0), Some(Timestamp(100)));
        assert_eq!(watermarks.advance(), None);
        watermarks.rows(&split(1), Some(Timestamp(50)));
        assert_eq!(watermarks.advance(), at(45));
    }

    #[test]
    fn a_split_that_never_had_a_row_holds_nobody_back_once_that_is_known() {
        let mut watermarks = two_splits(None);
        watermarks.rows(&split(0), Some(Timestamp(100)));
        watermarks.caught_up(&split(1), Tick(0));
        assert_eq!(watermarks.advance(), at(95));
    }

    #[test]
    fn a_source_without_splits_holds_nobody_back_until_one_is_found_and_has_a_row() {
        let mut watermarks = Watermarks::new(Some(Span(5)), None, Timestamp::MIN);
        assert_eq!(watermarks.advance(), None, "its splits are not known yet");
        watermarks.waiting();
        assert_eq!(watermarks.advance(), Some(Signal::Idle));
        assert_eq!(watermarks.advance(), None);
        watermarks.add(&split(0), None);
        assert_eq!(watermarks.advance(), None);
        let woke = watermarks.rows(&split(0), Some(Timestamp(50)));
        assert_eq!((woke, watermarks.advance()), (Some(Signal::Active), at(45)));
    }

    #[test]
    fn without_a_timeout_a_quiet_split_is_waited_for() {
        let mut watermarks = two_splits(None);
        watermarks.rows(&split(0), Some(Timestamp(100)));
        watermarks.rows(&split(1), Some(Timestamp(50)));
        watermarks.caught_up(&split(1), Tick(0));
        watermarks.caught_up(&split(1), Tick(1_000_000));
        assert_eq!(watermarks.advance(), at(45));
    }

    #[test]
    fn a_split_idle_for_the_timeout_is_left_out_until_its_next_row() {
        let mut watermarks = two_splits(Some(Span(10)));
        watermarks.rows(&split(0), Some(Timestamp(100)));
        watermarks.rows(&split(1), Some(Timestamp(50)));
        watermarks.caught_up(&split(1), Tick(0));
        watermarks.caught_up(&split(1), Tick(9));
        assert_eq!(watermarks.advance(), at(45));
        watermarks.caught_up(&split(1), Tick(10));
        assert_eq!(watermarks.advance(), at(95));
        watermarks.caught_up(&split(0), Tick(10));
        watermarks.caught_up(&split(0), Tick(30));
        assert_eq!(watermarks.advance(), Some(Signal::Idle));
        assert_eq!(watermarks.advance(), None);
        assert_eq!(
            watermarks.rows(&split(1), Some(Timestamp(60))),
            Some(Signal::Active)
        );
        assert_eq!(watermarks.advance(), None, "the watermark does not fall");
    }

    #[test]
    fn the_end_of_everything_is_the_end_of_time() {
        let mut watermarks = Watermarks::new(None, None, Timestamp::MIN);
        watermarks.add(&split(0), None);
        watermarks.ended(&split(0));
        assert_eq!(watermarks.advance(), None);
        watermarks.exhausted();
        assert_eq!(watermarks.advance(), at(i64::MAX));
    }

    #[test]
    fn a_later_life_goes_on_where_the_former_one_was() {
        let mut watermarks = Watermarks::new(Some(Span(5)), None, Timestamp(45));
        watermarks.add(&split(0), Some(Timestamp(100)));
        watermarks.add(&split(1), Some(Timestamp(50)));
        watermarks.caught_up(&split(1), Tick(0));
        watermarks.rows(&split(0), Some(Timestamp(200)));
        assert_eq!(watermarks.advance(), None, "split 1 is still waited for");
    }

    proptest! {
        #[test]
        fn the_watermark_never_falls_and_never_passes_a_split_that_counts(
            steps in prop::collection::vec((0..3_usize, 0..3_u8, 0..1_000_i64, 0..20_u64), 0..100),
        ) {
            let mut watermarks = Watermarks::new(Some(Span(7)), Some(Span(50)), Timestamp::MIN);
            for index in 0..3 {
                watermarks.add(&split(index), None);
            }
            let mut latest = [None; 3];
            let mut drained = [None; 3];
            let mut idle = [false; 3];
            let (mut now, mut last) = (0, i64::MIN);
            for (index, step, ms, wait) in steps {
                now += wait;
                if step == 0 {
                    let since = *drained[index].get_or_insert(now);
                    idle[index] = latest[index].is_none() || now - since >= 50;
                    watermarks.caught_up(&split(index), Tick(now));
                } else {
                    latest[index] = latest[index].max(Some(ms));
                    drained[index] = None;
                    idle[index] = false;
                    watermarks.rows(&split(index), Some(Timestamp(ms)));
                }
                if let Some(Signal::Watermark(Timestamp(said))) = watermarks.advance() {
                    prop_assert!(said > last);
                    last = said;
                    for index in 0..3 {
                        prop_assert!(idle[index] || latest[index].is_some_and(|ms| said <= ms - 7));
                    }
                }
            }
        }
    }
}
