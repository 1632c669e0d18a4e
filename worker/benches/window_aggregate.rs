//! Rows per second of the window aggregate alone: count and sum per key in tumbling windows of 10 s.
//!
//! `cargo bench -p worker --bench window_aggregate` runs in full; `cargo test` runs it small. Both check
//! every result against counts that are kept without it. In full it is also compared with what it has to
//! stand up to: one batch query of DataFusion over the same rows, which has no barriers and no windows to
//! close in time.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use common::key_group::KeyGroupRange;
use common::plan::task_graph::PlannedOperator;
use common::schema::{Column, ColumnType, to_arrow_schema};
use common::time::{SystemClock, Timestamp};
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use worker::operator::build;
use worker::operator::custom::CustomOperators;
use worker::task::context::{Context, OperatorState, Outputs};
use worker::task::message::Rows;

const KEY_GROUPS: u16 = 256;
const BATCH_ROWS: usize = 8_192;
const WINDOW_MS: i64 = 10_000;
/// Event time of a row after that of the row before it: as if 20,000 came in a second.
const ROWS_PER_MS: i64 = 20;

/// Count and sum by window start and key.
type Totals = BTreeMap<(i64, i64), (i64, i64)>;

fn main() {
    let in_full = std::env::args().any(|argument| argument == "--bench");
    let batches = if in_full { 2_000 } else { 100 };
    for keys in [1_000, 100_000] {
        let mut expected = Totals::new();
        let input: Vec<RecordBatch> = (0..batches)
            .map(|number| batch(number, keys, &mut expected))
            .collect();
        let plain = if in_full { batch_query(&input) } else { 1.0 };
        // A window is 24 batches: it comes and goes between two barriers, or it lives through three.
        for barrier_every in [100, 8] {
            let rows = run(&input, &expected, barrier_every);
            if in_full {
                println!(
                    "{keys:>7} keys, a barrier every {barrier_every:>3} batches: {:>5.1} M rows/s, {:.2} of a batch query",
                    rows / 1e6,
                    rows / plain,
                );
            }
        }
    }
}

/// Rows per second of the same in DataFusion.
fn batch_query(input: &[RecordBatch]) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime can be made");
    let clock = SystemClock::shared();
    let started = clock.tick();
    let results = runtime.block_on(async {
        let context =
            SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        let rows = MemTable::try_new(input[0].schema(), vec![input.to_vec()])
            .expect("the batches have one schema");
        context
            .register_table("bids", Arc::new(rows))
            .expect("the name is free");
        let query = format!(
            "SELECT auction, CAST(ts AS BIGINT) / {WINDOW_MS}, count(*), sum(price)
             FROM bids GROUP BY 1, 2"
        );
        let results = context.sql(&query).await.expect("the query is valid");
        results.collect().await.expect("the query runs")
    });
    let elapsed_ms = clock.tick().since(started).0.max(1);
    assert!(results.iter().map(RecordBatch::num_rows).sum::<usize>() > 0);
    (input.len() * BATCH_ROWS) as f64 * 1_000.0 / elapsed_ms as f64
}

/// Runs the batches through the operator, sealing it every so many. Answers rows per second.
fn run(input: &[RecordBatch], expected: &Totals, barrier_every: usize) -> f64 {
    let mut operator = build(&planned(), &CustomOperators::default()).expect("the plan is valid");
    let (mut state, mut outputs) = (OperatorState::default(), Outputs::default());
    let clock = SystemClock::shared();
    let started = clock.tick();
    let mut watermark = Timestamp::MIN;
    for (number, batch) in input.iter().cloned().enumerate() {
        let last_time = batch
            .column(2)
            .as_primitive::<TimestampMillisecondType>()
            .value(0);
        let mut context = context(&mut state, &mut outputs, watermark);
        operator
            .process(0, Rows::inserts(batch), &mut context)
            .expect("rows are taken");
        watermark = Timestamp(last_time);
        operator
            .watermark(watermark, &mut context)
            .expect("time may rise");
        if number % barrier_every == barrier_every - 1 {
            operator.seal(&mut context).expect("a barrier may come");
        }
    }
    let mut context = context(&mut state, &mut outputs, watermark);
    operator
        .watermark(Timestamp::MAX, &mut context)
        .expect("time may end");
    let elapsed_ms = clock.tick().since(started).0.max(1);

    assert_eq!(
        &totals(&outputs),
        expected,
        "the windows hold other rows than came"
    );
    (input.len() * BATCH_ROWS) as f64 * 1_000.0 / elapsed_ms as f64
}

fn context<'a>(
    state: &'a mut OperatorState,
    outputs: &'a mut Outputs,
    watermark: Timestamp,
) -> Context<'a> {
    let range = KeyGroupRange::of_task(0, KEY_GROUPS, 1);
    Context::new(state, outputs, watermark, range, KEY_GROUPS)
}

fn batch(number: usize, keys: i64, expected: &mut Totals) -> RecordBatch {
    let first = number * BATCH_ROWS;
    let rows: Vec<(i64, i64, i64)> = (first..first + BATCH_ROWS)
        .map(|row| {
            let row = i64::try_from(row).expect("fewer than 2^63 rows");
            // A fixed sequence that visits keys in no order that a table could profit from.
            let mixed = row.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed()) >> 16;
            (
                mixed.rem_euclid(keys),
                mixed.rem_euclid(10_000),
                row / ROWS_PER_MS,
            )
        })
        .collect();
    for (key, price, time) in &rows {
        let window = time - time.rem_euclid(WINDOW_MS);
        let total = expected.entry((window, *key)).or_default();
        *total = (total.0 + 1, total.1 + price);
    }
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1))),
        Arc::new(TimestampMillisecondArray::from_iter_values(
            rows.iter().map(|row| row.2),
        )),
    ];
    RecordBatch::try_new(to_arrow_schema(&input_columns()), arrays).expect("the columns fit")
}

fn totals(outputs: &Outputs) -> Totals {
    let mut totals = Totals::new();
    for rows in &outputs.rows {
        let numbers = |column: usize| {
            rows.batch
                .column(column)
                .as_primitive::<Int64Type>()
                .values()
        };
        let starts = rows
            .batch
            .column(1)
            .as_primitive::<TimestampMillisecondType>()
            .values();
        for row in 0..rows.len() {
            let window = (starts[row], numbers(0)[row]);
            let total = (numbers(3)[row], numbers(4)[row]);
            assert_eq!(totals.insert(window, total), None, "a window fired twice");
        }
    }
    totals
}

fn input_columns() -> Vec<Column> {
    vec![
        Column::new("auction", ColumnType::BigInt, true),
        Column::new("price", ColumnType::BigInt, true),
        Column::new("ts", ColumnType::Timestamp(3), true),
    ]
}

fn planned() -> PlannedOperator {
    let spec = r#"{"type": "window_aggregate", "id": "counts", "inputs": ["bids"], "keys": ["auction"],
        "time": "ts", "window": {"type": "tumbling", "size": "10s"},
        "aggregates": [{"fn": "count", "as": "bids"}, {"fn": "sum", "args": ["price"], "as": "total"}]}"#;
    let output = vec![
        Column::new("auction", ColumnType::BigInt, true),
        Column::new("window_start", ColumnType::Timestamp(3), false),
        Column::new("window_end", ColumnType::Timestamp(3), false),
        Column::new("bids", ColumnType::BigInt, false),
        Column::new("total", ColumnType::BigInt, true),
    ];
    PlannedOperator {
        spec: serde_json::from_str(spec).expect("the operator is valid"),
        inputs: vec![input_columns()],
        output,
        time_column: None,
        input_mode: common::plan::edge::ChangelogMode::Append,
        output_mode: common::plan::edge::ChangelogMode::Append,
    }
}
