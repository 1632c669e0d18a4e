//! Computes the columns of its output from those of its input.

use arrow::datatypes::SchemaRef;
use common::error::{ErrorCode, Problem};
use common::plan::operator::Project;
use common::plan::task_graph::PlannedOperator;
use common::schema::to_arrow_schema;

use super::expression::{CompiledExpression, Expressions};
use super::give_up::{batch, evaluate};
use super::{Operator, OperatorError};
use crate::task::context::Context;
use crate::task::message::Rows;

/// One row out for one row in, so that kinds and origins stay with their rows.
#[derive(Debug)]
pub struct ProjectColumns {
    id: String,
    columns: Vec<CompiledExpression>,
    output: SchemaRef,
}

impl ProjectColumns {
    pub fn new(spec: &Project, planned: &PlannedOperator) -> Result<ProjectColumns, Problem> {
        if spec.columns.len() != planned.output.len() {
            let detail = format!(
                "\"{}\" computes {} columns, the plan has {}",
                spec.id,
                spec.columns.len(),
                planned.output.len()
            );
            return Err(Problem::new(ErrorCode::InvalidGraph, detail));
        }
        let expressions = Expressions::new(super::only_input(planned)?)?;
        let columns = spec
            .columns
            .iter()
            .zip(&planned.output)
            .map(|(named, column)| expressions.compile_as(&named.expr, &column.kind))
            .collect::<Result<_, _>>()?;
        Ok(ProjectColumns {
            id: spec.id.clone(),
            columns,
            output: to_arrow_schema(&planned.output),
        })
    }
}

impl Operator for ProjectColumns {
    fn process(
        &mut self,
        _input: u16,
        rows: Rows,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        let (rows, columns) = evaluate(&self.columns, rows, &self.id, context)?;
        let batch = batch(&self.output, columns, rows.len())?;
        context.emit(rows.with_batch(batch));
        Ok(())
    }
}
