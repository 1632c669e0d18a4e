//! How soon what was written has to be on the disk (pure).
//!
//! Where records are acknowledged once they are on disks, at once. Where they are acknowledged in memory, soon:
//! so often, and so many bytes, that little is lost with the power, and nothing more is written while too much
//! of what was written waits for a slow disk.

use common::protocol::topic::Durability;
use common::time::{Span, Tick};

/// For so long what is acknowledged in memory may be there only: each sync costs the disk as much as
/// megabytes of writing.
pub const SYNC_EVERY: Span = Span::from_secs(1);
/// With so much of it, sooner: a disk writes it within a tenth of a second or so.
pub const SYNC_AFTER_BYTES: u64 = 16 << 20;
/// With so much of it, and a sync under way, nothing is written.
pub const MOST_UNSYNCED_BYTES: u64 = 64 << 20;

const _: () = assert!(SYNC_AFTER_BYTES < MOST_UNSYNCED_BYTES);

/// What of a log is not on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LazySync {
    bytes: u64,
    /// Since when there is something that no sync has begun for.
    since: Option<Tick>,
}

impl LazySync {
    /// So much is not on the disk now.
    pub fn unsynced(&mut self, now: Tick, bytes: u64) {
        self.bytes = bytes;
        match bytes {
            0 => self.since = None,
            _ => drop(self.since.get_or_insert(now)),
        }
    }

    /// A sync has begun for everything.
    pub fn began(&mut self) {
        self.since = None;
    }

    /// Whether a sync is to begin, if there is something to sync.
    pub fn is_due(&self, now: Tick, durability: Durability) -> bool {
        match durability {
            Durability::Fsync => true,
            Durability::Replicated => {
                self.bytes >= SYNC_AFTER_BYTES || self.due_at().is_some_and(|at| at <= now)
            }
        }
    }

    /// When a sync is due at the latest, where records are acknowledged in memory.
    pub fn due_at(&self) -> Option<Tick> {
        Some(self.since?.plus(SYNC_EVERY))
    }

    /// Whether a sync that is under way is to end before more is written.
    pub fn is_too_much(&self) -> bool {
        self.bytes >= MOST_UNSYNCED_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_acknowledged_in_memory_is_synced_within_a_second_or_with_so_many_bytes() {
        let mut lazy = LazySync::default();
        let due = |lazy: &LazySync, now| lazy.is_due(Tick(now), Durability::Replicated);
        assert!(lazy.is_due(Tick(0), Durability::Fsync) && !due(&lazy, 5_000));
        lazy.unsynced(Tick(100), 10);
        lazy.unsynced(Tick(900), 20);
        assert!(!due(&lazy, 1_099) && due(&lazy, 1_100));
        lazy.began();
        lazy.unsynced(Tick(1_200), 20);
        assert!(!due(&lazy, 2_199) && due(&lazy, 2_200));
        lazy.unsynced(Tick(1_300), 0);
        assert!(!due(&lazy, 9_000));
        lazy.unsynced(Tick(9_000), SYNC_AFTER_BYTES);
        assert!(due(&lazy, 9_000) && !lazy.is_too_much());
        lazy.unsynced(Tick(9_000), MOST_UNSYNCED_BYTES);
        assert!(lazy.is_too_much());
    }
}
