//! Rows that an operator cannot use become dead letters, and the others go on without them.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::filter;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use bytes::Bytes;

use super::OperatorError;
use super::expression::{CompiledExpression, Evaluated};
use super::row_json::row_text;
use super::update_halves;
use crate::task::context::Context;
use crate::task::dead_letter::{DeadLetter, LetterOrigin, Reason};
use crate::task::message::Rows;

/// Evaluates expressions over rows. Rows that one of them fails on are given up; what comes back are
/// the other rows and their values. If one half of an update is given up, or not in this batch, the other is
/// a row that appears or disappears.
pub(super) fn evaluate<'e>(
    expressions: impl IntoIterator<Item = &'e CompiledExpression>,
    rows: Rows,
    operator: &str,
    context: &mut Context<'_>,
) -> Result<(Rows, Vec<ArrayRef>), OperatorError> {
    let mut columns = Vec::new();
    let mut failures = Vec::new();
    for expression in expressions {
        let Evaluated {
            values,
            failures: more,
        } = expression.evaluate(&rows.batch)?;
        columns.push(values);
        failures.extend(more);
    }
    if failures.is_empty() {
        return Ok((update_halves::keep_all(rows), columns));
    }
    // A row that several expressions failed on is given up once, for the first of them.
    failures.sort_by_key(|failure| failure.row);
    failures.dedup_by_key(|failure| failure.row);
    let mut keep = vec![true; rows.len()];
    for failure in failures {
        keep[failure.row] = false;
        give_up(
            &rows,
            failure.row,
            Reason::Expression,
            failure.detail,
            operator,
            context,
        );
    }
    let keep = BooleanArray::from(keep);
    let columns = columns
        .iter()
        .map(|column| filter(column, &keep))
        .collect::<Result<_, _>>()
        .map_err(broken)?;
    Ok((update_halves::keep(&rows, &keep).map_err(broken)?, columns))
}

/// Gives up one row.
pub(super) fn give_up(
    rows: &Rows,
    row: usize,
    reason: Reason,
    detail: String,
    operator: &str,
    context: &mut Context<'_>,
) {
    let origin = rows.origin.as_ref().map(|origin| LetterOrigin {
        topic: origin.source.to_string(),
        partition: origin.partition,
        offset: origin.offsets.value(row),
    });
    context.dead_letter(DeadLetter {
        reason,
        detail,
        operator: operator.to_owned(),
        origin,
        value: Bytes::from(row_text(&rows.batch, row)),
    });
}

/// Columns as a batch, also if there are none.
pub(super) fn batch(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> Result<RecordBatch, OperatorError> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).map_err(broken)
}

/// An Arrow kernel refused what it was given: the plan and the rows do not fit.
pub(super) fn broken(error: ArrowError) -> OperatorError {
    OperatorError {
        reason: error.to_string(),
        fatal: true,
    }
}
