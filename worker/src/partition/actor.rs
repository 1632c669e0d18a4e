//! The shell of a partition: mailbox → machine → log → replies.
//!
//! The log is here, or away on a blocking thread; while it is away, appends queue up. Syncs run beside
//! it, one at a time, each for everything written before it began.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix::fut::{ActorFutureExt, WrapFuture};
use actix::{
    Actor, ActorContext, Addr, AsyncContext, Context, Handler, MailboxError, ResponseFuture,
    SpawnHandle,
};
use actix_rt::ArbiterHandle;
use common::error::{ErrorCode, Problem};
use common::ids::{LeaderEpoch, NodeId, TopicPartition};
use common::kv::KvStore;
use common::limits::MAX_WAIT;
use common::log_batch::LogBatch;
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::fetch::{FetchBatches, FetchedBatches, PartitionOffsets};
use common::protocol::metadata::PartitionImage;
use common::protocol::produce::{Acks, AppendedBatch};
use common::protocol::topic::TopicConfig;
use common::seglog::storage::LogStorage;
use common::seglog::{LogError, PendingSync, Synced};
use common::time::{Clock, Span, Tick, Timestamp};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinError;

use super::machine::{AppendRefusal, PartitionMachine};
use super::messages::{Append, Assign, Close, Grant, Granted};
use super::problems;
use super::transactions::Undecided;
use super::waiting::{Readable, Ticket, Waiting};
use super::work::{AppendReply, Done, QueuedAppend, Work, answer};
use crate::log::partition_log::{OpenError, PartitionLog};
use crate::log::reader::{LogReader, ReadError};
use crate::log::retention;
use crate::log::salvaged::Salvaged;
use crate::log::saved::SavedState;
use crate::metadata_image::ImageWatch;

/// Messages to one partition before its senders wait.
const MAILBOX: usize = 1_024;
/// Bytes that may queue up for one partition while its disk is busy.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Appends and fetches that may wait at one partition.
const MAX_PARKED: usize = 16 << 10;
/// An append that is not committed by then is answered with "unknown".
const APPEND_TIMEOUT: Span = Span::from_secs(30);

/// What every partition of a node has in common.
#[derive(Clone)]
pub struct PartitionSettings {
    pub clock: Arc<dyn Clock>,
    pub image: ImageWatch,
    /// Where derived state is saved; without it everything is rebuilt when a log is opened.
    pub store: Option<Arc<dyn KvStore>>,
    /// The directory of a partition's log. May block.
    pub storage: Arc<dyn Fn(TopicPartition) -> io::Result<Arc<dyn LogStorage>> + Send + Sync>,
    /// How many writes and syncs may run at once.
    pub disk: Arc<Semaphore>,
    /// A failed fsync, after which nothing this process says of its disk can be believed. Ends the
    /// process, except in tests.
    pub on_disk_failure: Arc<dyn Fn(&str) + Send + Sync>,
}

/// A partition, as everyone but its actor sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartitionHandle {
    id: TopicPartition,
    clock: Arc<dyn Clock>,
    actor: Addr<PartitionActor>,
}

/// Starts partitions' actors on the threads it was given, in turns.
#[derive(Debug)]
pub struct PartitionStarter {
    arbiters: Vec<ArbiterHandle>,
    next: AtomicUsize,
    settings: PartitionSettings,
}

impl PartitionStarter {
    pub fn new(arbiters: Vec<ArbiterHandle>, settings: PartitionSettings) -> PartitionStarter {
        assert!(!arbiters.is_empty(), "partitions need a thread to run on");
        PartitionStarter {
            arbiters,
            next: AtomicUsize::new(0),
            settings,
        }
    }

    /// Starts a partition, which opens its log and queues what comes until that is done.
    pub fn start(
        &self,
        id: TopicPartition,
        me: NodeId,
        image: PartitionImage,
        config: TopicConfig,
    ) -> PartitionHandle {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.arbiters.len();
        let clock = self.settings.clock.clone();
        let settings = self.settings.clone();
        let actor = PartitionActor::start_in_arbiter(&self.arbiters[turn], move |context| {
            context.set_mailbox_capacity(MAILBOX);
            PartitionActor::new(id, me, Assign { image, config }, settings)
        });
        PartitionHandle { id, clock, actor }
    }

    pub fn settings(&self) -> &PartitionSettings {
        &self.settings
    }
}

impl PartitionHandle {
    pub fn id(&self) -> TopicPartition {
        self.id
    }

    /// The metadata says this of the partition now.
    pub async fn assign(&self, image: PartitionImage, config: TopicConfig) -> Result<(), Problem> {
        let sent = self.actor.send(Assign { image, config }).await;
        sent.map_err(|error| self.gone(&error))
    }

    /// Appends a batch. Its records must have been validated. See [`PartitionHandle::append_all`].
    pub async fn append(
        &self,
        batch: LogBatch,
        acks: Acks,
        leader_epoch: Option<LeaderEpoch>,
    ) -> Result<AppendedBatch, Problem> {
        let mut placed = self.append_all(vec![batch], acks, leader_epoch).await?;
        placed
            .pop()
            .ok_or_else(|| Problem::new(ErrorCode::Internal, "an append has no result"))
    }

    /// Appends batches one after another, with nothing between them, and waits as `acks` says. An error
    /// may leave some of them in the log; an answer that never comes says nothing.
    pub async fn append_all(
        &self,
        batches: Vec<LogBatch>,
        acks: Acks,
        leader_epoch: Option<LeaderEpoch>,
    ) -> Result<Vec<AppendedBatch>, Problem> {
        let append = Append {
            batches,
            acks,
            leader_epoch,
        };
        let sent = self.actor.send(append).await;
        sent.map_err(|error| self.gone(&error))?
    }

    /// Whole batches from an offset on. Waits while there is nothing, as long as the request says.
    pub async fn fetch(&self, request: &FetchBatches) -> Result<FetchedBatches, Problem> {
        let isolation = request.isolation;
        let max_bytes = usize::try_from(request.max_bytes).unwrap_or(usize::MAX);
        let mut from = request.offset;
        let deadline = self.clock.tick().plus(request.wait.min(MAX_WAIT));
        loop {
            let wait = deadline.since(self.clock.tick());
            let granted = self.grant(Some((from, isolation)), wait).await?;
            let reader = granted.reader;
            let end = granted.readable.end_for(isolation);
            let log_start_offset = reader.start();
            if from > granted.log_end {
                return Err(problems::read_failed(&ReadError::OutOfRange {
                    offset: from,
                    start: log_start_offset,
                    end: granted.log_end,
                }));
            }
            // What lies between the end for this reader and the end of the log is yet to be decided.
            let read = blocking(move || reader.read(from, end.max(from), max_bytes, isolation))
                .await?
                .map_err(|error| problems::read_failed(&error))?;
            let progress = read.next_offset > from;
            from = read.next_offset;
            if read.bytes.is_empty() && progress && wait > Span(0) {
                // Everything there was is hidden from this reader: it goes on waiting.
                continue;
            }
            return Ok(FetchedBatches {
                batches: read.bytes,
                next_offset: from,
                log_start_offset,
                end_offset: end,
            });
        }
    }

    /// Where the partition starts and ends, and which offset a time has.
    pub async fn offsets(&self, at: Option<Timestamp>) -> Result<PartitionOffsets, Problem> {
        let granted = self.grant(None, Span(0)).await?;
        let Readable {
            committed,
            last_stable,
        } = granted.readable;
        let reader = granted.reader;
        let log_start_offset = reader.start();
        let found = match at {
            Some(time) => blocking(move || reader.offset_at(time, committed))
                .await?
                .map_err(|error| problems::read_failed(&error))?,
            None => None,
        };
        Ok(PartitionOffsets {
            log_start_offset,
            last_stable_offset: last_stable,
            committed_offset: committed,
            log_end_offset: granted.log_end,
            at: found,
        })
    }

    /// Makes everything durable, saves, and ends the actor.
    pub async fn close(&self) {
        // One that has ended already is closed.
        self.actor.send(Close).await.unwrap_or_default();
    }

    async fn grant(
        &self,
        from: Option<(Offset, Isolation)>,
        wait: Span,
    ) -> Result<Granted, Problem> {
        let sent = self.actor.send(Grant { from, wait }).await;
        sent.map_err(|error| self.gone(&error))?
    }

    fn gone(&self, error: &MailboxError) -> Problem {
        match error {
            MailboxError::Closed => Problem::new(
                ErrorCode::LeaderUnavailable,
                format!("partition {} has been closed on this node", self.id),
            ),
            MailboxError::Timeout => {
                Problem::new(ErrorCode::Timeout, format!("partition {} is busy", self.id))
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Problem::new(
            ErrorCode::Internal,
            format!("reading a log failed: {error}"),
        )
    })
}

pub(super) struct PartitionActor {
    id: TopicPartition,
    me: NodeId,
    assigned: Assign,
    settings: PartitionSettings,
    /// What the last work saw of the cluster's facts counts as seen here.
    image: ImageWatch,
    machine: PartitionMachine,
    place: Place,
    reader: Option<LogReader>,
    undecided: Undecided,
    queue: Vec<QueuedAppend>,
    queued_bytes: usize,
    /// The offset a sync under way will make the log durable up to.
    syncing: Option<Offset>,
    /// A sync that has run while the log was away.
    synced: Option<Synced>,
    waiting: Waiting,
    parked: BTreeMap<Ticket, Parked>,
    /// Who asked before the log was open.
    early: Vec<(Grant, GrantReply)>,
    next_ticket: u64,
    timer: Option<(Tick, SpawnHandle)>,
    listening: bool,
    reconcile: bool,
    retain: bool,
    closing: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
enum Place {
    /// On its way here for the first time.
    Opening,
    Here(Box<PartitionLog>),
    Away,
    /// What comes before the damage can be read, and nothing is written.
    Damaged(Problem),
    /// It cannot be used, and why.
    Failed(Problem),
}

/// Why a log could not be opened, and what of it can be read all the same.
struct NotOpened {
    error: OpenError,
    rest: Option<Salvaged>,
}

type GrantReply = oneshot::Sender<Result<Granted, Problem>>;

#[derive(Debug)]
enum Parked {
    Append {
        batches: Vec<AppendedBatch>,
        reply: AppendReply,
    },
    Fetch {
        reply: GrantReply,
    },
}

impl PartitionActor {
    fn new(
        id: TopicPartition,
        me: NodeId,
        assigned: Assign,
        settings: PartitionSettings,
    ) -> PartitionActor {
        let mut machine = PartitionMachine::new(me, Offset::ZERO);
        let now = settings.clock.tick();
        machine.assign(now, &assigned.image, &assigned.config);
        PartitionActor {
            id,
            me,
            assigned,
            image: settings.image.clone(),
            settings,
            machine,
            place: Place::Opening,
            reader: None,
            undecided: Undecided::default(),
            queue: Vec::new(),
            queued_bytes: 0,
            syncing: None,
            synced: None,
            waiting: Waiting::default(),
            parked: BTreeMap::new(),
            early: Vec::new(),
            next_ticket: 0,
            timer: None,
            listening: false,
            reconcile: false,
            retain: false,
            closing: None,
        }
    }

    fn opened(
        &mut self,
        opened: Result<Result<PartitionLog, NotOpened>, JoinError>,
        context: &mut Context<Self>,
    ) {
        match opened {
            Ok(Ok(log)) => {
                // Until now the machine could only tell who leads.
                self.machine = PartitionMachine::new(self.me, log.end_offset());
                self.assign();
                self.undecided = log.derived().transactions.undecided();
                self.reader = Some(log.reader());
                self.place = Place::Here(Box::new(log));
                self.reconcile = true;
                self.go_on(context);
                for (asked, reply) in std::mem::take(&mut self.early) {
                    self.grant(&asked, reply, context);
                }
            }
            Ok(Err(NotOpened { error, rest })) => {
                let readable = rest.as_ref().map(|rest| rest.end.0);
                tracing::error!(
                    partition = %self.id, %error, readable, "a partition's log cannot be opened"
                );
                let problem = problems::open_failed(&error);
                match rest {
                    Some(rest) => self.read_only(problem, rest, context),
                    None => self.fail(problem, context),
                }
            }
            Err(panic) => self.disk_failed(&panic.to_string(), context),
        }
    }

    /// The log is damaged: what is sound of it is read, and everything else answered with the problem.
    fn read_only(&mut self, problem: Problem, rest: Salvaged, context: &mut Context<Self>) {
        self.machine = PartitionMachine::new(self.me, rest.end);
        self.assign();
        self.undecided = rest.undecided;
        self.reader = Some(rest.reader);
        for append in std::mem::take(&mut self.queue) {
            answer(append.reply, Err(problem.clone()));
        }
        self.place = Place::Damaged(problem);
        for (asked, reply) in std::mem::take(&mut self.early) {
            self.grant(&asked, reply, context);
        }
    }

    fn assign(&mut self) {
        let now = self.settings.clock.tick();
        let Assign { image, config } = &self.assigned;
        self.machine.assign(now, image, config);
    }

    /// After anything has changed: answers whom it can, and starts what there is to do.
    fn go_on(&mut self, context: &mut Context<Self>) {
        self.start_sync(context);
        self.answer_parked();
        self.start_work(context);
        self.listen(context);
        self.set_timer(context);
    }

    fn start_work(&mut self, context: &mut Context<Self>) {
        let close = self.closing.is_some() && self.syncing.is_none();
        let wanted = close || !self.queue.is_empty() || self.reconcile || self.retain;
        if !wanted || !matches!(self.place, Place::Here(_)) {
            return;
        }
        let Place::Here(log) = std::mem::replace(&mut self.place, Place::Away) else {
            return;
        };
        let readable = self.readable();
        let retain = std::mem::take(&mut self.retain);
        self.reconcile = false;
        self.queued_bytes = 0;
        let work = Work {
            log,
            appends: std::mem::take(&mut self.queue),
            leader_epoch: self
                .machine
                .is_leader()
                .then(|| self.machine.leader_epoch()),
            committed: readable.committed,
            image: self.image.borrow_and_update().clone(),
            now: self.settings.clock.wall(),
            retain: retain.then(|| (self.assigned.config.clone(), readable.last_stable)),
            close,
        };
        let running = on_disk(self.settings.disk.clone(), move || work.run());
        let done = running.into_actor(self).map(move |done, actor, context| {
            actor.worked(done, close, retain, context);
        });
        context.spawn(done);
    }

    fn worked(
        &mut self,
        done: Result<Done, JoinError>,
        closed: bool,
        retained: bool,
        context: &mut Context<Self>,
    ) {
        let done = match done {
            Ok(done) => done,
            Err(panic) => return self.disk_failed(&panic.to_string(), context),
        };
        if let Some(error) = done.fatal {
            return self.disk_failed(&describe(&error), context);
        }
        let mut log = done.log;
        if let Some(synced) = self.synced.take()
            && let Err(error) = log.finish_sync(synced)
        {
            return self.disk_failed(&describe(&error), context);
        }
        self.machine.appended(log.end_offset());
        self.machine.synced(log.durable_offset());
        self.undecided = log.derived().transactions.undecided();
        self.place = Place::Here(log);
        // A full disk is a reason to look for old segments at once, though not over and over.
        self.retain |= done.disk_full && !retained;
        for written in done.written {
            match written.acks {
                Acks::Leader => answer(written.reply, Ok(written.batches)),
                Acks::All => {
                    let deadline = self.settings.clock.tick().plus(APPEND_TIMEOUT);
                    let ticket = self.ticket();
                    self.waiting.park_append(ticket, written.end, deadline);
                    let parked = Parked::Append {
                        batches: written.batches,
                        reply: written.reply,
                    };
                    self.parked.insert(ticket, parked);
                }
            }
        }
        if closed {
            self.answer_parked();
            self.fail(self.closed(), context);
            return;
        }
        self.go_on(context);
    }

    fn start_sync(&mut self, context: &mut Context<Self>) {
        let Place::Here(log) = &mut self.place else {
            return;
        };
        if self.syncing.is_some() {
            return;
        }
        let Some(sync) = log.begin_sync() else { return };
        self.syncing = Some(log.end_offset());
        let running = on_disk(self.settings.disk.clone(), move || PendingSync::run(sync));
        let done = running
            .into_actor(self)
            .map(|synced, actor, context| actor.sync_ran(synced, context));
        context.spawn(done);
    }

    fn sync_ran(
        &mut self,
        synced: Result<Result<Synced, LogError>, JoinError>,
        context: &mut Context<Self>,
    ) {
        let synced = match synced {
            Ok(Ok(synced)) => synced,
            Ok(Err(error)) => return self.disk_failed(&describe(&error), context),
            Err(panic) => return self.disk_failed(&panic.to_string(), context),
        };
        if let Some(durable) = self.syncing.take() {
            self.machine.synced(durable);
        }
        match &mut self.place {
            Place::Here(log) => {
                if let Err(error) = log.finish_sync(synced) {
                    return self.disk_failed(&describe(&error), context);
                }
            }
            Place::Opening | Place::Away | Place::Damaged(_) | Place::Failed(_) => {
                self.synced = Some(synced);
            }
        }
        self.go_on(context);
    }

    fn readable(&self) -> Readable {
        let committed = self.machine.committed().unwrap_or(Offset::ZERO);
        Readable {
            committed,
            last_stable: self.undecided.last_stable_offset(committed),
        }
    }

    fn granted(&self) -> Result<Granted, Problem> {
        match (&self.place, &self.reader) {
            (Place::Failed(problem), _) => Err(problem.clone()),
            (_, Some(reader)) if self.machine.is_leader() => Ok(Granted {
                reader: reader.clone(),
                readable: self.readable(),
                log_end: self.machine.log_end(),
            }),
            (_, Some(_) | None) => Err(self.not_leader()),
        }
    }

    fn grant(&mut self, asked: &Grant, reply: GrantReply, context: &mut Context<Self>) {
        if let Place::Damaged(problem) = &self.place {
            // Where the log really ends is not known: whoever took the damage for the end would miss the rest.
            let readable = self.readable();
            let sound = asked
                .from
                .is_some_and(|(offset, isolation)| offset < readable.end_for(isolation));
            let granted = match sound {
                true => self.granted(),
                false => Err(problem.clone()),
            };
            return answer(reply, granted);
        }
        let yet_to_come = asked.from.filter(|(offset, isolation)| {
            *offset >= self.readable().end_for(*isolation) && *offset <= self.machine.log_end()
        });
        match yet_to_come {
            Some((offset, isolation)) if asked.wait > Span(0) && self.granted().is_ok() => {
                let ticket = self.ticket();
                let deadline = self.settings.clock.tick().plus(asked.wait);
                self.waiting.park_fetch(ticket, offset, isolation, deadline);
                self.parked.insert(ticket, Parked::Fetch { reply });
                self.set_timer(context);
            }
            Some(_) | None => answer(reply, self.granted()),
        }
    }

    fn answer_parked(&mut self) {
        if matches!(self.place, Place::Opening) || self.waiting.is_empty() {
            return;
        }
        for ticket in self.waiting.satisfied(self.readable()) {
            self.answer_ticket(ticket, None);
        }
    }

    fn answer_ticket(&mut self, ticket: Ticket, problem: Option<Problem>) {
        match (self.parked.remove(&ticket), problem) {
            (Some(Parked::Append { batches, reply }), None) => answer(reply, Ok(batches)),
            (Some(Parked::Append { reply, .. }), Some(problem)) => answer(reply, Err(problem)),
            (Some(Parked::Fetch { reply }), None) => answer(reply, self.granted()),
            (Some(Parked::Fetch { reply }), Some(problem)) => answer(reply, Err(problem)),
            (None, _) => {}
        }
    }

    fn time_is_up(&mut self, context: &mut Context<Self>) {
        self.timer = None;
        for ticket in self.waiting.expired(self.settings.clock.tick()) {
            let problem = match self.parked.get(&ticket) {
                // A fetch is answered with what there is: nothing.
                Some(Parked::Fetch { .. }) | None => None,
                Some(Parked::Append { .. }) => Some(Problem::new(
                    ErrorCode::Timeout,
                    format!(
                        "partition {} has not committed the batch within {APPEND_TIMEOUT}; it may yet",
                        self.id
                    ),
                )),
            };
            self.answer_ticket(ticket, problem);
        }
        self.set_timer(context);
    }

    fn set_timer(&mut self, context: &mut Context<Self>) {
        let Some(deadline) = self.waiting.next_deadline() else {
            return;
        };
        match self.timer {
            Some((set, _)) if set <= deadline => return,
            Some((_, handle)) => {
                context.cancel_future(handle);
            }
            None => {}
        }
        // One millisecond more: a tick is over only when its millisecond is.
        let after = Span(deadline.since(self.settings.clock.tick()).0 + 1);
        let handle = context.run_later(after.as_duration(), |actor, context| {
            actor.time_is_up(context);
        });
        self.timer = Some((deadline, handle));
    }

    /// While a transaction is open, every change of the cluster's facts may decide it.
    fn listen(&mut self, context: &mut Context<Self>) {
        if self.listening || !self.undecided.has_open() || !self.machine.is_leader() {
            return;
        }
        self.listening = true;
        let mut image = self.image.clone();
        let changed = async move { image.changed().await.is_ok() };
        let heard = changed.into_actor(self).map(|alive, actor, context| {
            if alive {
                actor.listening = false;
                actor.reconcile = true;
                actor.go_on(context);
            }
        });
        context.spawn(heard);
    }

    fn set_retention_timer(&self, context: &mut Context<Self>) {
        let after = retention::interval(&self.assigned.config).as_duration();
        context.run_later(after, |actor, context| {
            actor.retain = true;
            actor.start_work(context);
            actor.set_retention_timer(context);
        });
    }

    fn disk_failed(&mut self, reason: &str, context: &mut Context<Self>) {
        let detail = format!("the disk of partition {} has failed: {reason}", self.id);
        (self.settings.on_disk_failure)(&detail);
        self.fail(Problem::new(ErrorCode::Internal, detail), context);
    }

    /// Nothing more can be done here: everyone is told, now and from now on.
    fn fail(&mut self, problem: Problem, context: &mut Context<Self>) {
        for append in std::mem::take(&mut self.queue) {
            answer(append.reply, Err(problem.clone()));
        }
        for (_, reply) in std::mem::take(&mut self.early) {
            answer(reply, Err(problem.clone()));
        }
        for ticket in self.waiting.drain() {
            self.answer_ticket(ticket, Some(problem.clone()));
        }
        self.place = Place::Failed(problem);
        self.reader = None;
        if let Some(closed) = self.closing.take() {
            answer(closed, ());
            context.stop();
        }
    }

    fn not_leader(&self) -> Problem {
        problems::append_refused(AppendRefusal::NotLeader {
            leader: self.machine.leader(),
        })
    }

    fn closed(&self) -> Problem {
        Problem::new(
            ErrorCode::ShuttingDown,
            format!("partition {} is being closed", self.id),
        )
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    fn overloaded(&self, what: &str) -> Problem {
        Problem::new(
            ErrorCode::Overloaded,
            format!("too many {what} wait at partition {}", self.id),
        )
        .hint("Try again in a moment.")
    }
}

/// Runs on a blocking thread, when the disk has room for one more.
async fn on_disk<T: Send + 'static>(
    disk: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let _permit = disk.acquire_owned().await;
    tokio::task::spawn_blocking(work).await
}

fn describe(error: &LogError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl Actor for PartitionActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        let id = self.id;
        let storage = self.settings.storage.clone();
        let store = self.settings.store.clone();
        let config = self.assigned.config.clone();
        let now = self.settings.clock.wall();
        let open = move || {
            let storage = storage(id).map_err(|source| NotOpened {
                error: OpenError::Log(LogError::Io {
                    operation: "create",
                    file: "directory".to_owned(),
                    source,
                }),
                rest: None,
            })?;
            let saved = store.map(|store| SavedState::new(store, id));
            let opened = PartitionLog::open(Arc::clone(&storage), saved, &config, now);
            opened.map_err(|error| NotOpened {
                rest: match problems::open_failed(&error).code {
                    ErrorCode::CorruptLog => Salvaged::of(&*storage, now),
                    _ => None,
                },
                error,
            })
        };
        let opened = on_disk(self.settings.disk.clone(), open)
            .into_actor(self)
            .map(|opened, actor, context| actor.opened(opened, context));
        context.spawn(opened);
        self.set_retention_timer(context);
    }
}

impl Handler<Assign> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: Assign, context: &mut Context<Self>) {
        let was_leader = self.machine.is_leader();
        self.assigned = message;
        self.assign();
        if was_leader && !self.machine.is_leader() {
            for ticket in self.waiting.drain() {
                self.answer_ticket(ticket, Some(self.not_leader()));
            }
        }
        self.reconcile |= self.undecided.has_open();
        self.go_on(context);
    }
}

impl Handler<Append> for PartitionActor {
    type Result = ResponseFuture<Result<Vec<AppendedBatch>, Problem>>;

    fn handle(&mut self, message: Append, context: &mut Context<Self>) -> Self::Result {
        let bytes: usize = message.batches.iter().map(|b| b.bytes().len()).sum();
        let admitted = self
            .machine
            .admit_append(message.acks, message.leader_epoch)
            .map_err(problems::append_refused);
        let refusal = match (&self.place, admitted) {
            (Place::Failed(problem) | Place::Damaged(problem), _) => Some(problem.clone()),
            (_, Err(problem)) => Some(problem),
            _ if self.closing.is_some() => Some(self.closed()),
            _ if self.queued_bytes + bytes > MAX_QUEUED_BYTES && !self.queue.is_empty() => {
                Some(self.overloaded("bytes"))
            }
            _ if self.queue.len() + self.waiting.len() >= MAX_PARKED => {
                Some(self.overloaded("appends"))
            }
            _ => None,
        };
        if let Some(problem) = refusal {
            return Box::pin(std::future::ready(Err(problem)));
        }
        let (reply, replied) = oneshot::channel();
        self.queued_bytes += bytes;
        self.queue.push(QueuedAppend {
            batches: message.batches,
            acks: message.acks,
            reply,
        });
        self.start_work(context);
        let id = self.id;
        Box::pin(async move { replied.await.unwrap_or_else(|_| Err(lost(id))) })
    }
}

impl Handler<Grant> for PartitionActor {
    type Result = ResponseFuture<Result<Granted, Problem>>;

    fn handle(&mut self, message: Grant, context: &mut Context<Self>) -> Self::Result {
        if self.waiting.len() + self.early.len() >= MAX_PARKED {
            return Box::pin(std::future::ready(Err(self.overloaded("fetches"))));
        }
        let (reply, replied) = oneshot::channel();
        if matches!(self.place, Place::Opening) {
            self.early.push((message, reply));
        } else {
            self.grant(&message, reply, context);
        }
        let id = self.id;
        Box::pin(async move { replied.await.unwrap_or_else(|_| Err(lost(id))) })
    }
}

impl Handler<Close> for PartitionActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Close, context: &mut Context<Self>) -> ResponseFuture<()> {
        let (closed, wait) = oneshot::channel();
        self.closing = Some(closed);
        match &self.place {
            Place::Failed(problem) | Place::Damaged(problem) => {
                let problem = problem.clone();
                self.fail(problem, context);
            }
            Place::Opening | Place::Here(_) | Place::Away => self.go_on(context),
        }
        Box::pin(async move { wait.await.unwrap_or_default() })
    }
}

fn lost(id: TopicPartition) -> Problem {
    Problem::new(
        ErrorCode::Unknown,
        format!("partition {id} ended before it answered"),
    )
}

impl fmt::Debug for PartitionActor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartitionActor")
            .field("id", &self.id)
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PartitionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartitionSettings").finish_non_exhaustive()
    }
}
