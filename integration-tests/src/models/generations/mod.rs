//! Model: the end of one generation and the start of the next, with checkpoints under way.
//!
//! Scope: a job of two tasks on two workers, a few checkpoints, one worker that crashes or whose session ends
//! while it goes on, one coordinator that is followed by another, and a user who wants
//! the job divided into other tasks (`cut_over.rs`). The job's machine, its checkpoints' machine
//! and the metadata are the real ones. What is proposed becomes a fact later, in its order, or is lost with
//! the coordinator; barriers and acknowledgements come late, again, or never. Time moves only to what the
//! machines wait for soon: nothing is given up for taking long.

mod cut_over;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash};
use std::sync::Arc;

use common::ids::{
    CheckpointId, ClusterId, Generation, JobId, NodeId, StageId, TaskId, WorkerEpoch,
};
use common::protocol::checkpoint::{TaskCounts, TaskSnapshot};
use common::protocol::job::JobState;
use common::time::{Span, Tick};
use coordinator::checkpoint::machine::{
    CheckpointMachine, Effect as CheckpointEffect, Event as CheckpointEvent, Pace,
    Settings as CheckpointSettings,
};
use coordinator::checkpoint::permit::CommitPermit;
use coordinator::job::facts::{Facts as JobFacts, Proposal, slots_by_job, workers_for};
use coordinator::job::machine::{Effect, Event, JobMachine, Settings};
use coordinator::metadata::command::{Command, Outcome, Rejection};
use coordinator::metadata::jobs::JobRow;
use coordinator::metadata::nodes::WorkerStatus;
use coordinator::placement::tasks::JobShape;
use uuid::Uuid;

use self::cut_over::{Divisions, Hold};
use super::explorer::{Model, Property};
use super::facts::Facts;

const WORKERS: usize = 2;
const INTERVAL: Span = Span::from_millis(50);
/// Nobody waits so long here.
const TIMEOUT: Span = Span::from_secs(600);
/// What the machines wait for longer than this does not come.
const SOON: Span = Span::from_secs(1);

/// How much may happen.
#[derive(Clone, Copy, Debug)]
pub struct Generations {
    pub begins: Begins,
    /// How often time moves on to the next checkpoint.
    pub ticks: u8,
    /// Workers that crash, or whose session ends while they go on.
    pub failures: u8,
    /// Coordinators that follow the first.
    pub successors: u8,
    /// How often a user wants another division, or that no more.
    pub wishes: u8,
    /// How often a cut-over that is under way takes too long.
    pub delays: u8,
    pub mistake: Option<Mistake>,
}

/// What has happened to the job before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Begins {
    Deployed,
    /// It has completed a checkpoint.
    Checkpointed,
    /// Its user has wanted it divided into other tasks, which are prepared.
    CuttingOver,
}

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A checkpoint counts as complete without the acknowledgement of one task.
    CompleteWithoutOne,
    /// A checkpoint is completed in whichever generation there is by then.
    CompleteInAnother,
    /// A coordinator gives out numbers that the one before it may have given out.
    NumbersAgain,
    /// A checkpoint names those who prepare the next division as if they had said that they have it.
    NameUnprepared,
    /// The next division begins as soon as it is prepared, without a last checkpoint of the old one.
    BeginWithoutCutOver,
    /// Nobody remembers that sources may have stopped for a cut-over that is not wanted any more.
    ForgetHalting,
}

#[derive(Clone, Debug)]
pub struct State {
    facts: Arc<Facts>,
    job: JobId,
    now: Tick,
    machine: Arc<JobMachine>,
    checkpoints: Arc<CheckpointMachine>,
    /// In the order of the command log; not applied yet.
    proposed: VecDeque<Proposed>,
    workers: [Worker; WORKERS],
    /// Barriers on their way to workers with sources, and those that have come there.
    barriers: BTreeSet<Barrier>,
    injected: BTreeSet<(Generation, CheckpointId)>,
    /// What was sealed, and may be acknowledged at any time.
    sealed: BTreeSet<Ack>,
    left: Left,
    /// Which coordinator gave out each number, and for which generation.
    numbers: BTreeMap<CheckpointId, (u8, Generation)>,
    /// What was completed, and while which generation was the job's.
    completed: Vec<(Generation, CheckpointId, Generation)>,
    finals: BTreeMap<Generation, Option<CheckpointId>>,
    /// The tasks that each generation is divided into.
    shapes: BTreeMap<Generation, JobShape>,
    divisions: Divisions,
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Left {
    ticks: u8,
    failures: u8,
    successors: u8,
    wishes: u8,
    delays: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Proposed {
    /// From which checkpoint, and the first stage of the division that was wanted.
    Job(Proposal, Option<CheckpointId>, Option<StageId>),
    Reservation(Generation),
    Completion(CommitPermit),
}

#[derive(Clone, Debug, Hash)]
struct Worker {
    node: NodeId,
    up: bool,
    life: u64,
    epoch: WorkerEpoch,
    runs: Option<(Generation, BTreeSet<TaskId>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Barrier {
    worker: usize,
    generation: Generation,
    checkpoint: CheckpointId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ack {
    worker: usize,
    epoch: WorkerEpoch,
    generation: Generation,
    checkpoint: CheckpointId,
    task: TaskId,
}

/// The numbers are those of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The first of what was proposed becomes a fact, or is refused.
    Apply,
    /// The coordinator is followed by another: what was proposed is in the log, or not.
    Succeed(Log),
    TimePasses,
    /// It hears where the tasks are to run.
    Hear(usize),
    /// It says what it runs.
    Report(usize),
    Inject(Barrier),
    /// A task that runs there seals a checkpoint.
    Seal(usize, TaskId, CheckpointId),
    Acknowledge(Ack),
    Crash(usize),
    Fence(usize),
    /// It is registered anew, as another process if it crashed.
    Register(usize),
    /// The user wants the job divided into other tasks, or it to stay as it is.
    Wish(Wish),
    /// It has made all of a task of the next division, up to a checkpoint, and says so.
    Hold(usize, TaskId, CheckpointId),
    /// It is heard again, when the worker's life has ended.
    HoldLate(Hold),
    /// Nothing else happens for as long as a cut-over may take.
    CutOverTakesLong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Divide,
    Withdraw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    HasAll,
    HasNothing,
}

impl Model for Generations {
    type State = State;
    type Action = Action;

    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn initial(&self) -> State {
        let mut facts = Facts::new();
        let workers = [0, 1].map(|index| {
            let (node, epoch) = facts.register(index, 0);
            Worker {
                node,
                up: true,
                life: 0,
                epoch,
                runs: None,
            }
        });
        let job = facts.create_job(INTERVAL);
        let (machine, checkpoints) = machines(&facts, job, Tick(0));
        let mut state = State {
            facts: Arc::new(facts),
            job,
            now: Tick(0),
            machine: Arc::new(machine),
            checkpoints: Arc::new(checkpoints),
            proposed: VecDeque::new(),
            workers,
            barriers: BTreeSet::new(),
            injected: BTreeSet::new(),
            sealed: BTreeSet::new(),
            left: Left {
                ticks: self.ticks,
                failures: self.failures,
                successors: self.successors,
                wishes: self.wishes,
                delays: self.delays,
            },
            numbers: BTreeMap::new(),
            completed: Vec::new(),
            finals: BTreeMap::new(),
            shapes: BTreeMap::new(),
            divisions: Divisions::default(),
            broken: None,
        };
        self.tell_facts(&mut state);
        self.begin(&mut state);
        state
    }

    fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        let Left {
            ticks,
            failures,
            successors,
            wishes,
            delays,
        } = state.left;
        if !state.proposed.is_empty() {
            actions.push(Action::Apply);
        }
        if successors > 0 {
            actions.push(Action::Succeed(Log::HasNothing));
            if !state.proposed.is_empty() {
                actions.push(Action::Succeed(Log::HasAll));
            }
        }
        if state.next_wake(ticks > 0).is_some() {
            actions.push(Action::TimePasses);
        }
        for (index, worker) in state.workers.iter().enumerate() {
            let row = state.facts.metadata.worker(worker.node);
            let fenced = row.is_some_and(|row| row.status == WorkerStatus::Fenced);
            if !fenced && (failures > 0 || !worker.up) {
                actions.push(Action::Fence(index));
            }
            if fenced || !worker.up {
                actions.push(Action::Register(index));
            }
            if !worker.up {
                continue;
            }
            if failures > 0 {
                actions.push(Action::Crash(index));
            }
            if !fenced && state.assigned(worker) != worker.runs {
                actions.push(Action::Hear(index));
            }
            if state.has_news(worker) {
                actions.push(Action::Report(index));
            }
            let to_seal = state.to_seal(worker);
            actions.extend(to_seal.map(|(task, checkpoint)| Action::Seal(index, task, checkpoint)));
        }
        for barrier in &state.barriers {
            let worker = &state.workers[barrier.worker];
            if worker.up && worker.runs_generation(barrier.generation) {
                actions.push(Action::Inject(*barrier));
            }
        }
        let sealed = state.sealed.iter().filter(|ack| state.counts(ack));
        actions.extend(sealed.map(|ack| Action::Acknowledge(*ack)));
        self.dividing(state, (wishes, delays), &mut actions);
        actions
    }

    fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Apply => {
                let proposed = state.proposed.pop_front().expect("there is one");
                let settled = self.apply(state, proposed);
                self.tell_facts(state);
                self.tell_outcome(state, settled);
            }
            Action::Succeed(log) => {
                state.left.successors -= 1;
                for proposed in std::mem::take(&mut state.proposed) {
                    if log == Log::HasAll {
                        self.apply(state, proposed);
                    }
                }
                self.succeed(state);
            }
            Action::TimePasses => {
                let at = state.next_wake(state.left.ticks > 0);
                state.now = at.expect("something is waited for");
                state.left.ticks = state.left.ticks.saturating_sub(1);
                self.tell_job(state, Event::TimePassed);
                self.tell_checkpoints(state, CheckpointEvent::TimePassed);
            }
            Action::Hear(index) => {
                state.workers[index].runs = state.assigned(&state.workers[index]);
            }
            Action::Report(index) => {
                let worker = &state.workers[index];
                let (generation, tasks) = worker.runs.clone().expect("it runs something");
                let tasks = tasks.into_iter();
                let event = Event::TasksReported {
                    worker: worker.node,
                    epoch: worker.epoch,
                    tasks: tasks
                        .map(|task| (generation, task, state.standing(generation, task)))
                        .collect(),
                };
                self.tell_job(state, event);
            }
            Action::Inject(barrier) => {
                let Barrier {
                    worker,
                    generation,
                    checkpoint,
                } = barrier;
                state.barriers.remove(&barrier);
                state.injected.insert((generation, checkpoint));
                let event = CheckpointEvent::BarrierInjected {
                    generation,
                    checkpoint,
                    worker: state.workers[worker].node,
                };
                self.tell_checkpoints(state, event);
            }
            Action::Seal(index, task, checkpoint) => {
                let worker = &state.workers[index];
                let (generation, _) = worker.runs.as_ref().expect("it runs something");
                state.sealed.insert(Ack {
                    worker: index,
                    epoch: worker.epoch,
                    generation: *generation,
                    checkpoint,
                    task,
                });
            }
            Action::Acknowledge(ack) => self.acknowledge(state, ack),
            Action::Crash(index) => {
                state.left.failures -= 1;
                let worker = &mut state.workers[index];
                worker.up = false;
                worker.runs = None;
            }
            Action::Fence(index) => {
                if state.workers[index].up {
                    state.left.failures -= 1;
                }
                let node = state.workers[index].node;
                Arc::make_mut(&mut state.facts).fence(node);
                self.tell_facts(state);
            }
            Action::Register(index) => {
                let worker = &mut state.workers[index];
                if !worker.up {
                    worker.life += 1;
                    worker.up = true;
                }
                let facts = Arc::make_mut(&mut state.facts);
                (worker.node, worker.epoch) = facts.register(index, worker.life);
                self.tell_facts(state);
            }
            Action::Wish(wish) => {
                state.left.wishes -= 1;
                self.wish(state, wish);
            }
            Action::Hold(index, task, checkpoint) => self.prepared(state, index, task, checkpoint),
            Action::HoldLate(hold) => self.hold(state, hold),
            Action::CutOverTakesLong => {
                state.left.delays -= 1;
                self.cut_over_takes_long(state);
            }
        }
    }

    fn digest(&self, state: &State, hasher: &mut DefaultHasher) {
        state.facts.digest_job(state.job, hasher);
        state.facts.digest_workers(hasher);
        (state.now, &state.machine, &state.checkpoints).hash(hasher);
        (&state.proposed, &state.workers).hash(hasher);
        (&state.barriers, &state.injected, &state.sealed).hash(hasher);
        (state.left, &state.numbers, &state.completed).hash(hasher);
        (&state.finals, &state.shapes, &state.divisions).hash(hasher);
        state.broken.hash(hasher);
    }

    fn properties(&self) -> Vec<Property<State>> {
        let mut properties: Vec<Property<State>> = vec![
            Property::always(
                "what was decided stays, and a number is given out once",
                |state| state.broken.is_none(),
            ),
            Property::always("checkpoints are completed in their order", |state| {
                state.completed.is_sorted_by(|a, b| a.0 <= b.0 && a.1 < b.1)
            }),
            Property::always("none is completed after its generation", |state| {
                let mut completed = state.completed.iter();
                completed.all(|(generation, _, during)| generation == during)
            }),
            Property::always("what is completed was sealed by every task", |state| {
                state.completed.iter().all(|(generation, checkpoint, _)| {
                    let mut tasks = state.shapes[generation].tasks();
                    tasks.all(|task| {
                        let mut sealed = state.sealed.iter();
                        sealed.any(|ack| {
                            (ack.generation, ack.checkpoint, ack.task)
                                == (*generation, *checkpoint, task)
                        })
                    })
                })
            }),
            Property::stays_open("every task runs, and sources read", |state| {
                let row = state.row();
                row.state == JobState::Running
                    && !state.have_stopped(row.generation)
                    && state
                        .workers
                        .iter()
                        .all(|worker| state.assigned(worker) == worker.runs)
            }),
        ];
        if self.begins > Begins::Deployed {
            properties.extend(cut_over::properties(self));
        }
        if self.failures > 0 && self.begins == Begins::Deployed {
            properties.extend::<[Property<State>; 3]>([
                Property::sometimes("checkpoints of two generations are completed", |state| {
                    let mut completed = state.completed.iter();
                    let first = state.completed.first();
                    completed
                        .any(|(generation, ..)| first.is_some_and(|first| *generation > first.0))
                }),
                Property::sometimes("one is proposed when its generation is over", |state| {
                    state.proposed.iter().any(|proposed| match proposed {
                        Proposed::Completion(permit) => {
                            permit.clone().into_proven().generation < state.row().generation
                        }
                        Proposed::Job(..) | Proposed::Reservation(_) => false,
                    })
                }),
                Property::sometimes("a worker goes on with what is over", |state| {
                    let workers = state.workers.iter();
                    let mut runs = workers.filter_map(|worker| worker.runs.as_ref());
                    runs.any(|(generation, _)| *generation < state.row().generation)
                }),
            ]);
        }
        if self.successors > 0 && self.begins == Begins::Deployed {
            let name = "one begun under a coordinator is sealed under the next";
            properties.push(Property::sometimes(name, |state| {
                let mut sealed = state.sealed.iter();
                let last = state.numbers.values().map(|(by, _)| *by).max();
                sealed.any(|ack| {
                    let by = state.numbers.get(&ack.checkpoint);
                    by.is_some_and(|(by, _)| Some(*by) < last)
                })
            }));
        }
        properties
    }
}

/// Both machines, as a coordinator makes them from the metadata.
fn machines(facts: &Facts, job: JobId, now: Tick) -> (JobMachine, CheckpointMachine) {
    let row = facts.job(job);
    let settings = Settings {
        standbys: 0,
        ..Settings::default()
    };
    let slots = slots_by_job(&facts.metadata);
    let workers = workers_for(&facts.metadata, &slots, job);
    let machine = JobMachine::new(now, settings, JobFacts::of(row), workers);
    let settings = CheckpointSettings {
        pace: Pace {
            interval: INTERVAL,
            timeout: TIMEOUT,
        },
        session_timeout: TIMEOUT,
    };
    let checkpoints = CheckpointMachine::new(settings, row.reserved, row.completed, &row.holders);
    (machine, checkpoints)
}

fn snapshot(task: TaskId) -> TaskSnapshot {
    TaskSnapshot {
        task,
        delta_bytes: 0,
        state_bytes: 0,
        positions: BTreeMap::new(),
        counts: TaskCounts::default(),
    }
}

impl Generations {
    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn tell_facts(&self, state: &mut State) {
        let slots = slots_by_job(&state.facts.metadata);
        let mut facts = JobFacts::of(state.row());
        facts.halting &= !self.makes(Mistake::ForgetHalting);
        let event = Event::MetadataChanged {
            facts,
            workers: workers_for(&state.facts.metadata, &slots, state.job),
        };
        self.tell_job(state, event);
    }

    fn tell_job(&self, state: &mut State, event: Event) {
        for effect in Arc::make_mut(&mut state.machine).handle(state.now, event) {
            match effect {
                Effect::Propose(mut proposal) => {
                    if self.makes(Mistake::BeginWithoutCutOver) {
                        proposal = cut_over::begin_at_once(&state.machine, proposal);
                    }
                    let restore = state.machine.facts().completed;
                    let division = cut_over::first_stage_wanted(state.row());
                    let proposed = Proposed::Job(proposal, restore, division);
                    state.proposed.push_back(proposed);
                }
                Effect::Checkpoint(checkpointing) => {
                    let team = state.machine.team();
                    let completed = state.machine.facts().completed;
                    let run = |(generation, kind)| CheckpointEvent::Run {
                        generation,
                        team,
                        kind,
                        completed,
                    };
                    let event = checkpointing.of().map_or(CheckpointEvent::Halt, run);
                    self.tell_checkpoints(state, event);
                }
            }
        }
    }

    fn tell_checkpoints(&self, state: &mut State, event: CheckpointEvent) {
        for effect in Arc::make_mut(&mut state.checkpoints).handle(state.now, event) {
            match effect {
                CheckpointEffect::Reserve { generation } => {
                    state.proposed.push_back(Proposed::Reservation(generation));
                }
                CheckpointEffect::Inject {
                    worker,
                    generation,
                    checkpoint,
                    kind,
                } => {
                    state.divisions.injected(checkpoint, kind);
                    let workers = state.workers.iter();
                    let worker = workers.into_iter().position(|known| known.node == worker);
                    state.give_out(checkpoint, generation);
                    state.barriers.insert(Barrier {
                        worker: worker.expect("it is a worker"),
                        generation,
                        checkpoint,
                    });
                }
                CheckpointEffect::Complete(permit) => {
                    state.proposed.push_back(Proposed::Completion(permit));
                }
                CheckpointEffect::Completed {
                    generation, kind, ..
                } if kind.is_last() => {
                    let event = Event::FinalCheckpointCompleted { generation };
                    self.tell_job(state, event);
                }
                CheckpointEffect::Completed { .. } | CheckpointEffect::Aborted { .. } => {}
            }
        }
    }

    /// What became of it, for who proposed it.
    fn apply(&self, state: &mut State, proposed: Proposed) -> Settled {
        let job = state.job;
        let during = state.row().generation;
        let settled = match proposed {
            Proposed::Job(proposal, restore, division) => {
                let division = division.map(|first| cut_over::planned(first, None));
                let command = proposal.into_command(job, restore, division.as_ref());
                self.decide(state, command)
            }
            Proposed::Reservation(generation) => {
                let facts = Arc::make_mut(&mut state.facts);
                Settled::Reservation(facts.command(Command::ReserveEpochs { job, generation }))
            }
            Proposed::Completion(permit) => {
                let checkpoint = permit.checkpoint();
                let generation = permit.clone().into_proven().generation;
                let mut command = permit.into_command(job);
                if let Command::EpochCompleted(completed) = &mut command
                    && self.makes(Mistake::CompleteInAnother)
                {
                    completed.generation = during;
                }
                let facts = Arc::make_mut(&mut state.facts);
                let outcome = facts.command(command);
                if outcome.is_ok() {
                    state.completed.push((generation, checkpoint, during));
                }
                Settled::Completion(checkpoint, outcome)
            }
        };
        state.note_finals();
        settled
    }

    fn tell_outcome(&self, state: &mut State, settled: Settled) {
        match settled {
            Settled::Job(outcome) => {
                let event = match outcome {
                    Ok(_) => Event::ProposalApplied,
                    Err(_) => Event::ProposalRejected,
                };
                self.tell_job(state, event);
            }
            Settled::Reservation(outcome) => {
                let event = match outcome {
                    Ok(Outcome::EpochsReserved { first, last }) => {
                        CheckpointEvent::Reserved { first, last }
                    }
                    Ok(_) | Err(_) => CheckpointEvent::ReservationFailed,
                };
                self.tell_checkpoints(state, event);
            }
            Settled::Completion(checkpoint, outcome) => {
                let completed = outcome.map(drop).map_err(|rejection| rejection.to_string());
                let event = CheckpointEvent::Settled {
                    checkpoint,
                    completed,
                };
                self.tell_checkpoints(state, event);
            }
        }
    }

    fn succeed(&self, state: &mut State) {
        let cluster = ClusterId(Uuid::from_u128(7));
        let facts = Arc::make_mut(&mut state.facts);
        let announced = facts.command(Command::LeaderAnnounce { cluster });
        announced.expect("anybody may follow");
        let (machine, checkpoints) = machines(&state.facts, state.job, state.now);
        state.machine = Arc::new(machine);
        state.checkpoints = Arc::new(checkpoints);
        let row = state.row();
        let (first, last) = (row.completed.unwrap_or_default().next(), row.reserved);
        if self.makes(Mistake::NumbersAgain) && last > CheckpointId(0) {
            let nothing = BTreeMap::new();
            let settings = CheckpointSettings {
                pace: Pace {
                    interval: INTERVAL,
                    timeout: TIMEOUT,
                },
                session_timeout: TIMEOUT,
            };
            let before = CheckpointId(first.0 - 1);
            let again = CheckpointMachine::new(settings, before, row.completed, &nothing);
            state.checkpoints = Arc::new(again);
            self.tell_checkpoints(state, CheckpointEvent::Reserved { first, last });
        }
        self.tell_facts(state);
    }

    fn acknowledge(&self, state: &mut State, ack: Ack) {
        let worker = state.workers[ack.worker].node;
        let event = |worker, task| CheckpointEvent::Acknowledged {
            worker,
            generation: ack.generation,
            checkpoint: ack.checkpoint,
            tasks: vec![snapshot(task)],
        };
        if self.makes(Mistake::NameUnprepared) {
            self.invent_holds(state, ack);
        }
        self.tell_checkpoints(state, event(worker, ack.task));
        if self.makes(Mistake::CompleteWithoutOne) {
            for (task, worker) in state.machine.team().worker_of {
                self.tell_checkpoints(state, event(worker, task));
            }
        }
    }
}

enum Settled {
    Job(Result<Outcome, Rejection>),
    Reservation(Result<Outcome, Rejection>),
    Completion(CheckpointId, Result<Outcome, Rejection>),
}

impl State {
    fn row(&self) -> &JobRow {
        self.facts.job(self.job)
    }

    /// What is waited for next, if it comes soon.
    fn next_wake(&self, checkpoints: bool) -> Option<Tick> {
        let checkpoints = checkpoints.then(|| self.checkpoints.wake_at());
        let wake = [self.machine.wake_at(), checkpoints.flatten()];
        let next = wake.into_iter().flatten().min();
        next.filter(|at| at.since(self.now) <= SOON)
    }

    /// Whether anybody would take an acknowledgement for what it is.
    fn counts(&self, ack: &Ack) -> bool {
        let worker = self.workers[ack.worker].node;
        let checked = self.checkpoints.check(ack.generation, worker, ack.epoch);
        checked.is_ok() && Some(ack.checkpoint) > self.row().completed
    }

    /// Whether what a worker would say of its tasks is not known.
    fn has_news(&self, worker: &Worker) -> bool {
        let Some((generation, tasks)) = &worker.runs else {
            return false;
        };
        let is_known = |task: &TaskId| {
            self.machine.task_state(*task) == Some(&self.standing(*generation, *task))
        };
        self.assigned(worker) != worker.runs || !tasks.iter().all(is_known)
    }

    /// What a worker should run, by the facts there are.
    fn assigned(&self, worker: &Worker) -> Option<(Generation, BTreeSet<TaskId>)> {
        let deployment = self.row().deployment.as_ref()?;
        // A life that began later runs nothing of it.
        if worker.epoch.0 > deployment.version.0 {
            return None;
        }
        let tasks = deployment.tasks.iter();
        let tasks = tasks.filter(|task| task.worker == worker.node);
        let tasks: BTreeSet<TaskId> = tasks.map(|task| task.task).collect();
        (!tasks.is_empty()).then_some((deployment.generation, tasks))
    }

    /// The tasks of a worker to which the barriers of checkpoints have come, in their order: to sources from the
    /// coordinator, to others from those.
    fn to_seal(&self, worker: &Worker) -> impl Iterator<Item = (TaskId, CheckpointId)> {
        let runs = worker.runs.as_ref();
        let shape = runs.map(|(generation, _)| &self.shapes[generation]);
        let sources: BTreeSet<TaskId> = shape.into_iter().flat_map(JobShape::sources).collect();
        let injected = self.injected.iter();
        let injected = injected
            .filter(move |(generation, _)| runs.is_some_and(|(running, _)| running == generation));
        injected.flat_map(move |(generation, checkpoint)| {
            let last = |task| {
                let sealed = self.sealed.iter();
                let sealed = sealed.filter(|ack| (ack.generation, ack.task) == (*generation, task));
                sealed.map(|ack| ack.checkpoint).max()
            };
            let passed = sources
                .iter()
                .all(|source| last(*source) >= Some(*checkpoint));
            let tasks = runs
                .into_iter()
                .flat_map(|(_, tasks)| tasks.iter().copied());
            let tasks = tasks.filter(|task| passed || sources.contains(task));
            let tasks = tasks.filter(|task| last(*task) < Some(*checkpoint));
            let tasks: Vec<TaskId> = tasks.collect();
            tasks.into_iter().map(|task| (task, *checkpoint))
        })
    }

    fn give_out(&mut self, checkpoint: CheckpointId, generation: Generation) {
        let by = (self.left.successors, generation);
        if *self.numbers.entry(checkpoint).or_insert(by) != by {
            self.broken.get_or_insert("a number was given out twice");
        }
    }

    fn note_finals(&mut self) {
        let facts = Arc::clone(&self.facts);
        for (generation, last) in &facts.job(self.job).finals {
            if self.finals.entry(*generation).or_insert(*last) != last {
                self.broken
                    .get_or_insert("where a generation ended has changed");
            }
        }
    }
}

impl Worker {
    fn runs_generation(&self, generation: Generation) -> bool {
        let runs = self.runs.as_ref();
        runs.is_some_and(|(running, _)| *running == generation)
    }
}
