//! The coordinator in the world: its machines, and what its actors would do for them.
//!
//! A command is appended to the log, synced a little later with all that waited, then applied and
//! answered. What is told to machines of the same process is told a moment later, as mailboxes do.

mod command_log;
mod jobs;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::error::{ErrorCode, Problem};
use common::ids::{
    CheckpointId, ClusterId, ControlEpoch, Generation, JobId, MetadataVersion, NodeId, PartitionId,
    TopicPartition, WorkerEpoch,
};
use common::limits::{DEFAULT_SESSION_TIMEOUT, HEARTBEAT_INTERVAL};
use common::protocol::metadata::FetchMetadata;
use common::protocol::node::{Heartbeat, HeartbeatReply, RegisterWorker, Registered};
use common::protocol::replicate::IsrAltered;
use common::protocol::task::TaskReport;
use common::time::Span;
use coordinator::checkpoint::machine::Event as CheckpointEvent;
use coordinator::controller::reconcile::{balance, reconcile};
use coordinator::job::machine::Event;
use coordinator::liveness::machine::LivenessMachine;
use coordinator::metadata::ClusterMetadata;
use coordinator::metadata::command::{Command, Entry, Outcome, Registration, Rejection};
use coordinator::metadata::division::Dividing;
use coordinator::metadata::nodes::WorkerStatus;

use self::command_log::CommandLog;
use self::jobs::Job;
use super::disk::{Crash, Disk};
use super::env::{Env, Event as WorldEvent, Timer as WorldTimer};
use super::group::{Decided, Term, Token};
use super::network::{CallFailed, CallId, Process, Reply, Request, ReturnAddress};
use super::sabotage::Sabotage;
use crate::checkers::exactly_once::Positions;

/// How often sessions are looked at.
const LOOK_EVERY: Span = Span::from_millis(100);
/// How often partitions are given back to who was placed to lead them.
const BALANCE_EVERY: Span = Span::from_secs(10);
const PROBE_DEADLINE: Span = Span::from_secs(1);
/// Small, so that a run rolls segments.
const SEGMENT_BYTES: u64 = 16 << 10;
/// How long a sync of the log and a message within the process take at most.
const SYNC_MS: u64 = 6;
const MAILBOX_MS: u64 = 3;
/// How long it takes at most until most of a group have written a command, and how soon it is looked at again if
/// they cannot be heard.
const AGREE_MS: u64 = 15;
const AGREE_AGAIN: Span = Span::from_millis(20);
const FORWARD_DEADLINE: Span = Span::from_secs(30);

#[derive(Debug)]
pub enum Timer {
    LogSynced,
    /// Others of the group have written what was proposed.
    Agreed,
    Look,
    Balance,
    /// A job hears of the newest facts.
    Facts(JobId),
    JobWake(JobId),
    CheckpointWake(JobId),
    FinalCheckpoint(JobId, Generation),
    PollEnds(ReturnAddress),
}

#[derive(Debug)]
pub struct Coordinator {
    pub disk: Disk,
    /// Of the process, or of what it is while it leads: nothing of one is of use in the next.
    pub life: u64,
    index: usize,
    cluster: ClusterId,
    reign: Option<Reign>,
}

/// One life of the process.
#[derive(Debug)]
struct Reign {
    index: usize,
    life: u64,
    /// Of the group it leads, as far as it knows.
    term: Option<Term>,
    deciding: BTreeMap<Token, Proposer>,
    last_token: Token,
    agreeing: bool,
    metadata: ClusterMetadata,
    log: CommandLog,
    /// `None`: the announcement is not a fact yet, and nobody is served.
    control_epoch: Option<ControlEpoch>,
    waiting: VecDeque<(Entry, Proposer)>,
    /// Appended, and being synced.
    writing: Vec<(MetadataVersion, Entry, Option<Proposer>)>,
    liveness: LivenessMachine,
    liveness_proposals: usize,
    jobs: BTreeMap<JobId, Job>,
    polls: Vec<(FetchMetadata, ReturnAddress)>,
    calls: BTreeMap<CallId, Purpose>,
    /// Of which checkpoints an acknowledgement was invented.
    invented: BTreeSet<(JobId, Generation, CheckpointId)>,
}

/// Who waits for a command.
#[derive(Debug)]
enum Proposer {
    Announcement,
    Registration(ReturnAddress),
    Isr(ReturnAddress),
    Liveness,
    Balance,
    Job(JobId),
    Reservation(JobId),
    Completion(JobId, CheckpointId),
    User(ReturnAddress),
}

#[derive(Debug)]
enum Purpose {
    Probe(NodeId, WorkerEpoch),
    Inject {
        job: JobId,
        worker: NodeId,
        generation: Generation,
        checkpoint: CheckpointId,
    },
    /// Who asked for what the leader is asked.
    Forward(ReturnAddress),
}

impl Coordinator {
    pub fn new(index: usize, disk: Disk, cluster: ClusterId) -> Coordinator {
        Coordinator {
            disk,
            life: 0,
            index,
            cluster,
            reign: None,
        }
    }

    pub fn is_up(&self) -> bool {
        self.reign.is_some()
    }

    /// The facts, if somebody keeps them now.
    pub fn metadata(&self) -> Option<&ClusterMetadata> {
        self.reign.as_ref().map(|reign| &reign.metadata)
    }

    /// Whether something of a kind is about to become a fact.
    pub fn is_proposed(&self, is_meant: impl Fn(&Entry) -> bool) -> bool {
        self.reign.as_ref().is_some_and(|reign| {
            reign.waiting.iter().any(|(entry, _)| is_meant(entry))
                || reign.writing.iter().any(|(_, entry, _)| is_meant(entry))
        })
    }

    pub fn start(&mut self, env: &mut Env) {
        self.life += 1;
        let mut metadata = ClusterMetadata::default();
        let storage = self.disk.log("metadata").shared();
        let several = env.group.is_several();
        // One that was killed may have written what it did not come to apply: it is a fact all the same.
        let mut carried_out = |entry: &Entry| {
            if !several {
                note_completed(env, entry);
            }
        };
        let log = CommandLog::open(storage, SEGMENT_BYTES, &mut metadata, &mut carried_out);
        let log = match log {
            Ok(log) => log,
            Err(error) => return env.break_promise(format!("the command log: {error}")),
        };
        env.trace(|| format!("coordinator starts at version {}", metadata.version()));
        let mut reign = Reign::new(self.index, self.life, metadata, log);
        env.group.set_up(self.index, true);
        if !several {
            reign.announce(env, self.cluster);
        }
        self.reign = Some(reign);
    }

    /// The group has chosen it.
    pub fn lead(&mut self, env: &mut Env, term: Term) {
        self.step_down(env);
        if let Some(reign) = &mut self.reign {
            env.trace(|| format!("coordinator {} leads in term {term}", self.index));
            reign.catch_up(env);
            reign.term = Some(term);
            reign.announce(env, self.cluster);
        }
    }

    /// What others have decided becomes known to it, or that it leads no more.
    pub fn look_at_group(&mut self, env: &mut Env) {
        let Some(reign) = &mut self.reign else { return };
        match reign.term {
            Some(term) => {
                let (group, network) = (&env.group, &env.network);
                if group.is_told_it_leads_no_more(network, env.time, self.index, term) {
                    env.trace(|| format!("coordinator {} leads no more", self.index));
                    self.step_down(env);
                }
            }
            None => {
                let leader = env.group.leader_heard(&env.network, env.time, self.index);
                if leader.is_some() && env.draw(4) == 0 {
                    reign.catch_up(env);
                }
            }
        }
    }

    /// All that it was to those who asked it is over.
    fn step_down(&mut self, env: &mut Env) {
        self.life += 1;
        if let Some(reign) = self.reign.take() {
            let (metadata, log) = reign.end(env);
            self.reign = Some(Reign::new(self.index, self.life, metadata, log));
        }
    }

    pub fn crash(&mut self, env: &mut Env, crash: Crash) {
        self.reign = None;
        env.group.set_up(self.index, false);
        self.disk.crash(crash, env.random());
    }

    pub fn request(&mut self, env: &mut Env, from: ReturnAddress, request: Request) {
        match &mut self.reign {
            Some(reign) if reign.control_epoch.is_some() => reign.request(env, from, request),
            Some(reign) if env.group.is_several() => reign.forward(env, from, request),
            Some(_) | None => env.refuse(from),
        }
    }

    pub fn answer(&mut self, env: &mut Env, call: CallId, answer: Result<Reply, CallFailed>) {
        if let Some(reign) = &mut self.reign {
            reign.answer(env, call, answer);
        }
    }

    pub fn timer(&mut self, env: &mut Env, timer: Timer) {
        if let Some(reign) = &mut self.reign {
            reign.timer(env, timer);
        }
    }

    /// The connections of a process break.
    pub fn hung_up(&mut self, env: &mut Env, gone: Process, life: u64) {
        if let Some(reign) = &mut self.reign {
            reign.hung_up(env, gone, life);
        }
    }
}

impl Reign {
    fn new(index: usize, life: u64, metadata: ClusterMetadata, log: CommandLog) -> Reign {
        Reign {
            index,
            life,
            term: None,
            deciding: BTreeMap::new(),
            last_token: 0,
            agreeing: false,
            metadata,
            log,
            control_epoch: None,
            waiting: VecDeque::new(),
            writing: Vec::new(),
            liveness: LivenessMachine::new(DEFAULT_SESSION_TIMEOUT),
            liveness_proposals: 0,
            jobs: BTreeMap::new(),
            polls: Vec::new(),
            calls: BTreeMap::new(),
            invented: BTreeSet::new(),
        }
    }

    /// Whoever waits for an answer asks somebody else.
    fn end(self, env: &mut Env) -> (ClusterMetadata, CommandLog) {
        let polls = self.polls.into_iter().map(|(_, from)| from);
        let asked = self
            .calls
            .into_values()
            .filter_map(|purpose| match purpose {
                Purpose::Forward(from) => Some(from),
                Purpose::Probe(..) | Purpose::Inject { .. } => None,
            });
        let deciding = self.deciding.into_values();
        let proposed = deciding.filter_map(|proposer| match proposer {
            Proposer::Registration(from) | Proposer::Isr(from) | Proposer::User(from) => Some(from),
            Proposer::Announcement
            | Proposer::Liveness
            | Proposer::Balance
            | Proposer::Job(_)
            | Proposer::Reservation(_)
            | Proposer::Completion(..) => None,
        });
        for from in polls.chain(asked).chain(proposed) {
            env.answer(from, Err(unavailable()));
        }
        (self.metadata, self.log)
    }

    fn me(&self) -> Process {
        Process::Coordinator(self.index)
    }

    fn announce(&mut self, env: &mut Env, cluster: ClusterId) {
        let announcement = Command::LeaderAnnounce { cluster };
        self.propose(env, announcement, Proposer::Announcement);
    }

    fn timer(&mut self, env: &mut Env, timer: Timer) {
        match timer {
            Timer::LogSynced => self.log_synced(env),
            Timer::Agreed => self.agreed(env),
            Timer::Look => {
                self.look(env);
                self.after(env, LOOK_EVERY, Timer::Look);
            }
            Timer::Balance => {
                if let Some(command) = balance(&self.metadata) {
                    self.propose(env, command, Proposer::Balance);
                }
                self.after(env, BALANCE_EVERY, Timer::Balance);
            }
            Timer::Facts(job) => {
                if let Some(told) = self.jobs.get_mut(&job) {
                    told.telling = false;
                }
                self.tell_facts(env, job);
            }
            Timer::JobWake(job) => {
                if let Some(woken) = self.jobs.get_mut(&job)
                    && woken.job_wake.is_some_and(|at| at <= env.now)
                {
                    woken.job_wake = None;
                    self.job_event(env, job, Event::TimePassed);
                }
            }
            Timer::CheckpointWake(job) => {
                if let Some(woken) = self.jobs.get_mut(&job)
                    && woken.checkpoint_wake.is_some_and(|at| at <= env.now)
                {
                    woken.checkpoint_wake = None;
                    self.checkpoint_event(env, job, CheckpointEvent::TimePassed);
                }
            }
            Timer::FinalCheckpoint(job, generation) => {
                self.job_event(env, job, Event::FinalCheckpointCompleted { generation });
            }
            Timer::PollEnds(poll) => {
                if let Some(index) = self.polls.iter().position(|(_, from)| *from == poll) {
                    let (request, from) = self.polls.swap_remove(index);
                    self.answer_poll(env, &request, from);
                }
            }
        }
    }

    fn request(&mut self, env: &mut Env, from: ReturnAddress, request: Request) {
        match request {
            Request::Register(request) => {
                let mut registration = registration(request);
                registration.clean |= env.sabotaged(Sabotage::TrustUncleanRestart);
                let command = Command::RegisterWorker(registration);
                self.propose(env, command, Proposer::Registration(from));
            }
            Request::Heartbeat(heartbeat) => {
                // One that leads no more must not keep a session alive.
                if let Some(term) = self.term
                    && !env.group.confirms(&env.network, env.time, self.index, term)
                {
                    return env.answer(from, Err(unavailable()));
                }
                let answer = self.heard(env, &heartbeat);
                env.answer(from, answer.map(Reply::Heartbeat));
            }
            Request::FetchMetadata(request) => {
                if request.since == self.metadata.version() {
                    self.after(env, request.wait, Timer::PollEnds(from));
                    self.polls.push((request, from));
                } else {
                    self.answer_poll(env, &request, from);
                }
            }
            Request::Acknowledge(ack) => {
                let answer = self.acknowledge(env, ack);
                env.answer(from, answer.map(|()| Reply::Done));
            }
            Request::Decline(decline) => {
                let checked = self.check(
                    decline.job,
                    decline.generation,
                    decline.worker,
                    decline.worker_epoch,
                );
                if checked.is_ok() {
                    let event = CheckpointEvent::Declined {
                        worker: decline.worker,
                        generation: decline.generation,
                        checkpoint: decline.checkpoint,
                        reason: decline.reason,
                    };
                    self.checkpoint_event(env, decline.job, event);
                }
                env.answer(from, checked.map(|()| Reply::Done));
            }
            Request::Hold(ack) => {
                let answer = self.hold(env, ack);
                env.answer(from, answer.map(|()| Reply::Done));
            }
            Request::AlterIsr(call) => {
                let command = Command::AlterIsr {
                    worker: call.worker,
                    epoch: call.worker_epoch,
                    changes: call.changes,
                    log_ends: call.log_ends,
                };
                self.propose(env, command, Proposer::Isr(from));
            }
            Request::Command(command) => self.propose(env, *command, Proposer::User(from)),
            Request::Rescale(shape) => match self.rescaling(&shape) {
                Ok(command) => self.propose(env, command, Proposer::User(from)),
                Err(problem) => env.answer(from, Err(problem)),
            },
            Request::Probe
            | Request::Replicate(_)
            | Request::Inject(_)
            | Request::FetchState(_)
            | Request::Append(_)
            | Request::Fetch(_)
            | Request::Bundle(_) => unreachable!("nobody asks a coordinator for that"),
        }
    }

    fn answer(&mut self, env: &mut Env, call: CallId, answer: Result<Reply, CallFailed>) {
        match self.calls.remove(&call) {
            // Only a refused connection is an answer.
            Some(Purpose::Probe(worker, epoch)) if answer == Err(CallFailed::Refused) => {
                self.liveness.refused(worker, epoch);
                self.look(env);
            }
            Some(Purpose::Inject {
                job,
                worker,
                generation,
                checkpoint,
            }) if answer.is_ok() => {
                let event = CheckpointEvent::BarrierInjected {
                    generation,
                    checkpoint,
                    worker,
                };
                self.checkpoint_event(env, job, event);
            }
            Some(Purpose::Forward(from)) => {
                let answer = answer.map_err(|failed| match failed {
                    CallFailed::Problem(problem) => problem,
                    CallFailed::Refused | CallFailed::Broken | CallFailed::Timeout => unavailable(),
                });
                env.answer(from, answer);
            }
            Some(Purpose::Probe(..) | Purpose::Inject { .. }) | None => {}
        }
    }

    // The group it is one of.

    /// It asks the one that leads.
    fn forward(&mut self, env: &mut Env, from: ReturnAddress, request: Request) {
        let leader = env.group.leader_heard(&env.network, env.time, self.index);
        let Some(leader) = leader.filter(|leader| *leader != self.index) else {
            return env.answer(from, Err(unavailable()));
        };
        let leader = Process::Coordinator(leader);
        let call = env.call((self.me(), self.life), leader, request, FORWARD_DEADLINE);
        self.calls.insert(call, Purpose::Forward(from));
    }

    /// Comes to know what was decided.
    fn catch_up(&mut self, env: &mut Env) {
        for entry in env.group.after(self.metadata.version()).to_vec() {
            match self.log.append(&entry) {
                Ok(index) => drop(self.metadata.apply(index, &entry)),
                Err(error) => return env.break_promise(format!("the command log: {error}")),
            }
        }
        if env.draw(2) == 0
            && let Err(error) = self.log.sync()
        {
            env.break_promise(format!("the command log: {error}"));
        }
    }

    fn agreed(&mut self, env: &mut Env) {
        let Some(term) = self.term else { return };
        if !env.group.confirms(&env.network, env.time, self.index, term) {
            return self.after(env, AGREE_AGAIN, Timer::Agreed);
        }
        self.agreeing = false;
        let mut noted = Vec::new();
        let decided = env.group.decide(&mut |entry, outcome, suspected| {
            noted.push((entry.clone(), outcome.is_ok(), suspected));
        });
        for (entry, carried_out, suspected) in noted {
            note(env, &entry, carried_out, suspected);
        }
        let mut answers = Vec::new();
        for Decided {
            token,
            index,
            entry,
        } in decided
        {
            let appended = self.log.append(&entry).ok();
            assert_eq!(
                appended,
                Some(index),
                "it leads, and knows all that was decided"
            );
            let outcome = self.metadata.apply(index, &entry);
            let proposer = self.deciding.remove(&token).expect("it has proposed it");
            answers.push((proposer, outcome));
        }
        self.published(env);
        for (proposer, outcome) in answers {
            self.decided(env, proposer, outcome);
        }
    }

    // The log of commands.

    fn propose(&mut self, env: &mut Env, command: Command, proposer: Proposer) {
        let entry = Entry {
            control_epoch: self.control_epoch.unwrap_or_default(),
            at: env.wall(),
            command,
        };
        if env.group.is_several() {
            return self.propose_to_group(env, entry, proposer);
        }
        self.waiting.push_back((entry, proposer));
        if self.writing.is_empty() {
            self.write(env);
        }
    }

    fn propose_to_group(&mut self, env: &mut Env, entry: Entry, proposer: Proposer) {
        let Some(term) = self.term else { return };
        self.last_token += 1;
        self.deciding.insert(self.last_token, proposer);
        env.group.propose(self.index, term, self.last_token, entry);
        if !std::mem::replace(&mut self.agreeing, true) {
            let delay = env.some_ms(AGREE_MS);
            self.after(env, delay, Timer::Agreed);
        }
    }

    fn write(&mut self, env: &mut Env) {
        let early = env.sabotaged(Sabotage::DecideBeforeSync) && self.control_epoch.is_some();
        let mut early_answers = Vec::new();
        while let Some((entry, proposer)) = self.waiting.pop_front() {
            let index = match self.log.append(&entry) {
                Ok(index) => index,
                Err(refused) => {
                    return env.break_promise(format!("a command was refused: {refused:?}"));
                }
            };
            if early {
                let outcome = self.apply(env, index, &entry);
                early_answers.push((proposer, outcome));
                self.writing.push((index, entry, None));
            } else {
                self.writing.push((index, entry, Some(proposer)));
            }
        }
        let sync = env.some_disk_ms(if early { 400 } else { SYNC_MS });
        self.after(env, sync, Timer::LogSynced);
        if !early_answers.is_empty() {
            self.published(env);
            for (proposer, outcome) in early_answers {
                self.decided(env, proposer, outcome);
            }
        }
    }

    fn log_synced(&mut self, env: &mut Env) {
        if let Err(error) = self.log.sync() {
            return env.break_promise(format!("the command log: {error}"));
        }
        let mut answers = Vec::new();
        for (index, entry, proposer) in std::mem::take(&mut self.writing) {
            if let Some(proposer) = proposer {
                let outcome = self.apply(env, index, &entry);
                answers.push((proposer, outcome));
            }
        }
        self.published(env);
        for (proposer, outcome) in answers {
            self.decided(env, proposer, outcome);
        }
        if self.writing.is_empty() && !self.waiting.is_empty() {
            self.write(env);
        }
    }

    fn apply(
        &mut self,
        env: &mut Env,
        index: MetadataVersion,
        entry: &Entry,
    ) -> Result<Outcome, Rejection> {
        let before = suspects(&self.metadata);
        let outcome = self.metadata.apply(index, entry);
        let suspected = suspects(&self.metadata).saturating_sub(before);
        note(env, entry, outcome.is_ok(), suspected);
        outcome
    }

    /// There is a new version: whoever follows the facts is told.
    fn published(&mut self, env: &mut Env) {
        if self.control_epoch.is_none() {
            return;
        }
        self.follow_workers(env);
        for row in self.metadata.topics_by_name() {
            for (number, partition) in (0..).map(PartitionId).zip(&row.partitions) {
                let id = TopicPartition {
                    topic: row.id,
                    partition: number,
                };
                let isr = partition.isr.iter().copied();
                let trusted = isr.filter(|node| !partition.suspect.contains(node));
                let verdict = env.checkers.in_sync.in_sync(id, trusted.collect());
                env.check(verdict);
            }
        }
        let rows: Vec<(JobId, bool)> = self
            .metadata
            .jobs_by_name()
            .map(|row| (row.id, self.jobs.contains_key(&row.id)))
            .collect();
        for (job, known) in rows {
            if known {
                let told = self.jobs.get_mut(&job).expect("it is known");
                if !std::mem::replace(&mut told.telling, true) {
                    let delay = env.some_ms(MAILBOX_MS);
                    self.after(env, delay, Timer::Facts(job));
                }
            } else {
                self.start_job(env, job);
            }
        }
        let polls = std::mem::take(&mut self.polls);
        for (request, from) in polls {
            if request.since == self.metadata.version() {
                self.polls.push((request, from));
            } else {
                self.answer_poll(env, &request, from);
            }
        }
    }

    fn decided(&mut self, env: &mut Env, proposer: Proposer, outcome: Result<Outcome, Rejection>) {
        match proposer {
            Proposer::Announcement => match outcome {
                Ok(Outcome::Announced(epoch)) => self.reign(env, epoch),
                other => env.break_promise(format!("the coordinator may not reign: {other:?}")),
            },
            Proposer::Registration(from) => {
                let registered = outcome.map_err(Problem::from);
                env.answer(
                    from,
                    registered.map(|outcome| match outcome {
                        Outcome::Registered { worker, epoch } => Reply::Registered(Registered {
                            cluster: self.metadata.cluster().expect("somebody reigns"),
                            worker,
                            epoch,
                            control_epoch: self.metadata.control_epoch(),
                            heartbeat_interval: HEARTBEAT_INTERVAL,
                            session_timeout: DEFAULT_SESSION_TIMEOUT,
                        }),
                        other => unreachable!("a registration had the outcome {other:?}"),
                    }),
                );
            }
            Proposer::Isr(from) => {
                let answer = outcome.map_err(Problem::from);
                env.answer(
                    from,
                    answer.map(|outcome| match outcome {
                        Outcome::IsrAltered(verdicts) => Reply::IsrAltered(IsrAltered { verdicts }),
                        other => unreachable!("a change of who is in sync had {other:?}"),
                    }),
                );
            }
            Proposer::Balance => {}
            Proposer::Liveness => {
                self.liveness_proposals -= 1;
                if self.liveness_proposals == 0 {
                    self.look(env);
                }
            }
            Proposer::Job(job) => {
                // The outcome is told together with the facts it made, before the machine goes on.
                self.tell_facts(env, job);
                let settled = match outcome {
                    Ok(_) => Event::ProposalApplied,
                    Err(_) => Event::ProposalRejected,
                };
                self.job_event(env, job, settled);
            }
            Proposer::Reservation(job) => {
                let event = match outcome {
                    Ok(Outcome::EpochsReserved { first, last }) => {
                        CheckpointEvent::Reserved { first, last }
                    }
                    Ok(other) => unreachable!("reserving epochs is answered by {other:?}"),
                    Err(_) => CheckpointEvent::ReservationFailed,
                };
                self.checkpoint_event(env, job, event);
            }
            Proposer::Completion(job, checkpoint) => {
                let row = self.metadata.job(job);
                let is_completed = row.is_some_and(|row| row.completed == Some(checkpoint));
                let completed = match outcome {
                    Err(rejection) if !is_completed => Err(rejection.to_string()),
                    Ok(_) | Err(_) => Ok(()),
                };
                let event = CheckpointEvent::Settled {
                    checkpoint,
                    completed,
                };
                self.checkpoint_event(env, job, event);
            }
            Proposer::User(from) => {
                let answer = outcome.map(|_| Reply::Done).map_err(Problem::from);
                env.answer(from, answer);
            }
        }
    }

    fn reign(&mut self, env: &mut Env, epoch: ControlEpoch) {
        env.trace(|| format!("coordinator reigns in {epoch}"));
        let life = (self.index as u64) << 32 | self.life;
        let verdict = env.checkers.leaders.reigns(epoch, life);
        env.check(verdict);
        self.control_epoch = Some(epoch);
        self.published(env);
        self.after(env, LOOK_EVERY, Timer::Look);
        self.after(env, BALANCE_EVERY, Timer::Balance);
    }

    fn hung_up(&mut self, env: &mut Env, gone: Process, life: u64) {
        let waits = |from: &ReturnAddress| (from.caller, from.life) != (gone, life);
        let polls = std::mem::take(&mut self.polls).into_iter();
        let (polls, ended): (Vec<_>, Vec<_>) = polls.partition(|(_, from)| waits(from));
        self.polls = polls;
        for worker in ended.into_iter().filter_map(|(poll, _)| poll.worker) {
            self.liveness.suspect(worker);
            self.look(env);
        }
    }

    fn answer_poll(&mut self, env: &mut Env, request: &FetchMetadata, from: ReturnAddress) {
        let delta = self.metadata.delta_since(request.since);
        env.answer(from, Ok(Reply::Metadata(Box::new(delta))));
    }

    // Workers.

    fn follow_workers(&mut self, env: &Env) {
        let living = self
            .metadata
            .workers()
            .filter(|row| row.status != WorkerStatus::Fenced);
        let epochs = living.map(|row| (row.id, row.epoch)).collect();
        let quarantined = self.metadata.workers().filter(|row| row.quarantined);
        let quarantined = quarantined.map(|row| row.id).collect();
        self.liveness.quarantine(env.now, &quarantined);
        self.liveness.follow(env.now, &epochs);
    }

    fn look(&mut self, env: &mut Env) {
        for (worker, epoch) in self.liveness.due_probes(env.now) {
            let Some(process) = self.process_of(worker) else {
                continue;
            };
            let me = (self.me(), self.life);
            let call = env.call(me, process, Request::Probe, PROBE_DEADLINE);
            self.calls.insert(call, Purpose::Probe(worker, epoch));
        }
        if self.liveness_proposals > 0 {
            return;
        }
        for command in reconcile(&self.metadata, &self.liveness, env.now) {
            env.trace(|| format!("coordinator: {command:?}"));
            self.liveness_proposals += 1;
            self.propose(env, command, Proposer::Liveness);
        }
    }

    fn heard(&mut self, env: &mut Env, heartbeat: &Heartbeat) -> Result<HeartbeatReply, Problem> {
        let (worker, epoch) = (heartbeat.worker, heartbeat.epoch);
        let living = self
            .metadata
            .worker(worker)
            .is_some_and(|row| row.epoch == epoch && row.status != WorkerStatus::Fenced);
        if !living {
            let detail = format!("epoch {epoch} of worker {worker} has ended");
            return Err(Problem::new(ErrorCode::FencedWorkerEpoch, detail));
        }
        let (sequence, ready) = (heartbeat.sequence, heartbeat.ready);
        if self.liveness.heard(env.now, worker, epoch, sequence, ready) {
            self.look(env);
            self.tell_reports(env, heartbeat);
        }
        Ok(HeartbeatReply {
            control_epoch: self.metadata.control_epoch(),
            metadata_version: self.metadata.version(),
        })
    }

    /// A job that has tasks on the worker is told also if none of them is reported.
    fn tell_reports(&mut self, env: &mut Env, heartbeat: &Heartbeat) {
        let concerned: Vec<JobId> = self
            .metadata
            .jobs_by_name()
            .filter(|row| {
                let tasks = row.deployment.iter().flat_map(|deployed| &deployed.tasks);
                tasks
                    .into_iter()
                    .any(|task| task.worker == heartbeat.worker)
            })
            .map(|row| row.id)
            .collect();
        for job in concerned {
            let reports = heartbeat.tasks.iter().filter(|report| report.job == job);
            let event = Event::TasksReported {
                worker: heartbeat.worker,
                epoch: heartbeat.epoch,
                tasks: reports
                    .map(|report: &TaskReport| {
                        (report.generation, report.task, report.state.clone())
                    })
                    .collect(),
            };
            self.job_event(env, job, event);
            let mut reports = heartbeat.tasks.iter().filter(|report| report.job == job);
            if let Some(report) = reports.find(|report| report.wants_checkpoint) {
                let generation = report.generation;
                self.checkpoint_event(env, job, CheckpointEvent::Wanted { generation });
            }
        }
    }

    /// The address of a worker says which process of the world it is.
    fn process_of(&self, worker: NodeId) -> Option<Process> {
        let row = self.metadata.worker(worker)?;
        Some(Process::Worker(row.address.parse().expect("an index")))
    }

    fn after(&self, env: &mut Env, delay: Span, timer: Timer) {
        let event = WorldEvent::Timer {
            process: self.me(),
            life: self.life,
            timer: WorldTimer::Coordinator(timer),
        };
        env.after(delay, event);
    }
}

fn registration(request: RegisterWorker) -> Registration {
    Registration {
        cluster: request.cluster,
        worker: request.worker,
        storage: request.storage,
        incarnation: request.incarnation,
        address: request.address,
        version: request.version,
        cores: request.cores,
        slots: request.slots,
        memory_bytes: request.memory_bytes,
        operators: request.operators,
        rack: request.rack,
        clean: request.clean_shutdown,
    }
}

/// A command has become a fact.
pub fn note(env: &mut Env, entry: &Entry, carried_out: bool, suspected: u64) {
    env.suspected += suspected;
    if !carried_out {
        return;
    }
    count_rescales(env, &entry.command);
    if let Command::EpochCompleted(completed) = &entry.command {
        let (checkpoint, generation) = (completed.checkpoint, completed.generation);
        env.trace(|| format!("checkpoint {checkpoint} of generation {generation} is complete"));
        note_completed(env, entry);
    }
}

fn unavailable() -> Problem {
    Problem::new(ErrorCode::CoordinatorUnavailable, "nobody leads, it seems")
}

fn count_rescales(env: &mut Env, command: &Command) {
    match command {
        Command::Divide { division, .. } => env.rescales += u64::from(division.is_some()),
        Command::StartGeneration { dividing, .. } => {
            env.rescaled += u64::from(*dividing == Dividing::Anew);
        }
        _ => {}
    }
}

/// Replicas in sync that may lack records.
pub fn suspects(metadata: &ClusterMetadata) -> u64 {
    let topics = metadata.topics_by_name();
    let partitions = topics.flat_map(|row| &row.partitions);
    partitions
        .map(|partition| partition.suspect.len() as u64)
        .sum()
}

/// If a checkpoint was completed, the checkers are told what it holds.
fn note_completed(env: &mut Env, entry: &Entry) {
    let Command::EpochCompleted(completed) = &entry.command else {
        return;
    };
    let mut positions = Positions::new();
    for split in completed.positions.values().flatten() {
        let number = split.0.parse().expect("a split is a partition's number");
        positions.insert(number, *split.1);
    }
    env.checkers
        .outputs
        .completed(completed.checkpoint, positions);
}
