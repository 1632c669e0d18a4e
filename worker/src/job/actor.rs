//! The shell of one generation of a job on this worker: restores its tasks, connects and starts them,
//! makes what they seal durable, tells them what was completed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, ResponseActFuture,
    ResponseFuture, WrapFuture,
};
use common::error::{ErrorCode, Problem};
use common::ids::{CheckpointId, TaskId};
use common::objects::store::Objects;
use common::plan::task_graph::Stage;
use common::protocol::checkpoint::{AckCheckpoint, CheckpointKind, DeclineCheckpoint};
use common::protocol::savepoint::StateSaved;
use common::protocol::standby::StateFetched;
use common::protocol::state::StateEntries;
use common::protocol::task::{Deployment, TaskState as Standing};
use common::time::{Span, Timestamp};
use tokio::sync::{Notify, watch};
use tokio::task::JoinError;
use tracing::{error, info, warn};

use super::assembly::{self, Left, Restored};
use super::assignment::tasks_here;
use super::handover::Handover;
use super::messages::{Barrier, Completed, Deployed, LendState, ReadState, Save, StopJob};
use super::services::Services;
use crate::background::Background;
use crate::checkpoint::chunk::TaskChunk;
use crate::checkpoint::download::{self, DownloadError};
use crate::checkpoint::folding::{FoldedTask, Purpose};
use crate::checkpoint::participant::Participant;
use crate::checkpoint::state_error::StateError;
use crate::checkpoint::state_store::{JobStateStore, RestoredTask};
use crate::checkpoint::upload;
use crate::sink::dead_letters::DeadLetterSink;
use crate::sink::{self, SinkContext};
use crate::source::{self, SourceContext};
use crate::standby::actor::{Grown, StandBy, StandbyActor, StopStandby};
use crate::standby::serving;
use crate::task::actor::TaskActor;
use crate::task::channel_input::{ChannelInput, InputChannel};
use crate::task::machine::{Input, TaskMachine};
use crate::task::messages::{
    Complete, Folded, Inject, Leaves, PrepareFold, Query, Sealed, Snapshot, Stop,
};
use crate::task::output::Writer;
use crate::task::progress::Progress;
use crate::task::sink_pump::sink_queue;
use crate::task::source_input::SourceInput;
use crate::task::task_state::TaskState;
use crate::task::under_way::UnderWay;

/// Snapshots, completions and questions that may wait at once.
const MAILBOX: usize = 1024;
/// How often dead tasks are looked for, and what was not delivered is delivered again.
const LOOK_EVERY: Span = Span::from_millis(250);
const ACK_DEADLINE: Span = Span::from_secs(3);
/// A disk that was full is tried again after this.
const RETRY_EVERY: Span = Span::from_secs(1);

#[derive(Debug)]
pub struct JobActor {
    deployment: Arc<Deployment>,
    services: Services,
    local: BTreeSet<TaskId>,
    tasks: BTreeMap<TaskId, Addr<TaskActor>>,
    participant: Participant<Snapshot>,
    store: Option<Arc<JobStateStore>>,
    /// What the generation before has left, until it is taken over.
    left: Option<Handover>,
    /// What tasks that have failed leave to the next generation.
    of_failed: Left,
    /// Told when something was sealed and is durable. Standbys that wait for it are let go with it.
    sealed: Option<watch::Sender<()>>,
    /// What stands by here for tasks elsewhere, once the store is open.
    standby: Option<Addr<StandbyActor>>,
    /// The newest completed checkpoint of this generation, and how far the store has folded.
    completed: Option<CheckpointId>,
    folding: bool,
    folded: Option<CheckpointId>,
    stopping: bool,
}

impl JobActor {
    pub fn new(
        deployment: Arc<Deployment>,
        services: Services,
        left: Option<Handover>,
    ) -> JobActor {
        let session = &services.session;
        let local = tasks_here(&deployment, session.worker, session.epoch());
        JobActor {
            participant: Participant::new(local.clone()),
            services,
            local,
            tasks: BTreeMap::new(),
            store: None,
            left,
            of_failed: Left::new(),
            sealed: Some(watch::Sender::new(())),
            standby: None,
            completed: deployment.restore,
            folding: false,
            folded: deployment.restore,
            stopping: false,
            deployment,
        }
    }

    /// Brings every local task's tables back from disk.
    fn restore(&mut self, context: &mut Context<Self>) {
        for task in &self.local {
            self.services.reports.add(
                self.deployment.job,
                self.deployment.generation,
                *task,
                self.services.urgent.clone(),
            );
        }
        let directory = self
            .services
            .jobs_directory
            .join(self.deployment.job.to_string());
        let deployment = self.deployment.clone();
        let image = self.services.image.clone();
        let tasks = self.local.clone();
        let share = assembly::share_of_each(
            &deployment.graph,
            &tasks,
            &self.services.custom,
            &self.services.state_memory,
        );
        let view_cache_bytes = self.services.memory.view_cache_bytes;
        let options = assembly::store_options(&deployment.graph, share, view_cache_bytes);
        let custom = self.services.custom.clone();
        let beginning = deployment.clone();
        let left = self.left.take();
        let objects = Objects::new(self.services.transport.clone());
        let restoring = async move {
            let opening = tokio::task::spawn_blocking(move || {
                let (store, left) = match left {
                    Some(left) => (left.store, left.tasks),
                    None => {
                        let store = JobStateStore::open(&directory, options)?;
                        (Arc::new(store), Left::new())
                    }
                };
                assembly::begin(&store, options, &beginning);
                Ok::<_, StateError>((store, left))
            });
            let (store, mut left) = opening.await.map_err(Unrestored::Panicked)??;
            fetch_savepoint(&store, &objects, &deployment, &tasks).await?;
            let reading = tokio::task::spawn_blocking(move || {
                let facts = image.borrow().jobs.get(&deployment.job).cloned();
                let history =
                    |generation, checkpoint| facts.as_ref()?.counts(generation, checkpoint);
                let restored =
                    assembly::restore(&store, &deployment, &tasks, &mut left, &custom, &history)?;
                Ok::<_, StateError>((store, restored, left))
            });
            Ok::<_, Unrestored>(reading.await.map_err(Unrestored::Panicked)??)
        };
        let restored =
            restoring
                .into_actor(self)
                .map(move |outcome, actor, context| match outcome {
                    Ok((store, restored, left)) => {
                        actor.store = Some(store.clone());
                        actor.start_tasks(restored, share, context);
                        actor.stand_by(left);
                        sweep(store, actor.services.threads.background());
                    }
                    Err(error) => actor.fail_all(error.to_string(), error.is_final()),
                });
        context.spawn(restored);
    }

    fn start_tasks(&mut self, mut restored: Restored, share: u64, context: &mut Context<Self>) {
        if self.stopping {
            return;
        }
        let wakes: BTreeMap<TaskId, Arc<Notify>> = self
            .local
            .iter()
            .map(|task| (*task, Arc::default()))
            .collect();
        let exchange = &self.services.exchange;
        let mut ends = assembly::connect(&self.deployment, &wakes, exchange.lanes());
        exchange.start_senders();
        for (task, wake) in wakes {
            let parts = TaskParts {
                task,
                wake,
                inputs: ends.inputs.remove(&task).unwrap_or_default(),
                outputs: ends.outputs.remove(&task).unwrap_or_default(),
                begins: restored.remove(&task).unwrap_or_default(),
            };
            match self.start_task(parts, share, context) {
                Ok(address) => drop(self.tasks.insert(task, address)),
                Err(problem) => self.fail(task, problem.to_string(), true),
            }
        }
        info!(
            job = %self.deployment.name, generation = %self.deployment.generation,
            restored = ?self.deployment.restore, tasks = self.tasks.len(), "tasks started",
        );
    }

    /// Begins to stand by, or goes on with what is to be stood by for now. `left`: by the generation before, of
    /// tasks that do not run here now.
    fn stand_by(&mut self, left: Left) {
        let Some(store) = self.store.clone().filter(|_| !self.stopping) else {
            return;
        };
        match &self.standby {
            // What does not fit comes again with the next image.
            Some(standby) => drop(standby.try_send(StandBy(self.deployment.clone()))),
            None if self.deployment.standbys.is_empty() && self.deployment.next.is_none() => {}
            None => {
                let actor =
                    StandbyActor::new(self.deployment.clone(), self.services.clone(), store, left);
                let thread = self.services.threads.control();
                self.standby = Some(StandbyActor::start_in_arbiter(&thread, move |_| actor));
            }
        }
    }

    fn start_task(
        &self,
        parts: TaskParts,
        share: u64,
        context: &mut Context<Self>,
    ) -> Result<Addr<TaskActor>, Problem> {
        let deployment = &self.deployment;
        let stage = deployment.graph.stage(parts.task.stage);
        let mut assembled = assembly::assemble(
            deployment,
            parts.task,
            parts.begins.tables,
            parts.outputs,
            &self.services.custom,
            share,
        )?;
        let status = self.services.reports.add(
            deployment.job,
            deployment.generation,
            parts.task,
            self.services.urgent.clone(),
        );
        let starting = StartingTask {
            sink: SinkContext {
                job: deployment.job,
                job_name: deployment.name.clone(),
                generation: deployment.generation,
                ordinal: deployment.ordinal_of(parts.task),
                task_index: parts.task.index,
                parallelism: stage.parallelism,
                restored: deployment.restore,
                log: self.services.log.clone(),
                transport: self.services.transport.clone(),
                clock: self.services.clock.clone(),
            },
            source: SourceContext {
                task_index: parts.task.index,
                parallelism: stage.parallelism,
                restored: (deployment.restore)
                    .filter(|_| assembled.state.has_begun())
                    .map(|_| assembled.state.splits()),
                log: self.services.log.clone(),
                clock: self.services.clock.clone(),
            },
            stage: stage.clone(),
            inputs: parts.inputs,
            still: deployment.still,
        };
        let (task, wake, restored) = (parts.task, parts.wake, deployment.restore);
        let (clock, job) = (self.services.clock.clone(), context.address());
        let reader = parts.begins.reader;
        let spills = !assembly::spilling(stage, &self.services.custom).is_empty();
        let memory = spills.then(|| self.services.state_memory.share());
        let thread = self.services.threads.task(deployment.job, task);
        // Sources and sinks are made on the thread they stay on.
        Ok(TaskActor::start_in_arbiter(&thread, move |_| {
            let letters = DeadLetterSink::new(starting.sink.clone());
            let sink_opening = starting.open_sink();
            let (sink, pump) = sink_queue(sink_opening, letters, wake.clone());
            let input = starting.open_input(
                &mut assembled.state,
                assembled.sealed,
                assembled.watermark,
                wake.clone(),
            );
            let machine = TaskMachine {
                task,
                status,
                input,
                chain: assembled.chain,
                state: assembled.state,
                outputs: assembled.outputs,
                sink,
                progress: Progress::restored(restored, assembled.sealed, assembled.watermark),
                restored,
                memory,
                under_way: UnderWay::default(),
            };
            TaskActor {
                machine,
                job,
                clock,
                wake,
                pump: Some(pump),
                reader,
            }
        }))
    }

    /// Makes durable what all local tasks have sealed, and acknowledges it.
    fn persist(&mut self, context: &mut Context<Self>) {
        if let Some(ready) = self.participant.take_ready() {
            let checkpoint = ready.checkpoint;
            let (chunks, tasks) = assembly::to_write(ready, &self.deployment.graph);
            let ack = AckCheckpoint {
                worker: self.services.session.worker,
                worker_epoch: self.services.session.epoch(),
                job: self.deployment.job,
                generation: self.deployment.generation,
                checkpoint,
                tasks,
            };
            self.write(chunks, ack, context);
        }
    }

    fn write(
        &mut self,
        chunks: Vec<TaskChunk>,
        mut ack: AckCheckpoint,
        context: &mut Context<Self>,
    ) {
        let Some(store) = self.store.clone() else {
            return;
        };
        let generation = self.deployment.generation;
        let writing = tokio::task::spawn_blocking(move || store.persist(generation, chunks));
        let written = writing.into_actor(self).map(|outcome, actor, context| {
            match outcome.expect("writing a checkpoint does not panic") {
                Ok(bytes) => {
                    actor.participant.persisted(ack.checkpoint);
                    if let Some(sealed) = &actor.sealed {
                        sealed.send_replace(());
                    }
                    actor.tell_grown();
                    for snapshot in &mut ack.tasks {
                        snapshot.delta_bytes = bytes.get(&snapshot.task).copied().unwrap_or(0);
                    }
                    actor.acknowledge(ack, context);
                    actor.persist(context);
                }
                Err(error) if error.is_disk_full() => {
                    // The tasks go on. The store keeps what they sealed until there is room again.
                    actor.decline(ack.checkpoint, error.to_string(), context);
                    context.run_later(RETRY_EVERY.as_duration(), |actor, context| {
                        actor.write(Vec::new(), ack, context);
                    });
                }
                Err(error) if error.is_fatal() => {
                    // The disk no longer holds what it said it holds: nothing of this process can be
                    // trusted to be durable.
                    error!(%error, "a checkpoint cannot be written; the worker ends");
                    std::process::abort();
                }
                Err(error) => {
                    actor.fail_all(format!("a checkpoint cannot be written: {error}"), false);
                }
            }
        });
        context.spawn(written);
    }

    fn acknowledge(&self, ack: AckCheckpoint, context: &mut Context<Self>) {
        let services = self.services.clone();
        let telling = async move {
            loop {
                let told = services
                    .coordinators
                    .call(&services.transport, &ack, ACK_DEADLINE)
                    .await;
                match told {
                    Ok(_) => return,
                    Err(error) if error.is_retriable() => {
                        tokio::time::sleep(LOOK_EVERY.as_duration()).await;
                    }
                    Err(error) => {
                        info!(checkpoint = %ack.checkpoint, %error, "an acknowledgement is of the past");
                        return;
                    }
                }
            }
        };
        context.spawn(telling.into_actor(self));
    }

    fn decline(&self, checkpoint: CheckpointId, reason: String, context: &mut Context<Self>) {
        warn!(job = %self.deployment.name, %checkpoint, %reason, "declined");
        let decline = DeclineCheckpoint {
            worker: self.services.session.worker,
            worker_epoch: self.services.session.epoch(),
            job: self.deployment.job,
            generation: self.deployment.generation,
            checkpoint,
            reason,
        };
        let services = self.services.clone();
        let telling = async move {
            // Lost, it is only noticed later: the checkpoint times out.
            let told = services
                .coordinators
                .call(&services.transport, &decline, ACK_DEADLINE)
                .await;
            drop(told);
        };
        context.spawn(telling.into_actor(self));
    }

    /// Folds what was completed into the base, one fold at a time; those that gathered are one.
    ///
    /// The view gets no further than the oldest state that a task may still be asked for: what a task does
    /// not have in memory it reads from there.
    fn fold(&mut self, context: &mut Context<Self>) {
        let (Some(store), Some(completed)) = (self.store.clone(), self.completed) else {
            return;
        };
        if self.folding || self.folded >= Some(completed) {
            return;
        }
        self.folding = true;
        store.end_loans(self.services.clock.tick());
        let job = self.deployment.job;
        let facts = self.services.image.borrow().jobs.get(&job).cloned();
        let tasks = self.tasks.clone();
        let (me, custom) = (self.services.session.worker, &self.services.custom);
        let threads = self.services.threads.clone();
        let mut purposes = assembly::purposes(&self.deployment, me, &self.local, custom);
        let folding = async move {
            let mut oldest = Some(completed);
            for (id, task) in tasks {
                let Ok(foldable) = task.send(PrepareFold(completed)).await else {
                    // One that is gone takes its generation with it.
                    return Ok(Ok(Vec::new()));
                };
                oldest = oldest.min(foldable.up_to);
                if foldable.at_once {
                    purposes.insert(id, Purpose::RunsAndWaits);
                }
            }
            let Some(oldest) = oldest else {
                return Ok(Ok(Vec::new()));
            };
            let folding = move || {
                let history =
                    |generation, checkpoint| facts.as_ref()?.counts(generation, checkpoint);
                store.fold(oldest, &purposes, &history)
            };
            threads.background().run(folding).await
        };
        let folded = folding
            .into_actor(self)
            .map(move |outcome, actor, context| {
                actor.folding = false;
                match outcome.expect("folding does not panic") {
                    Ok(folded) => {
                        actor.folded = Some(completed);
                        actor.tell_folded(folded);
                        actor.fold(context);
                    }
                    // The deltas stay until a later fold succeeds: nothing is lost, only longer to replay.
                    Err(error) => warn!(job = %actor.deployment.name, %error, "cannot fold"),
                }
            });
        context.spawn(folded);
    }

    fn tell_folded(&self, folded: Vec<FoldedTask>) {
        for FoldedTask { task, at, reader } in folded {
            if let Some(address) = self.tasks.get(&task) {
                let checkpoint = at;
                // A full mailbox hears of the next fold.
                drop(address.try_send(Folded { checkpoint, reader }));
            }
        }
    }

    /// Notices tasks that are gone without having said why, and repeats what may not have arrived.
    fn look(&mut self) {
        for (task, address) in &self.tasks {
            if !address.connected() && !self.stopping {
                self.fail(*task, "the task panicked".to_owned(), false);
            }
        }
        self.tell_completed();
    }

    fn tell_completed(&self) {
        let Some(completed) = self.completed else {
            return;
        };
        for address in self.tasks.values() {
            // A full mailbox is tried again at the next look.
            drop(address.try_send(Complete(completed)));
        }
    }

    fn tell_grown(&self) {
        if let (Some(standby), Some(_)) = (&self.standby, &self.deployment.next) {
            // What does not fit is about what the next one is about, too.
            drop(standby.try_send(Grown));
        }
    }

    fn fail_all(&self, reason: String, fatal: bool) {
        for task in &self.local {
            self.fail(*task, reason.clone(), fatal);
        }
    }

    fn fail(&self, task: TaskId, reason: String, fatal: bool) {
        let (job, generation) = (self.deployment.job, self.deployment.generation);
        if let Some(status) = self.services.reports.get(job, generation, task) {
            status.set_state(Standing::Failed { reason, fatal });
        }
    }
}

/// Why the tasks of a generation have no state to begin with.
#[derive(Debug, thiserror::Error)]
enum Unrestored {
    #[error("the state cannot be restored: {0}")]
    State(#[from] StateError),
    #[error("the state cannot be restored from the savepoint: {0}")]
    Savepoint(#[from] DownloadError),
    #[error("restoring the state panicked: {0}")]
    Panicked(JoinError),
}

impl Unrestored {
    /// Whether trying again gives the same.
    fn is_final(&self) -> bool {
        match self {
            Unrestored::State(error) => error.is_loss(),
            Unrestored::Savepoint(error) => error.is_final(),
            Unrestored::Panicked(_) => false,
        }
    }
}

/// Removes what is on the disk of tasks of a former division, behind the job's back.
fn sweep(store: Arc<JobStateStore>, background: &Background) {
    let sweeping = move || {
        if let Err(error) = store.sweep() {
            warn!(%error, "what is left of former tasks stays on the disk for now");
        }
    };
    drop(background.run(sweeping));
}

/// Brings here what a savepoint has of these tasks, unless it has come already.
async fn fetch_savepoint(
    store: &Arc<JobStateStore>,
    objects: &Objects,
    deployment: &Deployment,
    tasks: &BTreeSet<TaskId>,
) -> Result<(), DownloadError> {
    let (Some(from), Some(at)) = (&deployment.savepoint, deployment.restore) else {
        return Ok(());
    };
    let missing = tasks.iter().filter(|task| {
        let has_state = deployment.graph.stage(task.stage).has_state();
        has_state && !store.is_restored(**task, at)
    });
    let missing: Vec<TaskId> = missing.copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let manifest = download::manifest(objects, from).await?;
    for task in missing {
        download::fetch(store, objects, from, &manifest, task, at).await?;
        info!(job = %deployment.name, %task, from = %from.place, "state fetched from a savepoint");
    }
    Ok(())
}

/// What is particular to one task.
struct TaskParts {
    task: TaskId,
    wake: Arc<Notify>,
    inputs: Vec<InputChannel>,
    /// The writers of each outgoing edge.
    outputs: Vec<(usize, Vec<Writer>)>,
    begins: RestoredTask,
}

/// What opens a task's source and sink, once it is on its thread.
struct StartingTask {
    sink: SinkContext,
    source: SourceContext,
    stage: Stage,
    inputs: Vec<InputChannel>,
    /// It reads nothing of its source.
    still: bool,
}

impl StartingTask {
    fn open_sink(&self) -> Option<crate::task::sink_pump::Opening> {
        let planned = self.stage.sink.clone()?;
        let context = self.sink.clone();
        Some(Box::pin(async move {
            sink::open(&planned, context)
                .await
                .map_err(sink::SinkError::from)
        }))
    }

    fn open_input(
        self,
        state: &mut TaskState,
        sealed: CheckpointId,
        watermark: Timestamp,
        wake: Arc<Notify>,
    ) -> Input {
        let Some(planned) = self.stage.source else {
            return Input::Channels(ChannelInput::new(self.inputs, sealed, watermark));
        };
        let context = self.source;
        let source = planned.clone();
        let opening = async move {
            source::open(&planned, context)
                .await
                .map_err(source::SourceError::from)
        };
        let reader = SourceInput::start(Box::pin(opening), wake);
        Input::Source(assembly::source_side(
            &source, reader, state, watermark, self.still,
        ))
    }
}

impl Actor for JobActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        context.set_mailbox_capacity(MAILBOX);
        self.restore(context);
        context.run_interval(LOOK_EVERY.as_duration(), |actor, _| actor.look());
    }
}

impl Handler<Sealed> for JobActor {
    type Result = ();

    fn handle(&mut self, sealed: Sealed, context: &mut Context<Self>) {
        self.participant
            .sealed(sealed.task, sealed.checkpoint, sealed.snapshot);
        self.persist(context);
    }
}

impl Handler<Leaves> for JobActor {
    type Result = ();

    fn handle(&mut self, Leaves { task, left }: Leaves, _: &mut Context<Self>) {
        self.of_failed.insert(task, left);
    }
}

impl Handler<Barrier> for JobActor {
    type Result = Result<(), Problem>;

    fn handle(&mut self, Barrier(inject): Barrier, _: &mut Context<Self>) -> Self::Result {
        if inject.generation != self.deployment.generation {
            let detail = format!(
                "generation {} runs here, not {}",
                self.deployment.generation, inject.generation
            );
            let newer = inject.generation > self.deployment.generation;
            let code = if newer {
                ErrorCode::MetadataStale
            } else {
                ErrorCode::FencedGeneration
            };
            return Err(Problem::new(code, detail));
        }
        let barrier = crate::task::message::Barrier {
            checkpoint: inject.checkpoint,
            stop: inject.kind.is_last(),
        };
        let drain = inject.kind == CheckpointKind::Drain;
        let sources: Vec<TaskId> = self
            .local
            .iter()
            .filter(|task| self.deployment.graph.stage(task.stage).source.is_some())
            .copied()
            .collect();
        for task in sources {
            let taken = self
                .tasks
                .get(&task)
                .map(|address| address.try_send(Inject { barrier, drain }));
            if !matches!(taken, Some(Ok(()))) {
                let detail = format!("task {task} cannot take a barrier now");
                return Err(Problem::new(ErrorCode::MetadataStale, detail));
            }
        }
        Ok(())
    }
}

impl Handler<Completed> for JobActor {
    type Result = ();

    fn handle(&mut self, Completed(checkpoint): Completed, context: &mut Context<Self>) {
        if self.completed >= Some(checkpoint) {
            return;
        }
        self.completed = Some(checkpoint);
        self.tell_completed();
        self.tell_grown();
        self.fold(context);
    }
}

impl Handler<Deployed> for JobActor {
    type Result = ();

    fn handle(&mut self, Deployed(deployment): Deployed, _: &mut Context<Self>) {
        let same = deployment.generation == self.deployment.generation;
        let changed = deployment.standbys != self.deployment.standbys
            || deployment.next != self.deployment.next;
        if same && changed {
            self.deployment = deployment;
            self.stand_by(Left::new());
        }
    }
}

impl Handler<LendState> for JobActor {
    type Result = ResponseFuture<Result<StateFetched, Problem>>;

    fn handle(&mut self, LendState(call): LendState, _: &mut Context<Self>) -> Self::Result {
        let same = call.generation == self.deployment.generation;
        let store = self.store.clone().filter(|_| same);
        let (Some(store), Some(sealed)) = (store, &self.sealed) else {
            let detail = format!("generation {} does not run here yet", call.generation);
            let problem = Problem::new(ErrorCode::MetadataStale, detail);
            return Box::pin(std::future::ready(Err(problem)));
        };
        Box::pin(serving::answer(
            store,
            self.services.clone(),
            sealed.subscribe(),
            call,
        ))
    }
}

impl Handler<Save> for JobActor {
    type Result = ResponseFuture<Result<StateSaved, Problem>>;

    fn handle(&mut self, Save(call): Save, _: &mut Context<Self>) -> Self::Result {
        let same = call.generation == self.deployment.generation && !call.at_rest;
        let services = self.services.clone();
        match self.store.clone().filter(|_| same) {
            Some(store) => Box::pin(upload::save(store, services, call)),
            None => {
                let detail = format!("generation {} does not run here", call.generation);
                let problem = Problem::new(ErrorCode::StaleGeneration, detail);
                Box::pin(std::future::ready(Err(problem)))
            }
        }
    }
}

impl Handler<ReadState> for JobActor {
    type Result = ResponseFuture<Result<StateEntries, Problem>>;

    fn handle(&mut self, ReadState(query): ReadState, _: &mut Context<Self>) -> Self::Result {
        let stale = query.generation != self.deployment.generation;
        let address = self.tasks.get(&query.task).cloned();
        Box::pin(async move {
            let gone = || {
                Problem::new(ErrorCode::StaleGeneration, "the job is being started anew")
                    .hint("Ask again; a new generation takes over within moments.")
            };
            match address {
                Some(address) if !stale => address.send(Query(query)).await.map_err(|_| gone())?,
                Some(_) | None => Err(gone()),
            }
        })
    }
}

impl Handler<StopJob> for JobActor {
    type Result = ResponseActFuture<Self, Option<Handover>>;

    fn handle(&mut self, StopJob(next): StopJob, _: &mut Context<Self>) -> Self::Result {
        self.stopping = true;
        let tasks = std::mem::take(&mut self.tasks);
        let standby = self.standby.take();
        self.sealed = None;
        let ended = async move {
            let mut left = match standby {
                Some(standby) => standby.send(StopStandby(next)).await.unwrap_or_default(),
                None => Left::new(),
            };
            for (id, task) in tasks {
                // One that is gone already has failed, and has said what it leaves.
                if let Ok(leaves) = task.send(Stop).await {
                    left.insert(id, leaves);
                }
            }
            left
        };
        Box::pin(
            ended
                .into_actor(self)
                .map(|mut tasks, actor: &mut JobActor, context| {
                    tasks.append(&mut actor.of_failed);
                    let (job, generation) = (actor.deployment.job, actor.deployment.generation);
                    actor.services.exchange.close(job, generation);
                    actor.services.reports.remove(job, generation);
                    context.stop();
                    actor.store.take().map(|store| Handover {
                        generation,
                        store,
                        tasks,
                    })
                }),
        )
    }
}
