//! What a job's actor and the actor above all jobs are told and asked.

use std::sync::Arc;

use actix::{Addr, Message};

use common::ids::{Generation, JobId, MetadataVersion, NodeId, WorkerEpoch};
use common::protocol::task::TaskReport;

use super::actor::JobActor;
use super::facts::Workers;
use super::observed::Observed;
use crate::checkpoint::actor::CheckpointActor;
use crate::metadata::jobs::JobRow;

/// The facts that concern one job, as of one version of the metadata.
#[derive(Clone, Debug)]
pub(crate) struct JobFacts {
    pub(crate) version: MetadataVersion,
    pub(crate) row: Arc<JobRow>,
    pub(crate) workers: Workers,
}

/// What a worker runs of the job.
#[derive(Debug)]
pub(crate) struct TasksReported {
    pub(crate) worker: NodeId,
    pub(crate) epoch: WorkerEpoch,
    pub(crate) tasks: Vec<TaskReport>,
}

impl Message for TasksReported {
    type Result = ();
}

#[derive(Debug)]
pub(crate) struct FinalCheckpointCompleted {
    pub(crate) generation: Generation,
}

impl Message for FinalCheckpointCompleted {
    type Result = ();
}

#[derive(Debug)]
pub(crate) struct Observe;

impl Message for Observe {
    type Result = Observed;
}

#[derive(Debug)]
pub(crate) struct Find {
    pub(crate) job: JobId,
}

impl Message for Find {
    type Result = Option<JobAddresses>;
}

/// The actors of one job.
#[derive(Clone, Debug)]
pub(crate) struct JobAddresses {
    pub(crate) job: Addr<JobActor>,
    pub(crate) checkpoints: Addr<CheckpointActor>,
}
