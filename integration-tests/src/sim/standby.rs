//! Standbys in the world: what keeps the state of tasks that run elsewhere and prepares those of the next division,
//! and what gives it to those who do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use common::ids::{CheckpointId, Generation, JobId, NodeId, TaskId, WorkerEpoch};
use common::protocol::metadata::JobImage;
use common::protocol::standby::{FetchState, PieceOf, StandbyPosition, StateFetched, StatePiece};
use common::protocol::task::Deployment;
use common::time::{Span, Tick};
use worker::checkpoint::chunk::TaskChunk;
use worker::checkpoint::hot_tables::HotTables;
use worker::checkpoint::state_error::StateError;
use worker::checkpoint::state_store::JobStateStore;
use worker::job::assembly::Left;
use worker::job::assignment::{stood_by, successors_here};
use worker::metadata_image::MetadataImage;
use worker::operator::custom::CustomOperators;
use worker::standby::copies::{Copies, Found, lock};
use worker::standby::machine::{Effect, Event, StandbyMachine};
use worker::standby::preparing::{self, Reached, Successors};
use worker::standby::successors::{self, Step, SuccessorsMachine};
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
    /// Tasks that run here have sealed something.
    Grown,
    Happened(Event),
    Prepared(successors::Event),
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
    Work(Work),
    Tell(Held),
}

/// A blocking thread of its own: it goes on when the generation that began it has ended.
#[derive(Debug)]
pub struct Work {
    pub job: JobId,
    pub began: Began,
    store: Arc<JobStateStore>,
    task: Option<WorkTask>,
    /// What it came to.
    mail: Option<Mail>,
}

#[derive(Debug)]
enum WorkTask {
    Keep {
        copies: Copies,
        of: NodeId,
        pieces: Pieces,
    },
    Prepare {
        copies: Copies,
        successors: Arc<Successors>,
        step: Step,
        sabotaged: bool,
    },
    /// What is left of former tasks goes.
    Sweep,
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
    successors: Arc<Successors>,
    preparing: SuccessorsMachine,
    /// It looks for what is here already, and everything else waits.
    finding: Option<Copies>,
    waiting: VecDeque<Mail>,
    untold: Held,
    telling: bool,
    timer: bool,
    preparing_timer: bool,
    wishes: Vec<Wish>,
}

/// Of one generation of the job: its standbys elsewhere that wait for something to come.
#[derive(Debug)]
pub struct Lender {
    began: Began,
    calls: BTreeMap<u64, (FetchState, ReturnAddress, Tick)>,
    next: u64,
}

impl Work {
    pub fn sweep(job: JobId, began: Began, store: Arc<JobStateStore>) -> Work {
        Work::new(job, began, store, WorkTask::Sweep)
    }

    fn new(job: JobId, began: Began, store: Arc<JobStateStore>, task: WorkTask) -> Work {
        Work {
            job,
            began,
            store,
            task: Some(task),
            mail: None,
        }
    }

    /// Whose pieces it keeps, if it does that.
    pub fn keeps_of(&self) -> Option<NodeId> {
        match self.task {
            Some(WorkTask::Keep { of, .. }) => Some(of),
            Some(WorkTask::Prepare { .. } | WorkTask::Sweep) | None => None,
        }
    }

    /// Does it, if it was not done yet.
    pub fn run(&mut self) -> Result<(), StateError> {
        match self.task.take() {
            Some(WorkTask::Keep { copies, of, pieces }) => {
                let cold = copies.keep(pieces)?;
                cold.into_iter().for_each(|task| copies.warm_up(task));
                self.mail = Some(Mail::Happened(Event::Kept { of }));
            }
            Some(WorkTask::Prepare {
                copies,
                successors,
                step,
                sabotaged,
            }) => {
                let Reached { tasks, errors } = match step {
                    Step::Advance(tasks) if sabotaged => pass_over(&copies, &successors, tasks)?,
                    step => copies.take(&successors, step),
                };
                if let Some(error) = errors.into_iter().find(StateError::is_fatal) {
                    return Err(error);
                }
                self.mail = Some(Mail::Prepared(successors::Event::Reached(tasks)));
            }
            Some(WorkTask::Sweep) => self.store.sweep()?,
            None => {}
        }
        Ok(())
    }

    pub fn take_mail(&mut self) -> Option<Mail> {
        self.mail.take()
    }
}

/// Successors get further, and nothing of what was sealed.
fn pass_over(
    copies: &Copies,
    successors: &Successors,
    tasks: Vec<(TaskId, CheckpointId, CheckpointId)>,
) -> Result<Reached, StateError> {
    let chunk = |(task, _, checkpoint): &(TaskId, CheckpointId, CheckpointId)| TaskChunk {
        task: *task,
        checkpoint: *checkpoint,
        tables: Vec::new(),
    };
    let chunks: Vec<TaskChunk> = tasks.iter().map(chunk).collect();
    let getting: Vec<_> = chunks
        .iter()
        .map(|chunk| &*successors[&chunk.task])
        .collect();
    let generation = copies.deployment.generation;
    copies
        .store
        .advance_successors(generation, &getting, &chunks)?;
    let reached = chunks
        .iter()
        .map(|chunk| (chunk.task, Some(chunk.checkpoint)));
    Ok(Reached {
        tasks: reached.collect(),
        errors: Vec::new(),
    })
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
            successors: Arc::default(),
            preparing: SuccessorsMachine::default(),
            finding: None,
            waiting: VecDeque::new(),
            untold: Held::new(),
            telling: false,
            timer: false,
            preparing_timer: false,
            wishes: Vec::new(),
        }
    }

    /// Finds out what is here of each task, and asks for the rest.
    pub fn follow(&mut self, env: &mut Env, who: Who, image: &MetadataImage) {
        self.finding = Some(self.copies(image));
        let delay = env.some_disk_ms(FIND_MS);
        self.after(env, who, delay, Timer::Found);
    }

    pub fn found(&mut self, env: &mut Env, who: Who, image: &MetadataImage) {
        let Some(copies) = self.finding.take() else {
            return;
        };
        let Found { followed, cold } = self.find(&copies);
        self.prepare(env, who, image);
        let made_of = preparing::predecessors(&self.successors);
        let goes_on = cold.into_iter().filter(|task| !made_of.contains(task));
        goes_on.for_each(|task| copies.warm_up(task));
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
        self.store.await_no_successors();
        if let Some(copies) = self.finding.take() {
            self.find(&copies);
        }
        let hot = std::mem::take(&mut *lock(&self.hot)).into_iter();
        hot.map(|(task, copy)| (task, copy.into_left())).collect()
    }

    fn take(&mut self, env: &mut Env, who: Who, image: &MetadataImage, mail: Mail) {
        match mail {
            Mail::StandBy(deployment) => {
                let same = deployment.standbys == self.deployment.standbys;
                if !same || deployment.next != self.deployment.next {
                    self.deployment = deployment;
                    self.follow(env, who, image);
                }
            }
            Mail::Completed(checkpoint) => {
                let mut hot = lock(&self.hot);
                hot.values_mut().for_each(|copy| copy.complete(checkpoint));
                drop(hot);
                self.grow(env, who, image);
            }
            Mail::Grown => self.grow(env, who, image),
            Mail::Happened(event) => {
                if event == Event::TimePassed {
                    self.timer = false;
                }
                let kept = matches!(event, Event::Kept { .. });
                self.happen(env, who, image, event);
                if kept {
                    self.grow(env, who, image);
                }
            }
            Mail::Prepared(event) => {
                if event == successors::Event::TimePassed {
                    self.preparing_timer = false;
                }
                self.happen_to_successors(env, who, image, event);
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
                    let copies = self.copies(image);
                    self.work(WorkTask::Keep { copies, of, pieces });
                }
                Effect::Acknowledge(held) => self.acknowledge(held),
            }
        }
        if let Some(at) = self.machine.wake_at().filter(|_| !self.timer) {
            self.timer = true;
            let mail = Mail::Happened(Event::TimePassed);
            self.after(env, who, at.since(env.now), Timer::Mail(mail));
        }
    }

    /// What is to be prepared here now, and nothing else.
    fn prepare(&mut self, env: &mut Env, who: Who, image: &MetadataImage) {
        let known = &self.successors;
        let successors = preparing::successors(&self.deployment, self.me.0, known);
        self.successors = Arc::new(successors);
        if self.successors.is_empty() {
            self.store.await_no_successors();
        }
        let prepared = self.copies(image).prepared(&self.successors);
        self.happen_to_successors(env, who, image, prepared);
        self.grow(env, who, image);
    }

    fn grow(&mut self, env: &mut Env, who: Who, image: &MetadataImage) {
        if !self.successors.is_empty() {
            let grown = self.copies(image).grown(&self.successors);
            self.happen_to_successors(env, who, image, grown);
        }
    }

    fn happen_to_successors(
        &mut self,
        env: &mut Env,
        who: Who,
        image: &MetadataImage,
        event: successors::Event,
    ) {
        for effect in self.preparing.handle(env.now, event) {
            match effect {
                successors::Effect::Take(step) => {
                    let (copies, successors) = (self.copies(image), self.successors.clone());
                    self.work(WorkTask::Prepare {
                        copies,
                        successors,
                        step,
                        sabotaged: env.sabotaged(Sabotage::PrepareWithoutChanges),
                    });
                }
                successors::Effect::Acknowledge(held) => self.acknowledge(held),
            }
        }
        let wake_at = self.preparing.wake_at();
        if let Some(at) = wake_at.filter(|_| !self.preparing_timer) {
            self.preparing_timer = true;
            let mail = Mail::Prepared(successors::Event::TimePassed);
            self.after(env, who, at.since(env.now), Timer::Mail(mail));
        }
    }

    fn work(&mut self, task: WorkTask) {
        let (job, store) = (self.deployment.job, self.store.clone());
        let work = Work::new(job, self.began(), store, task);
        self.wishes.push(Wish::Work(work));
    }

    fn acknowledge(&mut self, held: Vec<(TaskId, CheckpointId)>) {
        self.untold.extend(held);
        self.tell();
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
            me: self.me.0,
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

    /// What is here already. What waits for it has not happened yet.
    fn find(&mut self, copies: &Copies) -> Found {
        let (stood_by, successors) = (
            stood_by(&self.deployment, self.me.0),
            successors_here(&self.deployment, self.me.0),
        );
        copies.find(stood_by, &successors, std::mem::take(&mut self.left))
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
    let delay = env.some_disk_ms(LEND_MS);
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
