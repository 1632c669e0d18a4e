//! What holds for all facts, whatever the commands were: stories of reigns, batches and images, and random histories.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::ids::{
    CheckpointId, ClusterId, Generation, JobId, LeaderEpoch, MetadataVersion, NodeId,
    PartitionEpoch, PartitionId, TopicId, TopicName, WorkerEpoch,
};
use common::offset::Offset;
use common::protocol::job::JobState;
use common::protocol::metadata::{
    JobImage, LogEnd, MetadataDelta, PartitionImage, TopicImage, WorkerImage,
};
use common::protocol::replicate::{IsrChange, LogEndReport};
use common::protocol::task::Deployment;
use common::protocol::topic::{Durability, TopicConfig, UncleanRecovery};
use proptest::prelude::*;
use uuid::Uuid;

use super::ClusterMetadata;
use super::command::{Command, Entry, Outcome, Registration, Rejection};
use super::jobs::Desired;
use super::nodes::WorkerStatus;
use super::savepoints::SavepointOutcome;
use super::test_history::{
    History, complete, create_job, create_topic, end, first_of, location, registration, restored,
    start_generation,
};

#[test]
fn commands_of_a_former_reign_change_nothing() {
    let mut history = History::announced();
    let (worker, epoch) = history.active_worker(10);
    let old = history.metadata.control_epoch();
    history.announce();
    let before = history.metadata.delta_since(MetadataVersion(0));
    let outcome = history.entry(old, Command::FenceWorker { worker, epoch });
    assert!(matches!(outcome, Err(Rejection::StaleControlEpoch { .. })));
    let after = history.metadata.delta_since(MetadataVersion(0));
    assert_eq!(after.version.0, before.version.0 + 1);
    assert_eq!(
        (after.workers, after.topics),
        (before.workers, before.topics)
    );
}

#[test]
fn a_batch_takes_effect_as_a_whole_or_not_at_all() {
    let mut history = History::announced();
    let (worker, epoch) = history.active_worker(10);
    let topic = create_topic(TopicId(Uuid::from_u128(50)), "t", &[&[worker]]);
    let fails = Command::FenceWorker {
        worker,
        epoch: WorkerEpoch(epoch.0 + 100),
    };
    let refused = history.command(Command::Batch(vec![topic.clone(), fails]));
    assert!(matches!(refused, Err(Rejection::FencedWorkerEpoch { .. })));
    assert_eq!(history.metadata.topics_by_name().count(), 0);
    let done = history.command(Command::Batch(vec![topic, create_job("j")]));
    assert!(
        matches!(&done, Ok(Outcome::Batch(all)) if all.len() == 2),
        "{done:?}"
    );
    let nested = Command::Batch(vec![Command::Batch(Vec::new())]);
    assert_eq!(history.command(nested), Err(Rejection::NestedBatch));
}

#[test]
fn a_reader_from_before_what_is_remembered_is_told_everything() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let kept = history.topic("kept", &[&[worker]]);
    let early = history.metadata.version();
    for number in 0..1_100 {
        let topic = history.topic(&format!("t{number}"), &[&[worker]]);
        history.command(Command::DeleteTopic { id: topic }).unwrap();
    }
    let delta = history.metadata.delta_since(early);
    assert!(delta.full && delta.topics.len() == 1 && delta.topics[0].id == kept);
    let recent = MetadataVersion(history.metadata.version().0 - 4);
    let delta = history.metadata.delta_since(recent);
    assert!(!delta.full && delta.removed_topics.len() == 2, "{delta:?}");
    // And so is one that is ahead: the coordinator has lost its data, or is another one.
    let ahead = MetadataVersion(history.metadata.version().0 + 1);
    assert!(history.metadata.delta_since(ahead).full);
}

/// A worker's image, as deltas make it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Image {
    version: MetadataVersion,
    topics: BTreeMap<TopicId, TopicImage>,
    workers: BTreeMap<NodeId, WorkerImage>,
    jobs: BTreeMap<JobId, JobImage>,
    deployments: BTreeMap<JobId, Arc<Deployment>>,
}

impl Image {
    fn follow(&mut self, delta: MetadataDelta) {
        if delta.full {
            *self = Image::default();
        } else {
            assert_eq!(delta.since, self.version);
        }
        self.version = delta.version;
        self.topics
            .extend(delta.topics.into_iter().map(|t| (t.id, t)));
        self.workers
            .extend(delta.workers.into_iter().map(|w| (w.id, w)));
        self.deployments
            .extend(delta.deployments.into_iter().map(|d| (d.job, d)));
        for topic in delta.removed_topics {
            self.topics.remove(&topic);
        }
        for job in delta.jobs {
            if !job.running {
                self.deployments.remove(&job.id);
            }
            self.jobs.insert(job.id, job);
        }
    }

    fn of(metadata: &ClusterMetadata) -> Image {
        let mut image = Image::default();
        let mut everything = metadata.delta_since(MetadataVersion(u64::MAX));
        assert!(everything.full);
        everything.since = MetadataVersion(0);
        image.follow(everything);
        image
    }
}

/// What somebody may ask for, before it is known whether the facts allow it.
#[derive(Clone, Debug)]
enum Intent {
    Announce,
    Register {
        storage: u8,
        incarnation: u8,
    },
    Fence {
        worker: u32,
        stale: bool,
    },
    Unfence {
        worker: u32,
        stale: bool,
    },
    Create {
        topic: u8,
        partitions: u8,
        worker: u32,
    },
    Grow {
        topic: u8,
        worker: u32,
    },
    Delete {
        topic: u8,
    },
    /// `members`: which of the partition's replicas.
    AlterIsr {
        topic: u8,
        members: [bool; 4],
        /// Every suspect has everything again.
        recovers: bool,
        stale: bool,
    },
    Report {
        topic: u8,
        worker: u32,
        log_end: i32,
        stale: bool,
    },
    Recover {
        topic: u8,
        leader: Option<u32>,
    },
    Prefer {
        most: u8,
    },
    Quarantine {
        worker: u32,
        quarantined: bool,
    },
    Reassign {
        topic: u8,
        workers: Vec<u32>,
    },
    Deploy {
        job: u8,
    },
    Want {
        job: u32,
        desired: Desired,
    },
    Start {
        job: u32,
        worker: u32,
        stale: bool,
    },
    Run {
        job: u32,
    },
    Reserve {
        job: u32,
    },
    Complete {
        job: u32,
        ahead: u8,
        worker: u32,
    },
    End {
        job: u32,
        state: JobState,
        failure: bool,
    },
    DeleteJob {
        job: u32,
    },
    Restore {
        job: u32,
    },
    BeginSavepoint {
        job: u32,
    },
    EndSavepoint {
        job: u32,
    },
    Producers {
        count: u8,
    },
}

fn intent() -> impl Strategy<Value = Intent> {
    let worker = 1..4_u32;
    let job = 1..4_u32;
    let desired = prop::sample::select(vec![
        Desired::Running,
        Desired::Paused,
        Desired::Stopped,
        Desired::Cancelled,
    ]);
    let ended = prop::sample::select(vec![
        JobState::Waiting,
        JobState::Recovering,
        JobState::Paused,
        JobState::Stopped,
        JobState::Finished,
        JobState::Failed,
        JobState::Cancelled,
    ]);
    prop_oneof![
        1 => Just(Intent::Announce),
        3 => (0..4_u8, 0..2_u8).prop_map(|(storage, incarnation)| Intent::Register { storage, incarnation }),
        2 => (worker.clone(), any::<bool>()).prop_map(|(worker, stale)| Intent::Fence { worker, stale }),
        4 => (worker.clone(), prop::bool::weighted(0.2)).prop_map(|(worker, stale)| Intent::Unfence { worker, stale }),
        3 => (0..4_u8, 1..4_u8, worker.clone()).prop_map(|(topic, partitions, worker)| Intent::Create { topic, partitions, worker }),
        1 => (0..4_u8, worker.clone()).prop_map(|(topic, worker)| Intent::Grow { topic, worker }),
        1 => (0..4_u8).prop_map(|topic| Intent::Delete { topic }),
        6 => (0..4_u8, any::<[bool; 4]>(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(topic, members, recovers, stale)| Intent::AlterIsr { topic, members, recovers, stale }),
        4 => (0..4_u8, worker.clone(), 0..4_i32, prop::bool::weighted(0.2))
            .prop_map(|(topic, worker, log_end, stale)| Intent::Report { topic, worker, log_end, stale }),
        1 => (0..4_u8, prop::option::of(worker.clone()))
            .prop_map(|(topic, leader)| Intent::Recover { topic, leader }),
        2 => (0..3_u8).prop_map(|most| Intent::Prefer { most }),
        1 => (worker.clone(), any::<bool>())
            .prop_map(|(worker, quarantined)| Intent::Quarantine { worker, quarantined }),
        3 => (0..4_u8, prop::sample::subsequence(vec![1, 2, 3], 1..=3).prop_shuffle())
            .prop_map(|(topic, workers)| Intent::Reassign { topic, workers }),
        2 => (0..3_u8).prop_map(|job| Intent::Deploy { job }),
        1 => (job.clone(), desired).prop_map(|(job, desired)| Intent::Want { job, desired }),
        4 => (job.clone(), worker.clone(), prop::bool::weighted(0.2)).prop_map(|(job, worker, stale)| Intent::Start { job, worker, stale }),
        2 => job.clone().prop_map(|job| Intent::Run { job }),
        2 => job.clone().prop_map(|job| Intent::Reserve { job }),
        4 => (job.clone(), 0..3_u8, worker).prop_map(|(job, ahead, worker)| Intent::Complete { job, ahead, worker }),
        1 => (job.clone(), ended, any::<bool>()).prop_map(|(job, state, failure)| Intent::End { job, state, failure }),
        1 => job.clone().prop_map(|job| Intent::Restore { job }),
        1 => job.clone().prop_map(|job| Intent::BeginSavepoint { job }),
        1 => job.clone().prop_map(|job| Intent::EndSavepoint { job }),
        1 => job.prop_map(|job| Intent::DeleteJob { job }),
        1 => (0..9_u8).prop_map(|count| Intent::Producers { count }),
    ]
}

impl Intent {
    /// The command, as somebody who knows the facts would write it, or who knows older ones.
    fn command(&self, metadata: &ClusterMetadata) -> Command {
        let epoch = |worker: u32, stale: bool| {
            let current = metadata.worker(NodeId(worker)).map_or(0, |row| row.epoch.0);
            WorkerEpoch(current.saturating_sub(u64::from(stale)))
        };
        let name = |topic: u8| TopicName::new(format!("t{topic}")).unwrap();
        let topic_id = |topic: u8| {
            let row = metadata.topic_named(&name(topic));
            row.map_or(TopicId(Uuid::nil()), |row| row.id)
        };
        let generation = |job: u32, stale: bool| {
            let current = metadata.job(JobId(job)).map_or(0, |row| row.generation.0);
            Generation(current.saturating_sub(u32::from(stale)))
        };
        // Of the odd ones, records are acknowledged in memory.
        let config = |topic: u8| TopicConfig {
            durability: match topic % 2 {
                0 => Durability::Fsync,
                _ => Durability::Replicated,
            },
            unclean_recovery: match topic {
                3 => UncleanRecovery::Manual,
                _ => UncleanRecovery::Balanced,
            },
            ..TopicConfig::default()
        };
        let completed = |job: u32| metadata.job(JobId(job)).and_then(|row| row.completed);
        match *self {
            Intent::Announce => Command::LeaderAnnounce {
                cluster: ClusterId(Uuid::from_u128(1)),
            },
            Intent::Register {
                storage,
                incarnation,
            } => Command::RegisterWorker(Registration {
                incarnation: Uuid::from_u128(u128::from(incarnation)),
                ..registration(u128::from(storage))
            }),
            Intent::Fence { worker, stale } => Command::FenceWorker {
                worker: NodeId(worker),
                epoch: epoch(worker, stale),
            },
            Intent::Unfence { worker, stale } => Command::UnfenceWorker {
                worker: NodeId(worker),
                epoch: epoch(worker, stale),
            },
            Intent::Create {
                topic,
                partitions,
                worker,
            } => Command::CreateTopic {
                id: TopicId(Uuid::from_u128(u128::from(metadata.version().0) + 1000)),
                name: name(topic),
                config: config(topic),
                replicas: vec![vec![NodeId(worker), NodeId(worker % 3 + 1)]; partitions.into()],
            },
            Intent::Grow { topic, worker } => Command::AlterTopic {
                id: topic_id(topic),
                config: config(topic),
                partitions: 1,
                added: vec![vec![NodeId(worker)]],
            },
            Intent::Delete { topic } => Command::DeleteTopic {
                id: topic_id(topic),
            },
            Intent::AlterIsr {
                topic,
                members,
                recovers,
                stale,
            } => {
                let row = metadata.topic_named(&name(topic));
                let partition = row.map(|row| row.partitions[0].clone());
                let leader = partition.as_ref().and_then(|partition| partition.leader);
                let worker = leader.unwrap_or(NodeId(1));
                let changes = partition.into_iter().map(|partition| {
                    let replicas = partition.replicas.iter().zip(members);
                    let wanted = replicas.filter(|(node, member)| *member || **node == worker);
                    let current = partition.partition_epoch.0;
                    let earlier = PartitionEpoch(current.saturating_sub(u32::from(stale)));
                    IsrChange {
                        partition: first_of(topic_id(topic)),
                        leader_epoch: partition.leader_epoch,
                        partition_epoch: earlier,
                        isr: wanted
                            .map(|(node, _)| (*node, epoch(node.0, false)))
                            .collect(),
                        recovered: partition
                            .suspect
                            .iter()
                            .copied()
                            .filter(|node| recovers || node.0 == 2)
                            .collect(),
                    }
                });
                Command::AlterIsr {
                    worker,
                    epoch: epoch(worker.0, false),
                    changes: changes.collect(),
                    log_ends: Vec::new(),
                }
            }
            Intent::Report {
                topic,
                worker,
                log_end,
                stale,
            } => {
                let row = metadata.topic_named(&name(topic));
                let partition_epoch = row.map_or(0, |row| row.partitions[0].partition_epoch.0);
                let earlier = partition_epoch.saturating_sub(u32::from(stale));
                Command::AlterIsr {
                    worker: NodeId(worker),
                    epoch: epoch(worker, false),
                    changes: Vec::new(),
                    log_ends: vec![LogEndReport {
                        partition: first_of(topic_id(topic)),
                        partition_epoch: PartitionEpoch(earlier),
                        log_end: LogEnd {
                            last_epoch: Some(LeaderEpoch(log_end % 2)),
                            log_end: Offset(log_end.into()),
                        },
                    }],
                }
            }
            Intent::Recover { topic, leader } => Command::RecoverPartition {
                id: topic_id(topic),
                partition: PartitionId(0),
                leader: leader.map(NodeId),
            },
            Intent::Quarantine {
                worker,
                quarantined,
            } => Command::QuarantineWorker {
                worker: NodeId(worker),
                quarantined,
            },
            Intent::Prefer { most } => Command::PreferLeaders { most: most.into() },
            Intent::Reassign { topic, ref workers } => {
                let row = metadata.topic_named(&name(topic));
                let count = row.map_or(1, |row| row.partitions.len());
                let target: Vec<NodeId> = workers.iter().copied().map(NodeId).collect();
                Command::Reassign {
                    id: topic_id(topic),
                    targets: vec![target; count],
                }
            }
            Intent::Deploy { job } => create_job(&format!("j{job}")),
            Intent::Want { job, desired } => Command::SetDesired {
                job: JobId(job),
                desired,
            },
            Intent::Start { job, worker, stale } => start_generation(
                JobId(job),
                generation(job, stale),
                completed(job),
                NodeId(worker),
            ),
            Intent::Run { job } => Command::GenerationRuns {
                job: JobId(job),
                generation: generation(job, false),
            },
            Intent::Reserve { job } => Command::ReserveEpochs {
                job: JobId(job),
                generation: generation(job, false),
            },
            Intent::Complete { job, ahead, worker } => complete(
                JobId(job),
                generation(job, false),
                completed(job).map_or(0, |c| c.0) + u64::from(ahead),
                NodeId(worker),
            ),
            Intent::End {
                job,
                state,
                failure,
            } => end(
                JobId(job),
                generation(job, false),
                state,
                failure.then_some("failed"),
            ),
            Intent::Restore { job } => Command::RestoreJob {
                job: JobId(job),
                generation: generation(job, false),
                restored: restored(),
            },
            Intent::BeginSavepoint { job } => Command::BeginSavepoint {
                job: JobId(job),
                id: Uuid::from_u128(metadata.version().0.into()),
                location: location(),
                archive: metadata.version().0.is_multiple_of(2),
            },
            Intent::EndSavepoint { job } => {
                let row = metadata.job(JobId(job));
                let under_way = row.and_then(|row| row.savepoint_under_way());
                Command::EndSavepoint {
                    job: JobId(job),
                    id: under_way.map_or(Uuid::nil(), |savepoint| savepoint.id),
                    outcome: SavepointOutcome::Complete {
                        place: location(),
                        generation: generation(job, false),
                        checkpoint: completed(job).unwrap_or_default(),
                        bytes: 3,
                    },
                }
            }
            Intent::DeleteJob { job } => Command::DeleteJob { job: JobId(job) },
            Intent::Producers { count } => Command::AllocProducerIds {
                count: count.into(),
            },
        }
    }
}

/// What holds in every state, and from one state to the next. `recovers`: somebody has taken loss into account.
fn check(before: &ClusterMetadata, after: &ClusterMetadata, recovers: bool) {
    assert_eq!(after.version().0, before.version().0 + 1);
    for topic in after.topics_by_name() {
        for (number, partition) in topic.partitions.iter().enumerate() {
            assert!(partition.isr.len() >= topic.config.min_insync_replicas as usize);
            let replicas: BTreeSet<NodeId> = partition.replicas.iter().copied().collect();
            assert!(partition.isr.iter().all(|node| replicas.contains(node)));
            let suspect = |node: &NodeId| partition.suspect.contains(node);
            if let Some(leader) = partition.leader {
                assert!(partition.isr.contains(&leader) && after.is_active(leader));
                assert!(!suspect(&leader) && partition.log_ends.is_empty());
            } else {
                let could = |node: &NodeId| after.is_active(*node) && !suspect(node);
                assert!(!partition.isr.iter().any(could), "it could be led");
            }
            let in_sync = |node| partition.isr.contains(node);
            assert!(partition.suspect.iter().all(in_sync));
            assert!(
                partition
                    .log_ends
                    .keys()
                    .all(|node| replicas.contains(node))
            );
            let earlier = before
                .topic(topic.id)
                .and_then(|t| t.partitions.get(number));
            // What replicas say of their logs changes nothing else, or has one of them lead.
            let but_for_said = |earlier: &PartitionImage| PartitionImage {
                log_ends: partition.log_ends.clone(),
                ..earlier.clone()
            };
            if let Some(earlier) = earlier.filter(|earlier| but_for_said(earlier) != *partition) {
                let doubted = earlier
                    .isr
                    .iter()
                    .all(|node| earlier.suspect.contains(node));
                let unclean = partition.unclean != earlier.unclean;
                assert!(!unclean || earlier.leader.is_none());
                assert!(!unclean || doubted || recovers, "somebody had everything");
                assert!(partition.partition_epoch > earlier.partition_epoch);
                let same_leader = partition.leader == earlier.leader;
                let same_reign = partition.leader_epoch == earlier.leader_epoch;
                assert!(same_leader || !same_reign);
                // Nothing else ends a reign than another leader and a move; replicas that go always do.
                let some_went = earlier.replicas.iter().any(|node| !replicas.contains(node));
                let moved = before.topic(topic.id).map(|earlier| &earlier.moving)
                    != Some(&topic.moving)
                    || earlier.replicas != partition.replicas;
                assert!(same_reign || !same_leader || moved);
                assert!(!some_went || !same_reign);
                assert!(partition.leader_epoch >= earlier.leader_epoch);
            }
        }
    }
    for worker in after.workers() {
        let Some(earlier) = before.worker(worker.id) else {
            assert_eq!(worker.epoch.0, after.version().0);
            continue;
        };
        assert_eq!(earlier.storage, worker.storage);
        assert!(worker.epoch >= earlier.epoch);
        let came_back =
            earlier.status == WorkerStatus::Fenced && worker.status != WorkerStatus::Fenced;
        assert!(
            !came_back || worker.epoch > earlier.epoch,
            "an ended epoch lives again"
        );
    }
    for job in after.jobs.values() {
        let Some(earlier) = before.job(job.id) else {
            continue;
        };
        assert!(job.generation >= earlier.generation && job.completed >= earlier.completed);
        assert!(job.completed <= Some(job.reserved));
        assert!(
            job.deployment
                .as_ref()
                .is_none_or(|d| d.generation == job.generation)
        );
        assert!(!job.state.is_terminal() || job.deployment.is_none());
        // What was decided of a transaction stays decided.
        let (then, now) = (earlier.image(), job.image());
        for generation in (0..=then.generation.0).map(Generation) {
            for checkpoint in (0..12).map(CheckpointId) {
                if let Some(decided) = then.counts(generation, checkpoint) {
                    assert_eq!(now.counts(generation, checkpoint), Some(decided));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_is_asked_for_the_invariants_hold_and_every_image_is_a_state_of_the_log(
        intents in prop::collection::vec((intent(), any::<bool>()), 1..120),
    ) {
        let mut history = History::announced();
        let mut image = Image::default();
        for (intent, follows) in intents {
            let before = history.metadata.clone();
            let command = intent.command(&before);
            let recovers = matches!(command, Command::RecoverPartition { .. });
            let outcome = history.command(command);
            if outcome.is_err() {
                let mut unchanged = before.clone();
                unchanged.version = history.metadata.version();
                prop_assert_eq!(&unchanged, &history.metadata);
            }
            check(&before, &history.metadata, recovers);
            if follows {
                image.follow(history.metadata.delta_since(image.version));
                prop_assert_eq!(&image, &Image::of(&history.metadata));
            }
        }
    }

    #[test]
    fn the_same_commands_give_the_same_bytes_and_a_snapshot_with_its_tail_gives_what_all_of_them_give(
        intents in prop::collection::vec(intent(), 1..80),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut history = History::announced();
        for intent in intents {
            let command = intent.command(&history.metadata);
            let _outcome = history.command(command);
        }
        let replay = |mut metadata: ClusterMetadata, entries: &[Entry]| {
            for entry in entries {
                let index = MetadataVersion(metadata.version().0 + 1);
                let _outcome = metadata.apply(index, entry);
            }
            metadata
        };
        let cut = cut.index(history.entries.len());
        let (head, tail) = history.entries.split_at(cut);
        let prefix = replay(ClusterMetadata::default(), head);
        let restored = ClusterMetadata::from_snapshot(&prefix.to_snapshot()).unwrap();
        prop_assert_eq!(&restored, &prefix);
        let restored = replay(restored, tail);
        prop_assert_eq!(&restored, &history.metadata);
        prop_assert_eq!(restored.to_snapshot(), history.metadata.to_snapshot());
    }
}

#[test]
fn a_damaged_snapshot_is_told_from_a_sound_one() {
    let mut history = History::announced();
    history.active_worker(10);
    let sound = history.metadata.to_snapshot();
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x10;
        assert!(
            ClusterMetadata::from_snapshot(&damaged).is_err(),
            "byte {at}"
        );
        assert!(
            ClusterMetadata::from_snapshot(&sound[..at]).is_err(),
            "cut at {at}"
        );
    }
}
