//! What runs through several operators of one task.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::Int64Type;
use common::key_group::KeyGroupRange;
use common::plan::edge::ChangelogMode;
use common::plan::task_graph::PlannedOperator;
use common::schema::{Column, ColumnType, to_arrow_schema};
use common::time::Timestamp;

use super::chain::{Chain, Work};
use super::context::OperatorState;
use super::message::Rows;
use crate::operator::build;
use crate::operator::custom::CustomOperators;

fn column(name: &str, kind: ColumnType) -> Column {
    Column::new(name, kind, true)
}

/// Counts per 10 ms, by an event-time column, 5 ms after a window's end.
fn late_counts(id: &str, time: &str, input: Vec<Column>) -> PlannedOperator {
    let spec = format!(
        r#"{{"type": "window_aggregate", "id": "{id}", "inputs": ["in"], "time": "{time}",
            "window": {{"type": "tumbling", "size": "10ms"}}, "allowed_lateness": "5ms",
            "aggregates": [{{"fn": "count", "as": "n"}}]}}"#
    );
    PlannedOperator {
        spec: serde_json::from_str(&spec).unwrap(),
        inputs: vec![input],
        output: vec![
            column("window_start", ColumnType::Timestamp(3)),
            column("window_end", ColumnType::Timestamp(3)),
            column("n", ColumnType::BigInt),
        ],
        time_column: None,
        input_mode: ChangelogMode::Append,
        output_mode: ChangelogMode::Append,
    }
}

#[test]
fn windows_of_windows_that_wait_for_late_rows_lose_none() {
    let first = late_counts("first", "ts", vec![column("ts", ColumnType::Timestamp(3))]);
    let second = late_counts("second", "window_end", first.output.clone());
    let operators = [&first, &second]
        .map(|planned| {
            let operator = build(planned, &CustomOperators::default()).unwrap();
            (
                planned.spec.id().to_owned(),
                operator,
                OperatorState::default(),
            )
        })
        .into();
    let mut chain = Chain::new(
        operators,
        Timestamp::MIN,
        KeyGroupRange { start: 0, end: 1 },
        1,
    );

    let times: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![3, 12]));
    let schema = to_arrow_schema(&first.inputs[0]);
    let batch = RecordBatch::try_new(schema, vec![times]).unwrap();
    chain.run_all(Work::Rows(0, Rows::inserts(batch))).unwrap();
    // The window [0, 10) comes out at 15, and belongs to the second one's [10, 20): that closes 25 after
    // what its own input can still give, which is 5 behind.
    let mut given = Vec::new();
    for watermark in [14, 15, 25, 29, 30, 40] {
        let output = chain
            .run_all(Work::Watermark(Timestamp(watermark)))
            .unwrap();
        assert_eq!(output.late_rows, 0, "at {watermark}");
        let counts = output
            .rows
            .iter()
            .map(|rows| rows.batch.column(2).as_primitive::<Int64Type>().value(0));
        given.push((watermark, counts.collect::<Vec<_>>()));
    }
    let none = Vec::new;
    assert_eq!(
        given,
        [
            (14, none()),
            (15, none()),
            (25, none()),
            (29, none()),
            (30, vec![1]),
            (40, vec![1])
        ]
    );
    assert_eq!(chain.output_watermark(Timestamp(40)), Timestamp(30));
    assert_eq!(chain.output_watermark(Timestamp::MAX), Timestamp::MAX);
}
