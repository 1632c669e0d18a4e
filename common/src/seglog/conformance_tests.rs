//! What every storage has to make of a log: each test runs on the file system and on the simulated disk.

use std::sync::Arc;

use super::frame::{FRAME_HEADER_BYTES, frame_header};
use super::fs::FsStorage;
use super::memory::MemoryStorage;
use super::storage::LogStorage;
use super::{LogError, Options, Position, SegLog};
use crate::time::ManualClock;

fn on_every_storage(test: impl Fn(Arc<dyn LogStorage>)) {
    test(MemoryStorage::new(Arc::new(ManualClock::default())).shared());
    let directory = tempfile::tempdir().unwrap();
    test(FsStorage::create(directory.path().join("new/log")).unwrap());
}

fn small_segments() -> Options {
    Options {
        segment_bytes: 64,
        ..Options::standard()
    }
}

fn open(storage: &Arc<dyn LogStorage>) -> SegLog {
    SegLog::open(Arc::clone(storage), small_segments())
        .unwrap()
        .0
}

/// Appends as an owner does: rolling when it is time.
fn append(log: &mut SegLog, payload: &str) -> Position {
    if log.needs_roll(payload.len() + FRAME_HEADER_BYTES) {
        log.roll().unwrap();
    }
    log.append_framed(&[payload.as_bytes()]).unwrap()
}

fn payloads(log: &SegLog) -> Vec<String> {
    log.reader()
        .records(log.start())
        .map(|record| String::from_utf8(record.unwrap().payload().to_vec()).unwrap())
        .collect()
}

#[test]
fn records_come_back_in_order_across_segments_and_openings() {
    on_every_storage(|storage| {
        let mut log = open(&storage);
        let written: Vec<String> = (0..40).map(|i| format!("record {i}")).collect();
        for payload in &written[..20] {
            append(&mut log, payload);
        }
        assert_eq!(log.durable(), Position::ZERO);
        assert_eq!(log.sync().unwrap(), log.end());
        let end = log.end();
        drop(log);

        let mut log = open(&storage);
        assert_eq!((log.end(), log.durable()), (end, end));
        for payload in &written[20..] {
            append(&mut log, payload);
        }
        assert_eq!(payloads(&log), written);
        let segments = log.segments();
        assert!(segments.len() > 5, "{segments:?}");
        for pair in segments.windows(2) {
            assert_eq!(pair[0].base.plus(pair[0].bytes), pair[1].base);
            assert!(pair[0].bytes <= 64);
        }
    });
}

#[test]
fn several_slices_are_one_record() {
    on_every_storage(|storage| {
        let mut log = open(&storage);
        let header = frame_header(&[b"two ", b"parts"]);
        let first = log
            .append_vectored(&[&header, b"", b"two ", b"parts"])
            .unwrap();
        let second = log.append_framed(&[b"whole"]).unwrap();
        assert_eq!(payloads(&log), ["two parts", "whole"]);
        assert_eq!(second.since(first), 17);
        assert_eq!(
            &log.reader().read(first.plus(8), 9).unwrap()[..],
            b"two parts"
        );
    });
}

#[test]
fn a_record_larger_than_any_read_ahead_is_read_whole() {
    on_every_storage(|storage| {
        let large = "x".repeat(3 << 20);
        let mut log = open(&storage);
        append(&mut log, "before");
        append(&mut log, &large);
        append(&mut log, "after");
        assert_eq!(payloads(&log), ["before", &large, "after"]);
        drop(log);
        assert_eq!(payloads(&open(&storage)), ["before", &large, "after"]);
    });
}

#[test]
fn a_sync_vouches_only_for_what_was_appended_before_it_began() {
    on_every_storage(|storage| {
        let mut log = open(&storage);
        append(&mut log, "one");
        let covered = log.end();
        let sync = log.begin_sync().unwrap();
        append(&mut log, "two");
        let synced = std::thread::spawn(move || sync.run()).join().unwrap();
        assert_eq!(log.finish_sync(synced.unwrap()).unwrap(), covered);
        assert_eq!(log.sync().unwrap(), log.end());
        assert!(log.begin_sync().is_none());
    });
}

#[test]
fn an_older_sync_that_ends_later_takes_nothing_back() {
    on_every_storage(|storage| {
        let mut log = open(&storage);
        append(&mut log, "one");
        let older = log.begin_sync().unwrap().run().unwrap();
        append(&mut log, "two");
        let newer = log.begin_sync().unwrap().run().unwrap();
        assert_eq!(log.finish_sync(newer).unwrap(), log.end());
        assert_eq!(log.finish_sync(older).unwrap(), log.end());
        assert!(log.begin_sync().is_none());
    });
}

#[test]
fn a_sync_from_before_a_cut_does_not_vouch_for_what_came_after_it() {
    on_every_storage(|storage| {
        let mut log = open(&storage);
        append(&mut log, "kept");
        log.sync().unwrap();
        let kept = log.end();
        append(&mut log, "cut off, and rather long");
        let sync = log.begin_sync().unwrap();
        log.truncate_suffix(kept).unwrap();
        append(&mut log, "new");
        let synced = sync.run().unwrap();
        assert_eq!(log.finish_sync(synced).unwrap(), kept);
        assert_eq!(log.sync().unwrap(), log.end());
        assert_eq!(payloads(&log), ["kept", "new"]);
    });
}

#[test]
fn a_cut_holds_at_every_record_and_over_segments() {
    on_every_storage(|storage| {
        let mut ends = vec![Position::ZERO];
        let mut log = open(&storage);
        for i in 0..12 {
            append(&mut log, &format!("record {i}"));
            ends.push(log.end());
        }
        log.sync().unwrap();
        for keep in (0..12).rev() {
            log.truncate_suffix(ends[keep]).unwrap();
            assert_eq!(log.end(), ends[keep]);
            assert_eq!(payloads(&log).len(), keep);
            drop(log);
            log = open(&storage);
            assert_eq!((log.end(), log.durable()), (ends[keep], ends[keep]));
        }
        append(&mut log, "again");
        assert_eq!(payloads(&log), ["again"]);
        assert!(matches!(
            log.truncate_suffix(log.end().plus(1)),
            Err(LogError::OutOfRange { .. })
        ));
    });
}

#[test]
fn dropping_a_prefix_keeps_positions_and_never_takes_the_active_segment() {
    on_every_storage(|storage| {
        let mut log = open(&storage);
        for i in 0..20 {
            append(&mut log, &format!("record {i:02}"));
        }
        log.sync().unwrap();
        let all = payloads(&log);
        let segments = log.segments();
        let reader = log.reader();

        assert!(log.drop_prefix(segments[1].base.plus(1)).is_some());
        assert_eq!(log.start(), segments[1].base);
        let removal = log.drop_prefix(segments[3].base).unwrap();
        removal.run().unwrap();
        assert!(log.drop_prefix(segments[3].base).is_none());
        assert!(payloads(&log).len() < all.len());
        assert!(all.ends_with(&payloads(&log)));
        assert!(matches!(
            reader.read(Position::ZERO, 8),
            Err(LogError::OutOfRange { .. })
        ));

        let end = log.end();
        log.drop_prefix(end.plus(1_000)).unwrap().run().unwrap();
        assert_eq!(log.segments().len(), 1);
        let active = log.active_base();
        drop(log);
        let mut log = open(&storage);
        assert_eq!((log.start(), log.end()), (active, end));
        assert_eq!(append(&mut log, "next"), end);
    });
}

#[test]
fn removals_happen_in_the_order_of_the_log_whoever_runs_first() {
    on_every_storage(|storage| {
        let mut log = open(&storage);
        for i in 0..20 {
            append(&mut log, &format!("record {i:02}"));
        }
        log.sync().unwrap();
        let segments = log.segments();
        let first = log.drop_prefix(segments[1].base).unwrap();
        let second = log.drop_prefix(segments[2].base).unwrap();
        second.run().unwrap();
        let names = storage.list().unwrap();
        assert!(
            names
                .iter()
                .all(|name| !name.starts_with("00000000000000000000"))
        );
        first.run().unwrap();
        drop(log);
        assert_eq!(open(&storage).start(), segments[2].base);
    });
}

#[test]
fn what_is_being_read_outlives_the_dropping_of_its_segment() {
    on_every_storage(|storage| {
        let mut log = open(&storage);
        for i in 0..20 {
            append(&mut log, &format!("record {i:02}"));
        }
        let mut records = log.reader().records(Position::ZERO);
        let first = records.next().unwrap().unwrap();
        let end = log.end();
        log.drop_prefix(end).unwrap().run().unwrap();
        assert_eq!(&first.payload()[..], b"record 00");
        let rest: Result<Vec<_>, _> = records.collect();
        assert!(matches!(rest, Err(LogError::OutOfRange { .. })));
    });
}

#[test]
fn readers_on_other_threads_see_only_whole_records_while_the_log_is_written() {
    on_every_storage(|storage| {
        let (mut log, _) = SegLog::open(
            storage,
            Options {
                segment_bytes: 4 << 10,
                ..Options::standard()
            },
        )
        .unwrap();
        let reader = log.reader();
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                let mut seen = 0;
                let mut from = Position::ZERO;
                while seen < 2_000 {
                    for record in reader.records(from) {
                        let record = record.unwrap();
                        assert_eq!(record.payload(), format!("record number {seen}"));
                        seen += 1;
                        from = record.end();
                    }
                }
            });
            for i in 0..2_000 {
                append(&mut log, &format!("record number {i}"));
            }
            reading.join().unwrap();
        });
    });
}

#[test]
fn rolling_an_empty_segment_does_nothing() {
    on_every_storage(|storage| {
        let mut log = open(&storage);
        log.roll().unwrap();
        assert_eq!(log.segments().len(), 1);
        append(&mut log, "one");
        log.roll().unwrap();
        log.roll().unwrap();
        assert_eq!(log.segments().len(), 2);
        log.sync().unwrap();
        drop(log);
        assert_eq!(open(&storage).segments().len(), 2);
    });
}

#[test]
fn files_that_are_not_segments_are_left_alone() {
    on_every_storage(|storage| {
        drop(storage.create("0.log").unwrap());
        drop(storage.create("notes.txt").unwrap());
        let mut log = open(&storage);
        append(&mut log, "one");
        drop(log);
        assert_eq!(payloads(&open(&storage)), ["one"]);
        let names = storage.list().unwrap();
        assert!(names.iter().any(|name| name == "0.log"));
        assert!(names.iter().any(|name| name == "notes.txt"));
    });
}
