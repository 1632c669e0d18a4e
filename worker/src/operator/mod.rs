//! The Operator trait: how rows become other rows.
//!
//! An operator is synchronous: nothing awaits between two changes of its state, so a barrier can never
//! fall inside one. It keeps what must survive in its tables; what it holds elsewhere between two
//! barriers it writes there in `seal`, and rebuilds from there in `restore`.
//!
//! Some operators can do with tables that are mostly on disk (`spills`). Before each call they say in
//! `prepare` what they are going to read, and get it; the call itself finds everything in memory.

pub mod expression;
pub mod filter;
pub mod project;
pub mod union;
pub mod window_aggregate;
pub mod aggregate;
pub mod custom;

mod accumulators;
mod correlation;
mod give_up;
mod groups;
mod key;
mod retraction;
mod row_json;
mod update_halves;
mod value_bag;

#[cfg(test)]
mod harness;
#[cfg(test)]
mod aggregate_function_tests;
#[cfg(test)]
mod aggregate_tests;
#[cfg(test)]
mod expression_tests;
#[cfg(test)]
mod row_operator_tests;
#[cfg(test)]
mod changelog_tests;
#[cfg(test)]
mod spill_tests;
#[cfg(test)]
mod window_aggregate_tests;

use common::error::{ErrorCode, Problem};
use common::plan::operator::OperatorSpec;
use common::plan::task_graph::PlannedOperator;
use common::protocol::state::StateEntry;
use common::schema::Column;
use common::time::{Span, Timestamp};

use self::custom::CustomOperators;
use crate::keyed_state::stored::{Ask, StoredRange};
use crate::task::context::Context;
use crate::task::message::Rows;

/// What is about to be called.
#[derive(Clone, Copy, Debug)]
pub enum Call<'a> {
    Rows(u16, &'a Rows),
    Watermark(Timestamp),
    Seal,
}

/// What an operator has to know of one of its tables before it can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub table: &'static str,
    pub ask: Ask,
}

/// One instance of an operator, in one task.
pub trait Operator: Send + std::fmt::Debug {
    /// Called before `process`, `watermark` and `seal`, and again with each answer until it asks for nothing
    /// more. Keys it asked for are in the table then; a range is given to it here. May emit.
    fn prepare(
        &mut self,
        _call: Call<'_>,
        _range: Option<StoredRange>,
        _context: &mut Context<'_>,
    ) -> Result<Option<Wanted>, OperatorError> {
        Ok(None)
    }

    /// Takes rows that arrived at the numbered input.
    fn process(
        &mut self,
        input: u16,
        rows: Rows,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError>;

    /// The input's watermark rose. What this emits goes before the watermark.
    fn watermark(
        &mut self,
        _watermark: Timestamp,
        _context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        Ok(())
    }

    /// How far the watermark of its output stays behind that of its input: what it emits at a watermark
    /// may be so much older.
    fn delays_watermark(&self) -> Span {
        Span(0)
    }

    /// A barrier comes: everything the operator holds outside its tables must be in them afterwards.
    /// Emits what it would otherwise hold back.
    fn seal(&mut self, _context: &mut Context<'_>) -> Result<(), OperatorError> {
        Ok(())
    }

    /// The tables have been filled from a checkpoint. Called once, before anything else.
    fn restore(&mut self, _context: &mut Context<'_>) -> Result<(), OperatorError> {
        Ok(())
    }

    /// Bytes it holds outside its tables.
    fn held_bytes(&self) -> usize {
        0
    }

    /// An entry of one of its tables in words a user understands; `None` for entries of no interest.
    fn describe(
        &self,
        _table: &str,
        _namespace: i64,
        _key: &[u8],
        _value: &[u8],
    ) -> Option<StateEntry> {
        None
    }

    /// The canonical bytes of a key that a user wrote as JSON, as they stand in its tables; `None` if
    /// the operator keeps nothing by key, or the value does not fit the key's columns.
    fn encode_key(&self, _key: &serde_json::Value) -> Option<Vec<u8>> {
        None
    }
}

/// Why an operator cannot go on. Rows it can do without it gives up as dead letters instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct OperatorError {
    pub reason: String,
    /// The same rows would fail in the same way again.
    pub fatal: bool,
}

/// Makes the instance of a planned operator that runs in one task.
pub fn build(
    planned: &PlannedOperator,
    custom: &CustomOperators,
) -> Result<Box<dyn Operator>, Problem> {
    Ok(match &planned.spec {
        OperatorSpec::Filter(spec) => Box::new(filter::FilterRows::new(spec, planned)?),
        OperatorSpec::Project(spec) => Box::new(project::ProjectColumns::new(spec, planned)?),
        OperatorSpec::Union(spec) => Box::new(union::UnionRows::new(spec, planned)?),
        OperatorSpec::WindowAggregate(spec) => {
            Box::new(window_aggregate::WindowAggregateRows::new(spec, planned)?)
        }
        OperatorSpec::Aggregate(spec) => Box::new(aggregate::AggregateRows::new(spec, planned)?),
        OperatorSpec::Custom(spec) => custom.build(spec, planned)?,
    })
}

/// Whether an operator asks before it reads its tables, so that they may be larger than memory.
pub fn spills(spec: &OperatorSpec, custom: &CustomOperators) -> bool {
    match spec {
        OperatorSpec::WindowAggregate(_) | OperatorSpec::Aggregate(_) => true,
        OperatorSpec::Custom(spec) => custom.spills(&spec.name),
        _ => false,
    }
}

/// These keys of a table, if there are any.
fn wanted(table: &'static str, keys: Vec<(i64, Vec<u8>)>) -> Option<Wanted> {
    match keys.is_empty() {
        true => None,
        false => {
            let ask = Ask::Keys(keys);
            Some(Wanted { table, ask })
        }
    }
}

/// The columns of an operator that has one input.
fn only_input(planned: &PlannedOperator) -> Result<&[Column], Problem> {
    match planned.inputs.as_slice() {
        [columns] => Ok(columns),
        inputs => {
            let detail = format!(
                "\"{}\" has one input, the plan gives it {}",
                planned.spec.id(),
                inputs.len()
            );
            Err(Problem::new(ErrorCode::InvalidGraph, detail))
        }
    }
}
