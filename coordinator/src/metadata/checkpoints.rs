//! Checkpoints of jobs: which ids were given out, and which checkpoint is the last that counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use common::ids::{CheckpointId, Generation, JobId, MetadataVersion, PartitionId, TaskId};
use common::limits::{CHECKPOINT_HISTORY, CHECKPOINT_RESERVATION, HOLD_EVERY, POSITIONS_HISTORY};
use common::offset::Offset;
use common::plan::connector::SourceSpec;
use common::protocol::checkpoint::CheckpointKind;
use common::protocol::metadata::TopicHolds;
use common::time::{Span, Timestamp};

use super::ClusterMetadata;
use super::changes::RowKey;
use super::command::{EpochCompleted, Outcome, Rejection};
use super::jobs::JobRow;

/// A completed checkpoint, as its job's history shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedCheckpoint {
    pub checkpoint: CheckpointId,
    pub generation: Generation,
    pub kind: CheckpointKind,
    pub completed_at: Timestamp,
    pub duration: Span,
    pub delta_bytes: u64,
    pub state_bytes: u64,
    /// How far sources had been read; `None` once that is no longer kept.
    #[serde(default)]
    pub positions: Option<Arc<Positions>>,
}

/// Of source tasks: split → position.
pub type Positions = BTreeMap<TaskId, BTreeMap<String, i64>>;

impl ClusterMetadata {
    pub(super) fn reserve_epochs(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        generation: Generation,
    ) -> Result<Outcome, Rejection> {
        self.change_job(index, at, job, |row| {
            row.check_running(generation)?;
            let first = row.reserved.next();
            row.reserved = CheckpointId(row.reserved.0 + CHECKPOINT_RESERVATION);
            Ok(Outcome::EpochsReserved {
                first,
                last: row.reserved,
            })
        })
    }

    pub(super) fn epoch_completed(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        completed: &EpochCompleted,
    ) -> Result<Outcome, Rejection> {
        let checkpoint = completed.checkpoint;
        let mut holds_changed = false;
        let outcome = self.change_job(index, at, completed.job, |row| {
            row.check_running(completed.generation)?;
            if row.completed.is_some_and(|last| checkpoint <= last)
                || checkpoint > row.reserved
                || checkpoint == CheckpointId(0)
            {
                return Err(Rejection::WrongCheckpoint {
                    job: completed.job,
                    checkpoint,
                    completed: row.completed,
                });
            }
            let holders = |task| completed.holders.get(&task);
            let has_holder = |task| holders(task).is_some_and(|holders| !holders.is_empty());
            let next = row.deployment.as_ref().and_then(|of| of.next.as_ref());
            let is_known = |task: &TaskId| {
                row.graph.find(task.stage).is_some()
                    || next.is_some_and(|next| next.graph.find(task.stage).is_some())
            };
            if !completed.holders.keys().all(is_known) || !row.graph.tasks().all(has_holder) {
                return Err(Rejection::WrongTasks { job: completed.job });
            }
            row.completed = Some(checkpoint);
            let counts = completed.counts.iter().map(|(task, counts)| {
                let before = row.counts_before.get(task).copied().unwrap_or_default();
                (*task, before.plus(*counts))
            });
            row.counts = counts.collect();
            row.holders.clone_from(&completed.holders);
            // Workers have it now.
            row.restored = None;
            let held = row.holds.as_ref().map(|holds| holds.at);
            // One that was said later than now was said while the clock was ahead.
            let is_due = held.is_none_or(|held| at < held || at >= held.plus(HOLD_EVERY));
            if is_due || completed.kind.is_last() {
                row.holds = Some(Arc::new(holds(row, at, &completed.positions)));
                holds_changed = true;
            }
            row.note_completed(CompletedCheckpoint {
                checkpoint,
                generation: completed.generation,
                kind: completed.kind,
                completed_at: at,
                duration: completed.duration,
                delta_bytes: completed.delta_bytes,
                state_bytes: completed.state_bytes,
                positions: Some(Arc::new(completed.positions.clone())),
            });
            Ok(Outcome::Done)
        })?;
        if holds_changed {
            self.changes.touch(index, RowKey::Holds(completed.job));
        }
        Ok(outcome)
    }
}

impl JobRow {
    pub(super) fn note_completed(&mut self, completed: CompletedCheckpoint) {
        self.checkpoints.push_back(completed);
        let mut latest_first = self.checkpoints.iter_mut().rev();
        if let Some(past) = latest_first.nth(POSITIONS_HISTORY) {
            past.positions = None;
        }
        if self.checkpoints.len() > CHECKPOINT_HISTORY {
            self.checkpoints.pop_front();
        }
    }
}

/// What a job may read again of its topics, from the positions of a completed checkpoint.
pub(super) fn holds(row: &JobRow, at: Timestamp, positions: &Positions) -> TopicHolds {
    let mut holds = no_holds(row.id, at);
    for (task, splits) in positions {
        let source = row.graph.stage(task.stage).source.as_ref();
        let Some(SourceSpec::Topic(source)) = source.map(|source| &source.spec) else {
            continue;
        };
        let of_topic = holds.positions.entry(source.topic.clone()).or_default();
        for (split, position) in splits {
            // A topic's splits are its partitions.
            let Ok(partition) = split.parse().map(PartitionId) else {
                continue;
            };
            let position = Offset(*position);
            // Two sources may read the same topic.
            let held = of_topic.entry(partition).or_insert(position);
            *held = position.min(*held);
        }
    }
    holds
}

/// The job is over, and reads nothing again.
pub(super) fn no_holds(job: JobId, at: Timestamp) -> TopicHolds {
    TopicHolds {
        job,
        at,
        positions: BTreeMap::new(),
    }
}
