//! World: a coordinator, workers and clients in one thread, with one seed and a time of its own.
//!
//! The machines and stores are the real ones; what their actors do for them is done here, event after
//! event, over a network that loses, repeats and delays, on disks that forget what was not synced. The
//! checkers watch all of it. A run ends when every click was produced, counted, committed and read and
//! the job was stopped, within a bounded time after the last fault.

pub mod tally;
pub mod plan;
pub mod network;
pub mod disk;
pub mod faults;
pub mod sabotage;
pub mod env;
pub mod client;
pub mod coordinator;
pub mod partition;
pub mod replication;
pub mod task;
pub mod lanes;
pub mod generation;
pub mod worker;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use common::ids::ClusterId;
use common::protocol::job::JobState;
use common::protocol::metadata::PartitionImage;
use common::random::seeded;
use common::time::{Span, Tick};
use uuid::Uuid;

use self::client::Client;
use self::coordinator::Coordinator;
use self::worker::{SLOTS, Worker};
use disk::{Crash, Disk};
use env::{Env, Event, Timer};
use faults::Fault;
use network::{Network, Process, ReturnAddress};
use plan::Plan;
use sabotage::Sabotage;

/// How long after the last fault everything must be done: several deployments with their pauses.
const PATIENCE: Span = Span::from_secs(300);
/// How long readers go on after the job was stopped: a long poll that was lost just before the calm is
/// given up only at its deadline.
const AFTERMATH: Span = Span::from_secs(45);

/// A promise that was broken, with what is needed to see it again.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub sabotage: Option<Sabotage>,
    pub broken: String,
    pub trace: Vec<String>,
}

/// What a run was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub events: u64,
    pub virtual_ms: u64,
    pub generations: u64,
    pub epochs: u64,
    pub crashes: u64,
    /// How often a task did not have in memory what it needed.
    pub questions: u64,
    /// How often a replica began to lead, and how often a log was cut off.
    pub reigns: u64,
    pub cut_off: u64,
    /// Of all that happened, in order.
    pub fingerprint: u64,
}

#[derive(Debug)]
struct World {
    env: Env,
    coordinator: Coordinator,
    workers: Vec<Worker>,
    client: Client,
    faults: std::vec::IntoIter<(Tick, Fault)>,
    next_fault: Option<Fault>,
    calm_since: Option<Tick>,
    drain: bool,
    stopped_at: Option<Tick>,
    summary: Summary,
}

/// Runs the world of this seed to its end.
pub fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<Summary, Failure> {
    run_plan(&Plan::draw(seed), sabotage)
}

pub fn run_plan(plan: &Plan, sabotage: Option<Sabotage>) -> Result<Summary, Failure> {
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let mut world = World::new(plan, sabotage, directory.path());
    let run = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panic) = run {
        let words = panic.downcast_ref::<String>().cloned().or_else(|| {
            panic
                .downcast_ref::<&str>()
                .map(|words| (*words).to_owned())
        });
        let words = words.unwrap_or_default();
        world.env.break_promise(format!("panic: {words}"));
    }
    match world.env.broken() {
        None => Ok(world.summary),
        Some(broken) => Err(Failure {
            seed: plan.seed,
            sabotage,
            broken: broken.clone(),
            trace: world.env.trace_tail().cloned().collect(),
        }),
    }
}

impl World {
    fn new(plan: &Plan, sabotage: Option<Sabotage>, directory: &Path) -> World {
        let network = Network::new(plan.weather, seeded(plan.seed, 5));
        let mut env = Env::new(plan.seed, network, sabotage);
        let clicks = plan.clicks();
        for click in clicks.iter().flatten().flatten() {
            env.checkers.outputs.produced(*click);
        }
        let cluster = ClusterId(Uuid::from_u128(7));
        let clock = env.clock();
        let disk = |name: String| Disk::new(clock.clone(), &directory.join(name));
        let workers = (0..plan.workers).map(|index| {
            // What loses its disk has no tasks: their state would be lost.
            let slots = match plan.loses_disk() == Some(index) {
                true => 0,
                false => SLOTS,
            };
            Worker::new(index, disk(format!("worker-{index}")), slots, plan.store)
        });
        let mut faults = faults::schedule(plan).into_iter();
        let first = faults.next();
        let mut world = World {
            coordinator: Coordinator::new(disk("coordinator".to_owned()), cluster),
            workers: workers.collect(),
            client: Client::new(plan, cluster, clicks),
            env,
            faults,
            next_fault: None,
            calm_since: None,
            drain: plan.drain,
            stopped_at: None,
            summary: Summary::default(),
        };
        world.expect_fault(first);
        world
    }

    fn run(&mut self) {
        self.coordinator.start(&mut self.env);
        for worker in &mut self.workers {
            worker.start(&mut self.env);
        }
        self.client.start(&mut self.env);
        while self.env.broken().is_none() && !self.is_over() {
            let Some(event) = self.env.next_event() else {
                return self
                    .env
                    .break_promise("nothing happens any more".to_owned());
            };
            self.summary.events += 1;
            self.note(&event);
            self.dispatch(event);
        }
        self.summary.virtual_ms = self.env.now.0;
        self.summary.questions = self.env.questions;
        self.summary.reigns = self.env.reigns;
        self.summary.cut_off = self.env.cut_off;
        if let Some(metadata) = self.coordinator.metadata()
            && let Some(row) = metadata.jobs_by_name().next()
        {
            self.summary.generations = u64::from(row.generation.0);
            self.summary.epochs = row.checkpoints.len() as u64;
        }
    }

    fn dispatch(&mut self, event: Event) {
        let env = &mut self.env;
        match event {
            Event::Request { to, from, request } => match to {
                Process::Coordinator => self.coordinator.request(env, from, request),
                Process::Worker(index) => self.workers[index].request(env, from, request),
                Process::Client => unreachable!("nobody calls a client"),
            },
            Event::Answer { to, answer } => {
                let ReturnAddress {
                    caller, life, call, ..
                } = to;
                match caller {
                    Process::Coordinator if self.coordinator.life == life => {
                        self.coordinator.answer(env, call, answer);
                    }
                    Process::Worker(index) if self.workers[index].life == life => {
                        self.workers[index].answer(env, call, answer);
                    }
                    Process::Client => self.client.answer(env, call, answer),
                    Process::Coordinator | Process::Worker(_) => {}
                }
            }
            Event::Timer {
                process,
                life,
                timer,
            } => match (process, timer) {
                (Process::Coordinator, Timer::Coordinator(timer)) => {
                    if self.coordinator.life == life {
                        self.coordinator.timer(env, timer);
                    }
                }
                (Process::Worker(index), Timer::Worker(timer)) => {
                    if self.workers[index].life == life {
                        self.workers[index].timer(env, timer);
                    }
                }
                (_, Timer::Client(timer)) => self.client.timer(env, timer),
                (process, timer) => unreachable!("{timer:?} is not for {process:?}"),
            },
            Event::Fault => self.fault(),
            Event::Restart(process) => self.restart(process),
        }
    }

    fn fault(&mut self) {
        let Some(fault) = self.next_fault.take() else {
            return;
        };
        self.env.trace(|| format!("{fault:?}"));
        match fault {
            Fault::Crash {
                process,
                crash,
                down,
            } => self.crash(process, crash, down),
            Fault::LoseDisk { process, down } => {
                if let Process::Worker(index) = process {
                    self.workers[index].lose_disk();
                    self.summary.crashes += 1;
                    self.env.after(down, Event::Restart(process));
                }
            }
            Fault::Isolate { process, lasts } => {
                let until = self.env.now.plus(lasts);
                for other in (0..self.workers.len()).map(Process::Worker) {
                    self.env.network.cut(process, other, until);
                }
            }
            Fault::Cut { a, b, lasts } => {
                let until = self.env.now.plus(lasts);
                self.env.network.cut(a, b, until);
            }
            Fault::Calm => {
                self.calm_since = Some(self.env.now);
                self.env.network.heal();
            }
        }
        let next = self.faults.next();
        self.expect_fault(next);
    }

    fn expect_fault(&mut self, next: Option<(Tick, Fault)>) {
        if let Some((at, fault)) = next {
            self.next_fault = Some(fault);
            let delay = at.since(self.env.now);
            self.env.after(delay, Event::Fault);
        }
    }

    fn crash(&mut self, process: Process, crash: Crash, down: Span) {
        let env = &mut self.env;
        match process {
            Process::Coordinator if self.coordinator.is_up() => {
                self.coordinator.crash(env, crash);
            }
            Process::Worker(index) if self.workers[index].is_up() => {
                self.workers[index].crash(env, crash);
            }
            Process::Coordinator | Process::Worker(_) | Process::Client => return,
        }
        self.summary.crashes += 1;
        env.after(down, Event::Restart(process));
    }

    fn restart(&mut self, process: Process) {
        let env = &mut self.env;
        match process {
            Process::Coordinator if !self.coordinator.is_up() => self.coordinator.start(env),
            Process::Worker(index) if !self.workers[index].is_up() => {
                self.workers[index].start(env);
            }
            Process::Coordinator | Process::Worker(_) | Process::Client => {}
        }
    }

    /// Whether everything was done, or should have been.
    fn is_over(&mut self) -> bool {
        if let Some(stopped) = self.stopped_at {
            if self.env.now < stopped.plus(AFTERMATH) {
                return false;
            }
            let verdict = self.env.checkers.outputs.finished(self.drain);
            self.env.check(verdict);
            let verdict = self.env.checkers.committed.finished();
            self.env.check(verdict);
            return true;
        }
        let Some(calm) = self.calm_since else {
            return false;
        };
        if self.env.now > calm.plus(PATIENCE) {
            let state = self.describe();
            self.env.break_promise(format!(
                "{PATIENCE} after the last fault the world has not come to its end: {state}"
            ));
            return true;
        }
        let outputs = &self.env.checkers.outputs;
        if self.client.has_produced() && outputs.counted() == outputs.expected() {
            self.client.stop_job();
            let end = match self.drain {
                true => JobState::Finished,
                false => JobState::Stopped,
            };
            if self.job_state() == Some(end) {
                self.stopped_at = Some(self.env.now);
            }
        }
        false
    }

    fn job_state(&self) -> Option<JobState> {
        let metadata = self.coordinator.metadata()?;
        Some(metadata.jobs_by_name().next()?.state)
    }

    fn describe(&self) -> String {
        let outputs = &self.env.checkers.outputs;
        let job = self.coordinator.metadata().and_then(|metadata| {
            let row = metadata.jobs_by_name().next()?;
            Some(format!(
                "job {:?} ({}), generation {}, completed {:?}",
                row.state, row.reason, row.generation, row.completed
            ))
        });
        let topics = self.coordinator.metadata();
        let topics = topics.iter().flat_map(|metadata| metadata.topics_by_name());
        let partitions = topics.flat_map(|row| &row.partitions).map(|partition| {
            let PartitionImage {
                replicas,
                isr,
                leader,
                leader_epoch,
                ..
            } = partition;
            format!(", {isr:?} of {replicas:?} led by {leader:?} in {leader_epoch}")
        });
        format!(
            "{} of {} clicks came out, all produced: {}, {}{}",
            outputs.counted(),
            outputs.expected(),
            self.client.has_produced(),
            job.unwrap_or_else(|| "there is no job".to_owned()),
            partitions.collect::<String>()
        )
    }

    fn note(&mut self, event: &Event) {
        let kind: u64 = match event {
            Event::Request { from, .. } => from.call << 2,
            Event::Answer { to, .. } => to.call << 2 | 1,
            Event::Timer { life, .. } => life << 2 | 2,
            Event::Fault | Event::Restart(_) => 3,
        };
        let mixed = self.summary.fingerprint ^ kind ^ (self.env.now.0 << 20);
        self.summary.fingerprint = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        write!(f, "seed {}", self.seed)?;
        if let Some(sabotage) = self.sabotage {
            write!(f, " with {sabotage:?}")?;
        }
        write!(f, ": {}", self.broken)
    }
}
