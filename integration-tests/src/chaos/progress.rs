//! What the parts of a run tell one another while it goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Numbers that only grow, except what is under way. Shared by the threads of a run.
#[derive(Debug, Default)]
pub struct Progress {
    /// Events sent of which no node has said yet that they are kept.
    in_flight: AtomicU64,
    acknowledged: AtomicU64,
    /// Committed records of the output topics that have been read.
    came_out: AtomicU64,
    /// Changes of a job's parallelism that came about.
    rescaled: AtomicU64,
    /// Producers send nothing more.
    input_ends: AtomicBool,
    /// Whoever watches has seen enough: everything is out, or the run has failed.
    over: AtomicBool,
}

impl Progress {
    pub fn sent(&self, events: u64) {
        self.in_flight.fetch_add(events, Ordering::SeqCst);
    }

    pub fn acknowledged(&self, events: u64) {
        self.in_flight.fetch_sub(events, Ordering::SeqCst);
        self.acknowledged.fetch_add(events, Ordering::SeqCst);
    }

    pub fn came_out(&self, records: u64) {
        self.came_out.fetch_add(records, Ordering::SeqCst);
    }

    pub fn has_rescaled(&self) {
        self.rescaled.fetch_add(1, Ordering::SeqCst);
    }

    pub fn rescaled(&self) -> u64 {
        self.rescaled.load(Ordering::SeqCst)
    }

    /// Events under way, acknowledged ones, records that came out.
    pub fn read(&self) -> (u64, u64, u64) {
        (
            self.in_flight.load(Ordering::SeqCst),
            self.acknowledged.load(Ordering::SeqCst),
            self.came_out.load(Ordering::SeqCst),
        )
    }

    pub fn end_input(&self) {
        self.input_ends.store(true, Ordering::SeqCst);
    }

    pub fn input_ends(&self) -> bool {
        self.input_ends.load(Ordering::SeqCst)
    }

    pub fn end(&self) {
        self.end_input();
        self.over.store(true, Ordering::SeqCst);
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}
