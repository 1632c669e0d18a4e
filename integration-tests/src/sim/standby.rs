//! Standbys in the world: what keeps the state of tasks that run elsewhere, and what gives it to those who do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use common::ids::{CheckpointId, Generation, JobId, NodeId, TaskId, WorkerEpoch};
use common::protocol::metadata::JobImage;
use common::protocol::standby::{FetchState, PieceOf, StandbyPosition, StateFetched, StatePiece};
use common::protocol::task::Deployment;
use common::time::{Span, Tick};
use worker::checkpoint::hot_tables::HotTables;
use worker::checkpoint::state_error::StateError;
use worker::checkpoint::state_store::JobStateStore;
use worker::job::assembly::Left;
use worker::job::assignment::stood_by;
use worker::metadata_image::MetadataImage;
use worker::operator::custom::CustomOperators;
use worker::standby::copies::{Copies, Found, lock};
use worker::standby::machine::{Effect, Event, StandbyMachine};
use worker::task::memory::StateMemory;

use super::env::Env;
use super::network::{Reply, ReturnAddress};
use super::sabotage::Sabotage;
use super::worker::{Timer as WorkerTimer, Who};

/// How long looking for copies, and reading what is lent, take at most.
const FIND_MS: u64 = 20;
const LEND_MS: u64 = 10;
/// How long the worker that is asked may hold a call.
pub const HOLD: Span = Span::from_secs(1);

pub type Pieces = Vec<(StatePiece, Bytes)>;

#[derive(Debug)]
pub enum Timer {
    Found,
    Mail(Mail),
    /// Whether there is something for a call that waits.
    Lend(u64),
}

/// What reaches a standby, in its order.
#[derive(Debug)]
pub enum Mail {
    StandBy(Arc<Deployment>),
    Completed(CheckpointId),
    Happened(Event),
    /// The coordinator was told this, and it is over; `again`: it has not taken it.
    Told {
        what: Held,
        again: bool,
    },
}

/// Which generation, the life of the worker under which it began here, and how many that process had begun by
/// then: a worker that registers again, or that stands by again, begins the same one anew, and what was asked
/// before is nothing to it.
pub type Began = (Generation, WorkerEpoch, u64);

pub type Held = BTreeMap<TaskId, CheckpointId>;

/// What a standby wants done.
#[derive(Debug)]
pub enum Wish {
    Ask {
        worker: NodeId,
        positions: Vec<StandbyPosition>,
    },
    Keep(Keeping),
    Tell(Held),
}

/// A blocking thread of its own: it goes on when the generation that began it has ended.
#[derive(Debug)]
pub struct Keeping {
    pub job: JobId,
    pub began: Began,
    pub of: NodeId,
    copies: Copies,
    pieces: Option<Pieces>,
}

/// What stands by for one generation on one worker.
#[derive(Debug)]
pub struct Standby {
    me: (NodeId, WorkerEpoch),
    begun: u64,
    deployment: Arc<Deployment>,
    store: Arc<JobStateStore>,
    hot: Arc<Mutex<BTreeMap<TaskId, HotTables>>>,
    custom: Arc<CustomOperators>,
    memory: Arc<StateMemory>,
    left: Left,
    machine: StandbyMachine,
    /// It looks for what is here already, and everything else waits.
    finding: Option<Copies>,
    waiting: VecDeque<Mail>,
    untold: Held,
    telling: bool,
    timer: bool,
    wishes: Vec<Wish>,
}

/// Of one generation of the job: its standbys elsewhere that wait for something to come.
#[derive(Debug)]
pub struct Lender {
    began: Began,
    calls: BTreeMap<u64, (FetchState, ReturnAddress, Tick)>,
    next: u64,
}

impl Keeping {
    /// Does it, if it was not done yet.
    pub fn run(&mut self) -> Result<(), StateError> {
        match self.pieces.take() {
            Some(pieces) => {
                let cold = self.copies.keep(pieces)?;
                cold.into_iter().for_each(|task| self.copies.warm_up(task));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Standby {
    pub fn new(
        me: (NodeId, WorkerEpoch),
        begun: u64,
        deployment: Arc<Deployment>,
        store: Arc<JobStateStore>,
        custom: Arc<CustomOperators>,
        memory: Arc<StateMemory>,
        left: Left,
    ) -> Standby {
        Standby {
            me,
            begun,
            deployment,
            store,
            hot: Arc::default(),
            custom,
            memory,
            left,
            machine: StandbyMachine::default(),
            finding: None,
            waiting: VecDeque::new(),
            untold: Held::new(),
            telling: false,
            timer: false,
            wishes: Vec::new(),
        }
    }

    /// Finds out what is here of each task, and asks for the rest.
    pub fn follow(&mut self, env: &mut Env, who: Who, image: &MetadataImage) {
        self.finding = Some(self.copies(image));
        let delay = env.some_ms(FIND_MS);
        self.after(env, who, delay, Timer::Found);
    }

    pub fn found(&mut self, env: &mut Env, who: Who, image: &MetadataImage) {
        let Some(copies) = self.finding.take() else {
            return;
        };
        let Found { followed, cold } = copies.find(
            stood_by(&self.deployment, self.me.0),
            &BTreeSet::new(),
            self.take_left(),
        );
        cold.into_iter().for_each(|task| copies.warm_up(task));
        self.happen(env, who, image, Event::Follow(followed));
        while self.finding.is_none()
            && let Some(mail) = self.waiting.pop_front()
        {
            self.take(env, who, image, mail);
        }
    }

    pub fn mail(&mut self, env: &mut Env, who: Who, image: &MetadataImage, mail: Mail) {
        match self.finding {
            Some(_) => self.waiting.push_back(mail),
            None => self.take(env, who, image, mail),
        }
    }

    pub fn take_wishes(&mut self) -> Vec<Wish> {
        std::mem::take(&mut self.wishes)
    }

    /// The generation is over here.
    pub fn leave(mut self) -> Left {
        if let Some(copies) = self.finding.take() {
            copies.find(
                stood_by(&self.deployment, self.me.0),
                &BTreeSet::new(),
                self.take_left(),
            );
        }
        let hot = std::mem::take(&mut *lock(&self.hot)).into_iter();
        hot.map(|(task, copy)| (task, copy.into_left())).collect()
    }

    fn take(&mut self, env: &mut Env, who: Who, image: &MetadataImage, mail: Mail) {
        match mail {
            Mail::StandBy(deployment) => {
                if deployment.standbys != self.deployment.standbys {
                    self.deployment = deployment;
                    self.follow(env, who, image);
                }
            }
            Mail::Completed(checkpoint) => {
                let mut hot = lock(&self.hot);
                hot.values_mut().for_each(|copy| copy.complete(checkpoint));
            }
            Mail::Happened(event) => {
                if event == Event::TimePassed {
                    self.timer = false;
                }
                self.happen(env, who, image, event);
            }
            Mail::Told { what, again } => {
                self.telling = false;
                if again {
                    for (task, checkpoint) in what {
                        self.untold.entry(task).or_insert(checkpoint);
                    }
                }
                self.tell();
            }
        }
    }

    fn happen(&mut self, env: &mut Env, who: Who, image: &MetadataImage, event: Event) {
        for effect in self.machine.handle(env.now, event) {
            match effect {
                Effect::Ask { worker, positions } => {
                    self.wishes.push(Wish::Ask { worker, positions });
                }
                Effect::Keep { of, pieces } => {
                    let keeping = Keeping {
                        job: self.deployment.job,
                        began: self.began(),
                        of,
                        copies: self.copies(image),
                        pieces: Some(pieces),
                    };
                    self.wishes.push(Wish::Keep(keeping));
                }
                Effect::Acknowledge(held) => {
                    self.untold.extend(held);
                    self.tell();
                }
            }
        }
        if let Some(at) = self.machine.wake_at().filter(|_| !self.timer) {
            self.timer = true;
            let mail = Mail::Happened(Event::TimePassed);
            self.after(env, who, at.since(env.now), Timer::Mail(mail));
        }
    }

    /// One call at a time, with all that is to be told by then.
    fn tell(&mut self) {
        if !self.telling && !self.untold.is_empty() {
            self.telling = true;
            self.wishes
                .push(Wish::Tell(std::mem::take(&mut self.untold)));
        }
    }

    fn copies(&self, image: &MetadataImage) -> Copies {
        Copies {
            deployment: self.deployment.clone(),
            facts: image.jobs.get(&self.deployment.job).cloned(),
            store: self.store.clone(),
            hot: self.hot.clone(),
            custom: self.custom.clone(),
            memory: self.memory.clone(),
        }
    }

    fn began(&self) -> Began {
        (self.deployment.generation, self.me.1, self.begun)
    }

    fn take_left(&mut self) -> Left {
        std::mem::take(&mut self.left)
    }

    fn after(&self, env: &mut Env, who: Who, delay: Span, timer: Timer) {
        let timer = WorkerTimer::Standby(self.deployment.job, self.began(), timer);
        who.after(env, delay, timer);
    }
}

impl Lender {
    pub fn new(began: Began) -> Lender {
        Lender {
            began,
            calls: BTreeMap::new(),
            next: 0,
        }
    }

    pub fn asked(&mut self, env: &mut Env, who: Who, call: FetchState, from: ReturnAddress) {
        self.next += 1;
        let until = env.now.plus(call.wait);
        look_soon(env, who, call.job, self.began, self.next);
        self.calls.insert(self.next, (call, from, until));
    }

    /// Something was sealed, and is durable.
    pub fn sealed(&mut self, env: &mut Env, who: Who) {
        for (id, (call, _, _)) in &self.calls {
            look_soon(env, who, call.job, self.began, *id);
        }
    }

    /// Answers a call, if there is something for it or it has waited long enough. `room`: bytes in one answer.
    pub fn look(
        &mut self,
        env: &mut Env,
        who: Who,
        id: u64,
        store: &JobStateStore,
        facts: Option<&JobImage>,
        room: usize,
    ) {
        let Some((call, from, until)) = self.calls.get(&id) else {
            return;
        };
        match lend(env.now, store, facts, call, room) {
            Ok(fetched) if fetched.pieces.is_empty() && env.now < *until => {
                let timer = Timer::Lend(id);
                let timer = WorkerTimer::Standby(call.job, self.began, timer);
                who.after(env, until.since(env.now), timer);
            }
            Ok(fetched) => {
                env.answer(*from, Ok(Reply::State(fetched)));
                self.calls.remove(&id);
            }
            Err(error) => env.break_promise(format!("{who:?} has nothing for a standby: {error}")),
        }
    }

    /// The generation is over here: nothing is an answer, too.
    pub fn end(self, env: &mut Env) {
        for (_, from, _) in self.calls.into_values() {
            let fetched = StateFetched {
                pieces: Vec::new(),
                bytes: Bytes::new(),
            };
            env.answer(from, Ok(Reply::State(fetched)));
        }
    }
}

/// Loses a chunk of an answer, and what comes after it passes for what follows.
pub fn lose_a_chunk(fetched: StateFetched) -> Pieces {
    let mut pieces: Pieces = fetched.into_each().collect();
    let chunk = |piece: &StatePiece| match piece.of {
        PieceOf::Chunk {
            previous,
            checkpoint,
            ..
        } => Some((piece.task, previous, checkpoint)),
        PieceOf::Base { .. } => None,
    };
    let second = pieces.windows(2).find_map(|pair| {
        let (first, second) = (chunk(&pair[0].0)?, chunk(&pair[1].0)?);
        (first.0 == second.0 && first.2 != second.2).then_some((first, second))
    });
    if let Some((lost, kept)) = second {
        pieces.retain(|(piece, _)| chunk(piece) != Some(lost));
        for (piece, _) in &mut pieces {
            if chunk(piece) == Some(kept)
                && let PieceOf::Chunk { previous, .. } = &mut piece.of
            {
                *previous = lost.1;
            }
        }
    }
    pieces
}

/// What a standby is told of an answer.
pub fn pieces_of(env: &Env, fetched: StateFetched) -> Pieces {
    match env.sabotaged(Sabotage::KeepAcrossGap) {
        true => lose_a_chunk(fetched),
        false => fetched.into_each().collect(),
    }
}

fn look_soon(env: &mut Env, who: Who, job: JobId, began: Began, id: u64) {
    let delay = env.some_ms(LEND_MS);
    let timer = WorkerTimer::Standby(job, began, Timer::Lend(id));
    who.after(env, delay, timer);
}

fn lend(
    now: Tick,
    store: &JobStateStore,
    facts: Option<&JobImage>,
    call: &FetchState,
    room: usize,
) -> Result<StateFetched, StateError> {
    let history = |generation, checkpoint| facts?.counts(generation, checkpoint);
    let (mut pieces, mut bytes) = (Vec::new(), BytesMut::new());
    for position in &call.positions {
        let share = room / call.positions.len();
        for (of, own) in store.lend(now, call.generation, *position, &history, share)? {
            pieces.push(StatePiece {
                task: position.task,
                bytes: u32::try_from(own.len()).expect("a small piece"),
                of,
            });
            bytes.extend_from_slice(&own);
        }
    }
    Ok(StateFetched {
        pieces,
        bytes: bytes.freeze(),
    })
}
