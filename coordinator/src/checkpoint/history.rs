//! What became of a job's last checkpoints: those in progress, and for people those that failed.

use std::collections::{BTreeMap, VecDeque};

use common::ids::{CheckpointId, Generation, TaskId};
use common::limits::CHECKPOINT_HISTORY;
use common::protocol::checkpoint::{CheckpointKind, TaskCounts, TaskSnapshot};
use common::time::Tick;

use crate::metadata::checkpoints::Positions;

/// The last checkpoints, oldest first. Not durable: a new coordinator starts with an empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct History {
    records: VecDeque<Record>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    pub checkpoint: CheckpointId,
    pub generation: Generation,
    pub kind: CheckpointKind,
    pub triggered: Tick,
    pub ended: Option<Tick>,
    pub outcome: Outcome,
    pub tasks: usize,
    pub acknowledged: usize,
    pub delta_bytes: u64,
    pub state_bytes: u64,
    /// Of source tasks, as far as they have acknowledged it; given away with the completion.
    pub positions: Positions,
    /// What each task had done, likewise.
    pub counts: BTreeMap<TaskId, TaskCounts>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    InProgress,
    Completed,
    /// A later checkpoint was completed first, and covers it.
    Subsumed,
    Aborted {
        reason: String,
    },
}

impl History {
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.records.iter()
    }

    pub fn get(&self, checkpoint: CheckpointId) -> Option<&Record> {
        self.records
            .iter()
            .find(|record| record.checkpoint == checkpoint)
    }

    pub(super) fn begin(&mut self, record: Record) {
        if self.records.len() == CHECKPOINT_HISTORY {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    pub(super) fn acknowledge(&mut self, checkpoint: CheckpointId, snapshot: &TaskSnapshot) {
        let Some(record) = self.get_mut(checkpoint) else {
            return;
        };
        record.acknowledged += 1;
        record.delta_bytes += snapshot.delta_bytes;
        record.state_bytes += snapshot.state_bytes;
        record.counts.insert(snapshot.task, snapshot.counts);
        if !snapshot.positions.is_empty() {
            record
                .positions
                .insert(snapshot.task, snapshot.positions.clone());
        }
    }

    pub(super) fn end(&mut self, now: Tick, checkpoint: CheckpointId, outcome: Outcome) {
        let Some(record) = self.get_mut(checkpoint) else {
            return;
        };
        record.ended = Some(now);
        record.positions = Positions::new();
        record.counts = BTreeMap::new();
        record.outcome = outcome;
    }

    fn get_mut(&mut self, checkpoint: CheckpointId) -> Option<&mut Record> {
        self.records
            .iter_mut()
            .find(|record| record.checkpoint == checkpoint)
    }
}
