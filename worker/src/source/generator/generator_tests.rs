//! Generated streams are the same for everyone, everywhere, from any position, and look like what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Float64Type, Int64Type, TimestampMillisecondType};
use common::plan::connector::{GeneratorKind, GeneratorSource as Spec};
use common::time::{ManualClock, Span};
use proptest::prelude::*;

use super::*;
use crate::source::SourceContext;
use crate::test_log::TestLog;

const KINDS: [GeneratorKind; 6] = [
    GeneratorKind::NexmarkPerson,
    GeneratorKind::NexmarkAuction,
    GeneratorKind::NexmarkBid,
    GeneratorKind::Clickstream,
    GeneratorKind::Payments,
    GeneratorKind::Sensors,
];

fn spec(generator: GeneratorKind, seed: u64) -> Spec {
    Spec {
        generator,
        schema: Vec::new(),
        watermark: None,
        rows: None,
        rate: None,
        seed,
        splits: 4,
        idle_timeout: None,
    }
}

fn rows(kind: GeneratorKind, seed: u64, numbers: impl Iterator<Item = u64>) -> RecordBatch {
    let stream = Stream::new(&spec(kind, seed), &kind.columns()).unwrap();
    stream.rows(&numbers.collect::<Vec<_>>())
}

fn integers(batch: &RecordBatch, name: &str) -> Vec<i64> {
    batch[name].as_primitive::<Int64Type>().values().to_vec()
}

fn texts(batch: &RecordBatch, name: &str) -> Vec<String> {
    let column = batch[name].as_string::<i32>();
    column.iter().flatten().map(str::to_owned).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_row_is_the_same_alone_as_among_others(
        kind in prop::sample::select(KINDS.to_vec()),
        seed: u64,
        start in 0..1_000_000_000_u64,
        picked in 0..200_u64,
    ) {
        let run = rows(kind, seed, start..start + 200);
        let alone = rows(kind, seed, start + picked..start + picked + 1);
        prop_assert_eq!(run.slice(usize::try_from(picked).unwrap(), 1), alone);
        let columns = kind.columns();
        let some = Stream::new(&spec(kind, seed), &columns[columns.len() - 2..]).unwrap();
        let some = some.rows(&(start..start + 200).collect::<Vec<_>>());
        let same = run.project(&[columns.len() - 2, columns.len() - 1]).unwrap();
        prop_assert_eq!(some, same, "columns that are not asked for change nothing");
    }
}

#[test]
fn seeds_give_different_streams() {
    for kind in KINDS {
        assert_ne!(rows(kind, 1, 0..100), rows(kind, 2, 0..100), "{kind:?}");
    }
}

/// Every row of a source with so many tasks, by its split and offset.
async fn all_rows(
    spec: &Spec,
    parallelism: u32,
    log: &TestLog,
) -> BTreeMap<(u32, i64), RecordBatch> {
    let mut all = BTreeMap::new();
    for task_index in 0..parallelism {
        let context = SourceContext {
            task_index,
            parallelism,
            restored: None,
            log: log.client.clone(),
            clock: Arc::new(ManualClock::default()),
        };
        let columns = spec.generator.columns();
        let mut source = GeneratorSource::open("g", spec, &columns, &context).unwrap();
        loop {
            match source.next().await.unwrap() {
                SourceEvent::Rows(read) => {
                    let origin = read.rows.origin.unwrap();
                    for i in 0..read.rows.batch.num_rows() {
                        let place = (origin.partition, origin.offsets.value(i));
                        let again = all.insert(place, read.rows.batch.slice(i, 1));
                        assert!(again.is_none(), "{place:?} came twice");
                    }
                }
                SourceEvent::Exhausted => break,
                SourceEvent::Ended { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    all
}

#[tokio::test]
async fn a_bounded_stream_has_the_same_rows_at_any_parallelism() {
    let log = TestLog::start("t", 1);
    let spec = Spec {
        rows: Some(10_007),
        ..spec(GeneratorKind::Sensors, 5)
    };
    let alone = all_rows(&spec, 1, &log).await;
    assert_eq!(alone.len(), 10_007);
    for parallelism in [2, 3, 7] {
        assert_eq!(all_rows(&spec, parallelism, &log).await, alone);
    }
    let batches: Vec<&RecordBatch> = alone.values().collect();
    let whole = concat_batches(&batches[0].schema(), batches).unwrap();
    let mut sensors = integers(&whole, "sensor");
    sensors.sort_unstable();
    let mut expected = integers(&rows(GeneratorKind::Sensors, 5, 0..10_007), "sensor");
    expected.sort_unstable();
    assert_eq!(sensors, expected);
}

#[tokio::test]
async fn a_restored_source_goes_on_where_it_was_at_once() {
    let log = TestLog::start("t", 1);
    let spec = spec(GeneratorKind::NexmarkBid, 9);
    let columns = spec.generator.columns();
    let far = 1_000_000_000_000;
    let context = SourceContext {
        task_index: 1,
        parallelism: 2,
        restored: Some(vec![SplitState {
            split: "3".into(),
            position: far,
            end: None,
            of: None,
        }]),
        log: log.client.clone(),
        clock: Arc::new(ManualClock::default()),
    };
    let mut source = GeneratorSource::open("g", &spec, &columns, &context).unwrap();
    let positions: Vec<_> = source
        .splits()
        .iter()
        .map(|s| (s.split.to_string(), s.position))
        .collect();
    assert_eq!(positions, [("1".to_owned(), 0), ("3".to_owned(), far)]);
    let (_, second) = (source.next().await.unwrap(), source.next().await.unwrap());
    let SourceEvent::Rows(read) = second else {
        panic!("{second:?}");
    };
    let first = u64::try_from(far).unwrap() * 4 + 3;
    assert_eq!(
        read.rows.batch.slice(0, 1),
        rows(spec.generator, 9, first..first + 1)
    );
}

#[tokio::test]
async fn a_rate_is_kept_by_the_clock() {
    let log = TestLog::start("t", 1);
    let clock = Arc::new(ManualClock::default());
    let spec = Spec {
        rate: Some(4_000),
        ..spec(GeneratorKind::Payments, 1)
    };
    let context = SourceContext {
        task_index: 0,
        parallelism: 1,
        restored: None,
        log: log.client.clone(),
        clock: clock.clone(),
    };
    let mut source =
        GeneratorSource::open("g", &spec, &spec.generator.columns(), &context).unwrap();
    assert!(source.event_now().is_none());
    clock.advance(Span(500));
    let mut given = 0;
    while let Some(SourceEvent::Rows(read)) = source.event_now() {
        given += read.rows.len();
    }
    assert_eq!(given, 2_000);
    clock.advance(Span(1_000));
    let Ok(SourceEvent::Rows(read)) = source.next().await else {
        panic!("rows are due");
    };
    assert_eq!(read.rows.len(), 1_000, "a quarter, of one split");
}

#[test]
fn the_auction_house_keeps_nexmarks_proportions() {
    let bids = rows(GeneratorKind::NexmarkBid, 3, 0..46_000);
    let auctions = rows(GeneratorKind::NexmarkAuction, 3, 0..3_000);
    let persons = rows(GeneratorKind::NexmarkPerson, 3, 0..1_000);
    // 50,000 events at 10,000 a second.
    let times = |batch: &RecordBatch| {
        batch["date_time"]
            .as_primitive::<TimestampMillisecondType>()
            .values()
            .to_vec()
    };
    for batch in [&bids, &auctions, &persons] {
        let times = times(batch);
        assert!(times.is_sorted());
        assert!((START_MS..START_MS + 10).contains(&times[0]));
        assert!((4_990..5_000).contains(&(times.last().unwrap() - START_MS)));
    }
    // A bid is on an auction that was opened before, by a person who had come before.
    let (opened, came) = (times(&auctions), times(&persons));
    let known = |id: i64| usize::try_from(id - 1_000).unwrap();
    for ((auction, bidder), time) in integers(&bids, "auction")
        .into_iter()
        .zip(integers(&bids, "bidder"))
        .zip(times(&bids))
    {
        assert!(opened[known(auction)] <= time);
        // The hot bidder is the second of its hundred, and may be about to come.
        assert!(bidder % 100 == 1 || came[known(bidder)] <= time);
    }
    let hot = integers(&bids, "auction")
        .iter()
        .filter(|a| **a % 100 == 0)
        .count();
    assert!(
        (22_000..26_000).contains(&hot),
        "{hot} bids on hot auctions"
    );
    let hot = integers(&bids, "bidder")
        .iter()
        .filter(|b| **b % 100 == 1)
        .count();
    assert!((33_000..37_000).contains(&hot), "{hot} bids of hot bidders");
    let prices = integers(&bids, "price");
    assert!(
        prices
            .iter()
            .all(|price| (100..=100_000_000).contains(price))
    );
    let cheap = prices.iter().filter(|price| **price < 100_000).count();
    assert!(
        (22_000..24_000).contains(&cheap),
        "{cheap} prices below the middle power"
    );
    let (initial, reserve) = (
        integers(&auctions, "initial_bid"),
        integers(&auctions, "reserve"),
    );
    assert!(
        initial
            .iter()
            .zip(reserve)
            .all(|(initial, reserve)| *initial < reserve)
    );
    let categories: BTreeSet<i64> = integers(&auctions, "category").into_iter().collect();
    assert_eq!(categories, (10..15).collect());
}

#[test]
fn sessions_follow_their_plans() {
    let clicks = rows(GeneratorKind::Clickstream, 4, 0..200_000);
    let actions = texts(&clicks, "action");
    let users = integers(&clicks, "user_id");
    let mut sessions: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (row, session) in integers(&clicks, "session").into_iter().enumerate() {
        sessions.entry(session).or_default().push(row);
    }
    let (mut bought, mut abandoned, mut looked) = (0, 0, 0);
    for rows in sessions.values() {
        assert!(rows.len() <= 13);
        assert!(rows.iter().all(|row| users[*row] == users[rows[0]]));
        let said: Vec<&str> = rows.iter().map(|row| actions[*row].as_str()).collect();
        let (cart, purchase) = (said.contains(&"add_to_cart"), said.contains(&"purchase"));
        if purchase {
            assert_eq!(said.last(), Some(&"purchase"), "{said:?}");
        }
        bought += usize::from(purchase);
        abandoned += usize::from(cart && !purchase);
        looked += usize::from(!cart && !purchase);
    }
    for (what, count) in [
        ("bought", bought),
        ("abandoned", abandoned),
        ("looked", looked),
    ] {
        assert!(
            count * 8 > sessions.len(),
            "{count} of {} sessions {what}",
            sessions.len()
        );
    }
    let times = clicks["ts"]
        .as_primitive::<TimestampMillisecondType>()
        .values();
    let most_late = times.iter().scan(i64::MIN, |latest, time| {
        *latest = (*latest).max(*time);
        Some(*latest - time)
    });
    let most_late = most_late.max().unwrap();
    assert!(
        (1_000..=2_000).contains(&most_late),
        "clicks come up to {most_late} ms late"
    );
}

#[test]
fn thefts_are_bursts_of_large_payments_far_from_home() {
    let payments = rows(GeneratorKind::Payments, 4, 0..100_000);
    let fraud = payments["is_fraud"].as_boolean();
    let amounts = payments["amount"].as_primitive::<Float64Type>();
    let (mut stolen, mut usual) = (Vec::new(), Vec::new());
    let mut cards: BTreeMap<i64, BTreeSet<String>> = BTreeMap::new();
    let (ids, countries) = (integers(&payments, "card"), texts(&payments, "country"));
    for row in 0..payments.num_rows() {
        let sums = if fraud.value(row) {
            &mut stolen
        } else {
            &mut usual
        };
        sums.push(amounts.value(row));
        if !fraud.value(row) {
            cards
                .entry(ids[row])
                .or_default()
                .insert(countries[row].clone());
        }
    }
    assert_eq!(stolen.len(), 1_000);
    assert!(
        cards.values().all(|countries| countries.len() == 1),
        "people pay at home"
    );
    let away = (0..payments.num_rows())
        .filter(|row| fraud.value(*row))
        .all(|row| {
            cards
                .get(&ids[row])
                .is_none_or(|home| !home.contains(&countries[row]))
        });
    assert!(away);
    let mean =
        |sums: &[f64]| sums.iter().sum::<f64>() / f64::from(u32::try_from(sums.len()).unwrap());
    assert!(mean(&stolen) > 5.0 * mean(&usual));
}

#[test]
fn sensors_follow_the_day_and_drift_now_and_then() {
    // One reading of each sensor every 100 ms; a day has 864,000 of them. Take one sensor, every minute.
    let readings = rows(
        GeneratorKind::Sensors,
        4,
        (0..1_440).map(|minute| minute * 60_000 + 17),
    );
    assert!(
        integers(&readings, "sensor")
            .iter()
            .all(|sensor| *sensor == 18)
    );
    let temperatures = readings["temperature"].as_primitive::<Float64Type>();
    let anomalies = readings["is_anomaly"].as_boolean();
    let calm: Vec<f64> = (0..1_440)
        .filter(|row| !anomalies.value(*row))
        .map(|row| temperatures.value(row))
        .collect();
    let (low, high) = calm.iter().fold((f64::MAX, f64::MIN), |(low, high), t| {
        (low.min(*t), high.max(*t))
    });
    assert!(
        (9.0..16.0).contains(&(high - low)),
        "from {low} to {high} in a day"
    );
    let drifting = (0..1_440).filter(|row| anomalies.value(*row)).count();
    assert!(
        (10..60).contains(&drifting),
        "{drifting} of 1440 readings drift"
    );
    let hottest = (0..1_440)
        .filter(|row| anomalies.value(*row))
        .map(|row| temperatures.value(row));
    assert!(hottest.fold(f64::MAX, f64::min) > low + 20.0);
}
