//! The log store against openraft's own suite, over restarts, torn tails at every byte, and damage.

use std::sync::Arc;

use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{EntryPayload, RaftLogReader};
use tempfile::TempDir;
use uuid::Uuid;

use common::data_dir::DataDir;
use common::ids::{ClusterId, CoordinatorId};
use common::random::seeded;
use common::seglog::frame::frame_header;
use common::seglog::memory::MemoryStorage;
use common::seglog::{Options, SegLog};
use common::time::ManualClock;

use super::log_store::{LogStore, log_id};
use super::records::{Belongs, Record};
use super::state_machine::StateMachine;
use super::types::{Entry, StorageError, TypeConfig, Vote};
use super::*;

const SEGMENT_BYTES: u64 = 400;

fn memory() -> MemoryStorage {
    MemoryStorage::new(Arc::new(ManualClock::default()))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn blank(term: u64, index: u64) -> Entry {
    openraft::Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Blank,
    }
}

fn belongs() -> Belongs {
    Belongs {
        cluster: ClusterId(Uuid::from_u128(7)),
        coordinator: CoordinatorId(1),
    }
}

fn open(disk: &MemoryStorage) -> LogStore {
    LogStore::open(disk.shared(), SEGMENT_BYTES).unwrap()
}

async fn append(log: &mut LogStore, entries: impl IntoIterator<Item = (u64, u64)>) {
    let entries: Vec<Entry> = entries.into_iter().map(|(t, i)| blank(t, i)).collect();
    log.blocking_append(entries).await.unwrap();
}

async fn ids(log: &mut LogStore) -> Vec<(u64, u64)> {
    let entries = log.try_get_log_entries(..).await.unwrap();
    let id = |entry: &Entry| (entry.log_id.leader_id.term, entry.log_id.index);
    entries.iter().map(id).collect()
}

struct Fresh;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Fresh {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = Arc::new(DataDir::open(directory.path()).unwrap());
        let log = open(&memory());
        let (machine, _) = StateMachine::open(data_dir, log.clone()).unwrap();
        Ok((directory, log, machine))
    }
}

#[test]
fn openrafts_own_suite_passes() {
    Suite::test_all(Fresh).unwrap();
}

#[test]
fn votes_entries_and_truncations_are_there_after_a_restart() {
    let disk = memory();
    block_on(async {
        let mut log = open(&disk);
        assert!(log.is_new());
        log.belong(belongs()).await.unwrap();
        log.save_vote(&Vote::new(1, CoordinatorId(1)))
            .await
            .unwrap();
        append(&mut log, (0..10).map(|index| (1, index))).await;
        log.truncate(log_id(1, 7)).await.unwrap();
        log.save_vote(&Vote::new_committed(2, CoordinatorId(3)))
            .await
            .unwrap();
        append(&mut log, (7..9).map(|index| (2, index))).await;
    });
    for _ in 0..2 {
        block_on(async {
            let mut log = open(&disk);
            assert_eq!(log.belongs(), Some(belongs()));
            let vote = log.read_vote().await.unwrap();
            assert_eq!(vote, Some(Vote::new_committed(2, CoordinatorId(3))));
            let expected: Vec<_> = (0..7).map(|i| (1, i)).chain([(2, 7), (2, 8)]).collect();
            assert_eq!(ids(&mut log).await, expected);
        });
    }
}

#[test]
fn a_purge_drops_segments_and_keeps_whose_log_it_is_and_the_vote() {
    let disk = memory();
    block_on(async {
        let mut log = open(&disk);
        log.belong(belongs()).await.unwrap();
        log.save_vote(&Vote::new(5, CoordinatorId(2)))
            .await
            .unwrap();
        append(&mut log, (0..200).map(|index| (1, index))).await;
        let before = disk.used();
        log.purge(log_id(1, 150)).await.unwrap();
        assert!(disk.used() < before / 2, "{} of {before}", disk.used());
    });
    block_on(async {
        let mut log = open(&disk);
        assert_eq!(log.belongs(), Some(belongs()));
        let vote = log.read_vote().await.unwrap();
        assert_eq!(vote, Some(Vote::new(5, CoordinatorId(2))));
        let expected: Vec<_> = (151..200).map(|index| (1, index)).collect();
        assert_eq!(ids(&mut log).await, expected);
        assert_eq!(
            log.get_log_state().await.unwrap().last_purged_log_id,
            Some(log_id(1, 150))
        );
        // Behind what there is: a snapshot came from the leader.
        log.purge(log_id(3, 900)).await.unwrap();
        append(&mut log, [(3, 901)]).await;
    });
    block_on(async {
        let mut log = open(&disk);
        assert_eq!(ids(&mut log).await, [(3, 901)]);
        log.fits(Some(log_id(3, 900))).unwrap();
        assert!(matches!(log.fits(None), Err(OpenError::NoSnapshot)));
        let refused = log.fits(Some(log_id(3, 950)));
        assert!(matches!(refused, Err(OpenError::EndsEarly { .. })));
        log.install(log_id(3, 950)).await.unwrap();
        log.fits(Some(log_id(3, 950))).unwrap();
    });
}

/// What was acknowledged is durable before the acknowledgement, so whatever else the disk loses is not missed.
#[test]
fn the_power_may_fail_after_any_step() {
    for seed in 0..60 {
        let mut random = seeded(seed, 0);
        let disk = memory();
        let mut expected: Vec<(u64, u64)> = Vec::new();
        let mut purged = 0;
        for step in 0..12_u64 {
            block_on(async {
                let mut log = open(&disk);
                assert_eq!(ids(&mut log).await, expected, "seed {seed}, step {step}");
                if step > 0 {
                    let vote = log.read_vote().await.unwrap();
                    assert_eq!(vote, Some(Vote::new(step - 1, CoordinatorId(1))));
                }
                log.save_vote(&Vote::new(step, CoordinatorId(1)))
                    .await
                    .unwrap();
                let next = expected.last().map_or(purged, |(_, index)| index + 1);
                match common::random::below(&mut random, 4) {
                    0 if expected.len() > 3 => {
                        let at = expected.len() - 2;
                        let (term, index) = expected[at];
                        log.truncate(log_id(term, index)).await.unwrap();
                        expected.truncate(at);
                    }
                    1 if expected.len() > 3 => {
                        let (term, index) = expected[expected.len() / 2];
                        log.purge(log_id(term, index)).await.unwrap();
                        expected.retain(|(_, other)| *other > index);
                        purged = index + 1;
                    }
                    _ => {
                        let new: Vec<_> = (next..next + 5).map(|index| (step, index)).collect();
                        append(&mut log, new.clone()).await;
                        expected.extend(new);
                    }
                }
            });
            disk.lose_power(&mut random);
        }
    }
}

/// A record that was being written when the process died was never acknowledged.
#[test]
fn a_torn_tail_is_cut_off_at_every_byte() {
    let written = memory();
    block_on(async {
        let mut log = open(&written);
        log.belong(belongs()).await.unwrap();
        log.save_vote(&Vote::new(1, CoordinatorId(1)))
            .await
            .unwrap();
        append(&mut log, [(1, 0), (1, 1)]).await;
    });
    let file = "00000000000000000000.log";
    let whole = written.contents(file);
    for record in [
        Record::Vote(Vote::new(9, CoordinatorId(2))),
        Record::Entry(blank(1, 2)),
        Record::Truncate { since: 0 },
        Record::Purge {
            up_to: log_id(1, 1),
        },
    ] {
        let payload = msgpack_of(&record);
        let torn = [&frame_header(&[&payload])[..], &payload].concat();
        for cut in 1..torn.len() {
            let disk = memory();
            let (mut raw, _) = SegLog::open(disk.shared(), Options::standard()).unwrap();
            raw.append(&whole).unwrap();
            raw.sync().unwrap();
            // Not by way of `sync`, so the log's own note stays behind it.
            raw.append(&torn[..cut]).unwrap();
            drop(raw);
            block_on(async {
                let mut log = open(&disk);
                assert_eq!(ids(&mut log).await, [(1, 0), (1, 1)], "{record:?} at {cut}");
                let vote = log.read_vote().await.unwrap();
                assert_eq!(vote, Some(Vote::new(1, CoordinatorId(1))));
                append(&mut log, [(1, 2)]).await;
            });
            let mut log = open(&disk);
            assert_eq!(block_on(ids(&mut log)).len(), 3);
        }
    }
}

#[test]
fn a_log_with_a_hole_is_refused() {
    for (records, refused) in [
        (
            vec![Record::Entry(blank(1, 0)), Record::Entry(blank(1, 2))],
            "gap",
        ),
        (vec![Record::Entry(blank(1, 4))], "no snapshot"),
        (
            vec![
                Record::Purge {
                    up_to: log_id(1, 4),
                },
                Record::Entry(blank(1, 6)),
            ],
            "gap",
        ),
    ] {
        let disk = memory();
        let (mut raw, _) = SegLog::open(disk.shared(), Options::standard()).unwrap();
        for record in &records {
            raw.append_framed(&[&msgpack_of(record)]).unwrap();
        }
        raw.sync().unwrap();
        drop(raw);
        let error = LogStore::open(disk.shared(), SEGMENT_BYTES).unwrap_err();
        assert!(error.is_damage(), "{error}");
        match refused {
            "gap" => assert!(matches!(error, OpenError::Gap { .. }), "{error}"),
            _ => assert!(matches!(error, OpenError::NoSnapshot), "{error}"),
        }
    }
}

#[test]
fn a_full_disk_holds_the_log_up_until_there_is_room() {
    let disk = memory();
    block_on(async {
        let mut log = open(&disk);
        append(&mut log, [(1, 0)]).await;
        disk.set_quota(Some(disk.used()));
        let mut full = log.full();
        let appending = append(&mut log, [(1, 1)]);
        let making_room = async {
            full.wait_for(|full| *full).await.unwrap();
            disk.set_quota(None);
            full.wait_for(|full| !*full).await.unwrap();
        };
        futures_util::future::join(appending, making_room).await;
    });
    let mut log = open(&disk);
    assert_eq!(block_on(ids(&mut log)), [(1, 0), (1, 1)]);
}

#[test]
fn a_message_of_entries_is_never_empty_and_seldom_large() {
    block_on(async {
        let mut log = open(&memory());
        append(&mut log, (0..50).map(|index| (1, index))).await;
        let some = log.limited_get_log_entries(10, 20).await.unwrap();
        assert_eq!(some.len(), 10);
        let none = log.limited_get_log_entries(10, 10).await.unwrap();
        assert!(none.is_empty());
    });
}

fn msgpack_of(record: &Record) -> Vec<u8> {
    common::transport::msgpack::encode(record).unwrap().to_vec()
}
