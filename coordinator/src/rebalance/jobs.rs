//! Which job's tasks or standbys move now: one job at a time, and only of one that is well.
//!
//! Tasks move as in a rescaling to as many tasks: their state is made where they are to run while the job goes on, and
//! one checkpoint is the change. Standbys are chosen anew with that, so tasks come first. A standby alone moves
//! without the job's noticing. A job that was moved is left alone for a while, and longer each time that it
//! did not come about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::ids::{Generation, JobId, NodeId, StageId, TaskId};
use common::plan::connector::{SinkSpec, SourceSpec};
use common::plan::redistribution::indivisible;
use common::plan::task_graph::{Stage, TaskGraph};
use common::protocol::job::JobState;
use common::protocol::task::Deployment;
use common::time::{Span, Tick};

use super::instances::{self, Slots};
use super::standbys;
use super::status::UnderWay;
use crate::job::describe::parallelism;
use crate::job::facts::slots_by_job;
use crate::job::numbering::numbered_from;
use crate::metadata::ClusterMetadata;
use crate::metadata::command::Command;
use crate::metadata::division::PlannedDivision;
use crate::metadata::jobs::{Desired, JobRow};
use crate::placement::racks::Racks;
use crate::placement::tasks::JobShape;

/// A job has run for so long since whatever happened to it last.
const SETTLED_AFTER: Span = Span::from_secs(5);
/// Instances of a job that move at once.
const INSTANCES_AT_ONCE: usize = 16;
/// What has not come about by then is taken back.
const PATIENCE: Span = Span::from_secs(600);
/// Between two moves of a job; twice as long after each one that did not come about.
const FIRST_PAUSE: Span = Span::from_secs(60);
const LONGEST_PAUSE: Span = Span::from_secs(3_600);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Jobs {
    /// Since when each job runs, in which generation.
    since: BTreeMap<JobId, (Generation, Tick)>,
    attempts: BTreeMap<JobId, Attempt>,
}

/// The last move of a job's tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attempt {
    /// Of the division that it was to come to.
    first_stage: StageId,
    begun: Tick,
    pause: Span,
    ended: Option<Tick>,
}

/// What is to be done, or why nothing is although things are uneven.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Move(Command),
    Wait(String),
    Nothing,
}

/// What all jobs have on workers, and the workers among which that is made even.
struct Cluster {
    slots: BTreeMap<NodeId, Slots>,
    standbys: BTreeMap<NodeId, usize>,
    carried: BTreeMap<NodeId, BTreeSet<String>>,
    racks: Racks,
}

impl Jobs {
    pub fn look(
        &mut self,
        now: Tick,
        metadata: &ClusterMetadata,
        workers: &BTreeSet<NodeId>,
    ) -> Step {
        self.follow(now, metadata);
        if let Some(row) = metadata.jobs_by_name().find(|row| row.moves()) {
            return self.go_on(now, row, metadata);
        }
        let cluster = Cluster::new(metadata, workers);
        let mut waits = None;
        for (row, deployment) in running(metadata) {
            let step = cluster.tasks_elsewhere(row, deployment);
            let Some(command) = step else { continue };
            match self.obstacle(now, row, deployment) {
                None => {
                    self.begin(now, row);
                    return Step::Move(command);
                }
                Some(obstacle) => waits = waits.or(Some(obstacle)),
            }
        }
        for (row, deployment) in running(metadata) {
            let step = cluster.standbys_elsewhere(row, deployment);
            let Some(command) = step else { continue };
            match self.unsettled(now, row, deployment) {
                None => return Step::Move(command),
                Some(obstacle) => waits = waits.or(Some(obstacle)),
            }
        }
        waits.map_or(Step::Nothing, Step::Wait)
    }

    fn follow(&mut self, now: Tick, metadata: &ClusterMetadata) {
        let runs = |row: &JobRow| row.state == JobState::Running && row.deployment.is_some();
        let rows = || metadata.jobs_by_name().map(|row| (row.id, row));
        let running: BTreeMap<JobId, Generation> = rows()
            .filter(|(_, row)| runs(row))
            .map(|(job, row)| (job, row.generation))
            .collect();
        self.since
            .retain(|job, (generation, _)| running.get(job) == Some(generation));
        for (job, generation) in running {
            self.since.entry(job).or_insert((generation, now));
        }
        let jobs: BTreeMap<JobId, _> = rows().collect();
        self.attempts.retain(|job, _| jobs.contains_key(job));
        for (job, attempt) in &mut self.attempts {
            if attempt.ended.is_some() || jobs[job].moves() {
                continue;
            }
            attempt.ended = Some(now);
            let stages = &jobs[job].graph.stages;
            let came_about = stages.iter().any(|stage| stage.id >= attempt.first_stage);
            attempt.pause = match came_about {
                true => FIRST_PAUSE,
                false => Span((attempt.pause.0 * 2).min(LONGEST_PAUSE.0)),
            };
        }
    }

    fn begin(&mut self, now: Tick, row: &JobRow) {
        let before = self.attempts.get(&row.id);
        self.attempts.insert(
            row.id,
            Attempt {
                first_stage: row.next_stage(),
                begun: now,
                pause: before.map_or(FIRST_PAUSE, |before| before.pause),
                ended: None,
            },
        );
    }

    /// A move that is under way goes on, or is taken back if it has lost its purpose.
    fn go_on(&mut self, now: Tick, row: &JobRow, metadata: &ClusterMetadata) -> Step {
        // One that was begun under another coordinator has its full time.
        let attempt = self.attempts.entry(row.id).or_insert(Attempt {
            first_stage: row.next_stage(),
            begun: now,
            pause: FIRST_PAUSE,
            ended: None,
        });
        let mut places = row.division.iter().flat_map(|of| of.places.values());
        let lost = places.any(|worker| {
            let mut open = metadata.open_workers();
            !open.any(|row| row.id == *worker && !row.quarantined)
        });
        let late = now.since(attempt.begun) >= PATIENCE;
        if row.cutting_over || !(lost || late) {
            return Step::Wait(String::new());
        }
        Step::Move(Command::Divide {
            job: row.id,
            first_stage: row.next_stage(),
            division: None,
        })
    }

    /// Why the tasks of a job do not move although they should.
    fn obstacle(&self, now: Tick, row: &JobRow, deployment: &Deployment) -> Option<String> {
        let name = &row.name;
        if let Some(operator) = indivisible(&row.graph).next() {
            return Some(format!(
                "job \"{name}\" stays where it is: the state of \"{operator}\" goes by no keys"
            ));
        }
        if on_its_disk(&row.graph) {
            return Some(format!(
                "job \"{name}\" stays where it is: it reads or writes files there"
            ));
        }
        let attempt = self.attempts.get(&row.id);
        let rests = attempt.is_some_and(|attempt| {
            let ended = attempt.ended.unwrap_or(attempt.begun);
            now < ended.plus(attempt.pause)
        });
        match rests {
            true => Some(format!("job \"{name}\" was moved a moment ago")),
            false => self.unsettled(now, row, deployment),
        }
    }

    /// Why nothing is asked of a job now.
    fn unsettled(&self, now: Tick, row: &JobRow, deployment: &Deployment) -> Option<String> {
        let name = &row.name;
        if row.division.is_some() {
            return Some(format!("job \"{name}\" is being changed"));
        }
        let since = self.since.get(&row.id).map(|(_, since)| *since);
        if since.is_none_or(|since| now.since(since) < SETTLED_AFTER) {
            return Some(format!(
                "job \"{name}\" has not run for {SETTLED_AFTER} yet"
            ));
        }
        if row.completed.is_none() || row.restored.is_some() {
            return Some(format!("job \"{name}\" has not completed a checkpoint yet"));
        }
        let is_there = |(task, standbys): (&TaskId, &Vec<NodeId>)| {
            let holders = row.holders.get(task);
            holders.is_some_and(|holders| standbys.iter().all(|worker| holders.contains(worker)))
        };
        if !deployment.standbys.iter().all(is_there) {
            return Some(format!(
                "the standbys of job \"{name}\" have not everything yet"
            ));
        }
        row.savepoint_under_way()
            .map(|_| format!("a savepoint of job \"{name}\" is being made"))
    }
}

impl Cluster {
    fn new(metadata: &ClusterMetadata, workers: &BTreeSet<NodeId>) -> Cluster {
        let rows = || metadata.workers().filter(|row| workers.contains(&row.id));
        let by_job = slots_by_job(metadata);
        let used = |worker: NodeId| by_job.values().filter_map(|used| used.get(&worker)).sum();
        let slots = rows().map(|row| {
            let (all, used) = (row.slots, used(row.id));
            (row.id, Slots { all, used })
        });
        let mut standbys: BTreeMap<NodeId, usize> = rows().map(|row| (row.id, 0)).collect();
        for (_, deployment) in running(metadata) {
            for worker in deployment.standbys.values().flatten() {
                if let Some(count) = standbys.get_mut(worker) {
                    *count += 1;
                }
            }
        }
        Cluster {
            slots: slots.collect(),
            standbys,
            carried: rows()
                .map(|row| (row.id, row.operators.iter().cloned().collect()))
                .collect(),
            racks: Racks::of(metadata.workers().map(|row| (row.id, row.rack.as_deref()))),
        }
    }

    fn tasks_elsewhere(&self, row: &JobRow, deployment: &Deployment) -> Option<Command> {
        let shape = JobShape::of(&deployment.graph);
        let moves = instances::moves(
            &instances::Problem {
                shape: &shape,
                worker_of: &worker_of(deployment),
                workers: &self.slots,
                carried: &self.carried,
            },
            INSTANCES_AT_ONCE,
        );
        if moves.is_empty() {
            return None;
        }
        // Without numbers for its stages it stays where it is.
        let graph = numbered_from(row.next_stage(), (*row.graph).clone()).ok()?;
        let stages = row.graph.stages.iter().zip(&graph.stages);
        let next: BTreeMap<StageId, StageId> =
            stages.map(|(before, next)| (before.id, next.id)).collect();
        let places = moves.into_iter().map(|(task, worker)| {
            let (stage, index) = (next[&task.stage], task.index);
            (TaskId { stage, index }, worker)
        });
        Some(Command::Divide {
            job: row.id,
            first_stage: row.next_stage(),
            division: Some(PlannedDivision {
                parallelism: parallelism(&row.graph),
                places: places.collect(),
                graph: Arc::new(graph),
                update: None,
            }),
        })
    }

    fn standbys_elsewhere(&self, row: &JobRow, deployment: &Deployment) -> Option<Command> {
        let shape = JobShape::of(&deployment.graph);
        let stages = shape.stages.iter().filter(|stage| !stage.custom.is_empty());
        let custom = stages.flat_map(|stage| {
            let tasks = (0..stage.parallelism).map(|index| TaskId {
                stage: stage.id,
                index,
            });
            tasks.map(|task| (task, stage.custom.clone()))
        });
        let standbys = standbys::next(&standbys::Problem {
            worker_of: &worker_of(deployment),
            standbys: &deployment.standbys,
            custom: &custom.collect(),
            workers: &self.standbys,
            carried: &self.carried,
            racks: &self.racks,
        })?;
        Some(Command::AssignStandbys {
            job: row.id,
            generation: row.generation,
            standbys,
        })
    }
}

/// The jobs that run and are to go on, with what runs of them.
fn running(metadata: &ClusterMetadata) -> impl Iterator<Item = (&JobRow, &Deployment)> {
    let rows = metadata.jobs_by_name();
    let wanted = rows.filter(|row| row.desired == Desired::Running && !row.halting);
    let running = wanted.filter(|row| row.state == JobState::Running);
    running.filter_map(|row| Some((&**row, &**row.deployment.as_ref()?)))
}

/// Whether its tasks read or write files, which another worker may not have.
fn on_its_disk(graph: &TaskGraph) -> bool {
    let reads = |stage: &Stage| {
        let source = stage.source.as_ref().map(|source| &source.spec);
        matches!(source, Some(SourceSpec::Files(_)))
    };
    let writes = |stage: &Stage| {
        let sink = stage.sink.as_ref().map(|sink| &sink.spec);
        matches!(sink, Some(SinkSpec::Files(_)))
    };
    graph
        .stages
        .iter()
        .any(|stage| reads(stage) || writes(stage))
}

fn worker_of(deployment: &Deployment) -> BTreeMap<TaskId, NodeId> {
    let tasks = deployment.tasks.iter();
    tasks.map(|of| (of.task, of.worker)).collect()
}

/// What of jobs is on its way: tasks to other workers, and standbys that take the place of others.
pub fn under_way(metadata: &ClusterMetadata) -> Vec<UnderWay> {
    let mut moves = Vec::new();
    for row in metadata.jobs_by_name() {
        if let Some(division) = row.division.as_ref().filter(|_| row.moves()) {
            let workers: BTreeSet<u32> = division.places.values().map(|node| node.0).collect();
            moves.push(UnderWay::Tasks {
                job: row.name.to_string(),
                tasks: division.places.len(),
                to: workers.into_iter().collect(),
            });
            continue;
        }
        let Some(deployment) = row.deployment.as_ref().filter(|_| row.division.is_none()) else {
            continue;
        };
        // Who is to be replaced stays until then, as one too many.
        let count = row.spec.config.standbys as usize;
        let too_many = deployment.standbys.values().filter(|all| all.len() > count);
        let coming: Vec<&[NodeId]> = too_many.map(|all| &all[..count]).collect();
        if !coming.is_empty() {
            let workers: BTreeSet<u32> = coming.iter().copied().flatten().map(|of| of.0).collect();
            moves.push(UnderWay::Standbys {
                job: row.name.to_string(),
                tasks: coming.len(),
                to: workers.into_iter().collect(),
            });
        }
    }
    moves
}
