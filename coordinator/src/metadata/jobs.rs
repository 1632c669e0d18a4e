//! Deployed jobs: what their users want of them, where they stand, and where their tasks run.
//!
//! A generation is one attempt at running a job. When it ends, the last checkpoint completed up to then
//! is noted as its final one, and the job's generation counts on, so that every transaction of the old
//! generation is decided from that moment: it counts if its checkpoint is not above the final one.
//! The last transition of a job that is over does the same, so nothing of it stays undecided.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use common::ids::{CheckpointId, Generation, JobId, JobName, MetadataVersion, NodeId, TaskId};
use common::plan::JobGraph;
use common::plan::task_graph::TaskGraph;
use common::protocol::checkpoint::TaskCounts;
use common::protocol::job::{CreateJob, JobState};
use common::protocol::metadata::{JobImage, TopicHolds};
use common::protocol::savepoint::RestoredFrom;
use common::protocol::task::{Deployment, Standbys, TaskAssignment};
use common::time::{Span, Timestamp};

use super::ClusterMetadata;
use super::changes::RowKey;
use super::checkpoints::{CompletedCheckpoint, no_holds};
use super::command::{Outcome, Rejection};
use super::division::{Dividing, PlannedDivision};
use super::savepoints::{Restored, SavepointRow};
use crate::placement::tasks::slots_used;

/// What the user wants of a job. The last one who said so wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    Running,
    /// Stopped at a last checkpoint, to be resumed.
    Paused,
    /// Stopped at a last checkpoint, for good unless it is resumed.
    Stopped,
    /// Sources end where they are, every window closes, and the job is finished.
    Drained,
    /// Stopped at once.
    Cancelled,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRow {
    pub id: JobId,
    pub name: JobName,
    /// What was deployed, and what it was planned to be.
    pub spec: Arc<CreateJob>,
    pub job_graph: Arc<JobGraph>,
    pub graph: Arc<TaskGraph>,
    pub checkpoint_interval: Span,
    pub desired: Desired,
    pub state: JobState,
    /// Why it is in this state; empty if there is nothing to say.
    pub reason: String,
    pub generation: Generation,
    /// The tasks of this generation; `None`: nothing of it runs.
    pub deployment: Option<Arc<Deployment>>,
    /// This generation was told to end in another way than is wanted now: its sources may have stopped reading, and
    /// only a new generation makes them read again, or its windows close.
    pub halting: bool,
    /// Another division into tasks that is wanted.
    #[serde(default)]
    pub division: Option<PlannedDivision>,
    /// Below this are the ids of the stages of all divisions there have been.
    #[serde(default)]
    pub stages_used: u16,
    /// Of earlier checkpoints the state is not as it is divided now.
    #[serde(default)]
    pub divided_at: Option<CheckpointId>,
    /// In this generation the last checkpoint before the job is divided in another way may have begun.
    #[serde(default)]
    pub cutting_over: bool,
    /// The last completed checkpoint, and which workers have the state of each task at it, the one that
    /// ran it first.
    pub completed: Option<CheckpointId>,
    pub holders: BTreeMap<TaskId, Vec<NodeId>>,
    /// The state of `completed` is in this savepoint, and no worker is known to have it.
    #[serde(default)]
    pub restored: Option<RestoredFrom>,
    /// No checkpoint id up to this one is given out again.
    pub reserved: CheckpointId,
    /// For every generation that has ended: the last checkpoint completed up to then.
    pub finals: BTreeMap<Generation, Option<CheckpointId>>,
    /// What may still be read of topics; not for every checkpoint anew.
    #[serde(default)]
    pub holds: Option<Arc<TopicHolds>>,
    /// The latest completed checkpoints, the last one last.
    pub checkpoints: VecDeque<CompletedCheckpoint>,
    /// The latest savepoints that were asked for, the last one last.
    #[serde(default)]
    pub savepoints: VecDeque<SavepointRow>,
    /// What each task had done up to the last completed checkpoint, since the job began, and up to the one
    /// that this generation began with.
    #[serde(default)]
    pub counts: BTreeMap<TaskId, TaskCounts>,
    #[serde(default)]
    pub counts_before: BTreeMap<TaskId, TaskCounts>,
    /// The latest failures, the last one last.
    pub failures: VecDeque<GenerationFailed>,
    /// Deleted: kept only for the transactions that partitions may not have decided yet.
    pub deleted: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationFailed {
    pub generation: Generation,
    pub at: Timestamp,
    pub reason: String,
}

/// How many failures a job's history shows.
const FAILURE_HISTORY: usize = 100;
/// A generation is 16 bits of an internal producer id.
const LAST_GENERATION: Generation = Generation(u16::MAX as u32);

impl JobRow {
    pub fn image(&self) -> JobImage {
        JobImage {
            id: self.id,
            name: self.name.clone(),
            generation: self.generation,
            completed: self.completed,
            finals: self.finals.clone(),
            running: self.deployment.is_some(),
            deleted: self.deleted,
        }
    }

    fn end_generation(&mut self, at: Timestamp, failure: Option<&String>) {
        if let Some(reason) = failure {
            self.failures.push_back(GenerationFailed {
                generation: self.generation,
                at,
                reason: reason.clone(),
            });
            if self.failures.len() > FAILURE_HISTORY {
                self.failures.pop_front();
            }
        }
        self.finals.insert(self.generation, self.completed);
        self.counts_before.clone_from(&self.counts);
        self.generation = self.generation.next();
        self.deployment = None;
        self.halting = false;
        self.cutting_over = false;
    }

    /// Nothing of it ever runs again.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, JobState::Finished | JobState::Cancelled)
    }

    pub(super) fn become_state(&mut self, state: JobState, reason: &str) -> Result<(), Rejection> {
        if !may_follow(self.state, state) {
            return Err(Rejection::IllegalTransition {
                job: self.id,
                from: self.state,
                to: state,
            });
        }
        self.state = state;
        self.reason = reason.to_owned();
        Ok(())
    }
}

/// Whether a job in state `from` may come to state `to`: every transition there is.
pub fn may_follow(from: JobState, to: JobState) -> bool {
    use JobState::*;
    match from {
        Created => matches!(
            to,
            Waiting | Deploying | Paused | Stopped | Failed | Cancelled
        ),
        Waiting => matches!(
            to,
            Waiting | Deploying | Recovering | Paused | Stopped | Failed | Cancelled
        ),
        Deploying => matches!(
            to,
            Running | Deploying | Recovering | Waiting | Paused | Stopped | Failed | Cancelled
        ),
        Running => matches!(
            to,
            Recovering | Deploying | Waiting | Paused | Stopped | Finished | Failed | Cancelled
        ),
        Recovering => matches!(
            to,
            Running | Deploying | Recovering | Waiting | Paused | Stopped | Failed | Cancelled
        ),
        Paused => matches!(to, Deploying | Waiting | Stopped | Failed | Cancelled),
        Stopped | Failed => matches!(to, Deploying | Waiting),
        Finished | Cancelled => false,
    }
}

impl ClusterMetadata {
    /// The job, also if it was deleted.
    pub fn job(&self, id: JobId) -> Option<&Arc<JobRow>> {
        self.jobs.get(&id)
    }

    pub fn job_named(&self, name: &JobName) -> Option<&Arc<JobRow>> {
        self.jobs.get(self.job_names.get(name)?)
    }

    /// In the order of their names, without the deleted ones.
    pub fn jobs_by_name(&self) -> impl Iterator<Item = &Arc<JobRow>> {
        self.job_names.values().map(|id| &self.jobs[id])
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "they are the fields of one command"
    )]
    pub(super) fn create_job(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        spec: &Arc<CreateJob>,
        job_graph: &Arc<JobGraph>,
        graph: &Arc<TaskGraph>,
        checkpoint_interval: Span,
        restored: Option<&Restored>,
    ) -> Result<Outcome, Rejection> {
        if self.job_names.contains_key(&spec.name) {
            return Err(Rejection::JobExists(spec.name.clone()));
        }
        let id = JobId(self.next_job);
        self.next_job += 1;
        self.job_names.insert(spec.name.clone(), id);
        let mut row = JobRow {
            id,
            name: spec.name.clone(),
            spec: Arc::clone(spec),
            job_graph: Arc::clone(job_graph),
            graph: Arc::clone(graph),
            checkpoint_interval,
            desired: Desired::Running,
            state: JobState::Created,
            reason: String::new(),
            generation: Generation(0),
            deployment: None,
            halting: false,
            division: None,
            stages_used: 0,
            divided_at: None,
            cutting_over: false,
            completed: None,
            holders: BTreeMap::new(),
            restored: None,
            reserved: CheckpointId(0),
            finals: BTreeMap::new(),
            holds: None,
            checkpoints: VecDeque::new(),
            savepoints: VecDeque::new(),
            counts: BTreeMap::new(),
            counts_before: BTreeMap::new(),
            failures: VecDeque::new(),
            deleted: false,
            created_at: at,
            updated_at: at,
        };
        if let Some(restored) = restored {
            row.begin_with(at, restored, restored.from.checkpoint);
            self.changes.touch(index, RowKey::Holds(id));
        }
        self.jobs.insert(id, Arc::new(row));
        self.changes.touch(index, RowKey::Job(id));
        Ok(Outcome::JobCreated(id))
    }

    pub(super) fn set_desired(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        desired: Desired,
    ) -> Result<Outcome, Rejection> {
        self.change_job(index, at, job, |row| {
            if row.is_over() {
                let state = row.state;
                let job = row.name.clone();
                return Err(Rejection::JobOver { job, state });
            }
            // A generation that was told to end does not become one that goes on, or that ends in another way.
            let was_told = row.desired != Desired::Running && row.desired != desired;
            row.halting |= row.deployment.is_some() && was_told;
            row.desired = desired;
            Ok(Outcome::Done)
        })
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "they are the fields of one command"
    )]
    pub(super) fn start_generation(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        generation: Generation,
        restore: Option<CheckpointId>,
        dividing: Dividing,
        tasks: &[TaskAssignment],
        standbys: &Standbys,
        (state, reason): (JobState, &str),
        failure: Option<&String>,
    ) -> Result<Outcome, Rejection> {
        self.check_room(job, tasks)?;
        let outcome = self.change_job(index, at, job, |row| {
            row.check_generation(generation)?;
            let completed = row.completed;
            if restore != completed {
                return Err(Rejection::WrongRestore {
                    job,
                    restore,
                    completed,
                });
            }
            match dividing {
                Dividing::Anew => row.take_division()?,
                Dividing::AsBefore => row.leave_division(),
                Dividing::GivenUp => {
                    row.division = None;
                    row.leave_division();
                }
            }
            if !tasks.iter().map(|t| t.task).eq(row.graph.tasks()) {
                return Err(Rejection::WrongTasks { job });
            }
            check_standbys(job, tasks, standbys)?;
            if row.generation >= LAST_GENERATION {
                return Err(Rejection::GenerationsExhausted { job });
            }
            row.become_state(state, reason)?;
            let still = row.is_to_stand_still();
            row.end_generation(at, failure);
            row.deployment = Some(Arc::new(Deployment {
                job,
                name: row.name.clone(),
                generation: row.generation,
                version: index,
                restore,
                savepoint: row.restored.clone(),
                graph: TaskGraph::clone(&row.graph),
                tasks: tasks.to_vec(),
                standbys: standbys.clone(),
                next: None,
                still,
                checkpoint_interval: row.checkpoint_interval,
            }));
            Ok(Outcome::GenerationStarted(row.generation))
        })?;
        self.changes.touch(index, RowKey::Deployment(job));
        Ok(outcome)
    }

    pub(super) fn assign_standbys(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        generation: Generation,
        standbys: &Standbys,
    ) -> Result<Outcome, Rejection> {
        let outcome = self.change_job(index, at, job, |row| {
            row.check_generation(generation)?;
            let deployment = row.deployment.as_ref();
            let deployment = deployment.ok_or(Rejection::NotRunning { job })?;
            check_standbys(job, &deployment.tasks, standbys)?;
            row.deployment = Some(Arc::new(Deployment {
                standbys: standbys.clone(),
                ..Deployment::clone(deployment)
            }));
            Ok(Outcome::Done)
        })?;
        self.changes.touch(index, RowKey::Deployment(job));
        Ok(outcome)
    }

    /// Jobs are placed independently of each other: two may have counted on the same slots, and a worker
    /// may have gone since.
    fn check_room(&self, job: JobId, tasks: &[TaskAssignment]) -> Result<(), Rejection> {
        let on_workers = |tasks: &[TaskAssignment]| -> BTreeMap<NodeId, u32> {
            slots_used(tasks.iter().map(|task| (task.task, task.worker))).collect()
        };
        let needed = on_workers(tasks);
        let mut free: BTreeMap<NodeId, u32> = self
            .active_workers()
            .map(|worker| (worker.id, worker.slots))
            .collect();
        let others = self.jobs.values().filter(|row| row.id != job);
        for deployment in others.filter_map(|row| row.deployment.as_ref()) {
            for (worker, used) in on_workers(&deployment.tasks) {
                if let Some(free) = free.get_mut(&worker) {
                    *free = free.saturating_sub(used);
                }
            }
        }
        match needed
            .into_iter()
            .find(|(worker, needed)| free.get(worker).is_none_or(|free| needed > free))
        {
            Some((worker, _)) => Err(Rejection::NoRoom { job, worker }),
            None => Ok(()),
        }
    }

    pub(super) fn generation_runs(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        generation: Generation,
    ) -> Result<Outcome, Rejection> {
        self.change_job(index, at, job, |row| {
            row.check_running(generation)?;
            row.become_state(JobState::Running, "")?;
            Ok(Outcome::Done)
        })
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "they are the fields of one command"
    )]
    pub(super) fn end_generation(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        generation: Generation,
        state: JobState,
        reason: &str,
        failure: Option<&String>,
    ) -> Result<Outcome, Rejection> {
        let outcome = self.change_job(index, at, job, |row| {
            row.check_generation(generation)?;
            row.become_state(state, reason)?;
            // A job that waits for something else runs nothing as before: its generation goes on.
            if row.deployment.is_some() || failure.is_some() || state.is_terminal() {
                row.end_generation(at, failure);
            }
            if state.is_terminal() {
                row.desired = Desired::Stopped;
                row.holds = row.holds.as_ref().map(|_| Arc::new(no_holds(job, at)));
            }
            Ok(Outcome::Done)
        })?;
        self.changes.touch(index, RowKey::Deployment(job));
        self.changes.touch(index, RowKey::Holds(job));
        Ok(outcome)
    }

    pub(super) fn delete_job(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
    ) -> Result<Outcome, Rejection> {
        let outcome = self.change_job(index, at, job, |row| {
            if !row.state.is_terminal() {
                let state = row.state;
                let job = row.name.clone();
                return Err(Rejection::JobAlive { job, state });
            }
            row.deleted = true;
            // Only what decides transactions is kept; the rest may be large.
            row.job_graph = Arc::default();
            row.graph = Arc::default();
            row.spec = Arc::new(CreateJob {
                sql: None,
                graph: None,
                ..CreateJob::clone(&row.spec)
            });
            row.holders.clear();
            row.restored = None;
            row.checkpoints.clear();
            row.savepoints.clear();
            row.failures.clear();
            Ok(Outcome::Done)
        })?;
        if let Some(row) = self.jobs.get(&job) {
            self.job_names.remove(&row.name);
        }
        Ok(outcome)
    }

    /// Changes a job that is not deleted, or leaves it as it is.
    pub(super) fn change_job(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        job: JobId,
        change: impl FnOnce(&mut JobRow) -> Result<Outcome, Rejection>,
    ) -> Result<Outcome, Rejection> {
        let row = self
            .jobs
            .get_mut(&job)
            .filter(|row| !row.deleted)
            .ok_or(Rejection::UnknownJob(job))?;
        let mut changed = JobRow::clone(row);
        let outcome = change(&mut changed)?;
        changed.updated_at = at;
        *row = Arc::new(changed);
        self.changes.touch(index, RowKey::Job(job));
        Ok(outcome)
    }
}

/// A copy beside the original would be lost with it.
pub(super) fn check_standbys(
    job: JobId,
    tasks: &[TaskAssignment],
    standbys: &Standbys,
) -> Result<(), Rejection> {
    let worker_of: BTreeMap<TaskId, NodeId> = tasks.iter().map(|a| (a.task, a.worker)).collect();
    let sound = standbys.iter().all(|(task, workers)| {
        let distinct: BTreeSet<&NodeId> = workers.iter().collect();
        let own = worker_of.get(task);
        own.is_some_and(|own| !workers.contains(own)) && distinct.len() == workers.len()
    });
    match sound {
        true => Ok(()),
        false => Err(Rejection::WrongTasks { job }),
    }
}

impl JobRow {
    pub(super) fn check_generation(&self, generation: Generation) -> Result<(), Rejection> {
        if generation == self.generation {
            Ok(())
        } else {
            Err(Rejection::FencedGeneration {
                job: self.id,
                generation,
                current: self.generation,
            })
        }
    }

    pub(super) fn check_running(&self, generation: Generation) -> Result<(), Rejection> {
        self.check_generation(generation)?;
        match self.deployment {
            Some(_) => Ok(()),
            None => Err(Rejection::NotRunning { job: self.id }),
        }
    }
}
