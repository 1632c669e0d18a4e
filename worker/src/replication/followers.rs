//! Which worker each partition here follows, as the metadata says: one actor per worker that is followed.

use std::collections::BTreeMap;

use common::ids::{LeaderEpoch, NodeId, PartitionId, TopicPartition};

use super::follower_actor::{FollowerHandle, FollowerSettings, Leader};
use crate::metadata_image::{ImageWatch, MetadataImage};

/// Everything of this worker that follows.
#[derive(Debug)]
pub struct Followers {
    settings: FollowerSettings,
    running: BTreeMap<NodeId, FollowerHandle>,
}

impl Followers {
    pub fn new(settings: FollowerSettings) -> Followers {
        Followers {
            settings,
            running: BTreeMap::new(),
        }
    }

    /// Opens, closes and tells partitions what the facts say, and has them follow, until nobody gives any more.
    pub async fn run(mut self, mut image: ImageWatch) {
        let (me, partitions) = (
            self.settings.session.worker,
            self.settings.partitions.clone(),
        );
        loop {
            let newest = image.borrow_and_update().clone();
            partitions.apply(me, &newest).await;
            self.apply(&newest).await;
            if image.changed().await.is_err() {
                return;
            }
        }
    }

    async fn apply(&mut self, image: &MetadataImage) {
        let mut wanted = followed(self.settings.session.worker, image);
        for (worker, follower) in std::mem::take(&mut self.running) {
            let replicas = wanted.remove(&worker).unwrap_or_default();
            let goes_on = !replicas.is_empty();
            follower.follow(leader(worker, image), replicas).await;
            if goes_on {
                self.running.insert(worker, follower);
            }
        }
        for (worker, replicas) in wanted {
            let Some(leader) = leader(worker, image) else {
                continue;
            };
            let follower = FollowerHandle::start(self.settings.clone(), leader);
            follower.follow(None, replicas).await;
            self.running.insert(worker, follower);
        }
    }
}

fn leader(worker: NodeId, image: &MetadataImage) -> Option<Leader> {
    let known = image.workers.get(&worker)?;
    Some(Leader {
        worker,
        epoch: known.epoch,
        address: known.address.clone(),
    })
}

/// What `me` has a replica of that another worker leads, by that worker.
pub fn followed(
    me: NodeId,
    image: &MetadataImage,
) -> BTreeMap<NodeId, BTreeMap<TopicPartition, LeaderEpoch>> {
    let mut followed: BTreeMap<NodeId, BTreeMap<TopicPartition, LeaderEpoch>> = BTreeMap::new();
    for topic in image.topics.values() {
        for (number, partition) in (0..).map(PartitionId).zip(&topic.partitions) {
            let Some(leader) = partition.leader else {
                continue;
            };
            if leader == me || !partition.replicas.contains(&me) {
                continue;
            }
            let id = TopicPartition {
                topic: topic.id,
                partition: number,
            };
            let of_leader = followed.entry(leader).or_default();
            of_leader.insert(id, partition.leader_epoch);
        }
    }
    followed
}
