//! What is left of a log after crashes, torn writes, full disks, failed syncs and damaged bytes.

use std::sync::Arc;

use proptest::prelude::*;

use super::frame::{FRAME_HEADER_BYTES, frame_header};
use super::memory::MemoryStorage;
use super::{LogError, Options, Position, Recovery, SegLog};
use crate::random::{Random, below, seeded};
use crate::time::ManualClock;

const FIRST: &str = "00000000000000000000.log";

fn disk() -> MemoryStorage {
    MemoryStorage::new(Arc::new(ManualClock::default()))
}

fn options() -> Options {
    Options {
        segment_bytes: 2_000,
        ..Options::standard()
    }
}

fn open(disk: &MemoryStorage) -> (SegLog, Recovery) {
    SegLog::open(disk.shared(), options()).unwrap()
}

fn payloads(log: &SegLog) -> Vec<Vec<u8>> {
    log.reader()
        .records(log.start())
        .map(|record| record.unwrap().payload().to_vec())
        .collect()
}

/// Three durable records, then `tail` written behind them by a process that died.
fn torn(tail: &[u8]) -> (MemoryStorage, Position) {
    let disk = disk();
    let (mut log, _) = open(&disk);
    for payload in ["one", "two", "three"] {
        log.append_framed(&[payload.as_bytes()]).unwrap();
    }
    let durable = log.sync().unwrap();
    drop(log);
    let contents = [disk.contents(FIRST), tail.to_vec()].concat();
    disk.set_contents(FIRST, &contents);
    (disk, durable)
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off_and_nothing_else() {
    let last = [&frame_header(&[b"the last record"])[..], b"the last record"].concat();
    for cut in 0..last.len() {
        for filler in [None, Some(0), Some(0xff)] {
            let mut tail = last[..cut].to_vec();
            if let Some(filler) = filler {
                tail.resize(last.len() + 40, filler);
            }
            let (disk, durable) = torn(&tail);
            let (mut log, recovery) = open(&disk);
            assert_eq!(payloads(&log), [&b"one"[..], b"two", b"three"]);
            assert_eq!((log.end(), log.durable()), (durable, durable));
            assert_eq!(recovery.verified_from, durable);
            match recovery.cut {
                Some(found) => assert_eq!((found.at, found.bytes), (durable, tail.len() as u64)),
                None => assert!(tail.is_empty()),
            }
            log.append_framed(&[b"four"]).unwrap();
            drop(log);
            assert_eq!(payloads(&open(&disk).0).len(), 4);
        }
    }
    let (disk, _) = torn(&last);
    assert_eq!(payloads(&open(&disk).0).len(), 4, "a whole record was cut");
}

#[test]
fn long_runs_of_zeros_behind_the_last_record_are_cut_off() {
    for zeros in [1, 7, 8, 511, 4096, 3 << 20] {
        let (disk, durable) = torn(&vec![0; zeros]);
        let (log, recovery) = open(&disk);
        assert_eq!(log.end(), durable);
        assert_eq!(recovery.cut.unwrap().bytes, zeros as u64);
    }
}

#[test]
fn every_flipped_bit_of_a_durable_record_is_reported_and_nothing_is_cut() {
    let (pristine, durable) = torn(b"");
    let contents = pristine.contents(FIRST);
    for bit in 0..contents.len() * 8 {
        let (disk, _) = torn(b"");
        disk.flip_bit(FIRST, (bit / 8) as u64, (bit % 8) as u8);
        let (log, recovery) = open(&disk);
        assert_eq!((recovery.cut, log.end()), (None, durable));
        let found = log.reader().records(Position::ZERO).find_map(Result::err);
        assert!(
            matches!(&found, Some(LogError::Corrupt { file, position, .. })
                if file == FIRST && position.0 <= (bit / 8) as u64),
            "{found:?}"
        );
    }
}

#[test]
fn a_log_that_ends_before_what_was_durable_does_not_open() {
    for keep in 0..3 {
        let (disk, durable) = torn(b"");
        let contents = disk.contents(FIRST);
        disk.set_contents(FIRST, &contents[..keep * 11]);
        let error = SegLog::open(disk.shared(), options()).unwrap_err();
        assert!(matches!(&error, LogError::Corrupt { file, position, .. }
            if file == FIRST && *position == Position(keep as u64 * 11) && *position < durable));
        assert_eq!(disk.contents(FIRST).len(), keep * 11, "it was cut");
    }
}

#[test]
fn the_owners_recovery_point_counts_when_the_logs_own_is_lost() {
    let (disk, durable) = torn(b"");
    disk.set_contents("recovery-point", b"torn");
    let contents = disk.contents(FIRST);
    disk.set_contents(FIRST, &contents[..contents.len() - 1]);
    let known = Options {
        recovery_point: durable,
        ..options()
    };
    assert!(matches!(
        SegLog::open(disk.shared(), known),
        Err(LogError::Corrupt { .. })
    ));
    let (log, recovery) = open(&disk);
    assert_eq!(payloads(&log).len(), 2);
    assert_eq!(recovery.verified_from, Position::ZERO);
}

#[test]
fn a_missing_segment_among_durable_ones_is_reported() {
    let disk = disk();
    let (mut log, _) = open(&disk);
    for _ in 0..3 {
        log.append_framed(&[&[7; 1_500]]).unwrap();
        log.roll().unwrap();
    }
    log.sync().unwrap();
    let middle = log.segments()[1].clone();
    drop(log);
    let storage = disk.shared();
    storage
        .remove(&format!("{:020}.log", middle.base.0))
        .unwrap();
    assert!(matches!(
        SegLog::open(storage, options()),
        Err(LogError::Corrupt { position, .. }) if position == middle.base
    ));
}

#[test]
fn after_a_failed_sync_nothing_is_accepted_or_called_durable() {
    let disk = disk();
    let (mut log, _) = open(&disk);
    log.append_framed(&[b"one"]).unwrap();
    log.sync().unwrap();
    log.append_framed(&[b"two"]).unwrap();
    // Two syncs at once: the kernel reports the error to the first, and the second would succeed.
    let (first, second) = (log.begin_sync().unwrap(), log.begin_sync().unwrap());
    disk.fail_syncs(1);
    assert!(matches!(first.run(), Err(LogError::SyncFailed { .. })));
    assert!(matches!(second.run(), Err(LogError::Poisoned)));
    assert!(matches!(
        log.append_framed(&[b"three"]),
        Err(LogError::Poisoned)
    ));
    assert!(matches!(log.sync(), Err(LogError::Poisoned)));
    assert!(matches!(log.roll(), Err(LogError::Poisoned)));
    assert!(matches!(
        log.truncate_suffix(Position::ZERO),
        Err(LogError::Poisoned)
    ));
    drop(log);
    disk.lose_power(&mut seeded(1, 0));
    assert_eq!(payloads(&open(&disk).0), [b"one"]);
}

#[test]
fn a_sync_that_succeeded_before_another_failed_is_not_believed_after_it() {
    let disk = disk();
    let (mut log, _) = open(&disk);
    log.append_framed(&[b"one"]).unwrap();
    let good = log.begin_sync().unwrap().run().unwrap();
    log.append_framed(&[b"two"]).unwrap();
    disk.fail_syncs(1);
    assert!(log.begin_sync().unwrap().run().is_err());
    assert!(matches!(log.finish_sync(good), Err(LogError::Poisoned)));
    assert_eq!(log.durable(), Position::ZERO);
}

#[test]
fn a_disk_that_is_full_at_any_byte_refuses_the_record_and_keeps_the_log() {
    let record = FRAME_HEADER_BYTES + b"refused".len();
    for room in 0..record {
        let disk = disk();
        let (mut log, _) = open(&disk);
        log.append_framed(&[b"kept"]).unwrap();
        let end = log.end();
        disk.set_quota(Some(disk.used() + room as u64));
        assert!(matches!(
            log.append_framed(&[b"refused"]),
            Err(LogError::DiskFull)
        ));
        assert_eq!(log.end(), end);
        assert_eq!(log.sync().unwrap(), end);
        disk.set_quota(None);
        log.append_framed(&[b"more"]).unwrap();
        log.sync().unwrap();
        assert_eq!(payloads(&log), [&b"kept"[..], b"more"]);
        drop(log);
        disk.lose_power(&mut seeded(room as u64, 0));
        let (log, recovery) = open(&disk);
        assert_eq!(payloads(&log), [&b"kept"[..], b"more"]);
        assert_eq!(recovery.cut, None);
    }
}

/// What an owner may do to a log, and what may happen to it.
#[derive(Clone, Debug)]
enum Step {
    Append { bytes: usize },
    AppendOnFullDisk { bytes: usize, room: u64 },
    BeginSync,
    FinishSync,
    Roll,
    Truncate { to: u64 },
    DropPrefix { before: u64 },
    Kill,
    LosePower,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_usize..2_500).prop_map(|bytes| Step::Append { bytes }),
        1 => (0_usize..2_500, 0_u64..2_500)
            .prop_map(|(bytes, room)| Step::AppendOnFullDisk { bytes, room }),
        3 => Just(Step::BeginSync),
        3 => Just(Step::FinishSync),
        2 => Just(Step::Roll),
        1 => any::<u64>().prop_map(|to| Step::Truncate { to }),
        1 => any::<u64>().prop_map(|before| Step::DropPrefix { before }),
        1 => Just(Step::Kill),
        2 => Just(Step::LosePower),
    ]
}

/// The records a log should have, each with its position, and up to where they must survive anything.
#[derive(Debug, Default)]
struct Model {
    records: Vec<(Position, Vec<u8>)>,
    end: Position,
    durable: Position,
}

impl Model {
    fn boundary(&self, at: u64) -> Position {
        let boundaries: Vec<Position> = self
            .records
            .iter()
            .map(|(position, _)| *position)
            .chain([self.end])
            .collect();
        boundaries[usize::try_from(at % boundaries.len() as u64).unwrap()]
    }

    fn cut(&mut self, to: Position) {
        self.records.retain(|(position, _)| *position < to);
        self.end = to;
        self.durable = self.durable.min(to);
    }
}

/// Bytes of which no two records have the same: sectors of one never complete another.
fn noise(random: &mut Random, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|_| below(random, 256) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_log_is_its_durable_records_and_perhaps_more_after_any_crash(
        steps in prop::collection::vec(step(), 1..60),
        seed in any::<u64>(),
    ) {
        let disk = disk();
        let mut random = seeded(seed, 0);
        let mut model = Model::default();
        let (mut log, _) = open(&disk);
        let mut syncs = Vec::new();
        for step in steps {
            match step {
                Step::Append { bytes } => {
                    let payload = noise(&mut random, bytes);
                    let position = log.append_framed(&[&payload]).unwrap();
                    prop_assert_eq!(position, model.end);
                    model.records.push((position, payload));
                    model.end = log.end();
                }
                Step::AppendOnFullDisk { bytes, room } => {
                    disk.set_quota(Some(disk.used() + room));
                    let payload = noise(&mut random, bytes);
                    match log.append_framed(&[&payload]) {
                        Ok(position) => model.records.push((position, payload)),
                        Err(error) => prop_assert!(matches!(error, LogError::DiskFull)),
                    }
                    model.end = log.end();
                    disk.set_quota(None);
                }
                Step::BeginSync => syncs.extend(log.begin_sync()),
                Step::FinishSync => if let Some(sync) = syncs.pop() {
                    model.durable = log.finish_sync(sync.run().unwrap()).unwrap();
                    prop_assert!(model.durable <= model.end);
                },
                Step::Roll => log.roll().unwrap(),
                Step::Truncate { to } => {
                    let to = model.boundary(to).max(log.start());
                    log.truncate_suffix(to).unwrap();
                    model.cut(to);
                }
                Step::DropPrefix { before } => {
                    let before = model.boundary(before).min(log.durable());
                    if let Some(removal) = log.drop_prefix(before) {
                        removal.run().unwrap();
                    }
                    let start = log.start();
                    model.records.retain(|(position, _)| *position >= start);
                }
                Step::Kill | Step::LosePower => {
                    let killed = matches!(step, Step::Kill);
                    drop(log);
                    syncs.clear();
                    if !killed {
                        disk.lose_power(&mut random);
                    }
                    let recovery;
                    (log, recovery) = open(&disk);
                    prop_assert!(log.end() >= model.durable);
                    prop_assert!(log.end() <= model.end);
                    prop_assert_eq!(log.durable(), log.end());
                    if killed {
                        prop_assert_eq!((log.end(), recovery.cut), (model.end, None));
                    }
                    model.cut(log.end());
                    model.durable = log.end();
                }
            }
            let records: Vec<_> = log
                .reader()
                .records(log.start())
                .map(|record| record.map(|r| (r.position, r.payload().to_vec())))
                .collect::<Result<_, _>>()
                .unwrap();
            prop_assert_eq!(&records, &model.records);
        }
    }
}
