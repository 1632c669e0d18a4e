//! What is said to the jobs of this worker.

use std::sync::Arc;

use actix::Message;
use common::error::Problem;
use common::ids::CheckpointId;
use common::protocol::checkpoint::InjectBarrier;
use common::protocol::state::{QueryState, StateEntries};

use crate::metadata_image::MetadataImage;

/// There is a newer image.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct ImageChanged(pub Arc<MetadataImage>);

/// Sources of a job shall emit a barrier.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), Problem>")]
pub struct Barrier(pub InjectBarrier);

/// Reads the state of an operator.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<StateEntries, Problem>")]
pub struct ReadState(pub QueryState);

/// A checkpoint of the job is completed.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Completed(pub CheckpointId);

/// The generation is over here. Answered when its tasks are gone and its files closed.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct StopJob;
