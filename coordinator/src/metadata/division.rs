//! How jobs come to be divided into tasks in another way: what is wanted, what is prepared, and the change itself.
//! A job that is changed is divided anew, too, into the tasks of what it is to be.
//!
//! A division that is wanted stays so over generations, until it is taken or given up. What workers prepare for it
//! belongs to one generation: it is made of what that one seals.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use common::ids::{Generation, JobId, MetadataVersion, NodeId, StageId, TaskId};
use common::plan::JobGraph;
use common::plan::task_graph::{Stage, TaskGraph};
use common::protocol::checkpoint::TaskCounts;
use common::protocol::job::CreateJob;
use common::protocol::task::{Deployment, NextDivision, Standbys};
use common::time::{Span, Timestamp};

use super::ClusterMetadata;
use super::changes::RowKey;
use super::checkpoints::Positions;
use super::command::{Outcome, Rejection};
use super::jobs::{JobRow, check_standbys};

/// Another division of a job into tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedDivision {
    pub parallelism: u32,
    /// The ids of its stages are of no earlier division of the job.
    pub graph: Arc<TaskGraph>,
    /// Where tasks go that are to run elsewhere than what they take over.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub places: BTreeMap<TaskId, NodeId>,
    /// What the job is from then on; `None`: what it was.
    #[serde(default)]
    pub update: Option<Arc<JobUpdate>>,
}

/// What a job is changed to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobUpdate {
    /// The first stage of what the job was when this was planned: what becomes of state was said of that.
    pub of: Option<StageId>,
    pub spec: CreateJob,
    pub job_graph: JobGraph,
    pub checkpoint_interval: Span,
}

/// What a new generation does about the division that is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dividing {
    /// It begins as the one before; the other division is prepared anew.
    #[default]
    AsBefore,
    /// It begins with it.
    Anew,
    /// It begins as the one before, and the other division is wanted no more.
    GivenUp,
}

impl ClusterMetadata {
    /// `first_stage`: the lowest id of a stage that the new division was planned with. `None`: the job stays as it
    /// is.
    pub(super) fn divide(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        first_stage: StageId,
        division: Option<&PlannedDivision>,
    ) -> Result<Outcome, Rejection> {
        let outcome = self.change_job(index, at, job, |row| {
            if row.is_over() {
                let (job, state) = (row.name.clone(), row.state);
                return Err(Rejection::JobOver { job, state });
            }
            let update = division.and_then(|division| division.update.as_ref());
            let is_of_another = update.is_some_and(|update| update.of != row.first_stage());
            if first_stage != row.next_stage() || is_of_another {
                return Err(Rejection::DividedMeanwhile {
                    job: row.name.clone(),
                });
            }
            if let Some(division) = division {
                row.stages_used = after(&division.graph);
            }
            row.division = division.cloned();
            let stands_still = row.deployment.as_ref().is_some_and(|of| of.still);
            row.halting |= stands_still && division.is_none();
            // Sources that have stopped reading go on in a new generation only.
            row.halting |= row.cutting_over;
            if let Some(deployment) = row.deployment.as_ref().filter(|of| of.next.is_some()) {
                row.deployment = Some(Arc::new(Deployment {
                    next: None,
                    ..Deployment::clone(deployment)
                }));
            }
            row.cutting_over = false;
            Ok(Outcome::Done)
        })?;
        self.changes.touch(index, RowKey::Deployment(job));
        Ok(outcome)
    }

    /// `standbys`: of the tasks that run, so that their state is where the next ones are prepared.
    pub(super) fn prepare_division(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        generation: Generation,
        next: &Arc<NextDivision>,
        standbys: &Standbys,
    ) -> Result<Outcome, Rejection> {
        let outcome = self.change_job(index, at, job, |row| {
            row.check_generation(generation)?;
            let deployment = row.deployment.as_ref();
            let deployment = deployment.ok_or(Rejection::NotRunning { job })?;
            let wanted = row.division.as_ref();
            let planned = wanted.is_some_and(|wanted| *wanted.graph == next.graph);
            let tasks = next.tasks.iter().map(|assignment| assignment.task);
            if !planned || row.cutting_over || !tasks.eq(next.graph.tasks()) {
                return Err(Rejection::WrongTasks { job });
            }
            check_standbys(job, &next.tasks, &next.standbys)?;
            check_standbys(job, &deployment.tasks, standbys)?;
            row.deployment = Some(Arc::new(Deployment {
                next: Some(Arc::clone(next)),
                standbys: standbys.clone(),
                ..Deployment::clone(deployment)
            }));
            Ok(Outcome::Done)
        })?;
        self.changes.touch(index, RowKey::Deployment(job));
        Ok(outcome)
    }

    pub(super) fn cut_over(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        generation: Generation,
    ) -> Result<Outcome, Rejection> {
        self.change_job(index, at, job, |row| {
            row.check_generation(generation)?;
            let deployment = row.deployment.as_ref();
            let deployment = deployment.ok_or(Rejection::NotRunning { job })?;
            // With no other division wanted it goes on in this one, elsewhere.
            if row.division.is_some() && deployment.next.is_none() {
                return Err(Rejection::NotPrepared { job });
            }
            row.cutting_over = true;
            Ok(Outcome::Done)
        })
    }
}

impl JobRow {
    /// Tasks of it are to run elsewhere, as many as before.
    pub fn moves(&self) -> bool {
        let division = self.division.as_ref();
        division.is_some_and(|division| !division.places.is_empty())
    }

    /// The lowest id that no stage of any division of the job has had.
    pub fn next_stage(&self) -> StageId {
        StageId(self.stages_used.max(after(&self.graph)))
    }

    /// Tells its divisions apart: none has a stage of another.
    pub fn first_stage(&self) -> Option<StageId> {
        self.graph.stages.first().map(|stage| stage.id)
    }

    /// Begins with the division that is wanted.
    pub(super) fn take_division(&mut self) -> Result<(), Rejection> {
        let job = self.id;
        let division = self.division.take();
        let PlannedDivision {
            parallelism,
            graph,
            update,
            ..
        } = division.ok_or(Rejection::NotPrepared { job })?;
        if self.completed.is_some() {
            let with_state = graph.stages.iter().filter(|stage| stage.has_state());
            let mut tasks = with_state.flat_map(Stage::tasks);
            if !tasks.all(|task| self.holders.contains_key(&task)) {
                return Err(Rejection::NotPrepared { job });
            }
        }
        self.divided_at = self.completed;
        self.counts = divided(&self.counts, &self.graph, &graph);
        for known in &mut self.checkpoints {
            let positions = known.positions.as_ref();
            let divided =
                positions.map(|positions| divided_positions(positions, &self.graph, &graph));
            known.positions = divided.map(Arc::new);
        }
        self.holders
            .retain(|task, _| graph.find(task.stage).is_some());
        let mut spec = (*self.spec).clone();
        if let Some(update) = update {
            let update = Arc::unwrap_or_clone(update);
            spec = update.spec;
            self.job_graph = Arc::new(update.job_graph);
            self.checkpoint_interval = update.checkpoint_interval;
        }
        spec.parallelism = Some(parallelism);
        self.spec = Arc::new(spec);
        self.graph = graph;
        Ok(())
    }

    /// Whether the next generation is to read nothing. A job that was at rest when it was changed is not what it was
    /// before any more: it may have failed because of that.
    pub(super) fn is_to_stand_still(&self) -> bool {
        let updates = self.division.as_ref().is_some_and(|of| of.update.is_some());
        let rested = self.deployment.as_ref().is_none_or(|of| of.still);
        updates && rested && self.completed.is_some()
    }

    /// Nothing of a division that was prepared is of use in another generation.
    pub(super) fn leave_division(&mut self) {
        let graph = Arc::clone(&self.graph);
        self.holders
            .retain(|task, _| graph.find(task.stage).is_some());
    }
}

/// What tasks have done so far, as if those of another division had done it: what came into a stage is with the one
/// that its first part is in now, and what left it with that of its last part.
fn divided(
    counts: &BTreeMap<TaskId, TaskCounts>,
    before: &TaskGraph,
    after: &TaskGraph,
) -> BTreeMap<TaskId, TaskCounts> {
    let mut divided: BTreeMap<TaskId, TaskCounts> = BTreeMap::new();
    for (task, counts) in counts {
        let Some(stage) = before.find(task.stage) else {
            continue;
        };
        let (nodes, mut add) = (stage.nodes(), |node: Option<&&str>, counts: TaskCounts| {
            let has_it = |stage: &&Stage| node.is_some_and(|node| stage.nodes().contains(node));
            if let Some(stage) = after.stages.iter().find(has_it) {
                let task = TaskId {
                    stage: stage.id,
                    index: task.index % stage.parallelism,
                };
                let sum = divided.entry(task).or_default();
                *sum = sum.plus(counts);
            }
        });
        let out = TaskCounts {
            rows_out: counts.rows_out,
            ..TaskCounts::default()
        };
        let others = TaskCounts {
            rows_out: 0,
            ..*counts
        };
        add(nodes.first(), others);
        add(nodes.last(), out);
    }
    divided
}

/// How far sources had been read, as if one task of the new division had read all of a source.
fn divided_positions(positions: &Positions, before: &TaskGraph, after: &TaskGraph) -> Positions {
    let source = |stage: &Stage| stage.source.as_ref().map(|source| source.name.clone());
    let mut divided = Positions::new();
    for (task, splits) in positions {
        let name = before.find(task.stage).and_then(source);
        let mut stages = after.stages.iter();
        if let Some(stage) = stages.find(|stage| name.is_some() && source(stage) == name) {
            let (stage, index) = (stage.id, 0);
            let of_source = divided.entry(TaskId { stage, index }).or_default();
            of_source.extend(splits.clone());
        }
    }
    divided
}

fn after(graph: &TaskGraph) -> u16 {
    let last = graph.stages.iter().map(|stage| stage.id.0).max();
    last.map_or(0, |last| last.saturating_add(1))
}
