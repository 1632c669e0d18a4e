//! World: one coordinator or a group of them, workers and clients in one thread, with one seed and a time of its own.
//!
//! The machines and stores are the real ones; what their actors do for them is done here, event after
//! event, over a network that loses, repeats and delays, on disks that forget what was not synced. The
//! checkers watch all of it. A run ends when every click was produced, counted, committed and read and
//! the job was stopped, within a bounded time after the last fault.

pub mod tally;
pub mod plan;
pub mod network;
pub mod disk;
pub mod group;
pub mod coordinators;
pub mod faults;
pub mod swarm;
pub mod sabotage;
pub mod env;
pub mod clocks;
pub mod client;
pub mod coordinator;
pub mod partition;
pub mod replication;
pub mod task;
pub mod state_checks;
pub mod standby;
pub mod lanes;
pub mod generation;
pub mod worker;
pub mod description;
pub mod shrink;

use std::fmt;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::coordinator::metadata::ClusterMetadata;
use ::coordinator::metadata::command::{Command, Entry};
use ::coordinator::metadata::jobs::JobRow;
use ::coordinator::metadata::nodes::WorkerStatus;
use common::ids::{CheckpointId, ClusterId, NodeId, TaskId, WorkerEpoch};
use common::plan::task_graph::TaskGraph;
use common::protocol::job::JobState;
use common::protocol::metadata::PartitionImage;
use common::protocol::topic::Durability;
use common::random::{Random, below, coin, seeded};
use common::time::{Span, Tick};
use uuid::Uuid;

use self::client::Client;
use self::coordinator::Coordinator;
use self::coordinator::note;
use self::worker::{SLOTS, Worker};
use clocks::Clocks;
use description::describe;
use disk::{Crash, Disk};
use env::{Env, Event, Timer};
use faults::Fault;
use group::Group;
use network::{Network, Process, ReturnAddress};
use plan::Plan;
use sabotage::Sabotage;
use state_checks::{check_counts, contents_of, counts_of, read_copy};
use swarm::{Kind, Kinds};

const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(7));
/// How long after the last fault everything must be done: several deployments with their pauses.
const PATIENCE: Span = Span::from_secs(300);
/// How long nothing goes wrong after a worker with tasks has lost its disk: its session ends, and others take over.
const SPARED: Span = Span::from_secs(8);
/// How often it is looked at who leads a group of coordinators.
const LOOK_AT_GROUP: Span = Span::from_millis(20);
/// How long readers go on after the job was stopped: a long poll that was lost just before the calm is
/// given up only at its deadline.
const AFTERMATH: Span = Span::from_secs(45);

/// A promise that was broken, with what is needed to see it again.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    /// What of a world it was, and what might strike it.
    pub world: String,
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
    /// How often a task with state went on elsewhere than before, and how often of that what a standby had in
    /// memory was enough.
    pub promoted: u64,
    pub promoted_hot: u64,
    /// How often a task that had failed left its tables.
    pub left_by_failed: u64,
    /// How often the job was to be divided anew, and how often it was.
    pub rescales: u64,
    pub rescaled: u64,
    /// How often another coordinator of a group came to lead.
    pub successions: u64,
    /// Partitions that were led uncleanly, and changes of who is suspect.
    pub unclean: u64,
    pub suspected: u64,
    /// Disks of workers with tasks that were lost, and how often a holder of a checkpoint was looked at.
    pub lost: u64,
    pub looked_at: u64,
    /// What has struck it while there was work under way.
    pub struck: Kinds,
    /// Of all that happened, in order.
    pub fingerprint: u64,
}

#[derive(Debug)]
struct World {
    env: Env,
    coordinators: Vec<Coordinator>,
    workers: Vec<Worker>,
    client: Client,
    faults: std::vec::IntoIter<(Tick, Fault)>,
    next_fault: Option<Fault>,
    calm_since: Option<Tick>,
    drain: bool,
    stopped_at: Option<Tick>,
    /// Nothing else goes wrong before: what is lost must be noticed first.
    spared_until: Tick,
    /// Of what the checkers look at.
    looks: Random,
    looked_at: Option<CheckpointId>,
    kinds: Kinds,
    scratch: PathBuf,
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
            world: format!("{} ({:?})", describe(plan), swarm::kinds(plan)),
            sabotage,
            broken: broken.clone(),
            trace: world.env.trace_tail().cloned().collect(),
        }),
    }
}

impl World {
    fn new(plan: &Plan, sabotage: Option<Sabotage>, directory: &Path) -> World {
        let network = Network::new(plan.weather, seeded(plan.seed, 5));
        let group = Group::new(plan.seed, plan.coordinators);
        let mut clocks = Clocks::new(plan.seed, plan.mishaps.drift_permille);
        let mut disk = |process, name: String| {
            let clock = clocks.of(process);
            Disk::new(clock, &directory.join(name))
        };
        let coordinators = (0..plan.coordinators).map(|index| {
            let name = format!("coordinator-{index}");
            Coordinator::new(index, disk(Process::Coordinator(index), name), CLUSTER)
        });
        let coordinators = coordinators.collect();
        let workers = (0..plan.workers).map(|index| {
            // Without standbys what loses its disk has no tasks: their state would be lost.
            let slots = match plan.loses_disk() == Some(index) && !plan.standbys.loser_works {
                true => 0,
                false => SLOTS,
            };
            let disk = disk(Process::Worker(index), format!("worker-{index}"));
            Worker::new(index, plan.coordinators, disk, slots, plan.store)
        });
        let workers = workers.collect();
        let mut env = Env::new(plan.seed, clocks, network, group, sabotage);
        let clicks = plan.clicks();
        for click in clicks.iter().flatten().flatten() {
            env.checkers.outputs.produced(*click);
        }
        let mut faults = faults::schedule(plan).into_iter();
        let first = faults.next();
        let mut world = World {
            coordinators,
            workers,
            client: Client::new(plan, CLUSTER, clicks),
            env,
            faults,
            next_fault: None,
            calm_since: None,
            drain: plan.drain,
            stopped_at: None,
            spared_until: Tick(0),
            looks: seeded(plan.seed, 11),
            looked_at: None,
            kinds: swarm::kinds(plan),
            scratch: directory.join("looked at"),
            summary: Summary::default(),
        };
        world.expect_fault(first);
        world
    }

    fn run(&mut self) {
        for index in 0..self.coordinators.len() {
            self.restart(Process::Coordinator(index));
        }
        if self.env.group.is_several() {
            self.env.after(LOOK_AT_GROUP, Event::Group);
        }
        for index in 0..self.workers.len() {
            self.restart(Process::Worker(index));
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
            self.env.at_work = self.is_at_work();
            self.env.act(event.acts());
            self.dispatch(event);
            self.env.act(None);
            self.look_at_completed();
        }
        self.note_features();
        self.summary.virtual_ms = self.env.now.0;
        self.summary.questions = self.env.questions;
        self.summary.reigns = self.env.reigns;
        self.summary.cut_off = self.env.cut_off;
        self.summary.promoted = self.env.promoted;
        self.summary.promoted_hot = self.env.promoted_hot;
        self.summary.left_by_failed = self.env.left_by_failed;
        self.summary.rescales = self.env.rescales;
        self.summary.rescaled = self.env.rescaled;
        self.summary.successions = self.env.group.successions();
        self.summary.struck = self.env.struck;
        if let Some(row) = self.job() {
            self.summary.generations = u64::from(row.generation.0);
            self.summary.epochs = row.checkpoints.len() as u64;
        }
        let unclean = self.metadata().map(|metadata| {
            let topics = metadata.topics_by_name();
            let partitions = topics.flat_map(|row| &row.partitions);
            partitions.filter(|p| p.unclean.is_some()).count() as u64
        });
        self.summary.unclean = unclean.unwrap_or_default();
        self.summary.suspected = self.env.suspected;
    }

    fn dispatch(&mut self, event: Event) {
        let env = &mut self.env;
        match event {
            Event::Request { to, from, request } => match to {
                Process::Coordinator(index) => {
                    self.coordinators[index].request(env, from, request);
                }
                Process::Worker(index) => self.workers[index].request(env, from, request),
                Process::Client => unreachable!("nobody calls a client"),
            },
            Event::Answer { to, answer } => {
                let ReturnAddress {
                    caller, life, call, ..
                } = to;
                match caller {
                    Process::Coordinator(index) if self.coordinators[index].life == life => {
                        self.coordinators[index].answer(env, call, answer);
                    }
                    Process::Worker(index) if self.workers[index].life == life => {
                        self.workers[index].answer(env, call, answer);
                    }
                    Process::Client => self.client.answer(env, call, answer),
                    Process::Coordinator(_) | Process::Worker(_) => {}
                }
            }
            Event::HungUp { to, gone, life } => {
                if let Process::Coordinator(index) = to {
                    self.coordinators[index].hung_up(env, gone, life);
                }
            }
            Event::Timer {
                process,
                life,
                timer,
            } => match (process, timer) {
                (Process::Coordinator(index), Timer::Coordinator(timer)) => {
                    if self.coordinators[index].life == life {
                        self.coordinators[index].timer(env, timer);
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
            Event::LoseDisk(index, down) => self.lose_disk(index, down),
            Event::Fault => self.fault(),
            Event::Group => self.look_at_group(),
            Event::Restart(process) => self.restart(process),
        }
    }

    fn fault(&mut self) {
        let Some(fault) = self.next_fault.take() else {
            return;
        };
        let spared = self.env.now < self.spared_until && fault != Fault::Calm;
        if spared {
            let next = self.faults.next();
            return self.expect_fault(next);
        }
        self.env.trace(|| format!("{fault:?}"));
        self.note_fault(fault);
        match fault {
            Fault::Crash {
                process,
                crash,
                down,
            } => self.crash(process, crash, down),
            Fault::LoseDisk { process, down } => {
                if let Process::Worker(index) = process {
                    self.lose_disk(index, down);
                }
            }
            Fault::Isolate { process, lasts } => {
                let until = self.env.now.plus(lasts);
                let alike = |other: &Process| {
                    matches!(
                        (process, other),
                        (Process::Worker(_), Process::Worker(_))
                            | (Process::Coordinator(_), Process::Coordinator(_))
                    )
                };
                for other in self.others(process).filter(alike) {
                    self.env.network.cut(process, other, until);
                }
            }
            Fault::Cut { a, b, lasts } => {
                let until = self.env.now.plus(lasts);
                self.env.network.cut(a, b, until);
            }
            Fault::Stop { process, lasts } => {
                if self.is_up(process) {
                    let until = self.env.time.plus(lasts);
                    self.env.network.stop(process, until);
                }
            }
            Fault::SetClock { process, by_ms } => {
                self.env.clocks.set(process, by_ms);
                if let Process::Worker(index) = process {
                    self.env.act(Some(process));
                    self.workers[index].clock_was_set(&mut self.env);
                    self.env.act(None);
                }
            }
            Fault::SlowDisk { process, lasts } => {
                let until = self.env.time.plus(lasts);
                self.env.slow_disk(process, until);
            }
            Fault::Calm => {
                self.calm_since = Some(self.env.now);
                self.env.network.heal();
            }
        }
        let next = self.faults.next();
        self.expect_fault(next);
    }

    /// One that has tasks loses its disk only when somebody else has all that it has.
    fn lose_disk(&mut self, index: usize, down: Span) {
        let process = Process::Worker(index);
        if self.workers[index].has_slots() {
            if self.calm_since.is_some() {
                return;
            }
            if !self.may_go(index) {
                let later = Span::from_millis(100);
                return self.env.after(later, Event::LoseDisk(index, down));
            }
            self.env.trace(|| format!("{process:?} loses its disk"));
            self.spared_until = self.env.now.plus(SPARED);
            // Where messages are lost, a session may end for that, too: the last other holder's at the same time.
            if self.env.network.weather.lost_permille == 0 && coin(&mut self.looks) {
                // Its host is gone, too: nobody refuses a call there.
                let until = self.env.now.plus(down);
                for other in self.others(process) {
                    self.env.network.cut(process, other, until);
                }
            }
            self.summary.lost += 1;
        }
        self.workers[index].lose_disk();
        self.ended(process, down);
    }

    fn others(&self, than: Process) -> impl Iterator<Item = Process> + use<> {
        let workers = (0..self.workers.len()).map(Process::Worker);
        let coordinators = (0..self.coordinators.len()).map(Process::Coordinator);
        let all = workers.chain(coordinators).chain([Process::Client]);
        all.filter(move |process| *process != than)
    }

    /// Whether of every task's state another worker is a holder, which keeps up with the task or runs it, and is
    /// there to say so.
    fn may_go(&self, index: usize) -> bool {
        let Some(metadata) = self.metadata() else {
            return false;
        };
        let Some(row) = metadata.jobs_by_name().next() else {
            return false;
        };
        let others = (0..)
            .zip(&self.workers)
            .filter(|(other, _)| *other != index);
        let active = |node: NodeId, life: WorkerEpoch| {
            let known = metadata.worker(node);
            known.is_some_and(|known| known.status == WorkerStatus::Active && known.epoch == life)
        };
        let others = others.filter_map(|(_, other)| other.session());
        let others: Vec<NodeId> = others
            .filter(|(node, life)| active(*node, *life))
            .map(|(node, _)| node)
            .collect();
        let takes_part = |task: TaskId, node: &NodeId| {
            row.deployment.as_ref().is_none_or(|deployment| {
                let standbys = deployment.standbys.get(&task);
                deployment.worker_of(task) == *node
                    || standbys.is_some_and(|standbys| standbys.contains(node))
            })
        };
        self.env.network.is_whole(self.env.now)
            && !self.is_completing()
            && row.completed.is_some()
            && row.holders.iter().all(|(task, holders)| {
                // What is prepared can be prepared again.
                let is_prepared = row.graph.find(task.stage).is_none();
                let mut holders = holders.iter();
                is_prepared || holders.any(|node| others.contains(node) && takes_part(*task, node))
            })
    }

    /// Sometimes, when a checkpoint has been completed.
    fn look_at_completed(&mut self) {
        let Some(completed) = self.job().and_then(|row| row.completed) else {
            return;
        };
        if self.looked_at != Some(completed) {
            self.looked_at = Some(completed);
            if below(&mut self.looks, 4) == 0 {
                self.look_at_holders();
            }
        }
    }

    /// Whoever is a holder of the completed checkpoint, killed now or without power, can go on from there.
    fn look_at_holders(&mut self) {
        let Some(row) = self.job() else { return };
        let (Some(at), facts) = (row.completed, row.image()) else {
            return;
        };
        for worker in &self.workers {
            let Some(node) = worker.node() else { continue };
            let held = row.holders.iter();
            // What was prepared of a division that is not wanted any more is of no use to anybody.
            let held = held.filter(|(task, holders)| {
                holders.contains(&node) && graph_of(&row, **task).is_some()
            });
            let held: Vec<TaskId> = held.map(|(task, _)| *task).collect();
            if held.is_empty() {
                continue;
            }
            let name = format!("job-{}", row.id);
            let copy = worker.disk.copy(&name, &self.scratch);
            let mut copy = copy.expect("files can be copied");
            if coin(&mut self.looks) {
                copy.crash(Crash::PowerLoss, &mut self.looks);
            }
            let read = read_copy(&mut copy, &facts, row.graph.key_groups, &held, at);
            fs::remove_dir_all(&self.scratch).expect("it is there");
            self.summary.looked_at += 1;
            for (task, state) in read {
                let state = state.map_err(|error| error.to_string());
                if let Ok(tables) = &state
                    && let Some(graph) = graph_of(&row, task)
                    && tally::counts(graph, task)
                {
                    let counts = counts_of(tables);
                    check_counts(&mut self.env, graph, task, at, &counts);
                }
                let contents = state.map(|tables| contents_of(&tables));
                let holders = &mut self.env.checkers.holders;
                let verdict = holders.has(at, task, node, contents);
                self.env.check(verdict);
            }
        }
    }

    /// The job runs, and not all that went in has come out.
    fn is_at_work(&self) -> bool {
        let outputs = &self.env.checkers.outputs;
        self.job_state() == Some(JobState::Running) && outputs.counted() < outputs.expected()
    }

    fn note_fault(&mut self, fault: Fault) {
        let kind = match fault {
            Fault::Crash { process, crash, .. } => match (process, crash) {
                (Process::Coordinator(_), Crash::Kill) => Kind::CoordinatorKilled,
                (Process::Coordinator(_), Crash::PowerLoss) => Kind::CoordinatorWithoutPower,
                (_, Crash::Kill) => Kind::WorkerKilled,
                (_, Crash::PowerLoss) => Kind::WorkerWithoutPower,
            },
            Fault::LoseDisk { .. } => Kind::DiskLost,
            Fault::Isolate { process, .. } => match process {
                Process::Coordinator(_) => Kind::CoordinatorIsolated,
                Process::Worker(_) | Process::Client => Kind::WorkerIsolated,
            },
            Fault::Cut { .. } => Kind::ProcessesCut,
            Fault::Stop { process, .. } => match process {
                Process::Coordinator(_) => Kind::CoordinatorStopped,
                Process::Worker(_) | Process::Client => Kind::WorkerStopped,
            },
            Fault::SetClock { .. } => Kind::ClockSet,
            Fault::SlowDisk { .. } => Kind::DiskSlow,
            Fault::Calm => return,
        };
        self.env.strike(kind);
        if self.kinds.has(Kind::Storm) {
            self.env.strike(Kind::Storm);
        }
    }

    /// What the world has, if that came to something.
    fn note_features(&mut self) {
        let has_epochs = |metadata: &ClusterMetadata| {
            let row = metadata.jobs_by_name().next();
            row.is_some_and(|row| row.completed.is_some())
        };
        let epochs = self.metadata().is_some_and(has_epochs);
        let reigns = epochs && self.env.reigns > 0;
        for (kind, used) in [
            (
                Kind::LeaderSucceeded,
                epochs && self.env.group.successions() > 0,
            ),
            (Kind::Copies, reigns),
            (Kind::CommittedInMemory, reigns),
            (Kind::Standbys, self.env.promoted > 0),
            (Kind::StateOnDisk, epochs && self.env.questions > 0),
            (Kind::Rescaled, self.env.rescaled > 0),
            (Kind::Drained, self.job_state() == Some(JobState::Finished)),
            (Kind::ClocksDiffer, epochs),
        ] {
            if used && self.kinds.has(kind) {
                self.env.struck.add(kind);
            }
        }
    }

    fn expect_fault(&mut self, next: Option<(Tick, Fault)>) {
        if let Some((at, fault)) = next {
            self.next_fault = Some(fault);
            let delay = at.since(self.env.now);
            self.env.after(delay, Event::Fault);
        }
    }

    fn crash(&mut self, process: Process, crash: Crash, down: Span) {
        let is_remembered = match process {
            Process::Worker(index) => self.is_remembered_without(index),
            Process::Coordinator(_) | Process::Client => true,
        };
        let env = &mut self.env;
        match process {
            Process::Coordinator(index) if self.coordinators[index].is_up() => {
                self.coordinators[index].crash(env, crash);
            }
            Process::Worker(index) if self.workers[index].is_up() => {
                // What is acknowledged is lost only if all that are in sync lose their power.
                let crash = match is_remembered {
                    true => crash,
                    false => Crash::Kill,
                };
                let life = self.workers[index].life;
                self.workers[index].crash(env, crash);
                // One that has lost its power says nothing to anybody.
                if crash == Crash::Kill {
                    for coordinator in 0..self.coordinators.len() {
                        env.hang_up((process, life), Process::Coordinator(coordinator));
                    }
                }
            }
            Process::Coordinator(_) | Process::Worker(_) | Process::Client => return,
        }
        self.ended(process, down);
    }

    fn is_up(&self, process: Process) -> bool {
        match process {
            Process::Coordinator(index) => self.coordinators[index].is_up(),
            Process::Worker(index) => self.workers[index].is_up(),
            Process::Client => true,
        }
    }

    fn ended(&mut self, process: Process, down: Span) {
        self.summary.crashes += 1;
        self.env.network.go_on(process);
        self.env.after(down, Event::Restart(process));
        self.look_at_holders();
    }

    /// Whether everything that was acknowledged in memory is in that of another worker, which is up and has been in
    /// the cluster since.
    fn is_remembered_without(&self, index: usize) -> bool {
        let Some(metadata) = self.metadata() else {
            return false;
        };
        let node = self.workers[index].node();
        let lives = |node: NodeId| {
            let session = metadata.worker(node).map(|row| (node, row.epoch));
            let mut sessions = self.workers.iter().filter_map(Worker::session);
            sessions.any(|life| Some(life) == session)
        };
        let in_memory = metadata
            .topics_by_name()
            .filter(|row| row.config.durability == Durability::Replicated);
        let mut partitions = in_memory.flat_map(|row| &row.partitions);
        partitions.all(|partition| {
            let others = partition.isr.iter().filter(|other| Some(**other) != node);
            let mut trusted = others.filter(|other| !partition.suspect.contains(other));
            trusted.any(|other| lives(*other))
        })
    }

    fn restart(&mut self, process: Process) {
        let env = &mut self.env;
        env.act(Some(process));
        match process {
            Process::Coordinator(index) if !self.coordinators[index].is_up() => {
                self.coordinators[index].start(env);
            }
            Process::Worker(index) if !self.workers[index].is_up() => {
                self.workers[index].start(env);
            }
            Process::Coordinator(_) | Process::Worker(_) | Process::Client => {}
        }
        env.act(None);
    }

    /// The facts, if somebody keeps them now.
    fn metadata(&self) -> Option<&ClusterMetadata> {
        match self.env.group.is_several() {
            true => Some(self.env.group.facts()),
            false => self.coordinators.first()?.metadata(),
        }
    }

    fn job(&self) -> Option<Arc<JobRow>> {
        self.metadata()?.jobs_by_name().next().cloned()
    }

    /// Whether a completion is about to become a fact.
    fn is_completing(&self) -> bool {
        let completes = |entry: &Entry| matches!(entry.command, Command::EpochCompleted(_));
        let mut coordinators = self.coordinators.iter();
        self.env.group.is_proposed(completes)
            || coordinators.any(|coordinator| coordinator.is_proposed(completes))
    }

    /// Another coordinator may come to lead, and others come to know what was decided.
    fn look_at_group(&mut self) {
        let Env {
            group,
            network,
            now,
            ..
        } = &mut self.env;
        let mut noted = Vec::new();
        let leads = group.look(network, *now, &mut |entry, outcome, suspected| {
            noted.push((entry.clone(), outcome.is_ok(), suspected));
        });
        for (entry, carried_out, suspected) in noted {
            note(&mut self.env, &entry, carried_out, suspected);
        }
        if let Some((leader, term)) = leads {
            self.env.act(Some(Process::Coordinator(leader)));
            self.coordinators[leader].lead(&mut self.env, term);
        }
        for (index, coordinator) in self.coordinators.iter_mut().enumerate() {
            let process = Process::Coordinator(index);
            if self.env.network.stopped(self.env.time, process).is_none() {
                self.env.act(Some(process));
                coordinator.look_at_group(&mut self.env);
            }
        }
        self.env.act(None);
        self.env.after(LOOK_AT_GROUP, Event::Group);
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
        let metadata = self.metadata()?;
        Some(metadata.jobs_by_name().next()?.state)
    }

    fn describe(&self) -> String {
        let outputs = &self.env.checkers.outputs;
        let job = self.metadata().and_then(|metadata| {
            let row = metadata.jobs_by_name().next()?;
            Some(format!(
                "job {:?} ({}), generation {}, completed {:?}",
                row.state, row.reason, row.generation, row.completed
            ))
        });
        let topics = self.metadata();
        let topics = topics.iter().flat_map(|metadata| metadata.topics_by_name());
        let partitions = topics.flat_map(|row| &row.partitions).map(|partition| {
            let PartitionImage {
                replicas,
                isr,
                leader,
                leader_epoch,
                suspect,
                ..
            } = partition;
            format!(
                ", {isr:?} (suspect {suspect:?}) of {replicas:?} led by {leader:?} in {leader_epoch}"
            )
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
            Event::HungUp { life, .. } => life << 2 | 3,
            Event::Fault | Event::Group | Event::LoseDisk(..) | Event::Restart(_) => 3,
        };
        let mixed = self.summary.fingerprint ^ kind ^ (self.env.now.0 << 20);
        self.summary.fingerprint = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
    }
}

/// The division of the job that a task is of: the one it has or the one it is to have.
fn graph_of(row: &JobRow, task: TaskId) -> Option<&TaskGraph> {
    let next = row.division.as_ref().map(|division| &*division.graph);
    let mut graphs = next.into_iter().chain([&*row.graph]);
    graphs.find(|graph| graph.find(task.stage).is_some())
}

impl Failure {
    /// In which way the promise was broken: what was said, without what it was said of.
    pub fn way(&self) -> Vec<&str> {
        let words = self.broken.split_whitespace();
        let words = words.map(|word| word.trim_end_matches([',', ':', '.']));
        let plain = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase());
        words
            .filter(plain)
            .filter(|word| !word.is_empty())
            .collect()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{}", self.world)?;
        write!(f, "seed {}", self.seed)?;
        if let Some(sabotage) = self.sabotage {
            write!(f, " with {sabotage:?}")?;
        }
        write!(f, ": {}", self.broken)
    }
}
