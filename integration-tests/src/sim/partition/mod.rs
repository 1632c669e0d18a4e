//! A partition of a worker in the world: its machine and its log, and what its actor would do for them.

mod replicas;

use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::ids::{LeaderEpoch, NodeId, TopicPartition};
use common::kv::KvStore;
use common::limits::MAX_WAIT;
use common::log_batch::LogBatch;
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::fetch::{FetchBatches, FetchedBatches};
use common::protocol::metadata::{JobImage, PartitionImage};
use common::protocol::produce::{Acks, Append, AppendedBatch};
use common::protocol::replicate::ReplicaPosition;
use common::protocol::topic::TopicConfig;
use common::seglog::memory::MemoryStorage;
use common::seglog::{PendingSync, Synced};
use common::time::{Span, Tick};
use tokio::sync::oneshot;
use worker::link::Session;
use worker::link::lease::{LOOK_EVERY, PATIENCE};
use worker::log::leader_epochs::LeaderEpochs;
use worker::log::partition_log::PartitionLog;
use worker::log::saved::SavedState;
use worker::metadata_image::MetadataImage;
use worker::partition::age_clock::AgeClock;
use worker::partition::agenda::{Agenda, Reading, Turn};
use worker::partition::machine::{AppendRefusal, PartitionMachine};
use worker::partition::problems;
use worker::partition::replica_work::{PositionReply, QueuedNews};
use worker::partition::transactions::Undecided;
use worker::partition::waiting::{APPEND_TIMEOUT, Reached, Readable, Waiting};
use worker::partition::work::{AppendReply, QueuedAppend, Retain, Work};
use worker::replication::session_machine::WatchId;

use super::env::Env;
use super::network::{Reply, ReturnAddress};
use super::replication::{looked, positioned, refused};
use super::sabotage::Sabotage;
use super::worker::{Timer, Who};

/// How long work on the log and a sync take at most.
const WORK_MS: u64 = 2;
const SYNC_MS: u64 = 8;
/// How often a leader looks who is in sync.
const LOOK_AT_ISR_EVERY: Span = Span::from_millis(500);

type Answer = oneshot::Receiver<Result<Vec<AppendedBatch>, Problem>>;
type Applied = oneshot::Receiver<Result<ReplicaPosition, Problem>>;

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
    epochs: LeaderEpochs,
    agenda: Agenda<QueuedAppend>,
    answers: Vec<(Answer, ReturnAddress)>,
    /// What the leader said to the log's position, until a turn takes it along; and what becomes of it.
    news: Option<QueuedNews>,
    applying: Vec<(Applied, NodeId, LeaderEpoch)>,
    /// What is being done to the log.
    turn: Option<Turn<QueuedAppend>>,
    syncing: Option<PendingSync>,
    /// A sync that has run while something was done to the log.
    synced: Option<Synced>,
    waiting: Waiting<Waiter>,
    early: Vec<(FetchBatches, ReturnAddress)>,
    /// They want what is not in the log, as it is seen who leads; and since when.
    doubted: Vec<(Fetching, Tick)>,
    timer: Option<Tick>,
    syncs_later: bool,
    looks_at_isr: bool,
    /// The reign that the checkers were told of, and up to where they know what is committed here.
    reign: Option<LeaderEpoch>,
    checked: Offset,
}

/// A fetch that was not answered yet.
#[derive(Debug)]
struct Fetching {
    request: FetchBatches,
    from: ReturnAddress,
    deadline: Tick,
    /// It was certain that this worker led since it was first asked.
    is_certain: bool,
}

#[derive(Debug)]
enum Waiter {
    Append(Vec<AppendedBatch>, AppendReply),
    Fetch(Fetching),
    Follower(WatchId),
    Position(PositionReply),
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
            epochs: LeaderEpochs::default(),
            agenda: Agenda::default(),
            answers: Vec::new(),
            news: None,
            applying: Vec::new(),
            turn: None,
            syncing: None,
            synced: None,
            waiting: Waiting::default(),
            early: Vec::new(),
            doubted: Vec::new(),
            timer: None,
            syncs_later: false,
            looks_at_isr: false,
            reign: None,
            checked: Offset::ZERO,
        }
    }

    pub fn open(
        &mut self,
        env: &mut Env,
        who: Who,
        storage: &MemoryStorage,
        store: Arc<dyn KvStore>,
        ages: &AgeClock,
    ) {
        let saved = SavedState::new(store, self.id);
        let opened = PartitionLog::open(storage.shared(), Some(saved), &self.config, ages.steady());
        let log = match opened {
            Ok(log) => log,
            Err(error) => {
                return env.break_promise(format!("the log of {}: {error}", self.id));
            }
        };
        self.machine = PartitionMachine::new(self.me, log.end_offset());
        self.note(&log);
        self.log = Some(Box::new(log));
        self.agenda.assign();
        self.take_role(env, who);
        self.agenda.opened();
        self.go_on(env, who);
        for (request, from) in std::mem::take(&mut self.early) {
            self.fetch(env, who, request, from);
        }
    }

    pub fn assign(&mut self, env: &mut Env, who: Who, image: &PartitionImage) {
        if self.image == *image {
            return;
        }
        self.image = image.clone();
        self.agenda.assign();
        self.take_role(env, who);
        if self.undecided.has_open() {
            self.agenda.reconcile();
        }
        self.go_on(env, who);
    }

    /// The role changes, if it is to and may now.
    fn take_role(&mut self, env: &mut Env, who: Who) {
        if !self.agenda.takes_role() {
            return;
        }
        let was_leader = self.machine.is_leader();
        self.machine.assign(env.now, &self.image, &self.config);
        if was_leader != self.machine.is_leader() {
            for waiter in self.waiting.drain() {
                let problem = match waiter {
                    Waiter::Append(..) => problems::lead_lost(self.id),
                    Waiter::Fetch(_) | Waiter::Follower(_) | Waiter::Position(_) => {
                        self.not_leader()
                    }
                };
                self.refuse(env, who, waiter, problem);
            }
        }
        let reign = self.machine.leader_epoch();
        if self.machine.is_leader() && self.log.is_some() && self.reign != Some(reign) {
            self.reign = Some(reign);
            env.reigns += u64::from(self.image.replicas.len() > 1);
            let log_end = self.machine.log_end();
            let verdict = env.checkers.reigns.leads(self.id, reign, self.me, log_end);
            env.check(verdict);
        }
    }

    /// What the log knows that is needed while it is away.
    fn note(&mut self, log: &PartitionLog) {
        self.undecided = log.derived().transactions.undecided();
        self.epochs.clone_from(&log.derived().epochs);
    }

    /// It is not wanted here any more: everyone is told.
    pub fn close(&mut self, env: &mut Env, who: Who) {
        let early = std::mem::take(&mut self.early).into_iter();
        let doubted = std::mem::take(&mut self.doubted).into_iter();
        let fetches = early.map(|(_, from)| from);
        for from in fetches.chain(doubted.map(|(fetching, _)| fetching.from)) {
            env.answer(from, Err(problems::closed(self.id)));
        }
        for waiter in self.waiting.drain() {
            self.refuse(env, who, waiter, problems::closed(self.id));
        }
        // Whatever else waits for an answer hears that it was lost.
        self.turn = None;
        self.news = None;
        for (_, from) in std::mem::take(&mut self.answers) {
            env.answer(from, Err(problems::lost(self.id)));
        }
        for (_, leader, epoch) in std::mem::take(&mut self.applying) {
            positioned(env, who, leader, (self.id, epoch), None);
        }
    }

    /// While a transaction is open, every change of the cluster's facts may decide it.
    pub fn facts_changed(&mut self, env: &mut Env, who: Who) {
        if self.undecided.has_open() && self.machine.is_leader() {
            self.agenda.reconcile();
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
        let bytes = batches.iter().map(|batch| batch.bytes().len()).sum();
        if let Err(busy) = self.agenda.admit(bytes, self.waiting.len()) {
            return env.answer(from, Err(problems::busy(self.id, busy)));
        }
        let (reply, answer) = oneshot::channel();
        self.answers.push((answer, from));
        let append = QueuedAppend {
            batches,
            acks: append.acks,
            reply,
        };
        self.agenda.queue(append, bytes);
        self.start_work(env, who);
    }

    pub fn fetch(&mut self, env: &mut Env, who: Who, request: FetchBatches, from: ReturnAddress) {
        if self.agenda.is_opening() {
            self.early.push((request, from));
            return;
        }
        let deadline = env.now.plus(request.wait.min(MAX_WAIT));
        let fetching = Fetching {
            request,
            from,
            deadline,
            is_certain: env.sabotaged(Sabotage::SayWhatIsNotThere),
        };
        self.serve(env, who, fetching);
    }

    /// Goes on with what is answered once it is certain who leads.
    pub fn look_at_doubted(
        &mut self,
        env: &mut Env,
        who: Who,
        session: &Session,
        facts: &MetadataImage,
    ) {
        for (mut fetching, since) in std::mem::take(&mut self.doubted) {
            match session.leads_since(since, facts, self.id) {
                Some(true) => {
                    fetching.is_certain = true;
                    fetching.deadline = env.now.plus(fetching.request.wait.min(MAX_WAIT));
                    self.serve(env, who, fetching);
                }
                Some(false) => {
                    env.answer(fetching.from, Err(problems::not_led_any_more(self.id)));
                }
                None if env.now.since(since) >= PATIENCE => {
                    env.answer(fetching.from, Err(problems::end_unknown(self.id)));
                }
                None => self.doubt(env, who, fetching, since),
            }
        }
    }

    fn doubt(&mut self, env: &mut Env, who: Who, fetching: Fetching, since: Tick) {
        if self.doubted.is_empty() {
            who.after(env, LOOK_EVERY, Timer::LookAtDoubted(self.id));
        }
        self.doubted.push((fetching, since));
    }

    /// What waited for an append to be committed, or for something to read, has waited long enough.
    pub fn time_passed(&mut self, env: &mut Env, who: Who) {
        self.timer = None;
        for waiter in self.waiting.expired(env.now) {
            match waiter {
                Waiter::Append(..) => {
                    self.refuse(env, who, waiter, problems::not_committed(self.id));
                }
                Waiter::Fetch(fetching) => {
                    let deadline = env.now;
                    self.serve(
                        env,
                        who,
                        Fetching {
                            deadline,
                            ..fetching
                        },
                    );
                }
                Waiter::Follower(watch) => {
                    let look = self.continues(env);
                    looked(env, who, watch, look);
                }
                Waiter::Position(_) => {
                    self.refuse(env, who, waiter, problems::position_unknown(self.id));
                }
            }
        }
        self.set_timer(env, who);
    }

    /// It is looked for what is old.
    pub fn retain(&mut self, env: &mut Env, who: Who) {
        self.agenda.retain();
        self.start_work(env, who);
    }

    /// What a blocking thread would do with the log: everything that waits, at once.
    pub fn work(&mut self, env: &mut Env, who: Who, image: &Arc<MetadataImage>, ages: &AgeClock) {
        let (Some(turn), Some(log)) = (self.turn.take(), self.log.take()) else {
            return;
        };
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
        let readable = self.readable();
        let what_to_retain = turn.retain.then(|| {
            let now = match env.sabotaged(Sabotage::RetainBySetClock) {
                true => env.wall(),
                false => ages.now(),
            };
            let held = image.held_from(self.id, env.now);
            Retain::at(now, &self.config, readable, held)
        });
        let work = Work {
            log,
            appends: turn.appends,
            leader_epoch,
            follows: self.machine.follows(),
            news: self.news.take(),
            committed: readable.committed,
            image: believed(env, image),
            steady: match env.sabotaged(Sabotage::RetainBySetClock) {
                true => env.wall(),
                false => ages.steady(),
            },
            retain: what_to_retain,
            close: false,
        };
        let done = work.run();
        if let Some(error) = done.fatal {
            return env.break_promise(format!("the disk of {}: {error}", self.id));
        }
        if let Err(problem) = self.agenda.came_back(done.disk_full, turn.retain) {
            return env.break_promise(format!("the log of {}: {problem}", self.id));
        }
        let mut log = done.log;
        let finished = self.synced.take().map(|synced| log.finish_sync(synced));
        if let Some(Err(error)) = finished {
            return env.break_promise(format!("the disk of {}: {error}", self.id));
        }
        if let Some(cut) = done.followed.cut {
            env.cut_off += 1;
            env.trace(|| format!("{who:?} cuts {} off at {cut}", self.id));
            self.agenda.cut_off();
            self.machine.truncated(cut);
        }
        self.machine.appended(log.end_offset());
        self.machine.synced(log.durable_offset());
        if let Some(committed) = done.followed.committed {
            self.machine.leader_committed(committed);
        }
        if env.sabotaged(Sabotage::AcknowledgeBeforeSync) {
            self.machine.synced(log.end_offset());
        }
        self.note(&log);
        self.log = Some(log);
        for written in done.written {
            match written.acks {
                Acks::Leader => drop(written.reply.send(Ok(written.batches))),
                Acks::All => {
                    let deadline = env.now.plus(APPEND_TIMEOUT);
                    let waiter = Waiter::Append(written.batches, written.reply);
                    self.waiting.park_append(written.end, deadline, waiter);
                }
            }
        }
        if let Some(reply) = done.followed.reply {
            self.park_until_safe(env, reply);
        }
        self.take_role(env, who);
        self.go_on(env, who);
    }

    pub fn sync_ran(&mut self, env: &mut Env, who: Who) {
        let Some(sync) = self.syncing.take() else {
            return;
        };
        let finished = sync
            .run()
            .and_then(|synced| match (&mut self.log, &self.turn) {
                (Some(log), None) => log.finish_sync(synced).map(drop),
                (Some(_) | None, _) => {
                    self.synced = Some(synced);
                    Ok(())
                }
            });
        if let Err(error) = finished {
            return env.break_promise(format!("the disk of {}: {error}", self.id));
        }
        if let Some(durable) = self.agenda.sync_ran() {
            self.machine.synced(durable);
        }
        self.go_on(env, who);
    }

    fn go_on(&mut self, env: &mut Env, who: Who) {
        self.start_sync(env, who);
        if self.agenda.is_opening() {
            return;
        }
        let readable = self.readable();
        self.check(env, readable);
        let reached = Reached {
            readable,
            written: self.machine.log_end(),
            safe: self.machine.measure(),
        };
        for waiter in self.waiting.satisfied(reached) {
            match waiter {
                // Whoever asked waits at the other end, in this world.
                Waiter::Append(batches, reply) => drop(reply.send(Ok(batches))),
                Waiter::Fetch(fetching) => self.serve(env, who, fetching),
                Waiter::Follower(watch) => {
                    let look = self.continues(env);
                    looked(env, who, watch, look);
                }
                Waiter::Position(reply) => drop(reply.send(Ok(self.here()))),
            }
        }
        self.start_work(env, who);
        self.deliver(env, who);
        self.set_timer(env, who);
        let has_followers = self.image.replicas.len() > 1;
        let leads = has_followers && self.machine.is_leader();
        if (leads || self.machine.asked().is_some()) && !self.looks_at_isr {
            self.looks_at_isr = true;
            who.after(env, LOOK_AT_ISR_EVERY, Timer::LookAtIsr(self.id));
        }
    }

    fn start_sync(&mut self, env: &mut Env, who: Who) {
        let Some(log) = self.log.as_mut() else { return };
        self.agenda.unsynced(env.now, log.unsynced_bytes());
        if self.agenda.begins_sync(env.now, self.machine.durability()) {
            if let Some(sync) = log.begin_sync() {
                self.agenda.sync_began(log.end_offset());
                self.syncing = Some(sync);
                let early = env.sabotaged(Sabotage::AcknowledgeBeforeSync);
                let delay = env.some_disk_ms(if early { 500 } else { SYNC_MS });
                who.after(env, delay, Timer::Synced(self.id));
            }
        } else if let Some(due) = self.agenda.sync_due_at()
            && !std::mem::replace(&mut self.syncs_later, true)
        {
            who.after(env, due.since(env.now), Timer::SyncDue(self.id));
        }
    }

    /// What is acknowledged in memory is not left there.
    pub fn sync_is_due(&mut self, env: &mut Env, who: Who) {
        self.syncs_later = false;
        self.go_on(env, who);
    }

    /// Answers a fetch with what there is, or lets it wait.
    fn serve(&mut self, env: &mut Env, who: Who, mut fetching: Fetching) {
        let Fetching {
            ref mut request,
            from,
            deadline,
            is_certain,
        } = fetching;
        let Some(log) = self.log.as_ref().filter(|_| self.machine.is_leader()) else {
            return env.answer(from, Err(self.not_leader()));
        };
        let serves = env.sabotaged(Sabotage::ServeBeforeCaughtUp);
        if self.machine.committed().is_none() && !serves {
            return env.answer(from, Err(problems::not_caught_up(self.id)));
        }
        let reader = log.reader();
        let isolation = request.isolation;
        let mut readable = self.readable();
        if env.sabotaged(Sabotage::ReadBeyondCommitted) {
            readable.committed = self.machine.log_end();
            readable.last_stable = self.machine.log_end();
        }
        let end = readable.end_for(isolation);
        let max_bytes = usize::try_from(request.max_bytes).unwrap_or(usize::MAX);
        let wait = deadline.since(env.now);
        let from_here = Some((request.offset, isolation));
        let log_end = self.machine.log_end();
        let reading = self.agenda.reading(from_here, readable, log_end);
        if !(reading == Reading::Later && wait > Span(0)) {
            let offset = request.offset;
            let read = match offset > log_end {
                true => Err(problems::out_of_range(offset, reader.start(), log_end)),
                false => reader
                    .read(offset, end.max(offset), max_bytes, isolation)
                    .map_err(|error| problems::read_failed(&error)),
            };
            let read = match read {
                Ok(read) => read,
                Err(problem) if problem.code == ErrorCode::OffsetOutOfRange && !is_certain => {
                    return self.doubt(env, who, fetching, env.now);
                }
                Err(problem) => return env.answer(from, Err(problem)),
            };
            let progress = read.next_offset > request.offset;
            if !(read.bytes.is_empty() && progress && wait > Span(0)) {
                let reply = FetchedBatches {
                    batches: read.bytes,
                    next_offset: read.next_offset,
                    log_start_offset: reader.start(),
                    end_offset: end,
                };
                let reign = self.machine.leader_epoch();
                let verdict = env.checkers.committed.readable(self.id, reign, end);
                env.check(verdict);
                return env.answer(from, Ok(Reply::Fetched(reply)));
            }
            // Everything there was is hidden from this reader: it goes on waiting.
            request.offset = read.next_offset;
        }
        let offset = request.offset;
        let waiter = Waiter::Fetch(fetching);
        self.waiting.park_fetch(offset, isolation, deadline, waiter);
        self.set_timer(env, who);
    }

    fn refuse(&mut self, env: &mut Env, who: Who, waiter: Waiter, problem: Problem) {
        match waiter {
            Waiter::Append(_, reply) => {
                drop(reply.send(Err(problem)));
                self.deliver(env, who);
            }
            Waiter::Fetch(fetching) => env.answer(fetching.from, Err(problem)),
            Waiter::Follower(watch) => looked(env, who, watch, refused(problem)),
            Waiter::Position(reply) => {
                drop(reply.send(Err(problem)));
                self.deliver(env, who);
            }
        }
    }

    /// Passes on the answers that are there.
    fn deliver(&mut self, env: &mut Env, who: Who) {
        self.answers.retain_mut(|(answer, from)| {
            let Ok(answer) = answer.try_recv() else {
                return true;
            };
            env.answer(*from, answer.map(Reply::Appended));
            false
        });
        let id = self.id;
        self.applying.retain_mut(|(applied, leader, epoch)| {
            let Ok(applied) = applied.try_recv() else {
                return true;
            };
            if let Err(problem) = &applied {
                env.trace(|| format!("{who:?} does not follow in {id}: {problem}"));
            }
            positioned(env, who, *leader, (id, *epoch), applied.ok());
            false
        });
    }

    fn readable(&self) -> Readable {
        Readable::of(&self.machine, &self.undecided)
    }

    fn start_work(&mut self, env: &mut Env, who: Who) {
        if let Some(turn) = self.agenda.next_turn() {
            self.turn = Some(turn);
            let delay = env.some_disk_ms(WORK_MS);
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
