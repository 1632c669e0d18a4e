//! Decides what a job does next.
//!
//! What is decided is a fact of the metadata: the job's state, what its user wants, its generation and
//! where its tasks run. The machine compares these facts with what it hears of workers and tasks, and
//! answers with at most one proposal at a time to change them. It keeps nothing that is not in the facts
//! or in the next heartbeats, so a new coordinator builds it again and a running job goes on untouched.
//!
//! Every deployment and every recovery is a new generation, which starts from the last completed
//! checkpoint. A fatal failure, or more failures in a row than the budget allows, fails the job. A
//! completed checkpoint ends the row: whatever fails after it, the job has got further than before, and
//! losing workers now and then must not wear a job down. The budget and the pause before the next attempt
//! start afresh with a new coordinator.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::ids::{Generation, NodeId, TaskId, WorkerEpoch};
use common::limits::{
    DEFAULT_STANDBYS, DEPLOY_TIMEOUT, RESTART_BUDGET, RESTART_WINDOW, RESTORE_TIMEOUT,
};
use common::protocol::checkpoint::CheckpointKind;
use common::protocol::job::JobState;
use common::protocol::task::{Standbys, TaskAssignment, TaskState};
use common::time::{Span, Tick};

use super::facts::{Facts, Proposal, RunningTasks, Workers};
use crate::checkpoint::machine::Team;
use crate::metadata::division::Dividing;
use crate::metadata::jobs::Desired;
use crate::placement::racks::Racks;
use crate::placement::standbys;
use crate::placement::tasks::{JobShape, Problem, place};

/// The pause before the second attempt; it doubles with every further one.
const FIRST_BACKOFF: Span = Span::from_millis(500);
const LONGEST_BACKOFF: Span = Span::from_secs(30);
const PROPOSE_AGAIN: Span = Span::from_secs(1);
/// A standby that is gone may come back for so long, with what it has; then another one takes its place.
const EXCUSED_FOR: Span = Span::from_secs(10);
/// A generation is 16 bits of a job's producer ids, and starting one may take two: the old ends, the new begins.
const LAST_GENERATION: Generation = Generation(u16::MAX as u32 - 1);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    pub restart_budget: usize,
    pub restart_window: Span,
    pub deploy_timeout: Span,
    /// Workers that keep the state of each task besides its own.
    pub standbys: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The job was changed, and from now on is to be treated so.
    Configured(Settings),
    /// Job or workers changed in the metadata.
    MetadataChanged {
        facts: Facts,
        workers: Workers,
    },
    /// Everything a worker runs of this job, from a heartbeat.
    TasksReported {
        worker: NodeId,
        epoch: WorkerEpoch,
        tasks: Vec<(Generation, TaskId, TaskState)>,
    },
    /// The checkpoint asked for by `Checkpointing::Final` or `Drain` is complete.
    FinalCheckpointCompleted {
        generation: Generation,
    },
    /// The last proposal has been applied, which `MetadataChanged` has told.
    ProposalApplied,
    /// The last proposal changed nothing. It was decided on facts that no longer hold, and the new ones
    /// follow; if not, it is tried again after a while.
    ProposalRejected,
    TimePassed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    Propose(Proposal),
    /// Told whenever it changes, and when the standbys do.
    Checkpoint(Checkpointing),
}

/// What checkpoints the job takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Checkpointing {
    Off,
    Periodic {
        generation: Generation,
    },
    /// One after which sources read nothing; again until it completes.
    Final {
        generation: Generation,
    },
    /// As `Final`, once everything of it is where the job goes on: divided in another way, or at other workers.
    CutOver {
        generation: Generation,
    },
    /// As `Final`, and before it every window closes.
    Drain {
        generation: Generation,
    },
}

impl Checkpointing {
    /// Of which generation, and of which kind.
    pub fn of(self) -> Option<(Generation, CheckpointKind)> {
        match self {
            Checkpointing::Off => None,
            Checkpointing::Periodic { generation } => Some((generation, CheckpointKind::Periodic)),
            Checkpointing::Final { generation } => Some((generation, CheckpointKind::Stop)),
            Checkpointing::CutOver { generation } => Some((generation, CheckpointKind::CutOver)),
            Checkpointing::Drain { generation } => Some((generation, CheckpointKind::Drain)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JobMachine {
    pub(super) settings: Settings,
    /// The time of the last event: what was due by then has been done, or waits for something else.
    asked: Tick,
    pub(super) facts: Facts,
    pub(super) workers: Workers,
    /// What is known of the tasks of this generation.
    tasks: BTreeMap<TaskId, TaskStatus>,
    /// Since when this generation is waited for: its start, or this machine's.
    since: Tick,
    /// Recent failures since a checkpoint was completed, and the generation the last one ended.
    failures: VecDeque<Tick>,
    counted: Option<Generation>,
    not_before: Tick,
    final_completed: Option<Generation>,
    /// Since when the change to another division is waited for.
    pub(super) cutting_since: Option<Tick>,
    proposing: bool,
    /// The facts have changed since it was proposed.
    outdated: bool,
    hold_until: Tick,
    checkpointing: Checkpointing,
    /// Since when workers are gone.
    gone: BTreeMap<NodeId, Tick>,
    /// The standbys and their lives that checkpoints know of.
    told_team: Team,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum TaskStatus {
    Reported(TaskState),
    /// It was reported once, and is missing from a later report.
    Missing,
}

/// Whether workers that are to be emptied are given tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Draining {
    Avoided,
    Used,
}

struct Failure {
    reason: String,
    fatal: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            restart_budget: RESTART_BUDGET,
            restart_window: RESTART_WINDOW,
            deploy_timeout: DEPLOY_TIMEOUT,
            standbys: DEFAULT_STANDBYS as usize,
        }
    }
}

impl JobMachine {
    pub fn new(now: Tick, settings: Settings, facts: Facts, workers: Workers) -> JobMachine {
        JobMachine {
            settings,
            asked: now,
            cutting_since: facts.cutting_over.then_some(now),
            facts,
            workers,
            tasks: BTreeMap::new(),
            since: now,
            failures: VecDeque::new(),
            counted: None,
            not_before: now,
            final_completed: None,
            proposing: false,
            outdated: false,
            hold_until: now,
            checkpointing: Checkpointing::Off,
            gone: BTreeMap::new(),
            told_team: Team::default(),
        }
    }

    /// Applies one event. Deterministic: same machine, same event, same time, same effects.
    pub fn handle(&mut self, now: Tick, event: Event) -> Vec<Effect> {
        self.asked = now;
        match event {
            Event::Configured(settings) => self.settings = settings,
            Event::MetadataChanged { facts, workers } => self.learn(now, facts, workers),
            Event::TasksReported {
                worker,
                epoch,
                tasks,
            } => self.hear(worker, epoch, tasks),
            Event::FinalCheckpointCompleted { generation } => {
                self.final_completed = Some(generation);
            }
            Event::ProposalApplied => self.proposing = false,
            Event::ProposalRejected => {
                self.proposing = false;
                // By what is known now something else may be right, and at once.
                if !self.outdated {
                    self.hold_until = now.plus(PROPOSE_AGAIN);
                }
            }
            Event::TimePassed => {}
        }
        self.gone.retain(|_, since| now.since(*since) < EXCUSED_FOR);
        let mut effects = Vec::new();
        let checkpointing = self.wanted_checkpointing();
        let team = match checkpointing {
            Checkpointing::Off => Team::default(),
            _ => self.team(),
        };
        if checkpointing != self.checkpointing || team != self.told_team {
            self.checkpointing = checkpointing;
            self.told_team = team;
            effects.push(Effect::Checkpoint(checkpointing));
        }
        if !self.proposing
            && now >= self.hold_until
            && let Some(proposal) = self.next_step(now)
        {
            self.proposing = true;
            self.outdated = false;
            effects.push(Effect::Propose(proposal));
        }
        effects
    }

    /// When the machine wants to be asked again, if nothing happens before: maybe a moment ago, if carrying out
    /// the effects has taken its time.
    pub fn wake_at(&self) -> Option<Tick> {
        let at = match self.facts.running {
            Some(_) => self.deadline(),
            None => self.not_before,
        };
        let cut_over = self.cut_over_ends();
        let excused = self.gone.values().map(|since| since.plus(EXCUSED_FOR));
        [at, self.hold_until]
            .into_iter()
            .chain(excused)
            .chain(cut_over)
            .filter(|at| *at > self.asked)
            .min()
    }

    pub fn shape(&self) -> &JobShape {
        &self.facts.shape
    }

    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    pub fn task_state(&self, task: TaskId) -> Option<&TaskState> {
        match self.tasks.get(&task)? {
            TaskStatus::Reported(state) => Some(state),
            TaskStatus::Missing => None,
        }
    }

    /// The tasks of the generation that runs, where they are, who stands by, and in which life of those workers.
    pub fn team(&self) -> Team {
        let running = self.facts.running.as_ref();
        let worker_of = running
            .map(|running| running.worker_of.clone())
            .unwrap_or_default();
        let standbys = running.map(|running| running.standbys.clone());
        let standbys = standbys.unwrap_or_default();
        let next = running.and_then(|running| running.next.as_ref());
        let next = next.zip(self.facts.wanted.as_ref());
        let next = next.map(|(next, wanted)| next.places(&wanted.shape));
        let next = next.unwrap_or_default();
        // Nobody waits for one that is gone.
        let here = |standbys: Standbys| -> Standbys {
            let each = standbys.into_iter().map(|(task, workers)| {
                let here = workers.into_iter();
                let here = here.filter(|worker| self.workers.contains_key(worker));
                (task, here.collect())
            });
            each.collect()
        };
        Team {
            sources: self.facts.shape.sources().collect(),
            workers: worker_of
                .values()
                .chain(standbys.values().chain(next.values()).flatten())
                .map(|worker| {
                    let epoch = self.workers.get(worker).map(|room| room.epoch);
                    (*worker, epoch.unwrap_or(WorkerEpoch(0)))
                })
                .collect(),
            worker_of,
            standbys: here(standbys),
            // A cut-over waits for who is gone, too: without it there is none.
            next,
        }
    }

    fn learn(&mut self, now: Tick, facts: Facts, workers: Workers) {
        assert!(
            facts.generation >= self.facts.generation,
            "generations never go back: {} after {}",
            facts.generation,
            self.facts.generation
        );
        if facts.generation > self.facts.generation {
            self.tasks.clear();
            self.since = now;
        }
        if facts.completed > self.facts.completed {
            self.failures.clear();
        }
        // A user who resumes a job that failed gives it a fresh budget.
        let ended = facts.state.is_terminal() || facts.state == JobState::Paused;
        if ended && facts.state != self.facts.state {
            self.failures.clear();
            self.not_before = now;
        }
        if facts != self.facts || workers != self.workers {
            self.hold_until = now;
            self.outdated = true;
        }
        for worker in self.workers.keys().filter(|w| !workers.contains_key(w)) {
            self.gone.insert(*worker, now);
        }
        self.gone.retain(|worker, _| !workers.contains_key(worker));
        self.cutting_since = match facts.cutting_over {
            true => self.cutting_since.or(Some(now)),
            false => None,
        };
        self.facts = facts;
        self.workers = workers;
    }

    fn hear(
        &mut self,
        worker: NodeId,
        epoch: WorkerEpoch,
        reports: Vec<(Generation, TaskId, TaskState)>,
    ) {
        let Some(running) = &self.facts.running else {
            return;
        };
        if self.workers.get(&worker).map(|room| room.epoch) != Some(epoch) {
            return;
        }
        let current = self.facts.generation;
        let reported: BTreeMap<TaskId, TaskState> = reports
            .into_iter()
            .filter(|(generation, _, _)| *generation == current)
            .map(|(_, task, state)| (task, state))
            .collect();
        let here = running
            .worker_of
            .iter()
            .filter(|(_, assigned)| **assigned == worker);
        for (task, _) in here {
            match reported.get(task) {
                Some(state) => {
                    self.tasks
                        .insert(*task, TaskStatus::Reported(state.clone()));
                }
                // A report may have been written before the worker heard of the generation: only a task
                // that was there once is missed.
                None => {
                    if let Some(status) = self.tasks.get_mut(task) {
                        *status = TaskStatus::Missing;
                    }
                }
            }
        }
    }

    fn next_step(&mut self, now: Tick) -> Option<Proposal> {
        match &self.facts.running {
            Some(_) => self.next_step_of_running(now),
            None => self.next_step_of_idle(now),
        }
    }

    fn next_step_of_idle(&mut self, now: Tick) -> Option<Proposal> {
        let ended = match self.facts.state {
            JobState::Finished | JobState::Cancelled => return None,
            JobState::Stopped | JobState::Failed => return self.start_if_wanted(None),
            JobState::Paused => true,
            JobState::Created
            | JobState::Waiting
            | JobState::Deploying
            | JobState::Running
            | JobState::Recovering => false,
        };
        match self.facts.desired {
            Desired::Running | Desired::Drained if now < self.not_before => None,
            Desired::Running | Desired::Drained => self.start_if_wanted(None),
            Desired::Paused if ended => None,
            Desired::Paused => Some(self.halt(JobState::Paused, "", None)),
            Desired::Stopped => Some(self.halt(JobState::Stopped, "", None)),
            Desired::Cancelled => Some(self.halt(JobState::Cancelled, "", None)),
        }
    }

    fn next_step_of_running(&mut self, now: Tick) -> Option<Proposal> {
        if self.facts.desired == Desired::Cancelled {
            return Some(self.halt(JobState::Cancelled, "", None));
        }
        if let Some(failure) = self.failure(now) {
            return Some(self.recover(now, failure, Dividing::AsBefore));
        }
        if self.wants_to_run()
            && let Some((reason, dividing)) = self.failed_cut_over(now)
        {
            let fatal = false;
            return Some(self.recover(now, Failure { reason, fatal }, dividing));
        }
        let runs = self.facts.state == JobState::Running;
        let ended = self.has_ended();
        match self.facts.desired {
            // What the generation did since the last checkpoint is undone, so nothing is lost by not waiting.
            Desired::Paused if ended || !runs => Some(self.halt(JobState::Paused, "", None)),
            Desired::Stopped if ended || !runs => Some(self.halt(JobState::Stopped, "", None)),
            // Where sources have stopped reading, the windows of a job that is to be drained close in its next generation.
            Desired::Running | Desired::Drained if self.facts.halting => self.start_if_wanted(None),
            Desired::Running | Desired::Drained if self.facts.cutting_over => {
                if !ended {
                    return None;
                }
                self.take_division()
                    .or_else(|| self.move_away())
                    // There is nothing to change any more, and sources read nothing until another generation begins.
                    .or_else(|| self.start_if_wanted(None))
            }
            Desired::Running | Desired::Drained if runs && ended => {
                Some(self.halt(JobState::Finished, "", None))
            }
            Desired::Running | Desired::Drained if !runs && self.all_live() => {
                Some(Proposal::Run {
                    generation: self.facts.generation,
                })
            }
            Desired::Running if runs => self
                .move_away()
                .or_else(|| self.stand_by())
                .or_else(|| self.divide()),
            Desired::Drained if runs => self.stand_by(),
            Desired::Running | Desired::Drained | Desired::Paused | Desired::Stopped => None,
            Desired::Cancelled => unreachable!("a cancelled job has been halted above"),
        }
    }

    fn recover(&mut self, now: Tick, failure: Failure, dividing: Dividing) -> Proposal {
        self.count_failure(now);
        let Failure { reason, fatal } = failure;
        let failed = Some(reason.clone());
        if fatal {
            return self.halt(JobState::Failed, &reason, failed);
        }
        match self.facts.desired {
            Desired::Running | Desired::Drained => {}
            Desired::Paused => return self.halt(JobState::Paused, &reason, failed),
            Desired::Stopped => return self.halt(JobState::Stopped, &reason, failed),
            Desired::Cancelled => return self.halt(JobState::Cancelled, &reason, failed),
        }
        if self.failures.len() > self.settings.restart_budget {
            let reason = format!(
                "failed {} times within {}, the last time: {reason}",
                self.failures.len(),
                self.settings.restart_window
            );
            return self.halt(JobState::Failed, &reason, failed);
        }
        let backoff = backoff(self.failures.len());
        if backoff > Span(0) {
            self.not_before = now.plus(backoff);
            return self.halt(JobState::Recovering, &reason, failed);
        }
        self.start(failed, dividing)
    }

    fn start_if_wanted(&mut self, failure: Option<String>) -> Option<Proposal> {
        if !self.wants_to_run() {
            return None;
        }
        let proposal = self.start(failure, Dividing::AsBefore);
        match &proposal {
            Proposal::Halt { state, reason, .. }
                if self.facts.state == *state && self.facts.reason == *reason =>
            {
                None
            }
            Proposal::Start { .. }
            | Proposal::Halt { .. }
            | Proposal::Run { .. }
            | Proposal::StandBy { .. }
            | Proposal::Prepare { .. }
            | Proposal::CutOver { .. } => Some(proposal),
        }
    }

    /// Tasks on a worker that is to be emptied go on elsewhere, once what is kept of them is there already: at a last
    /// checkpoint of this generation, so that nothing is done again.
    fn move_away(&self) -> Option<Proposal> {
        let running = self.facts.running.as_ref()?;
        let is_draining = |worker: &NodeId| self.workers.get(worker).is_some_and(|w| w.draining);
        let leaving = running
            .worker_of
            .values()
            .find(|worker| is_draining(worker))?;
        let tasks = place(&self.problem(Draining::Avoided)).ok()?;
        // While others are being prepared, the last checkpoint would wait for them.
        if !self.facts.cutting_over && running.next.is_none() && self.facts.completed.is_some() {
            let generation = self.facts.generation;
            return Some(Proposal::CutOver { generation });
        }
        Some(Proposal::Start {
            generation: self.facts.generation,
            dividing: Dividing::AsBefore,
            standbys: self.standbys_of(&tasks),
            tasks,
            state: JobState::Deploying,
            reason: format!("worker {leaving} is drained or quarantined"),
            failure: None,
        })
    }

    /// Others stand by, if some are lost for good or have come.
    fn stand_by(&self) -> Option<Proposal> {
        let running = self.facts.running.as_ref()?;
        let standbys = self.standbys_for(&running.worker_of, &running.standbys);
        let standbys = self.with_predecessors(standbys, running.next.as_ref());
        (standbys != running.standbys).then_some(Proposal::StandBy {
            generation: self.facts.generation,
            standbys,
        })
    }

    fn standbys_for(&self, worker_of: &BTreeMap<TaskId, NodeId>, previous: &Standbys) -> Standbys {
        let excused: BTreeSet<NodeId> = self.gone.keys().copied().collect();
        standbys::choose(&standbys::Problem {
            shape: &self.facts.shape,
            count: self.settings.standbys,
            worker_of,
            free_slots: &self.free_slots(Draining::Avoided),
            draining: &self.draining(),
            carried: &self.carried(),
            racks: &self.racks(),
            previous,
            excused: &excused,
            holders: &self.facts.holders,
        })
    }

    pub(super) fn racks(&self) -> Racks {
        let workers = self.workers.iter();
        Racks::of(workers.map(|(worker, room)| (*worker, room.rack.as_deref())))
    }

    pub(super) fn draining(&self) -> BTreeSet<NodeId> {
        let draining = self.workers.iter().filter(|(_, room)| room.draining);
        draining.map(|(worker, _)| *worker).collect()
    }

    pub(super) fn free_slots(&self, draining: Draining) -> BTreeMap<NodeId, u32> {
        let workers = self.workers.iter();
        let workers = workers.filter(|(_, room)| draining == Draining::Used || !room.draining);
        workers
            .map(|(worker, room)| (*worker, room.free_slots))
            .collect()
    }

    pub(super) fn carried(&self) -> BTreeMap<NodeId, BTreeSet<String>> {
        let workers = self.workers.iter();
        let carried = workers.map(|(worker, room)| (*worker, room.operators.clone()));
        carried.collect()
    }

    /// The next generation, or waiting for what it needs.
    fn start(&self, failure: Option<String>, dividing: Dividing) -> Proposal {
        if self.facts.generation >= LAST_GENERATION {
            return self.halt(
                JobState::Failed,
                "the job has used up its generations",
                failure,
            );
        }
        let recovers = failure.is_some()
            || self.facts.state == JobState::Recovering
            || self.facts.state == JobState::Waiting && !self.failures.is_empty();
        // A worker that is being drained is better than none.
        let placed = place(&self.problem(Draining::Avoided));
        match placed.or_else(|_| place(&self.problem(Draining::Used))) {
            Ok(tasks) => Proposal::Start {
                generation: self.facts.generation,
                dividing,
                standbys: self.standbys_of(&tasks),
                tasks,
                state: if recovers {
                    JobState::Recovering
                } else {
                    JobState::Deploying
                },
                reason: match &failure {
                    Some(failure) => failure.clone(),
                    None if self.facts.state == JobState::Recovering => self.facts.reason.clone(),
                    None => String::new(),
                },
                failure,
            },
            Err(unplaceable) => self.halt(JobState::Waiting, &unplaceable.to_string(), failure),
        }
    }

    fn problem(&self, draining: Draining) -> Problem {
        let running = self.facts.running.as_ref();
        Problem {
            shape: self.facts.shape.clone(),
            free_slots: self.free_slots(draining),
            carried: self.carried(),
            previous: match running {
                Some(running) => running.worker_of.clone(),
                None => ran_last(&self.facts.holders),
            },
            holders: match self.facts.completed {
                Some(_) => self.facts.holders.clone(),
                None => BTreeMap::new(),
            },
        }
    }

    /// Of a generation that is to start.
    fn standbys_of(&self, tasks: &[TaskAssignment]) -> Standbys {
        let worker_of = tasks.iter().map(|a| (a.task, a.worker)).collect();
        let running = self.facts.running.as_ref();
        let previous = running.map(|running| running.standbys.clone());
        self.standbys_for(&worker_of, &previous.unwrap_or_default())
    }

    fn halt(&self, state: JobState, reason: &str, failure: Option<String>) -> Proposal {
        Proposal::Halt {
            generation: self.facts.generation,
            state,
            reason: reason.to_owned(),
            failure,
        }
    }

    /// The first thing that keeps this generation from running.
    fn failure(&self, now: Tick) -> Option<Failure> {
        let running = self.facts.running.as_ref()?;
        self.failed_task(running)
            .or_else(|| self.lost_worker(running))
            .or_else(|| self.overdue(now))
    }

    fn failed_task(&self, running: &RunningTasks) -> Option<Failure> {
        let failures = self.tasks.iter().filter_map(|(task, status)| {
            let worker = running.worker_of.get(task)?;
            match status {
                TaskStatus::Reported(TaskState::Failed { reason, fatal }) => Some(Failure {
                    reason: format!("task {task} on worker {worker}: {reason}"),
                    fatal: *fatal,
                }),
                TaskStatus::Missing => Some(Failure {
                    reason: format!("task {task} on worker {worker} is gone"),
                    fatal: false,
                }),
                TaskStatus::Reported(
                    TaskState::Deploying
                    | TaskState::Running
                    | TaskState::Exhausted
                    | TaskState::Finished,
                ) => None,
            }
        });
        // One fatal failure settles the matter, however many others it has caused.
        failures.min_by_key(|failure| !failure.fatal)
    }

    fn lost_worker(&self, running: &RunningTasks) -> Option<Failure> {
        running.worker_of.values().find_map(|worker| {
            let reason = match self.workers.get(worker) {
                None => format!("worker {worker} is gone"),
                // Registered after the generation began: the life that ran its tasks is over.
                Some(room) if room.epoch.0 > running.version.0 => {
                    format!("worker {worker} has started again")
                }
                Some(_) => return None,
            };
            Some(Failure {
                reason,
                fatal: false,
            })
        })
    }

    fn overdue(&self, now: Tick) -> Option<Failure> {
        if now < self.deadline() {
            return None;
        }
        let late: Vec<String> = match self.facts.state {
            // Built again from the metadata: the workers should have been heard by now.
            JobState::Running => self.unheard().map(|task| task.to_string()).collect(),
            _ => self.not_live().map(|task| task.to_string()).collect(),
        };
        (!late.is_empty()).then(|| Failure {
            reason: format!(
                "not running after {}: task {}",
                self.patience(),
                late.join(", ")
            ),
            fatal: false,
        })
    }

    fn count_failure(&mut self, now: Tick) {
        if self.counted == Some(self.facts.generation) {
            return;
        }
        self.counted = Some(self.facts.generation);
        self.failures.push_back(now);
        while self
            .failures
            .front()
            .is_some_and(|at| now.since(*at) > self.settings.restart_window)
        {
            self.failures.pop_front();
        }
    }

    fn wanted_checkpointing(&self) -> Checkpointing {
        let generation = self.facts.generation;
        if self.facts.running.is_none() || self.facts.state != JobState::Running {
            return Checkpointing::Off;
        }
        match self.facts.desired {
            Desired::Cancelled => Checkpointing::Off,
            Desired::Paused | Desired::Stopped => Checkpointing::Final { generation },
            Desired::Running | Desired::Drained if self.facts.halting => Checkpointing::Off,
            Desired::Running | Desired::Drained if self.facts.cutting_over => {
                Checkpointing::CutOver { generation }
            }
            Desired::Drained => Checkpointing::Drain { generation },
            Desired::Running if self.all_exhausted() => Checkpointing::Final { generation },
            Desired::Running => Checkpointing::Periodic { generation },
        }
    }

    fn wants_to_run(&self) -> bool {
        matches!(self.facts.desired, Desired::Running | Desired::Drained)
    }

    fn deadline(&self) -> Tick {
        self.since.plus(self.patience())
    }

    /// What comes from a savepoint takes as long as it takes; a worker that is gone is missed all the same.
    fn patience(&self) -> Span {
        let timeout = self.settings.deploy_timeout;
        match self.facts.restoring && self.facts.state != JobState::Running {
            true => timeout.max(RESTORE_TIMEOUT),
            false => timeout,
        }
    }

    fn all_live(&self) -> bool {
        self.not_live().next().is_none()
    }

    fn not_live(&self) -> impl Iterator<Item = TaskId> {
        self.facts.shape.tasks().filter(|task| {
            !matches!(
                self.task_state(*task),
                Some(TaskState::Running | TaskState::Exhausted | TaskState::Finished)
            )
        })
    }

    fn unheard(&self) -> impl Iterator<Item = TaskId> {
        self.facts
            .shape
            .tasks()
            .filter(|task| !self.tasks.contains_key(task))
    }

    fn all_exhausted(&self) -> bool {
        self.facts.shape.sources().all(|task| {
            matches!(
                self.task_state(task),
                Some(TaskState::Exhausted | TaskState::Finished)
            )
        })
    }

    /// The last checkpoint is complete, and what belongs to it is visible wherever sinks write. Before that a
    /// sink may still have files to give their names, which nobody would do once the tasks are gone.
    fn has_ended(&self) -> bool {
        self.final_completed == Some(self.facts.generation)
            && self
                .facts
                .shape
                .tasks()
                .all(|task| self.task_state(task) == Some(&TaskState::Finished))
    }
}

/// Where each task ran at the last completed checkpoint.
pub(super) fn ran_last(holders: &BTreeMap<TaskId, Vec<NodeId>>) -> BTreeMap<TaskId, NodeId> {
    let first = |(task, workers): (&TaskId, &Vec<NodeId>)| Some((*task, *workers.first()?));
    holders.iter().filter_map(first).collect()
}

/// The first failure is answered at once; it is usually the last.
fn backoff(failures: usize) -> Span {
    match failures {
        0 | 1 => Span(0),
        further => {
            let doublings = u32::try_from(further - 2).unwrap_or(u32::MAX).min(16);
            Span((FIRST_BACKOFF.0 << doublings).min(LONGEST_BACKOFF.0))
        }
    }
}
