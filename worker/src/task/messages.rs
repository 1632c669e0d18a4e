//! What is said to a task besides its data, and what it says back.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::Message;
use common::error::Problem;
use common::ids::{CheckpointId, TaskId};
use common::protocol::state::{QueryState, StateEntries};

use super::message::Barrier;
use crate::keyed_state::table::Overlay;

/// A source task shall cut its rows here.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Inject(pub Barrier);

/// The checkpoint is a fact: everything up to it counts.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Complete(pub CheckpointId);

/// Reads the state of one of the task's operators.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<StateEntries, Problem>")]
pub struct Query(pub QueryState);

/// The task's generation is over.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Stop;

/// A task has sealed a checkpoint, and its sink has stored everything before the barrier.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Sealed {
    pub task: TaskId,
    pub checkpoint: CheckpointId,
    pub snapshot: Snapshot,
}

/// What a task adds to a checkpoint.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The changes of every table that has any, under its operator's id and its name.
    pub deltas: Vec<TableDelta>,
    /// Bytes of all state of the task.
    pub state_bytes: u64,
    /// For sources: split → position after the last row before the barrier.
    pub positions: BTreeMap<String, i64>,
}

#[derive(Clone, Debug)]
pub struct TableDelta {
    pub operator: String,
    pub table: String,
    pub delta: Arc<Overlay>,
}
