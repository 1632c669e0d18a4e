//! What is said to the jobs of this worker.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::Message;
use common::error::Problem;
use common::ids::{CheckpointId, TaskId};
use common::protocol::checkpoint::InjectBarrier;
use common::protocol::savepoint::{SaveState, StateSaved};
use common::protocol::standby::{FetchState, StateFetched};
use common::protocol::state::{QueryState, QueryStateAtRest, StateEntries};
use common::protocol::task::Deployment;

use super::handover::Handover;
use crate::metadata_image::MetadataImage;

/// There is a newer image.
#[derive(Clone, Debug)]
pub struct ImageChanged(pub Arc<MetadataImage>);

impl Message for ImageChanged {
    type Result = ();
}

/// Sources of a job shall emit a barrier.
#[derive(Clone, Debug)]
pub struct Barrier(pub InjectBarrier);

impl Message for Barrier {
    type Result = Result<(), Problem>;
}

/// Reads the state of an operator.
#[derive(Clone, Debug)]
pub struct ReadState(pub QueryState);

impl Message for ReadState {
    type Result = Result<StateEntries, Problem>;
}

/// Reads the state of an operator of a job of which nothing runs here.
#[derive(Clone, Debug)]
pub struct ReadStateAtRest(pub QueryStateAtRest);

impl Message for ReadStateAtRest {
    type Result = Result<StateEntries, Problem>;
}

/// A checkpoint of the job is completed.
#[derive(Clone, Copy, Debug)]
pub struct Completed(pub CheckpointId);

impl Message for Completed {
    type Result = ();
}

/// The job's deployment as the metadata has it now: within a generation others may come to stand by.
#[derive(Clone, Debug)]
pub struct Deployed(pub Arc<Deployment>);

impl Message for Deployed {
    type Result = ();
}

/// A standby elsewhere asks for what tasks here have sealed.
#[derive(Clone, Debug)]
pub struct LendState(pub FetchState);

impl Message for LendState {
    type Result = Result<StateFetched, Problem>;
}

/// The next object of a task's state goes to a savepoint.
#[derive(Clone, Debug)]
pub struct Save(pub SaveState);

impl Message for Save {
    type Result = Result<StateSaved, Problem>;
}

/// The generation is over here, and these tasks run here in the next one. Answered when its tasks are gone, with
/// what they leave; its files are closed when that is dropped.
#[derive(Clone, Debug)]
pub struct StopJob(pub BTreeSet<TaskId>);

impl Message for StopJob {
    type Result = Option<Handover>;
}

/// The worker is stopping. Answered when no task of any job runs any more.
#[derive(Clone, Copy, Debug)]
pub struct StopAll;

impl Message for StopAll {
    type Result = ();
}
