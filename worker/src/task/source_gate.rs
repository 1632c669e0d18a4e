//! Stops a source from reading while too many of its checkpoints are undecided, or if its generation stands still
//! (pure).
//!
//! What is written between two checkpoints is a transaction, and a sink can have only so many undecided.
//! While checkpoints fail one after another, a source that reads on would use them all up, and then
//! nothing could be written and no checkpoint completed ever again. So after half of them it reads
//! nothing and only passes barriers on; what is already under way fits into the other half, and the
//! next checkpoint that completes decides all before it.

use std::collections::BTreeSet;

use common::ids::CheckpointId;
use common::limits::TRANSACTION_SLOTS;

/// Undecided checkpoints after which nothing is read.
const CLOSED_AT: usize = TRANSACTION_SLOTS as usize / 2;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceGate {
    still: bool,
    undecided: BTreeSet<CheckpointId>,
}

impl SourceGate {
    /// `still`: nothing is ever read.
    pub fn new(still: bool) -> SourceGate {
        SourceGate {
            still,
            undecided: BTreeSet::new(),
        }
    }

    /// The task has sealed a checkpoint.
    pub fn sealed(&mut self, checkpoint: CheckpointId) {
        // Barriers alone take up nothing: it is enough to remember as many as close the gate.
        if !self.is_closed() {
            self.undecided.insert(checkpoint);
        }
    }

    /// A checkpoint is completed, and decides those before it.
    pub fn completed(&mut self, checkpoint: CheckpointId) {
        self.undecided = self.undecided.split_off(&checkpoint.next());
    }

    pub fn is_closed(&self) -> bool {
        self.still || self.undecided.len() >= CLOSED_AT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(sealed: std::ops::RangeInclusive<u64>) -> SourceGate {
        let mut gate = SourceGate::default();
        sealed.for_each(|checkpoint| gate.sealed(CheckpointId(checkpoint)));
        gate
    }

    #[test]
    fn a_source_stops_reading_after_eight_undecided_checkpoints_until_one_is_decided() {
        assert!(!gate(1..=7).is_closed());
        for sealed in [8, 9, 100] {
            let mut gate = gate(1..=sealed);
            assert!(gate.is_closed());
            gate.completed(CheckpointId(1));
            assert!(!gate.is_closed());
        }
    }

    #[test]
    fn a_completed_checkpoint_decides_all_before_it_and_none_after() {
        let mut gate = gate(1..=7);
        gate.completed(CheckpointId(5));
        assert_eq!(gate, self::gate(6..=7));
        // Also one that was sealed only in part of the job, and so is unknown here.
        gate.completed(CheckpointId(100));
        assert_eq!(gate, SourceGate::default());
    }
}
