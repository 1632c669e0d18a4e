//! Windows give what they should, once, whatever happens between the rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use common::plan::task_graph::PlannedOperator;
use proptest::prelude::*;

use super::build;
use super::custom::CustomOperators;
use super::harness::{Harness, batch, from_topic, planned};
use crate::keyed_state::codec::bigint_key;
use crate::task::dead_letter::Reason;
use crate::task::message::{Rows, kind};

const COLUMNS: &[&str] = &["k BIGINT", "v BIGINT", "ts TIMESTAMP(3)"];
const OUTPUT: &[&str] = &[
    "k BIGINT",
    "window_start TIMESTAMP(3)",
    "window_end TIMESTAMP(3)",
    "n BIGINT",
    "total BIGINT",
];

fn counting(window: &str, lateness: &str) -> PlannedOperator {
    let spec = format!(
        r#"{{"type": "window_aggregate", "id": "w", "inputs": ["in"], "keys": ["k"], "window": {window},
            "time": "ts", "allowed_lateness": "{lateness}",
            "aggregates": [{{"fn": "count", "as": "n"}}, {{"fn": "sum", "args": ["v"], "as": "total"}}]}}"#
    );
    planned(&spec, &[COLUMNS], OUTPUT)
}

const TUMBLING: &str = r#"{"type": "tumbling", "size": "10ms"}"#;
const HOPPING: &str = r#"{"type": "hopping", "size": "10ms", "slide": "4ms"}"#;

/// Rows of key, value and time.
fn rows(rows: &[(Option<i64>, i64, Option<i64>)]) -> Rows {
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| Some(row.1)).collect::<Int64Array>()),
        Arc::new(
            rows.iter()
                .map(|row| row.2)
                .collect::<TimestampMillisecondArray>(),
        ),
    ];
    from_topic(batch(COLUMNS, arrays))
}

fn timed(times: &[i64]) -> Rows {
    let all: Vec<_> = times.iter().map(|time| (Some(1), 1, Some(*time))).collect();
    rows(&all)
}

/// A result: key, start, end, count, sum.
type Fired = (Option<i64>, i64, i64, i64, i64);

fn fired(harness: &mut Harness) -> Vec<Fired> {
    let mut all = Vec::new();
    for rows in std::mem::take(&mut harness.outputs.rows) {
        let numbers = |i: usize| rows.batch.column(i).as_primitive::<Int64Type>();
        let times = |i: usize| {
            rows.batch
                .column(i)
                .as_primitive::<TimestampMillisecondType>()
        };
        for row in 0..rows.len() {
            let key = numbers(0).is_valid(row).then(|| numbers(0).value(row));
            all.push((
                key,
                times(1).value(row),
                times(2).value(row),
                numbers(3).value(row),
                numbers(4).value(row),
            ));
        }
    }
    all
}

#[test]
fn a_tumbling_window_fires_once_when_the_watermark_reaches_its_end() {
    let mut harness = Harness::new(&counting(TUMBLING, "0ms"));
    harness.process(rows(&[
        (Some(7), 1, Some(0)),
        (Some(3), 2, Some(9)),
        (Some(7), 4, Some(9)),
        (None, 8, Some(5)),
        (Some(7), 16, Some(10)),
    ]));
    harness.watermark(9);
    assert_eq!(fired(&mut harness), []);
    harness.watermark(10);
    assert_eq!(
        fired(&mut harness),
        [
            (None, 0, 10, 1, 8),
            (Some(3), 0, 10, 1, 2),
            (Some(7), 0, 10, 2, 5)
        ]
    );
    harness.watermark(i64::MAX);
    assert_eq!(fired(&mut harness), [(Some(7), 10, 20, 1, 16)]);
    assert_eq!(harness.state.tables["slices"].namespaces().count(), 0);
}

#[test]
fn a_row_of_a_hopping_window_is_in_all_windows_that_contain_it() {
    let mut harness = Harness::new(&counting(HOPPING, "0ms"));
    harness.process(timed(&[9]));
    harness.watermark(i64::MAX);
    let windows: Vec<_> = fired(&mut harness)
        .iter()
        .map(|w| (w.1, w.2, w.3))
        .collect();
    assert_eq!(windows, [(0, 10, 1), (4, 14, 1), (8, 18, 1)]);
}

#[test]
fn a_row_is_late_once_all_its_windows_have_closed_and_then_a_dead_letter() {
    let mut harness = Harness::new(&counting(HOPPING, "0ms"));
    harness.watermark(14);
    // 7 is in [0, 10) and [4, 14), which have closed; 8 is also in [8, 18).
    harness.process(timed(&[7, 8]));
    assert_eq!(harness.outputs.late_rows, 1);
    let letter = &harness.outputs.dead_letters[0];
    assert_eq!(letter.reason, Reason::Late);
    assert_eq!(
        letter.value.as_ref(),
        br#"{"k":1,"v":1,"ts":"1970-01-01T00:00:00.007"}"#
    );
    assert_eq!(letter.origin.as_ref().unwrap().offset, 100);
    assert!(letter.detail.contains("00.014Z"), "{}", letter.detail);
    harness.watermark(i64::MAX);
    let windows: Vec<_> = fired(&mut harness).iter().map(|w| (w.1, w.3)).collect();
    assert_eq!(windows, [(8, 1)]);
}

#[test]
fn allowed_lateness_keeps_windows_open_for_so_much_longer() {
    let mut harness = Harness::new(&counting(TUMBLING, "5ms"));
    harness.process(timed(&[1]));
    harness.watermark(14);
    harness.process(timed(&[2]));
    assert_eq!(fired(&mut harness), []);
    harness.watermark(15);
    assert_eq!(fired(&mut harness), [(Some(1), 0, 10, 2, 2)]);
    harness.process(timed(&[3]));
    assert_eq!(harness.outputs.late_rows, 1);
}

#[test]
fn a_row_without_a_time_or_beyond_all_windows_is_given_up_and_the_others_count() {
    let mut harness = Harness::new(&counting(TUMBLING, "0ms"));
    harness.process(rows(&[
        (Some(1), 1, Some(1)),
        (Some(1), 1, None),
        (Some(1), 1, Some(i64::MAX)),
        (Some(1), 1, Some(2)),
    ]));
    let reasons: Vec<_> = harness
        .outputs
        .dead_letters
        .iter()
        .map(|l| l.reason)
        .collect();
    assert_eq!(reasons, [Reason::BadRecord, Reason::BadRecord]);
    harness.watermark(i64::MAX);
    assert_eq!(fired(&mut harness), [(Some(1), 0, 10, 2, 2)]);
}

#[test]
fn windows_before_1970_are_windows_too() {
    let mut harness = Harness::new(&counting(TUMBLING, "0ms"));
    harness.process(timed(&[-1, -10, -11]));
    harness.watermark(0);
    let windows: Vec<_> = fired(&mut harness).iter().map(|w| (w.1, w.3)).collect();
    assert_eq!(windows, [(-20, 1), (-10, 2)]);
}

#[test]
fn far_apart_rows_do_not_make_a_watermark_visit_the_windows_between() {
    let mut harness = Harness::new(&counting(TUMBLING, "0ms"));
    harness.process(timed(&[0, 1 << 60]));
    harness.watermark(i64::MAX);
    assert_eq!(fired(&mut harness).len(), 2);
}

#[test]
fn windows_without_keys_have_one_row_and_empty_ones_none() {
    let spec = r#"{"type": "window_aggregate", "id": "w", "inputs": ["in"], "time": "ts",
        "window": {"type": "tumbling", "size": "10ms"}, "aggregates": [{"fn": "count", "as": "n"}]}"#;
    let planned = planned(spec, &[COLUMNS], &OUTPUT[1..4]);
    let mut harness = Harness::new(&planned);
    harness.process(timed(&[1, 2, 35]));
    harness.seal();
    harness.process(timed(&[3]));
    harness.watermark(i64::MAX);
    assert_eq!(
        harness.table(),
        "\
+-------------------------+-------------------------+---+
| window_start            | window_end              | n |
+-------------------------+-------------------------+---+
| 1970-01-01T00:00:00     | 1970-01-01T00:00:00.010 | 3 |
| 1970-01-01T00:00:00.030 | 1970-01-01T00:00:00.040 | 1 |
+-------------------------+-------------------------+---+"
    );
}

#[test]
fn several_keys_of_any_type_and_filters_come_out_in_the_plans_order() {
    let columns = &["name VARCHAR", "k BIGINT", "ts TIMESTAMP(3)"];
    let spec = r#"{"type": "window_aggregate", "id": "w", "inputs": ["in"], "time": "ts",
        "keys": ["name", {"expr": "k % 2", "as": "odd"}], "window": {"type": "tumbling", "size": "10ms"},
        "aggregates": [{"fn": "count", "as": "big", "filter": "k > 2"}, {"fn": "max", "args": ["k"], "as": "most"},
            {"fn": "count", "args": ["name"], "distinct": true, "as": "names"}]}"#;
    let output = &[
        "name VARCHAR",
        "odd BIGINT",
        "window_start TIMESTAMP(3)",
        "window_end TIMESTAMP(3)",
        "big BIGINT",
        "most BIGINT",
        "names BIGINT",
    ];
    let planned = planned(spec, &[columns], output);
    let mut harness = Harness::new(&planned);
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![
            Some("b"),
            Some("a"),
            None,
            Some("b"),
            Some("b"),
        ])),
        Arc::new(Int64Array::from(vec![1, 2, 3, 4, 5])),
        Arc::new(TimestampMillisecondArray::from(vec![0; 5])),
    ];
    harness.process(from_topic(batch(columns, arrays)));
    harness.watermark(i64::MAX);
    assert_eq!(
        harness.table(),
        "\
+------+-----+---------------------+-------------------------+-----+------+-------+
| name | odd | window_start        | window_end              | big | most | names |
+------+-----+---------------------+-------------------------+-----+------+-------+
|      | 1   | 1970-01-01T00:00:00 | 1970-01-01T00:00:00.010 | 1   | 3    | 0     |
| a    | 0   | 1970-01-01T00:00:00 | 1970-01-01T00:00:00.010 | 0   | 2    | 1     |
| b    | 0   | 1970-01-01T00:00:00 | 1970-01-01T00:00:00.010 | 1   | 4    | 1     |
| b    | 1   | 1970-01-01T00:00:00 | 1970-01-01T00:00:00.010 | 1   | 5    | 1     |
+------+-----+---------------------+-------------------------+-----+------+-------+"
    );
}

#[test]
fn state_reads_as_keys_windows_and_results() {
    let mut harness = Harness::new(&counting(TUMBLING, "0ms"));
    harness.process(rows(&[(Some(7), 5, Some(12)), (Some(7), 6, Some(13))]));
    harness.seal();
    let key = harness.operator.encode_key(&serde_json::json!(7)).unwrap();
    assert_eq!(key, bigint_key(7));
    assert_eq!(
        harness.operator.encode_key(&serde_json::json!([7])),
        Some(key.clone())
    );
    assert_eq!(
        harness.operator.encode_key(&serde_json::json!("7")),
        Some(key.clone())
    );
    for wrong in [
        serde_json::json!("x"),
        serde_json::json!([1, 2]),
        serde_json::json!(true),
    ] {
        assert_eq!(harness.operator.encode_key(&wrong), None, "{wrong}");
    }
    let value = harness.state.tables["slices"].get(10, &key).unwrap();
    let entry = harness
        .operator
        .describe("slices", 10, &key, value)
        .unwrap();
    assert_eq!(
        serde_json::to_value(&entry).unwrap(),
        serde_json::json!({"key": {"k": 7}, "window": [10, 20], "value": {"n": 2, "total": 11}})
    );
    assert_eq!(harness.operator.describe("slices", 10, &key, b"\x01"), None);
}

#[test]
fn rows_that_are_taken_back_are_refused() {
    let mut operator = build(&counting(TUMBLING, "0ms"), &CustomOperators::default()).unwrap();
    let mut harness = Harness::new(&counting(TUMBLING, "0ms"));
    let mut deleted = timed(&[1]);
    deleted.kinds = Some(vec![kind::DELETE].into());
    harness.call(|_, context| {
        let error = operator.process(0, deleted, context).unwrap_err();
        assert!(error.fatal);
        Ok(())
    });
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let no_time = |mut planned: PlannedOperator, from: &str, to: &str| {
        let spec = serde_json::to_string(&planned.spec)
            .unwrap()
            .replace(from, to);
        planned.spec = serde_json::from_str(&spec).unwrap();
        build(&planned, &CustomOperators::default()).unwrap_err()
    };
    for (from, to, word) in [
        (
            r#""time":"ts""#,
            r#""time":"missing""#,
            "no column \"missing\"",
        ),
        (r#""time":"ts""#, r#""time":"k""#, "no TIMESTAMP"),
        (r#""fn":"sum""#, r#""fn":"median""#, "median"),
        (r#""fn":"sum""#, r#""fn":"avg""#, "the plan has BIGINT"),
    ] {
        let problem = no_time(counting(TUMBLING, "0ms"), from, to);
        assert!(problem.detail.contains(word), "{to}: {problem}");
    }
}

/// What happens to an operator, besides a watermark at the end.
#[derive(Clone, Debug)]
enum Step {
    Rows(Vec<(Option<i64>, i64, i64)>),
    /// The watermark rises by so much.
    Watermark(i64),
    Seal,
    /// Everything since the last seal is lost and comes again.
    Fail,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let row = (prop::option::weighted(0.9, 0_i64..6), -5_i64..20, 0_i64..60);
    let step = prop_oneof![
        4 => prop::collection::vec(row, 1..30).prop_map(Step::Rows),
        2 => (1_i64..15).prop_map(Step::Watermark),
        2 => Just(Step::Seal),
        1 => Just(Step::Fail),
    ];
    prop::collection::vec(step, 1..20)
}

/// Windows over rows one by one, in maps.
#[derive(Clone, Default)]
struct Reference {
    windows: BTreeMap<(i64, Option<i64>), (i64, i64)>,
    late: u64,
    fired: Vec<Fired>,
}

impl Reference {
    fn row(
        &mut self,
        size: i64,
        slide: i64,
        closes: impl Fn(i64) -> bool,
        row: (Option<i64>, i64, i64),
    ) {
        let (key, value, time) = row;
        let open: Vec<i64> = (time - size + 1..=time)
            .filter(|start| start.rem_euclid(slide) == 0 && !closes(*start))
            .collect();
        self.late += u64::from(open.is_empty());
        for start in open {
            let window = self.windows.entry((start, key)).or_default();
            *window = (window.0 + 1, window.1 + value);
        }
    }

    fn fire(&mut self, size: i64, closes: impl Fn(i64) -> bool) {
        let due: Vec<_> = self
            .windows
            .keys()
            .copied()
            .filter(|(start, _)| closes(*start))
            .collect();
        for (start, key) in due {
            let (count, sum) = self.windows.remove(&(start, key)).unwrap();
            self.fired.push((key, start, start + size, count, sum));
        }
    }
}

proptest! {
    #[test]
    fn windows_are_exact_over_any_batches_barriers_and_failures(
        steps in steps(),
        (size, slide) in prop::sample::select(vec![(10, 10), (10, 4), (12, 3), (7, 7), (9, 1)]),
        lateness in prop::sample::select(vec![0_i64, 6]),
    ) {
        let window = format!(r#"{{"type": "hopping", "size": "{size}ms", "slide": "{slide}ms"}}"#);
        let planned = counting(&window, &format!("{lateness}ms"));
        let closes = |watermark: i64| move |start: i64| start + size + lateness <= watermark;
        let mut harness = Harness::new(&planned);
        let mut reference = Reference::default();
        let mut watermark = i64::MIN / 4;
        let mut late = 0;
        // A failure goes back to the tables of the last seal, and what came since then comes again.
        let mut since_seal: Vec<Step> = Vec::new();
        let mut sealed = (harness_tables(&harness), watermark, reference.clone());

        let mut queue: std::collections::VecDeque<Step> = steps.into();
        queue.push_back(Step::Watermark(1_000));
        while let Some(step) = queue.pop_front() {
            match &step {
                Step::Rows(batch) => {
                    for row in batch {
                        reference.row(size, slide, closes(watermark), *row);
                    }
                    let batch: Vec<_> = batch.iter().map(|row| (row.0, row.1, Some(row.2))).collect();
                    harness.process(rows(&batch));
                }
                Step::Watermark(by) => {
                    watermark = watermark.max(0) + by;
                    harness.watermark(watermark);
                    reference.fire(size, closes(watermark));
                }
                Step::Seal => {
                    harness.seal();
                    late += std::mem::take(&mut harness.outputs.late_rows);
                    let expected = std::mem::take(&mut reference.fired);
                    prop_assert_eq!(fired(&mut harness), expected);
                    prop_assert_eq!(late, reference.late);
                    sealed = (harness_tables(&harness), watermark, reference.clone());
                    since_seal.clear();
                }
                Step::Fail => {
                    harness = Harness::new(&planned);
                    for (namespace, key, value) in &sealed.0 {
                        harness.state.tables.entry("slices".into()).or_default().put(*namespace, key, value);
                    }
                    watermark = sealed.1;
                    harness.watermark = common::time::Timestamp(watermark);
                    harness.restore(&planned);
                    reference = sealed.2.clone();
                    for step in since_seal.drain(..).rev() {
                        queue.push_front(step);
                    }
                }
            }
            if !matches!(step, Step::Seal | Step::Fail) {
                since_seal.push(step);
            }
        }
        prop_assert_eq!(fired(&mut harness), reference.fired);
        prop_assert!(reference.windows.is_empty());
    }
}

/// Every entry of the operator's table.
fn harness_tables(harness: &Harness) -> Vec<(i64, Vec<u8>, Vec<u8>)> {
    let mut entries = Vec::new();
    for table in harness.state.tables.values() {
        for namespace in table.namespaces() {
            table.for_each(namespace, |key, value| {
                entries.push((namespace, key.to_vec(), value.to_vec()));
            });
        }
    }
    entries
}
