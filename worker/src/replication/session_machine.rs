//! What those who follow this worker's partitions have told of their replicas, and what they are told (pure).
//!
//! A worker that follows has one session here. A position it told is looked at until there is news of it: more
//! in the log, a different log, or more that is committed; of a position there is news once. News goes with the
//! call that waits or with the next: one call waits, and another takes its place. A session that begins
//! takes the place of the one before, and one without a call for a while is over. Calls may overtake each
//! other and may be repeated by whatever lies between: each counts once, or its answer would take along news
//! that nobody hears.
//!
//! `L` is a log to read from.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use common::error::{ErrorCode, Problem};
use common::ids::{NodeId, WorkerEpoch};
use common::limits::{MAX_BATCH_BYTES, MAX_CALL_BYTES};
use common::offset::Offset;
use common::protocol::replicate::{ReplicaNews, ReplicaPosition, Replicate, Replicated, Verdict};
use common::time::{Span, Tick};

use super::follower_machine::MAX_CALLS;

/// A session whose last call has ended so long ago is over.
pub const SESSION_OVER: Span = Span::from_secs(3);
/// How long a call waits for news at most.
pub const MAX_WAIT: Span = Span::from_secs(2);
/// Batches of one replica in one answer, and of all. One batch may come beyond either.
pub const REPLICA_BYTES: usize = 4 << 20;
pub const ANSWER_BYTES: usize = 16 << 20;
const _: () = assert!(ANSWER_BYTES + REPLICA_BYTES + MAX_BATCH_BYTES < MAX_CALL_BYTES);

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u64);

/// A position of which there is no news yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(u64);

/// The sessions of all who follow this worker's partitions.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionMachine<L> {
    sessions: BTreeMap<NodeId, Session<L>>,
    /// Of every position that is watched.
    watched_by: BTreeMap<WatchId, NodeId>,
    /// Calls and watches that there were.
    numbers: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Session<L> {
    life: WorkerEpoch,
    number: u64,
    /// It has been forgotten, and is begun no more.
    over: bool,
    /// The number of the next call, and those that were overtaken by later ones.
    next_call: u64,
    missing: BTreeSet<u64>,
    watches: BTreeMap<WatchId, ReplicaPosition>,
    /// Those that have something to be read and no room for it, in order.
    queue: VecDeque<(WatchId, ToRead<L>)>,
    /// What is committed besides what is being read.
    reading: BTreeMap<WatchId, Offset>,
    /// Bytes for which there is room.
    room: usize,
    news: VecDeque<(ReplicaNews, Bytes)>,
    waiting: Option<(CallId, Tick)>,
    /// When its last call ended.
    heard: Tick,
}

/// Batches that come after a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToRead<L> {
    pub log: L,
    pub log_end: Offset,
    pub committed: Offset,
}

/// What there is for a position.
#[derive(Clone, Debug, PartialEq)]
pub enum Look<L> {
    /// The log it is a prefix of.
    Continues(ToRead<L>),
    /// Nothing is to be read: it is told this.
    Tell(Verdict),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Effect<L> {
    /// Ask the partition what there is for this worker's position, once there is something or after a while.
    Look {
        watch: WatchId,
        life: (NodeId, WorkerEpoch),
        at: ReplicaPosition,
    },
    /// Read what is in the log from one offset up to another, up to `REPLICA_BYTES`.
    Read {
        watch: WatchId,
        log: L,
        from: Offset,
        to: Offset,
    },
    /// Answer a call.
    Answer { call: CallId, reply: Replicated },
}

impl<L> Default for SessionMachine<L> {
    fn default() -> SessionMachine<L> {
        SessionMachine {
            sessions: BTreeMap::new(),
            watched_by: BTreeMap::new(),
            numbers: 0,
        }
    }
}

impl<L> SessionMachine<L> {
    /// A follower calls. The answer comes as an effect, now or later.
    pub fn called(
        &mut self,
        now: Tick,
        call: Replicate,
    ) -> Result<(CallId, Vec<Effect<L>>), Problem> {
        let mut effects = self.find_or_begin(now, &call)?;
        let id = CallId(self.next_number());
        let numbers = self.numbers + 1..;
        self.numbers += call.positions.len() as u64;
        let life = (call.from, call.from_epoch);
        let session = self.sessions.get_mut(&call.from).expect("it was found");
        for (watch, at) in numbers.map(WatchId).zip(call.positions) {
            session.watches.insert(watch, at);
            self.watched_by.insert(watch, call.from);
            effects.push(Effect::Look { watch, life, at });
        }
        // One that still waits has nothing to say, or it would have been answered.
        effects.extend(session.answer(now));
        session.waiting = Some((id, now.plus(call.wait.min(MAX_WAIT))));
        if !session.news.is_empty() {
            effects.extend(session.answer(now));
        }
        Ok((id, effects))
    }

    /// Whoever made this call is gone.
    pub fn gone(&mut self, now: Tick, call: CallId) {
        for session in self.sessions.values_mut() {
            if session.waiting.is_some_and(|(waiting, _)| waiting == call) {
                session.waiting = None;
                session.heard = now;
            }
        }
    }

    /// What a partition says to a position.
    pub fn looked(&mut self, now: Tick, watch: WatchId, look: Look<L>) -> Vec<Effect<L>> {
        let Some((from, session)) = self.watching(watch) else {
            return Vec::new();
        };
        let life = (from, session.life);
        let at = session.watches[&watch];
        match look {
            Look::Continues(read) if read.log_end > at.log_end => {
                session.queue.push_back((watch, read));
                session.read()
            }
            Look::Continues(read) if read.committed > at.committed => {
                let verdict = Verdict::Continues {
                    bytes: 0,
                    committed: read.committed,
                };
                self.tell(now, watch, verdict, Bytes::new())
            }
            Look::Continues(_) => vec![Effect::Look { watch, life, at }],
            Look::Tell(verdict) => self.tell(now, watch, verdict, Bytes::new()),
        }
    }

    /// What was to be read, or why it cannot be.
    pub fn read(
        &mut self,
        now: Tick,
        watch: WatchId,
        read: Result<Bytes, Problem>,
    ) -> Vec<Effect<L>> {
        let Some((_, session)) = self.watching(watch) else {
            return Vec::new();
        };
        let committed = session.reading.remove(&watch).expect("it was to be read");
        let (verdict, batches) = match read {
            Ok(batches) => {
                let bytes = u32::try_from(batches.len()).expect("an answer is bounded");
                (Verdict::Continues { bytes, committed }, batches)
            }
            Err(problem) => (Verdict::Refused { problem }, Bytes::new()),
        };
        session.room += REPLICA_BYTES - room_of(&batches);
        let mut effects = session.read();
        effects.extend(self.tell(now, watch, verdict, batches));
        effects
    }

    /// Answers the calls that have waited long enough, and forgets what is over.
    pub fn time_passed(&mut self, now: Tick) -> Vec<Effect<L>> {
        let mut effects = Vec::new();
        for session in self.sessions.values_mut() {
            if session.waiting.is_some_and(|(_, until)| until <= now) {
                effects.extend(session.answer(now));
            }
            if session.is_over(now) {
                session.forget(&mut self.watched_by);
            }
        }
        effects
    }

    /// When `time_passed` is to be told.
    pub fn next_wake(&self) -> Option<Tick> {
        let wakes = self
            .sessions
            .values()
            .filter_map(|session| match session.waiting {
                Some((_, until)) => Some(until),
                None if session.watches.is_empty() && session.news.is_empty() => None,
                None => Some(Tick(session.heard.plus(SESSION_OVER).0 + 1)),
            });
        wakes.min()
    }

    /// Whether a call of this worker waits.
    pub fn is_asked_by(&self, from: NodeId) -> bool {
        let session = self.sessions.get(&from);
        session.is_some_and(|session| session.waiting.is_some())
    }

    /// The session of a call that counts is there from now on.
    fn find_or_begin(&mut self, now: Tick, call: &Replicate) -> Result<Vec<Effect<L>>, Problem> {
        let (life, from) = (call.from_epoch, call.from);
        let known = self.sessions.get_mut(&from);
        if known.as_ref().is_some_and(|known| known.life > life) {
            let detail = format!("worker {from} has begun another life");
            return Err(Problem::new(ErrorCode::FencedWorkerEpoch, detail));
        }
        let this = known.filter(|known| (known.life, known.number) == (life, call.session));
        if let Some(session) = this {
            if !session.is_over(now) && session.counts(call.number) {
                return Ok(Vec::new());
            }
        } else if call.number == 0 {
            let mut session = Session::new(life, call.session, now);
            session.counts(0);
            let mut effects = Vec::new();
            if let Some(mut replaced) = self.sessions.insert(from, session) {
                effects.extend(replaced.answer(now));
                replaced.forget(&mut self.watched_by);
            }
            return Ok(effects);
        }
        let detail = format!(
            "call {} of session {} of worker {from} comes too late or too early",
            call.number, call.session
        );
        Err(Problem::new(ErrorCode::Conflict, detail).hint("Begin another session."))
    }

    /// There is news of a position: it is watched no more.
    fn tell(
        &mut self,
        now: Tick,
        watch: WatchId,
        verdict: Verdict,
        batches: Bytes,
    ) -> Vec<Effect<L>> {
        let Some((_, session)) = self.watching(watch) else {
            return Vec::new();
        };
        let at = session.watches.remove(&watch).expect("it is watched");
        session
            .news
            .push_back((ReplicaNews { at, verdict }, batches));
        let effects = session.answer(now);
        self.watched_by.remove(&watch);
        effects
    }

    fn watching(&mut self, watch: WatchId) -> Option<(NodeId, &mut Session<L>)> {
        let from = *self.watched_by.get(&watch)?;
        Some((from, self.sessions.get_mut(&from)?))
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

impl<L> Session<L> {
    fn new(life: WorkerEpoch, number: u64, now: Tick) -> Session<L> {
        Session {
            life,
            number,
            over: false,
            next_call: 0,
            missing: BTreeSet::new(),
            watches: BTreeMap::new(),
            queue: VecDeque::new(),
            reading: BTreeMap::new(),
            room: ANSWER_BYTES,
            news: VecDeque::new(),
            waiting: None,
            heard: now,
        }
    }

    fn is_over(&self, now: Tick) -> bool {
        self.over || (self.waiting.is_none() && now.since(self.heard) > SESSION_OVER)
    }

    /// Whether a call of this number is heard for the first time.
    fn counts(&mut self, number: u64) -> bool {
        if number < self.next_call {
            return self.missing.remove(&number);
        }
        // A follower has no more calls under way than that.
        if number - self.next_call >= MAX_CALLS as u64 {
            return false;
        }
        self.missing.extend(self.next_call..number);
        self.next_call = number + 1;
        true
    }

    /// Nobody will take along what there is.
    fn forget(&mut self, watched_by: &mut BTreeMap<WatchId, NodeId>) {
        self.over = true;
        for watch in std::mem::take(&mut self.watches).into_keys() {
            watched_by.remove(&watch);
        }
        self.queue.clear();
        self.reading.clear();
        self.news.clear();
        self.room = ANSWER_BYTES;
    }

    /// Room comes first: many that are far behind would fill the memory.
    fn read(&mut self) -> Vec<Effect<L>> {
        let mut effects = Vec::new();
        while self.room >= REPLICA_BYTES
            && let Some((watch, read)) = self.queue.pop_front()
        {
            self.room -= REPLICA_BYTES;
            self.reading.insert(watch, read.committed);
            effects.push(Effect::Read {
                watch,
                log: read.log,
                from: self.watches[&watch].log_end,
                to: read.log_end,
            });
        }
        effects
    }

    /// Whoever waits takes along what there is, and makes room for more.
    fn answer(&mut self, now: Tick) -> Vec<Effect<L>> {
        let Some((call, _)) = self.waiting.take() else {
            return Vec::new();
        };
        self.heard = now;
        let mut news = Vec::new();
        let mut each = Vec::new();
        let mut bytes = 0;
        while bytes < ANSWER_BYTES
            && let Some((next, batches)) = self.news.pop_front()
        {
            news.push(next);
            self.room += room_of(&batches);
            bytes += batches.len();
            each.push(batches);
        }
        let batches = one_after_another(each, bytes);
        let reply = Replicated { news, batches };
        let mut effects = vec![Effect::Answer { call, reply }];
        effects.extend(self.read());
        effects
    }
}

/// What the batches of one replica take of a session's room: one batch may be larger.
fn room_of(batches: &Bytes) -> usize {
    batches.len().min(REPLICA_BYTES)
}

fn one_after_another(mut each: Vec<Bytes>, bytes: usize) -> Bytes {
    each.retain(|batches| !batches.is_empty());
    match each.len() {
        0 | 1 => each.pop().unwrap_or_default(),
        _ => {
            let mut all = BytesMut::with_capacity(bytes);
            each.iter()
                .for_each(|batches| all.extend_from_slice(batches));
            all.freeze()
        }
    }
}
