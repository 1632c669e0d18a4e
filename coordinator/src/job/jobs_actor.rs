//! Keeps the actors of every job in the metadata, and leads to them what workers and users say.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;

use actix::prelude::*;
use futures_util::Stream;
use tokio::sync::{broadcast, watch};
use tracing::debug;

use common::error::{ErrorCode, Problem};
use common::ids::{JobId, MetadataVersion, NodeId};
use common::limits::JOB_MAILBOX;
use common::protocol::checkpoint::{AckCheckpoint, Acknowledged, DeclineCheckpoint};
use common::protocol::node::Heartbeat;
use common::protocol::standby::AckStandby;
use common::protocol::task::{Deployment, TaskReport};
use common::time::{Clock, Span};
use common::transport::client::Transport;

use super::actor::JobActor;
use super::facts::{slots_by_job, workers_for};
use super::messages::{Find, JobAddresses, JobFacts, Observe, TasksReported};
use super::observed::Observed;
use crate::checkpoint::actor::{
    Acknowledge, CheckpointActor, DatedRecord, Decline, Hold, ListRecords,
};
use crate::controller::Controller;
use crate::metadata::jobs::JobRow;
use crate::metadata::nodes::WorkerRow;
use crate::savepoint::actor::SavepointActor;

/// A handle on all jobs of the cluster.
#[derive(Clone, Debug)]
pub struct Jobs {
    actor: Addr<JobsActor>,
}

#[derive(Debug)]
struct JobsActor {
    controller: Controller,
    transport: Transport,
    clock: Arc<dyn Clock>,
    session_timeout: Span,
    jobs: BTreeMap<JobId, Running>,
    /// What the room for jobs was computed from.
    workers: Vec<Arc<WorkerRow>>,
    deployments: BTreeMap<JobId, Arc<Deployment>>,
    slots: BTreeMap<JobId, BTreeMap<NodeId, u32>>,
}

#[derive(Debug)]
struct Running {
    row: Arc<JobRow>,
    facts: watch::Sender<JobFacts>,
    addresses: JobAddresses,
}

impl Jobs {
    /// Starts the actors of all jobs on this arbiter; they follow the metadata and what workers report
    /// from then on.
    pub fn start(
        controller: Controller,
        transport: Transport,
        clock: Arc<dyn Clock>,
        session_timeout: Span,
        heartbeats: broadcast::Receiver<Arc<Heartbeat>>,
    ) -> Jobs {
        let actor = JobsActor::create(|ctx| {
            ctx.add_stream(reports(heartbeats));
            JobsActor {
                controller,
                transport,
                clock,
                session_timeout,
                jobs: BTreeMap::new(),
                workers: Vec::new(),
                deployments: BTreeMap::new(),
                slots: BTreeMap::new(),
            }
        });
        Jobs { actor }
    }

    pub async fn acknowledge(&self, ack: AckCheckpoint) -> Result<Acknowledged, Problem> {
        let found = self.find(ack.job).await?;
        answer(found.checkpoints.send(Acknowledge(ack)).await)?
    }

    pub async fn hold(&self, ack: AckStandby) -> Result<Acknowledged, Problem> {
        let found = self.find(ack.job).await?;
        answer(found.checkpoints.send(Hold(ack)).await)?
    }

    pub async fn decline(&self, decline: DeclineCheckpoint) -> Result<Acknowledged, Problem> {
        let found = self.find(decline.job).await?;
        answer(found.checkpoints.send(Decline(decline)).await)?
    }

    /// What was last heard of a job's tasks.
    pub async fn observe(&self, job: JobId) -> Result<Observed, Problem> {
        let found = self.find(job).await?;
        answer(found.job.send(Observe).await)
    }

    /// The checkpoints this coordinator has taken of a job, oldest first.
    pub(crate) async fn checkpoints(&self, job: JobId) -> Result<Vec<DatedRecord>, Problem> {
        let found = self.find(job).await?;
        answer(found.checkpoints.send(ListRecords).await)
    }

    async fn find(&self, job: JobId) -> Result<JobAddresses, Problem> {
        let found = answer(self.actor.send(Find { job }).await)?;
        found.ok_or_else(|| {
            Problem::new(
                ErrorCode::UnknownJob,
                format!("there is no job number {job}"),
            )
        })
    }
}

/// An actor that is gone has been stopped, with the coordinator or with its job.
fn answer<T>(result: Result<T, MailboxError>) -> Result<T, Problem> {
    result.map_err(|_| Problem::new(ErrorCode::ShuttingDown, "the job's actor has ended"))
}

impl JobsActor {
    /// Makes the actors what the metadata says, and tells each what has changed for it.
    fn follow(&mut self) {
        let view = self.controller.view().clone();
        view.read(|metadata| {
            let rows: Vec<&Arc<JobRow>> = metadata.jobs_by_name().collect();
            let known: BTreeSet<JobId> = rows.iter().map(|row| row.id).collect();
            // An actor ends when nobody can tell it anything any more.
            self.jobs.retain(|job, _| known.contains(job));
            let room_changed = self.note_room(metadata.workers(), &rows);
            if room_changed {
                self.slots = slots_by_job(metadata);
            }
            for row in rows {
                let known = self.jobs.get(&row.id).map(|job| &job.row);
                if !room_changed && known.is_some_and(|known| Arc::ptr_eq(known, row)) {
                    continue;
                }
                let facts = JobFacts {
                    version: metadata.version(),
                    row: Arc::clone(row),
                    workers: workers_for(metadata, &self.slots, row.id),
                };
                self.tell(facts);
            }
        });
    }

    /// Whether the room for jobs may have changed: workers or where tasks run.
    fn note_room<'a>(
        &mut self,
        workers: impl Iterator<Item = &'a Arc<WorkerRow>>,
        rows: &[&Arc<JobRow>],
    ) -> bool {
        let workers: Vec<Arc<WorkerRow>> = workers.cloned().collect();
        let deployments: BTreeMap<JobId, Arc<Deployment>> = rows
            .iter()
            .filter_map(|row| Some((row.id, Arc::clone(row.deployment.as_ref()?))))
            .collect();
        let same_workers = workers.len() == self.workers.len()
            && workers
                .iter()
                .zip(&self.workers)
                .all(|(a, b)| Arc::ptr_eq(a, b));
        let same_deployments = deployments.len() == self.deployments.len()
            && deployments
                .iter()
                .zip(&self.deployments)
                .all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(a.1, b.1));
        self.workers = workers;
        self.deployments = deployments;
        !(same_workers && same_deployments)
    }

    fn tell(&mut self, facts: JobFacts) {
        if let Some(job) = self.jobs.get_mut(&facts.row.id) {
            job.row = Arc::clone(&facts.row);
            job.facts.send_replace(facts);
            return;
        }
        let row = Arc::clone(&facts.row);
        let (sender, receiver) = watch::channel(facts);
        let addresses = self.start_actors(&row, receiver);
        let job = Running {
            row,
            facts: sender,
            addresses,
        };
        self.jobs.insert(job.row.id, job);
    }

    fn start_actors(&self, row: &JobRow, facts: watch::Receiver<JobFacts>) -> JobAddresses {
        let context = Context::<JobActor>::new();
        let checkpoints = CheckpointActor::new(
            self.controller.clone(),
            self.transport.clone(),
            Arc::clone(&self.clock),
            self.session_timeout,
            row,
            context.address().recipient(),
        )
        .start();
        // It lives as long as anybody tells it of the job.
        SavepointActor::new(
            self.controller.clone(),
            self.transport.clone(),
            Arc::clone(&self.clock),
            checkpoints.clone(),
            facts.clone(),
        )
        .start();
        let job = context.run(JobActor::new(
            self.controller.clone(),
            Arc::clone(&self.clock),
            checkpoints.clone(),
            facts,
        ));
        JobAddresses { job, checkpoints }
    }
}

impl Actor for JobsActor {
    type Context = Context<JobsActor>;

    fn started(&mut self, ctx: &mut Context<JobsActor>) {
        ctx.set_mailbox_capacity(JOB_MAILBOX);
        let changes = self.controller.view().changes();
        ctx.add_stream(versions(changes));
        self.follow();
    }
}

impl StreamHandler<MetadataVersion> for JobsActor {
    fn handle(&mut self, _: MetadataVersion, _: &mut Context<JobsActor>) {
        self.follow();
    }

    /// The metadata has ended, and with it the coordinator.
    fn finished(&mut self, ctx: &mut Context<JobsActor>) {
        ctx.stop();
    }
}

/// Everything a worker runs. One that is lost or skipped is followed by the next.
impl StreamHandler<Arc<Heartbeat>> for JobsActor {
    fn handle(&mut self, heartbeat: Arc<Heartbeat>, _: &mut Context<JobsActor>) {
        let mut of_job: BTreeMap<JobId, Vec<TaskReport>> = BTreeMap::new();
        // A job that has tasks there is told also if none of them is reported.
        for (job, deployment) in &self.deployments {
            let mut tasks = deployment.tasks.iter();
            if tasks.any(|task| task.worker == heartbeat.worker) {
                of_job.insert(*job, Vec::new());
            }
        }
        for report in &heartbeat.tasks {
            if let Some(tasks) = of_job.get_mut(&report.job) {
                tasks.push(report.clone());
            }
        }
        for (job, tasks) in of_job {
            let Some(running) = self.jobs.get(&job) else {
                continue;
            };
            let told = running.addresses.job.try_send(TasksReported {
                worker: heartbeat.worker,
                epoch: heartbeat.epoch,
                tasks,
            });
            if told.is_err() {
                debug!(%job, "a report is skipped; the next one says the same");
            }
        }
    }

    fn finished(&mut self, _: &mut Context<JobsActor>) {
        // Nobody listens to workers any more; the metadata says when the coordinator ends.
    }
}

impl Handler<Find> for JobsActor {
    type Result = Option<JobAddresses>;

    fn handle(&mut self, Find { job }: Find, _: &mut Context<JobsActor>) -> Option<JobAddresses> {
        self.jobs.get(&job).map(|running| running.addresses.clone())
    }
}

/// The versions of the metadata, as they come; ends with it.
fn versions(
    versions: watch::Receiver<MetadataVersion>,
) -> Pin<Box<dyn Stream<Item = MetadataVersion>>> {
    Box::pin(futures_util::stream::unfold(
        versions,
        |mut versions| async {
            versions.changed().await.ok()?;
            let version = *versions.borrow_and_update();
            Some((version, versions))
        },
    ))
}

/// The heartbeats of all workers, as they come. Of those that came too fast the oldest are skipped.
fn reports(
    heartbeats: broadcast::Receiver<Arc<Heartbeat>>,
) -> Pin<Box<dyn Stream<Item = Arc<Heartbeat>>>> {
    Box::pin(futures_util::stream::unfold(
        heartbeats,
        |mut heartbeats| async {
            loop {
                match heartbeats.recv().await {
                    Ok(heartbeat) => return Some((heartbeat, heartbeats)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        },
    ))
}
