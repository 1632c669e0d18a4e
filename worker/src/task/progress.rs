//! Where a task is, and what it has done.

use std::collections::{BTreeMap, VecDeque};

use common::ids::CheckpointId;
use common::protocol::checkpoint::TaskCounts;
use common::protocol::task::TaskMetrics;
use common::time::{Tick, Timestamp};

use super::messages::Sealed;

#[derive(Debug)]
pub struct Progress {
    pub(super) watermark: Timestamp,
    /// No barrier up to this one is of interest any more.
    pub(super) sealed: CheckpointId,
    /// A stop barrier has passed: a source reads no further. Only more such barriers follow.
    pub(super) stopped: bool,
    /// The source has ended, and everything it gave has been sent on.
    pub(super) exhausted: bool,
    /// Sealed, and waiting for the sink to be prepared.
    pub(super) sealing: VecDeque<Sealing>,
    /// Snapshots the job has not taken yet, in order: none may be lost, because each holds changes that
    /// no later one repeats.
    pub(super) handing_over: VecDeque<Sealed>,
    /// The checkpoint whose completion arrived last.
    completed: Option<CheckpointId>,
    /// Completed, but kept from the tables until those who read an older state are done.
    held_back: VecDeque<CheckpointId>,
    /// The checkpoints whose state is being read, and by how many.
    read: BTreeMap<CheckpointId, usize>,
    /// The checkpoint that the tables know to be completed, and the one before it.
    known: Option<CheckpointId>,
    previous: Option<CheckpointId>,
    /// What could be folded when the last fold began, and up to where it was promised that all would be.
    fold_began: Option<CheckpointId>,
    fold_promised: Option<CheckpointId>,
    pub(super) metrics: TaskMetrics,
    pub(super) meter: Meter,
}

/// A checkpoint, and how the task was at its barrier.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealing {
    pub checkpoint: CheckpointId,
    pub counts: TaskCounts,
    pub state_bytes: u64,
}

/// How the time since the last look was spent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    since: Tick,
    pub turns: u64,
    pub busy_turns: u64,
    pub blocked_turns: u64,
}

impl Progress {
    pub fn restored(
        restored: Option<CheckpointId>,
        sealed: CheckpointId,
        watermark: Timestamp,
    ) -> Progress {
        Progress {
            watermark,
            sealed,
            stopped: false,
            exhausted: false,
            sealing: VecDeque::new(),
            handing_over: VecDeque::new(),
            completed: restored,
            held_back: VecDeque::new(),
            read: BTreeMap::new(),
            known: restored,
            previous: restored,
            // What was restored is folded with what is completed next.
            fold_began: restored,
            fold_promised: None,
            metrics: TaskMetrics::default(),
            meter: Meter::default(),
        }
    }

    /// A completion has arrived. False: it is old news.
    pub(super) fn complete(&mut self, checkpoint: CheckpointId) -> bool {
        if self.completed >= Some(checkpoint) {
            return false;
        }
        self.completed = Some(checkpoint);
        self.held_back.push_back(checkpoint);
        true
    }

    /// The next completed checkpoint that the tables may know of, now.
    pub(super) fn let_tables_know(&mut self) -> Option<CheckpointId> {
        // The state at the one they know now would be the oldest that is left.
        let first_read = self.read.keys().next().copied();
        if first_read.is_some_and(|read| self.known > Some(read)) {
            return None;
        }
        let checkpoint = self.held_back.pop_front()?;
        self.previous = self.known.replace(checkpoint);
        Some(checkpoint)
    }

    /// A fold begins. Answers up to where it may go; `at_once`: it will go there.
    pub(super) fn fold_begins(&mut self, at_once: bool) -> Option<CheckpointId> {
        self.fold_began = self.oldest();
        if at_once {
            self.fold_promised = self.fold_began;
        }
        self.fold_began
    }

    /// Up to where a fold is sure to go that is under way, or the one that follows it because more was completed
    /// since: what may be folded then will be, if there is no memory.
    pub(super) fn fold_due(&self) -> Option<CheckpointId> {
        match self.oldest() > self.fold_began {
            true => self.oldest(),
            false => self.fold_promised,
        }
    }

    /// The oldest checkpoint whose state can be asked for.
    fn oldest(&self) -> Option<CheckpointId> {
        self.previous
    }

    /// Somebody reads the state at a checkpoint, which stays until they are done.
    pub(super) fn reading_began(&mut self, at: CheckpointId) {
        *self.read.entry(at).or_default() += 1;
    }

    pub(super) fn reading_ended(&mut self, at: CheckpointId) {
        let readers = self
            .read
            .get_mut(&at)
            .expect("a reading ends after it began");
        *readers -= 1;
        if *readers == 0 {
            self.read.remove(&at);
        }
    }

    /// Says how the time was spent since the last look.
    pub(super) fn measure(&mut self, now: Tick, messages_per_turn: u64) {
        let meter = std::mem::take(&mut self.meter);
        self.meter.since = now;
        self.metrics.blocked_permille = permille(meter.blocked_turns, meter.turns);
        self.metrics.busy_permille = permille(meter.busy_turns, meter.turns * messages_per_turn);
    }
}

fn permille(part: u64, whole: u64) -> u16 {
    u16::try_from((part * 1000).checked_div(whole).unwrap_or(0).min(1000)).expect("at most 1000")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While a fold took its time, all that came in between was taken although there was no memory for it.
    #[test]
    fn what_was_completed_while_a_fold_runs_is_folded_by_the_next() {
        let id = |number| Some(CheckpointId(number));
        let mut progress = Progress::restored(None, CheckpointId(0), Timestamp::MIN);
        let complete = |progress: &mut Progress, number| {
            assert!(progress.complete(CheckpointId(number)));
            assert_eq!(progress.let_tables_know(), id(number));
        };
        complete(&mut progress, 1);
        complete(&mut progress, 2);
        // One that gathers promises nothing.
        assert_eq!(progress.fold_begins(false), id(1));
        assert_eq!(progress.fold_due(), None);
        complete(&mut progress, 3);
        assert_eq!(progress.fold_due(), id(2));
        assert_eq!(progress.fold_begins(true), id(2));
        assert_eq!(progress.fold_due(), id(2));
        complete(&mut progress, 4);
        complete(&mut progress, 5);
        assert_eq!(progress.fold_due(), id(4));

        // Found by the simulator (seed 72): nothing is folded before something is completed.
        let restored = Progress::restored(id(9), CheckpointId(9), Timestamp::MIN);
        assert_eq!(restored.fold_due(), None);
    }

    #[test]
    fn a_state_that_is_being_read_stays_however_many_checkpoints_complete() {
        let id = |number| CheckpointId(number);
        let mut progress = Progress::restored(None, id(0), Timestamp::MIN);
        assert!(progress.complete(id(1)));
        assert_eq!(progress.let_tables_know(), Some(id(1)));
        progress.reading_began(id(1));
        for checkpoint in [2, 3, 4] {
            assert!(progress.complete(id(checkpoint)));
            assert!(!progress.complete(id(checkpoint)));
        }
        // With the second, the first becomes the oldest.
        assert_eq!(progress.let_tables_know(), Some(id(2)));
        assert_eq!(progress.let_tables_know(), None);
        assert_eq!(progress.oldest(), Some(id(1)));
        // Who comes later reads a newer state, and does not hold up for longer.
        progress.reading_began(id(4));
        progress.reading_ended(id(1));
        let known: Vec<_> = std::iter::from_fn(|| progress.let_tables_know()).collect();
        assert_eq!(known, [3, 4].map(id));
        assert_eq!(progress.oldest(), Some(id(3)));
    }
}
