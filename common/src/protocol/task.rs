//! Tasks: what a worker should run, and how it is going.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::checkpoint::TaskCounts;
use super::savepoint::RestoredFrom;
use crate::ids::{CheckpointId, Generation, JobId, JobName, MetadataVersion, NodeId, TaskId};
use crate::plan::task_graph::{Stage, TaskGraph};
use crate::time::{Span, Timestamp};

/// One generation of a job: its tasks and where each runs. A fact of the metadata; workers start what
/// names them and stop every older generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    pub job: JobId,
    pub name: JobName,
    pub generation: Generation,
    /// The command that started this generation. A worker whose epoch is above it was registered later:
    /// the tasks of its former life died with that life, and it starts none of them, because the others
    /// may be past the checkpoint they would start from. The coordinator then starts a new generation.
    pub version: MetadataVersion,
    /// The checkpoint every task starts from; `None`: from nothing.
    pub restore: Option<CheckpointId>,
    /// No worker has that checkpoint yet: each fetches what it runs from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub savepoint: Option<RestoredFrom>,
    pub graph: TaskGraph,
    /// In the order of `graph.tasks()`: the position is the task's ordinal.
    pub tasks: Vec<TaskAssignment>,
    /// The workers that keep the state of tasks which run elsewhere. They change within a generation.
    #[serde(default)]
    pub standbys: Standbys,
    /// How the job is to be divided into tasks next. It comes and goes within a generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Arc<NextDivision>>,
    /// Its sources read nothing: it is there only to be taken over by the next division.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub still: bool,
    pub checkpoint_interval: Span,
}

/// Another division of a job into tasks, whose state is prepared beside its running tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NextDivision {
    /// The ids of its stages are of no earlier division of the job.
    pub graph: TaskGraph,
    /// Where each is to run, in the order of `graph.tasks()`.
    pub tasks: Vec<TaskAssignment>,
    pub standbys: Standbys,
}

/// Of tasks with state: the workers that stand by for each, the first to be promoted first.
pub type Standbys = BTreeMap<TaskId, Vec<NodeId>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskAssignment {
    pub task: TaskId,
    pub worker: NodeId,
}

impl Deployment {
    pub fn worker_of(&self, task: TaskId) -> NodeId {
        self.assignment(task).1.worker
    }

    /// The task's number in its job, which its transactions are labelled with.
    pub fn ordinal_of(&self, task: TaskId) -> u16 {
        u16::try_from(self.assignment(task).0).expect("a job has at most 2^12 tasks")
    }

    /// Its tasks, and those of the next division.
    pub fn all_tasks(&self) -> impl Iterator<Item = TaskId> + '_ {
        let next = self.next.iter().flat_map(|next| next.graph.tasks());
        self.graph.tasks().chain(next)
    }

    /// The stage of a task, also of one of the next division.
    pub fn stage_of(&self, task: TaskId) -> &Stage {
        let next = self.next_stage(task);
        next.unwrap_or_else(|| self.graph.stage(task.stage))
    }

    /// Whether it is a task of the next division.
    pub fn is_prepared(&self, task: TaskId) -> bool {
        self.next_stage(task).is_some()
    }

    fn next_stage(&self, task: TaskId) -> Option<&Stage> {
        self.next.as_ref()?.graph.find(task.stage)
    }

    fn assignment(&self, task: TaskId) -> (usize, &TaskAssignment) {
        self.tasks
            .iter()
            .enumerate()
            .find(|(_, assignment)| assignment.task == task)
            .expect("a deployment assigns every task of its graph")
    }
}

/// How a task is, with the numbers people ask for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    pub job: JobId,
    pub generation: Generation,
    pub task: TaskId,
    pub state: TaskState,
    pub metrics: TaskMetrics,
    /// It has no memory left, and a completed checkpoint would give some back.
    #[serde(default)]
    pub wants_checkpoint: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Restoring its state and opening its channels.
    Deploying,
    Running,
    /// Running; its source has ended and everything it gave has been sent on.
    Exhausted,
    /// A last checkpoint is complete, and what the task's sink gave up to it is visible outside.
    Finished,
    /// Stopped by itself. `fatal`: running it again would fail in the same way.
    Failed {
        reason: String,
        fatal: bool,
    },
}

/// Counters since the task started, and gauges of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskMetrics {
    pub rows_in: u64,
    pub rows_out: u64,
    pub bytes_in: u64,
    pub dead_letters: u64,
    pub late_rows: u64,
    /// `None`: nothing has been said about event time yet.
    pub watermark: Option<Timestamp>,
    /// Records between the source's position and the end of what it may read.
    pub lag_records: u64,
    pub state_bytes: u64,
    pub state_keys: u64,
    /// What the state takes of the worker's memory; the rest of it is on disk only.
    #[serde(default)]
    pub state_memory_bytes: u64,
    /// Of the last second, in thousandths: working, and waiting for room in an output.
    pub busy_permille: u16,
    pub blocked_permille: u16,
}

impl TaskMetrics {
    pub fn counts(&self) -> TaskCounts {
        TaskCounts {
            rows_in: self.rows_in,
            rows_out: self.rows_out,
            dead_letters: self.dead_letters,
            late_rows: self.late_rows,
        }
    }
}
