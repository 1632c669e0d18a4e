//! Running aggregates say each change of a result, and only changes; taken together they are the results.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Decimal128Array, Float64Array, Int8Array, Int64Array, StringArray,
    TimestampMillisecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::DataType;
use arrow::util::display::array_value_to_string;
use common::plan::edge::ChangelogMode;
use common::plan::task_graph::PlannedOperator;
use proptest::prelude::*;

use super::build;
use super::custom::CustomOperators;
use super::harness::{Harness, batch, from_topic, planned};
use crate::keyed_state::codec::bigint_key;
use crate::task::dead_letter::Reason;
use crate::task::message::{Rows, kind};

const COLUMNS: &[&str] = &["k BIGINT", "v BIGINT"];

fn retract() -> ChangelogMode {
    ChangelogMode::Retract {
        key: vec!["k".into()],
    }
}

fn counting(input: ChangelogMode) -> PlannedOperator {
    let spec = r#"{"type": "aggregate", "id": "a", "inputs": ["in"], "keys": ["k"], "aggregates": [
        {"fn": "count", "as": "n"}, {"fn": "sum", "args": ["v"], "as": "total"}]}"#;
    let output = &["k BIGINT", "n BIGINT", "total BIGINT"];
    PlannedOperator {
        input_mode: input,
        output_mode: retract(),
        ..planned(spec, &[COLUMNS], output)
    }
}

/// Rows of key, value and kind.
fn rows(rows: &[(Option<i64>, Option<i64>, i8)]) -> Rows {
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.1).collect::<Int64Array>()),
    ];
    Rows {
        kinds: Some(Int8Array::from_iter_values(rows.iter().map(|row| row.2))),
        ..from_topic(batch(COLUMNS, arrays))
    }
}

fn inserts(pairs: &[(i64, i64)]) -> Rows {
    let all: Vec<_> = pairs
        .iter()
        .map(|(k, v)| (Some(*k), Some(*v), kind::INSERT))
        .collect();
    rows(&all)
}

#[test]
fn each_change_comes_out_once_per_batch_and_key() {
    let mut harness = Harness::new(&counting(ChangelogMode::Append));
    harness.process(inserts(&[(7, 1), (3, 2), (7, 4)]));
    harness.process(inserts(&[(9, 1), (7, 8)]));
    assert_eq!(
        harness.table(),
        "\
+---+---+-------+------+
| k | n | total | kind |
+---+---+-------+------+
| 7 | 2 | 5     | 0    |
| 3 | 1 | 2     | 0    |
| 9 | 1 | 1     | 0    |
| 7 | 2 | 5     | 1    |
| 7 | 3 | 13    | 2    |
+---+---+-------+------+"
    );
}

#[test]
fn a_group_that_loses_its_last_row_is_deleted_and_a_row_that_was_never_added_is_given_up() {
    let mut harness = Harness::new(&counting(retract()));
    harness.process(inserts(&[(1, 10), (2, 20), (1, 30)]));
    harness.outputs.rows.clear();
    harness.process(rows(&[
        (Some(1), Some(10), kind::UPDATE_BEFORE),
        (Some(1), Some(11), kind::UPDATE_AFTER),
        (Some(2), Some(20), kind::DELETE),
        (Some(2), Some(20), kind::DELETE),
        (Some(5), Some(1), kind::INSERT),
        (Some(5), Some(1), kind::DELETE),
    ]));
    assert_eq!(
        harness.table(),
        "\
+---+---+-------+------+
| k | n | total | kind |
+---+---+-------+------+
| 1 | 2 | 40    | 1    |
| 1 | 2 | 41    | 2    |
| 2 | 1 | 20    | 3    |
+---+---+-------+------+"
    );
    let letters = &harness.outputs.dead_letters;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].reason, Reason::BadRecord);
    assert_eq!(letters[0].origin.as_ref().unwrap().offset, 103);
    let keys: Vec<Vec<u8>> = entries(&harness).into_keys().collect();
    assert_eq!(keys, [bigint_key(1)]);
}

#[test]
fn a_result_that_stays_the_same_is_not_repeated() {
    let mut harness = Harness::new(&counting(retract()));
    harness.process(inserts(&[(1, 10)]));
    harness.outputs.rows.clear();
    harness.process(rows(&[
        (Some(1), Some(10), kind::UPDATE_BEFORE),
        (Some(1), Some(10), kind::UPDATE_AFTER),
    ]));
    assert!(harness.outputs.rows.is_empty());
}

#[test]
fn where_rows_are_found_by_key_the_result_before_is_left_out() {
    let planned = PlannedOperator {
        output_mode: ChangelogMode::Upsert {
            key: vec!["k".into()],
        },
        ..counting(ChangelogMode::Append)
    };
    let mut harness = Harness::new(&planned);
    harness.process(inserts(&[(1, 10)]));
    harness.outputs.rows.clear();
    harness.process(inserts(&[(1, 5)]));
    let given = &harness.outputs.rows[0];
    assert_eq!(
        given.kinds.as_ref().unwrap().values(),
        &[kind::UPDATE_AFTER]
    );
}

#[test]
fn keys_alone_come_out_once_each() {
    let spec =
        r#"{"type": "aggregate", "id": "a", "inputs": ["in"], "keys": ["k"], "aggregates": []}"#;
    let planned = PlannedOperator {
        output_mode: ChangelogMode::Append,
        ..planned(spec, &[COLUMNS], &["k BIGINT"])
    };
    let mut harness = Harness::new(&planned);
    harness.process(inserts(&[(2, 0), (1, 0), (2, 0)]));
    harness.process(inserts(&[(1, 0), (3, 0)]));
    assert_eq!(
        harness.table(),
        "+---+\n| k |\n+---+\n| 2 |\n| 1 |\n| 3 |\n+---+"
    );
}

#[test]
fn without_keys_there_is_one_result() {
    let spec = r#"{"type": "aggregate", "id": "a", "inputs": ["in"],
        "aggregates": [{"fn": "max", "args": ["v"], "as": "most"}]}"#;
    let planned = PlannedOperator {
        output_mode: retract(),
        ..planned(spec, &[COLUMNS], &["most BIGINT"])
    };
    let mut harness = Harness::new(&planned);
    harness.process(inserts(&[(2, 5), (1, 9)]));
    harness.process(inserts(&[(1, 3)]));
    assert_eq!(
        harness.table(),
        "+------+\n| most |\n+------+\n| 9    |\n+------+"
    );
}

#[test]
fn state_reads_as_keys_and_results() {
    for input in [ChangelogMode::Append, retract()] {
        let mut harness = Harness::new(&counting(input));
        harness.process(inserts(&[(7, 5), (7, 6)]));
        let key = harness.operator.encode_key(&serde_json::json!(7)).unwrap();
        let entries = entries(&harness);
        let entry = harness
            .operator
            .describe("groups", 0, &key, &entries[&key])
            .unwrap();
        assert_eq!(
            serde_json::to_value(&entry).unwrap(),
            serde_json::json!({"key": {"k": 7}, "value": {"n": 2, "total": 11}})
        );
    }
}

#[test]
fn functions_that_cannot_take_a_row_back_are_refused_over_rows_that_change() {
    let spec = r#"{"type": "aggregate", "id": "a", "inputs": ["in"], "keys": ["k"],
        "aggregates": [{"fn": "stddev", "args": ["v"], "as": "spread"}]}"#;
    let planned = PlannedOperator {
        input_mode: retract(),
        output_mode: retract(),
        ..planned(spec, &[COLUMNS], &["k BIGINT", "spread DOUBLE"])
    };
    let problem = build(&planned, &CustomOperators::default()).unwrap_err();
    assert!(problem.detail.contains("take back"), "{problem}");
}

#[test]
fn a_value_that_was_never_added_is_not_taken_back() {
    let spec = r#"{"type": "aggregate", "id": "a", "inputs": ["in"], "keys": ["k"], "aggregates": [
        {"fn": "count", "as": "n"}, {"fn": "max", "args": ["v"], "as": "most"}]}"#;
    let planned = PlannedOperator {
        input_mode: retract(),
        output_mode: retract(),
        ..planned(spec, &[COLUMNS], &["k BIGINT", "n BIGINT", "most BIGINT"])
    };
    let mut harness = Harness::new(&planned);
    harness.process(inserts(&[(1, 10), (1, 30)]));
    harness.outputs.rows.clear();
    harness.process(rows(&[
        (Some(1), Some(11), kind::DELETE),
        (Some(1), Some(30), kind::DELETE),
        (Some(1), Some(30), kind::DELETE),
    ]));
    assert_eq!(
        harness.table(),
        "\
+---+---+------+------+
| k | n | most | kind |
+---+---+------+------+
| 1 | 2 | 30   | 1    |
| 1 | 1 | 10   | 2    |
+---+---+------+------+"
    );
    let offsets: Vec<i64> = harness
        .outputs
        .dead_letters
        .iter()
        .map(|letter| letter.origin.as_ref().unwrap().offset)
        .collect();
    assert_eq!(offsets, [100, 102]);
}

#[test]
fn a_group_of_more_values_than_may_be_kept_ends_the_job_and_says_why() {
    let spec = r#"{"type": "aggregate", "id": "a", "inputs": ["in"],
        "aggregates": [{"fn": "count", "args": ["v"], "distinct": true, "as": "different"}]}"#;
    let planned = PlannedOperator {
        input_mode: retract(),
        output_mode: retract(),
        ..planned(spec, &[COLUMNS], &["different BIGINT"])
    };
    let mut harness = Harness::new(&planned);
    let most = i64::try_from(common::limits::MAX_RETRACTABLE_BYTES).unwrap() / 21;
    let pairs: Vec<(i64, i64)> = (0..=most).map(|value| (1, value)).collect();
    let error = harness
        .call(|operator, context| Ok(operator.process(0, inserts(&pairs), context)))
        .unwrap_err();
    assert!(error.fatal, "{error}");
    assert!(error.reason.contains("different values"), "{error}");
}

/// Megabytes of different texts, one per row, in one group and one window.
fn megabytes(count: usize) -> Rows {
    let padding = "x".repeat((1 << 20) - 8);
    let texts = (0..count).map(|number| format!("{number:08}{padding}"));
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(texts)),
        Arc::new(TimestampMillisecondArray::from(vec![0; count])),
    ];
    from_topic(batch(TEXTS, arrays))
}

const TEXTS: &[&str] = &["s VARCHAR", "t TIMESTAMP(3)"];

/// They grew without an end.
#[test]
fn what_keeps_every_value_of_a_group_has_a_bound_in_windows_and_without() {
    let most = common::limits::MAX_GROUP_BYTES >> 20;
    let call = |function: &str, result: &str| {
        let call = format!(
            r#""aggregates": [{{"fn": "count", "as": "n"}}, {{"fn": {function}, "args": ["s"], "as": "kept"}}]"#
        );
        let running = format!(r#"{{"type": "aggregate", "id": "a", "inputs": ["in"], {call}}}"#);
        let windowed = format!(
            r#"{{"type": "window_aggregate", "id": "w", "inputs": ["in"], "time": "t",
                "window": {{"type": "tumbling", "size": "10s"}}, {call}}}"#
        );
        let bounds = ["window_start TIMESTAMP(3)", "window_end TIMESTAMP(3)"];
        let results = ["n BIGINT", result];
        [
            planned(&running, &[TEXTS], &results),
            planned(&windowed, &[TEXTS], &[&bounds[..], &results[..]].concat()),
        ]
    };
    let calls = [
        call("\"array_agg\"", "kept ARRAY<VARCHAR>"),
        call("\"count\", \"distinct\": true", "kept BIGINT"),
    ];
    for planned in calls.iter().flatten() {
        let id = planned.spec.id();
        let run = |rows: Rows| {
            let mut harness = Harness::new(planned);
            harness.call(|operator, context| {
                let processed = operator.process(0, rows, context);
                Ok(processed.and_then(|()| operator.seal(context)))
            })
        };
        run(megabytes(most - 1)).unwrap();
        let error = run(megabytes(most)).unwrap_err();
        assert!(error.fatal, "{id}: {error}");
        assert!(
            error.reason.contains("\"kept\", which keeps every value,"),
            "{id}: {error}"
        );
        assert!(!error.reason.contains("\"n\""), "{id}: {error}");
    }
}

/// The operator's table.
fn entries(harness: &Harness) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut entries = BTreeMap::new();
    if let Some(table) = harness.state.tables.get("groups") {
        table.for_each(0, |key, value| {
            entries.insert(key.to_vec(), value.to_vec());
        });
    }
    entries
}

/// A restart from a barrier right after the last batch.
fn restart(harness: &mut Harness, planned: &PlannedOperator) {
    harness.seal();
    let sealed = entries(harness);
    let outputs = std::mem::take(&mut harness.outputs);
    *harness = Harness::new(planned);
    harness.outputs = outputs;
    for (key, value) in &sealed {
        harness
            .state
            .tables
            .entry("groups".into())
            .or_default()
            .put(0, key, value);
    }
    harness.restore(planned);
}

/// Applies the changes that were given to results by key, checking that each fits what was there.
fn apply(results: &mut BTreeMap<String, Vec<String>>, given: &[Rows]) -> Result<(), TestCaseError> {
    for rows in given {
        for row in 0..rows.len() {
            let mut cells: Vec<String> = rows
                .batch
                .columns()
                .iter()
                .map(|column| match column.data_type() {
                    // Sums of floats differ by what the order of additions changes.
                    DataType::Float64 if column.is_valid(row) => {
                        let text = array_value_to_string(column, row).unwrap();
                        format!("{:.6}", text.parse::<f64>().unwrap() + 0.0)
                    }
                    _ => array_value_to_string(column, row).unwrap(),
                })
                .collect();
            let key = cells.remove(0);
            let change = rows
                .kinds
                .as_ref()
                .map_or(kind::INSERT, |kinds| kinds.value(row));
            let was = match change {
                kind::INSERT | kind::UPDATE_AFTER => results.insert(key, cells.clone()),
                _ => results.remove(&key),
            };
            match change {
                kind::INSERT | kind::UPDATE_AFTER => prop_assert_eq!(was, None),
                _ => prop_assert_eq!(was, Some(cells)),
            }
        }
    }
    Ok(())
}

const NUMBERS: &[&str] = &[
    "k BIGINT",
    "i BIGINT",
    "f DOUBLE",
    "d DECIMAL(10, 2)",
    "u INT UNSIGNED",
];

/// A key, and a number or null that becomes a value of every column.
type Numbers = (i64, Option<i32>);

fn numbers(rows: &[Numbers], kinds: Option<Vec<i8>>) -> Rows {
    let value = |row: &Numbers| row.1;
    let decimals: Decimal128Array = rows.iter().map(|row| value(row).map(i128::from)).collect();
    let unsigned = rows.iter().map(|row| value(row).map(i32::unsigned_abs));
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
        Arc::new(
            rows.iter()
                .map(|row| value(row).map(i64::from))
                .collect::<Int64Array>(),
        ),
        Arc::new(
            rows.iter()
                .map(|row| value(row).map(|v| f64::from(v) / 8.0))
                .collect::<Float64Array>(),
        ),
        Arc::new(decimals.with_precision_and_scale(10, 2).unwrap()),
        Arc::new(unsigned.collect::<arrow::array::UInt32Array>()),
    ];
    Rows {
        kinds: kinds.map(Int8Array::from),
        ..from_topic(batch(NUMBERS, arrays))
    }
}

fn all_retractable(input: ChangelogMode) -> PlannedOperator {
    let spec = r#"{"type": "aggregate", "id": "a", "inputs": ["in"], "keys": ["k"], "aggregates": [
        {"fn": "count", "as": "n"}, {"fn": "count", "args": ["i"], "as": "ni"},
        {"fn": "count", "args": ["i"], "filter": "i > 0", "as": "pos"},
        {"fn": "sum", "args": ["i"], "as": "si"}, {"fn": "sum", "args": ["f"], "as": "sf"},
        {"fn": "sum", "args": ["d"], "as": "sd"}, {"fn": "sum", "args": ["u"], "as": "su"},
        {"fn": "avg", "args": ["i"], "as": "ai"}, {"fn": "avg", "args": ["d"], "as": "ad"},
        {"fn": "avg", "args": ["f"], "filter": "i % 2 = 0", "as": "af"},
        {"fn": "min", "args": ["i"], "as": "mi"}, {"fn": "max", "args": ["f"], "as": "xf"},
        {"fn": "min", "args": ["d"], "filter": "i > 0", "as": "md"},
        {"fn": "max", "args": ["CAST(i AS VARCHAR)"], "as": "xt"},
        {"fn": "count", "args": ["i / 100"], "distinct": true, "as": "di"},
        {"fn": "count", "args": ["substr(CAST(i AS VARCHAR), 1, 1)"], "distinct": true, "filter": "i < 0",
         "as": "dt"},
        {"fn": "bool_and", "args": ["i > 0"], "as": "ba"},
        {"fn": "bool_or", "args": ["i > 0"], "as": "bo"}]}"#;
    let output = &[
        "k BIGINT",
        "n BIGINT",
        "ni BIGINT",
        "pos BIGINT",
        "si BIGINT",
        "sf DOUBLE",
        "sd DECIMAL(20, 2)",
        "su BIGINT UNSIGNED",
        "ai DOUBLE",
        "ad DECIMAL(14, 6)",
        "af DOUBLE",
        "mi BIGINT",
        "xf DOUBLE",
        "md DECIMAL(10, 2)",
        "xt VARCHAR",
        "di BIGINT",
        "dt BIGINT",
        "ba BOOLEAN",
        "bo BOOLEAN",
    ];
    PlannedOperator {
        input_mode: input,
        output_mode: retract(),
        ..planned(spec, &[NUMBERS], output)
    }
}

/// The results over all rows at once, by the functions that are not asked to take any back.
fn at_once(rows: &[Numbers]) -> Result<BTreeMap<String, Vec<String>>, TestCaseError> {
    let mut results = BTreeMap::new();
    let mut harness = Harness::new(&all_retractable(ChangelogMode::Append));
    if !rows.is_empty() {
        harness.process(numbers(rows, None));
    }
    apply(&mut results, &harness.outputs.rows)?;
    Ok(results)
}

proptest! {
    #[test]
    fn changes_add_up_to_the_results_over_any_batches_and_restarts(
        batches in prop::collection::vec(
            (prop::collection::vec((0_i64..4, prop::option::weighted(0.8, -1000_i32..1000)), 1..20), any::<bool>()), 1..6),
    ) {
        let planned = all_retractable(ChangelogMode::Append);
        let mut harness = Harness::new(&planned);
        for (rows, restarts) in &batches {
            harness.process(numbers(rows, None));
            if *restarts {
                restart(&mut harness, &planned);
            }
        }
        let mut results = BTreeMap::new();
        apply(&mut results, &harness.outputs.rows)?;
        let all: Vec<Numbers> = batches.iter().flat_map(|(rows, _)| rows.clone()).collect();
        prop_assert_eq!(results, at_once(&all)?);
    }

    /// What was added and taken back again leaves no trace.
    #[test]
    fn results_over_rows_that_change_are_those_of_the_rows_that_are_left(
        batches in prop::collection::vec(
            (prop::collection::vec((0_i64..3, prop::option::weighted(0.8, -1000_i32..1000), any::<prop::sample::Index>(), 0_u8..5), 1..15),
             any::<bool>()), 1..8),
    ) {
        let planned = all_retractable(retract());
        let mut harness = Harness::new(&planned);
        let mut left: Vec<Numbers> = Vec::new();
        for (steps, restarts) in batches {
            let (mut rows, mut kinds) = (Vec::new(), Vec::new());
            for (key, value, which, action) in steps {
                // Two in five steps take back a row that is there.
                if action < 2 && !left.is_empty() {
                    rows.push(left.swap_remove(which.index(left.len())));
                    kinds.push(if action == 0 { kind::DELETE } else { kind::UPDATE_BEFORE });
                } else {
                    left.push((key, value));
                    rows.push((key, value));
                    kinds.push(if action == 2 { kind::UPDATE_AFTER } else { kind::INSERT });
                }
            }
            harness.process(numbers(&rows, Some(kinds)));
            if restarts {
                restart(&mut harness, &planned);
            }
        }
        prop_assert!(harness.outputs.dead_letters.is_empty());
        let mut results = BTreeMap::new();
        apply(&mut results, &harness.outputs.rows)?;
        prop_assert_eq!(&results, &at_once(&left)?);
        prop_assert_eq!(entries(&harness).len(), results.len());
    }
}

#[test]
fn every_row_of_a_large_batch_is_counted() {
    let mut harness = Harness::new(&counting(ChangelogMode::Append));
    let pairs: Vec<(i64, i64)> = (0..20_000).map(|i| (i % 5_000, i)).collect();
    harness.process(inserts(&pairs));
    let given: Vec<_> = harness
        .outputs
        .rows
        .iter()
        .map(|rows| rows.batch.clone())
        .collect();
    let all = concat_batches(&given[0].schema(), &given).unwrap();
    assert_eq!(all.num_rows(), 5_000);
}
