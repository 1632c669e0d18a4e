//! What time it is for what goes by its age: a wall clock that jumps ahead does not make everything old at once.
//!
//! The wall clock is compared with the monotonic one from look to look. What it is ahead by all of a sudden counts only
//! after a day, which is time enough to set it right; a machine that was suspended loses a day of retention by it, and a
//! worker that was away begins with the time at which it was last there. That it goes back makes everything younger,
//! and is believed.
//!
//! How long somebody was silent is no matter of the wall clock at all: there is a steady time for it, which goes on
//! while the worker runs, from where it was when it last ran, and never jumps.

use std::sync::{Arc, Mutex, PoisonError};

use common::kv::KvStore;
use common::time::{Clock, Span, Tick, Timestamp};
use tracing::warn;

/// Less is a clock that is set, and not worth a word.
const JUMP: Span = Span::from_secs(3_600);
/// A clock that nobody has set right until then is right.
const BELIEVED_AFTER: Span = Span::from_secs(24 * 3_600);
/// Where the time that was last believed is kept, and the steady one, and how often.
const KEPT_AT: &[u8] = b"believed clock";
const STEADY_AT: &[u8] = b"steady clock";
const KEEP_EVERY: Span = Span::from_secs(60);

/// One for all partitions of a worker.
#[derive(Debug)]
pub struct AgeClock {
    clock: Arc<dyn Clock>,
    store: Option<Arc<dyn KvStore>>,
    /// When this process began, and the steady time at which it did.
    began: (Tick, Timestamp),
    ages: Mutex<Ages>,
    kept: Mutex<Option<Tick>>,
}

/// What the clocks said when the wall clock was last believed, and since when it is not.
#[derive(Clone, Copy, Debug, Default)]
struct Ages {
    believed: Option<(Tick, Timestamp)>,
    doubted_since: Option<Tick>,
}

impl AgeClock {
    /// Goes on where the worker was when it last kept the time in this store. May block.
    pub fn open(clock: Arc<dyn Clock>, store: Option<Arc<dyn KvStore>>) -> AgeClock {
        let kept = |key| {
            let kept = store.as_ref()?.get(key).unwrap_or_else(|error| {
                warn!(%error, "the time that this worker was last there is lost: its clock is believed");
                None
            });
            let kept = kept?[..].try_into().ok()?;
            Some(Timestamp(i64::from_be_bytes(kept)))
        };
        let tick = clock.tick();
        let believed = kept(KEPT_AT).map(|kept| (tick, kept));
        let began = (tick, kept(STEADY_AT).unwrap_or_else(|| clock.wall()));
        let ages = AgeClock {
            clock,
            store,
            began,
            ages: Mutex::new(Ages {
                believed,
                doubted_since: None,
            }),
            kept: Mutex::default(),
        };
        ages.keep();
        ages
    }

    /// What time it is now is kept, once in a while. May block.
    pub fn keep(&self) {
        let Some(store) = &self.store else { return };
        if !self.is_due() {
            return;
        }
        let written = store
            .put(KEPT_AT, &self.now().0.to_be_bytes())
            .and_then(|_| store.put(STEADY_AT, &self.steady().0.to_be_bytes()))
            .and_then(|_| store.flush());
        if let Err(error) = written {
            warn!(%error, "should this worker start again, its clock will be believed");
        }
    }

    /// One of those who ask at the same time keeps it for all, and nobody waits for the disk with it.
    fn is_due(&self) -> bool {
        let tick = self.clock.tick();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = kept.is_none_or(|at| tick.since(at) >= KEEP_EVERY);
        if is_due {
            *kept = Some(tick);
        }
        is_due
    }

    /// A time to compare with others of this kind, and no time of day: that at which the worker first began, and how
    /// long it has run since. What was kept last may be a minute behind when it begins again.
    pub fn steady(&self) -> Timestamp {
        let (tick, began) = self.began;
        began.plus(self.clock.tick().since(tick))
    }

    /// What time of day it is, as far as that is believed.
    pub fn now(&self) -> Timestamp {
        let (tick, wall) = (self.clock.tick(), self.clock.wall());
        let mut ages = self.ages.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ages.doubted_since;
        let now = ages.look(tick, wall);
        if before.is_none() && ages.doubted_since.is_some() {
            let ahead = Span(u64::try_from(wall.0 - now.0).unwrap_or(0));
            warn!(
                %ahead,
                "the clock is ahead of where this worker knows it to be, as after a jump or a long absence: for a day nothing is removed because of that; set it right if it is wrong"
            );
        }
        now
    }
}

impl Ages {
    fn look(&mut self, tick: Tick, wall: Timestamp) -> Timestamp {
        let expected = match self.believed {
            Some((then, believed)) => believed.plus(tick.since(then)),
            None => wall,
        };
        if wall > expected.plus(JUMP) {
            let since = *self.doubted_since.get_or_insert(tick);
            if tick.since(since) < BELIEVED_AFTER {
                return expected;
            }
        }
        self.believed = Some((tick, wall));
        self.doubted_since = None;
        wall
    }
}

#[cfg(test)]
mod tests {
    use common::kv::MemoryStore;
    use common::time::ManualClock;

    use super::*;

    const HOUR: u64 = 3_600_000;
    const YEAR: i64 = 365 * 24 * 3_600_000;

    /// After so many hours the wall clock is so much ahead of what it was and they have passed; what is made of it is
    /// ahead by what is in the last column.
    fn check(looks: &[(u64, i64, i64)]) {
        let mut ages = Ages::default();
        let start = Timestamp(1_700_000_000_000);
        ages.look(Tick(5), start);
        for (hours, ahead, counts) in looks {
            let passed = Span(hours * HOUR);
            let true_time = start.plus(passed);
            let wall = Timestamp(true_time.0 + ahead);
            let now = ages.look(Tick(5).plus(passed), wall);
            assert_eq!(now.0 - true_time.0, *counts, "after {hours} hours");
        }
    }

    #[test]
    fn a_jump_ahead_counts_after_a_day() {
        check(&[
            (1, 0, 0),
            (2, YEAR, 0),
            (10, YEAR, 0),
            (25, YEAR, 0),
            (26, YEAR, YEAR),
            (27, YEAR, YEAR),
        ]);
    }

    #[test]
    fn a_worker_that_starts_again_goes_on_where_it_was() {
        let store: Arc<dyn KvStore> = Arc::new(MemoryStore::new());
        let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
        let open = || AgeClock::open(clock.clone(), Some(store.clone()));
        let ages = open();
        clock.advance(Span(HOUR));
        ages.keep();
        let before = clock.wall();
        clock.set(YEAR);
        assert_eq!(ages.now(), before);
        let again = open();
        assert_eq!(again.now(), before);
        clock.advance(Span(25 * HOUR));
        again.keep();
        assert_eq!(open().now(), clock.wall(), "it is right after all");
    }

    #[test]
    fn the_steady_time_goes_on_while_the_worker_runs_whatever_the_clock_is_set_to() {
        let store: Arc<dyn KvStore> = Arc::new(MemoryStore::new());
        let begun = Timestamp(1_700_000_000_000);
        let clock = Arc::new(ManualClock::at(begun));
        let open = || AgeClock::open(clock.clone(), Some(store.clone()));
        let ages = open();
        for jump in [YEAR, -2 * YEAR, YEAR] {
            clock.set(jump);
            clock.advance(Span(HOUR));
            ages.keep();
        }
        let three_hours = begun.plus(Span(3 * HOUR));
        assert_eq!(ages.steady(), three_hours);
        clock.set(YEAR);
        let again = open();
        assert_eq!(again.steady(), three_hours);
        clock.advance(Span(HOUR));
        assert_eq!(again.steady(), three_hours.plus(Span(HOUR)));
    }

    #[test]
    fn a_jump_ahead_that_is_set_right_was_nothing() {
        check(&[(1, YEAR, 0), (20, 0, 0), (30, YEAR, 0), (40, YEAR, 0)]);
    }

    #[test]
    fn a_clock_that_is_set_or_goes_back_is_believed() {
        let minute = 60_000;
        check(&[
            (1, minute, minute),
            (2, -YEAR, -YEAR),
            (3, -YEAR, -YEAR),
            (4, 0, -YEAR),
            (28, 0, 0),
        ]);
    }
}
