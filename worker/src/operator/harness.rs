//! Runs one operator as a task would, for tests.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::util::pretty::pretty_format_batches;
use common::key_group::KeyGroupRange;
use common::plan::edge::ChangelogMode;
use common::plan::operator::OperatorSpec;
use common::plan::task_graph::PlannedOperator;
use common::schema::{Column, to_arrow_schema};
use common::time::Timestamp;

use super::custom::CustomOperators;
use super::{Operator, OperatorError, build};
use crate::task::context::{Context, OperatorState, Outputs};
use crate::task::message::{Origin, Rows, kind};

pub(super) const KEY_GROUPS: u16 = 256;

/// An operator with its state and what it gave so far.
#[derive(Debug)]
pub(super) struct Harness {
    pub(super) operator: Box<dyn Operator>,
    pub(super) state: OperatorState,
    pub(super) outputs: Outputs,
    pub(super) watermark: Timestamp,
}

impl Harness {
    pub(super) fn new(planned: &PlannedOperator) -> Harness {
        Harness {
            operator: build(planned, &CustomOperators::default()).unwrap(),
            state: OperatorState::default(),
            outputs: Outputs::default(),
            watermark: Timestamp::MIN,
        }
    }

    pub(super) fn call<T>(
        &mut self,
        act: impl FnOnce(&mut dyn Operator, &mut Context<'_>) -> Result<T, OperatorError>,
    ) -> T {
        let mut context = Context::new(
            &mut self.state,
            &mut self.outputs,
            self.watermark,
            KeyGroupRange::of_task(0, KEY_GROUPS, 1),
            KEY_GROUPS,
        );
        act(self.operator.as_mut(), &mut context).unwrap()
    }

    pub(super) fn process(&mut self, rows: Rows) {
        self.call(|operator, context| operator.process(0, rows, context));
    }

    pub(super) fn watermark(&mut self, milliseconds: i64) {
        let watermark = Timestamp(milliseconds);
        self.call(|operator, context| operator.watermark(watermark, context));
        self.watermark = watermark;
    }

    pub(super) fn seal(&mut self) {
        self.call(|operator, context| operator.seal(context));
    }

    /// What a failure leaves: the tables as they were sealed, and a new operator over them.
    pub(super) fn restore(&mut self, planned: &PlannedOperator) {
        self.operator = build(planned, &CustomOperators::default()).unwrap();
        self.call(|operator, context| operator.restore(context));
    }

    /// What was given since the last time, as a text table with the kinds if there are any.
    pub(super) fn table(&mut self) -> String {
        let given = std::mem::take(&mut self.outputs.rows);
        let any_kinds = given.iter().any(|rows| rows.kinds.is_some());
        let shown: Vec<RecordBatch> = given
            .into_iter()
            .map(|rows| match any_kinds {
                true => with_kinds(rows),
                false => rows.batch,
            })
            .collect();
        pretty_format_batches(&shown).unwrap().to_string()
    }
}

fn with_kinds(rows: Rows) -> RecordBatch {
    let kinds = rows
        .kinds
        .unwrap_or_else(|| vec![kind::INSERT; rows.batch.num_rows()].into());
    let fields = rows.batch.schema();
    let mut columns: Vec<(String, ArrayRef, bool)> = fields
        .fields()
        .iter()
        .zip(rows.batch.columns())
        .map(|(field, column)| (field.name().clone(), Arc::clone(column), true))
        .collect();
    columns.push(("kind".to_owned(), Arc::new(kinds), true));
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

/// Columns as `name TYPE`, nullable unless they end in `NOT NULL`.
pub(super) fn columns(described: &[&str]) -> Vec<Column> {
    described
        .iter()
        .map(|text| {
            let nullable = !text.ends_with(" NOT NULL");
            let text = text.trim_end_matches(" NOT NULL");
            let (name, kind) = text.split_once(' ').unwrap();
            Column::new(name, kind.parse().unwrap(), nullable)
        })
        .collect()
}

/// An operator, from its JSON form, over these columns.
pub(super) fn planned(spec: &str, inputs: &[&[&str]], output: &[&str]) -> PlannedOperator {
    let spec: OperatorSpec = serde_json::from_str(spec).unwrap();
    PlannedOperator {
        spec,
        inputs: inputs.iter().map(|described| columns(described)).collect(),
        output: columns(output),
        time_column: None,
        input_mode: ChangelogMode::Append,
        output_mode: ChangelogMode::Append,
    }
}

pub(super) fn batch(described: &[&str], arrays: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(to_arrow_schema(&columns(described)), arrays).unwrap()
}

/// Rows of partition 3 of topic `in`, from offset 100.
pub(super) fn from_topic(batch: RecordBatch) -> Rows {
    let end = 100 + i64::try_from(batch.num_rows()).unwrap();
    Rows {
        origin: Some(Origin {
            source: Arc::from("in"),
            partition: 3,
            offsets: Int64Array::from_iter_values(100..end),
        }),
        ..Rows::inserts(batch)
    }
}
