//! One generation of the job on one worker: restored, connected, run, made durable, folded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::ids::{
    CheckpointId, Generation, JobId, NodeId, PartitionId, TaskId, TopicPartition, WorkerEpoch,
};
use common::offset::Offset;
use common::protocol::checkpoint::{AckCheckpoint, CheckpointKind, InjectBarrier};
use common::protocol::fetch::FetchBatches;
use common::protocol::metadata::TopicImage;
use common::protocol::standby::FetchState;
use common::protocol::task::Deployment;
use common::time::Span;
use tokio::sync::Notify;
use worker::checkpoint::chunk::TaskChunk;
use worker::checkpoint::folding::{FoldedTask, Purpose, Purposes};
use worker::checkpoint::participant::Participant;
use worker::checkpoint::state_error::StateError;
use worker::checkpoint::state_store::{JobStateStore, StoreOptions, ViewPlace};
use worker::exchange::lanes::Lanes;
use worker::job::assembly::{self, Left, Restored};
use worker::job::assignment::tasks_here;
use worker::job::handover::Handover;
use worker::keyed_state::section::TableId;
use worker::keyed_state::table::At;
use worker::link::reports::TaskReports;
use worker::metadata_image::MetadataImage;
use worker::operator::custom::CustomOperators;
use worker::sink::transactions::Writer;
use worker::sink::write_queue::{NextAppend, WriteQueue};
use worker::task::chain::Question;
use worker::task::channel_input::ChannelInput;
use worker::task::failure::Failure;
use worker::task::machine::{Input, TaskMachine};
use worker::task::memory::StateMemory;
use worker::task::message::Barrier;
use worker::task::messages::Snapshot;
use worker::task::progress::Progress;
use worker::task::sink_pump::SinkQueue;
use worker::task::source_input::SourceInput;
use worker::task::under_way::UnderWay;

use super::disk::Disk;
use super::env::Env;
use super::network::{CallFailed, Reply, ReturnAddress};
use super::sabotage::Sabotage;
use super::standby::{self, Began, Lender, Mail, Standby, Wish, Work};
use super::state_checks::{check_counts, check_event_time, read_of};
use super::tally::{self, CLICKS, COUNTED};
use super::task::{self, ClickSource, RunningTask, TallySink, Wanted};
use super::worker::{MAILBOX_MS, Timer, Who, was_woken};

/// How long restoring, writing a checkpoint and folding take at most.
const RESTORE_MS: u64 = 30;
const WRITE_MS: u64 = 15;
const FOLD_MS: u64 = 60;
const RETRY_EVERY: Span = Span::from_millis(100);
const LOOK_EVERY: Span = Span::from_millis(200);

/// When a worker folds and writes base files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreChoice {
    pub fold_every: usize,
    pub base_after_bytes: u64,
    pub log_bytes: u64,
    /// Memory for the tables of the tasks; `None`: they are all in memory.
    pub table_bytes: Option<u64>,
    /// Otherwise, memory for the tables of those that are stood by for.
    pub copies_bytes: u64,
    /// What a standby is given at once, about.
    pub answer_bytes: usize,
}

#[derive(Debug)]
pub struct RunningJob {
    deployment: Arc<Deployment>,
    me: (NodeId, WorkerEpoch),
    began_under: WorkerEpoch,
    begun: u64,
    choice: StoreChoice,
    custom: Arc<CustomOperators>,
    memory: Arc<StateMemory>,
    local: BTreeSet<TaskId>,
    tasks: BTreeMap<TaskId, RunningTask>,
    participant: Participant<Snapshot>,
    store: Option<Arc<JobStateStore>>,
    /// What the generation before has left, until it is taken over.
    left: Option<Handover>,
    /// What tasks that have failed leave to the next generation.
    of_failed: Left,
    /// What stands by here for tasks elsewhere, once the store is open, and what serves those who do for these.
    standby: Option<Standby>,
    lender: Lender,
    /// What is being written, by the checkpoint it is acknowledged with.
    writing: Option<(CheckpointId, Vec<TaskChunk>)>,
    completed: Option<CheckpointId>,
    folded: Option<CheckpointId>,
    folding: bool,
    wishes: Vec<Wish>,
}

impl StoreChoice {
    pub fn memory(&self) -> Arc<StateMemory> {
        StateMemory::new(self.table_bytes.unwrap_or(self.copies_bytes))
    }
}

impl RunningJob {
    pub fn new(
        deployment: Arc<Deployment>,
        me: (NodeId, WorkerEpoch),
        begun: u64,
        choice: StoreChoice,
        custom: Arc<CustomOperators>,
        memory: Arc<StateMemory>,
        left: Option<Handover>,
    ) -> RunningJob {
        let local = tasks_here(&deployment, me.0, me.1);
        RunningJob {
            participant: Participant::new(local.clone()),
            me,
            began_under: me.1,
            begun,
            choice,
            custom,
            memory,
            local,
            tasks: BTreeMap::new(),
            store: None,
            left,
            of_failed: Left::new(),
            standby: None,
            lender: Lender::new((deployment.generation, me.1, begun)),
            writing: None,
            completed: deployment.restore,
            folded: deployment.restore,
            folding: false,
            wishes: Vec::new(),
            deployment,
        }
    }

    pub fn generation(&self) -> Generation {
        self.deployment.generation
    }

    pub fn began(&self) -> Began {
        (self.deployment.generation, self.began_under, self.begun)
    }

    /// What it leaves to the next generation here.
    pub fn leave(self, env: &mut Env) -> Option<Handover> {
        self.lender.end(env);
        let mut left = self.standby.map(Standby::leave).unwrap_or_default();
        left.extend(self.tasks.into_iter().map(|(id, mut task)| {
            let reader = task.reader.take();
            (id, task.machine.leave(reader))
        }));
        left.extend(self.of_failed);
        Some(Handover {
            generation: self.deployment.generation,
            store: self.store?,
            tasks: left,
        })
    }

    /// The worker was registered again, while its tasks go on.
    pub fn worker_is_now(&mut self, epoch: WorkerEpoch) {
        self.me.1 = epoch;
    }

    fn job(&self) -> JobId {
        self.deployment.job
    }

    pub fn begin(&self, env: &mut Env, who: Who, reports: &TaskReports, urgent: &Arc<Notify>) {
        let (job, generation) = (self.job(), self.generation());
        for task in &self.local {
            reports.add(job, generation, *task, urgent.clone());
        }
        let delay = env.some_disk_ms(RESTORE_MS);
        who.after(env, delay, Timer::Restored(job, self.began()));
    }

    /// Whether it opens a store, when it restores its tasks.
    pub fn opens(&self) -> bool {
        self.left.is_none()
    }

    /// What a blocking thread would read from disk, and the tasks that start from it.
    pub fn restore(
        &mut self,
        env: &mut Env,
        who: Who,
        disk: &mut Disk,
        lanes: &Lanes,
        reports: &TaskReports,
        image: &MetadataImage,
    ) {
        let facts = image.jobs.get(&self.job());
        let history = |generation, checkpoint| facts?.counts(generation, checkpoint);
        let options = self.store_options();
        let opened = match self.left.take() {
            Some(left) => Ok((left.store, left.tasks)),
            None => self
                .open_store(disk, options)
                .map(|store| (Arc::new(store), Left::new())),
        };
        let restored = opened.and_then(|(store, mut left)| {
            assembly::begin(&store, options, &self.deployment);
            let (deployment, local) = (&self.deployment, &self.local);
            let hot: BTreeSet<TaskId> = left.keys().copied().collect();
            let custom = &self.custom;
            let restored =
                assembly::restore(&store, deployment, local, &mut left, custom, &history)?;
            self.count_promotions(env, &hot);
            Ok((store, restored, left))
        });
        match restored {
            Ok((store, restored, left)) => {
                let generation = self.generation();
                let at = self.deployment.restore;
                env.trace(|| format!("{who:?} restored generation {generation} at {at:?}"));
                self.store = Some(store.clone());
                self.check_restored(env, &restored);
                self.start_tasks(env, who, restored, lanes, reports, image);
                self.stand_by(env, who, image, left);
                let sweep = Work::sweep(self.job(), self.began(), store);
                self.wishes.push(Wish::Work(sweep));
            }
            Err(error) => env.break_promise(format!(
                "{who:?} cannot restore generation {}: {error}",
                self.generation()
            )),
        }
    }

    fn store_options(&self) -> StoreOptions {
        StoreOptions {
            fold_every: self.choice.fold_every,
            base_after_bytes: self.choice.base_after_bytes,
            log_bytes: self.choice.log_bytes,
            // As large a part of it as by default.
            step_bytes: self.choice.log_bytes / 32,
            resident_bytes: self.choice.table_bytes.map_or(u64::MAX, |bytes| bytes / 2),
            ..StoreOptions::new(self.deployment.graph.key_groups)
        }
    }

    fn open_store(
        &self,
        disk: &mut Disk,
        options: StoreOptions,
    ) -> Result<JobStateStore, StateError> {
        let name = format!("job-{}", self.job());
        let (view, damaged) = (disk.store(&name), disk.store(&name));
        let place = ViewPlace {
            open: Box::new(move || Ok(Arc::new(view.clone()))),
            set_aside: Box::new(move || {
                damaged.wipe();
                Ok(())
            }),
        };
        let deltas = disk.log(&name).shared();
        JobStateStore::assemble(&disk.directory(&name), options, deltas, place)
    }

    /// `left`: the tasks of which there is something in memory.
    fn count_promotions(&self, env: &mut Env, left: &BTreeSet<TaskId>) {
        let graph = &self.deployment.graph;
        for task in self
            .local
            .iter()
            .filter(|task| tally::counts(graph, **task))
        {
            let before = env.ran_on.insert(*task, self.me.0);
            let moved = before.is_some_and(|before| before != self.me.0);
            if moved && self.deployment.restore.is_some() {
                env.promoted += 1;
                env.promoted_hot += u64::from(left.contains(task));
            }
        }
    }

    /// Begins to stand by, or goes on with what is to be stood by for now.
    fn stand_by(&mut self, env: &mut Env, who: Who, image: &MetadataImage, left: Left) {
        let Some(store) = &self.store else { return };
        match &mut self.standby {
            Some(standby) => {
                standby.mail(env, who, image, Mail::StandBy(self.deployment.clone()));
            }
            None if self.deployment.standbys.is_empty() && self.deployment.next.is_none() => {}
            None => {
                let (custom, memory) = (self.custom.clone(), self.memory.clone());
                let deployment = self.deployment.clone();
                let mut standby = Standby::new(
                    (self.me.0, self.began_under),
                    self.begun,
                    deployment,
                    store.clone(),
                    custom,
                    memory,
                    left,
                );
                standby.follow(env, who, image);
                self.standby = Some(standby);
            }
        }
    }

    /// Who stands by may have changed.
    pub fn deployed(
        &mut self,
        env: &mut Env,
        who: Who,
        image: &MetadataImage,
        deployment: &Arc<Deployment>,
    ) {
        let same = deployment.generation == self.generation();
        let stood_by = deployment.standbys == self.deployment.standbys
            && deployment.next == self.deployment.next;
        if same && !stood_by {
            self.deployment = deployment.clone();
            self.stand_by(env, who, image, Left::new());
        }
    }

    pub fn mail(&mut self, env: &mut Env, who: Who, image: &MetadataImage, mail: Mail) {
        if let Some(standby) = &mut self.standby {
            standby.mail(env, who, image, mail);
        }
    }

    pub fn standby_timer(
        &mut self,
        env: &mut Env,
        who: Who,
        image: &MetadataImage,
        timer: standby::Timer,
    ) {
        match (timer, &mut self.standby, &self.store) {
            (standby::Timer::Found, Some(standby), _) => standby.found(env, who, image),
            (standby::Timer::Mail(mail), Some(standby), _) => standby.mail(env, who, image, mail),
            (standby::Timer::Lend(id), _, Some(store)) => {
                let facts = image.jobs.get(&self.deployment.job);
                let room = self.choice.answer_bytes;
                self.lender.look(env, who, id, store, facts, room);
            }
            (_, None, _) | (_, _, None) => {}
        }
    }

    /// A standby asks for what tasks here have sealed.
    pub fn lend(&mut self, env: &mut Env, who: Who, call: FetchState, from: ReturnAddress) {
        if call.generation == self.generation() && self.store.is_some() {
            return self.lender.asked(env, who, call, from);
        }
        let detail = format!("generation {} does not run here yet", call.generation);
        env.answer(from, Err(Problem::new(ErrorCode::MetadataStale, detail)));
    }

    pub fn take_wishes(&mut self) -> Vec<Wish> {
        let mut wishes = std::mem::take(&mut self.wishes);
        wishes.extend(self.standby.iter_mut().flat_map(Standby::take_wishes));
        wishes
    }

    /// What came back from disk is the state of the input before the checkpoint.
    fn check_restored(&self, env: &mut Env, restored: &Restored) {
        let Some(at) = self.deployment.restore else {
            return;
        };
        for (task, begins) in restored {
            if !tally::counts(&self.deployment.graph, *task) {
                continue;
            }
            let mut counts = BTreeMap::new();
            for (id, table) in &begins.tables {
                if tally::counts_table(&id.table) {
                    let answer = |ask| begins.reader.as_ref()?.answer(id, ask).ok();
                    counts = tally::counts_in(table, At::Live, answer).unwrap_or_default();
                }
            }
            check_counts(env, &self.deployment.graph, *task, at, &counts);
        }
    }

    fn start_tasks(
        &mut self,
        env: &mut Env,
        who: Who,
        mut restored: Restored,
        lanes: &Lanes,
        reports: &TaskReports,
        image: &MetadataImage,
    ) {
        let custom = self.custom.clone();
        let wakes: BTreeMap<TaskId, Arc<Notify>> = self
            .local
            .iter()
            .map(|task| (*task, Arc::default()))
            .collect();
        if self.choice.table_bytes.is_some() {
            let timer = Timer::Look(self.job(), self.generation());
            who.after(env, LOOK_EVERY, timer);
        }
        let mut ends = assembly::connect(&self.deployment, &wakes, lanes);
        let deployment = self.deployment.clone();
        let generation = self.generation();
        for (task, wake) in wakes {
            let stage = deployment.graph.stage(task.stage);
            let begins = restored.remove(&task).unwrap_or_default();
            let spills = !assembly::spilling(stage, &custom).is_empty();
            let outputs = ends.outputs.remove(&task).unwrap_or_default();
            let share = self.choice.table_bytes.unwrap_or(u64::MAX);
            let assembled =
                assembly::assemble(&deployment, task, begins.tables, outputs, &custom, share);
            let mut assembled = assembled.expect("the job's plan is sound");
            let (watermark, sealed) = (assembled.watermark, assembled.sealed);
            let verdict =
                env.checkers
                    .watermarks
                    .restored(generation, task, deployment.restore, watermark);
            env.check(verdict);
            let mut source = None;
            let input = match &stage.source {
                Some(planned) => {
                    let (feed, reader) = SourceInput::fed();
                    let clicks = image
                        .topics
                        .get(&CLICKS)
                        .cloned()
                        .expect("it was there before the job");
                    let splits = own_splits(&clicks, task.index, stage.parallelism);
                    let from = assembled.state.splits();
                    let position = |split: u32| {
                        let name = split.to_string();
                        let known = from.iter().find(|state| *state.split == *name);
                        known.map_or(Offset::ZERO, |state| Offset(state.position))
                    };
                    let placed = splits.map(|split| (split, position(split)));
                    source = Some(ClickSource::new(
                        env,
                        first_partition(&clicks),
                        feed,
                        placed,
                        deployment.restore.is_some(),
                    ));
                    let (state, still) = (&mut assembled.state, deployment.still);
                    Input::Source(assembly::source_side(
                        planned, reader, state, watermark, still,
                    ))
                }
                None => {
                    let inputs = ends.inputs.remove(&task).unwrap_or_default();
                    Input::Channels(ChannelInput::new(inputs, sealed, watermark))
                }
            };
            let (queue, end) = SinkQueue::new(stage.sink.is_some());
            let writer = Writer {
                job: deployment.job,
                generation,
                task: deployment.ordinal_of(task),
            };
            let tallies = stage.sink.as_ref().map(|_| {
                let tallies = image
                    .topics
                    .get(&COUNTED)
                    .cloned()
                    .expect("it was there before the job");
                let partitions = u32::try_from(tallies.partitions.len()).expect("a few");
                (first_partition(&tallies), partitions)
            });
            let written = WriteQueue::exactly_once(writer, deployment.restore);
            let status = reports
                .get(deployment.job, generation, task)
                .expect("it was added when the generation began");
            let mut running = RunningTask {
                machine: TaskMachine {
                    task,
                    status,
                    input,
                    chain: assembled.chain,
                    state: assembled.state,
                    outputs: assembled.outputs,
                    sink: queue,
                    progress: Progress::restored(deployment.restore, sealed, watermark),
                    restored: deployment.restore,
                    memory: spills.then(|| self.memory.share()),
                    under_way: UnderWay::default(),
                },
                reader: begins.reader,
                wake,
                source,
                sink: TallySink::new(end, written, tallies),
                mailbox: VecDeque::new(),
                scheduled: false,
            };
            let started = running.machine.start();
            running.wake.notify_one();
            self.tasks.insert(task, running);
            if let Err(failure) = started {
                self.fail(env, who, task, failure);
            }
        }
    }

    pub fn answer(&mut self, env: &mut Env, who: Who, task: TaskId, question: &Question) {
        let Some(running) = self.tasks.get_mut(&task) else {
            return;
        };
        if let Err(failure) = running.answer(question) {
            self.fail(env, who, task, failure);
        }
    }

    /// Lets tasks without memory take a little, and comes again.
    pub fn look(&mut self, env: &mut Env, who: Who) {
        for running in self.tasks.values_mut() {
            running.machine.look(env.now);
            running.wake.notify_one();
        }
        who.after(env, LOOK_EVERY, Timer::Look(self.job(), self.generation()));
    }

    /// Schedules a turn of every task that was woken.
    pub fn settle(&mut self, env: &mut Env, who: Who) {
        let (job, generation) = (self.job(), self.generation());
        for (task, running) in &mut self.tasks {
            if was_woken(&running.wake) && !std::mem::replace(&mut running.scheduled, true) {
                let delay = env.some_ms(MAILBOX_MS);
                who.after(env, delay, Timer::Turn(job, generation, *task));
            }
        }
    }

    pub fn turn(&mut self, env: &mut Env, who: Who, task: TaskId, image: &MetadataImage) -> Wanted {
        let Some(running) = self.tasks.get_mut(&task) else {
            return Wanted::default();
        };
        let completes: Vec<CheckpointId> = running
            .mailbox
            .iter()
            .filter_map(|mail| match mail {
                task::Mail::Complete(checkpoint) => Some(*checkpoint),
                task::Mail::Inject { .. } => None,
            })
            .collect();
        let said_before = running.machine.watermark();
        let read_before = match &running.machine.input {
            Input::Source(source) => read_of(source.reader.splits()),
            Input::Channels(_) => BTreeSet::new(),
        };
        let outcome = running.turn(env, image);
        let watermark = running.machine.watermark();
        while let Some(sealed) = running.machine.hand_over() {
            self.participant
                .sealed(sealed.task, sealed.checkpoint, sealed.snapshot);
        }
        if said_before < watermark
            && let Input::Source(source) = &running.machine.input
        {
            let splits = source.reader.splits();
            let splits = splits.filter(|split| read_before.contains(&split.split));
            check_event_time(env, task, splits, watermark);
        }
        let generation = self.generation();
        let verdict = env.checkers.watermarks.said(generation, task, watermark);
        env.check(verdict);
        if let Some(completed) = completes.last() {
            self.check_completed(env, task, *completed);
        }
        self.persist(env, who);
        match outcome {
            Ok(wanted) => wanted,
            Err(failure) => {
                self.fail(env, who, task, failure);
                Wanted::default()
            }
        }
    }

    /// The state that a completed checkpoint shows is that of the input before it.
    fn check_completed(&self, env: &mut Env, task: TaskId, completed: CheckpointId) {
        if !tally::counts(&self.deployment.graph, task) {
            return;
        }
        let running = &self.tasks[&task];
        let operators = running.machine.chain.operators();
        let tables = operators.flat_map(|(id, _, state)| {
            let tables = state.tables.iter();
            tables.map(move |(name, table)| (id, name, table))
        });
        let mut counts = BTreeMap::new();
        for (operator, name, table) in tables {
            if tally::counts_table(name) {
                let id = TableId {
                    operator: operator.to_owned(),
                    table: name.clone(),
                };
                let answer = |ask| running.read(&id, ask).ok();
                match tally::counts_in(table, At::Completed(completed), answer) {
                    Some(found) => counts = found,
                    None => return env.break_promise(format!("task {task} forgot {completed}")),
                }
            }
        }
        check_counts(env, &self.deployment.graph, task, completed, &counts);
    }

    fn fail(&mut self, env: &mut Env, who: Who, task: TaskId, failure: Failure) {
        let reason = &failure.reason;
        env.trace(|| format!("{who:?} task {task} has failed: {reason}"));
        if failure.fatal {
            env.break_promise(format!("task {task} has failed for good: {reason}"));
        }
        if let Some(mut ended) = self.tasks.remove(&task)
            && let Some(left) = ended.machine.fail(failure, ended.reader.take())
        {
            env.left_by_failed += 1;
            self.of_failed.insert(task, left);
        }
    }

    pub fn inject(
        &mut self,
        env: &mut Env,
        who: Who,
        inject: &InjectBarrier,
    ) -> Result<(), Problem> {
        let generation = self.generation();
        if inject.generation != generation {
            let newer = inject.generation > generation;
            let code = if newer {
                ErrorCode::MetadataStale
            } else {
                ErrorCode::FencedGeneration
            };
            return Err(Problem::new(code, format!("generation {generation} runs")));
        }
        let barrier = Barrier {
            checkpoint: inject.checkpoint,
            stop: inject.kind.is_last(),
        };
        let drain = inject.kind == CheckpointKind::Drain;
        let graph = &self.deployment.graph;
        let sources: Vec<TaskId> = self
            .local
            .iter()
            .filter(|task| graph.stage(task.stage).source.is_some())
            .copied()
            .collect();
        for task in sources {
            let Some(running) = self.tasks.get_mut(&task) else {
                let detail = format!("task {task} cannot take a barrier now");
                return Err(Problem::new(ErrorCode::MetadataStale, detail));
            };
            running
                .mailbox
                .push_back(task::Mail::Inject { barrier, drain });
            running.wake.notify_one();
        }
        self.settle(env, who);
        Ok(())
    }

    /// A checkpoint is completed, the facts say.
    pub fn completed(
        &mut self,
        env: &mut Env,
        who: Who,
        image: &MetadataImage,
        checkpoint: CheckpointId,
    ) {
        if self.completed >= Some(checkpoint) {
            return;
        }
        self.completed = Some(checkpoint);
        for running in self.tasks.values_mut() {
            running.mailbox.push_back(task::Mail::Complete(checkpoint));
            running.wake.notify_one();
        }
        self.mail(env, who, image, Mail::Completed(checkpoint));
        self.fold(env, who);
    }

    /// A sink may wait for what a transaction has become.
    pub fn facts_changed(&mut self, env: &mut Env, who: Who) {
        for running in self.tasks.values() {
            running.wake.notify_one();
        }
        self.settle(env, who);
    }

    // What is made durable.

    fn persist(&mut self, env: &mut Env, who: Who) {
        let Some(ready) = self.participant.take_ready() else {
            return;
        };
        let checkpoint = ready.checkpoint;
        let (mut chunks, tasks) = assembly::to_write(ready, &self.deployment.graph);
        match env.sabotage {
            Some(Sabotage::AcknowledgeUnwritten) => chunks.clear(),
            Some(Sabotage::ForgetSealedBefore) => {
                chunks.retain(|chunk| chunk.checkpoint == checkpoint);
            }
            _ => {}
        }
        let ack = AckCheckpoint {
            worker: self.me.0,
            worker_epoch: self.me.1,
            job: self.job(),
            generation: self.generation(),
            checkpoint,
            tasks,
        };
        self.writing = Some((checkpoint, chunks));
        // The bytes may be there early in the time it takes, or late: a crash meets either.
        if env.draw(2) == 0 {
            self.write(env, who);
        }
        let delay = env.some_disk_ms(WRITE_MS);
        who.after(
            env,
            delay,
            Timer::Written(self.job(), self.generation(), ack),
        );
    }

    fn write(&mut self, env: &mut Env, who: Who) {
        let (Some((_, chunks)), Some(store)) = (self.writing.take(), &self.store) else {
            return;
        };
        if let Err(error) = store.persist(self.generation(), chunks) {
            env.break_promise(format!("{who:?} cannot write a checkpoint: {error}"));
        }
    }

    /// What was to be written is on the disk.
    pub fn written(
        &mut self,
        env: &mut Env,
        who: Who,
        ack: AckCheckpoint,
        image: &MetadataImage,
    ) -> AckCheckpoint {
        self.write(env, who);
        if env.sabotaged(Sabotage::FoldUncompleted)
            && let Some(store) = &self.store
        {
            // An error here is found by whoever restores.
            drop(store.fold(ack.checkpoint, &Purposes::new(), &|_, _| Some(true)));
        }
        self.participant.persisted(ack.checkpoint);
        self.lender.sealed(env, who);
        self.mail(env, who, image, Mail::Grown);
        self.persist(env, who);
        ack
    }

    fn fold(&mut self, env: &mut Env, who: Who) {
        let (Some(completed), Some(_)) = (self.completed, &self.store) else {
            return;
        };
        if self.folding || self.folded >= Some(completed) {
            return;
        }
        self.folding = true;
        let delay = env.some_disk_ms(FOLD_MS);
        let timer = Timer::Folded(self.job(), self.generation(), completed);
        who.after(env, delay, timer);
    }

    pub fn folded(
        &mut self,
        env: &mut Env,
        who: Who,
        completed: CheckpointId,
        image: &MetadataImage,
    ) {
        self.folding = false;
        let facts = image.jobs.get(&self.job());
        let history = |generation, checkpoint| facts?.counts(generation, checkpoint);
        let Some(store) = &self.store else { return };
        store.end_loans(env.now);
        let (local, custom) = (&self.local, &self.custom);
        let mut purposes = assembly::purposes(&self.deployment, self.me.0, local, custom);
        let mut oldest = Some(completed);
        for (task, running) in &mut self.tasks {
            let foldable = running.machine.prepare_fold(completed);
            oldest = oldest.min(foldable.up_to);
            if foldable.at_once {
                purposes.insert(*task, Purpose::RunsAndWaits);
            }
        }
        // One that is gone takes its generation with it.
        let all_there = self.tasks.len() == self.local.len();
        if let Some(oldest) = oldest.filter(|_| all_there) {
            let outcome = match env.sabotaged(Sabotage::EvictUnfolded) && env.draw(2) == 0 {
                true => Ok(self.readers(oldest)),
                false => store.fold(oldest, &purposes, &history),
            };
            match outcome {
                Ok(folded) => self.tell_folded(env, who, folded),
                Err(error) => {
                    let broken = format!("{who:?} cannot fold {oldest}: {error}");
                    return env.break_promise(broken);
                }
            }
        }
        self.folded = Some(completed);
        self.fold(env, who);
    }

    /// What tasks read of the view, said to be at a checkpoint.
    fn readers(&self, at: CheckpointId) -> Vec<FoldedTask> {
        let readers = self.tasks.iter().filter_map(|(task, running)| {
            let reader = running.reader.clone()?;
            let task = *task;
            Some(FoldedTask { task, at, reader })
        });
        readers.collect()
    }

    fn tell_folded(&mut self, env: &mut Env, who: Who, folded: Vec<FoldedTask>) {
        for FoldedTask { task, at, reader } in folded {
            let Some(running) = self.tasks.get_mut(&task) else {
                continue;
            };
            let other = !running.reader.as_ref().is_some_and(|r| r.is_like(&reader));
            let outcome = running.machine.folded(at, other);
            running.reader = Some(reader);
            running.wake.notify_one();
            if let Err(failure) = outcome {
                self.fail(env, who, task, failure);
            }
        }
    }

    // What tasks asked of partitions.

    pub fn appended(
        &mut self,
        env: &mut Env,
        who: Who,
        task: TaskId,
        next: NextAppend,
        answer: Result<(), CallFailed>,
    ) {
        let Some(running) = self.tasks.get_mut(&task) else {
            return;
        };
        let refused = answer.err().map(to_problem);
        let again = running.sink.appended(env, &running.wake, next, refused);
        if let Some(next) = again {
            let timer = Timer::Append(self.job(), self.generation(), task, next);
            who.after(env, RETRY_EVERY, timer);
        }
    }

    pub fn fetch_request(&self, task: TaskId, split: u32) -> Option<FetchBatches> {
        self.tasks.get(&task)?.source.as_ref()?.request(split)
    }

    pub fn fetched(
        &mut self,
        env: &mut Env,
        who: Who,
        task: TaskId,
        split: u32,
        answer: Result<Reply, CallFailed>,
    ) {
        let Some(running) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(source) = &mut running.source else {
            return;
        };
        match answer {
            Ok(Reply::Fetched(reply)) => {
                source.fetched(env, split, reply);
                running.wake.notify_one();
            }
            Ok(other) => env.break_promise(format!("a fetch was answered by {other:?}")),
            Err(failed) => {
                let problem = to_problem(failed);
                if problem.code.is_retriable() {
                    let timer = Timer::Fetch(self.job(), self.generation(), task, split);
                    who.after(env, RETRY_EVERY, timer);
                } else {
                    let partition = source.partition(split);
                    env.break_promise(format!("{partition} cannot be read: {problem}"));
                }
            }
        }
    }
}

fn to_problem(failed: CallFailed) -> Problem {
    match failed {
        CallFailed::Problem(problem) => problem,
        CallFailed::Refused | CallFailed::Broken => {
            Problem::new(ErrorCode::LeaderUnavailable, "the leader cannot be reached")
        }
        CallFailed::Timeout => Problem::new(ErrorCode::Timeout, "the leader says nothing"),
    }
}

fn first_partition(topic: &TopicImage) -> TopicPartition {
    TopicPartition {
        topic: topic.id,
        partition: PartitionId(0),
    }
}

/// Partitions are dealt over the tasks by number.
fn own_splits(
    topic: &TopicImage,
    index: u32,
    parallelism: u32,
) -> impl Iterator<Item = u32> + use<> {
    let partitions = u32::try_from(topic.partitions.len()).expect("a few");
    (0..partitions).filter(move |number| number % parallelism == index)
}
