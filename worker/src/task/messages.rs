//! What is said to a task besides its data, and what it says back.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::Message;
use common::error::Problem;
use common::ids::{CheckpointId, TaskId};
use common::protocol::checkpoint::TaskCounts;
use common::protocol::state::{QueryState, StateEntries};

use super::message::Barrier;
use crate::checkpoint::state_store::LeftTask;
use crate::checkpoint::view_reader::ViewReader;
use crate::keyed_state::overlay::Overlay;
use crate::keyed_state::section::TableId;

/// A source task shall cut its rows here.
#[derive(Clone, Copy, Debug)]
pub struct Inject {
    pub barrier: Barrier,
    /// Before it, no row is to come: windows close.
    pub drain: bool,
}

impl Message for Inject {
    type Result = ();
}

/// The checkpoint is a fact: everything up to it counts.
#[derive(Clone, Copy, Debug)]
pub struct Complete(pub CheckpointId);

impl Message for Complete {
    type Result = ();
}

/// The same, and a fold follows: what may it take?
#[derive(Clone, Copy, Debug)]
pub struct PrepareFold(pub CheckpointId);

impl Message for PrepareFold {
    type Result = Foldable;
}

/// What of a task's state may be folded, and how urgent that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foldable {
    /// The oldest checkpoint whose state the task may still be asked for.
    pub up_to: Option<CheckpointId>,
    /// The task has no memory left, and waits for all of it to be folded.
    pub at_once: bool,
}

/// The view on disk has everything up to this checkpoint, so memory need not.
#[derive(Clone, Debug)]
pub struct Folded {
    pub checkpoint: CheckpointId,
    pub reader: ViewReader,
}

impl Message for Folded {
    type Result = ();
}

/// Reads the state of one of the task's operators.
#[derive(Clone, Debug)]
pub struct Query(pub QueryState);

impl Message for Query {
    type Result = Result<StateEntries, Problem>;
}

/// The task has failed, and this is still good.
#[derive(Debug)]
pub struct Leaves {
    pub task: TaskId,
    pub left: LeftTask,
}

impl Message for Leaves {
    type Result = ();
}

/// The task's generation is over. Answered with what it leaves.
#[derive(Clone, Copy, Debug)]
pub struct Stop;

impl Message for Stop {
    type Result = LeftTask;
}

/// A task has sealed a checkpoint, and its sink has stored everything before the barrier.
#[derive(Debug)]
pub struct Sealed {
    pub task: TaskId,
    pub checkpoint: CheckpointId,
    pub snapshot: Snapshot,
}

impl Message for Sealed {
    type Result = ();
}

/// What a task adds to a checkpoint.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The changes of every table that has any.
    pub deltas: Vec<TableDelta>,
    /// Bytes of all state of the task.
    pub state_bytes: u64,
    /// For sources: split → position after the last row before the barrier.
    pub positions: BTreeMap<String, i64>,
    pub counts: TaskCounts,
}

/// A table, and what changed in it.
pub type TableDelta = (TableId, Arc<Overlay>);
