//! The coordinator has the state of tasks written into objects, one object a call.
//!
//! The worker that is asked remembers nothing but that it is asked: the coordinator says where it goes on, and
//! a call that is repeated writes the same object again.

use serde::{Deserialize, Serialize};

use super::Call;
use crate::ids::{CheckpointId, Generation, JobId, TaskId};
use crate::objects::location::Location;
use crate::savepoint::SavedObject;

/// The next object of a task's state, exactly as it was at a completed checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SaveState {
    pub job: JobId,
    /// The one whose task is asked for; of a job at rest the last one.
    pub generation: Generation,
    /// Nothing of the job runs: its state is on the worker's disk.
    pub at_rest: bool,
    pub key_groups: u16,
    pub task: TaskId,
    pub checkpoint: CheckpointId,
    pub position: SavePosition,
    /// Other tasks there, whose turn is yet to come: what they have of the checkpoint stays until then.
    pub keep: Vec<TaskId>,
    /// The savepoint's own place.
    pub place: Location,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavePosition {
    Start,
    /// In the base file of a checkpoint.
    Base {
        checkpoint: CheckpointId,
        offset: u64,
    },
    /// After so many records of the chunks that follow this base file, or nothing; `object`: its number.
    Deltas {
        base: Option<CheckpointId>,
        records: u32,
        object: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateSaved {
    pub object: SavedObject,
    /// `None`: that was the last one.
    pub next: Option<SavePosition>,
}

impl Call for SaveState {
    const PATH: &'static str = "/internal/v1/save-state";
    type Reply = StateSaved;
}

/// Where the state of a job's last completed checkpoint is, as long as no worker has it: in a savepoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RestoredFrom {
    /// The savepoint's own place.
    pub place: Location,
    /// The checkpoint that the savepoint is of: the job may count it under another number.
    pub checkpoint: CheckpointId,
    /// Of the manifest that was checked: another one in its place is not what was asked for.
    pub manifest_crc32c: u32,
}
