//! A job as its user sees it: the facts of the metadata with what heartbeats say of its tasks.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use common::ids::{Generation, TaskId};
use common::plan::JobGraph;
use common::plan::task_graph::{Stage, TaskGraph};
use common::protocol::checkpoint::{CheckpointKind, TaskCounts};
use common::protocol::job::JobState;
use common::protocol::task::TaskState;
use common::time::Timestamp;

use super::observed::{Observed, ObservedTask, Rates};
use crate::metadata::checkpoints::CompletedCheckpoint;
use crate::metadata::jobs::{Desired, JobRow};

/// A job in a list of jobs.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct JobSummary {
    pub name: String,
    pub id: u32,
    #[schema(inline)]
    pub state: JobState,
    /// Why it is in this state; empty if there is nothing to say.
    pub reason: String,
    /// What its user wants: `running`, `paused`, `stopped` or `cancelled`.
    #[schema(value_type = String)]
    pub desired: Desired,
    pub generation: u32,
    pub parallelism: u32,
    /// ISO 8601, as every time here.
    pub created_at: String,
    pub updated_at: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct JobDescription {
    #[serde(flatten)]
    pub summary: JobSummary,
    pub checkpoint_interval_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
    /// Posting it back gives the same job.
    pub graph: JobGraph,
    /// The chains of operators that share a task.
    pub stages: Vec<StageDescription>,
    /// Into the job since it began: over all its sources. What is done again after a failure counts once.
    pub rows_in: u64,
    pub rows_in_per_second: f64,
    pub bytes_in_per_second: f64,
    /// Out of the job, likewise: over all stages nothing follows.
    pub rows_out: u64,
    pub rows_out_per_second: f64,
    /// Event time up to which everything has come out; absent: nothing has been said about it yet.
    pub watermark: Option<String>,
    /// Records its sources have still to read.
    pub lag_records: u64,
    pub dead_letters: u64,
    pub late_rows: u64,
    pub state_bytes: u64,
    pub last_checkpoint: Option<CheckpointSummary>,
    /// The change to another parallelism that is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rescaling: Option<Division>,
    /// The change to another definition that is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updating: Option<Division>,
    /// Tasks that are on their way to other workers, without having been asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moving: Option<Division>,
    /// The latest failures, the last one first.
    pub restarts: Vec<Restart>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct StageDescription {
    pub id: u16,
    /// The source, the operators and the sink it is made of, by their names.
    pub operators: Vec<String>,
    pub parallelism: u32,
    pub rows_in_per_second: f64,
    pub rows_out_per_second: f64,
    pub watermark: Option<String>,
    /// Of the busiest task, in thousandths of the last second.
    pub busy_permille: u16,
    /// Of the task most held up by what comes after it.
    pub blocked_permille: u16,
    pub tasks: Vec<TaskDescription>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TaskDescription {
    /// `<stage>.<index>`.
    pub id: String,
    /// The worker it runs on; absent while nothing of the job runs.
    pub worker: Option<u32>,
    /// The workers that keep its state as well, to go on with it if that one is lost.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub standbys: Vec<u32>,
    /// `deploying`, `running`, `exhausted`, `finished` or `failed`; absent until its worker has spoken.
    pub state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since the job began.
    pub rows_in: u64,
    pub rows_out: u64,
    pub rows_in_per_second: f64,
    pub rows_out_per_second: f64,
    pub lag_records: u64,
    pub watermark: Option<String>,
    pub state_keys: u64,
    /// What the state takes of the worker's memory; the rest of it is on disk only.
    pub state_memory_bytes: u64,
    pub state_bytes: u64,
    pub busy_permille: u16,
    pub blocked_permille: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct CheckpointSummary {
    pub epoch: u64,
    pub generation: u32,
    #[schema(inline)]
    pub kind: Kind,
    pub completed_at: String,
    pub duration_ms: u64,
    /// What it added, and what the state holds in all.
    pub delta_bytes: u64,
    pub state_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Periodic,
    Stop,
    CutOver,
    Drain,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Division {
    /// What it is to be.
    pub parallelism: u32,
    #[schema(inline)]
    pub state: DivisionState,
    /// What it waits for, if it does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Of so many tasks with state the state at the last checkpoint is where they are to run.
    pub prepared: usize,
    pub tasks: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DivisionState {
    /// Until the job runs, or there are slots for it.
    Waiting,
    /// The job goes on, and its state is divided beside it.
    Preparing,
    /// Everything is there, and sources wait for the last of it.
    CuttingOver,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Restart {
    /// The generation that failed.
    pub generation: u32,
    pub at: String,
    pub reason: String,
    /// The epoch the next generation began from; absent: none had been completed.
    pub resumed_from: Option<u64>,
}

impl JobSummary {
    pub fn of(row: &JobRow) -> JobSummary {
        JobSummary {
            name: row.name.to_string(),
            id: row.id.0,
            state: row.state,
            reason: row.reason.clone(),
            desired: row.desired,
            generation: row.generation.0,
            parallelism: parallelism(&row.graph),
            created_at: row.created_at.to_string(),
            updated_at: row.updated_at.to_string(),
        }
    }
}

impl JobDescription {
    pub fn of(row: &JobRow, observed: &Observed) -> JobDescription {
        let tasks = Tasks::of(row, observed);
        let sources = |stage: &&Stage| stage.source.is_some();
        let ends = |stage: &&Stage| row.graph.outputs_of(stage.id).next().is_none();
        let into = tasks.rates_of(row.graph.stages.iter().filter(sources));
        let out = tasks.rates_of(row.graph.stages.iter().filter(ends));
        let all = tasks.counts_of(row.graph.stages.iter());
        let division = Division::of(row, observed);
        let updates = row.division.as_ref().is_some_and(|of| of.update.is_some());
        let sum = |what: fn(&ObservedTask) -> u64| -> u64 { tasks.all().map(what).sum() };
        JobDescription {
            summary: JobSummary::of(row),
            checkpoint_interval_ms: row.checkpoint_interval.0,
            sql: row.spec.sql.clone(),
            graph: JobGraph::clone(&row.job_graph),
            stages: row
                .graph
                .stages
                .iter()
                .map(|stage| tasks.describe(stage))
                .collect(),
            rows_in: tasks
                .counts_of(row.graph.stages.iter().filter(sources))
                .rows_in,
            rows_in_per_second: into.rows_in,
            bytes_in_per_second: into.bytes_in,
            rows_out: tasks
                .counts_of(row.graph.stages.iter().filter(ends))
                .rows_out,
            rows_out_per_second: out.rows_out,
            watermark: tasks
                .watermark_of(row.graph.stages.iter().filter(ends))
                .map(describe_time),
            lag_records: sum(|task| task.metrics.lag_records),
            dead_letters: all.dead_letters,
            late_rows: all.late_rows,
            state_bytes: sum(|task| task.metrics.state_bytes),
            last_checkpoint: row.checkpoints.back().map(CheckpointSummary::of),
            rescaling: division.clone().filter(|_| !updates && !row.moves()),
            updating: division.clone().filter(|_| updates),
            moving: division.filter(|_| row.moves()),
            restarts: row
                .failures
                .iter()
                .rev()
                .map(|failure| Restart {
                    generation: failure.generation.0,
                    at: failure.at.to_string(),
                    reason: failure.reason.clone(),
                    resumed_from: row
                        .finals
                        .get(&failure.generation)
                        .and_then(|completed| completed.map(|checkpoint| checkpoint.0)),
                })
                .collect(),
        }
    }
}

impl Division {
    fn of(row: &JobRow, observed: &Observed) -> Option<Division> {
        let division = row.division.as_ref()?;
        let with_state = division.graph.stages.iter();
        let with_state = with_state.filter(|stage| stage.has_state());
        let tasks: Vec<TaskId> = with_state.flat_map(Stage::tasks).collect();
        let prepared = tasks.iter().filter(|task| row.holders.contains_key(task));
        let next = row.deployment.as_ref().and_then(|of| of.next.as_ref());
        let state = match next {
            Some(_) if row.cutting_over => DivisionState::CuttingOver,
            Some(_) => DivisionState::Preparing,
            None => DivisionState::Waiting,
        };
        Some(Division {
            parallelism: division.parallelism,
            state,
            reason: observed.obstacle().to_owned(),
            prepared: prepared.count(),
            tasks: tasks.len(),
        })
    }
}

impl CheckpointSummary {
    pub fn of(checkpoint: &CompletedCheckpoint) -> CheckpointSummary {
        CheckpointSummary {
            epoch: checkpoint.checkpoint.0,
            generation: checkpoint.generation.0,
            kind: Kind::from(checkpoint.kind),
            completed_at: checkpoint.completed_at.to_string(),
            duration_ms: checkpoint.duration.0,
            delta_bytes: checkpoint.delta_bytes,
            state_bytes: checkpoint.state_bytes,
        }
    }
}

impl From<CheckpointKind> for Kind {
    fn from(kind: CheckpointKind) -> Kind {
        match kind {
            CheckpointKind::Periodic => Kind::Periodic,
            CheckpointKind::Stop => Kind::Stop,
            CheckpointKind::CutOver => Kind::CutOver,
            CheckpointKind::Drain => Kind::Drain,
        }
    }
}

/// The tasks of the generation that runs, or that ran last: where they run and what was last heard of them.
struct Tasks<'a> {
    generation: Generation,
    worker_of: BTreeMap<TaskId, u32>,
    observed: &'a Observed,
    row: &'a JobRow,
}

impl<'a> Tasks<'a> {
    fn of(row: &'a JobRow, observed: &'a Observed) -> Tasks<'a> {
        let deployed = row
            .deployment
            .iter()
            .flat_map(|deployment| &deployment.tasks);
        Tasks {
            generation: match row.deployment {
                Some(_) => row.generation,
                None => observed.generation(),
            },
            worker_of: deployed
                .map(|assignment| (assignment.task, assignment.worker.0))
                .collect(),
            observed,
            row,
        }
    }

    fn of_stage(&self, stage: &Stage) -> impl Iterator<Item = TaskId> + use<> {
        let id = stage.id;
        (0..stage.parallelism).map(move |index| TaskId { stage: id, index })
    }

    fn get(&self, task: TaskId) -> Option<&ObservedTask> {
        self.observed.task(self.generation, task)
    }

    fn all(&self) -> impl Iterator<Item = &ObservedTask> {
        self.row.graph.tasks().filter_map(|task| self.get(task))
    }

    fn rates_of<'s>(&self, stages: impl Iterator<Item = &'s Stage>) -> Rates {
        let mut total = Rates::default();
        for task in stages.flat_map(|stage| self.of_stage(stage)) {
            total += self.get(task).map(|task| task.rates).unwrap_or_default();
        }
        total
    }

    fn counts_of<'s>(&self, stages: impl Iterator<Item = &'s Stage>) -> TaskCounts {
        let tasks = stages.flat_map(|stage| self.of_stage(stage));
        tasks.fold(TaskCounts::default(), |sum, task| {
            sum.plus(self.counts(task))
        })
    }

    /// What a task has done since the job began.
    fn counts(&self, task: TaskId) -> TaskCounts {
        let of =
            |counts: &BTreeMap<TaskId, TaskCounts>| counts.get(&task).copied().unwrap_or_default();
        match self.get(task) {
            // Before the generation that was heard of ended, its counts were not in the base yet.
            Some(observed) if self.generation == self.row.generation => {
                let heard = of(&self.row.counts_before).plus(observed.metrics.counts());
                // A checkpoint may be complete before its task's next heartbeat.
                heard.max(of(&self.row.counts))
            }
            // Nothing runs, or nothing has been heard of it.
            Some(_) | None => of(&self.row.counts),
        }
    }

    /// The slowest task's; none if one has none.
    fn watermark_of<'s>(&self, stages: impl Iterator<Item = &'s Stage>) -> Option<Timestamp> {
        let tasks = stages.flat_map(|stage| self.of_stage(stage));
        let watermarks: Option<Vec<Timestamp>> = tasks
            .map(|task| self.get(task)?.metrics.watermark)
            .collect();
        watermarks?.into_iter().min()
    }

    fn describe(&self, stage: &Stage) -> StageDescription {
        let rates = self.rates_of([stage].into_iter());
        let tasks = || self.of_stage(stage).filter_map(|task| self.get(task));
        let busiest = tasks().map(|task| task.metrics.busy_permille).max();
        let most_blocked = tasks().map(|task| task.metrics.blocked_permille).max();
        StageDescription {
            id: stage.id.0,
            operators: operators_of(stage).map(str::to_owned).collect(),
            parallelism: stage.parallelism,
            rows_in_per_second: rates.rows_in,
            rows_out_per_second: rates.rows_out,
            watermark: self.watermark_of([stage].into_iter()).map(describe_time),
            busy_permille: busiest.unwrap_or(0),
            blocked_permille: most_blocked.unwrap_or(0),
            tasks: self
                .of_stage(stage)
                .map(|task| self.describe_task(task))
                .collect(),
        }
    }

    fn standbys_of(&self, task: TaskId) -> Vec<u32> {
        let deployment = self.row.deployment.as_ref();
        let standbys = deployment.and_then(|deployment| deployment.standbys.get(&task));
        standbys
            .into_iter()
            .flatten()
            .map(|worker| worker.0)
            .collect()
    }

    fn describe_task(&self, task: TaskId) -> TaskDescription {
        let observed = self.get(task);
        let counts = self.counts(task);
        let metrics = observed.map(|task| task.metrics).unwrap_or_default();
        let rates = observed.map(|task| task.rates).unwrap_or_default();
        TaskDescription {
            id: task.to_string(),
            worker: self.worker_of.get(&task).copied(),
            standbys: self.standbys_of(task),
            state: observed.map(|task| state_name(&task.state)),
            reason: observed.and_then(|task| match &task.state {
                TaskState::Failed { reason, .. } => Some(reason.clone()),
                TaskState::Deploying
                | TaskState::Running
                | TaskState::Exhausted
                | TaskState::Finished => None,
            }),
            rows_in: counts.rows_in,
            rows_out: counts.rows_out,
            rows_in_per_second: rates.rows_in,
            rows_out_per_second: rates.rows_out,
            lag_records: metrics.lag_records,
            watermark: metrics.watermark.map(describe_time),
            state_keys: metrics.state_keys,
            state_memory_bytes: metrics.state_memory_bytes,
            state_bytes: metrics.state_bytes,
            busy_permille: metrics.busy_permille,
            blocked_permille: metrics.blocked_permille,
        }
    }
}

/// The names of what a stage is made of, in the order rows meet them.
pub fn operators_of(stage: &Stage) -> impl Iterator<Item = &str> {
    let source = stage.source.iter().map(|source| source.name.as_str());
    let operators = stage.operators.iter().map(|operator| operator.spec.id());
    let sink = stage.sink.iter().map(|sink| sink.name.as_str());
    source.chain(operators).chain(sink)
}

/// The slots a job uses.
pub fn parallelism(graph: &TaskGraph) -> u32 {
    let stages = graph.stages.iter();
    stages.map(|stage| stage.parallelism).max().unwrap_or(0)
}

fn describe_time(timestamp: Timestamp) -> String {
    match timestamp {
        Timestamp::MAX => "end of time".to_owned(),
        Timestamp::MIN => "beginning of time".to_owned(),
        timestamp => timestamp.to_string(),
    }
}

fn state_name(state: &TaskState) -> &'static str {
    match state {
        TaskState::Deploying => "deploying",
        TaskState::Running => "running",
        TaskState::Exhausted => "exhausted",
        TaskState::Finished => "finished",
        TaskState::Failed { .. } => "failed",
    }
}
