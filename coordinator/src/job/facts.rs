//! What the metadata says of a job, and what may be proposed to change it: the job machine's view.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::ids::{CheckpointId, Generation, JobId, MetadataVersion, NodeId, TaskId, WorkerEpoch};
use common::plan::redistribution;
use common::plan::task_graph::TaskGraph;
use common::protocol::job::JobState;
use common::protocol::task::{NextDivision, Standbys, TaskAssignment};

use crate::metadata::ClusterMetadata;
use crate::metadata::command::Command;
use crate::metadata::division::{Dividing, PlannedDivision};
use crate::metadata::jobs::{Desired, JobRow};
use crate::placement::tasks::{JobShape, slots_used};

/// What the metadata says of the job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    pub shape: JobShape,
    /// Another division into tasks that is wanted.
    pub wanted: Option<Wanted>,
    pub state: JobState,
    pub reason: String,
    /// A job that comes to a terminal state is one that is wanted `Stopped`, until its user resumes it.
    pub desired: Desired,
    pub generation: Generation,
    /// The tasks of this generation; `None`: nothing of it runs.
    pub running: Option<RunningTasks>,
    /// This generation was told to end in another way than is wanted now: its sources may have stopped reading, and
    /// only a new generation makes them read again, or its windows close.
    pub halting: bool,
    /// In this generation the last checkpoint before the job is divided anew may have begun, likewise.
    pub cutting_over: bool,
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
    /// Of the division that is wanted: where its tasks are prepared.
    pub next: Option<NextTasks>,
}

/// Another division of the job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    pub shape: JobShape,
    /// The job becomes another one with it.
    pub updates: bool,
    /// The tasks that each task's state is made of.
    pub predecessors: BTreeMap<TaskId, BTreeSet<TaskId>>,
    /// Where tasks go that are to run elsewhere than what they take over.
    pub places: BTreeMap<TaskId, NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NextTasks {
    pub tasks: Vec<TaskAssignment>,
    pub standbys: Standbys,
}

/// An active worker, as this job sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkerRoom {
    pub epoch: WorkerEpoch,
    /// It is to be emptied, or its sessions end too often: tasks go elsewhere where they can.
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
        dividing: Dividing,
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
    /// The tasks of the division that is wanted are prepared there from now on.
    Prepare {
        generation: Generation,
        next: NextTasks,
        standbys: Standbys,
    },
    /// What is prepared is taken at the next checkpoint.
    CutOver { generation: Generation },
}

impl Wanted {
    fn of(row: &JobRow) -> Option<Wanted> {
        let division = row.division.as_ref()?;
        let graph = &division.graph;
        let predecessors = graph.tasks().map(|task| {
            let shares = redistribution::shares(&row.graph, graph, task);
            (task, shares.into_iter().map(|share| share.of).collect())
        });
        Some(Wanted {
            shape: JobShape::of(graph),
            updates: division.update.is_some(),
            predecessors: predecessors.collect(),
            places: division.places.clone(),
        })
    }
}

impl NextTasks {
    /// Where the state of each is to be: where it is to run first.
    pub fn places(&self, shape: &JobShape) -> Standbys {
        let with_state = self
            .tasks
            .iter()
            .filter(|assignment| shape.has_state(assignment.task));
        let places = with_state.map(|TaskAssignment { task, worker }| {
            let standbys = self.standbys.get(task).into_iter().flatten();
            let places = std::iter::once(worker).chain(standbys);
            (*task, places.copied().collect())
        });
        places.collect()
    }
}

impl Facts {
    pub fn of(row: &JobRow) -> Facts {
        Facts {
            shape: JobShape::of(&row.graph),
            wanted: Wanted::of(row),
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
                next: deployment.next.as_ref().map(|next| NextTasks {
                    tasks: next.tasks.clone(),
                    standbys: next.standbys.clone(),
                }),
            }),
            halting: row.halting,
            cutting_over: row.cutting_over,
            completed: row.completed,
            holders: row.holders.clone(),
            restoring: row.restored.is_some(),
        }
    }
}

impl Proposal {
    /// `restore`: the last completed checkpoint; the metadata refuses any other. `division`: the one that is wanted,
    /// likewise.
    pub fn into_command(
        self,
        job: JobId,
        restore: Option<CheckpointId>,
        division: Option<&PlannedDivision>,
    ) -> Command {
        match self {
            Proposal::Start {
                generation,
                dividing,
                tasks,
                standbys,
                state,
                reason,
                failure,
            } => Command::StartGeneration {
                job,
                generation,
                restore,
                dividing,
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
            Proposal::Prepare {
                generation,
                next: NextTasks { tasks, standbys },
                standbys: of_running,
            } => Command::PrepareDivision {
                job,
                generation,
                next: Arc::new(NextDivision {
                    // Wanted no more, it is refused.
                    graph: division
                        .map(|wanted| TaskGraph::clone(&wanted.graph))
                        .unwrap_or_default(),
                    tasks,
                    standbys,
                }),
                standbys: of_running,
            },
            Proposal::CutOver { generation } => Command::CutOver { job, generation },
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
                draining: row.draining || row.quarantined,
                rack: row.rack.clone(),
                free_slots: row.slots.saturating_sub(used_by_others(row.id)),
                operators: row.operators.iter().cloned().collect(),
            };
            (row.id, room)
        })
        .collect()
}
