//! Trigger and acknowledge checkpoints. Completion is a fact of the metadata (`JobImage::completed`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Call;
use crate::ids::{CheckpointId, ControlEpoch, Generation, JobId, NodeId, TaskId, WorkerEpoch};

/// Sources on the receiver shall emit this barrier. Repeated until acknowledged; known by its checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InjectBarrier {
    pub control_epoch: ControlEpoch,
    pub worker: NodeId,
    pub job: JobId,
    pub generation: Generation,
    pub checkpoint: CheckpointId,
    pub kind: CheckpointKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    Periodic,
    /// Sources read nothing after it: the job is paused, stopped or finished once it is complete.
    Stop,
    /// As `Stop`; the job then goes on divided into tasks in another way, whose state is prepared up to it.
    CutOver,
    /// As `Stop`, and before it sources say that no row is to come, so that every window closes.
    Drain,
}

impl CheckpointKind {
    /// Whether sources read nothing after it.
    pub fn is_last(self) -> bool {
        self != CheckpointKind::Periodic
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {}

impl Call for InjectBarrier {
    const PATH: &'static str = "/internal/v1/inject-barrier";
    type Reply = Injected;
}

/// These tasks of the sender have sealed the checkpoint, what they sealed is on its disk, and the output
/// of their sinks before the barrier is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AckCheckpoint {
    pub worker: NodeId,
    pub worker_epoch: WorkerEpoch,
    pub job: JobId,
    pub generation: Generation,
    pub checkpoint: CheckpointId,
    pub tasks: Vec<TaskSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskSnapshot {
    pub task: TaskId,
    /// What this checkpoint added to the delta log, and what the state holds in all.
    pub delta_bytes: u64,
    pub state_bytes: u64,
    /// For sources: split → the position after the last row before the barrier.
    pub positions: BTreeMap<String, i64>,
    #[serde(default)]
    pub counts: TaskCounts,
}

/// What a task has done before a barrier, since its generation began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskCounts {
    pub rows_in: u64,
    pub rows_out: u64,
    pub dead_letters: u64,
    pub late_rows: u64,
}

impl TaskCounts {
    #[must_use]
    pub fn plus(self, other: TaskCounts) -> TaskCounts {
        TaskCounts {
            rows_in: self.rows_in + other.rows_in,
            rows_out: self.rows_out + other.rows_out,
            dead_letters: self.dead_letters + other.dead_letters,
            late_rows: self.late_rows + other.late_rows,
        }
    }

    /// The larger of each.
    #[must_use]
    pub fn max(self, other: TaskCounts) -> TaskCounts {
        TaskCounts {
            rows_in: self.rows_in.max(other.rows_in),
            rows_out: self.rows_out.max(other.rows_out),
            dead_letters: self.dead_letters.max(other.dead_letters),
            late_rows: self.late_rows.max(other.late_rows),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {}

impl Call for AckCheckpoint {
    const PATH: &'static str = "/internal/v1/ack-checkpoint";
    type Reply = Acknowledged;
}

/// The sender cannot take part in this checkpoint; the job goes on without it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeclineCheckpoint {
    pub worker: NodeId,
    pub worker_epoch: WorkerEpoch,
    pub job: JobId,
    pub generation: Generation,
    pub checkpoint: CheckpointId,
    pub reason: String,
}

impl Call for DeclineCheckpoint {
    const PATH: &'static str = "/internal/v1/decline-checkpoint";
    type Reply = Acknowledged;
}
