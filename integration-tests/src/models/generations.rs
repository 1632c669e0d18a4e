//! Model: the end of one generation and the start of the next, with checkpoints under way.
//!
//! Scope: a job of two tasks on two workers, a few checkpoints, one worker that crashes or whose session ends
//! while it goes on, one coordinator that is followed by another. The job's machine, its checkpoints' machine
//! and the metadata are the real ones. What is proposed becomes a fact later, in its order, or is lost with
//! the coordinator; barriers and acknowledgements come late, again, or never. Time moves only to what the
//! machines wait for soon: nothing is given up for taking long.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash};
use std::sync::Arc;

use common::ids::{CheckpointId, ClusterId, Generation, JobId, NodeId, TaskId, WorkerEpoch};
use common::protocol::checkpoint::{CheckpointKind, TaskCounts, TaskSnapshot};
use common::protocol::job::JobState;
use common::protocol::task::TaskState;
use common::time::{Span, Tick};
use coordinator::checkpoint::machine::{
    CheckpointMachine, Effect as CheckpointEffect, Event as CheckpointEvent, Pace,
    Settings as CheckpointSettings,
};
use coordinator::checkpoint::permit::CommitPermit;
use coordinator::job::facts::{Facts as JobFacts, Proposal, slots_by_job, workers_for};
use coordinator::job::machine::{Checkpointing, Effect, Event, JobMachine, Settings};
use coordinator::metadata::command::{Command, Outcome, Rejection};
use coordinator::metadata::jobs::JobRow;
use coordinator::metadata::nodes::WorkerStatus;
use uuid::Uuid;

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
    /// How often time moves on to the next checkpoint.
    pub ticks: u8,
    /// Workers that crash, or whose session ends while they go on.
    pub failures: u8,
    /// Coordinators that follow the first.
    pub successors: u8,
    pub mistake: Option<Mistake>,
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
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Left {
    ticks: u8,
    failures: u8,
    successors: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Proposed {
    Job(Proposal, Option<CheckpointId>),
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
            },
            numbers: BTreeMap::new(),
            completed: Vec::new(),
            finals: BTreeMap::new(),
            broken: None,
        };
        self.tell_facts(&mut state);
        state
    }

    fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        let Left {
            ticks,
            failures,
            successors,
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
            if worker.runs.is_some() {
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
        actions.extend(state.sealed.iter().map(|ack| Action::Acknowledge(*ack)));
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
                        .map(|task| (generation, task, TaskState::Running))
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
        }
    }

    fn digest(&self, state: &State, hasher: &mut DefaultHasher) {
        state.facts.digest_job(state.job, hasher);
        state.facts.digest_workers(hasher);
        (state.now, &state.machine, &state.checkpoints).hash(hasher);
        (&state.proposed, &state.workers).hash(hasher);
        (&state.barriers, &state.injected, &state.sealed).hash(hasher);
        (state.left, &state.numbers, &state.completed).hash(hasher);
        (&state.finals, state.broken).hash(hasher);
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
                    let mut tasks = state.row().graph.tasks();
                    tasks.all(|task| {
                        let mut sealed = state.sealed.iter();
                        sealed.any(|ack| {
                            (ack.generation, ack.checkpoint, ack.task)
                                == (*generation, *checkpoint, task)
                        })
                    })
                })
            }),
            Property::stays_open("every task runs", |state| {
                let row = state.row();
                row.state == JobState::Running
                    && state
                        .workers
                        .iter()
                        .all(|worker| state.assigned(worker) == worker.runs)
            }),
        ];
        if self.failures > 0 {
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
        if self.successors > 0 {
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
        let event = Event::MetadataChanged {
            facts: JobFacts::of(state.row()),
            workers: workers_for(&state.facts.metadata, &slots, state.job),
        };
        self.tell_job(state, event);
    }

    fn tell_job(&self, state: &mut State, event: Event) {
        for effect in Arc::make_mut(&mut state.machine).handle(state.now, event) {
            match effect {
                Effect::Propose(proposal) => {
                    let restore = state.machine.facts().completed;
                    state.proposed.push_back(Proposed::Job(proposal, restore));
                }
                Effect::Checkpoint(checkpointing) => {
                    let team = state.machine.team();
                    let completed = state.machine.facts().completed;
                    let run = |generation, kind| CheckpointEvent::Run {
                        generation,
                        team,
                        kind,
                        completed,
                    };
                    let event = match checkpointing {
                        Checkpointing::Off => CheckpointEvent::Halt,
                        Checkpointing::Periodic { generation } => {
                            run(generation, CheckpointKind::Periodic)
                        }
                        Checkpointing::Final { .. }
                        | Checkpointing::CutOver { .. }
                        | Checkpointing::Drain { .. } => unreachable!("nobody wants it to end"),
                    };
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
                    ..
                } => {
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
                CheckpointEffect::Completed { .. } | CheckpointEffect::Aborted { .. } => {}
            }
        }
    }

    /// What became of it, for who proposed it.
    fn apply(&self, state: &mut State, proposed: Proposed) -> Settled {
        let job = state.job;
        let during = state.row().generation;
        let facts = Arc::make_mut(&mut state.facts);
        let settled = match proposed {
            Proposed::Job(proposal, restore) => {
                Settled::Job(facts.command(proposal.into_command(job, restore, None)))
            }
            Proposed::Reservation(generation) => {
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
        let checked = state.checkpoints.check(ack.generation, worker, ack.epoch);
        if checked.is_err() {
            return;
        }
        let event = |worker, task| CheckpointEvent::Acknowledged {
            worker,
            generation: ack.generation,
            checkpoint: ack.checkpoint,
            tasks: vec![snapshot(task)],
        };
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
        let sources: BTreeSet<TaskId> = self.machine.shape().sources().collect();
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
