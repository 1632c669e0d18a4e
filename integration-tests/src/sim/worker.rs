//! A worker in the world: its line to the coordinator, its partitions, its lanes and its jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use common::error::{ErrorCode, Problem};
use common::ids::{
    CheckpointId, ClusterId, Generation, JobId, MetadataVersion, NodeId, PartitionId, StorageId,
    TaskId, TopicPartition, WorkerEpoch,
};
use common::limits::{HEARTBEAT_INTERVAL, MAX_WAIT};
use common::protocol::checkpoint::{AckCheckpoint, InjectBarrier};
use common::protocol::metadata::{FetchMetadata, MetadataDelta};
use common::protocol::node::{Heartbeat, NodeLoad, RegisterWorker, Registered};
use common::protocol::replicate::{AlterIsr, IsrChange, IsrVerdict, LogEndReport};
use common::protocol::standby::{AckStandby, FetchState};
use common::time::{Span, Tick};
use tokio::sync::Notify;
use uuid::Uuid;
use worker::job::assignment::{changes, completed};
use worker::job::handover::Handover;
use worker::link::reports::TaskReports;
use worker::link::{DOUBT_AFTER, Session};
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
use super::partition::Partition;
use super::replication::{self, NextCall, Partitions, Replication};
use super::sabotage::Sabotage;
use super::standby::{self, Began, Held, Mail, Wish, Work};
use super::tally;
use super::task::{Wanted, append_request};

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
                    partition.open(env, who, &storage, store);
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

    // The line to the coordinator.

    fn call(
        &mut self,
        env: &mut Env,
        callee: Process,
        request: Request,
        deadline: Span,
        purpose: Purpose,
    ) -> CallId {
        let caller = (self.who.process, self.who.life);
        let call = env.call(caller, callee, request, deadline);
        self.coordinators.asks(call, callee);
        self.calls.insert(call, purpose);
        call
    }

    fn ask_coordinator(
        &mut self,
        env: &mut Env,
        request: Request,
        deadline: Span,
        purpose: Purpose,
    ) -> CallId {
        let coordinator = self.coordinators.current();
        self.call(env, coordinator, request, deadline, purpose)
    }

    /// What waits at a coordinator that hangs would not notice it.
    fn move_on(&mut self, env: &mut Env) {
        let waits = |purpose: &Purpose| matches!(purpose, Purpose::Metadata);
        if self.coordinators.give_up(&mut self.calls, waits) {
            self.fetch_metadata(env);
        }
    }

    /// A heartbeat is said twice rather than too late.
    fn doubt(&mut self, env: &mut Env, call: CallId) {
        if self.coordinators.doubt(call) {
            self.move_on(env);
            self.heartbeat(env);
        }
    }

    fn register(&mut self, env: &mut Env) {
        let request = Request::Register(self.registration.clone());
        self.ask_coordinator(env, request, CALL_DEADLINE, Purpose::Register);
    }

    fn registered(&mut self, env: &mut Env, registered: &Registered) {
        let Registered { worker, epoch, .. } = *registered;
        env.trace(|| format!("{:?} is worker {worker} in epoch {epoch}", self.who));
        let first = self.session.is_none();
        match &self.session {
            Some(session) => session.registered_again(epoch),
            None => self.session = Some(Session::of(registered)),
        }
        self.sequence = 0;
        for running in self.jobs.values_mut() {
            running.worker_is_now(epoch);
        }
        if first {
            self.lanes = Some(WorkerLanes::new(worker, epoch));
            self.replication = Some(Replication::new(worker, epoch));
            self.fetch_metadata(env);
        }
        if let Some(replication) = &mut self.replication {
            replication.worker_is_now(epoch);
        }
        self.heartbeat(env);
    }

    fn next_heartbeat(&mut self, env: &mut Env, after: Span) {
        self.heartbeat += 1;
        self.who.after(env, after, Timer::Heartbeat(self.heartbeat));
    }

    fn heartbeat(&mut self, env: &mut Env) {
        let Some(session) = self.session.clone() else {
            return;
        };
        // Whatever else is due is this one.
        self.heartbeat += 1;
        self.sequence += 1;
        let heartbeat = Heartbeat {
            cluster: session.cluster,
            worker: session.worker,
            epoch: session.epoch(),
            sequence: self.sequence,
            metadata_version: self.image.version,
            ready: self.ready,
            tasks: self.reports.all(),
            load: NodeLoad::default(),
        };
        let request = Request::Heartbeat(heartbeat);
        let purpose = Purpose::Heartbeat(env.now);
        let call = self.ask_coordinator(env, request, CALL_DEADLINE, purpose);
        self.who.after(env, DOUBT_AFTER, Timer::Doubt(call));
    }

    fn fetch_metadata(&mut self, env: &mut Env) {
        let Some(session) = self.session.clone() else {
            return;
        };
        let request = Request::FetchMetadata(FetchMetadata {
            cluster: session.cluster,
            worker: Some(session.worker),
            since: self.image.version,
            wait: MAX_WAIT,
        });
        let deadline = Span(MAX_WAIT.0 + CALL_DEADLINE.0);
        let purpose = Purpose::Metadata;
        self.ask_coordinator(env, request, deadline, purpose);
    }

    fn learn(&mut self, env: &mut Env, delta: MetadataDelta) {
        let newer = self.image.after(delta);
        let Some(image) = newer.filter(|image| image.version > self.image.version) else {
            return;
        };
        self.image = Arc::new(image);
        self.follow_partitions(env);
        if let Some(replication) = self.replication.as_mut().filter(|_| self.ready) {
            let image = self.image.clone();
            let calls = replication.follow(env, self.who, &mut self.partitions, &image);
            self.replicate(env, calls);
        }
        self.follow_jobs(env);
    }

    // Partitions.

    fn follow_partitions(&mut self, env: &mut Env) {
        let Some(session) = self.session.clone() else {
            return;
        };
        // Work may come once the image knows of this life, and its partitions are open.
        if self.image.version < MetadataVersion(session.epoch().0)
            || !self.image.workers.contains_key(&session.worker)
        {
            return;
        }
        let image = self.image.clone();
        self.remove_partitions(env, session.worker);
        for topic in image.topics.values() {
            for (number, assigned) in (0..).zip(&topic.partitions) {
                if !assigned.replicas.contains(&session.worker) {
                    continue;
                }
                let id = TopicPartition {
                    topic: topic.id,
                    partition: PartitionId(number),
                };
                if self.removing.contains(&id) {
                    continue;
                }
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.assign(env, self.who, assigned);
                    partition.facts_changed(env, self.who);
                } else {
                    let config = topic.config.clone();
                    let opened = Partition::new(env, id, session.worker, assigned.clone(), config);
                    self.partitions.insert(id, opened);
                    let delay = env.some_disk_ms(OPEN_MS);
                    self.who.after(env, delay, Timer::Open(id));
                }
            }
        }
        if !std::mem::replace(&mut self.ready, true) {
            self.urgent.notify_one();
        }
    }

    fn remove_partitions(&mut self, env: &mut Env, me: NodeId) {
        let image = &self.image;
        let stays = |id: TopicPartition| {
            let partition = image.partition(id);
            partition.is_some_and(|partition| partition.replicas.contains(&me))
        };
        let gone = self.partitions.keys().copied().filter(|id| !stays(*id));
        for id in gone.collect::<Vec<_>>() {
            if let Some(mut partition) = self.partitions.remove(&id) {
                partition.close(env, self.who);
            }
            self.removing.insert(id);
            let delay = env.some_disk_ms(OPEN_MS);
            self.who.after(env, delay, Timer::Remove(id));
        }
    }

    fn replicate(&mut self, env: &mut Env, calls: Vec<NextCall>) {
        for NextCall {
            leader,
            process,
            call,
        } in calls
        {
            let purpose = Purpose::Replicate(leader, call.session);
            let request = Request::Replicate(call);
            self.call(env, process, request, REPLICATE_DEADLINE, purpose);
        }
    }

    fn alter_isr(&mut self, env: &mut Env, change: IsrChange) {
        let Some(session) = self.session.clone() else {
            return;
        };
        let request = Request::AlterIsr(AlterIsr {
            worker: session.worker,
            worker_epoch: session.epoch(),
            changes: vec![change.clone()],
            log_ends: Vec::new(),
        });
        // Too short for nearly every answer.
        let impatient = env.sabotaged(Sabotage::ForgetIsrWish);
        let deadline = if impatient { Span(5) } else { CALL_DEADLINE };
        let purpose = Purpose::AlterIsr(change);
        self.ask_coordinator(env, request, deadline, purpose);
    }

    fn say_log_end(&mut self, env: &mut Env, report: LogEndReport) {
        let Some(session) = self.session.clone() else {
            return;
        };
        let request = Request::AlterIsr(AlterIsr {
            worker: session.worker,
            worker_epoch: session.epoch(),
            changes: Vec::new(),
            log_ends: vec![report],
        });
        let purpose = Purpose::LogEnd;
        self.ask_coordinator(env, request, CALL_DEADLINE, purpose);
    }

    fn leader(&self, partition: TopicPartition) -> Option<Process> {
        let leader = self.image.leader(partition)?;
        Some(Process::Worker(leader.address.parse().expect("an index")))
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

    // Jobs.

    fn follow_jobs(&mut self, env: &mut Env) {
        let Some(session) = self.session.clone() else {
            return;
        };
        let image = self.image.clone();
        let generations = self.jobs.iter().map(|(job, running)| {
            let (generation, epoch, _) = running.began();
            (*job, (generation, epoch))
        });
        let changes = changes(
            &image,
            session.worker,
            session.epoch(),
            &generations.collect(),
            &self.kept,
        );
        for (job, generation) in changes.stop {
            env.trace(|| format!("{:?} stops generation {generation}", self.who));
            let stopped = self.jobs.remove(&job);
            let left = stopped.and_then(|stopped| stopped.leave(env));
            self.left.extend(left.map(|left| (job, left)));
            if let Some(lanes) = &self.lanes {
                lanes.lanes.close(job, generation);
            }
            self.reports.remove(job, generation);
            self.stopping.insert(job);
            let delay = env.some_disk_ms(OPEN_MS);
            self.who.after(env, delay, Timer::Stopped(job));
        }
        for deployment in changes.start {
            let job = deployment.job;
            if self.stopping.contains(&job) {
                continue;
            }
            let me = (session.worker, session.epoch());
            let left = self.left.remove(&job);
            let facts = image.jobs.get(&job);
            let left = left.map(|left| left.for_next(&deployment, facts));
            let (custom, memory) = (self.custom.clone(), self.memory.clone());
            self.begun += 1;
            let (begun, choice) = (self.begun, self.choice);
            let running = RunningJob::new(deployment, me, begun, choice, custom, memory, left);
            running.begin(env, self.who, &self.reports, &self.urgent);
            self.kept.insert(job);
            self.jobs.insert(job, running);
        }
        for (job, running) in &mut self.jobs {
            if let Some(completed) = completed(&image, *job, running.generation()) {
                running.completed(env, self.who, &image, completed);
            }
            if let Some(deployment) = image.deployments.get(job) {
                running.deployed(env, self.who, &image, deployment);
            }
            running.facts_changed(env, self.who);
        }
    }

    /// Does what a standby wants done.
    fn grant(&mut self, env: &mut Env, job: JobId, began: Began, wish: Wish) {
        match wish {
            Wish::Ask { worker, positions } => {
                let asked = self.image.workers.get(&worker);
                let Some(asked) = asked.map(|asked| asked.address.clone()) else {
                    let event = StandbyEvent::Unanswered { by: worker };
                    let mail = standby::Timer::Mail(Mail::Happened(event));
                    let timer = Timer::Standby(job, began, mail);
                    return self.who.after(env, Span(0), timer);
                };
                let request = Request::FetchState(FetchState {
                    job,
                    generation: began.0,
                    positions,
                    wait: standby::HOLD,
                });
                let process = Process::Worker(asked.parse().expect("an index"));
                let purpose = Purpose::Ask(job, began, worker);
                self.call(env, process, request, BUNDLE_DEADLINE, purpose);
            }
            Wish::Work(work) => self.work(env, work),
            Wish::Tell(what) => {
                let Some(session) = self.session.clone() else {
                    return;
                };
                let request = Request::Hold(AckStandby {
                    worker: session.worker,
                    worker_epoch: session.epoch(),
                    job,
                    generation: began.0,
                    held: what.clone().into_iter().collect(),
                });
                let purpose = Purpose::Tell(job, began, what);
                self.ask_coordinator(env, request, CALL_DEADLINE, purpose);
            }
        }
    }

    fn work(&mut self, env: &mut Env, mut work: Work) {
        self.last_work += 1;
        let number = self.last_work;
        let mut delay = match work.keeps_of() {
            Some(_) => env.some_disk_ms(KEEP_MS),
            None => env.some_disk_ms(STEP_MS),
        };
        if let Some(of) = work
            .keeps_of()
            .filter(|_| env.sabotaged(Sabotage::HoldUnkept))
        {
            let mail = standby::Timer::Mail(Mail::Happened(StandbyEvent::Kept { of }));
            let timer = Timer::Standby(work.job, work.began, mail);
            self.who.after(env, Span(1), timer);
            delay = Span(400);
        } else if env.draw(2) == 0 {
            // The bytes may be there early in the time it takes, or late: a crash meets either.
            run(env, self.who, &mut work);
        }
        self.working.insert(number, work);
        self.who.after(env, delay, Timer::Worked(number));
    }

    fn worked(&mut self, env: &mut Env, number: u64) {
        let Some(mut work) = self.working.remove(&number) else {
            return;
        };
        let told_before = work.keeps_of().is_some() && env.sabotaged(Sabotage::HoldUnkept);
        run(env, self.who, &mut work);
        let (job, began, mail) = (work.job, work.began, work.take_mail());
        drop(work);
        if let Some(mail) = mail.filter(|_| !told_before) {
            self.mail(env, job, began, mail);
        }
    }

    fn mail(&mut self, env: &mut Env, job: JobId, began: Began, mail: Mail) {
        let image = self.image.clone();
        if let Some(running) = since(&mut self.jobs, job, began) {
            running.mail(env, self.who, &image, mail);
        }
    }

    fn inject(&mut self, env: &mut Env, barrier: &InjectBarrier) -> Result<(), Problem> {
        // A coordinator that has been replaced must not cut a job's rows any more.
        if barrier.control_epoch < self.image.control_epoch {
            let detail = format!("coordinator {} was followed", barrier.control_epoch);
            return Err(Problem::new(ErrorCode::StaleControlEpoch, detail));
        }
        match self.jobs.get_mut(&barrier.job) {
            Some(running) => running.inject(env, self.who, barrier),
            None => Err(not_running()),
        }
    }

    /// Begins the appends and fetches that a turn of a task asked for.
    fn begin(
        &mut self,
        env: &mut Env,
        job: JobId,
        generation: Generation,
        task: TaskId,
        wanted: Wanted,
    ) {
        for next in wanted.appends {
            self.append(env, job, generation, task, next);
        }
        for split in wanted.fetches {
            self.fetch(env, job, generation, task, split);
        }
        if let Some(question) = wanted.question {
            env.questions += 1;
            let delay = env.some_disk_ms(READ_MS);
            let timer = Timer::Answer(job, generation, task, question);
            self.who.after(env, delay, timer);
        }
    }

    fn append(
        &mut self,
        env: &mut Env,
        job: JobId,
        generation: Generation,
        task: TaskId,
        next: NextAppend,
    ) {
        let Some(leader) = self.leader(next.partition) else {
            let timer = Timer::Append(job, generation, task, next);
            return self.who.after(env, RETRY_EVERY, timer);
        };
        let request = append_request(&next);
        let purpose = Purpose::Append(job, generation, task, next);
        self.call(env, leader, request, BUNDLE_DEADLINE, purpose);
    }

    fn fetch(
        &mut self,
        env: &mut Env,
        job: JobId,
        generation: Generation,
        task: TaskId,
        split: u32,
    ) {
        let Some(running) = running(&mut self.jobs, job, generation) else {
            return;
        };
        let Some(request) = running.fetch_request(task, split) else {
            return;
        };
        let Some(leader) = self.leader(request.partition) else {
            let timer = Timer::Fetch(job, generation, task, split);
            return self.who.after(env, RETRY_EVERY, timer);
        };
        let purpose = Purpose::Fetch(job, generation, task, split);
        let request = Request::Fetch(request);
        self.call(env, leader, request, BUNDLE_DEADLINE, purpose);
    }

    fn acknowledge(
        &mut self,
        env: &mut Env,
        job: JobId,
        generation: Generation,
        ack: AckCheckpoint,
    ) {
        if running(&mut self.jobs, job, generation).is_none() {
            return;
        }
        for snapshot in &ack.tasks {
            let (node, life) = (ack.worker, self.who.life);
            let leaders = &mut env.checkers.leaders;
            let verdict = leaders.runs(generation, snapshot.task, node, life);
            env.check(verdict);
        }
        let request = Request::Acknowledge(ack.clone());
        let purpose = Purpose::Acknowledge(job, generation, ack);
        self.ask_coordinator(env, request, CALL_DEADLINE, purpose);
    }
}

fn running(
    jobs: &mut BTreeMap<JobId, RunningJob>,
    job: JobId,
    generation: Generation,
) -> Option<&mut RunningJob> {
    let running = jobs.get_mut(&job)?;
    (running.generation() == generation).then_some(running)
}

fn since(
    jobs: &mut BTreeMap<JobId, RunningJob>,
    job: JobId,
    began: Began,
) -> Option<&mut RunningJob> {
    let running = jobs.get_mut(&job)?;
    (running.began() == began).then_some(running)
}

/// Whether somebody was woken since this was last asked.
pub fn was_woken(wake: &Notify) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    pin!(wake.notified()).poll(&mut context).is_ready()
}

fn run(env: &mut Env, who: Who, work: &mut Work) {
    if let Err(error) = work.run() {
        env.break_promise(format!("{who:?} cannot work on its state: {error}"));
    }
}

fn not_running() -> Problem {
    Problem::new(ErrorCode::MetadataStale, "the job does not run here yet")
}

fn not_here() -> Problem {
    Problem::new(ErrorCode::NotLeader, "the partition is not here")
}
