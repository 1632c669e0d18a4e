//! Partitions as their users meet them: actors, real threads, and disks that fail when told to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use actix_rt::{Arbiter, System};
use common::error::ErrorCode;
use common::ids::{
    CheckpointId, Generation, JobId, JobName, LeaderEpoch, MetadataVersion, NodeId, PartitionEpoch,
    PartitionId, ProducerEpoch, ProducerId, TopicId, TopicName, TopicPartition, WorkerEpoch,
};
use common::kv::MemoryStore;
use common::log_batch::{LogBatch, LogBatchBuilder, LogBatches, ProducerStamp};
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::producer_id::InternalPid;
use common::protocol::fetch::FetchBatches;
use common::protocol::metadata::{
    JobImage, MetadataDelta, PartitionImage, TopicImage, WorkerImage,
};
use common::protocol::produce::Acks;
use common::protocol::topic::TopicConfig;
use common::seglog::memory::MemoryStorage;
use common::time::{Span, SystemClock, Tick, Timestamp};
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use super::actors::PartitionStarter;
use super::age_clock::AgeClock;
use super::messages::PartitionHandle;
use super::registry::{Partitions, directories};
use super::settings::PartitionSettings;
use crate::metadata_image::MetadataImage;
use crate::replication::isr_proposals::isr_proposals;

const ME: NodeId = NodeId(1);
const TOPIC: TopicId = TopicId(Uuid::from_u128(1));
const ID: TopicPartition = TopicPartition {
    topic: TOPIC,
    partition: PartitionId(0),
};

/// A node with one thread for partitions, on a disk in memory.
struct Node {
    storage: MemoryStorage,
    image: watch::Sender<Arc<MetadataImage>>,
    settings: PartitionSettings,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Node {
    fn new() -> Node {
        let clock = SystemClock::shared();
        let storage = MemoryStorage::new(clock.clone());
        let (image, watch) = watch::channel(Arc::new(MetadataImage::default()));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let settings = PartitionSettings {
            isr: isr_proposals().0,
            ages: Arc::new(AgeClock::open(clock.clone(), None)),
            clock,
            image: watch,
            store: Some(Arc::new(MemoryStore::new())),
            storage: {
                let storage = storage.clone();
                Arc::new(move |_| Ok(storage.shared()))
            },
            disk: Arc::new(Semaphore::new(4)),
            on_disk_failure: {
                let failures = failures.clone();
                Arc::new(move |failure| failures.lock().unwrap().push(failure.to_owned()))
            },
        };
        Node {
            storage,
            image,
            settings,
            failures,
        }
    }

    fn start(&self) -> PartitionHandle {
        let starter = PartitionStarter::new(vec![Arbiter::current()], self.settings.clone());
        starter.start(ID, ME, led_by(ME, 1), TopicConfig::default())
    }
}

fn led_by(leader: NodeId, epoch: i32) -> PartitionImage {
    PartitionImage {
        replicas: vec![ME],
        isr: vec![ME],
        leader: Some(leader),
        leader_epoch: LeaderEpoch(epoch),
        partition_epoch: PartitionEpoch(u32::try_from(epoch).unwrap()),
        ..PartitionImage::default()
    }
}

fn batch(builder: LogBatchBuilder, values: &[&str]) -> LogBatch {
    let mut builder = builder;
    for value in values {
        builder.push(Timestamp(5), None, Some(value.as_bytes()), &[]);
    }
    builder.build()
}

fn plain(values: &[&str]) -> LogBatch {
    batch(LogBatchBuilder::new(), values)
}

fn fetch(offset: i64, wait: Span) -> FetchBatches {
    FetchBatches {
        partition: ID,
        offset: Offset(offset),
        max_bytes: 1 << 20,
        wait,
        isolation: Isolation::ReadCommitted,
    }
}

async fn read(partition: &PartitionHandle, offset: i64, wait: Span) -> Vec<String> {
    let fetched = partition.fetch(&fetch(offset, wait)).await.unwrap();
    let mut values = Vec::new();
    for batch in LogBatches::new(fetched.batches) {
        for record in batch.unwrap().records().unwrap().iter() {
            let record = record.unwrap();
            if record.offset >= Offset(offset) {
                let value = record.value.unwrap_or_default();
                values.push(String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    values
}

#[test]
fn what_was_acknowledged_is_read_back_also_after_a_loss_of_power() {
    System::new().block_on(async {
        let node = Node::new();
        let partition = node.start();
        for (acks, value, offset) in [
            (Acks::All, "a", 0),
            (Acks::Leader, "b", 1),
            (Acks::All, "c", 2),
        ] {
            let appended = partition.append(plain(&[value]), acks, None).await.unwrap();
            assert_eq!(appended.base_offset, Offset(offset));
        }
        assert_eq!(read(&partition, 0, Span(0)).await, ["a", "b", "c"]);
        node.storage.lose_power(&mut common::random::seeded(1, 1));
        // The old actor's files are gone with the power; a new one finds what was acknowledged.
        let partition = node.start();
        assert_eq!(read(&partition, 1, Span(0)).await, ["b", "c"]);
        let offsets = partition.offsets(Some(Timestamp(5))).await.unwrap();
        assert_eq!(offsets.log_end_offset, Offset(3));
        assert_eq!(
            (offsets.committed_offset, offsets.at),
            (Offset(3), Some(Offset(0)))
        );
        assert_eq!(node.failures.lock().unwrap().len(), 0);
    });
}

#[test]
fn a_reader_at_the_end_waits_for_the_next_record_and_no_longer() {
    System::new().block_on(async {
        let node = Node::new();
        let partition = node.start();
        assert!(read(&partition, 0, Span(1)).await.is_empty());
        let long = Span::from_secs(30);
        let (read, appended) = futures_util::join!(
            read(&partition, 0, long),
            partition.append(plain(&["late"]), Acks::All, None)
        );
        assert_eq!(read, ["late"]);
        appended.unwrap();
        let beyond = partition.fetch(&fetch(7, long)).await.unwrap_err();
        assert_eq!(beyond.code, ErrorCode::OffsetOutOfRange);
    });
}

#[test]
fn appends_that_come_together_share_syncs_and_keep_their_order() {
    System::new().block_on(async {
        let node = Node::new();
        let syncs = Arc::new(AtomicUsize::new(0));
        let counting = counting::CountingStorage::shared(node.storage.shared(), syncs.clone());
        let settings = PartitionSettings {
            isr: isr_proposals().0,
            storage: Arc::new(move |_| Ok(counting.clone())),
            ..node.settings.clone()
        };
        let starter = PartitionStarter::new(vec![Arbiter::current()], settings);
        let partition = starter.start(ID, ME, led_by(ME, 1), TopicConfig::default());
        partition
            .append(plain(&["first"]), Acks::All, None)
            .await
            .unwrap();
        let before = syncs.load(Ordering::Relaxed);
        let appends = (0..500).map(|n| {
            let partition = partition.clone();
            async move {
                let value = n.to_string();
                partition.append(plain(&[&value]), Acks::All, None).await
            }
        });
        let appended = join_all(appends).await;
        for (n, appended) in (1..).zip(appended) {
            assert_eq!(appended.unwrap().base_offset, Offset(n));
        }
        let used = syncs.load(Ordering::Relaxed) - before;
        assert!(used < 50, "{used} syncs for 500 appends");
    });
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged() {
    System::new().block_on(async {
        let node = Node::new();
        let partition = node.start();
        partition
            .append(plain(&["kept"]), Acks::All, None)
            .await
            .unwrap();
        node.storage.fail_syncs(1);
        let lost = partition.append(plain(&["lost"]), Acks::All, None).await;
        assert_eq!(lost.unwrap_err().code, ErrorCode::Internal);
        assert_eq!(node.failures.lock().unwrap().len(), 1);
        let after = partition.append(plain(&["after"]), Acks::All, None).await;
        assert!(after.is_err());
    });
}

#[test]
fn a_full_disk_refuses_appends_until_there_is_room() {
    System::new().block_on(async {
        let node = Node::new();
        let partition = node.start();
        partition
            .append(plain(&["1"]), Acks::All, None)
            .await
            .unwrap();
        node.storage.set_quota(Some(node.storage.used() + 20));
        let refused = partition.append(plain(&["2"]), Acks::All, None).await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::DiskFull);
        assert_eq!(read(&partition, 0, Span(0)).await, ["1"]);
        node.storage.set_quota(None);
        let appended = partition
            .append(plain(&["3"]), Acks::All, None)
            .await
            .unwrap();
        assert_eq!(appended.base_offset, Offset(1));
        assert!(node.failures.lock().unwrap().is_empty());
    });
}

#[test]
fn a_producer_that_is_behind_is_told_in_which_way() {
    System::new().block_on(async {
        let node = Node::new();
        let partition = node.start();
        let send = |epoch, sequence| {
            let stamp = ProducerStamp {
                id: ProducerId(7),
                epoch: ProducerEpoch(epoch),
                base_sequence: sequence,
            };
            let batch = batch(LogBatchBuilder::new().producer(stamp), &["x"]);
            partition.append(batch, Acks::All, None)
        };
        for sequence in 0..20 {
            send(2, sequence).await.unwrap();
        }
        assert!(send(2, 19).await.unwrap().duplicate);
        for (epoch, sequence, code) in [
            (2, 0, ErrorCode::DuplicateSequence),
            (2, 99, ErrorCode::OutOfOrderSequence),
            (1, 20, ErrorCode::FencedProducer),
        ] {
            let refused = send(epoch, sequence).await.unwrap_err();
            assert_eq!(refused.code, code, "{refused}");
        }
        assert_eq!(read(&partition, 0, Span(0)).await.len(), 20);
    });
}

#[test]
fn a_partition_whose_disk_is_busy_takes_so_much_and_one_that_closes_takes_nothing() {
    System::new().block_on(async {
        let node = Node::new();
        let disk = Arc::new(Semaphore::new(0));
        let settings = PartitionSettings {
            isr: isr_proposals().0,
            disk: disk.clone(),
            ..node.settings.clone()
        };
        let starter = PartitionStarter::new(vec![Arbiter::current()], settings);
        let partition = starter.start(ID, ME, led_by(ME, 1), TopicConfig::default());
        let large = "x".repeat(15 << 20);
        let mut appends: FuturesUnordered<_> = (0..5)
            .map(|_| partition.append(plain(&[&large]), Acks::All, None))
            .collect();
        // Nothing else is answered while the disk is away.
        let refused = appends.next().await.unwrap().unwrap_err();
        assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");

        let closing = partition.close();
        let late = async {
            let late = partition.append(plain(&["late"]), Acks::All, None).await;
            disk.add_permits(4);
            late.unwrap_err()
        };
        let ((), late) = futures_util::join!(closing, late);
        assert_eq!(late.code, ErrorCode::ShuttingDown, "{late}");
        // What had been taken before is written all the same.
        while let Some(appended) = appends.next().await {
            appended.unwrap();
        }
        let closed = partition.append(plain(&["x"]), Acks::All, None).await;
        assert_eq!(closed.unwrap_err().code, ErrorCode::LeaderUnavailable);
    });
}

#[test]
fn a_partition_that_lost_its_leadership_says_so() {
    System::new().block_on(async {
        let node = Node::new();
        let partition = node.start();
        partition
            .append(plain(&["1"]), Acks::All, None)
            .await
            .unwrap();
        let stale = partition
            .append(plain(&["x"]), Acks::All, Some(LeaderEpoch(0)))
            .await;
        assert_eq!(stale.unwrap_err().code, ErrorCode::FencedLeaderEpoch);
        let waiting = async {
            let long = fetch(1, Span::from_secs(30));
            partition.fetch(&long).await
        };
        let deposing = async {
            // The fetch has been asked first: both go through one mailbox.
            let image = led_by(NodeId(2), 2);
            partition
                .assign(image, TopicConfig::default())
                .await
                .unwrap();
        };
        let (waited, ()) = futures_util::join!(waiting, deposing);
        assert_eq!(waited.unwrap_err().code, ErrorCode::NotLeader);
        let refused = partition.append(plain(&["2"]), Acks::All, None).await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::NotLeader);
    });
}

fn job(generation: u32, completed: u64) -> JobImage {
    JobImage {
        id: JobId(1),
        name: JobName::new("job").unwrap(),
        generation: Generation(generation),
        completed: Some(CheckpointId(completed)),
        finals: BTreeMap::from([(Generation(1), Some(CheckpointId(4)))]),
        running: true,
        deleted: false,
    }
}

impl Node {
    fn learn(&self, delta: MetadataDelta) {
        let image = self.image.borrow().clone();
        let delta = MetadataDelta {
            since: image.version,
            version: MetadataVersion(image.version.0 + 1),
            ..delta
        };
        self.image
            .send_replace(Arc::new(image.after(delta, Tick(0)).unwrap()));
    }
}

#[test]
fn a_completed_checkpoint_lets_readers_see_what_was_written_before_it() {
    System::new().block_on(async {
        let node = Node::new();
        node.learn(MetadataDelta {
            jobs: vec![job(1, 3)],
            ..MetadataDelta::default()
        });
        let partition = node.start();
        let write = |label, slot, value: &'static str| {
            let pid = InternalPid {
                job: JobId(1),
                generation: Generation(1),
                task: 0,
                slot,
                label: CheckpointId(label),
            };
            let (id, epoch) = pid.encode().unwrap();
            let stamp = ProducerStamp {
                id,
                epoch,
                base_sequence: 0,
            };
            let batch = batch(LogBatchBuilder::new().transactional(stamp), &[value]);
            partition.append(batch, Acks::All, None)
        };
        write(4, 0, "of 4").await.unwrap();
        write(5, 1, "of 5").await.unwrap();
        assert!(read(&partition, 0, Span(1)).await.is_empty());

        let long = Span::from_secs(30);
        let complete = async {
            node.learn(MetadataDelta {
                jobs: vec![job(1, 4)],
                ..MetadataDelta::default()
            });
        };
        let (seen, ()) = futures_util::join!(read(&partition, 0, long), complete);
        assert_eq!(seen, ["of 4"]);

        // The generation is replaced before 5 completes: what was written for it never happened.
        node.learn(MetadataDelta {
            jobs: vec![job(2, 4)],
            ..MetadataDelta::default()
        });
        let (after, marked) = futures_util::join!(
            read(&partition, 1, long),
            partition.append(plain(&["plain"]), Acks::All, None)
        );
        marked.unwrap();
        assert_eq!(after, ["plain"]);
        let late = write(6, 2, "late").await.unwrap_err();
        assert_eq!(late.code, ErrorCode::FencedGeneration);
    });
}

fn topic(id: u128, name: &str, partitions: usize) -> TopicImage {
    TopicImage {
        id: TopicId(Uuid::from_u128(id)),
        name: TopicName::new(name).unwrap(),
        config: TopicConfig::default(),
        partitions: vec![led_by(ME, 1); partitions],
    }
}

fn names(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn partitions_come_and_go_with_their_topics_and_outlive_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("partitions");
    System::new().block_on(async {
        let node = Node::new();
        let settings = PartitionSettings {
            isr: isr_proposals().0,
            storage: directories(directory.clone()),
            ..node.settings.clone()
        };
        let starter = || PartitionStarter::new(vec![Arbiter::current()], settings.clone());
        let partitions = Partitions::new(directory.clone(), starter()).unwrap();
        let worker = WorkerImage {
            id: ME,
            epoch: WorkerEpoch(1),
            address: String::new(),
            active: true,
        };
        node.learn(MetadataDelta {
            workers: vec![worker],
            topics: vec![topic(1, "kept", 2), topic(2, "gone", 1)],
            ..MetadataDelta::default()
        });
        let image = node.image.borrow().clone();
        partitions.apply(ME, &image).await;
        for id in [1, 2] {
            let partition = TopicPartition {
                topic: TopicId(Uuid::from_u128(id)),
                partition: PartitionId(0),
            };
            let handle = partitions.get(partition).unwrap();
            handle.append(plain(&["1"]), Acks::All, None).await.unwrap();
        }
        partitions
            .get(TopicPartition {
                partition: PartitionId(1),
                ..ID
            })
            .unwrap()
            .offsets(None)
            .await
            .unwrap();
        assert_eq!(names(&directory), 3);

        node.learn(MetadataDelta {
            removed_topics: vec![TopicId(Uuid::from_u128(2))],
            ..MetadataDelta::default()
        });
        let image = node.image.borrow().clone();
        partitions.apply(ME, &image).await;
        assert_eq!(names(&directory), 2);
        partitions.close().await;
        assert!(partitions.get(ID).is_none());

        // While the node was away, another topic's deletion went unheard.
        std::fs::create_dir(directory.join(format!("{}-0", Uuid::from_u128(9)))).unwrap();
        let partitions = Partitions::new(directory.clone(), starter()).unwrap();
        partitions.apply(ME, &image).await;
        let kept = partitions.get(ID).unwrap();
        assert_eq!(read(&kept, 0, Span(0)).await, ["1"]);
        assert_eq!(names(&directory), 2);
        partitions.close().await;
    });
}

/// A disk that counts how often it is asked to be sure.
mod counting {
    use std::io::{self, IoSlice};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use common::seglog::storage::{LogFile, LogStorage};
    use common::time::Timestamp;

    #[derive(Debug)]
    pub(super) struct CountingStorage {
        inner: Arc<dyn LogStorage>,
        syncs: Arc<AtomicUsize>,
    }

    #[derive(Debug)]
    struct CountingFile {
        inner: Arc<dyn LogFile>,
        syncs: Arc<AtomicUsize>,
    }

    impl CountingStorage {
        pub(super) fn shared(
            inner: Arc<dyn LogStorage>,
            syncs: Arc<AtomicUsize>,
        ) -> Arc<dyn LogStorage> {
            Arc::new(CountingStorage { inner, syncs })
        }

        fn file(&self, inner: Arc<dyn LogFile>) -> Arc<dyn LogFile> {
            Arc::new(CountingFile {
                inner,
                syncs: self.syncs.clone(),
            })
        }
    }

    impl LogStorage for CountingStorage {
        fn list(&self) -> io::Result<Vec<String>> {
            self.inner.list()
        }
        fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
            self.inner.create(name).map(|file| self.file(file))
        }
        fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
            self.inner.open(name).map(|file| self.file(file))
        }
        fn remove(&self, name: &str) -> io::Result<()> {
            self.inner.remove(name)
        }
        fn sync_directory(&self) -> io::Result<()> {
            self.inner.sync_directory()
        }
        fn write_note(&self, name: &str, note: &[u8], durable: bool) -> io::Result<()> {
            self.inner.write_note(name, note, durable)
        }
        fn read_note(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
            self.inner.read_note(name)
        }
    }

    impl LogFile for CountingFile {
        fn append(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.inner.append(slices)
        }
        fn read_exact_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
            self.inner.read_exact_at(offset, len)
        }
        fn bytes(&self) -> io::Result<u64> {
            self.inner.bytes()
        }
        fn created(&self) -> io::Result<Timestamp> {
            self.inner.created()
        }
        fn truncate(&self, len: u64) -> io::Result<()> {
            self.inner.truncate(len)
        }
        fn sync(&self) -> io::Result<()> {
            self.syncs.fetch_add(1, Ordering::Relaxed);
            self.inner.sync()
        }
    }
}
