//! How much memory the state of tasks may take, and when to give some back (pure, but for counting tasks).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the parts of a worker get of the memory it may use; ARCHITECTURE.md says what the rest is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// For the tables of all tasks.
    pub state_bytes: u64,
    /// For the pages of the view of one job's state.
    pub view_cache_bytes: u64,
    /// For what clients send and was not answered yet.
    pub intake_bytes: u64,
}

impl MemoryPlan {
    pub fn of(memory_bytes: u64) -> MemoryPlan {
        MemoryPlan {
            state_bytes: memory_bytes / 4,
            view_cache_bytes: (memory_bytes / 8).min(64 << 20),
            intake_bytes: memory_bytes / 8,
        }
    }
}

/// Memory for the tables of all tasks of a worker whose state need not be in memory. They have equal shares, those that
/// are stood by for as well; what they leave is for the tasks of a next division.
#[derive(Debug)]
pub struct StateMemory {
    bytes: u64,
    tasks: AtomicU64,
    used: AtomicU64,
}

/// One task's share, for as long as it lives.
#[derive(Debug)]
pub struct MemoryShare {
    used: Used,
    /// Only above this there may be something to be given back again.
    worth_it_above: u64,
}

/// What one task may take of what others leave, for as long as it lives.
#[derive(Debug)]
pub struct MemoryRest(Used);

/// What a task took when it was last looked at.
#[derive(Debug)]
struct Used {
    of: Arc<StateMemory>,
    bytes: u64,
}

/// What is to be done about a task's use of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    None,
    /// So many bytes are to be given back.
    Evict(u64),
}

impl StateMemory {
    pub fn new(bytes: u64) -> Arc<StateMemory> {
        Arc::new(StateMemory {
            bytes,
            tasks: AtomicU64::new(0),
            used: AtomicU64::new(0),
        })
    }

    pub fn share(self: &Arc<StateMemory>) -> MemoryShare {
        self.tasks.fetch_add(1, Ordering::Relaxed);
        MemoryShare {
            used: Used::nothing(self),
            worth_it_above: 0,
        }
    }

    /// Takes nothing from the shares of others.
    pub fn rest(self: &Arc<StateMemory>) -> MemoryRest {
        MemoryRest(Used::nothing(self))
    }

    /// What each of so many further tasks would have.
    pub fn bytes_for(&self, tasks: usize) -> u64 {
        let others = self.tasks.load(Ordering::Relaxed);
        self.bytes / (others + tasks as u64).max(1)
    }
}

impl MemoryShare {
    /// Gives memory back from four fifths of the share down to three. What an earlier attempt could not
    /// give back is not tried again before an eighth has been added to it.
    pub fn judge(&mut self, used: u64) -> Pressure {
        self.used.set(used);
        let share = self.bytes();
        if used <= (share / 5 * 4).max(self.worth_it_above) {
            return Pressure::None;
        }
        Pressure::Evict(used - share / 5 * 3)
    }

    /// So much is taken after memory was given back.
    pub fn evicted(&mut self, used: u64) {
        self.used.set(used);
        self.worth_it_above = used + self.bytes() / 8;
    }

    /// More can be given back than before.
    pub fn retry(&mut self) {
        self.worth_it_above = 0;
    }

    /// Whether nine tenths of the share are taken, although everything was given back that could be.
    pub fn is_crowded(&self) -> bool {
        self.used.bytes > self.bytes() / 10 * 9
    }

    /// Bytes that may come in between two looks while it is crowded.
    pub fn trickle(&self) -> u64 {
        self.bytes() / 64
    }

    /// Whether so much is within the share.
    pub fn has_room_for(&mut self, used: u64) -> bool {
        self.used.set(used);
        used <= self.bytes()
    }

    pub fn bytes(&self) -> u64 {
        self.used.of.bytes_for(0)
    }
}

impl MemoryRest {
    /// Whether so much is left by others.
    pub fn has_room_for(&mut self, used: u64) -> bool {
        self.0.set(used);
        used <= self.bytes()
    }

    pub fn bytes(&self) -> u64 {
        let Used { of, bytes } = &self.0;
        let by_others = of.used.load(Ordering::Relaxed).saturating_sub(*bytes);
        of.bytes.saturating_sub(by_others)
    }
}

impl Used {
    fn nothing(of: &Arc<StateMemory>) -> Used {
        Used {
            of: Arc::clone(of),
            bytes: 0,
        }
    }

    fn set(&mut self, bytes: u64) {
        let used = &self.of.used;
        match bytes.checked_sub(self.bytes) {
            Some(more) => used.fetch_add(more, Ordering::Relaxed),
            None => used.fetch_sub(self.bytes - bytes, Ordering::Relaxed),
        };
        self.bytes = bytes;
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.used.of.tasks.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_before_it_is_all_taken_and_not_tried_in_vain() {
        let memory = StateMemory::new(2_000);
        let (mut one, other) = (memory.share(), memory.share());
        assert_eq!(one.judge(800), Pressure::None);
        assert_eq!(one.judge(801), Pressure::Evict(201));
        // Hardly anything could be given back.
        one.evicted(790);
        assert_eq!(one.judge(900), Pressure::None);
        assert!(!one.is_crowded());
        assert_eq!(one.judge(916), Pressure::Evict(316));
        one.evicted(910);
        assert!(one.is_crowded());
        assert_eq!(one.judge(915), Pressure::None);
        one.retry();
        assert_eq!(one.judge(915), Pressure::Evict(315));
        drop(other);
        assert_eq!(one.judge(1_600), Pressure::None);
        assert!(!one.is_crowded());
    }

    /// Every successor that was prepared had a share, and the tasks that ran had to make room for it.
    #[test]
    fn what_is_only_prepared_takes_nothing_from_the_shares_of_others() {
        let memory = StateMemory::new(2_000);
        let mut runs = memory.share();
        assert_eq!(runs.judge(1_500), Pressure::None);
        let (mut one, mut other) = (memory.rest(), memory.rest());
        assert_eq!(runs.judge(1_500), Pressure::None);
        assert_eq!(one.bytes(), 500);
        assert!(one.has_room_for(300));
        assert!(!other.has_room_for(201));
        assert!(other.has_room_for(200));
        // Who runs grows, and they have to go.
        assert_eq!(runs.judge(1_600), Pressure::None);
        assert!(!one.has_room_for(300));
        drop(one);
        assert!(other.has_room_for(400));
        drop(runs);
        assert_eq!(other.bytes(), 2_000);
    }
}
