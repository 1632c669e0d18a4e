//! What every partition of a node has in common.

use std::fmt;
use std::io;
use std::sync::Arc;

use common::ids::TopicPartition;
use common::kv::KvStore;
use common::seglog::storage::LogStorage;
use common::time::Clock;
use tokio::sync::Semaphore;

use super::age_clock::AgeClock;
use crate::metadata_image::ImageWatch;
use crate::replication::isr_proposals::IsrProposals;

#[derive(Clone)]
pub struct PartitionSettings {
    pub clock: Arc<dyn Clock>,
    pub ages: Arc<AgeClock>,
    pub image: ImageWatch,
    /// Where leaders' wishes to change the in-sync replicas go.
    pub isr: IsrProposals,
    /// Where derived state is saved; without it everything is rebuilt when a log is opened.
    pub store: Option<Arc<dyn KvStore>>,
    /// The directory of a partition's log. May block.
    pub storage: Arc<dyn Fn(TopicPartition) -> io::Result<Arc<dyn LogStorage>> + Send + Sync>,
    /// How many writes and syncs may run at once.
    pub disk: Arc<Semaphore>,
    /// A failed fsync, after which nothing this process says of its disk can be believed. Ends the
    /// process, except in tests.
    pub on_disk_failure: Arc<dyn Fn(&str) + Send + Sync>,
}

impl fmt::Debug for PartitionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartitionSettings").finish_non_exhaustive()
    }
}
