//! Starts the actors of partitions on the threads that a node has for them.

use std::sync::atomic::{AtomicUsize, Ordering};

use actix::Actor;
use actix_rt::ArbiterHandle;
use common::ids::{NodeId, TopicPartition};
use common::protocol::metadata::PartitionImage;
use common::protocol::topic::TopicConfig;

use super::actor::PartitionActor;
use super::messages::{Assign, PartitionHandle};
use super::settings::PartitionSettings;

/// Messages to one partition before its senders wait.
const MAILBOX: usize = 1_024;

/// Starts partitions' actors on the threads it was given, in turns.
#[derive(Debug)]
pub struct PartitionStarter {
    arbiters: Vec<ArbiterHandle>,
    next: AtomicUsize,
    settings: PartitionSettings,
}

impl PartitionStarter {
    pub fn new(arbiters: Vec<ArbiterHandle>, settings: PartitionSettings) -> PartitionStarter {
        assert!(!arbiters.is_empty(), "partitions need a thread to run on");
        PartitionStarter {
            arbiters,
            next: AtomicUsize::new(0),
            settings,
        }
    }

    /// Starts a partition, which opens its log and queues what comes until that is done.
    pub fn start(
        &self,
        id: TopicPartition,
        me: NodeId,
        image: PartitionImage,
        config: TopicConfig,
    ) -> PartitionHandle {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.arbiters.len();
        let clock = self.settings.clock.clone();
        let settings = self.settings.clone();
        let actor = PartitionActor::start_in_arbiter(&self.arbiters[turn], move |context| {
            context.set_mailbox_capacity(MAILBOX);
            PartitionActor::new(id, me, Assign { image, config }, settings)
        });
        PartitionHandle { id, clock, actor }
    }

    pub fn settings(&self) -> &PartitionSettings {
        &self.settings
    }
}
