//! The log of a group of one over a disk that fails, fills up, loses power, and forgets nothing it has answered.

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

use common::ids::CoordinatorId;
use common::transport::client::Transport;

use super::*;
use crate::metadata::command::Command;
use crate::raft::records::Belongs;
use crate::raft::types::Member;
use crate::raft::{Group, GroupThread, OpenError, SnapshotPolicy};

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
            policy: SnapshotPolicy {
                after_bytes,
                entries_kept: 2,
            },
        }
    }

    fn try_open_telling(
        &self,
        on_failure: impl FnOnce() + Send + 'static,
    ) -> Result<(GroupThread, Group, MetadataLog), OpenError> {
        let data_dir = Arc::new(DataDir::open(self.directory.path()).unwrap());
        let transport = Transport::start("test").unwrap();
        GroupThread::open(
            self.log.shared(),
            data_dir,
            self.policy,
            transport,
            on_failure,
        )
    }

    fn try_open(&self) -> Result<(GroupThread, Group, MetadataLog), OpenError> {
        self.try_open_telling(|| ())
    }

    fn open(&self) -> (GroupThread, MetadataLog) {
        let (owner, group, log) = self.try_open().unwrap();
        lead(&group);
        (owner, log)
    }
}

/// Takes part in a group of one.
fn lead(group: &Group) {
    let me = Belongs {
        cluster: ClusterId(Uuid::from_u128(1)),
        coordinator: CoordinatorId(1),
    };
    let group = group.clone();
    let leading = group.clone().wait(async move {
        group.begin(me).await?;
        if !group
            .form([(me.coordinator, Member::default())].into())
            .await?
        {
            group.elect().await?;
        }
        group.leads().await
    });
    leading.unwrap();
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
    assert_eq!(log.view().version(), MetadataVersion(epoch.0 + 200));
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
    let announced = Command::LeaderAnnounce { cluster };
    let epoch = block_on(log.propose(entry(ControlEpoch(0), announced)))
        .unwrap()
        .index
        .0;
    let allocated = Entry {
        control_epoch: ControlEpoch(epoch),
        at: Timestamp(1_700_000_000_000).plus(Span(1)),
        command: Command::AllocProducerIds { count: 300 },
    };
    block_on(log.propose(allocated)).unwrap();
    let snapshot = log.view().read(ClusterMetadata::to_snapshot);
    owner.stop();
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
    assert_eq!(
        hex(&disk.log.contents("00000000000000000000.log")),
        concat!(
            // Whose it is; the members; the vote of the only one, and that it counts; the leader's first entry.
            "3100000038d7ece981a762656c6f6e677382a7636c7573746572c41000000000",
            "000000000000000000000001ab636f6f7264696e61746f7201",
            "6300000026dfd86481a5656e74727982a66c6f675f696482a96c65616465725f",
            "696482a47465726d00a76e6f64655f696400a5696e64657800a77061796c6f61",
            "6481aa4d656d6265727368697082a7636f6e66696773919101a56e6f64657381",
            "0181a761646472657373a0",
            "2c000000a0d2a48381a4766f746582a96c65616465725f696482a47465726d01",
            "a76e6f64655f696401a9636f6d6d6974746564c2",
            "2c000000a351cf7181a4766f746582a96c65616465725f696482a47465726d01",
            "a76e6f64655f696401a9636f6d6d6974746564c3",
            "3f0000004ba2be2881a5656e74727982a66c6f675f696482a96c65616465725f",
            "696482a47465726d01a76e6f64655f696401a5696e64657801a77061796c6f61",
            "64a5426c616e6b",
            // The commands.
            "8900000022711d3f81a5656e74727982a66c6f675f696482a96c65616465725f",
            "696482a47465726d01a76e6f64655f696401a5696e64657802a77061796c6f61",
            "6481a64e6f726d616c83ad636f6e74726f6c5f65706f636800a2617400a7636f",
            "6d6d616e6481af6c65616465725f616e6e6f756e636581a7636c7573746572c4",
            "10000102030405060708090a0b0c0d0e0f",
            "83000000719fca2981a5656e74727982a66c6f675f696482a96c65616465725f",
            "696482a47465726d01a76e6f64655f696401a5696e64657803a77061796c6f61",
            "6481a64e6f726d616c83ad636f6e74726f6c5f65706f636802a26174cf000001",
            "8bcfe56801a7636f6d6d616e6481b2616c6c6f635f70726f64756365725f6964",
            "7381a5636f756e74cd012c",
        )
    );
    assert_eq!(
        hex(&snapshot),
        concat!(
            // "MSMETA01", the checksum, the metadata.
            "4d534d4554413031bf053fef",
            "8ca7636c7573746572c410000102030405060708090a0b0c0d0e0fa776657273",
            "696f6e03ad636f6e74726f6c5f65706f636802ab6e6578745f776f726b657201",
            "a86e6578745f6a6f6201ad6e6578745f70726f6475636572cd012db06e657874",
            "5f636f6f7264696e61746f7202ac636f6f7264696e61746f72738101a0a7776f",
            "726b65727380a6746f7069637380a46a6f627380a76368616e67657383a76368",
            "616e67656480a772656d6f76656480ae636f6d706c6574655f73696e636500",
        )
    );
}

#[test]
fn the_log_does_not_grow_without_bound() {
    let disk = Disk::new(16 << 10);
    let (owner, log) = disk.open();
    let epoch = announce(&log);
    let mut last = 0;
    // What is decided while a snapshot is written makes the log longer for a moment, and no longer than that.
    for _ in 0..20 {
        for _ in 0..100 {
            last = block_on(allocate(&log, epoch)).unwrap();
        }
        let mut tries = 0;
        while disk.log.used() > 3 * (16 << 10) {
            last = block_on(allocate(&log, epoch)).unwrap();
            tries += 1;
            assert!(tries < 10_000, "the log grew to {} bytes", disk.log.used());
        }
    }
    let version = log.view().version();
    owner.stop();
    let (_owner, log) = disk.open();
    let epoch = announce(&log);
    assert!(log.view().version() > version);
    assert_eq!(block_on(allocate(&log, epoch)).unwrap(), last + 1);
}

#[test]
fn a_failed_sync_leaves_the_outcome_open_and_ends_the_log() {
    let disk = Disk::new(1 << 20);
    let (told, failure) = sync_channel(1);
    let (owner, group, log) = disk
        .try_open_telling(move || told.send(()).unwrap())
        .unwrap();
    lead(&group);
    let epoch = announce(&log);
    disk.log.fail_syncs(1);
    assert_eq!(block_on(allocate(&log, epoch)), Err(ProposeError::Unknown));
    failure.recv().unwrap();
    let after = block_on(allocate(&log, epoch));
    assert!(
        matches!(after, Err(ProposeError::NotAccepted(_))),
        "{after:?}"
    );
    assert_eq!(
        log.view().version(),
        MetadataVersion(epoch.0),
        "it was not applied"
    );
    owner.stop();
}

/// The one command that finds the disk full waits for room, and nobody can say what becomes of it; the ones
/// behind it are refused.
#[test]
fn a_full_disk_refuses_commands_and_takes_them_again_once_there_is_room() {
    let disk = Disk::new(1 << 20);
    let (owner, group, log) = disk.try_open().unwrap();
    lead(&group);
    let epoch = announce(&log);
    disk.log.set_quota(Some(disk.log.used()));
    block_on(async {
        let mut full = group.disk_full();
        let first = allocate(&log, epoch);
        let others = async {
            full.wait_for(|full| *full).await.unwrap();
            let Err(ProposeError::NotAccepted(problem)) = allocate(&log, epoch).await else {
                panic!("it was not refused");
            };
            assert_eq!(problem.code, ErrorCode::DiskFull);
            disk.log.set_quota(None);
            full.wait_for(|full| !*full).await.unwrap();
            assert_eq!(allocate(&log, epoch).await, Ok(2));
        };
        let (first, ()) = futures_util::future::join(first, others).await;
        assert_eq!(first, Ok(1));
    });
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
    // The log goes on behind the snapshot, and what is in it is purged a moment later.
    let first = "00000000000000000000.log";
    while !snapshot.exists() || disk.log.shared().list().unwrap().iter().any(|f| f == first) {
        block_on(allocate(&log, epoch)).unwrap();
    }
    owner.stop();
    drop(log);

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
        assert!(refused.is_damage(), "{refused}");
    }
    std::fs::write(&snapshot, bytes).unwrap();
    disk.open();
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
