//! Aggregates that can take a row back: count, sum and avg, and whether a group has any row left.
//!
//! Each keeps how many values it has, so that a sum without values is null again and not 0. Sums wrap
//! like DataFusion's. A sum of floats loses what floats lose, and is exact again once it has no values;
//! an infinity or NaN that was added leaves it at NaN until then.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, Decimal128Array, Float64Array, Int64Array,
    PrimitiveArray, UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int64Type, UInt64Type};
use common::error::{ErrorCode, Problem};
use common::plan::aggregate_function::offered;
use common::plan::operator::AggregateCall;
use common::schema::Column;
use datafusion::physical_expr::aggregate::utils::DecimalAverager;
use serde_json::{Map, Value};

use super::OperatorError;
use super::accumulators::{call_text, grown, result_type, unreadable};
use super::expression::{CompiledExpression, Expressions, said};
use super::give_up::broken;
use super::row_json::object;
use crate::keyed_state::row_codec::{EncodedRows, RowCodec};

/// Compiled calls over rows that may be taken back.
#[derive(Clone, Debug)]
pub(super) struct RetractableCalls {
    calls: Vec<Call>,
    arguments: Vec<CompiledExpression>,
    /// How many rows a group has, then per call how many values, and their sum if it needs one.
    states: RowCodec,
}

#[derive(Clone, Debug)]
struct Call {
    name: String,
    /// Its argument among those of all calls; further ones only have to be not null, as `count` wants it.
    arguments: Range<usize>,
    filter: Option<usize>,
    sum: Option<SumType>,
    gives: Gives,
    result: DataType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gives {
    Count,
    Sum,
    Average,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum SumType {
    Int,
    UnsignedInt,
    Float,
    Decimal { scale: i8 },
}

/// What calls hold for the groups of one batch.
#[derive(Debug)]
pub(super) struct Held<'c> {
    calls: &'c RetractableCalls,
    /// Per group, how many rows it has.
    rows: Vec<i64>,
    each: Vec<HeldCall>,
}

#[derive(Debug)]
struct HeldCall {
    counts: Vec<i64>,
    sums: Sums,
}

#[derive(Debug)]
enum Sums {
    None,
    Int(Vec<i64>),
    UnsignedInt(Vec<u64>),
    Float(Vec<f64>),
    Decimal(Vec<i128>),
}

impl RetractableCalls {
    /// `output`: the columns the calls become.
    pub(super) fn compile(
        expressions: &Expressions,
        calls: &[AggregateCall],
        output: &[Column],
    ) -> Result<RetractableCalls, Problem> {
        assert_eq!(calls.len(), output.len(), "every call becomes a column");
        let mut compiled = Vec::new();
        let mut arguments = Vec::new();
        let mut states = vec![DataType::Int64];
        for (call, column) in calls.iter().zip(output) {
            let function = offered(&call.function, call.distinct, true)?;
            let text = call_text(call);
            let aggregate = expressions.compile_aggregate(&text)?;
            let result = result_type(&text, &aggregate.function, column)?;
            let gives = match function.name {
                "count" => Gives::Count,
                "sum" => Gives::Sum,
                _ => Gives::Average,
            };
            let sum = match gives {
                Gives::Count => None,
                Gives::Sum | Gives::Average => {
                    Some(sum_type(&text, aggregate.arguments[0].data_type())?)
                }
            };
            states.push(DataType::Int64);
            states.extend(sum.as_ref().map(SumType::stored));
            compiled.push(Call {
                name: call.name.clone(),
                arguments: grown(&mut arguments, aggregate.arguments),
                filter: aggregate
                    .filter
                    .map(|filter| grown(&mut arguments, [filter]).start),
                sum,
                gives,
                result,
            });
        }
        let states = RowCodec::new(states).expect("numbers can be kept as bytes");
        Ok(RetractableCalls {
            calls: compiled,
            arguments,
            states,
        })
    }

    /// What has to be evaluated over rows for `change`.
    pub(super) fn arguments(&self) -> &[CompiledExpression] {
        &self.arguments
    }

    /// What these rows of a table hold, one per group, and nothing for the groups beyond them.
    pub(super) fn load<'r>(
        &self,
        stored: impl IntoIterator<Item = &'r [u8]>,
        groups: usize,
    ) -> Result<Held<'_>, OperatorError> {
        let states = self.states.decode(stored).map_err(unreadable)?;
        let mut states = states.iter();
        let mut next = || states.next().expect("a state has its fields");
        let rows = padded::<Int64Type>(next(), groups);
        let each = self
            .calls
            .iter()
            .map(|call| HeldCall {
                counts: padded::<Int64Type>(next(), groups),
                sums: match &call.sum {
                    None => Sums::None,
                    Some(SumType::Int) => Sums::Int(padded::<Int64Type>(next(), groups)),
                    Some(SumType::UnsignedInt) => {
                        Sums::UnsignedInt(padded::<UInt64Type>(next(), groups))
                    }
                    Some(SumType::Float) => Sums::Float(padded::<Float64Type>(next(), groups)),
                    Some(SumType::Decimal { .. }) => {
                        Sums::Decimal(padded::<Decimal128Type>(next(), groups))
                    }
                },
            })
            .collect();
        Ok(Held {
            calls: self,
            rows,
            each,
        })
    }

    /// A row of a table as results, by the names of their columns.
    pub(super) fn describe(&self, row: &[u8]) -> Option<Map<String, Value>> {
        let results = self.load([row], 1).ok()?.results().ok()?;
        let names = self.calls.iter().map(|call| call.name.as_str());
        let columns = results.iter().map(|column| column.as_ref());
        Some(object(names.zip(columns), 0))
    }
}

impl Held<'_> {
    /// How many rows each group has.
    pub(super) fn rows(&self) -> &[i64] {
        &self.rows
    }

    /// Finds the rows that can be applied, in order, and counts them. `adds`: whether a row is added or
    /// taken back. A row that is taken back from a group that has none was never added.
    pub(super) fn admit(
        &mut self,
        group_of_row: &[usize],
        adds: impl Fn(usize) -> bool,
    ) -> Vec<usize> {
        let mut refused = Vec::new();
        for (row, group) in group_of_row.iter().enumerate() {
            let rows = &mut self.rows[*group];
            match adds(row) {
                true => *rows += 1,
                false if *rows > 0 => *rows -= 1,
                false => refused.push(row),
            }
        }
        refused
    }

    /// Adds or takes back the values of the admitted rows.
    pub(super) fn change(
        &mut self,
        arguments: &[ArrayRef],
        group_of_row: &[usize],
        adds: impl Fn(usize) -> bool,
        refused: &[usize],
    ) {
        for (call, held) in self.calls.calls.iter().zip(&mut self.each) {
            let filter = call.filter.map(|filter| arguments[filter].as_boolean());
            let own = &arguments[call.arguments.clone()];
            let mut refused = refused.iter().copied().peekable();
            for (row, group) in group_of_row.iter().enumerate() {
                if refused.next_if_eq(&row).is_some()
                    || filter.is_some_and(|filter| filter.is_null(row) || !filter.value(row))
                    || own.iter().any(|values| values.is_null(row))
                {
                    continue;
                }
                held.change(*group, &own[0], row, adds(row));
            }
        }
    }

    /// What is held, as rows for a table.
    pub(super) fn encode(&self, rows: &mut EncodedRows) -> Result<(), OperatorError> {
        let mut states: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(self.rows.clone()))];
        for (call, held) in self.calls.calls.iter().zip(&self.each) {
            states.push(Arc::new(Int64Array::from(held.counts.clone())));
            states.extend(held.sums.array(call.sum.as_ref()));
        }
        self.calls
            .states
            .encode(&states, self.rows.len(), rows)
            .map_err(unreadable)
    }

    /// Every group's results, a column per call.
    pub(super) fn results(&self) -> Result<Vec<ArrayRef>, OperatorError> {
        self.calls
            .calls
            .iter()
            .zip(&self.each)
            .map(|(call, held)| {
                let result = held.result(call)?;
                match result.data_type() == &call.result {
                    true => Ok(result),
                    false => cast(&result, &call.result).map_err(broken),
                }
            })
            .collect()
    }
}

impl HeldCall {
    fn change(&mut self, group: usize, values: &ArrayRef, row: usize, adds: bool) {
        self.counts[group] += if adds { 1 } else { -1 };
        let emptied = self.counts[group] == 0;
        match &mut self.sums {
            Sums::None => {}
            Sums::Int(sums) => {
                let value = values.as_primitive::<Int64Type>().value(row);
                sums[group] = match adds {
                    true => sums[group].wrapping_add(value),
                    false => sums[group].wrapping_sub(value),
                };
            }
            Sums::UnsignedInt(sums) => {
                let value = values.as_primitive::<UInt64Type>().value(row);
                sums[group] = match adds {
                    true => sums[group].wrapping_add(value),
                    false => sums[group].wrapping_sub(value),
                };
            }
            Sums::Float(sums) => {
                let value = values.as_primitive::<Float64Type>().value(row);
                sums[group] = match (emptied, adds) {
                    (true, _) => 0.0,
                    (false, true) => sums[group] + value,
                    (false, false) => sums[group] - value,
                };
            }
            Sums::Decimal(sums) => {
                let value = values.as_primitive::<Decimal128Type>().value(row);
                sums[group] = match adds {
                    true => sums[group].wrapping_add(value),
                    false => sums[group].wrapping_sub(value),
                };
            }
        }
    }

    fn result(&self, call: &Call) -> Result<ArrayRef, OperatorError> {
        let has_values = |group: usize| self.counts[group] != 0;
        let per_group = 0..self.counts.len();
        Ok(match (call.gives, &self.sums) {
            (Gives::Count, _) => Arc::new(Int64Array::from(self.counts.clone())),
            (Gives::Average, Sums::Float(sums)) => {
                let average =
                    |group| has_values(group).then(|| sums[group] / self.counts[group] as f64);
                Arc::new(per_group.map(average).collect::<Float64Array>())
            }
            (Gives::Average, Sums::Decimal(sums)) => {
                let averages = self.decimal_averages(call, sums)?;
                Arc::new(averages)
            }
            (Gives::Sum, Sums::Int(sums)) => Arc::new(some::<Int64Type>(sums, has_values)),
            (Gives::Sum, Sums::UnsignedInt(sums)) => Arc::new(some::<UInt64Type>(sums, has_values)),
            (Gives::Sum, Sums::Float(sums)) => Arc::new(some::<Float64Type>(sums, has_values)),
            (Gives::Sum, Sums::Decimal(sums)) => {
                let sums = some::<Decimal128Type>(sums, has_values);
                Arc::new(sums.with_data_type(call.result.clone()))
            }
            (gives, sums) => unreachable!("{gives:?} is not made of {sums:?}"),
        })
    }

    fn decimal_averages(
        &self,
        call: &Call,
        sums: &[i128],
    ) -> Result<Decimal128Array, OperatorError> {
        let (Some(SumType::Decimal { scale }), DataType::Decimal128(precision, result_scale)) =
            (&call.sum, &call.result)
        else {
            unreachable!("the average of decimals is a decimal");
        };
        let failed = |error| OperatorError {
            reason: format!("the average \"{}\": {}", call.name, said(&error)),
            fatal: true,
        };
        let averager =
            DecimalAverager::<Decimal128Type>::try_new(*scale, *precision, *result_scale)
                .map_err(failed)?;
        let averages = sums
            .iter()
            .zip(&self.counts)
            .map(|(sum, count)| match count {
                0 => Ok(None),
                count => averager.avg(*sum, i128::from(*count)).map(Some),
            })
            .collect::<Result<Decimal128Array, _>>()
            .map_err(failed)?;
        Ok(averages.with_data_type(call.result.clone()))
    }
}

impl SumType {
    /// The type it is kept as.
    fn stored(&self) -> DataType {
        match self {
            SumType::Int => DataType::Int64,
            SumType::UnsignedInt => DataType::UInt64,
            SumType::Float => DataType::Float64,
            SumType::Decimal { scale } => DataType::Decimal128(38, *scale),
        }
    }
}

impl Sums {
    fn array(&self, kind: Option<&SumType>) -> Option<ArrayRef> {
        Some(match self {
            Sums::None => return None,
            Sums::Int(sums) => Arc::new(Int64Array::from(sums.clone())),
            Sums::UnsignedInt(sums) => Arc::new(UInt64Array::from(sums.clone())),
            Sums::Float(sums) => Arc::new(Float64Array::from(sums.clone())),
            Sums::Decimal(sums) => {
                let sums = Decimal128Array::from(sums.clone());
                Arc::new(sums.with_data_type(kind?.stored()))
            }
        })
    }
}

/// What sums of such values are, after the conversion that the call's types need.
fn sum_type(text: &str, values: &DataType) -> Result<SumType, Problem> {
    match values {
        DataType::Int64 => Ok(SumType::Int),
        DataType::UInt64 => Ok(SumType::UnsignedInt),
        DataType::Float64 => Ok(SumType::Float),
        DataType::Decimal128(_, scale) => Ok(SumType::Decimal { scale: *scale }),
        other => {
            let detail = format!("{text} cannot take back values of type {other}");
            Err(Problem::new(ErrorCode::UnsupportedFeature, detail))
        }
    }
}

/// The values there are, and zeros for the groups beyond them.
fn padded<T: ArrowPrimitiveType>(values: &ArrayRef, groups: usize) -> Vec<T::Native> {
    let mut values = values.as_primitive::<T>().values().to_vec();
    values.resize(groups, T::Native::default());
    values
}

fn some<T: ArrowPrimitiveType>(
    values: &[T::Native],
    is_some: impl Fn(usize) -> bool,
) -> PrimitiveArray<T> {
    let values = values.iter().enumerate();
    values
        .map(|(group, value)| is_some(group).then_some(*value))
        .collect()
}
