//! The shell of a partition: mailbox → machine and agenda → log → replies.
//!
//! Here is what is done to the log; `reading_actor.rs` has those who read, `replication_actor.rs` the replicas.

use std::fmt;

use actix::fut::{ActorFutureExt, WrapFuture};
use actix::{Actor, ActorContext, AsyncContext, Context, Handler, ResponseFuture, SpawnHandle};
use common::error::{ErrorCode, Problem};
use common::ids::{NodeId, TopicPartition};
use common::offset::Offset;
use common::protocol::produce::{Acks, AppendedBatch};
use common::seglog::{LogError, PendingSync, Synced};
use common::time::{Span, Tick};
use tokio::sync::oneshot;
use tokio::task::JoinError;

use super::agenda::{Agenda, Turn};
use super::machine::{AppendRefusal, PartitionMachine};
use super::messages::{Append, Assign, Close, Grant};
use super::opening::{self, NotOpened};
use super::problems;
use super::replica_work::QueuedNews;
use super::settings::PartitionSettings;
use super::transactions::Undecided;
use super::waiter::{GrantReply, Waiter};
use super::waiting::{APPEND_TIMEOUT, Reached, Readable, Waiting};
use super::work::{Done, QueuedAppend, Retain, Work, Written, answer, describe, on_disk};
use crate::log::leader_epochs::LeaderEpochs;
use crate::log::partition_log::PartitionLog;
use crate::log::reader::LogReader;
use crate::log::retention;
use crate::metadata_image::ImageWatch;

pub(super) struct PartitionActor {
    pub(super) id: TopicPartition,
    pub(super) me: NodeId,
    pub(super) assigned: Assign,
    pub(super) settings: PartitionSettings,
    /// What the last work saw of the cluster's facts counts as seen here.
    image: ImageWatch,
    pub(super) machine: PartitionMachine,
    pub(super) agenda: Agenda<QueuedAppend>,
    /// While the agenda has it here.
    log: Option<Box<PartitionLog>>,
    pub(super) reader: Option<LogReader>,
    pub(super) undecided: Undecided,
    pub(super) epochs: LeaderEpochs,
    /// What the leader said to the log's position, until a turn takes it along.
    pub(super) news: Option<QueuedNews>,
    /// A sync that has run while the log was away.
    synced: Option<Synced>,
    pub(super) waiting: Waiting<Waiter>,
    /// Who asked before the log was open.
    pub(super) early: Vec<(Grant, GrantReply)>,
    timer: Option<(Tick, SpawnHandle)>,
    listening: bool,
    syncs_later: bool,
    pub(super) looks_at_isr: bool,
    /// Why who is in sync was not changed when it was last asked for.
    pub(super) isr_refused: Option<String>,
    closing: Option<oneshot::Sender<()>>,
}

impl PartitionActor {
    pub(super) fn new(
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
            agenda: Agenda::default(),
            log: None,
            reader: None,
            undecided: Undecided::default(),
            epochs: LeaderEpochs::default(),
            news: None,
            synced: None,
            waiting: Waiting::default(),
            early: Vec::new(),
            timer: None,
            listening: false,
            syncs_later: false,
            looks_at_isr: false,
            isr_refused: None,
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
                self.readable_from(log.reader(), log.end_offset());
                self.note(&log);
                self.log = Some(Box::new(log));
                self.agenda.opened();
                self.go_on(context);
            }
            Ok(Err(NotOpened { error, rest })) => {
                let readable = rest.as_ref().map(|rest| rest.end.0);
                tracing::error!(
                    partition = %self.id, %error, readable, "a partition's log cannot be opened"
                );
                let problem = problems::open_failed(&error);
                let Some(rest) = rest else {
                    return self.fail(problem, context);
                };
                self.readable_from(rest.reader, rest.end);
                self.undecided = rest.undecided;
                for append in self.agenda.damaged(problem.clone()) {
                    answer(append.reply, Err(problem.clone()));
                }
            }
            Err(panic) => return self.disk_failed(&panic.to_string(), context),
        }
        for (asked, reply) in std::mem::take(&mut self.early) {
            self.grant(&asked, reply, context);
        }
    }

    /// Until now the machine could only tell who leads.
    fn readable_from(&mut self, reader: LogReader, end: Offset) {
        self.machine = PartitionMachine::new(self.me, end);
        self.reader = Some(reader);
        self.agenda.assign();
        self.assign();
    }

    /// What the log knows that is needed while it is away.
    fn note(&mut self, log: &PartitionLog) {
        self.undecided = log.derived().transactions.undecided();
        self.epochs.clone_from(&log.derived().epochs);
    }

    /// After anything has changed: answers whom it can, and starts what there is to do.
    pub(super) fn go_on(&mut self, context: &mut Context<Self>) {
        self.start_sync(context);
        self.answer_satisfied();
        self.start_work(context);
        self.listen(context);
        self.set_timer(context);
        self.look_at_isr(context);
    }

    pub(super) fn start_work(&mut self, context: &mut Context<Self>) {
        let Some(turn) = self.agenda.next_turn() else {
            return;
        };
        let Turn {
            appends,
            retain,
            close,
        } = turn;
        let readable = self.readable();
        let leads = self.machine.is_leader();
        let image = self.image.borrow_and_update().clone();
        let what_to_retain = retain.then(|| {
            let now = self.settings.ages.now();
            let held = image.held_from(self.id, self.settings.clock.tick());
            Retain::at(now, &self.assigned.config, readable, held)
        });
        let work = Work {
            log: self.log.take().expect("a turn comes when the log is here"),
            appends,
            leader_epoch: leads.then(|| self.machine.leader_epoch()),
            follows: self.machine.follows(),
            news: self.news.take(),
            committed: readable.committed,
            image,
            steady: self.settings.ages.steady(),
            retain: what_to_retain,
            close,
        };
        let ages = retain.then(|| self.settings.ages.clone());
        let running = on_disk(self.settings.disk.clone(), move || {
            if let Some(ages) = ages {
                ages.keep();
            }
            work.run()
        });
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
        if let Err(problem) = self.agenda.came_back(done.disk_full, retained) {
            for written in done.written {
                answer(written.reply, Err(problem.clone()));
            }
            return;
        }
        let mut log = done.log;
        if let Some(synced) = self.synced.take()
            && let Err(error) = log.finish_sync(synced)
        {
            return self.disk_failed(&describe(&error), context);
        }
        if let Some(cut) = done.followed.cut {
            self.agenda.cut_off();
            self.machine.truncated(cut);
        }
        self.machine.appended(log.end_offset());
        self.machine.synced(log.durable_offset());
        if let Some(committed) = done.followed.committed {
            self.machine.leader_committed(committed);
        }
        self.note(&log);
        self.log = Some(log);
        let deadline = self.settings.clock.tick().plus(APPEND_TIMEOUT);
        for Written {
            acks,
            reply,
            batches,
            end,
        } in done.written
        {
            match acks {
                Acks::Leader => answer(reply, Ok(batches)),
                Acks::All => {
                    let waiter = Waiter::Append { batches, reply };
                    self.waiting.park_append(end, deadline, waiter);
                }
            }
        }
        if let Some(reply) = done.followed.reply {
            self.park_until_safe(reply);
        }
        self.assign();
        if closed {
            self.answer_satisfied();
            self.fail(problems::closed(self.id), context);
            return;
        }
        self.go_on(context);
    }

    fn start_sync(&mut self, context: &mut Context<Self>) {
        let Some(log) = self.log.as_mut() else { return };
        let now = self.settings.clock.tick();
        self.agenda.unsynced(now, log.unsynced_bytes());
        if !self.agenda.begins_sync(now, self.machine.durability()) {
            return self.sync_later(now, context);
        }
        let Some(sync) = log.begin_sync() else { return };
        self.agenda.sync_began(log.end_offset());
        let running = on_disk(self.settings.disk.clone(), move || PendingSync::run(sync));
        let done = running
            .into_actor(self)
            .map(|synced, actor, context| actor.sync_ran(synced, context));
        context.spawn(done);
    }

    /// What is acknowledged in memory is not left there.
    fn sync_later(&mut self, now: Tick, context: &mut Context<Self>) {
        let Some(due) = self.agenda.sync_due_at() else {
            return;
        };
        if std::mem::replace(&mut self.syncs_later, true) {
            return;
        }
        let after = Span(due.since(now).0 + 1);
        context.run_later(after.as_duration(), |actor, context| {
            actor.syncs_later = false;
            actor.go_on(context);
        });
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
        if let Some(durable) = self.agenda.sync_ran() {
            self.machine.synced(durable);
        }
        match &mut self.log {
            Some(log) => {
                if let Err(error) = log.finish_sync(synced) {
                    return self.disk_failed(&describe(&error), context);
                }
            }
            None => self.synced = Some(synced),
        }
        self.go_on(context);
    }

    pub(super) fn readable(&self) -> Readable {
        Readable::of(&self.machine, &self.undecided)
    }

    fn answer_satisfied(&mut self) {
        if self.agenda.is_opening() || self.waiting.is_empty() {
            return;
        }
        let reached = Reached {
            readable: self.readable(),
            written: self.machine.log_end(),
            safe: self.machine.measure(),
        };
        for waiter in self.waiting.satisfied(reached) {
            match waiter {
                Waiter::Append { batches, reply } => answer(reply, Ok(batches)),
                Waiter::Fetch { reply } => answer(reply, self.granted()),
                Waiter::Follower { reply } => answer(reply, self.continues()),
                Waiter::Position { reply } => answer(reply, Ok(self.here())),
            }
        }
    }

    fn time_is_up(&mut self, context: &mut Context<Self>) {
        self.timer = None;
        for waiter in self.waiting.expired(self.settings.clock.tick()) {
            match waiter {
                Waiter::Append { reply, .. } => {
                    answer(reply, Err(problems::not_committed(self.id)));
                }
                // It is answered with what there is: nothing.
                Waiter::Fetch { reply } => answer(reply, self.granted()),
                Waiter::Follower { reply } => answer(reply, self.continues()),
                Waiter::Position { reply } => {
                    answer(reply, Err(problems::position_unknown(self.id)));
                }
            }
        }
        self.set_timer(context);
    }

    pub(super) fn set_timer(&mut self, context: &mut Context<Self>) {
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
                actor.agenda.reconcile();
                actor.go_on(context);
            }
        });
        context.spawn(heard);
    }

    fn set_retention_timer(&self, context: &mut Context<Self>) {
        let after = retention::interval(&self.assigned.config).as_duration();
        context.run_later(after, |actor, context| {
            actor.agenda.retain();
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
        for append in self.agenda.failed(problem.clone()) {
            answer(append.reply, Err(problem.clone()));
        }
        for (_, reply) in std::mem::take(&mut self.early) {
            answer(reply, Err(problem.clone()));
        }
        if let Some(news) = self.news.take() {
            answer(news.reply, Err(problem.clone()));
        }
        for waiter in self.waiting.drain() {
            waiter.refuse(problem.clone());
        }
        self.log = None;
        self.reader = None;
        if let Some(closed) = self.closing.take() {
            answer(closed, ());
            context.stop();
        }
    }

    fn admit(&mut self, append: &Append, bytes: usize) -> Result<(), Problem> {
        if let Some(problem) = self.agenda.unwritable() {
            return Err(problem.clone());
        }
        self.note_offline();
        self.machine
            .admit_append(append.acks, append.leader_epoch)
            .map_err(problems::append_refused)?;
        let admitted = self.agenda.admit(bytes, self.waiting.len());
        admitted.map_err(|busy| problems::busy(self.id, busy))
    }

    pub(super) fn not_leader(&self) -> Problem {
        problems::append_refused(AppendRefusal::NotLeader {
            leader: self.machine.leader(),
        })
    }
}

impl Actor for PartitionActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        let settings = self.settings.clone();
        let (id, config) = (self.id, self.assigned.config.clone());
        let open = move || opening::open(&settings, id, &config);
        let opened = on_disk(self.settings.disk.clone(), open)
            .into_actor(self)
            .map(|opened, actor, context| actor.opened(opened, context));
        context.spawn(opened);
        self.set_retention_timer(context);
    }
}

impl Handler<Append> for PartitionActor {
    type Result = ResponseFuture<Result<Vec<AppendedBatch>, Problem>>;

    fn handle(&mut self, message: Append, context: &mut Context<Self>) -> Self::Result {
        let bytes: usize = message.batches.iter().map(|b| b.bytes().len()).sum();
        if let Err(problem) = self.admit(&message, bytes) {
            return Box::pin(std::future::ready(Err(problem)));
        }
        let (reply, replied) = oneshot::channel();
        let append = QueuedAppend {
            batches: message.batches,
            acks: message.acks,
            reply,
        };
        self.agenda.queue(append, bytes);
        self.start_work(context);
        let id = self.id;
        Box::pin(async move { replied.await.unwrap_or_else(|_| Err(problems::lost(id))) })
    }
}

impl Handler<Close> for PartitionActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Close, context: &mut Context<Self>) -> ResponseFuture<()> {
        let (closed, wait) = oneshot::channel();
        self.closing = Some(closed);
        self.agenda.close();
        match self.agenda.unwritable().cloned() {
            Some(problem) => self.fail(problem, context),
            None => self.go_on(context),
        }
        Box::pin(async move { wait.await.unwrap_or_default() })
    }
}

impl fmt::Debug for PartitionActor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartitionActor")
            .field("id", &self.id)
            .field("machine", &self.machine)
            .finish_non_exhaustive()
    }
}
