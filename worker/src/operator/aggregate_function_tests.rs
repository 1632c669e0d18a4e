//! Every aggregate function on offer gives, over any split of its rows, what one pass over them gives.
//!
//! Rows are split over batches, barriers and restores. One pass is the function's own accumulator over
//! all rows of a key at once.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, RecordBatch,
    StringArray, TimestampMillisecondArray, UInt32Array,
};
use arrow::compute::{filter, take_record_batch};
use arrow::datatypes::{DataType, Float64Type};
use common::plan::aggregate_function::OFFERED;
use common::plan::edge::ChangelogMode;
use common::plan::expression::{Expression, NamedExpression};
use common::plan::operator::{AggregateCall, OperatorSpec, WindowAggregate};
use common::plan::task_graph::PlannedOperator;
use common::plan::window::WindowSpec;
use common::schema::{Column, ColumnType};
use common::time::Span;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::expression::Expressions;
use super::harness::{Harness, batch, columns, from_topic};

const COLUMNS: &[&str] = &[
    "k BIGINT",
    "i BIGINT",
    "f DOUBLE",
    "g DOUBLE",
    "s VARCHAR",
    "d DECIMAL(20, 4)",
    "b BOOLEAN",
    "t TIMESTAMP(3)",
    "ts TIMESTAMP(3)",
];

/// The arguments each function is tried with.
fn arguments_of(function: &str) -> &'static [&'static [&'static str]] {
    match function {
        "count" => &[&[], &["i"], &["s"], &["f"], &["d"], &["b"], &["t"]],
        "sum" | "avg" | "mean" => &[&["i"], &["f"], &["d"]],
        "min" | "max" => &[&["i"], &["f"], &["s"], &["d"], &["b"], &["t"]],
        "bool_and" | "bool_or" => &[&["b"], &["i > 0"]],
        "first_value" | "last_value" => &[&["i"], &["f"], &["s"], &["d"], &["b"], &["t"]],
        "array_agg" => &[&["i"], &["s"], &["d"], &["b"], &["t"]],
        "approx_distinct" => &[&["i"], &["s"], &["t"]],
        "approx_percentile_cont" => &[&["f", "0.5"], &["i", "0.9"]],
        // Also of columns of which one does not vary, or both are one.
        "corr" => &[
            &["f", "g"],
            &["i", "f"],
            &["f", "0.1"],
            &["i * 0 + 3", "g"],
            &["f", "f"],
        ],
        _ => &[&["f"], &["i"]],
    }
}

fn calls() -> Vec<AggregateCall> {
    let mut calls = Vec::new();
    for function in OFFERED {
        for arguments in arguments_of(function.name) {
            let can_be_distinct = function.distinct && !arguments.is_empty();
            for distinct in [false, true]
                .into_iter()
                .take(1 + usize::from(can_be_distinct))
            {
                for filter in [None, Some(Expression("i % 2 = 0".into()))] {
                    calls.push(AggregateCall {
                        function: function.name.to_owned(),
                        args: arguments
                            .iter()
                            .map(|arg| Expression((*arg).into()))
                            .collect(),
                        distinct,
                        filter,
                        name: "result".to_owned(),
                    });
                }
            }
        }
    }
    calls
}

fn text(call: &AggregateCall) -> String {
    let arguments: Vec<&str> = call.args.iter().map(|arg| arg.0.as_str()).collect();
    let arguments = if arguments.is_empty() {
        "*".to_owned()
    } else {
        arguments.join(", ")
    };
    let distinct = if call.distinct { "DISTINCT " } else { "" };
    let filter = call
        .filter
        .as_ref()
        .map(|filter| format!(" FILTER (WHERE {filter})"));
    format!(
        "{}({distinct}{arguments}){}",
        call.function,
        filter.unwrap_or_default()
    )
}

/// The operator that makes one call, per key and over one window of all rows.
fn planned_call(expressions: &Expressions, call: &AggregateCall) -> PlannedOperator {
    let compiled = expressions.compile_aggregate(&text(call)).unwrap();
    let kind = ColumnType::from_arrow(compiled.function.field().data_type()).unwrap();
    let mut output = columns(&[
        "k BIGINT",
        "window_start TIMESTAMP(3)",
        "window_end TIMESTAMP(3)",
    ]);
    output.push(Column::new("result", kind, true));
    PlannedOperator {
        spec: OperatorSpec::WindowAggregate(WindowAggregate {
            id: "w".into(),
            inputs: vec!["in".into()],
            keys: vec![NamedExpression {
                expr: Expression("k".into()),
                name: "k".into(),
            }],
            window: WindowSpec::Tumbling {
                size: Span(10),
                offset: Span(0),
            },
            time: Some("ts".into()),
            aggregates: vec![call.clone()],
            allowed_lateness: Span(0),
        }),
        inputs: vec![columns(COLUMNS)],
        output,
        time_column: None,
        input_mode: ChangelogMode::Append,
        output_mode: ChangelogMode::Append,
    }
}

#[derive(Clone, Debug)]
struct Row {
    key: i64,
    integer: Option<i64>,
    float: Option<f64>,
    other_float: Option<f64>,
    text: Option<String>,
    decimal: Option<i128>,
    truth: Option<bool>,
    time: Option<i64>,
}

fn row() -> impl Strategy<Value = Row> {
    let float = || prop_oneof![Just(0.1), Just(-7.0), -1e6..1e6_f64];
    (
        0_i64..3,
        prop::option::weighted(0.8, -50_i64..50),
        prop::option::weighted(0.8, float()),
        prop::option::weighted(0.8, float()),
        prop::option::weighted(0.8, "[a-dé]{0,3}"),
        prop::option::weighted(0.8, -1_000_000_000_i128..1_000_000_000),
        prop::option::weighted(0.8, any::<bool>()),
        prop::option::weighted(0.8, -100_i64..100),
    )
        .prop_map(
            |(key, integer, float, other_float, text, decimal, truth, time)| Row {
                key,
                integer,
                float,
                other_float,
                text,
                decimal,
                truth,
                time,
            },
        )
}

fn as_batch(rows: &[Row]) -> RecordBatch {
    fn column<'r, V, A: FromIterator<V> + Array + 'static>(
        rows: &'r [Row],
        value: impl Fn(&'r Row) -> V,
    ) -> ArrayRef {
        Arc::new(rows.iter().map(value).collect::<A>())
    }
    let decimals: Decimal128Array = rows.iter().map(|row| row.decimal).collect();
    let arrays: Vec<ArrayRef> = vec![
        column::<_, Int64Array>(rows, |row| Some(row.key)),
        column::<_, Int64Array>(rows, |row| row.integer),
        column::<_, Float64Array>(rows, |row| row.float),
        column::<_, Float64Array>(rows, |row| row.other_float),
        column::<_, StringArray>(rows, |row| row.text.as_deref()),
        Arc::new(decimals.with_precision_and_scale(20, 4).unwrap()),
        column::<_, BooleanArray>(rows, |row| row.truth),
        column::<_, TimestampMillisecondArray>(rows, |row| row.time),
        column::<_, TimestampMillisecondArray>(rows, |_| Some(5)),
    ];
    batch(COLUMNS, arrays)
}

/// What happens after a batch.
#[derive(Clone, Copy, Debug)]
enum After {
    Nothing,
    Seal,
    SealAndRestore,
}

fn batches() -> impl Strategy<Value = Vec<(Vec<Row>, After)>> {
    let after = prop_oneof![
        Just(After::Nothing),
        Just(After::Seal),
        Just(After::SealAndRestore)
    ];
    prop::collection::vec((prop::collection::vec(row(), 0..25), after), 1..7)
}

/// Per key in order: the result.
fn over_splits(planned: &PlannedOperator, batches: &[(Vec<Row>, After)]) -> Vec<(i64, ArrayRef)> {
    let mut harness = Harness::new(planned);
    for (rows, after) in batches {
        harness.process(from_topic(as_batch(rows)));
        match after {
            After::Nothing => {}
            After::Seal => harness.seal(),
            After::SealAndRestore => {
                harness.seal();
                harness.restore(planned);
            }
        }
    }
    harness.watermark(i64::MAX);
    let mut results = Vec::new();
    for rows in &harness.outputs.rows {
        let keys = rows
            .batch
            .column(0)
            .as_primitive::<arrow::datatypes::Int64Type>();
        for row in 0..rows.len() {
            results.push((keys.value(row), rows.batch.column(3).slice(row, 1)));
        }
    }
    results
}

/// The same by the function's accumulator over all rows of each key.
fn in_one_pass(
    expressions: &Expressions,
    call: &AggregateCall,
    rows: &[Row],
) -> Vec<(i64, ArrayRef)> {
    let compiled = expressions.compile_aggregate(&text(call)).unwrap();
    let all = as_batch(rows);
    let mut results = Vec::new();
    for key in 0..3 {
        let positions: Vec<u32> = (0..)
            .zip(rows)
            .filter(|(_, row)| row.key == key)
            .map(|(i, _)| i)
            .collect();
        if positions.is_empty() {
            continue;
        }
        let own = take_record_batch(&all, &UInt32Array::from(positions)).unwrap();
        let counted = compiled
            .filter
            .as_ref()
            .map(|filter| filter.evaluate(&own).unwrap().values);
        let values: Vec<ArrayRef> = compiled
            .arguments
            .iter()
            .map(|argument| argument.evaluate(&own).unwrap().values)
            .map(|values| match &counted {
                Some(counted) => filter(&values, counted.as_boolean()).unwrap(),
                None => values,
            })
            .collect();
        let mut accumulator = compiled.function.create_accumulator().unwrap();
        if !values[0].is_empty() {
            accumulator.update_batch(&values).unwrap();
        }
        results.push((key, accumulator.evaluate().unwrap().to_array().unwrap()));
    }
    results
}

/// Floats may differ by what the order of additions changes; everything else is equal.
fn close(a: &ArrayRef, b: &ArrayRef) -> bool {
    if a.data_type() != &DataType::Float64 || a.is_null(0) || b.is_null(0) {
        return a == b;
    }
    let (a, b) = (
        a.as_primitive::<Float64Type>().value(0),
        b.as_primitive::<Float64Type>().value(0),
    );
    let scale = a.abs().max(b.abs()).max(1.0);
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= scale * 1e-6
}

#[test]
fn any_split_of_the_rows_gives_what_one_pass_gives() {
    let expressions = Expressions::new(&columns(COLUMNS)).unwrap();
    let mut failing = Vec::new();
    for call in calls() {
        let planned = planned_call(&expressions, &call);
        let mut runner = TestRunner::new(Config {
            cases: 40,
            failure_persistence: None,
            ..Config::default()
        });
        let outcome = runner.run(&batches(), |batches| {
            let rows: Vec<Row> = batches.iter().flat_map(|(rows, _)| rows.clone()).collect();
            let split = over_splits(&planned, &batches);
            let whole = in_one_pass(&expressions, &call, &rows);
            prop_assert_eq!(split.len(), whole.len());
            for ((key, split), (_, whole)) in split.iter().zip(&whole) {
                prop_assert!(
                    close(split, whole),
                    "key {}: {:?} is not {:?}",
                    key,
                    split,
                    whole
                );
            }
            Ok(())
        });
        if let Err(error) = outcome {
            failing.push(format!("{}: {error}", text(&call)));
        }
    }
    assert!(failing.is_empty(), "{}", failing.join("\n"));
}
