//! A worker in the world: what comes to it goes to its line to the coordinator, its partitions, its lanes or its jobs.

mod jobs;
mod link;
mod partitions;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use common::error::{ErrorCode, Problem};
use common::ids::{
    CheckpointId, ClusterId, Generation, JobId, NodeId, StorageId, TaskId, TopicPartition,
    WorkerEpoch,
};
use common::limits::HEARTBEAT_INTERVAL;
use common::protocol::checkpoint::AckCheckpoint;
use common::protocol::node::RegisterWorker;
use common::protocol::replicate::{IsrChange, IsrVerdict};
use common::time::{Span, Tick};
use tokio::sync::Notify;
use uuid::Uuid;
use worker::job::handover::Handover;
use worker::link::Session;
use worker::link::reports::TaskReports;
use worker::log::saved::SavedState;
use worker::metadata_image::MetadataImage;
use worker::operator::custom::CustomOperators;
use worker::partition::age_clock::AgeClock;
use worker::sink::write_queue::NextAppend;
use worker::standby::machine::Event as StandbyEvent;
use worker::task::chain::Question;
use worker::task::memory::StateMemory;

use super::coordinators::Coordinators;
use super::disk::{Crash, Disk};
use super::env::{Env, Event, Timer as WorldTimer};
use super::generation::{RunningJob, StoreChoice};
use super::lanes::{NextBundle, WorkerLanes};
use super::network::{CallFailed, CallId, Process, Reply, Request, ReturnAddress};
use super::replication::{self, Partitions, Replication};
use super::sabotage::Sabotage;
use super::standby::{self, Began, Held, Mail, Work};
use super::tally;
use jobs::{not_running, run, running, since};

const CALL_DEADLINE: Span = Span::from_secs(3);
const RETRY_EVERY: Span = Span::from_millis(250);
const BUNDLE_DEADLINE: Span = Span::from_secs(10);
const REPLICATE_DEADLINE: Span = Span::from_secs(5);
/// How long opening a log, reading from a view, and a message within the process, take at most.
const OPEN_MS: u64 = 20;
const READ_MS: u64 = 20;
const KEEP_MS: u64 = 15;
/// How long a step of preparing another division, or removing what is left of one, takes at most: it goes on while
/// the next generation begins.
const STEP_MS: u64 = 150;
pub const MAILBOX_MS: u64 = 2;
/// How soon it is looked for what is old when the clock was set: what is closed goes, then what had to be closed.
const RETAIN_AFTER: [Span; 3] = [Span(0), Span::from_secs(5), Span::from_secs(10)];
pub const SLOTS: u32 = 16;

#[derive(Debug)]
pub enum Timer {
    Register,
    Heartbeat(u64),
    /// A heartbeat should have been answered.
    Doubt(CallId),
    FetchMetadata,
    Open(TopicPartition),
    /// A replica that is not wanted here any more is closed: what it has is removed.
    Remove(TopicPartition),
    Work(TopicPartition),
    Synced(TopicPartition),
    SyncDue(TopicPartition),
    Patience(TopicPartition),
    LookAtIsr(TopicPartition),
    /// It may be certain by now who leads.
    LookAtDoubted(TopicPartition),
    /// What is old may go.
    Retain(TopicPartition),
    /// A leader's wish goes to the coordinator, once more.
    AlterIsr(IsrChange),
    Replication(replication::Timer),
    /// A lane asks how its channels stand, if nothing else has happened.
    Ask(usize),
    /// A lane tries again.
    Resume(usize),
    Stopped(JobId),
    Restored(JobId, Began),
    Turn(JobId, Generation, TaskId),
    /// The store answers what a task has asked.
    Answer(JobId, Generation, TaskId, Question),
    /// Tasks look around.
    Look(JobId, Generation),
    Written(JobId, Generation, AckCheckpoint),
    Acknowledge(JobId, Generation, AckCheckpoint),
    Folded(JobId, Generation, CheckpointId),
    Standby(JobId, Began, standby::Timer),
    /// What was to be done behind a job's back is done.
    Worked(u64),
    Append(JobId, Generation, TaskId, NextAppend),
    Fetch(JobId, Generation, TaskId, u32),
}

/// Which process something is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub process: Process,
    pub life: u64,
}

#[derive(Debug)]
pub struct Worker {
    pub disk: Disk,
    pub life: u64,
    index: usize,
    coordinators: usize,
    slots: u32,
    /// How many disks it has lost.
    disks: u128,
    /// What its data directory keeps.
    identity: Option<(ClusterId, NodeId)>,
    choice: StoreChoice,
    running: Option<Life>,
}

/// One life of the process.
#[derive(Debug)]
struct Life {
    who: Who,
    coordinators: Coordinators,
    registration: RegisterWorker,
    session: Option<Arc<Session>>,
    image: Arc<MetadataImage>,
    /// It has opened what it leads.
    ready: bool,
    sequence: u64,
    heartbeat: u64,
    urgent: Arc<Notify>,
    reports: TaskReports,
    partitions: Partitions,
    removing: BTreeSet<TopicPartition>,
    replication: Option<Replication>,
    lanes: Option<WorkerLanes>,
    jobs: BTreeMap<JobId, RunningJob>,
    stopping: BTreeSet<JobId>,
    /// Generations this process has begun.
    begun: u64,
    /// What the generations that are being stopped leave to those that start at once.
    left: BTreeMap<JobId, Handover>,
    kept: BTreeSet<JobId>,
    /// What is being done behind the jobs' backs, also of generations that are over.
    working: BTreeMap<u64, Work>,
    last_work: u64,
    custom: Arc<CustomOperators>,
    memory: Arc<StateMemory>,
    ages: AgeClock,
    choice: StoreChoice,
    calls: BTreeMap<CallId, Purpose>,
}

#[derive(Debug)]
enum Purpose {
    Register,
    /// When it was sent.
    Heartbeat(Tick),
    Metadata,
    Bundle(usize),
    /// Who is asked, and in which session.
    Replicate(NodeId, u64),
    AlterIsr(IsrChange),
    /// It is said again as long as the metadata does not say it.
    LogEnd,
    Acknowledge(JobId, Generation, AckCheckpoint),
    Append(JobId, Generation, TaskId, NextAppend),
    Fetch(JobId, Generation, TaskId, u32),
    /// A standby asks this worker.
    Ask(JobId, Began, NodeId),
    /// A standby tells what it has.
    Tell(JobId, Began, Held),
}

impl Who {
    pub fn after(self, env: &mut Env, delay: Span, timer: Timer) {
        let event = Event::Timer {
            process: self.process,
            life: self.life,
            timer: WorldTimer::Worker(timer),
        };
        env.after(delay, event);
    }
}

impl Worker {
    pub fn new(
        index: usize,
        coordinators: usize,
        disk: Disk,
        slots: u32,
        choice: StoreChoice,
    ) -> Worker {
        Worker {
            disk,
            slots,
            life: 0,
            index,
            coordinators,
            disks: 0,
            identity: None,
            choice,
            running: None,
        }
    }

    pub fn has_slots(&self) -> bool {
        self.slots > 0
    }

    /// Which worker its disk belongs to, if it has one.
    pub fn node(&self) -> Option<NodeId> {
        self.identity.map(|(_, node)| node)
    }

    /// The life it is registered in now.
    pub fn session(&self) -> Option<(NodeId, WorkerEpoch)> {
        let session = self.running.as_ref()?.session.as_ref()?;
        Some((session.worker, session.epoch()))
    }

    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    pub fn start(&mut self, env: &mut Env) {
        self.life += 1;
        let who = Who {
            process: Process::Worker(self.index),
            life: self.life,
        };
        let custom = Arc::new(tally::operators());
        let incarnation = (u128::from(self.life) << 64) | (self.index as u128 + 1);
        let registration = RegisterWorker {
            cluster: self.identity.map(|(cluster, _)| cluster),
            worker: self.identity.map(|(_, worker)| worker),
            storage: StorageId(Uuid::from_u128(100 * (self.disks + 1) + self.index as u128)),
            incarnation: Uuid::from_u128(incarnation),
            address: self.index.to_string(),
            clean_shutdown: false,
            version: String::new(),
            cores: 1,
            slots: self.slots,
            memory_bytes: 1 << 30,
            operators: custom.names().map(str::to_owned).collect(),
            rack: None,
        };
        env.trace(|| format!("worker {} starts its life {}", self.index, self.life));
        let mut life = Life {
            who,
            coordinators: Coordinators::new(self.coordinators),
            registration,
            session: None,
            image: Arc::default(),
            ready: false,
            sequence: 0,
            heartbeat: 0,
            urgent: Arc::default(),
            reports: TaskReports::default(),
            partitions: BTreeMap::new(),
            removing: BTreeSet::new(),
            replication: None,
            lanes: None,
            jobs: BTreeMap::new(),
            stopping: BTreeSet::new(),
            begun: 0,
            left: BTreeMap::new(),
            // A directory for a job is there once it was needed.
            kept: BTreeSet::new(),
            working: BTreeMap::new(),
            last_work: 0,
            custom,
            memory: self.choice.memory(),
            ages: AgeClock::open(env.clock(), Some(Arc::new(self.disk.store("log")))),
            choice: self.choice,
            calls: BTreeMap::new(),
        };
        life.register(env);
        self.running = Some(life);
    }

    pub fn crash(&mut self, env: &mut Env, crash: Crash) {
        self.running = None;
        self.disk.crash(crash, env.random());
    }

    /// Somebody has set its wall clock.
    pub fn clock_was_set(&mut self, env: &mut Env) {
        let Some(life) = &self.running else { return };
        for id in life.partitions.keys() {
            for delay in RETAIN_AFTER {
                life.who.after(env, delay, Timer::Retain(*id));
            }
        }
    }

    /// The process ends, and what it comes back with is another disk.
    pub fn lose_disk(&mut self) {
        self.running = None;
        self.identity = None;
        self.disks += 1;
        self.disk.lose();
    }

    pub fn request(&mut self, env: &mut Env, from: ReturnAddress, request: Request) {
        let Some(life) = &mut self.running else {
            return env.refuse(from);
        };
        life.request(env, from, request);
        life.settle(env);
    }

    pub fn answer(&mut self, env: &mut Env, call: CallId, answer: Result<Reply, CallFailed>) {
        let Some(life) = &mut self.running else {
            return;
        };
        if let Some(purpose) = life.calls.remove(&call) {
            if life.coordinators.hear(call, &answer) {
                life.move_on(env);
            }
            life.answer(env, &mut self.identity, purpose, answer);
            life.settle(env);
        }
    }

    pub fn timer(&mut self, env: &mut Env, timer: Timer) {
        let Some(life) = &mut self.running else {
            return;
        };
        life.timer(env, &mut self.disk, timer);
        life.settle(env);
    }
}

impl Life {
    fn timer(&mut self, env: &mut Env, disk: &mut Disk, timer: Timer) {
        let who = self.who;
        match timer {
            Timer::Register => self.register(env),
            Timer::Heartbeat(beat) if beat == self.heartbeat => self.heartbeat(env),
            Timer::Heartbeat(_) => {}
            Timer::Doubt(call) => self.doubt(env, call),
            Timer::FetchMetadata => self.fetch_metadata(env),
            Timer::Open(id) => {
                let storage = disk.log(&format!("partition-{id}"));
                let store = Arc::new(disk.store("log"));
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.open(env, who, &storage, store, &self.ages);
                }
            }
            Timer::Remove(id) => {
                disk.remove_log(&format!("partition-{id}"));
                let forgotten = SavedState::new(Arc::new(disk.store("log")), id).forget();
                if let Err(error) = forgotten {
                    env.break_promise(format!("saved state is left behind: {error}"));
                }
                self.removing.remove(&id);
                self.follow_partitions(env);
            }
            Timer::Work(id) => {
                let image = self.image.clone();
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.work(env, who, &image, &self.ages);
                }
            }
            Timer::Synced(id) => {
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.sync_ran(env, who);
                }
            }
            Timer::SyncDue(id) => {
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.sync_is_due(env, who);
                }
            }
            Timer::Patience(id) => {
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.time_passed(env, who);
                }
            }
            Timer::LookAtIsr(id) => {
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.note_offline(&self.image);
                    let report = partition.log_end_report();
                    if let Some(change) = partition.look_at_isr(env, who) {
                        self.alter_isr(env, change);
                    }
                    if let Some(report) = report {
                        self.say_log_end(env, report);
                    }
                }
            }
            Timer::LookAtDoubted(id) => {
                let partition = self.partitions.get_mut(&id);
                if let (Some(partition), Some(session)) = (partition, &self.session) {
                    partition.look_at_doubted(env, who, session, &self.image);
                }
            }
            Timer::Retain(id) => {
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.retain(env, who);
                }
            }
            Timer::AlterIsr(change) => self.alter_isr(env, change),
            Timer::Replication(timer) => {
                if let Some(replication) = &mut self.replication {
                    let calls = replication.timer(env, who, &mut self.partitions, timer);
                    self.replicate(env, calls);
                }
            }
            Timer::Ask(lane) => {
                let lanes = self.lanes.as_mut();
                let next = lanes.and_then(|lanes| lanes.ask(env, who, &self.image, lane));
                self.send(env, next);
            }
            Timer::Resume(lane) => {
                let lanes = self.lanes.as_mut();
                let next = lanes.and_then(|lanes| lanes.resume(env, who, &self.image, lane));
                self.send(env, next);
            }
            Timer::Stopped(job) => {
                self.stopping.remove(&job);
                self.follow_jobs(env);
                self.left.remove(&job);
            }
            Timer::Restored(job, began) => {
                let lanes = self.lanes.as_ref().map(|lanes| &lanes.lanes);
                let image = self.image.clone();
                if let (Some(running), Some(lanes)) = (since(&mut self.jobs, job, began), lanes) {
                    let reports = &self.reports;
                    if running.opens() {
                        // A store of the same directory opens once the one before is done.
                        for (_, mut work) in self.working.extract_if(.., |_, work| work.job == job)
                        {
                            run(env, who, &mut work);
                        }
                    }
                    running.restore(env, who, disk, lanes, reports, &image);
                }
            }
            Timer::Turn(job, generation, task) => {
                if let Some(running) = running(&mut self.jobs, job, generation) {
                    let calls = running.turn(env, who, task, &self.image);
                    self.begin(env, job, generation, task, calls);
                }
            }
            Timer::Answer(job, generation, task, question) => {
                if let Some(running) = running(&mut self.jobs, job, generation) {
                    running.answer(env, who, task, &question);
                }
            }
            Timer::Look(job, generation) => {
                if let Some(running) = running(&mut self.jobs, job, generation) {
                    running.look(env, who);
                }
            }
            Timer::Written(job, generation, ack) => {
                let image = self.image.clone();
                if let Some(running) = running(&mut self.jobs, job, generation) {
                    let ack = running.written(env, who, ack, &image);
                    self.acknowledge(env, job, generation, ack);
                }
            }
            Timer::Acknowledge(job, generation, ack) => {
                self.acknowledge(env, job, generation, ack);
            }
            Timer::Folded(job, generation, completed) => {
                let image = self.image.clone();
                if let Some(running) = running(&mut self.jobs, job, generation) {
                    running.folded(env, who, completed, &image);
                }
            }
            Timer::Standby(job, began, timer) => {
                let image = self.image.clone();
                if let Some(running) = since(&mut self.jobs, job, began) {
                    running.standby_timer(env, who, &image, timer);
                }
            }
            Timer::Worked(number) => self.worked(env, number),
            Timer::Append(job, generation, task, next) => {
                if running(&mut self.jobs, job, generation).is_some() {
                    self.append(env, job, generation, task, next);
                }
            }
            Timer::Fetch(job, generation, task, split) => {
                if running(&mut self.jobs, job, generation).is_some() {
                    self.fetch(env, job, generation, task, split);
                }
            }
        }
    }

    fn request(&mut self, env: &mut Env, from: ReturnAddress, request: Request) {
        match request {
            Request::Probe => env.answer(from, Ok(Reply::Done)),
            Request::Inject(barrier) => {
                let answer = self.inject(env, &barrier);
                env.answer(from, answer.map(|()| Reply::Done));
            }
            Request::Append(append) => {
                let id = append.batches.first().map(|batch| batch.partition);
                let partition = id.and_then(|id| self.partitions.get_mut(&id));
                match partition {
                    Some(partition) => {
                        partition.note_offline(&self.image);
                        partition.append(env, self.who, append, from);
                    }
                    None => env.answer(from, Err(not_here())),
                }
            }
            Request::Fetch(request) => match self.partitions.get_mut(&request.partition) {
                Some(partition) => partition.fetch(env, self.who, request, from),
                None => env.answer(from, Err(not_here())),
            },
            Request::Replicate(call) => match &mut self.replication {
                Some(replication) => {
                    replication.called(env, self.who, &mut self.partitions, call, from);
                }
                None => env.answer(from, Err(not_here())),
            },
            Request::FetchState(call) => match self.jobs.get_mut(&call.job) {
                Some(running) => running.lend(env, self.who, call, from),
                None => env.answer(from, Err(not_running())),
            },
            Request::Bundle(bundle) => {
                let answer = match &self.lanes {
                    Some(lanes) => lanes.receive(env, &self.image, bundle),
                    None => Err(not_here()),
                };
                env.answer(from, answer.map(Reply::Bundle));
            }
            Request::Register(_)
            | Request::Heartbeat(_)
            | Request::FetchMetadata(_)
            | Request::Acknowledge(_)
            | Request::Decline(_)
            | Request::Hold(_)
            | Request::AlterIsr(_)
            | Request::Command(_)
            | Request::Rescale(_) => unreachable!("nobody asks a worker for that"),
        }
    }

    fn answer(
        &mut self,
        env: &mut Env,
        identity: &mut Option<(ClusterId, NodeId)>,
        purpose: Purpose,
        answer: Result<Reply, CallFailed>,
    ) {
        match (purpose, answer) {
            (Purpose::Register, Ok(Reply::Registered(registered))) => {
                *identity = Some((registered.cluster, registered.worker));
                self.registered(env, &registered);
            }
            (Purpose::Register, Err(failed)) if failed.is_retriable() => {
                self.who.after(env, RETRY_EVERY, Timer::Register);
            }
            (Purpose::Heartbeat(_), Err(CallFailed::Problem(problem)))
                if problem.code == ErrorCode::FencedWorkerEpoch =>
            {
                env.trace(|| format!("{:?} was fenced and registers again", self.who));
                self.register(env);
            }
            (Purpose::Heartbeat(sent), answer) => {
                if let (Some(session), Ok(Reply::Heartbeat(reply))) = (&self.session, answer) {
                    session.hears(sent, reply.metadata_version);
                }
                // An elapsed interval and an urgent word are equally good reasons for the next one.
                self.next_heartbeat(env, HEARTBEAT_INTERVAL);
            }
            (Purpose::Metadata, Ok(Reply::Metadata(delta))) => {
                self.learn(env, *delta);
                self.fetch_metadata(env);
            }
            (Purpose::Metadata, Err(_)) => {
                self.who.after(env, RETRY_EVERY, Timer::FetchMetadata);
            }
            (Purpose::Bundle(lane), answer) => {
                let reply = match answer {
                    Ok(Reply::Bundle(reply)) => Some(reply),
                    Ok(_) | Err(_) => None,
                };
                let (who, image) = (self.who, &self.image);
                let lanes = self.lanes.as_mut();
                let next =
                    lanes.and_then(|lanes| lanes.answered(env, who, image, lane, reply.as_ref()));
                self.send(env, next);
            }
            (Purpose::Replicate(leader, session), answer) => {
                let answer = match answer {
                    Ok(Reply::Replicated(reply)) => Ok(reply),
                    Ok(other) => {
                        return env.break_promise(format!("a follower was answered by {other:?}"));
                    }
                    Err(failed) => Err(failed),
                };
                if let Some(replication) = &mut self.replication {
                    let asked = (leader, session);
                    let partitions = &mut self.partitions;
                    let calls = replication.answered(env, self.who, partitions, asked, answer);
                    self.replicate(env, calls);
                }
            }
            (Purpose::LogEnd, _) => {}
            (Purpose::AlterIsr(change), Ok(Reply::IsrAltered(altered))) => {
                let partition = self.partitions.get_mut(&change.partition);
                if let (Some(partition), [verdict]) = (partition, &altered.verdicts[..]) {
                    partition.isr_answered(env, self.who, verdict);
                }
            }
            (Purpose::AlterIsr(change), answer) => {
                // It may have become a fact: it is repeated until there is an answer.
                if env.sabotaged(Sabotage::ForgetIsrWish)
                    && matches!(answer, Err(CallFailed::Broken | CallFailed::Timeout))
                    && let Some(partition) = self.partitions.get_mut(&change.partition)
                {
                    let verdict = IsrVerdict::Refused {
                        partition_epoch: Some(change.partition_epoch),
                        reason: String::new(),
                    };
                    return partition.isr_answered(env, self.who, &verdict);
                }
                self.who.after(env, RETRY_EVERY, Timer::AlterIsr(change));
            }
            (Purpose::Acknowledge(job, generation, ack), Err(failed)) => {
                if failed.is_retriable() {
                    let timer = Timer::Acknowledge(job, generation, ack);
                    self.who.after(env, RETRY_EVERY, timer);
                }
            }
            (Purpose::Acknowledge(..), Ok(_)) => {}
            (Purpose::Ask(job, began, by), answer) => {
                let event = match answer {
                    Ok(Reply::State(fetched)) => StandbyEvent::Answered {
                        by,
                        pieces: standby::pieces_of(env, fetched),
                    },
                    Ok(_) | Err(_) => StandbyEvent::Unanswered { by },
                };
                self.mail(env, job, began, Mail::Happened(event));
            }
            (Purpose::Tell(job, began, what), answer) => {
                let again = answer.is_err_and(|failed| failed.is_retriable());
                let told = Mail::Told { what, again };
                let pause = if again { RETRY_EVERY } else { Span(0) };
                let timer = Timer::Standby(job, began, standby::Timer::Mail(told));
                self.who.after(env, pause, timer);
            }
            (Purpose::Append(job, generation, task, next), answer) => {
                if let Some(running) = running(&mut self.jobs, job, generation) {
                    running.appended(env, self.who, task, next, answer.map(drop));
                }
            }
            (Purpose::Fetch(job, generation, task, split), answer) => {
                if let Some(running) = running(&mut self.jobs, job, generation) {
                    running.fetched(env, self.who, task, split, answer);
                }
            }
            (purpose @ (Purpose::Register | Purpose::Metadata), answer) => {
                env.break_promise(format!("{purpose:?} was answered by {answer:?}"));
            }
        }
    }

    /// Lets everything run that was woken.
    fn settle(&mut self, env: &mut Env) {
        let (who, image) = (self.who, &self.image);
        let lanes = self.lanes.as_mut();
        let woken = lanes.map(|lanes| lanes.settle(env, who, image));
        for next in woken.unwrap_or_default() {
            self.send(env, Some(next));
        }
        let mut wishes = Vec::new();
        for (job, running) in &mut self.jobs {
            running.settle(env, self.who);
            let (began, wished) = (running.began(), running.take_wishes());
            wishes.extend(wished.into_iter().map(|wish| (*job, began, wish)));
        }
        for (job, began, wish) in wishes {
            self.grant(env, job, began, wish);
        }
        if self.session.is_some() && was_woken(&self.urgent) {
            self.next_heartbeat(env, Span(0));
        }
    }

    fn send(&mut self, env: &mut Env, next: Option<NextBundle>) {
        if let Some(NextBundle {
            lane,
            callee,
            bundle,
        }) = next
        {
            let request = Request::Bundle(bundle);
            self.call(env, callee, request, BUNDLE_DEADLINE, Purpose::Bundle(lane));
        }
    }
}

/// Whether somebody was woken since this was last asked.
pub fn was_woken(wake: &Notify) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    pin!(wake.notified()).poll(&mut context).is_ready()
}

fn not_here() -> Problem {
    Problem::new(ErrorCode::NotLeader, "the partition is not here")
}
