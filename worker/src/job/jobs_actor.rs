//! The shell that keeps the jobs of this worker as the metadata says they should be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, ResponseActFuture,
    ResponseFuture, StreamHandler, WrapFuture,
};
use common::error::{ErrorCode, Problem};
use common::ids::{Generation, JobId, TaskId, WorkerEpoch};
use common::protocol::checkpoint::InjectBarrier;
use common::protocol::savepoint::{SaveState, StateSaved};
use common::protocol::standby::{FetchState, StateFetched};
use common::protocol::state::{QueryState, QueryStateAtRest, StateEntries};
use common::time::{Span, Tick};
use tracing::warn;

use super::actor::JobActor;
use super::assignment::{changes, completed, tasks_here};
use super::at_rest;
use super::handover::Handover;
use super::messages::{
    Barrier, Completed, Deployed, ImageChanged, LendState, ReadState, ReadStateAtRest, Save,
    StopAll, StopJob,
};
use super::services::Services;
use crate::checkpoint::state_store::{JobStateStore, StoreOptions};
use crate::checkpoint::upload;
use crate::metadata_image::MetadataImage;

/// How long the store of a job at rest stays open for the next object of a savepoint.
const KEEP_OPEN: Span = Span::from_secs(2);

/// The jobs of this worker, as everyone but their actor sees them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs(Addr<JobsActor>);

impl Jobs {
    /// `kept`: the jobs that have state on this disk.
    pub fn start(services: Services, kept: BTreeSet<JobId>) -> Jobs {
        let thread = services.threads.control();
        let actor = JobsActor::new(services, kept);
        Jobs(JobsActor::start_in_arbiter(&thread, move |_| actor))
    }

    /// Sources of a job shall emit a barrier.
    pub async fn inject(&self, barrier: InjectBarrier) -> Result<(), Problem> {
        self.0
            .send(Barrier(barrier))
            .await
            .map_err(|_| stopping())?
    }

    /// A standby elsewhere asks for what tasks here have sealed.
    pub async fn fetch_state(&self, call: FetchState) -> Result<StateFetched, Problem> {
        self.0.send(LendState(call)).await.map_err(|_| stopping())?
    }

    /// The next object of a task's state goes to a savepoint.
    pub async fn save_state(&self, call: SaveState) -> Result<StateSaved, Problem> {
        self.0.send(Save(call)).await.map_err(|_| stopping())?
    }

    pub async fn read_state(&self, query: QueryState) -> Result<StateEntries, Problem> {
        self.0
            .send(ReadState(query))
            .await
            .map_err(|_| stopping())?
    }

    pub async fn read_state_at_rest(
        &self,
        query: QueryStateAtRest,
    ) -> Result<StateEntries, Problem> {
        self.0
            .send(ReadStateAtRest(query))
            .await
            .map_err(|_| stopping())?
    }

    /// Returns when no task of any job runs any more.
    pub async fn stop(&self) {
        // Stopped already is as good.
        self.0.send(StopAll).await.unwrap_or_default();
    }
}

fn stopping() -> Problem {
    Problem::new(ErrorCode::ShuttingDown, "the worker is stopping")
}

#[derive(Debug)]
struct JobsActor {
    services: Services,
    /// With the worker epoch under which each was started.
    running: BTreeMap<JobId, (Generation, WorkerEpoch, Addr<JobActor>)>,
    /// Jobs whose last generation is being stopped; the next one starts when that is done, because a
    /// job's files are open once.
    stopping: BTreeSet<JobId>,
    kept: BTreeSet<JobId>,
    /// Open for savepoints of a job at rest, and when one was last asked for.
    resting: Option<Resting>,
}

/// The store of a job of which nothing runs here: opening it reads all of its log, and a savepoint asks object
/// by object.
#[derive(Debug)]
struct Resting {
    job: JobId,
    store: Arc<JobStateStore>,
    at: Tick,
}

impl JobsActor {
    fn new(services: Services, kept: BTreeSet<JobId>) -> JobsActor {
        JobsActor {
            services,
            running: BTreeMap::new(),
            stopping: BTreeSet::new(),
            kept,
            resting: None,
        }
    }

    /// `left`: what a generation that has just stopped leaves to the next one, if there is to be one now.
    fn follow(
        &mut self,
        image: &MetadataImage,
        mut left: Option<(JobId, Handover)>,
        context: &mut Context<Self>,
    ) {
        let running = self
            .running
            .iter()
            .map(|(job, (generation, epoch, _))| (*job, (*generation, *epoch)))
            .collect();
        let session = &self.services.session;
        let (me, epoch) = (session.worker, session.epoch());
        let changes = changes(image, me, epoch, &running, &self.kept);
        for (job, _) in changes.stop {
            let next = image.deployments.get(&job);
            let next = next.map(|next| tasks_here(next, me, epoch));
            self.stop(job, next.unwrap_or_default(), context);
        }
        for deployment in changes.start {
            if self.stopping.contains(&deployment.job) {
                continue;
            }
            let (job, generation) = (deployment.job, deployment.generation);
            self.resting.take_if(|resting| resting.job == job);
            let left = left.take_if(|(of, _)| *of == job);
            let left = left.map(|(_, left)| left.for_next(&deployment, image.jobs.get(&job)));
            let actor = JobActor::new(deployment, self.services.clone(), left);
            let address =
                JobActor::start_in_arbiter(&self.services.threads.control(), move |_| actor);
            self.kept.insert(job);
            self.running.insert(job, (generation, epoch, address));
        }
        for (job, (generation, _, address)) in &self.running {
            if let Some(completed) = completed(image, *job, *generation) {
                // What does not fit comes again with the next image.
                drop(address.try_send(Completed(completed)));
            }
            if let Some(deployment) = image.deployments.get(job) {
                drop(address.try_send(Deployed(deployment.clone())));
            }
        }
        for job in changes.forget {
            self.resting.take_if(|resting| resting.job == job);
            if !self.stopping.contains(&job) {
                self.forget(job, context);
            }
        }
    }

    fn stop(&mut self, job: JobId, next: BTreeSet<TaskId>, context: &mut Context<Self>) {
        let Some((_, _, address)) = self.running.remove(&job) else {
            return;
        };
        self.stopping.insert(job);
        let stopped =
            address
                .send(StopJob(next))
                .into_actor(self)
                .map(move |left, actor, context| {
                    actor.stopping.remove(&job);
                    let image = actor.services.image.borrow().clone();
                    // One that is gone leaves nothing.
                    let left = left.unwrap_or_default().map(|left| (job, left));
                    actor.follow(&image, left, context);
                });
        context.spawn(stopped);
    }

    fn forget(&mut self, job: JobId, context: &mut Context<Self>) {
        self.kept.remove(&job);
        let directory = self.services.jobs_directory.join(job.to_string());
        let removing = tokio::task::spawn_blocking(move || JobStateStore::remove(&directory));
        let removed = removing
            .into_actor(self)
            .map(move |outcome, _, _| match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%job, %error, "the state of a deleted job stays on disk"),
                Err(error) => warn!(%job, %error, "removing the state of a deleted job panicked"),
            });
        context.spawn(removed);
    }

    /// For the next object, which follows at once or not at all.
    fn keep_open(&mut self, job: JobId, store: Arc<JobStateStore>, context: &mut Context<Self>) {
        if self.running.contains_key(&job) {
            return;
        }
        let at = self.services.clock.tick();
        self.resting = Some(Resting { job, store, at });
        context.run_later(KEEP_OPEN.as_duration(), |actor, _| {
            let now = actor.services.clock.tick();
            let idle = |resting: &mut Resting| now.since(resting.at) >= KEEP_OPEN;
            actor.resting.take_if(idle);
        });
    }

    fn job(&self, job: JobId) -> Result<Addr<JobActor>, Problem> {
        let not_here = || {
            Problem::new(
                ErrorCode::MetadataStale,
                format!("job {job} does not run here yet"),
            )
        };
        self.running
            .get(&job)
            .map(|(_, _, address)| address.clone())
            .ok_or_else(not_here)
    }
}

impl Actor for JobsActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        let image = self.services.image.clone();
        let images = futures_util::stream::unfold(image, |mut image| async {
            image.changed().await.ok()?;
            let newest = image.borrow_and_update().clone();
            Some((ImageChanged(newest), image))
        });
        context.add_stream(images);
        let image = self.services.image.borrow().clone();
        self.follow(&image, None, context);
    }
}

impl StreamHandler<ImageChanged> for JobsActor {
    fn handle(&mut self, ImageChanged(image): ImageChanged, context: &mut Context<Self>) {
        self.follow(&image, None, context);
    }
}

impl Handler<Barrier> for JobsActor {
    type Result = ResponseFuture<Result<(), Problem>>;

    fn handle(&mut self, barrier: Barrier, _: &mut Context<Self>) -> Self::Result {
        let job = self.job(barrier.0.job);
        Box::pin(async move { job?.send(barrier).await.map_err(|_| gone())? })
    }
}

impl Handler<LendState> for JobsActor {
    type Result = ResponseFuture<Result<StateFetched, Problem>>;

    fn handle(&mut self, lend: LendState, _: &mut Context<Self>) -> Self::Result {
        let job = self.job(lend.0.job);
        Box::pin(async move { job?.send(lend).await.map_err(|_| gone())? })
    }
}

impl Handler<Save> for JobsActor {
    type Result = ResponseActFuture<Self, Result<StateSaved, Problem>>;

    fn handle(&mut self, save: Save, _: &mut Context<Self>) -> Self::Result {
        let Save(call) = save;
        let job = call.job;
        if !call.at_rest {
            let running = self.job(job);
            let saving = async move { running?.send(Save(call)).await.map_err(|_| gone())? };
            return Box::pin(saving.into_actor(self));
        }
        if self.running.contains_key(&job) || self.stopping.contains(&job) {
            return Box::pin(std::future::ready(Err(gone())).into_actor(self));
        }
        let services = self.services.clone();
        let open = self.resting.take_if(|resting| resting.job == job);
        let opening = async move {
            if let Some(open) = open {
                return Ok(open.store);
            }
            let directory = services.jobs_directory.join(job.to_string());
            let options = StoreOptions::new(call.key_groups);
            let opening =
                tokio::task::spawn_blocking(move || JobStateStore::open(&directory, options));
            let opened = opening.await.map_err(|error| error.to_string());
            let opened = opened.and_then(|opened| opened.map_err(|error| error.to_string()));
            opened.map(Arc::new).map_err(|error| {
                let detail = format!("the state cannot be read: {error}");
                Problem::new(ErrorCode::Internal, detail)
            })
        };
        let saving = opening.into_actor(self).then(
            move |opened: Result<Arc<JobStateStore>, Problem>, actor: &mut JobsActor, context| {
                let saving = opened.map(|store| {
                    actor.keep_open(job, store.clone(), context);
                    upload::save(store, actor.services.clone(), call)
                });
                async move { saving?.await }.into_actor(actor)
            },
        );
        Box::pin(saving)
    }
}

impl Handler<ReadState> for JobsActor {
    type Result = ResponseFuture<Result<StateEntries, Problem>>;

    fn handle(&mut self, read: ReadState, _: &mut Context<Self>) -> Self::Result {
        let job = self.job(read.0.job);
        Box::pin(async move { job?.send(read).await.map_err(|_| gone())? })
    }
}

impl Handler<ReadStateAtRest> for JobsActor {
    type Result = ResponseFuture<Result<StateEntries, Problem>>;

    fn handle(
        &mut self,
        ReadStateAtRest(call): ReadStateAtRest,
        _: &mut Context<Self>,
    ) -> Self::Result {
        let runs = self.running.contains_key(&call.deployment.job);
        let services = self.services.clone();
        Box::pin(async move {
            if runs {
                return Err(gone());
            }
            let reading = tokio::task::spawn_blocking(move || at_rest::read(&services, call));
            reading.await.map_err(|error| {
                let detail = format!("reading the state panicked: {error}");
                Problem::new(ErrorCode::Internal, detail)
            })?
        })
    }
}

impl Handler<StopAll> for JobsActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: StopAll, context: &mut Context<Self>) -> Self::Result {
        let running = std::mem::take(&mut self.running);
        context.stop();
        Box::pin(async move {
            for (_, (_, _, address)) in running {
                // One that is gone already has stopped.
                drop(address.send(StopJob(BTreeSet::new())).await);
            }
        })
    }
}

fn gone() -> Problem {
    Problem::new(ErrorCode::StaleGeneration, "the job is being started anew")
}
