//! What the metadata says of a job, and what may be proposed to change it: the job machine's view.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{CheckpointId, Generation, JobId, MetadataVersion, NodeId, TaskId, WorkerEpoch};
use common::protocol::job::JobState;
use common::protocol::task::{Standbys, TaskAssignment};

use crate::metadata::ClusterMetadata;
use crate::metadata::command::Command;
use crate::metadata::jobs::{Desired, JobRow};
use crate::placement::tasks::slots_used;

/// What the metadata says of the job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    pub state: JobState,
    pub reason: String,
    /// A job that comes to a terminal state is one that is wanted `Stopped`, until its user resumes it.
    pub desired: Desired,
    pub generation: Generation,
    /// The tasks of this generation; `None`: nothing of it runs.
    pub running: Option<RunningTasks>,
    /// In this generation the user has wanted the job to stop: its sources may have stopped reading, and
    /// only a new generation makes them read again.
    pub halting: bool,
    pub completed: Option<CheckpointId>,
    /// Who has the state of `completed`, where it ran first.
    pub holders: BTreeMap<TaskId, Vec<NodeId>>,
    /// The state of `completed` is in a savepoint, and workers fetch it from there.
    pub restoring: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunningTasks {
    /// The command that started them.
    pub version: MetadataVersion,
    pub worker_of: BTreeMap<TaskId, NodeId>,
    pub standbys: Standbys,
}

/// An active worker, as this job sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkerRoom {
    pub epoch: WorkerEpoch,
    /// It is to be emptied.
    pub draining: bool,
    pub rack: Option<String>,
    /// Slots that no other job uses.
    pub free_slots: u32,
    /// The custom operators it carries.
    pub operators: BTreeSet<String>,
}

pub type Workers = BTreeMap<NodeId, WorkerRoom>;

/// A change of the facts, valid only while `generation` is the current one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Proposal {
    /// The next generation, from the last completed checkpoint.
    Start {
        generation: Generation,
        tasks: Vec<TaskAssignment>,
        standbys: Standbys,
        /// `Deploying` or `Recovering`.
        state: JobState,
        reason: String,
        /// What ended the generation before, if it failed.
        failure: Option<String>,
    },
    /// This generation ends, and nothing of the job runs.
    Halt {
        generation: Generation,
        state: JobState,
        reason: String,
        failure: Option<String>,
    },
    /// Every task of this generation runs.
    Run { generation: Generation },
    /// These stand by for its tasks from now on.
    StandBy {
        generation: Generation,
        standbys: Standbys,
    },
}

impl Facts {
    pub fn of(row: &JobRow) -> Facts {
        Facts {
            state: row.state,
            reason: row.reason.clone(),
            desired: row.desired,
            generation: row.generation,
            running: row.deployment.as_ref().map(|deployment| RunningTasks {
                version: deployment.version,
                worker_of: deployment
                    .tasks
                    .iter()
                    .map(|assignment| (assignment.task, assignment.worker))
                    .collect(),
                standbys: deployment.standbys.clone(),
            }),
            halting: row.halting,
            completed: row.completed,
            holders: row.holders.clone(),
            restoring: row.restored.is_some(),
        }
    }
}

impl Proposal {
    /// `restore`: the last completed checkpoint; the metadata refuses any other.
    pub fn into_command(self, job: JobId, restore: Option<CheckpointId>) -> Command {
        match self {
            Proposal::Start {
                generation,
                tasks,
                standbys,
                state,
                reason,
                failure,
            } => Command::StartGeneration {
                job,
                generation,
                restore,
                tasks,
                standbys,
                state,
                reason,
                failure,
            },
            Proposal::Halt {
                generation,
                state,
                reason,
                failure,
            } => Command::EndGeneration {
                job,
                generation,
                state,
                reason,
                failure,
            },
            Proposal::Run { generation } => Command::GenerationRuns { job, generation },
            Proposal::StandBy {
                generation,
                standbys,
            } => Command::AssignStandbys {
                job,
                generation,
                standbys,
            },
        }
    }
}

/// The slots each job uses on each worker.
pub fn slots_by_job(metadata: &ClusterMetadata) -> BTreeMap<JobId, BTreeMap<NodeId, u32>> {
    let deployments = metadata
        .jobs_by_name()
        .filter_map(|row| row.deployment.as_ref());
    deployments
        .map(|deployment| {
            let tasks = deployment.tasks.iter();
            let used = slots_used(tasks.map(|assignment| (assignment.task, assignment.worker)));
            (deployment.job, used.collect())
        })
        .collect()
}

/// The active workers and what a job may use of them: what all others leave.
pub fn workers_for(
    metadata: &ClusterMetadata,
    slots_by_job: &BTreeMap<JobId, BTreeMap<NodeId, u32>>,
    job: JobId,
) -> Workers {
    let used_by_others = |worker: NodeId| -> u32 {
        let others = slots_by_job.iter().filter(|(other, _)| **other != job);
        others.filter_map(|(_, used)| used.get(&worker)).sum()
    };
    metadata
        .active_workers()
        .map(|row| {
            let room = WorkerRoom {
                epoch: row.epoch,
                draining: row.draining,
                rack: row.rack.clone(),
                free_slots: row.slots.saturating_sub(used_by_others(row.id)),
                operators: row.operators.iter().cloned().collect(),
            };
            (row.id, room)
        })
        .collect()
}
