//! The state of operators, read over HTTP.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Call;
use super::task::Deployment;
use crate::ids::{CheckpointId, Generation, JobId, TaskId};
use crate::time::Timestamp;

/// What a reader may rely on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// The state at a completed checkpoint: it never rolls back, and all operators are at the same cut.
    #[default]
    Completed,
    /// The state of this moment; a failure may undo it.
    Live,
}

/// Entries of one operator's state on one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueryState {
    pub job: JobId,
    pub generation: Generation,
    pub task: TaskId,
    pub operator: String,
    pub consistency: Consistency,
    /// With `Completed`: the checkpoint to read at.
    pub checkpoint: Option<CheckpointId>,
    /// The key as JSON (a bare value for a single key column, else an array in the keys' order).
    pub key: Option<serde_json::Value>,
    /// Only keys whose first column, as text, starts with this.
    pub prefix: Option<String>,
    /// Where the answer before ended (`StateEntries::next`); `None`: from the first entry on.
    pub after: Option<StatePlace>,
    pub limit: u32,
}

/// The same of a job of which nothing runs, from the disk of a worker that has the task's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueryStateAtRest {
    /// The last generation, restored at the last completed checkpoint.
    pub deployment: Deployment,
    pub query: QueryState,
}

/// A place among a task's entries. It means something to the task only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePlace(#[serde(with = "serde_bytes")] pub Vec<u8>);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StateEntries {
    pub entries: Vec<StateEntry>,
    /// There are more beyond `limit`, from here on.
    pub next: Option<StatePlace>,
    pub watermark: Option<Timestamp>,
}

/// One key's state, in words a user of the operator understands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StateEntry {
    /// Column name → value.
    pub key: serde_json::Map<String, serde_json::Value>,
    /// `[start, end)` in milliseconds, for state kept per window or slice of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<[i64; 2]>,
    pub value: serde_json::Map<String, serde_json::Value>,
}

impl Call for QueryState {
    const PATH: &'static str = "/internal/v1/query-state";
    type Reply = StateEntries;
}

impl Call for QueryStateAtRest {
    const PATH: &'static str = "/internal/v1/query-state-at-rest";
    type Reply = StateEntries;
}
