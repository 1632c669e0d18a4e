//! Keeps the rows for which a condition is true.
//!
//! An update of which one half is kept becomes a delete or an insert: what comes out is always what the
//! condition leaves of the rows there are.

use arrow::array::AsArray;
use common::error::Problem;
use common::plan::operator::Filter;
use common::plan::task_graph::PlannedOperator;

use super::expression::{CompiledExpression, Expressions};
use super::give_up::{broken, evaluate};
use super::{Operator, OperatorError, update_halves};
use crate::task::context::Context;
use crate::task::message::Rows;

/// Rows for which the condition is null are not kept. Origins stay with their rows.
#[derive(Debug)]
pub struct FilterRows {
    id: String,
    predicate: CompiledExpression,
}

impl FilterRows {
    pub fn new(spec: &Filter, planned: &PlannedOperator) -> Result<FilterRows, Problem> {
        let expressions = Expressions::new(super::only_input(planned)?)?;
        Ok(FilterRows {
            id: spec.id.clone(),
            predicate: expressions.compile_predicate(&spec.predicate)?,
        })
    }
}

impl Operator for FilterRows {
    fn process(
        &mut self,
        _input: u16,
        rows: Rows,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        let (rows, values) = evaluate([&self.predicate], rows, &self.id, context)?;
        let keep = values[0].as_boolean();
        match keep.true_count() {
            0 => {}
            all if all == rows.len() && rows.kinds.is_none() => context.emit(rows),
            _ => context.emit(update_halves::keep(&rows, keep).map_err(broken)?),
        }
        Ok(())
    }
}
