//! A leader with real partitions, and what it says to followers that come, go and repeat themselves.

use std::sync::Arc;

use actix_rt::{Arbiter, System};
use common::error::ErrorCode;
use common::ids::{
    LeaderEpoch, NodeId, PartitionEpoch, PartitionId, TopicId, TopicName, TopicPartition,
    WorkerEpoch,
};
use common::log_batch::{LogBatch, LogBatchBuilder};
use common::offset::Offset;
use common::protocol::metadata::{MetadataDelta, PartitionImage, TopicImage, WorkerImage};
use common::protocol::produce::Acks;
use common::protocol::replicate::{ReplicaNews, ReplicaPosition, Replicate, Replicated, Verdict};
use common::protocol::topic::TopicConfig;
use common::seglog::memory::MemoryStorage;
use common::time::{Span, SystemClock, Tick, Timestamp};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use super::isr_proposals::isr_proposals;
use super::sessions::Sessions;
use crate::metadata_image::MetadataImage;
use crate::partition::actors::PartitionStarter;
use crate::partition::age_clock::AgeClock;
use crate::partition::messages::PartitionHandle;
use crate::partition::registry::Partitions;
use crate::partition::settings::PartitionSettings;

const LEADER: NodeId = NodeId(1);
const FOLLOWER: NodeId = NodeId(2);
const EPOCH: LeaderEpoch = LeaderEpoch(3);
const ID: TopicPartition = TopicPartition {
    topic: TopicId(Uuid::from_u128(1)),
    partition: PartitionId(0),
};
/// Longer than anything takes, shorter than the sessions' own bound.
const LONG: Span = Span::from_secs(2);

fn led_by(leader: NodeId, leader_epoch: LeaderEpoch) -> PartitionImage {
    PartitionImage {
        replicas: vec![LEADER, FOLLOWER],
        isr: vec![LEADER, FOLLOWER],
        leader: Some(leader),
        leader_epoch,
        partition_epoch: PartitionEpoch(leader_epoch.0.unsigned_abs()),
        ..PartitionImage::default()
    }
}

/// One node of two, as one of them sees it, with its log in memory.
async fn node(me: NodeId) -> (Partitions, tempfile::TempDir) {
    node_on(Arc::new(Semaphore::new(4)), me).await
}

/// `disk`: for what is done to it at once.
async fn node_on(disk: Arc<Semaphore>, me: NodeId) -> (Partitions, tempfile::TempDir) {
    let clock = SystemClock::shared();
    let storage = MemoryStorage::new(clock.clone());
    let worker = |id| WorkerImage {
        id,
        epoch: WorkerEpoch(1),
        address: String::new(),
        active: true,
    };
    let delta = MetadataDelta {
        workers: vec![worker(LEADER), worker(FOLLOWER)],
        topics: vec![TopicImage {
            id: ID.topic,
            name: TopicName::new("t").unwrap(),
            config: TopicConfig::default(),
            partitions: vec![led_by(LEADER, EPOCH)],
        }],
        ..MetadataDelta::default()
    };
    let image = Arc::new(MetadataImage::default().after(delta, Tick(0)).unwrap());
    // Nobody changes it any more.
    let (_, watched) = watch::channel(image.clone());
    let settings = PartitionSettings {
        isr: isr_proposals().0,
        ages: Arc::new(AgeClock::open(clock.clone(), None)),
        clock,
        image: watched,
        store: None,
        storage: Arc::new(move |_| Ok(storage.shared())),
        disk,
        on_disk_failure: Arc::new(|failure| panic!("{failure}")),
    };
    let home = tempfile::tempdir().unwrap();
    let starter = PartitionStarter::new(vec![Arbiter::current()], settings);
    let partitions = Partitions::new(home.path().join("partitions"), starter).unwrap();
    partitions.apply(me, &image).await;
    (partitions, home)
}

fn with_leader<F: Future<Output = ()>>(test: impl FnOnce(Sessions, PartitionHandle) -> F) {
    System::new().block_on(async {
        let (partitions, _home) = node(LEADER).await;
        let partition = partitions.get(ID).unwrap();
        test(Sessions::new(SystemClock::shared(), partitions), partition).await;
    });
}

fn batch(value: &str) -> LogBatch {
    let mut builder = LogBatchBuilder::new();
    builder.push(Timestamp(5), None, Some(value.as_bytes()), &[]);
    builder.build()
}

fn at(log_end: i64) -> ReplicaPosition {
    ReplicaPosition {
        partition: ID,
        leader_epoch: EPOCH,
        log_end: Offset(log_end),
        last_epoch: (log_end > 0).then_some(EPOCH),
        durable: Offset(log_end),
        committed: Offset(0),
    }
}

fn call(session: u64, number: u64, positions: &[ReplicaPosition]) -> Replicate {
    Replicate {
        from: FOLLOWER,
        from_epoch: WorkerEpoch(1),
        session,
        number,
        positions: positions.to_vec(),
        wait: LONG,
    }
}

fn only(reply: Replicated) -> (ReplicaNews, usize) {
    let bytes = reply.batches.len();
    let [news] = &reply.news[..] else {
        panic!("{reply:?}");
    };
    (news.clone(), bytes)
}

/// The news of a position, however long its log takes to be opened, and the number of the session's next call.
async fn news(
    sessions: &Sessions,
    session: u64,
    position: ReplicaPosition,
) -> (Verdict, usize, u64) {
    let mut next = call(session, 0, &[position]);
    loop {
        let number = next.number + 1;
        let reply = sessions.answer(next).await.unwrap();
        next = match reply.news.is_empty() {
            true => call(session, number, &[]),
            false => match only(reply) {
                (
                    ReplicaNews {
                        verdict: Verdict::Refused { .. },
                        ..
                    },
                    _,
                ) => call(session, number, &[position]),
                (news, bytes) => {
                    assert_eq!(news.at, position);
                    return (news.verdict, bytes, number);
                }
            },
        };
    }
}

#[test]
fn what_is_appended_is_acknowledged_when_the_follower_says_that_it_has_it() {
    with_leader(|sessions, partition| async move {
        let appended = tokio::spawn(async move {
            let appended = partition.append(batch("a"), Acks::All, None).await;
            appended.map(|placed| placed.base_offset)
        });
        let (verdict, bytes, number) = news(&sessions, 1, at(0)).await;
        let Verdict::Continues {
            bytes: said,
            committed,
        } = verdict
        else {
            panic!("{verdict:?}");
        };
        assert_eq!((said as usize, committed), (bytes, Offset(0)));
        assert!(bytes > 0 && !appended.is_finished());
        let next = call(1, number, &[at(1)]);
        let told = tokio::spawn(async move { sessions.answer(next).await });
        assert_eq!(appended.await.unwrap().unwrap(), Offset(0));
        // And hears of it, though there is nothing else.
        let (news, bytes) = only(told.await.unwrap().unwrap());
        let committed = Offset(1);
        assert_eq!(
            news.verdict,
            Verdict::Continues {
                bytes: 0,
                committed
            }
        );
        assert_eq!(bytes, 0);
    });
}

#[test]
fn a_follower_that_went_another_way_is_told_where_and_one_that_knows_a_later_reign_waits() {
    with_leader(|sessions, partition| async move {
        partition
            .append(batch("a"), Acks::Leader, None)
            .await
            .unwrap();
        let other = ReplicaPosition {
            last_epoch: Some(LeaderEpoch(2)),
            ..at(7)
        };
        let (verdict, ..) = news(&sessions, 1, other).await;
        assert!(
            matches!(verdict, Verdict::Diverges { end: Offset(0), .. }),
            "{verdict:?}"
        );
        let later = ReplicaPosition {
            leader_epoch: LeaderEpoch(4),
            ..at(0)
        };
        let reply = sessions.answer(call(2, 0, &[later])).await.unwrap();
        let (news, _) = only(reply);
        let Verdict::Refused { problem } = news.verdict else {
            panic!("{news:?}");
        };
        assert_eq!(problem.code, ErrorCode::MetadataStale);
    });
}

#[test]
fn a_later_call_takes_the_place_of_the_one_before() {
    with_leader(|sessions, _| async move {
        let mut waiting = Box::pin(sessions.answer(call(1, 0, &[])));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let short = Replicate {
            wait: Span(1),
            ..call(1, 1, &[])
        };
        assert!(sessions.answer(short).await.unwrap().news.is_empty());
        assert!(waiting.await.unwrap().news.is_empty());
    });
}

/// A follower that dies is nearly always in the middle of a call: its positions were watched for ever.
#[test]
fn a_call_whose_caller_is_gone_is_over() {
    with_leader(|sessions, _| async move {
        let mut first = Box::pin(sessions.answer(call(1, 0, &[])));
        let polled = futures_util::poll!(&mut first);
        assert!(polled.is_pending());
        assert!(sessions.is_asked_by(FOLLOWER));
        drop(first);
        assert!(!sessions.is_asked_by(FOLLOWER));
    });
}

#[test]
fn sessions_that_are_not_known_and_lives_that_have_ended_are_refused() {
    with_leader(|sessions, _| async move {
        let code = |answer: Result<Replicated, common::error::Problem>| answer.unwrap_err().code;
        let short = |call: Replicate| Replicate {
            wait: Span(1),
            ..call
        };
        let unknown = sessions.answer(call(1, 1, &[])).await;
        assert_eq!(code(unknown), ErrorCode::Conflict);
        sessions.answer(short(call(1, 0, &[]))).await.unwrap();
        sessions.answer(short(call(2, 0, &[]))).await.unwrap();
        let replaced = sessions.answer(call(1, 1, &[])).await;
        assert_eq!(code(replaced), ErrorCode::Conflict);
        let next_life = Replicate {
            from_epoch: WorkerEpoch(2),
            ..call(3, 0, &[])
        };
        sessions.answer(short(next_life)).await.unwrap();
        let ended = sessions.answer(call(2, 1, &[])).await;
        assert_eq!(code(ended), ErrorCode::FencedWorkerEpoch);
    });
}

/// What the leader says is done at the follower, whose log is its leader's then.
#[test]
fn a_follower_does_what_it_is_told_and_says_where_it_is_then() {
    with_leader(|sessions, leader| async move {
        let (followers, _home) = node(FOLLOWER).await;
        let follower = followers.get(ID).unwrap();
        let position = loop {
            match follower.position(EPOCH).await {
                Ok(position) => break position,
                // Its log is being opened.
                Err(problem) => assert_eq!(problem.code, ErrorCode::MetadataStale),
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(position, at(0));
        // The leader has become a follower since, and its log has another's batches.
        let mut later = batch("z");
        later.stamp(Offset(0), LeaderEpoch(4));
        let verdict = Verdict::Continues {
            bytes: 0,
            committed: Offset(0),
        };
        let refused = follower.apply(position, verdict, later.bytes().clone());
        assert_eq!(refused.await.unwrap_err().code, ErrorCode::MetadataStale);
        for value in ["a", "b", "c"] {
            leader
                .append(batch(value), Acks::Leader, None)
                .await
                .unwrap();
        }
        let mut next = position;
        let mut session = 0;
        while next.log_end < Offset(3) {
            session += 1;
            let reply = sessions.answer(call(session, 0, &[next])).await.unwrap();
            if reply.news.is_empty() {
                continue;
            }
            let (told, verdict, batches) = reply.into_each().next().unwrap();
            next = follower.apply(told, verdict, batches).await.unwrap();
            // Told once more, it is not done again.
            let verdict = Verdict::Continues {
                bytes: 0,
                committed: Offset(0),
            };
            let again = follower.apply(told, verdict, Default::default()).await;
            assert_eq!(again.unwrap_err().code, ErrorCode::MetadataStale);
        }
        assert_eq!((next.durable, next.last_epoch), (Offset(3), Some(EPOCH)));
        let refused = follower.append(batch("d"), Acks::All, None).await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::NotLeader);
        assert!(follower.position(LeaderEpoch(4)).await.is_err());
    });
}

/// Said before, it was not said again once it was: if its leader had nothing more, what it has was never committed.
#[test]
fn a_replica_that_has_led_says_where_it_is_when_all_of_that_is_safe() {
    System::new().block_on(async {
        let disk = Arc::new(Semaphore::new(1));
        let (partitions, _home) = node_on(disk.clone(), LEADER).await;
        let partition = partitions.get(ID).unwrap();
        // It is open then.
        partition
            .append(batch("a"), Acks::Leader, None)
            .await
            .unwrap();
        // Whoever wants to use the disk does so in turn: the next batch is written, and then not synced.
        let first = disk.clone().acquire_owned().await.unwrap();
        let mut written = Box::pin(partition.append(batch("b"), Acks::Leader, None));
        assert!(futures_util::poll!(&mut written).is_pending());
        // Messages are taken in order: the append waits for the disk when this is answered.
        partition.offsets(None).await.unwrap();
        let mut second = Box::pin(disk.clone().acquire_owned());
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        written.await.unwrap();
        let second = second.await.unwrap();
        let next = LeaderEpoch(4);
        partition
            .assign(led_by(FOLLOWER, next), TopicConfig::default())
            .await
            .unwrap();
        let mut position = Box::pin(partition.position(next));
        assert!(futures_util::poll!(&mut position).is_pending());
        partition.offsets(None).await.unwrap_err();
        assert!(futures_util::poll!(&mut position).is_pending());
        drop(second);
        let position = position.await.unwrap();
        assert_eq!((position.log_end, position.durable), (Offset(2), Offset(2)));
    });
}
