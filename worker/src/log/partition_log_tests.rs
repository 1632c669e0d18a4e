//! The log against plain lists: what was appended is read back, also after a loss of power, and what it
//! knows of producers and transactions is what its bytes say.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use common::ids::{
    CheckpointId, Generation, JobId, JobName, LeaderEpoch, PartitionId, ProducerEpoch, ProducerId,
    TopicId, TopicPartition,
};
use common::kv::{KvStore, MemoryStore};
use common::log_batch::{BatchError, LogBatch, LogBatchBuilder, LogBatches, ProducerStamp};
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::producer_id::InternalPid;
use common::protocol::fetch::FetchedBatches;
use common::protocol::metadata::JobImage;
use common::protocol::topic::TopicConfig;
use common::seglog::memory::MemoryStorage;
use common::time::{ManualClock, Span, Timestamp};
use proptest::prelude::*;

use super::derived::Derived;
use super::idempotency::RequestPart;
use super::partition_log::{AppendError, OpenError, PartitionLog, ReplicaError};
use super::reader::ReadError;
use super::salvaged::Salvaged;
use super::saved::SavedState;
use crate::partition::reconcile::JobFacts;

const EPOCH: LeaderEpoch = LeaderEpoch(1);
const NOW: Timestamp = Timestamp(1_700_000_000_000);
const JOB: JobId = JobId(1);

struct Disk {
    clock: Arc<ManualClock>,
    storage: MemoryStorage,
    store: MemoryStore,
    config: TopicConfig,
}

impl Disk {
    fn new(segment_bytes: u64) -> Disk {
        let clock = Arc::new(ManualClock::at(NOW));
        Disk {
            storage: MemoryStorage::new(clock.clone()),
            store: MemoryStore::new(),
            clock,
            config: TopicConfig {
                segment_bytes,
                retention_ms: Some(10_000),
                ..TopicConfig::default()
            },
        }
    }

    fn open(&self) -> Result<PartitionLog, OpenError> {
        let partition = TopicPartition {
            topic: TopicId(uuid::Uuid::from_u128(7)),
            partition: PartitionId(3),
        };
        let saved = SavedState::new(Arc::new(self.store.clone()), partition);
        PartitionLog::open(self.storage.shared(), Some(saved), &self.config, NOW)
    }

    /// Opened without what was saved: everything is derived from the log's bytes.
    fn open_bare(&self) -> Result<PartitionLog, OpenError> {
        PartitionLog::open(self.storage.shared(), None, &self.config, NOW)
    }
}

fn batch(values: &[u32]) -> LogBatch {
    build(LogBatchBuilder::new(), values)
}

fn build(mut builder: LogBatchBuilder, values: &[u32]) -> LogBatch {
    for value in values {
        let time = Timestamp(i64::from(*value));
        builder.push(time, None, Some(&value.to_be_bytes()), &[]);
    }
    builder.build()
}

fn append(log: &mut PartitionLog, batch: &LogBatch) -> Offset {
    let facts = JobFacts::new();
    log.append(batch, EPOCH, &facts, NOW).unwrap().base_offset
}

fn sync(log: &mut PartitionLog) -> Offset {
    log.sync().unwrap()
}

fn values(bytes: Bytes) -> Vec<(i64, u32)> {
    let mut values = Vec::new();
    for batch in LogBatches::new(bytes) {
        let records = batch.unwrap().records().unwrap();
        for record in records.iter() {
            let record = record.unwrap();
            let value = record.value.unwrap().first_chunk::<4>().copied();
            values.push((record.offset.0, value.map_or(u32::MAX, u32::from_be_bytes)));
        }
    }
    values
}

/// Everything from `from` on, in reads of a few bytes each.
fn read_all(
    log: &PartitionLog,
    from: Offset,
    end: Offset,
    isolation: Isolation,
) -> Vec<(i64, u32)> {
    let reader = log.reader();
    let mut next = from;
    let mut all = Vec::new();
    while next < end {
        let read = reader.read(next, end, 300, isolation).unwrap();
        assert!(read.next_offset > next, "a read makes progress");
        all.extend(
            values(read.bytes)
                .into_iter()
                .filter(|(at, _)| *at >= from.0),
        );
        next = read.next_offset;
    }
    all
}

#[test]
fn records_are_read_from_any_offset_in_whole_batches() {
    let disk = Disk::new(1_000);
    let mut log = disk.open().unwrap();
    for base in (0..300).step_by(3) {
        let offset = append(&mut log, &batch(&[base, base + 1, base + 2]));
        assert_eq!(offset, Offset(i64::from(base)));
    }
    let end = log.end_offset();
    for from in 0..300 {
        let read = log
            .reader()
            .read(Offset(from), end, 1, Isolation::ReadCommitted)
            .unwrap();
        let first = from / 3 * 3;
        assert_eq!(read.next_offset, Offset(first + 3), "one batch at least");
        assert_eq!(values(read.bytes)[0].0, first);
    }
    let all = read_all(&log, Offset(7), end, Isolation::ReadUncommitted);
    assert!(all.iter().copied().eq((7..300).map(|n| (i64::from(n), n))));
    let beyond = log
        .reader()
        .read(Offset(301), end, 1, Isolation::ReadCommitted);
    assert!(matches!(beyond, Err(ReadError::OutOfRange { .. })));
    let at_end = log
        .reader()
        .read(end, end, 1, Isolation::ReadCommitted)
        .unwrap();
    assert!(at_end.bytes.is_empty() && at_end.next_offset == end);
}

#[test]
fn neighbouring_batches_are_handed_out_without_being_copied() {
    let disk = Disk::new(1 << 20);
    let mut log = disk.open().unwrap();
    for value in 0..10 {
        append(&mut log, &batch(&[value]));
    }
    let end = log.end_offset();
    let read = log
        .reader()
        .read(Offset(2), end, 1 << 20, Isolation::ReadCommitted)
        .unwrap();
    assert_eq!(values(read.bytes.clone()).len(), 8);
    let mut rest = read.bytes;
    let before = rest.as_ptr_range().end;
    while !rest.is_empty() {
        LogBatch::split_from(&mut rest).unwrap();
    }
    assert_eq!(rest.as_ptr(), before);
}

#[test]
fn a_time_finds_the_first_record_at_or_after_it() {
    let disk = Disk::new(500);
    let mut log = disk.open().unwrap();
    for times in [[5, 9, 3], [1, 2, 2], [20, 4, 30]] {
        append(&mut log, &batch(&times));
    }
    let end = log.end_offset();
    for (time, offset) in [
        (0, Some(0)),
        (6, Some(1)),
        (9, Some(1)),
        (10, Some(6)),
        (21, Some(8)),
        (31, None),
    ] {
        let found = log.reader().offset_at(Timestamp(time), end).unwrap();
        assert_eq!(found, offset.map(Offset), "time {time}");
    }
    assert_eq!(
        log.reader().offset_at(Timestamp(10), Offset(6)).unwrap(),
        None
    );
}

#[test]
fn a_repeated_batch_is_answered_with_its_place_and_not_appended_again() {
    let disk = Disk::new(1_000);
    let mut log = disk.open().unwrap();
    let stamp = ProducerStamp {
        id: ProducerId(5),
        epoch: ProducerEpoch(0),
        base_sequence: 0,
    };
    let numbered = build(LogBatchBuilder::new().producer(stamp), &[1, 2]);
    append(&mut log, &batch(&[0]));
    assert_eq!(append(&mut log, &numbered), Offset(1));
    sync(&mut log);
    for reopened in [false, true] {
        if reopened {
            log = disk.open().unwrap();
        }
        let placed = log.append(&numbered, EPOCH, &JobFacts::new(), NOW).unwrap();
        assert!(placed.duplicate);
        assert_eq!((placed.base_offset, placed.records), (Offset(1), 2));
        assert_eq!(log.end_offset(), Offset(3));
    }
    let skipping = ProducerStamp {
        base_sequence: 5,
        ..stamp
    };
    let gap = build(LogBatchBuilder::new().producer(skipping), &[3]);
    assert!(matches!(
        log.append(&gap, EPOCH, &JobFacts::new(), NOW),
        Err(AppendError::Producer(_))
    ));
}

#[test]
fn a_repeated_request_is_known_after_a_crash() {
    let disk = Disk::new(1_000);
    let part = |fingerprint| RequestPart {
        key: "order-1".to_owned(),
        fingerprint,
        part: 0,
        parts: 1,
    };
    let request = |fingerprint| {
        let mut builder = LogBatchBuilder::new();
        builder.push(NOW, None, Some(b"1"), &[part(fingerprint).to_header()]);
        builder.build()
    };
    let mut log = disk.open().unwrap();
    append(&mut log, &batch(&[7]));
    append(&mut log, &request(1));
    sync(&mut log);
    drop(log);
    disk.storage.lose_power(&mut common::random::seeded(1, 1));
    let mut log = disk.open().unwrap();
    let again = log
        .append(&request(1), EPOCH, &JobFacts::new(), NOW)
        .unwrap();
    assert!(again.duplicate);
    assert_eq!(again.base_offset, Offset(1));
    assert!(matches!(
        log.append(&request(2), EPOCH, &JobFacts::new(), NOW),
        Err(AppendError::KeyReused { .. })
    ));
}

fn transactional(label: u64, slot: u8, sequence: i32, values: &[u32]) -> LogBatch {
    let pid = InternalPid {
        job: JOB,
        generation: Generation(1),
        task: 0,
        slot,
        label: CheckpointId(label),
    };
    let (id, epoch) = pid.encode().unwrap();
    let stamp = ProducerStamp {
        id,
        epoch,
        base_sequence: sequence,
    };
    build(LogBatchBuilder::new().transactional(stamp), values)
}

fn facts(generation: u32, completed: Option<u64>, finals: &[(u32, Option<u64>)]) -> JobFacts {
    let image = JobImage {
        id: JOB,
        name: JobName::new("job").unwrap(),
        generation: Generation(generation),
        completed: completed.map(CheckpointId),
        finals: finals
            .iter()
            .map(|(generation, last)| (Generation(*generation), last.map(CheckpointId)))
            .collect(),
        running: true,
        deleted: false,
    };
    BTreeMap::from([(JOB, image)])
}

#[test]
fn readers_of_committed_data_see_what_completed_checkpoints_hold_and_nothing_else() {
    let disk = Disk::new(400);
    let mut log = disk.open().unwrap();
    let now = facts(1, Some(3), &[]);
    for (batch, expected) in [
        (batch(&[0]), 0),
        (transactional(4, 0, 0, &[1, 2]), 1),
        (batch(&[3]), 3),
        (transactional(4, 0, 2, &[4]), 4),
        (transactional(5, 1, 0, &[5]), 5),
    ] {
        let placed = log.append(&batch, EPOCH, &now, NOW).unwrap();
        assert_eq!(placed.base_offset, Offset(expected));
    }
    let stable = |log: &PartitionLog| {
        let end = log.end_offset();
        log.derived().transactions.last_stable_offset(end)
    };
    assert_eq!(stable(&log), Offset(1));

    // Checkpoint 4 completes, then generation 1 ends with it: 5 never happened.
    assert_eq!(
        log.reconcile(EPOCH, &facts(1, Some(4), &[]), NOW).unwrap(),
        1
    );
    let superseded = facts(2, Some(4), &[(1, Some(4))]);
    assert_eq!(log.reconcile(EPOCH, &superseded, NOW).unwrap(), 1);
    let end = log.end_offset();
    assert_eq!(end, Offset(8), "two markers were written");
    log.committed(end);
    sync(&mut log);
    for reopened in [false, true] {
        if reopened {
            log = disk.open().unwrap();
        }
        assert_eq!(stable(&log), end);
        let seen = read_all(&log, Offset(0), end, Isolation::ReadCommitted);
        assert_eq!(seen, [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]);
        let all = read_all(&log, Offset(0), end, Isolation::ReadUncommitted);
        assert_eq!(all.len(), 8);
        assert_eq!(log.reconcile(EPOCH, &superseded, NOW).unwrap(), 0);
    }
    let late = transactional(6, 2, 0, &[6]);
    assert!(matches!(
        log.append(&late, EPOCH, &superseded, NOW),
        Err(AppendError::Transaction(_))
    ));
}

#[test]
fn a_writers_repetition_is_known_even_after_its_transaction_has_ended() {
    let disk = Disk::new(1 << 20);
    let mut log = disk.open().unwrap();
    let first = transactional(4, 0, 0, &[1]);
    log.append(&first, EPOCH, &facts(1, Some(3), &[]), NOW)
        .unwrap();
    let completed = facts(1, Some(4), &[]);
    log.reconcile(EPOCH, &completed, NOW).unwrap();
    assert!(
        log.append(&first, EPOCH, &completed, NOW)
            .unwrap()
            .duplicate
    );
    let more = transactional(4, 0, 1, &[2]);
    assert!(log.append(&more, EPOCH, &completed, NOW).is_err());
    let next = transactional(5, 0, 0, &[3]);
    assert!(log.append(&next, EPOCH, &completed, NOW).is_ok());
}

#[test]
fn old_segments_go_and_offsets_go_on_even_when_nothing_is_left() {
    let disk = Disk::new(1 << 20);
    let mut log = disk.open().unwrap();
    for value in 0..10 {
        append(&mut log, &batch(&[value]));
    }
    sync(&mut log);
    disk.clock.advance(Span(20_000));
    let later = NOW.plus(Span(20_000));
    let end = log.end_offset();
    assert!(
        log.retain(&disk.config, end, later).unwrap().is_none(),
        "it is closed first"
    );
    disk.clock.advance(Span(20_000));
    let later = NOW.plus(Span(40_000));
    let kept = log.retain(&disk.config, Offset(9), later).unwrap();
    assert!(kept.is_none(), "not what somebody may still have to read");
    let removal = log.retain(&disk.config, end, later).unwrap();
    removal.expect("the segment is old enough").run().unwrap();
    assert_eq!(log.start_offset(), end);
    drop(log);
    disk.storage.lose_power(&mut common::random::seeded(2, 1));
    let mut log = disk.open().unwrap();
    assert_eq!((log.start_offset(), log.end_offset()), (end, end));
    assert_eq!(append(&mut log, &batch(&[77])), end);
    let gone = log
        .reader()
        .read(Offset(3), log.end_offset(), 1, Isolation::ReadCommitted);
    assert!(matches!(gone, Err(ReadError::OutOfRange { .. })));
}

#[test]
fn a_log_that_is_cut_off_forgets_what_was_behind() {
    let disk = Disk::new(300);
    let mut log = disk.open().unwrap();
    let stamp = |base_sequence| ProducerStamp {
        id: ProducerId(5),
        epoch: ProducerEpoch(0),
        base_sequence,
    };
    for number in 0..10 {
        let builder = LogBatchBuilder::new().producer(stamp(number));
        append(&mut log, &build(builder, &[number.cast_unsigned()]));
    }
    sync(&mut log);
    assert!(log.truncate(Offset(4), NOW).is_ok());
    assert_eq!(log.end_offset(), Offset(4));
    let again = build(LogBatchBuilder::new().producer(stamp(4)), &[44]);
    assert_eq!(append(&mut log, &again), Offset(4));
    let all = read_all(&log, Offset(0), Offset(5), Isolation::ReadCommitted);
    assert_eq!(all, [(0, 0), (1, 1), (2, 2), (3, 3), (4, 44)]);
}

#[test]
fn a_full_disk_refuses_a_batch_and_nothing_else() {
    let disk = Disk::new(1 << 20);
    let mut log = disk.open().unwrap();
    append(&mut log, &batch(&[1]));
    disk.storage.set_quota(Some(disk.storage.used() + 10));
    let facts = JobFacts::new();
    let refused = log.append(&batch(&[2]), EPOCH, &facts, NOW);
    assert!(matches!(
        refused,
        Err(AppendError::Log(common::seglog::LogError::DiskFull))
    ));
    disk.storage.set_quota(None);
    assert_eq!(append(&mut log, &batch(&[3])), Offset(1));
    let all = read_all(&log, Offset(0), Offset(2), Isolation::ReadCommitted);
    assert_eq!(all, [(0, 1), (1, 3)]);
}

#[test]
fn a_log_opened_with_what_was_saved_is_the_log_that_was_closed() {
    let disk = Disk::new(100_000);
    let mut log = disk.open().unwrap();
    let now = facts(1, Some(3), &[]);
    for value in 0..2_000 {
        append(&mut log, &batch(&[value; 400]));
    }
    log.append(&transactional(4, 0, 0, &[1, 2]), EPOCH, &now, NOW)
        .unwrap();
    sync(&mut log);
    log.committed(log.end_offset());
    log.save(true).unwrap();
    append(&mut log, &batch(&[9]));
    sync(&mut log);
    log.committed(log.end_offset());
    let (derived, end) = (log.derived().clone(), log.end_offset());
    drop(log);

    let opened = disk.open().unwrap();
    assert_eq!((opened.derived(), opened.end_offset()), (&derived, end));
    assert_eq!(
        read_all(&opened, Offset(799_990), end, Isolation::ReadUncommitted).len(),
        13
    );
    // What was saved is damaged: it is not believed, and not missed.
    disk.store.put(&marker_key(), b"nonsense").unwrap();
    let rebuilt = disk.open().unwrap();
    assert_eq!((rebuilt.derived(), rebuilt.end_offset()), (&derived, end));
}

fn marker_key() -> Vec<u8> {
    let mut key = uuid::Uuid::from_u128(7).as_bytes().to_vec();
    key.extend_from_slice(&[0, 0, 0, 3, b'm']);
    key
}

/// Where reading goes on, once what was read has been opened as its readers do.
fn opened(log: &PartitionLog, from: Offset) -> Result<Offset, BatchError> {
    let end = log.end_offset();
    let read = log
        .reader()
        .read(from, end, 1 << 20, Isolation::ReadCommitted);
    let read = match read {
        Ok(read) => read,
        Err(ReadError::Corrupt { source, .. }) => return Err(source),
        Err(error) => panic!("{error}"),
    };
    let fetched = FetchedBatches {
        batches: read.bytes,
        next_offset: read.next_offset,
        log_start_offset: log.start_offset(),
        end_offset: end,
    };
    fetched.open().map(|(_, next_offset)| next_offset)
}

#[test]
fn damage_that_would_hide_a_batch_is_reported() {
    let disk = Disk::new(1 << 20);
    let mut log = disk.open().unwrap();
    for number in 0..3 {
        let stamp = ProducerStamp {
            id: ProducerId(5),
            epoch: ProducerEpoch(0),
            base_sequence: number,
        };
        append(
            &mut log,
            &build(LogBatchBuilder::new().producer(stamp), &[7]),
        );
    }
    assert_eq!(opened(&log, Offset(0)), Ok(Offset(3)));
    // The bit that tells a transaction's marker, which readers of what is committed do not get to see.
    let second = u64::try_from(build(LogBatchBuilder::new(), &[7]).bytes().len()).unwrap();
    disk.storage
        .flip_bit("00000000000000000000.log", second + 22, 5);
    assert_eq!(opened(&log, Offset(0)), Ok(Offset(1)));
    assert!(matches!(
        opened(&log, Offset(1)),
        Err(BatchError::Checksum { .. })
    ));
}

#[test]
fn a_log_of_any_batches_is_fetched_with_one_pass_over_the_disk() {
    // Batches that divide what is asked for, that do not, and that are larger.
    for records in [1, 700, 3_000, 30_000] {
        let disk = Disk::new(1 << 20);
        let mut log = disk.open().unwrap();
        while log.bytes() < 3 << 20 {
            append(&mut log, &batch(&vec![7; records]));
        }
        let (reader, end) = (log.reader(), log.end_offset());
        let before = disk.storage.bytes_read();
        let mut next = Offset(0);
        let mut given = 0;
        while next < end {
            let read = reader
                .read(next, end, 256 << 10, Isolation::ReadCommitted)
                .unwrap();
            assert!(!read.bytes.is_empty(), "{records} records a batch");
            given += read.bytes.len();
            next = read.next_offset;
        }
        assert_eq!(
            disk.storage.bytes_read() - before,
            u64::try_from(given).unwrap(),
            "{records} records a batch"
        );
    }
}

#[test]
fn damage_is_reported_and_never_opened() {
    for (at, sound, name) in [(23, 0, "a record's bytes"), (100, 1, "the next batch")] {
        let disk = Disk::new(1 << 20);
        let mut log = disk.open().unwrap();
        for value in 0..20 {
            append(&mut log, &batch(&[value]));
        }
        sync(&mut log);
        let end = log.end_offset();
        let file = "00000000000000000000.log";
        disk.storage.flip_bit(file, 40 + at, 3);
        let mut next = Offset(0);
        let damage = loop {
            match opened(&log, next) {
                Ok(before) => next = before,
                Err(error) => break error,
            }
        };
        assert_eq!(next, Offset(sound), "{name}: what comes before is read");
        assert!(
            matches!(damage, BatchError::Checksum { .. }),
            "{name}: {damage:?}"
        );
        let after = opened(&log, next.next());
        assert_eq!(after, Ok(end), "{name}: what comes after is read");
        drop(log);
        assert!(disk.open().is_err(), "{name} was taken for sound");
        let rest = Salvaged::of(&*disk.storage.shared(), NOW);
        let end = rest.as_ref().map_or(Offset(0), |rest| rest.end);
        assert_eq!(end, Offset(sound), "{name}: what comes before is salvaged");
        if let Some(Salvaged { reader, .. }) = rest {
            let read = reader.read(Offset(0), end, 1 << 20, Isolation::ReadCommitted);
            assert_eq!(read.unwrap().next_offset, end, "{name}");
        }
    }
}

/// Of a batch that crosses two sectors the first was lost, which had nothing of it but its offset: its checksum was
/// right, and the log could not be opened.
#[test]
fn a_batch_whose_offset_was_lost_with_the_power_ends_the_log_unless_it_was_durable() {
    let disk = Disk::new(1 << 20);
    let mut log = disk.open().unwrap();
    append(&mut log, &batch(&[1]));
    append(&mut log, &batch(&[2]));
    sync(&mut log);
    let durable = usize::try_from(log.bytes()).unwrap();
    append(&mut log, &batch(&[3]));
    append(&mut log, &batch(&[4]));
    drop(log);
    let file = "00000000000000000000.log";
    let sound = disk.storage.contents(file);
    let torn_at = |at: usize| {
        let mut torn = sound.clone();
        torn[at..at + 8].fill(0);
        torn
    };
    disk.storage.set_contents(file, &torn_at(durable));
    let mut log = disk.open().unwrap();
    assert_eq!(log.end_offset(), Offset(2));
    assert_eq!(append(&mut log, &batch(&[5])), Offset(2));
    sync(&mut log);
    let all = read_all(&log, Offset(0), Offset(3), Isolation::ReadUncommitted);
    assert_eq!(all, [(0, 1), (1, 2), (2, 5)]);
    drop(log);
    disk.storage.set_contents(file, &torn_at(durable / 2));
    let damaged = disk.open();
    assert!(
        matches!(damaged, Err(OpenError::Broken { .. })),
        "{damaged:?}"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Numbered(i64, usize),
    Sync,
    Save,
    Crash(u64),
    Retain,
    /// Back to where one of the batches begins.
    Cut(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_usize..5).prop_map(Step::Append),
        4 => (0_i64..3, 1_usize..4).prop_map(|(id, records)| Step::Numbered(id, records)),
        3 => Just(Step::Sync),
        2 => Just(Step::Save),
        1 => any::<u64>().prop_map(Step::Crash),
        1 => Just(Step::Retain),
        1 => any::<usize>().prop_map(Step::Cut),
    ]
}

proptest! {
    #[test]
    fn what_was_durable_is_there_after_any_crash_and_everything_is_known_again(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let disk = Disk::new(400);
        let mut log = disk.open().unwrap();
        let mut model: Vec<u32> = Vec::new();
        let mut durable = 0;
        let mut next_value = 0_u32;
        let mut now = NOW;
        for step in steps {
            let mut fresh = |records: usize| -> Vec<u32> {
                let first = next_value;
                next_value += u32::try_from(records).unwrap();
                (first..next_value).collect()
            };
            match step {
                Step::Append(records) => {
                    let values = fresh(records);
                    let at = append(&mut log, &batch(&values));
                    prop_assert_eq!(at.0, i64::try_from(model.len()).unwrap());
                    model.extend(values);
                }
                Step::Numbered(id, records) => {
                    let values = fresh(records);
                    // A producer that lost its numbers in a crash begins a new epoch.
                    let epoch = ProducerEpoch(i16::try_from(model.len() % 30_000).unwrap());
                    let stamp = ProducerStamp { id: ProducerId(id), epoch, base_sequence: 0 };
                    let numbered = build(LogBatchBuilder::new().producer(stamp), &values);
                    if log.append(&numbered, EPOCH, &JobFacts::new(), NOW).is_ok_and(|p| !p.duplicate) {
                        model.extend(values);
                    }
                }
                Step::Sync => {
                    let reached = sync(&mut log);
                    prop_assert_eq!(reached, log.end_offset());
                    durable = model.len();
                }
                Step::Save => {
                    sync(&mut log);
                    durable = model.len();
                    log.committed(log.end_offset());
                    log.save(true).unwrap();
                }
                Step::Crash(seed) => {
                    drop(log);
                    let mut random = common::random::seeded(seed, 1);
                    disk.storage.lose_power(&mut random);
                    disk.store.lose_unflushed(&mut random);
                    log = disk.open().unwrap();
                    let end = usize::try_from(log.end_offset().0).unwrap();
                    prop_assert!(durable <= end && end <= model.len());
                    model.truncate(end);
                    durable = end;
                    // Dropped segments took what they said with them; what was saved may remember it.
                    if log.start_offset() == Offset::ZERO {
                        let bare = disk.open_bare().unwrap();
                        prop_assert_eq!(bare.derived(), log.derived());
                    }
                }
                Step::Cut(which) => {
                    let all = log.reader().read(
                        log.start_offset(), log.end_offset(), 1 << 20, Isolation::ReadUncommitted,
                    ).unwrap();
                    let begins: Vec<Offset> = LogBatches::new(all.bytes)
                        .map(|batch| batch.unwrap().header().base_offset)
                        .collect();
                    if let Some(to) = begins.get(which % begins.len().max(1)) {
                        log.truncate(*to, NOW).unwrap();
                        model.truncate(usize::try_from(to.0).unwrap());
                        durable = durable.min(model.len());
                    }
                }
                Step::Retain => {
                    disk.clock.advance(Span(6_000));
                    now = now.plus(Span(6_000));
                    let limit = Offset(i64::try_from(durable).unwrap());
                    if let Some(removal) = log.retain(&disk.config, limit, now).unwrap() {
                        removal.run().unwrap();
                    }
                    prop_assert!(log.start_offset() <= limit);
                }
            }
            let start = log.start_offset();
            let end = log.end_offset();
            prop_assert_eq!(end.0, i64::try_from(model.len()).unwrap());
            let read = read_all(&log, start, end, Isolation::ReadUncommitted);
            let expected: Vec<(i64, u32)> = (0..)
                .zip(model.iter().copied())
                .skip(usize::try_from(start.0).unwrap())
                .collect();
            prop_assert_eq!(read, expected);
        }
    }
}

/// What a leader has, in pieces of any size, at a follower that is cut off and behind.
fn replicated(leader: &PartitionLog, follower: &mut PartitionLog, max_bytes: usize) {
    let (from, end) = (follower.end_offset(), leader.end_offset());
    let read = leader
        .reader()
        .read(from, end, max_bytes, Isolation::ReadUncommitted)
        .unwrap();
    for batch in LogBatches::new(read.bytes) {
        follower.append_verbatim(&batch.unwrap(), NOW).unwrap();
    }
}

#[test]
fn a_follower_has_the_leaders_bytes_and_knows_what_it_knows() {
    let (here, there) = (Disk::new(2_000), Disk::new(700));
    let (mut leader, mut follower) = (here.open().unwrap(), there.open().unwrap());
    let now = facts(1, Some(3), &[]);
    for value in 0..50 {
        append(&mut leader, &batch(&[value; 3]));
    }
    leader
        .append(&transactional(4, 0, 0, &[1, 2]), EPOCH, &now, NOW)
        .unwrap();
    leader
        .append(&transactional(4, 1, 0, &[3]), EPOCH, &now, NOW)
        .unwrap();
    let decided = facts(1, Some(4), &[]);
    assert_eq!(leader.reconcile(EPOCH, &decided, NOW).unwrap(), 2);
    append(&mut leader, &batch(&[7]));
    while follower.end_offset() < leader.end_offset() {
        replicated(&leader, &mut follower, 400);
    }
    assert_eq!(follower.derived(), leader.derived());
    let all = |log: &PartitionLog| {
        let (mut from, mut bytes) = (Offset::ZERO, Vec::new());
        while from < log.end_offset() {
            let (end, isolation) = (log.end_offset(), Isolation::ReadUncommitted);
            let read = log.reader().read(from, end, 1 << 20, isolation).unwrap();
            bytes.extend_from_slice(&read.bytes);
            from = read.next_offset;
        }
        bytes
    };
    assert_eq!(all(&follower), all(&leader));

    // What does not come next is not taken, nor what an older leader wrote.
    let mut gap = batch(&[1]);
    gap.stamp(leader.end_offset().next(), EPOCH);
    let mut old = batch(&[1]);
    old.stamp(leader.end_offset(), LeaderEpoch(EPOCH.0 - 1));
    for wrong in [gap, old] {
        let refused = follower.append_verbatim(&wrong, NOW);
        assert!(
            matches!(refused, Err(ReplicaError::Broken(_))),
            "{refused:?}"
        );
    }
    assert_eq!(follower.end_offset(), leader.end_offset());
}

#[test]
fn a_follower_that_is_too_far_behind_begins_anew_where_the_leader_does() {
    let disk = Disk::new(400);
    let mut log = disk.open().unwrap();
    for value in 0..20 {
        append(&mut log, &batch(&[value]));
    }
    sync(&mut log);
    log.save(true).unwrap();
    log.begin_anew(Offset(1_000)).unwrap();
    assert_eq!(
        (log.start_offset(), log.end_offset()),
        (Offset(1_000), Offset(1_000))
    );
    assert_eq!(log.durable_offset(), Offset(1_000));
    assert_eq!(log.derived(), &Derived::default());
    let again = |log: &mut PartitionLog, offset: i64| {
        let mut next = batch(&[7]);
        next.stamp(Offset(offset), EPOCH);
        log.append_verbatim(&next, NOW).unwrap();
        sync(log);
    };
    drop(log);
    let mut log = disk.open().unwrap();
    assert_eq!(
        (log.start_offset(), log.end_offset()),
        (Offset(1_000), Offset(1_000))
    );
    again(&mut log, 1_000);
    drop(log);
    let mut log = disk.open().unwrap();
    again(&mut log, 1_001);
    let all = read_all(&log, Offset(1_000), Offset(1_002), Isolation::ReadCommitted);
    assert_eq!(all, [(1_000, 7), (1_001, 7)]);
}
