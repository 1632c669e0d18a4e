//! The worker's copy of the cluster's facts: a prefix of what the coordinator decided.
//!
//! It only moves forward, one delta after another, and goes on serving when no coordinator is reachable.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::ids::{
    ControlEpoch, JobId, JobName, MetadataVersion, NodeId, TopicId, TopicName, TopicPartition,
};
use common::limits::HOLD_FOR;
use common::offset::Offset;
use common::protocol::metadata::{
    JobImage, MetadataDelta, PartitionImage, TopicHolds, TopicImage, WorkerImage,
};
use common::protocol::task::Deployment;
use common::time::Tick;
use tokio::sync::watch;

/// Everybody's view of the newest image; `changed()` waits for the next one.
pub type ImageWatch = watch::Receiver<Arc<MetadataImage>>;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetadataImage {
    pub control_epoch: ControlEpoch,
    pub version: MetadataVersion,
    pub topics: BTreeMap<TopicId, Arc<TopicImage>>,
    topic_ids: BTreeMap<TopicName, TopicId>,
    pub workers: BTreeMap<NodeId, WorkerImage>,
    pub jobs: BTreeMap<JobId, JobImage>,
    pub deployments: BTreeMap<JobId, Arc<Deployment>>,
    holds: BTreeMap<JobId, Hold>,
}

/// What a job may read again, and since when that is known here.
#[derive(Clone, Debug, PartialEq)]
struct Hold {
    of: Arc<TopicHolds>,
    /// By this worker's own clock: what a coordinator's shows may be years away.
    heard: Tick,
}

impl MetadataImage {
    /// The image after a delta that came at this time; `None` if the delta does not start where this image is.
    pub fn after(&self, delta: MetadataDelta, now: Tick) -> Option<MetadataImage> {
        let mut image = match delta.full {
            true => MetadataImage::default(),
            false if delta.since == self.version => self.clone(),
            false => return None,
        };
        image.control_epoch = delta.control_epoch;
        image.version = delta.version;
        for topic in delta.removed_topics {
            if let Some(removed) = image.topics.remove(&topic) {
                image.topic_ids.remove(&removed.name);
            }
        }
        for topic in delta.topics {
            image.topic_ids.insert(topic.name.clone(), topic.id);
            image.topics.insert(topic.id, Arc::new(topic));
        }
        for worker in delta.removed_workers {
            image.workers.remove(&worker);
        }
        image
            .workers
            .extend(delta.workers.into_iter().map(|worker| (worker.id, worker)));
        for job in delta.removed_jobs {
            image.jobs.remove(&job);
            image.deployments.remove(&job);
            image.holds.remove(&job);
        }
        for job in delta.jobs {
            if !job.running {
                image.deployments.remove(&job.id);
            }
            image.jobs.insert(job.id, job);
        }
        for deployment in delta.deployments {
            image.deployments.insert(deployment.job, deployment);
        }
        for holds in delta.holds {
            let known = self.holds.get(&holds.job);
            let known = known.filter(|known| known.of.at == holds.at);
            let heard = known.map_or(now, |known| known.heard);
            image.holds.insert(holds.job, Hold { of: holds, heard });
        }
        Some(image)
    }

    /// The first record of a partition that some job may read again. Who has not said so for a day is not
    /// waited for any more.
    pub fn held_from(&self, partition: TopicPartition, now: Tick) -> Option<Offset> {
        let topic = &self.topics.get(&partition.topic)?.name;
        let holds = self.holds.values();
        let fresh = holds.filter(|hold| hold.heard.plus(HOLD_FOR) > now);
        let positions = fresh.filter_map(|hold| {
            let of_topic = hold.of.positions.get(topic)?;
            of_topic.get(&partition.partition).copied()
        });
        positions.min()
    }

    pub fn topic(&self, name: &TopicName) -> Option<&Arc<TopicImage>> {
        self.topics.get(self.topic_ids.get(name)?)
    }

    pub fn partition(&self, partition: TopicPartition) -> Option<&PartitionImage> {
        let index = usize::try_from(partition.partition.0).ok()?;
        self.topics.get(&partition.topic)?.partitions.get(index)
    }

    /// Where the partition's leader is reached, if it has a leader that is active.
    pub fn leader(&self, partition: TopicPartition) -> Option<&WorkerImage> {
        self.active(self.partition(partition)?.leader?)
    }

    pub fn active(&self, worker: NodeId) -> Option<&WorkerImage> {
        self.workers.get(&worker).filter(|worker| worker.active)
    }

    pub fn job(&self, name: &JobName) -> Option<&JobImage> {
        self.jobs.values().find(|job| job.name == *name)
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{CheckpointId, Generation, PartitionId};
    use common::protocol::topic::TopicConfig;
    use common::time::Timestamp;
    use uuid::Uuid;

    use super::*;

    fn topic(id: u128, name: &str) -> TopicImage {
        TopicImage {
            id: TopicId(Uuid::from_u128(id)),
            name: TopicName::new(name).unwrap(),
            config: TopicConfig::default(),
            partitions: Vec::new(),
        }
    }

    fn delta(since: u64, version: u64) -> MetadataDelta {
        MetadataDelta {
            since: MetadataVersion(since),
            version: MetadataVersion(version),
            ..MetadataDelta::default()
        }
    }

    #[test]
    fn a_delta_that_starts_elsewhere_changes_nothing() {
        let image = MetadataImage::default()
            .after(delta(0, 5), Tick(0))
            .unwrap();
        assert_eq!(image.after(delta(3, 9), Tick(0)), None);
        assert_eq!(
            image.after(delta(5, 9), Tick(0)).unwrap().version,
            MetadataVersion(9)
        );
    }

    #[test]
    fn a_topic_deleted_and_created_again_is_another_one() {
        let created = MetadataDelta {
            topics: vec![topic(1, "bids")],
            ..delta(0, 1)
        };
        let recreated = MetadataDelta {
            removed_topics: vec![TopicId(Uuid::from_u128(1))],
            topics: vec![topic(2, "bids")],
            ..delta(1, 3)
        };
        let image = MetadataImage::default()
            .after(created, Tick(0))
            .unwrap()
            .after(recreated, Tick(0))
            .unwrap();
        let bids = image.topic(&TopicName::new("bids").unwrap()).unwrap();
        assert_eq!(bids.id, TopicId(Uuid::from_u128(2)));
        assert_eq!(image.topics.len(), 1);
    }

    #[test]
    fn a_full_image_replaces_everything_and_a_job_that_stopped_has_no_deployment() {
        let job = |running| JobImage {
            id: JobId(1),
            name: JobName::new("j").unwrap(),
            generation: Generation(1),
            completed: Some(CheckpointId(4)),
            finals: BTreeMap::new(),
            running,
            deleted: false,
        };
        let deployment = Arc::new(Deployment {
            job: JobId(1),
            name: JobName::new("j").unwrap(),
            generation: Generation(1),
            version: MetadataVersion(1),
            restore: None,
            savepoint: None,
            graph: common::plan::task_graph::TaskGraph::default(),
            tasks: Vec::new(),
            standbys: BTreeMap::new(),
            next: None,
            still: false,
            checkpoint_interval: common::time::Span::from_secs(1),
        });
        let started = MetadataDelta {
            jobs: vec![job(true)],
            deployments: vec![deployment],
            ..delta(0, 1)
        };
        let image = MetadataImage::default().after(started, Tick(0)).unwrap();
        assert_eq!(image.deployments.len(), 1);
        let stopped = MetadataDelta {
            jobs: vec![job(false)],
            ..delta(1, 2)
        };
        assert!(
            image
                .after(stopped, Tick(0))
                .unwrap()
                .deployments
                .is_empty()
        );
        let full = MetadataDelta {
            full: true,
            ..delta(0, 7)
        };
        assert!(image.after(full, Tick(0)).unwrap().jobs.is_empty());
    }

    /// A coordinator whose clock was years behind made nobody hold anything: when it was said counts by the clock of
    /// who hears it.
    #[test]
    fn a_partition_is_held_from_where_the_slowest_job_is_and_for_a_day() {
        let clicks = topic(1, "clicks");
        let partition = |number| TopicPartition {
            topic: clicks.id,
            partition: PartitionId(number),
        };
        let hold = |job, at, position| {
            let positions = [(PartitionId(0), Offset(position))];
            Arc::new(TopicHolds {
                job: JobId(job),
                at: Timestamp(at),
                positions: [(clicks.name.clone(), positions.into())].into(),
            })
        };
        let told = |since, holds| MetadataDelta {
            full: since == 0,
            topics: vec![clicks.clone()],
            holds,
            ..delta(since, since + 1)
        };
        let image = MetadataImage::default();
        let image = image.after(told(0, vec![hold(1, 0, 50)]), Tick(0)).unwrap();
        let image = image
            .after(told(1, vec![hold(2, -5, 70)]), Tick(1_000))
            .unwrap();
        // What is said again is not news.
        let again = told(0, vec![hold(1, 0, 50), hold(2, -5, 70)]);
        let image = image.after(again, Tick(2_000)).unwrap();
        let held = |image: &MetadataImage, now| image.held_from(partition(0), Tick(now));
        assert_eq!(held(&image, 2_000), Some(Offset(50)));
        assert_eq!(held(&image, HOLD_FOR.0), Some(Offset(70)));
        assert_eq!(held(&image, HOLD_FOR.0 + 1_000), None);
        assert_eq!(image.held_from(partition(1), Tick(2_000)), None);
        let image = image
            .after(told(1, vec![hold(1, 9, 60)]), Tick(3_000))
            .unwrap();
        assert_eq!(held(&image, HOLD_FOR.0 + 2_000), Some(Offset(60)));
    }
}
