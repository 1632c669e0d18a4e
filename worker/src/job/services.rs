//! What the tasks of every job share: how they reach partitions, other workers and the coordinator.

use std::path::PathBuf;
use std::sync::Arc;

use common::time::Clock;
use common::transport::client::Transport;
use tokio::sync::Notify;

use crate::exchange::Exchange;
use crate::link::Session;
use crate::link::coordinators::Coordinators;
use crate::link::reports::TaskReports;
use crate::log_client::LogClient;
use crate::metadata_image::ImageWatch;
use crate::operator::custom::CustomOperators;
use crate::slots::Threads;
use crate::task::memory::{MemoryPlan, StateMemory};

#[derive(Clone, Debug)]
pub struct Services {
    pub session: Arc<Session>,
    pub coordinators: Coordinators,
    pub transport: Transport,
    pub image: ImageWatch,
    pub log: LogClient,
    pub exchange: Exchange,
    pub clock: Arc<dyn Clock>,
    pub reports: Arc<TaskReports>,
    /// Makes the next heartbeat come at once.
    pub urgent: Arc<Notify>,
    pub threads: Arc<Threads>,
    pub custom: Arc<CustomOperators>,
    /// What their tables may use.
    pub memory: MemoryPlan,
    pub state_memory: Arc<StateMemory>,
    /// Where jobs keep their state.
    pub jobs_directory: PathBuf,
}
