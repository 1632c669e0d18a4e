//! A topic is read from where the options or the checkpoint say, in order, and never past what is gone.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use common::error::ErrorCode;
use common::plan::connector::{
    BadRecords, BoundedMode, Format, Isolation, StartupMode, TopicSource as Spec,
};
use common::schema::{Column, ColumnType};
use common::time::SystemClock;
use futures_util::FutureExt;

use super::topic::TopicSource;
use super::{Source, SourceContext, SourceError, SourceEvent, SplitState};
use crate::test_log::TestLog;

fn spec() -> Spec {
    Spec {
        topic: "t".parse().unwrap(),
        format: Format::Json,
        schema: vec![Column::new("v", ColumnType::BigInt, false)],
        watermark: None,
        startup: StartupMode::Earliest,
        startup_timestamp_ms: None,
        startup_offsets: BTreeMap::new(),
        bounded: BoundedMode::Latest,
        isolation: Isolation::ReadCommitted,
        idle_timeout: None,
        bad_records: BadRecords::DeadLetter,
    }
}

async fn open(
    log: &TestLog,
    spec: &Spec,
    (task_index, parallelism): (u32, u32),
    restored: Option<Vec<SplitState>>,
) -> TopicSource {
    let context = SourceContext {
        task_index,
        parallelism,
        restored,
        log: log.client.clone(),
        clock: SystemClock::shared(),
    };
    TopicSource::open("in", spec, &spec.schema, &context)
        .await
        .unwrap()
}

/// Split → values, until the source is exhausted.
async fn all(source: &mut TopicSource) -> Result<BTreeMap<String, Vec<i64>>, SourceError> {
    let mut values: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut ended = 0;
    loop {
        match source.next().await? {
            SourceEvent::Rows(rows) => {
                let column = rows.rows.batch["v"].as_primitive::<Int64Type>();
                let split = values.entry(rows.split.to_string()).or_default();
                split.extend(column.values());
            }
            SourceEvent::Ended { .. } => ended += 1,
            SourceEvent::Exhausted => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ended, source.splits().len());
    Ok(values)
}

fn produce(log: &TestLog, partition: u32, values: std::ops::Range<i64>) {
    let values: Vec<String> = values.map(|v| format!("{{\"v\": {v}}}")).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    log.produce(partition, &values);
}

#[tokio::test]
async fn partitions_are_dealt_over_tasks_and_read_to_the_end_taken_at_the_start() {
    let log = TestLog::start("t", 5);
    for partition in 0..4 {
        let first = i64::from(partition) * 1_000;
        produce(&log, partition, first..first + 7);
        produce(&log, partition, first + 7..first + 20);
    }
    let mut read = BTreeMap::new();
    for task in 0..2 {
        let mut source = open(&log, &spec(), (task, 2), None).await;
        produce(&log, task, 900_000..900_010);
        read.extend(all(&mut source).await.unwrap());
    }
    assert_eq!(read.len(), 4, "an empty partition gives nothing");
    for (split, values) in read {
        let first = split.parse::<i64>().unwrap() * 1_000;
        assert_eq!(values, (first..first + 20).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_batch_larger_than_a_message_comes_in_parts_and_any_of_them_is_a_place_to_restart() {
    let log = TestLog::start("t", 1);
    produce(&log, 0, 0..20_000);
    produce(&log, 0, 20_000..20_005);
    let mut restored = None;
    let mut values: Vec<i64> = Vec::new();
    let mut parts = 0;
    loop {
        let mut source = open(&log, &spec(), (0, 1), restored.clone()).await;
        let event = source.next().await.unwrap();
        let SourceEvent::Rows(rows) = event else {
            break;
        };
        parts += 1;
        values.extend(rows.rows.batch["v"].as_primitive::<Int64Type>().values());
        restored = Some(vec![SplitState {
            split: rows.split,
            position: rows.next_position,
            end: Some(20_005),
            of: None,
        }]);
    }
    assert_eq!(values, (0..20_005).collect::<Vec<_>>());
    assert!(parts > 2, "{parts} parts");
}

#[tokio::test]
async fn reading_starts_where_the_options_say() {
    let log = TestLog::start("t", 1);
    produce(&log, 0, 0..10);
    for (startup, offset, expected) in [
        (StartupMode::Earliest, 0, 0..10),
        (StartupMode::Latest, 0, 10..10),
        (StartupMode::Timestamp, 4, 4..10),
        (StartupMode::Offsets, 7, 7..10),
    ] {
        let spec = Spec {
            startup,
            startup_timestamp_ms: Some(offset),
            startup_offsets: [(0, offset)].into(),
            ..spec()
        };
        let mut source = open(&log, &spec, (0, 1), None).await;
        let read = all(&mut source).await.unwrap();
        let expected: Vec<i64> = expected.collect();
        assert_eq!(
            read.get("0").cloned().unwrap_or_default(),
            expected,
            "{startup:?}"
        );
    }
}

#[tokio::test]
async fn bad_records_are_put_aside_and_count_as_read() {
    let log = TestLog::start("t", 1);
    log.produce(
        0,
        &[
            "{\"v\": 1}",
            "{\"v\": \"x\"}",
            "nonsense",
            "{\"v\": 2}",
            "[]",
        ],
    );
    let mut source = open(&log, &spec(), (0, 1), None).await;
    let SourceEvent::Rows(rows) = source.next().await.unwrap() else {
        panic!("rows come first");
    };
    assert_eq!(rows.next_position, 5);
    assert_eq!(rows.rows.origin.unwrap().offsets.values(), &[0, 3]);
    let letters: Vec<_> = rows
        .dead_letters
        .iter()
        .map(|letter| {
            (
                letter.origin.as_ref().unwrap().offset,
                letter.operator.as_str(),
            )
        })
        .collect();
    assert_eq!(letters, [(1, "in"), (2, "in"), (4, "in")]);
}

#[tokio::test]
async fn records_that_are_gone_end_the_job_instead_of_being_skipped() {
    let log = TestLog::start("t", 1);
    produce(&log, 0, 0..10);
    let at = |position| {
        Some(vec![SplitState {
            split: "0".into(),
            position,
            end: None,
            of: None,
        }])
    };
    let spec = Spec {
        bounded: BoundedMode::Unbounded,
        ..spec()
    };
    log.state().partitions.get_mut(&0).unwrap().log_start = 5;
    for position in [3, 11] {
        let mut source = open(&log, &spec, (0, 1), at(position)).await;
        let failure = source.next().await.err().unwrap();
        assert!(
            matches!(&failure, SourceError::Fatal(why) if why.contains("partition 0")),
            "{failure}"
        );
    }
}

#[tokio::test]
async fn a_leader_that_is_away_for_a_moment_is_waited_for() {
    let log = TestLog::start("t", 1);
    produce(&log, 0, 0..10);
    let failures = [ErrorCode::NotLeader, ErrorCode::LeaderUnavailable];
    log.state().failures.extend(failures);
    let mut source = open(&log, &spec(), (0, 1), None).await;
    log.state().failures.extend(failures);
    let read = all(&mut source).await.unwrap();
    assert_eq!(read["0"], (0..10).collect::<Vec<_>>());
    let mut source = open(&log, &spec(), (0, 1), Some(Vec::new())).await;
    let read = all(&mut source).await.unwrap();
    assert!(
        read.is_empty(),
        "a partition that was added later has no end to be read to"
    );
}

#[tokio::test]
async fn a_quiet_partition_says_so_again_and_again_unless_a_transaction_hides_records() {
    let log = TestLog::start("t", 1);
    produce(&log, 0, 0..3);
    let spec = Spec {
        bounded: BoundedMode::Unbounded,
        ..spec()
    };
    let mut source = open(&log, &spec, (0, 1), None).await;
    assert!(matches!(source.next().await.unwrap(), SourceEvent::Rows(_)));
    for _ in 0..2 {
        let event = source.next().await.unwrap();
        assert!(matches!(event, SourceEvent::CaughtUp { .. }), "{event:?}");
    }
}

#[tokio::test]
async fn a_partition_with_an_open_transaction_is_not_quiet() {
    let log = TestLog::start("t", 1);
    log.state().partitions.get_mut(&0).unwrap().stable = Some(0);
    produce(&log, 0, 0..3);
    let spec = Spec {
        bounded: BoundedMode::Unbounded,
        ..spec()
    };
    let mut source = open(&log, &spec, (0, 1), None).await;
    let decided = async {
        while log.state().fetches < 3 {
            tokio::task::yield_now().await;
        }
        log.state().partitions.get_mut(&0).unwrap().stable = None;
    };
    let (event, ()) = tokio::join!(source.next(), decided);
    assert!(matches!(event, Ok(SourceEvent::Rows(_))), "{event:?}");
}

#[tokio::test]
async fn partitions_added_while_it_reads_are_dealt_and_read_from_their_start() {
    let log = TestLog::start("t", 2);
    let spec = Spec {
        bounded: BoundedMode::Unbounded,
        startup: StartupMode::Latest,
        ..spec()
    };
    let mut source = open(&log, &spec, (1, 2), None).await;
    log.grow(4);
    produce(&log, 2, 0..5);
    produce(&log, 3, 10..15);
    let mut discovered = Vec::new();
    let values = loop {
        match source.next().await.unwrap() {
            SourceEvent::Discovered { split } => discovered.push(split),
            SourceEvent::Rows(rows) => {
                break rows.rows.batch["v"]
                    .as_primitive::<Int64Type>()
                    .values()
                    .to_vec();
            }
            SourceEvent::CaughtUp { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(values, [10, 11, 12, 13, 14]);
    let names: Vec<&str> = discovered.iter().map(|split| &*split.split).collect();
    assert_eq!(names, ["3"]);
    assert_eq!(source.splits().len(), 2);
}

#[tokio::test]
async fn a_topic_created_again_under_its_name_is_not_read_on_in_the_middle() {
    let log = TestLog::start("t", 1);
    produce(&log, 0, 0..3);
    let spec = Spec {
        bounded: BoundedMode::Unbounded,
        ..spec()
    };
    let mut source = open(&log, &spec, (0, 1), None).await;
    assert!(matches!(source.next().await.unwrap(), SourceEvent::Rows(_)));
    let restored = source.splits();
    log.recreate();
    let failure = loop {
        match source.next().await {
            Ok(SourceEvent::CaughtUp { .. }) => {}
            other => break other.expect_err("it is another topic"),
        }
    };
    assert!(
        matches!(&failure, SourceError::Fatal(why) if why.contains("created again")),
        "{failure}"
    );

    let context = SourceContext {
        task_index: 0,
        parallelism: 1,
        restored: Some(restored),
        log: log.client.clone(),
        clock: SystemClock::shared(),
    };
    let refused = TopicSource::open("in", &spec, &spec.schema, &context).await;
    let failure = SourceError::from(refused.expect_err("its positions are of another topic"));
    assert!(matches!(failure, SourceError::Fatal(_)), "{failure}");
}

#[tokio::test]
async fn a_task_without_a_partition_waits_for_one_and_has_not_ended() {
    let log = TestLog::start("t", 1);
    let spec = Spec {
        bounded: BoundedMode::Unbounded,
        ..spec()
    };
    let mut source = open(&log, &spec, (1, 2), None).await;
    let event = source.next().await.unwrap();
    assert!(matches!(event, SourceEvent::Waiting), "{event:?}");
    assert!(source.next().now_or_never().is_none(), "there is nothing");
    log.grow(2);
    produce(&log, 1, 5..8);
    let event = source.next().await.unwrap();
    assert!(
        matches!(&event, SourceEvent::Discovered { split } if &*split.split == "1"),
        "{event:?}"
    );
    assert!(matches!(source.next().await.unwrap(), SourceEvent::Rows(_)));
}
