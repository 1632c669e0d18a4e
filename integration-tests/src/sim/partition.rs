//! A partition of a worker in the world: its machine and its log, and what its actor would do for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::ids::{NodeId, TopicPartition};
use common::kv::KvStore;
use common::limits::MAX_WAIT;
use common::log_batch::LogBatch;
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::fetch::{FetchBatches, FetchedBatches};
use common::protocol::metadata::{JobImage, PartitionImage};
use common::protocol::produce::{Acks, Append, AppendedBatch};
use common::protocol::topic::TopicConfig;
use common::seglog::PendingSync;
use common::seglog::memory::MemoryStorage;
use common::time::{Span, Tick};
use tokio::sync::oneshot;
use worker::log::partition_log::PartitionLog;
use worker::log::saved::SavedState;
use worker::metadata_image::MetadataImage;
use worker::partition::machine::{AppendRefusal, PartitionMachine};
use worker::partition::problems;
use worker::partition::transactions::Undecided;
use worker::partition::waiting::{Readable, Ticket, Waiting};
use worker::partition::work::{AppendReply, QueuedAppend, Work};

use super::env::Env;
use super::network::{Reply, ReturnAddress};
use super::sabotage::Sabotage;
use super::worker::{Timer, Who};

/// How long work on the log and a sync take at most.
const WORK_MS: u64 = 2;
const SYNC_MS: u64 = 8;
const APPEND_TIMEOUT: Span = Span::from_secs(30);

type Answer = oneshot::Receiver<Result<Vec<AppendedBatch>, Problem>>;

#[derive(Debug)]
pub struct Partition {
    id: TopicPartition,
    me: NodeId,
    image: PartitionImage,
    config: TopicConfig,
    machine: PartitionMachine,
    /// `None`: it is being opened.
    log: Option<Box<PartitionLog>>,
    undecided: Undecided,
    queue: Vec<QueuedAppend>,
    answers: Vec<(Answer, ReturnAddress)>,
    working: bool,
    syncing: Option<(Offset, PendingSync)>,
    waiting: Waiting,
    parked: BTreeMap<Ticket, Parked>,
    early: Vec<(FetchBatches, ReturnAddress)>,
    next_ticket: u64,
    timer: Option<Tick>,
}

#[derive(Debug)]
enum Parked {
    Append(Vec<AppendedBatch>, AppendReply),
    Fetch(FetchBatches, ReturnAddress, Tick),
}

impl Partition {
    pub fn new(
        env: &Env,
        id: TopicPartition,
        me: NodeId,
        image: PartitionImage,
        config: TopicConfig,
    ) -> Partition {
        let mut machine = PartitionMachine::new(me, Offset::ZERO);
        machine.assign(env.now, &image, &config);
        Partition {
            id,
            me,
            image,
            config,
            machine,
            log: None,
            undecided: Undecided::default(),
            queue: Vec::new(),
            answers: Vec::new(),
            working: false,
            syncing: None,
            waiting: Waiting::default(),
            parked: BTreeMap::new(),
            early: Vec::new(),
            next_ticket: 0,
            timer: None,
        }
    }

    pub fn open(
        &mut self,
        env: &mut Env,
        who: Who,
        storage: &MemoryStorage,
        store: Arc<dyn KvStore>,
    ) {
        let saved = SavedState::new(store, self.id);
        let opened = PartitionLog::open(storage.shared(), Some(saved), &self.config, env.wall());
        let log = match opened {
            Ok(log) => log,
            Err(error) => {
                return env.break_promise(format!("the log of {}: {error}", self.id));
            }
        };
        self.machine = PartitionMachine::new(self.me, log.end_offset());
        self.machine.assign(env.now, &self.image, &self.config);
        self.undecided = log.derived().transactions.undecided();
        self.log = Some(Box::new(log));
        self.start_work(env, who);
        for (request, from) in std::mem::take(&mut self.early) {
            self.fetch(env, who, request, from);
        }
    }

    pub fn assign(&mut self, env: &mut Env, who: Who, image: &PartitionImage) {
        if self.image == *image {
            return;
        }
        self.image = image.clone();
        self.machine.assign(env.now, &self.image, &self.config);
        if !self.machine.is_leader() {
            for ticket in self.waiting.drain() {
                self.answer_ticket(env, ticket, Some(self.not_leader()));
            }
        }
        self.start_work(env, who);
    }

    /// While a transaction is open, every change of the cluster's facts may decide it.
    pub fn facts_changed(&mut self, env: &mut Env, who: Who) {
        if self.undecided.has_open() && self.machine.is_leader() {
            self.start_work(env, who);
        }
    }

    pub fn append(&mut self, env: &mut Env, who: Who, append: Append, from: ReturnAddress) {
        let expected = append.batches.first().and_then(|batch| batch.leader_epoch);
        if let Err(refusal) = self.machine.admit_append(append.acks, expected) {
            return env.answer(from, Err(problems::append_refused(refusal)));
        }
        let batches = append.batches.into_iter();
        let parsed: Result<Vec<LogBatch>, _> = batches
            .map(|append| LogBatch::parse(append.batch))
            .collect();
        let batches = match parsed {
            Ok(batches) => batches,
            Err(error) => return env.answer(from, Err(error.into())),
        };
        let (reply, answer) = oneshot::channel();
        self.answers.push((answer, from));
        self.queue.push(QueuedAppend {
            batches,
            acks: append.acks,
            reply,
        });
        self.start_work(env, who);
    }

    pub fn fetch(&mut self, env: &mut Env, who: Who, request: FetchBatches, from: ReturnAddress) {
        if self.log.is_none() {
            self.early.push((request, from));
            return;
        }
        let deadline = env.now.plus(request.wait.min(MAX_WAIT));
        self.serve(env, who, request, from, deadline);
    }

    /// What waited for an append to be committed, or for something to read, has waited long enough.
    pub fn time_passed(&mut self, env: &mut Env, who: Who) {
        self.timer = None;
        for ticket in self.waiting.expired(env.now) {
            let problem = match self.parked.get(&ticket) {
                Some(Parked::Append(..)) => {
                    Some(Problem::new(ErrorCode::Timeout, "not committed in time"))
                }
                Some(Parked::Fetch(..)) | None => None,
            };
            match (self.parked.remove(&ticket), problem) {
                (Some(Parked::Fetch(request, from, _)), _) => {
                    let request = FetchBatches {
                        wait: Span(0),
                        ..request
                    };
                    self.serve(env, who, request, from, env.now);
                }
                (Some(parked), problem) => {
                    self.parked.insert(ticket, parked);
                    self.answer_ticket(env, ticket, problem);
                }
                (None, _) => {}
            }
        }
        self.set_timer(env, who);
    }

    /// What a blocking thread would do with the log: everything that waits, at once.
    pub fn work(&mut self, env: &mut Env, who: Who, image: &Arc<MetadataImage>) {
        self.working = false;
        let Some(log) = self.log.take() else { return };
        let leader_epoch = self
            .machine
            .is_leader()
            .then(|| self.machine.leader_epoch());
        if let Some(epoch) = leader_epoch {
            let verdict = env
                .checkers
                .leaders
                .leads(self.id, epoch, self.me, who.life);
            env.check(verdict);
        }
        let work = Work {
            log,
            appends: std::mem::take(&mut self.queue),
            leader_epoch,
            committed: self.readable().committed,
            image: believed(env, image),
            now: env.wall(),
            retain: None,
            close: false,
        };
        let done = work.run();
        if let Some(error) = done.fatal {
            return env.break_promise(format!("the disk of {}: {error}", self.id));
        }
        let log = done.log;
        self.machine.appended(log.end_offset());
        self.machine.synced(log.durable_offset());
        if env.sabotaged(Sabotage::AcknowledgeBeforeSync) {
            self.machine.synced(log.end_offset());
        }
        self.undecided = log.derived().transactions.undecided();
        self.log = Some(log);
        for written in done.written {
            match written.acks {
                Acks::Leader => drop(written.reply.send(Ok(written.batches))),
                Acks::All => {
                    let ticket = self.ticket();
                    let deadline = env.now.plus(APPEND_TIMEOUT);
                    self.waiting.park_append(ticket, written.end, deadline);
                    let parked = Parked::Append(written.batches, written.reply);
                    self.parked.insert(ticket, parked);
                }
            }
        }
        self.go_on(env, who);
    }

    pub fn sync_ran(&mut self, env: &mut Env, who: Who) {
        let (Some((durable, sync)), Some(log)) = (self.syncing.take(), &mut self.log) else {
            return;
        };
        let finished = sync.run().and_then(|synced| log.finish_sync(synced));
        if let Err(error) = finished {
            return env.break_promise(format!("the disk of {}: {error}", self.id));
        }
        self.machine.synced(durable);
        self.go_on(env, who);
    }

    fn go_on(&mut self, env: &mut Env, who: Who) {
        if let (Some(log), None) = (&mut self.log, &self.syncing)
            && let Some(sync) = log.begin_sync()
        {
            self.syncing = Some((log.end_offset(), sync));
            let early = env.sabotaged(Sabotage::AcknowledgeBeforeSync);
            let delay = env.some_ms(if early { 500 } else { SYNC_MS });
            who.after(env, delay, Timer::Synced(self.id));
        }
        let readable = self.readable();
        let verdict = env
            .checkers
            .committed
            .readable(self.id, readable.last_stable);
        if self.machine.is_leader() {
            env.check(verdict);
        }
        for ticket in self.waiting.satisfied(readable) {
            match self.parked.remove(&ticket) {
                Some(Parked::Fetch(request, from, deadline)) => {
                    self.serve(env, who, request, from, deadline);
                }
                Some(parked) => {
                    self.parked.insert(ticket, parked);
                    self.answer_ticket(env, ticket, None);
                }
                None => {}
            }
        }
        self.deliver(env);
        self.set_timer(env, who);
    }

    /// Answers a fetch with what there is, or lets it wait.
    fn serve(
        &mut self,
        env: &mut Env,
        who: Who,
        mut request: FetchBatches,
        from: ReturnAddress,
        deadline: Tick,
    ) {
        let Some(log) = &self.log else { return };
        if !self.machine.is_leader() {
            return env.answer(from, Err(self.not_leader()));
        }
        let reader = log.reader();
        let isolation = request.isolation;
        let mut end = self.readable().end_for(isolation);
        if env.sabotaged(Sabotage::ReadBeyondCommitted) {
            end = self.machine.log_end();
        }
        let max_bytes = usize::try_from(request.max_bytes).unwrap_or(usize::MAX);
        let wait = deadline.since(env.now);
        let nothing_yet = request.offset >= end && request.offset <= self.machine.log_end();
        if !(nothing_yet && wait > Span(0)) {
            let read = reader.read(
                request.offset,
                end.max(request.offset),
                max_bytes,
                isolation,
            );
            let read = match read {
                Ok(read) => read,
                Err(error) => return env.answer(from, Err(problems::read_failed(&error))),
            };
            let progress = read.next_offset > request.offset;
            if !(read.bytes.is_empty() && progress && wait > Span(0)) {
                let reply = FetchedBatches {
                    batches: read.bytes,
                    next_offset: read.next_offset,
                    log_start_offset: reader.start(),
                    end_offset: end,
                };
                return env.answer(from, Ok(Reply::Fetched(reply)));
            }
            // Everything there was is hidden from this reader: it goes on waiting.
            request.offset = read.next_offset;
        }
        let ticket = self.ticket();
        self.waiting
            .park_fetch(ticket, request.offset, isolation, deadline);
        self.parked
            .insert(ticket, Parked::Fetch(request, from, deadline));
        self.set_timer(env, who);
    }

    fn answer_ticket(&mut self, env: &mut Env, ticket: Ticket, problem: Option<Problem>) {
        let answer = |batches| match &problem {
            Some(problem) => Err(problem.clone()),
            None => Ok(batches),
        };
        match self.parked.remove(&ticket) {
            Some(Parked::Append(batches, reply)) => {
                // Whoever asked waits at the other end, in this world.
                drop(reply.send(answer(batches)));
            }
            Some(Parked::Fetch(_, from, _)) => {
                let problem = problem.unwrap_or_else(|| self.not_leader());
                env.answer(from, Err(problem));
            }
            None => {}
        }
        self.deliver(env);
    }

    /// Passes on the answers that are there.
    fn deliver(&mut self, env: &mut Env) {
        self.answers.retain_mut(|(answer, from)| {
            let Ok(answer) = answer.try_recv() else {
                return true;
            };
            env.answer(*from, answer.map(Reply::Appended));
            false
        });
    }

    fn readable(&self) -> Readable {
        let committed = self.machine.committed().unwrap_or(Offset::ZERO);
        Readable {
            committed,
            last_stable: self.undecided.last_stable_offset(committed),
        }
    }

    fn start_work(&mut self, env: &mut Env, who: Who) {
        if self.log.is_some() && !std::mem::replace(&mut self.working, true) {
            let delay = env.some_ms(WORK_MS);
            who.after(env, delay, Timer::Work(self.id));
        }
    }

    fn set_timer(&mut self, env: &mut Env, who: Who) {
        if let Some(deadline) = self.waiting.next_deadline()
            && self.timer.is_none_or(|set| deadline < set)
        {
            self.timer = Some(deadline);
            let delay = deadline.since(env.now);
            who.after(env, Span(delay.0 + 1), Timer::Patience(self.id));
        }
    }

    fn not_leader(&self) -> Problem {
        problems::append_refused(AppendRefusal::NotLeader {
            leader: self.machine.leader(),
        })
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }
}

/// The facts a leader decides transactions by.
fn believed(env: &Env, image: &Arc<MetadataImage>) -> Arc<MetadataImage> {
    let change: fn(&mut JobImage) = match env.sabotage {
        Some(Sabotage::CommitUndecided) => |job| {
            job.completed = Some(job.completed.unwrap_or_default().next());
        },
        Some(Sabotage::CommitByCheckpointAlone) => |job| {
            for last in job.finals.values_mut() {
                *last = job.completed;
            }
        },
        _ => return image.clone(),
    };
    let mut believed = MetadataImage::clone(image);
    believed.jobs.values_mut().for_each(change);
    Arc::new(believed)
}

/// Reads what every reader who reads committed would be given.
pub fn committed_fetch(partition: TopicPartition, offset: Offset, wait: Span) -> FetchBatches {
    FetchBatches {
        partition,
        offset,
        max_bytes: 16 << 10,
        wait,
        isolation: Isolation::ReadCommitted,
    }
}
