//! The one-node log over a disk that fails, fills up, loses power, and forgets nothing it has answered.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use proptest::prelude::*;
use tempfile::TempDir;
use uuid::Uuid;

use common::data_dir::DataDir;
use common::ids::{ClusterId, ControlEpoch, ProducerId};
use common::random::seeded;
use common::seglog::memory::MemoryStorage;
use common::time::{ManualClock, Span, Timestamp};

use super::single::{OpenError, SingleNodeLog, SnapshotPolicy};
use super::*;
use crate::metadata::command::Command;

struct Disk {
    log: MemoryStorage,
    directory: TempDir,
    policy: SnapshotPolicy,
}

impl Disk {
    fn new(after_bytes: u64) -> Disk {
        Disk {
            log: MemoryStorage::new(Arc::new(ManualClock::default())),
            directory: tempfile::tempdir().unwrap(),
            policy: SnapshotPolicy { after_bytes },
        }
    }

    fn try_open(&self) -> Result<(SingleNodeLog, MetadataLog), OpenError> {
        let data_dir = Arc::new(DataDir::open(self.directory.path()).unwrap());
        SingleNodeLog::open(self.log.shared(), data_dir, self.policy, |_| ())
    }

    fn open(&self) -> (SingleNodeLog, MetadataLog) {
        self.try_open().unwrap()
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

fn entry(control_epoch: ControlEpoch, command: Command) -> Entry {
    Entry {
        control_epoch,
        at: Timestamp(0),
        command,
    }
}

fn announce(log: &MetadataLog) -> ControlEpoch {
    let cluster = ClusterId(Uuid::from_u128(1));
    let command = Command::LeaderAnnounce { cluster };
    let committed = block_on(log.propose(entry(ControlEpoch(0), command))).unwrap();
    let Outcome::Announced(epoch) = committed.outcome else {
        panic!("not announced: {committed:?}");
    };
    epoch
}

async fn allocate(log: &MetadataLog, epoch: ControlEpoch) -> Result<i64, ProposeError> {
    let command = Command::AllocProducerIds { count: 1 };
    let committed = log.propose(entry(epoch, command)).await?;
    match committed.outcome {
        Outcome::ProducerIds {
            first: ProducerId(id),
        } => Ok(id),
        other => panic!("no producer id: {other:?}"),
    }
}

#[test]
fn what_was_answered_is_there_after_a_restart_and_nothing_is_given_out_twice() {
    let disk = Disk::new(1 << 20);
    let mut given = Vec::new();
    for _ in 0..3 {
        let (owner, log) = disk.open();
        let epoch = announce(&log);
        for _ in 0..5 {
            given.push(block_on(allocate(&log, epoch)).unwrap());
        }
        assert_eq!(log.view().read(|m| m.control_epoch()), epoch);
        owner.stop();
    }
    assert!(given.is_sorted_by(|a, b| a < b), "{given:?}");
    assert_eq!(given.len(), 15);
}

#[test]
fn proposals_from_everywhere_are_answered_each_with_its_own_outcome() {
    let disk = Disk::new(1 << 20);
    let (owner, log) = disk.open();
    let epoch = announce(&log);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let log = log.clone();
            std::thread::spawn(move || {
                block_on(async {
                    let all = (0..50).map(|_| allocate(&log, epoch));
                    futures_util::future::join_all(all).await
                })
            })
        })
        .collect();
    let mut ids: Vec<i64> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .map(|id| id.unwrap())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 200);
    assert_eq!(log.view().version(), MetadataVersion(201));
    owner.stop();
}

/// Pinned: who changes them decides to leave the metadata of every cluster that there is behind.
#[test]
fn commands_and_snapshots_have_these_bytes() {
    let disk = Disk::new(1 << 20);
    let (owner, log) = disk.open();
    let cluster = ClusterId(Uuid::from_bytes(std::array::from_fn(|at| {
        u8::try_from(at).unwrap()
    })));
    let commands = [
        (0, Command::LeaderAnnounce { cluster }),
        (1, Command::AllocProducerIds { count: 300 }),
    ];
    for (epoch, command) in commands {
        let entry = Entry {
            control_epoch: ControlEpoch(epoch),
            at: Timestamp(1_700_000_000_000).plus(Span(epoch)),
            command,
        };
        block_on(log.propose(entry)).unwrap();
    }
    let snapshot = log.view().read(ClusterMetadata::to_snapshot);
    owner.stop();
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
    assert_eq!(
        hex(&disk.log.contents("00000000000000000000.log")),
        concat!(
            "5e00000000db898982a5696e64657801a5656e74727983ad636f6e74726f6c5f",
            "65706f636800a26174cf0000018bcfe56800a7636f6d6d616e6481af6c656164",
            "65725f616e6e6f756e636581a7636c7573746572c41000010203040506070809",
            "0a0b0c0d0e0f",
            "500000000982844882a5696e64657802a5656e74727983ad636f6e74726f6c5f",
            "65706f636801a26174cf0000018bcfe56801a7636f6d6d616e6481b2616c6c6f",
            "635f70726f64756365725f69647381a5636f756e74cd012c",
        )
    );
    assert_eq!(
        hex(&snapshot),
        concat!(
            // "MSMETA01", the checksum, the metadata.
            "4d534d4554413031235b8e72",
            "8aa7636c7573746572c410000102030405060708090a0b0c0d0e0fa776657273",
            "696f6e02ad636f6e74726f6c5f65706f636801ab6e6578745f776f726b657201",
            "a86e6578745f6a6f6201ad6e6578745f70726f6475636572cd012da7776f726b",
            "65727380a6746f7069637380a46a6f627380a76368616e67657383a76368616e",
            "67656480a772656d6f76656480ae636f6d706c6574655f73696e636500",
        )
    );
}

#[test]
fn the_log_does_not_grow_without_bound() {
    let disk = Disk::new(4_096);
    let (owner, log) = disk.open();
    let epoch = announce(&log);
    let mut most = 0;
    let mut last = 0;
    for _ in 0..1_000 {
        last = block_on(allocate(&log, epoch)).unwrap();
        most = most.max(disk.log.used());
    }
    assert!(most < 4 * 4_096, "the log grew to {most} bytes");
    owner.stop();
    let (_owner, log) = disk.open();
    assert_eq!(log.view().version(), MetadataVersion(1_001));
    let epoch = announce(&log);
    assert_eq!(block_on(allocate(&log, epoch)).unwrap(), last + 1);
}

#[test]
fn a_failed_sync_leaves_the_outcome_open_and_ends_the_log() {
    let disk = Disk::new(1 << 20);
    let (told, failure) = sync_channel(1);
    let data_dir = Arc::new(DataDir::open(disk.directory.path()).unwrap());
    let (owner, log) =
        SingleNodeLog::open(disk.log.shared(), data_dir, disk.policy, move |error| {
            told.send(error.to_string()).unwrap();
        })
        .unwrap();
    let epoch = announce(&log);
    disk.log.fail_syncs(1);
    assert_eq!(block_on(allocate(&log, epoch)), Err(ProposeError::Unknown));
    assert!(failure.recv().unwrap().contains("durable"));
    let after = block_on(allocate(&log, epoch));
    assert!(
        matches!(after, Err(ProposeError::NotAccepted(_))),
        "{after:?}"
    );
    assert_eq!(
        log.view().version(),
        MetadataVersion(1),
        "it was not applied"
    );
    owner.stop();
}

#[test]
fn a_full_disk_refuses_commands_and_takes_them_again_once_there_is_room() {
    let disk = Disk::new(1 << 20);
    let (owner, log) = disk.open();
    let epoch = announce(&log);
    disk.log.set_quota(Some(disk.log.used()));
    let refused = block_on(allocate(&log, epoch));
    let Err(ProposeError::NotAccepted(problem)) = refused else {
        panic!("not refused: {refused:?}");
    };
    assert_eq!(problem.code, ErrorCode::DiskFull);
    disk.log.set_quota(None);
    assert_eq!(block_on(allocate(&log, epoch)), Ok(1));
    owner.stop();
}

#[test]
fn after_the_stop_nothing_is_accepted() {
    let disk = Disk::new(1 << 20);
    let (owner, log) = disk.open();
    let epoch = announce(&log);
    owner.stop();
    let refused = block_on(allocate(&log, epoch));
    assert!(
        matches!(refused, Err(ProposeError::NotAccepted(_))),
        "{refused:?}"
    );
}

/// What is left over names everything that was answered, or the coordinator does not start.
#[test]
fn a_snapshot_or_a_log_that_is_missing_keeps_the_coordinator_from_starting() {
    let disk = Disk::new(1 << 10);
    let snapshot = disk.directory.path().join("metadata.snapshot");
    let (owner, log) = disk.open();
    let epoch = announce(&log);
    while !snapshot.exists() {
        block_on(allocate(&log, epoch)).unwrap();
    }
    let version = log.view().version();
    owner.stop();
    drop(log);

    // The log is empty, because all of it went into the snapshot; then it goes on behind it.
    for commands in 0..2 {
        for _ in 0..commands {
            let (owner, log) = disk.open();
            assert_eq!(log.view().version(), version);
            announce(&log);
            owner.stop();
        }
        let bytes = std::fs::read(&snapshot).unwrap();
        std::fs::remove_file(&snapshot).unwrap();
        let refused = disk.try_open().map(|_| ()).unwrap_err();
        assert!(matches!(refused, OpenError::NoSnapshot), "{refused}");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&snapshot, damaged).unwrap();
            let refused = disk.try_open().map(|_| ()).unwrap_err();
            assert!(matches!(refused, OpenError::Snapshot(_)), "{refused}");
        }
        std::fs::write(&snapshot, bytes).unwrap();
    }
    let fresh = Disk {
        log: MemoryStorage::new(Arc::new(ManualClock::default())),
        ..disk
    };
    let refused = fresh.try_open().map(|_| ()).unwrap_err();
    assert!(
        matches!(refused, OpenError::EndsEarly { end: 0, .. }),
        "{refused}"
    );
}

#[test]
fn damage_below_what_was_answered_keeps_the_coordinator_from_starting() {
    let disk = Disk::new(1 << 20);
    let (owner, log) = disk.open();
    let epoch = announce(&log);
    for _ in 0..10 {
        block_on(allocate(&log, epoch)).unwrap();
    }
    owner.stop();
    drop(log);
    let segment = disk.log.shared().list().unwrap();
    let segment = segment.iter().find(|name| name.ends_with(".log")).unwrap();
    disk.log.flip_bit(segment, 30, 3);
    let refused = disk.try_open().map(|_| ()).unwrap_err();
    assert!(matches!(refused, OpenError::Log(_)), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_power_may_fail_at_any_time_and_no_answer_is_taken_back(
        seed in any::<u64>(),
        lives in prop::collection::vec(0..40_usize, 1..6),
    ) {
        let disk = Disk::new(600);
        let mut random = seeded(seed, 0);
        let mut last = 0;
        for proposals in lives {
            let (owner, log) = disk.open();
            let epoch = announce(&log);
            block_on(async {
                let all = (0..proposals).map(|_| allocate(&log, epoch));
                for id in futures_util::future::join_all(all).await {
                    let id = id.unwrap();
                    assert!(id > last, "{id} after {last}");
                    last = id;
                }
            });
            // Nothing of this life may write any more: what it wrote after the loss would be on a disk that
            // no machine has.
            owner.stop();
            disk.log.lose_power(&mut random);
        }
    }
}
