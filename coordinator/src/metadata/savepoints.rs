//! Savepoints of jobs: which were asked for and what became of them, and jobs that begin from one.
//!
//! A job that is restored counts the savepoint's state as its last completed checkpoint, under a number above
//! all that were ever given out: chunks, transactions and sinks of its past stay decided as they were, and
//! nothing of the past is taken for a part of what was restored. Until the first checkpoint after it is
//! complete no worker is a holder of it: each fetches what it runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use common::error::ErrorCode;
use common::ids::{CheckpointId, Generation, JobId, MetadataVersion, TaskId};
use common::limits::SAVEPOINT_HISTORY;
use common::objects::location::Location;
use common::protocol::checkpoint::{CheckpointKind, TaskCounts};
use common::protocol::job::JobState;
use common::protocol::savepoint::RestoredFrom;
use common::time::{Span, Timestamp};

use super::ClusterMetadata;
use super::changes::RowKey;
use super::checkpoints::{CompletedCheckpoint, Positions, holds};
use super::command::{Outcome, Rejection};
use super::jobs::{Desired, JobRow};

/// A savepoint that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavepointRow {
    pub id: Uuid,
    /// Below which it is.
    pub location: Location,
    pub created_at: Timestamp,
    /// Nobody asked for it, and it goes when newer ones have come.
    #[serde(default)]
    pub archive: bool,
    /// `None`: it is being made.
    pub ended: Option<SavepointEnded>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavepointEnded {
    pub at: Timestamp,
    pub outcome: SavepointOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavepointOutcome {
    /// All of it is in the store.
    Complete {
        /// Its own place.
        place: Location,
        generation: Generation,
        checkpoint: CheckpointId,
        bytes: u64,
    },
    Failed {
        code: ErrorCode,
        reason: String,
    },
}

/// What a job begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restored {
    pub from: RestoredFrom,
    /// What the savepoint says of its tasks.
    pub positions: Positions,
    pub counts: BTreeMap<TaskId, TaskCounts>,
    pub bytes: u64,
}

impl ClusterMetadata {
    pub(super) fn begin_savepoint(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        id: Uuid,
        location: &Location,
        archive: bool,
    ) -> Result<Outcome, Rejection> {
        self.change_job(index, at, job, |row| {
            if let Some(other) = row.savepoint_under_way() {
                let location = other.location.clone();
                let job = row.name.clone();
                return Err(Rejection::SavepointUnderWay { job, location });
            }
            if row.savepoints.len() == SAVEPOINT_HISTORY {
                // An archive that is forgotten would never be removed.
                let mut savepoints = row.savepoints.iter();
                let oldest = savepoints.position(|savepoint| !savepoint.archive);
                row.savepoints.remove(oldest.unwrap_or(0));
            }
            row.savepoints.push_back(SavepointRow {
                id,
                location: location.clone(),
                created_at: at,
                archive,
                ended: None,
            });
            Ok(Outcome::Done)
        })
    }

    pub(super) fn end_savepoint(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        id: Uuid,
        outcome: &SavepointOutcome,
    ) -> Result<Outcome, Rejection> {
        self.change_job(index, at, job, |row| {
            let mut savepoints = row.savepoints.iter_mut();
            let under_way = savepoints.find(|savepoint| savepoint.id == id);
            let under_way = under_way.filter(|savepoint| savepoint.ended.is_none());
            let under_way = under_way.ok_or(Rejection::NoSavepoint { job, id })?;
            under_way.ended = Some(SavepointEnded {
                at,
                outcome: outcome.clone(),
            });
            Ok(Outcome::Done)
        })
    }

    /// What a savepoint had in its store has been removed.
    pub(super) fn forget_savepoint(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        id: Uuid,
    ) -> Result<Outcome, Rejection> {
        self.change_job(index, at, job, |row| {
            let ended = |savepoint: &SavepointRow| savepoint.ended.is_some();
            let mut savepoints = row.savepoints.iter();
            let position = savepoints.position(|savepoint| savepoint.id == id && ended(savepoint));
            let position = position.ok_or(Rejection::NoSavepoint { job, id })?;
            row.savepoints.remove(position);
            Ok(Outcome::Done)
        })
    }

    pub(super) fn restore_job(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        generation: Generation,
        restored: &Restored,
    ) -> Result<Outcome, Rejection> {
        let outcome = self.change_job(index, at, job, |row| {
            row.check_generation(generation)?;
            if row.deployment.is_some() || !may_be_restored(row.state) {
                let state = row.state;
                let job = row.name.clone();
                return Err(Rejection::NotAtRest { job, state });
            }
            // Who only waits goes on to what was wanted before.
            if row.state != JobState::Waiting {
                row.desired = Desired::Running;
            }
            let reason = format!("begins with the savepoint \"{}\"", restored.from.place);
            row.become_state(JobState::Waiting, &reason)?;
            row.begin_with(at, restored, row.reserved.next());
            Ok(Outcome::Done)
        })?;
        self.changes.touch(index, RowKey::Holds(job));
        Ok(outcome)
    }
}

/// Whether the state of a job may be replaced while nothing of it runs.
pub fn may_be_restored(state: JobState) -> bool {
    match state {
        JobState::Waiting | JobState::Paused | JobState::Stopped | JobState::Failed => true,
        JobState::Created
        | JobState::Deploying
        | JobState::Running
        | JobState::Recovering
        | JobState::Finished
        | JobState::Cancelled => false,
    }
}

impl JobRow {
    pub fn savepoint_under_way(&self) -> Option<&SavepointRow> {
        let mut savepoints = self.savepoints.iter();
        savepoints.find(|savepoint| savepoint.ended.is_none())
    }

    /// The state of the savepoint is that of the last completed checkpoint, under this number.
    pub(super) fn begin_with(
        &mut self,
        at: Timestamp,
        restored: &Restored,
        checkpoint: CheckpointId,
    ) {
        self.completed = Some(checkpoint);
        self.reserved = checkpoint;
        self.holders = BTreeMap::new();
        self.counts.clone_from(&restored.counts);
        self.counts_before.clone_from(&restored.counts);
        self.holds = Some(Arc::new(holds(self, at, &restored.positions)));
        self.note_completed(CompletedCheckpoint {
            checkpoint,
            generation: self.generation,
            kind: CheckpointKind::Periodic,
            completed_at: at,
            duration: Span(0),
            delta_bytes: 0,
            state_bytes: restored.bytes,
            positions: Some(Arc::new(restored.positions.clone())),
        });
        self.restored = Some(restored.from.clone());
    }
}
