//! All rows of all its inputs, under the names of its output.

use arrow::datatypes::SchemaRef;
use common::error::{ErrorCode, Problem};
use common::plan::operator::Union;
use common::plan::task_graph::PlannedOperator;
use common::schema::to_arrow_schema;

use super::give_up::batch;
use super::{Operator, OperatorError};
use crate::task::context::Context;
use crate::task::message::Rows;

/// Rows are not copied; kinds and origins stay with them.
#[derive(Debug)]
pub struct UnionRows {
    output: SchemaRef,
}

impl UnionRows {
    pub fn new(spec: &Union, planned: &PlannedOperator) -> Result<UnionRows, Problem> {
        let output = to_arrow_schema(&planned.output);
        for (i, columns) in planned.inputs.iter().enumerate() {
            let input = to_arrow_schema(columns);
            let same = input.fields().len() == output.fields().len()
                && input
                    .fields()
                    .iter()
                    .zip(output.fields())
                    .all(|(a, b)| a.data_type() == b.data_type());
            if !same {
                let detail = format!(
                    "input {i} of \"{}\" has other columns than its output",
                    spec.id
                );
                return Err(Problem::new(ErrorCode::InvalidGraph, detail));
            }
        }
        Ok(UnionRows { output })
    }
}

impl Operator for UnionRows {
    fn process(
        &mut self,
        _input: u16,
        rows: Rows,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        let batch = batch(&self.output, rows.batch.columns().to_vec(), rows.len())?;
        context.emit(rows.with_batch(batch));
        Ok(())
    }
}
