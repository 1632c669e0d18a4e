//! The aggregate calls of one operator, and what they hold per group.
//!
//! DataFusion's accumulators work on whole columns and know groups by numbers from 0. What they hold
//! leaves them as arrays with one element per group, and goes into others again: that is how it comes
//! into tables and back.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, new_empty_array};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use common::error::{ErrorCode, Problem};
use common::limits::MAX_GROUP_BYTES;
use common::plan::aggregate_function::offered;
use common::plan::operator::AggregateCall;
use common::schema::{Column, ColumnType};
use datafusion::common::DataFusionError;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::GroupsAccumulatorAdapter;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use serde_json::{Map, Value};

use super::OperatorError;
use super::expression::{CompiledExpression, Expressions, said};
use super::give_up::broken;
use super::row_json::object;
use crate::keyed_state::row_codec::{EncodedRows, RowCodec, RowError};

/// Compiled aggregate calls.
#[derive(Clone, Debug)]
pub(super) struct AggregateCalls {
    calls: Vec<Call>,
    /// The arguments and filters of all calls.
    arguments: Vec<CompiledExpression>,
    states: RowCodec,
}

#[derive(Clone, Debug)]
struct Call {
    name: String,
    function: Arc<AggregateFunctionExpr>,
    /// Where its arguments and its filter are among those of all calls.
    arguments: Range<usize>,
    filter: Option<usize>,
    /// Where its arrays are among the states of all calls.
    states: Range<usize>,
    /// The type of its output column.
    result: DataType,
}

/// What the calls hold: one accumulator per call, all over the same groups.
///
/// They are used up when they are read, so that no trace of the groups they held can reach others.
pub(super) struct Accumulators {
    calls: Arc<AggregateCalls>,
    each: Vec<Box<dyn GroupsAccumulator>>,
}

impl AggregateCalls {
    /// `output`: the columns the calls become.
    pub(super) fn compile(
        expressions: &Expressions,
        calls: &[AggregateCall],
        output: &[Column],
    ) -> Result<AggregateCalls, Problem> {
        assert_eq!(calls.len(), output.len(), "every call becomes a column");
        let mut compiled = Vec::new();
        let mut arguments = Vec::new();
        let mut states = Vec::new();
        for (call, column) in calls.iter().zip(output) {
            offered(&call.function, call.distinct, false)?;
            let text = call_text(call);
            let lowered = expressions.compile_aggregate(&text)?;
            let result = result_type(&text, &lowered.function, column)?;
            let own_states = lowered
                .function
                .state_fields()
                .map_err(|error| Problem::new(ErrorCode::SqlPlan, said(&error)))?;
            compiled.push(Call {
                name: call.name.clone(),
                arguments: grown(&mut arguments, lowered.arguments),
                filter: lowered
                    .filter
                    .map(|filter| grown(&mut arguments, vec![filter]).start),
                states: grown(
                    &mut states,
                    own_states.iter().map(|field| field.data_type().clone()),
                ),
                function: lowered.function,
                result,
            });
        }
        let states = RowCodec::new(states).map_err(|error| {
            Problem::new(ErrorCode::UnsupportedFeature, error.to_string())
                .hint("Cast the argument to a simpler type.")
        })?;
        Ok(AggregateCalls {
            calls: compiled,
            arguments,
            states,
        })
    }

    /// What has to be evaluated over rows for `update`.
    pub(super) fn arguments(&self) -> &[CompiledExpression] {
        &self.arguments
    }

    /// Whether some call keeps an object per group, which it visits for every batch.
    pub(super) fn visit_every_group(&self) -> bool {
        self.calls
            .iter()
            .any(|call| !call.function.groups_accumulator_supported())
    }

    /// The results of no group.
    pub(super) fn no_results(&self) -> Vec<ArrayRef> {
        let empty = |call: &Call| new_empty_array(&call.result);
        self.calls.iter().map(empty).collect()
    }

    /// States as rows for a table. What grows with every value of a group has a bound.
    pub(super) fn encode(
        &self,
        states: &[ArrayRef],
        groups: usize,
        rows: &mut EncodedRows,
    ) -> Result<(), OperatorError> {
        self.states
            .encode(states, groups, rows)
            .map_err(unreadable)?;
        match (0..groups).any(|group| rows.row(group).len() > MAX_GROUP_BYTES) {
            true => Err(self.too_much()),
            false => Ok(()),
        }
    }

    fn too_much(&self) -> OperatorError {
        let keeps_values = |call: &&Call| {
            let states = &self.states.types()[call.states.clone()];
            states.iter().any(|kind| matches!(kind, DataType::List(_)))
        };
        let names = |calls: Vec<&Call>| {
            let names = calls.iter().map(|call| format!("\"{}\"", call.name));
            names.collect::<Vec<_>>().join(", ")
        };
        let growing: Vec<&Call> = self.calls.iter().filter(keeps_values).collect();
        let what = match growing.is_empty() {
            true => names(self.calls.iter().collect()),
            false => format!("{}, which keeps every value,", names(growing)),
        };
        OperatorError {
            reason: format!(
                "{what} takes more than {} MiB in one group",
                MAX_GROUP_BYTES >> 20
            ),
            fatal: true,
        }
    }

    /// A row of a table as results, by the names of their columns.
    pub(super) fn describe(self: &Arc<AggregateCalls>, row: &[u8]) -> Option<Map<String, Value>> {
        let states = self.decode([row]).ok()?;
        let mut accumulators = Accumulators::new(self).ok()?;
        accumulators.merge(&states, &[0], 1).ok()?;
        let results = accumulators.into_results().ok()?;
        let names = self.calls.iter().map(|call| call.name.as_str());
        Some(object(
            names.zip(results.iter().map(|column| column.as_ref())),
            0,
        ))
    }

    /// Rows of a table as states.
    pub(super) fn decode<'r>(
        &self,
        rows: impl IntoIterator<Item = &'r [u8]>,
    ) -> Result<Vec<ArrayRef>, OperatorError> {
        self.states.decode(rows).map_err(unreadable)
    }
}

impl Accumulators {
    pub(super) fn new(calls: &Arc<AggregateCalls>) -> Result<Accumulators, OperatorError> {
        let each = calls
            .calls
            .iter()
            .map(|call| accumulator(&call.function))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        Ok(Accumulators {
            calls: Arc::clone(calls),
            each,
        })
    }

    /// Adds rows: the values of all arguments, each row's group, and how many groups there are now. Every
    /// group that is new since the last call has a row: DataFusion takes that for granted.
    pub(super) fn update(
        &mut self,
        arguments: &[ArrayRef],
        group_of_row: &[usize],
        groups: usize,
    ) -> Result<(), OperatorError> {
        for (call, accumulator) in self.calls.calls.iter().zip(&mut self.each) {
            let filter = call.filter.map(|filter| arguments[filter].as_boolean());
            let values = &arguments[call.arguments.clone()];
            accumulator
                .update_batch(values, group_of_row, filter, groups)
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Adds what others held: their states, the group of each, and how many groups there are now. Every
    /// group that is new since the last call has a state.
    pub(super) fn merge(
        &mut self,
        states: &[ArrayRef],
        group_of_state: &[usize],
        groups: usize,
    ) -> Result<(), OperatorError> {
        for (call, accumulator) in self.calls.calls.iter().zip(&mut self.each) {
            accumulator
                .merge_batch(&states[call.states.clone()], group_of_state, groups)
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Bytes of memory they take, about.
    pub(super) fn footprint(&self) -> usize {
        self.each.iter().map(|accumulator| accumulator.size()).sum()
    }

    /// What is held for every group.
    pub(super) fn into_states(mut self) -> Result<Vec<ArrayRef>, OperatorError> {
        let mut states = Vec::new();
        for (call, accumulator) in self.calls.calls.iter().zip(&mut self.each) {
            let own = accumulator.state(EmitTo::All).map_err(failed)?;
            assert_eq!(own.len(), call.states.len(), "a state has its fields");
            states.extend(own);
        }
        Ok(states)
    }

    /// Every group's results, a column per call.
    pub(super) fn into_results(mut self) -> Result<Vec<ArrayRef>, OperatorError> {
        let mut results = Vec::new();
        for (call, accumulator) in self.calls.calls.iter().zip(&mut self.each) {
            let result = accumulator.evaluate(EmitTo::All).map_err(failed)?;
            results.push(match result.data_type() == &call.result {
                true => result,
                false => cast(&result, &call.result).map_err(broken)?,
            });
        }
        Ok(results)
    }
}

impl std::fmt::Debug for Accumulators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Accumulators of {} calls", self.each.len())
    }
}

/// A call as SQL.
pub(super) fn call_text(call: &AggregateCall) -> String {
    let arguments: Vec<&str> = call.args.iter().map(|arg| arg.0.as_str()).collect();
    let arguments = match arguments.is_empty() {
        true => "*".to_owned(),
        false => arguments.join(", "),
    };
    let distinct = if call.distinct { "DISTINCT " } else { "" };
    let filter = call
        .filter
        .as_ref()
        .map(|filter| format!(" FILTER (WHERE {filter})"))
        .unwrap_or_default();
    format!("{}({distinct}{arguments}){filter}", call.function)
}

pub(super) fn result_type(
    text: &str,
    function: &AggregateFunctionExpr,
    column: &Column,
) -> Result<DataType, Problem> {
    let computed = function.field().data_type().clone();
    let planned = column.kind.to_arrow();
    let named = ColumnType::from_arrow(&computed).map(|kind| kind.to_arrow());
    if named.is_ok_and(|named| named.equals_datatype(&planned)) {
        return Ok(planned);
    }
    let detail = format!(
        "the plan has {} for \"{text}\", which gives {computed}",
        column.kind
    );
    Err(Problem::new(ErrorCode::SqlPlan, detail))
}

fn accumulator(
    function: &Arc<AggregateFunctionExpr>,
) -> Result<Box<dyn GroupsAccumulator>, DataFusionError> {
    if function.groups_accumulator_supported() {
        return function.create_groups_accumulator();
    }
    let function = Arc::clone(function);
    let one_group = move || function.create_accumulator();
    Ok(Box::new(GroupsAccumulatorAdapter::new(one_group)))
}

/// Adds to a list, and says where.
pub(super) fn grown<T>(list: &mut Vec<T>, more: impl IntoIterator<Item = T>) -> Range<usize> {
    let start = list.len();
    list.extend(more);
    start..list.len()
}

fn failed(error: DataFusionError) -> OperatorError {
    OperatorError {
        reason: format!("an aggregate failed: {}", said(&error)),
        fatal: true,
    }
}

pub(super) fn unreadable(error: RowError) -> OperatorError {
    OperatorError {
        reason: format!("the state of an aggregate: {error}"),
        fatal: true,
    }
}
