//! Aggregates that can take a row back, and whether a group has any row left.
//!
//! Each keeps how many values it has, so that a sum without values is null again and not 0. Sums wrap
//! like DataFusion's. A sum of floats loses what floats lose, and is exact again once it has no values;
//! an infinity or NaN that was added leaves it at NaN until then. What cannot be known from sums (the least,
//! the greatest, how many different ones) keeps every value of the group.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BooleanArray, Decimal128Array,
    Float64Array, Int64Array, PrimitiveArray, UInt64Array, new_null_array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int64Type, UInt64Type};
use common::error::{ErrorCode, Problem};
use common::limits::MAX_RETRACTABLE_BYTES;
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
use super::value_bag::ValueBag;
use crate::keyed_state::codec::{EncodedKeys, KeyCodec};
use crate::keyed_state::row_codec::{EncodedRows, RowCodec};

/// Compiled calls over rows that may be taken back.
#[derive(Clone, Debug)]
pub(super) struct RetractableCalls {
    calls: Vec<Call>,
    arguments: Vec<CompiledExpression>,
    /// How many rows a group has, then per call how many values, and their sum or all of them if it needs that.
    states: RowCodec,
}

#[derive(Clone, Debug)]
struct Call {
    name: String,
    /// Its argument among those of all calls; further ones only have to be not null, as `count` wants it.
    arguments: Range<usize>,
    filter: Option<usize>,
    keeps: Keeps,
    gives: Gives,
    result: DataType,
}

/// What a call keeps besides how many values there are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Keeps {
    Nothing,
    Sum(SumType),
    Values(KeyCodec),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gives {
    Count,
    Distinct,
    Sum,
    Average,
    Least,
    Greatest,
    /// Whether no value is false: the least of them, as false comes before true.
    All,
    /// Whether a value is true.
    Any,
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
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    Nothing,
    Int(Vec<i64>),
    UnsignedInt(Vec<u64>),
    Float(Vec<f64>),
    Decimal(Vec<i128>),
    Values(Vec<ValueBag>),
}

/// The values of one call over a batch.
struct Values<'a> {
    argument: &'a ArrayRef,
    /// The same as bytes, if they are kept.
    encoded: EncodedKeys,
    /// For each row whether it has a value.
    counts: BooleanArray,
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
                "count" if call.distinct => Gives::Distinct,
                "count" => Gives::Count,
                "sum" => Gives::Sum,
                "avg" | "mean" => Gives::Average,
                "min" => Gives::Least,
                "max" => Gives::Greatest,
                "bool_and" => Gives::All,
                "bool_or" => Gives::Any,
                other => unreachable!("{other} is not among those that take a row back"),
            };
            let values = aggregate.arguments[0].data_type();
            let keeps = match gives {
                Gives::Count => Keeps::Nothing,
                Gives::Sum | Gives::Average => Keeps::Sum(sum_type(&text, values)?),
                Gives::Distinct | Gives::Least | Gives::Greatest | Gives::All | Gives::Any => {
                    let codec = KeyCodec::new(vec![as_key(values)]);
                    Keeps::Values(codec.map_err(|_| cannot_take_back(&text, values))?)
                }
            };
            states.push(DataType::Int64);
            states.extend(keeps.stored());
            compiled.push(Call {
                name: call.name.clone(),
                arguments: grown(&mut arguments, aggregate.arguments),
                filter: aggregate
                    .filter
                    .map(|filter| grown(&mut arguments, [filter]).start),
                keeps,
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
        let mut each = Vec::with_capacity(self.calls.len());
        for call in &self.calls {
            each.push(HeldCall {
                counts: padded::<Int64Type>(next(), groups),
                kept: match &call.keeps {
                    Keeps::Nothing => Kept::Nothing,
                    Keeps::Sum(SumType::Int) => Kept::Int(padded::<Int64Type>(next(), groups)),
                    Keeps::Sum(SumType::UnsignedInt) => {
                        Kept::UnsignedInt(padded::<UInt64Type>(next(), groups))
                    }
                    Keeps::Sum(SumType::Float) => {
                        Kept::Float(padded::<Float64Type>(next(), groups))
                    }
                    Keeps::Sum(SumType::Decimal { .. }) => {
                        Kept::Decimal(padded::<Decimal128Type>(next(), groups))
                    }
                    Keeps::Values(_) => Kept::Values(bags(next(), groups)?),
                },
            });
        }
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

    /// Adds or takes back rows, in order. `adds`: which of both. What comes back are the rows that take back
    /// what was never added; nothing of them is applied.
    pub(super) fn change(
        &mut self,
        arguments: &[ArrayRef],
        group_of_row: &[usize],
        adds: impl Fn(usize) -> bool,
    ) -> Result<Vec<usize>, OperatorError> {
        let calls = &self.calls.calls;
        let values = calls
            .iter()
            .map(|call| call.values(arguments, group_of_row.len()))
            .collect::<Result<Vec<_>, _>>()?;
        let mut refused = Vec::new();
        for (row, group) in group_of_row.iter().copied().enumerate() {
            let adds = adds(row);
            let of_calls = || {
                values
                    .iter()
                    .enumerate()
                    .filter(|(_, v)| v.counts.value(row))
            };
            let was_added =
                || of_calls().all(|(i, values)| self.each[i].was_added(group, values, row));
            if !adds && (self.rows[group] == 0 || !was_added()) {
                refused.push(row);
                continue;
            }
            self.rows[group] += if adds { 1 } else { -1 };
            for (i, values) in of_calls() {
                self.each[i].change(group, values, row, adds);
                self.each[i].check_size(group, &calls[i])?;
            }
        }
        Ok(refused)
    }

    /// What is held, as rows for a table.
    pub(super) fn encode(&self, rows: &mut EncodedRows) -> Result<(), OperatorError> {
        let mut states: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(self.rows.clone()))];
        for (call, held) in self.calls.calls.iter().zip(&self.each) {
            states.push(Arc::new(Int64Array::from(held.counts.clone())));
            states.extend(held.kept.array(&call.keeps));
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

impl Call {
    fn values<'a>(
        &self,
        arguments: &'a [ArrayRef],
        rows: usize,
    ) -> Result<Values<'a>, OperatorError> {
        let own = &arguments[self.arguments.clone()];
        let filter = self.filter.map(|filter| arguments[filter].as_boolean());
        let counts = (0..rows).map(|row| {
            Some(
                filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
                    && own.iter().all(|values| values.is_valid(row)),
            )
        });
        let mut encoded = EncodedKeys::default();
        if let Keeps::Values(codec) = &self.keeps {
            let kind = &codec.types()[0];
            let values = match own[0].data_type() == kind {
                true => Arc::clone(&own[0]),
                false => cast(&own[0], kind).map_err(broken)?,
            };
            codec.encode(&[values], rows, &mut encoded);
        }
        Ok(Values {
            argument: &own[0],
            encoded,
            counts: counts.collect(),
        })
    }
}

impl HeldCall {
    /// Whether the value of this row is one of those that are held.
    fn was_added(&self, group: usize, values: &Values<'_>, row: usize) -> bool {
        match &self.kept {
            Kept::Values(bags) => bags[group].has(values.encoded.key(row)),
            _ => self.counts[group] > 0,
        }
    }

    fn check_size(&self, group: usize, call: &Call) -> Result<(), OperatorError> {
        match &self.kept {
            Kept::Values(bags) if bags[group].size_bytes() > MAX_RETRACTABLE_BYTES => {
                Err(OperatorError {
                    reason: format!(
                        "\"{}\" has more different values in one group than the {} MiB it may keep over rows that \
                         change",
                        call.name,
                        MAX_RETRACTABLE_BYTES >> 20
                    ),
                    fatal: true,
                })
            }
            _ => Ok(()),
        }
    }

    fn change(&mut self, group: usize, values: &Values<'_>, row: usize, adds: bool) {
        self.counts[group] += if adds { 1 } else { -1 };
        let emptied = self.counts[group] == 0;
        let argument = values.argument;
        match &mut self.kept {
            Kept::Nothing => {}
            Kept::Values(bags) => {
                let value = values.encoded.key(row);
                match adds {
                    true => bags[group].add(value),
                    false => bags[group].take(value),
                }
            }
            Kept::Int(sums) => {
                let value = argument.as_primitive::<Int64Type>().value(row);
                sums[group] = match adds {
                    true => sums[group].wrapping_add(value),
                    false => sums[group].wrapping_sub(value),
                };
            }
            Kept::UnsignedInt(sums) => {
                let value = argument.as_primitive::<UInt64Type>().value(row);
                sums[group] = match adds {
                    true => sums[group].wrapping_add(value),
                    false => sums[group].wrapping_sub(value),
                };
            }
            Kept::Float(sums) => {
                let value = argument.as_primitive::<Float64Type>().value(row);
                sums[group] = match (emptied, adds) {
                    (true, _) => 0.0,
                    (false, true) => sums[group] + value,
                    (false, false) => sums[group] - value,
                };
            }
            Kept::Decimal(sums) => {
                let value = argument.as_primitive::<Decimal128Type>().value(row);
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
        Ok(match (call.gives, &self.kept) {
            (Gives::Count, _) => Arc::new(Int64Array::from(self.counts.clone())),
            (Gives::Distinct, Kept::Values(bags)) => {
                let counts = bags
                    .iter()
                    .map(|bag| i64::try_from(bag.distinct()).expect("a group has fewer values"));
                Arc::new(Int64Array::from_iter_values(counts))
            }
            (Gives::Least | Gives::All, Kept::Values(bags)) => {
                ends(call, bags.iter().map(ValueBag::least))?
            }
            (Gives::Greatest | Gives::Any, Kept::Values(bags)) => {
                ends(call, bags.iter().map(ValueBag::greatest))?
            }
            (Gives::Average, Kept::Float(sums)) => {
                let average =
                    |group| has_values(group).then(|| sums[group] / self.counts[group] as f64);
                Arc::new(per_group.map(average).collect::<Float64Array>())
            }
            (Gives::Average, Kept::Decimal(sums)) => {
                let averages = self.decimal_averages(call, sums)?;
                Arc::new(averages)
            }
            (Gives::Sum, Kept::Int(sums)) => Arc::new(some::<Int64Type>(sums, has_values)),
            (Gives::Sum, Kept::UnsignedInt(sums)) => Arc::new(some::<UInt64Type>(sums, has_values)),
            (Gives::Sum, Kept::Float(sums)) => Arc::new(some::<Float64Type>(sums, has_values)),
            (Gives::Sum, Kept::Decimal(sums)) => {
                let sums = some::<Decimal128Type>(sums, has_values);
                Arc::new(sums.with_data_type(call.result.clone()))
            }
            (gives, kept) => unreachable!("{gives:?} is not made of {kept:?}"),
        })
    }

    fn decimal_averages(
        &self,
        call: &Call,
        sums: &[i128],
    ) -> Result<Decimal128Array, OperatorError> {
        let (Keeps::Sum(SumType::Decimal { scale }), DataType::Decimal128(precision, result_scale)) =
            (&call.keeps, &call.result)
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

impl Keeps {
    /// The type it is kept as.
    fn stored(&self) -> Option<DataType> {
        match self {
            Keeps::Nothing => None,
            Keeps::Sum(sum) => Some(sum.stored()),
            Keeps::Values(_) => Some(DataType::Binary),
        }
    }
}

impl Kept {
    fn array(&self, keeps: &Keeps) -> Option<ArrayRef> {
        Some(match self {
            Kept::Nothing => return None,
            Kept::Int(sums) => Arc::new(Int64Array::from(sums.clone())),
            Kept::UnsignedInt(sums) => Arc::new(UInt64Array::from(sums.clone())),
            Kept::Float(sums) => Arc::new(Float64Array::from(sums.clone())),
            Kept::Decimal(sums) => {
                let sums = Decimal128Array::from(sums.clone());
                Arc::new(sums.with_data_type(keeps.stored()?))
            }
            Kept::Values(bags) => {
                let bytes = bags.iter().map(ValueBag::encode);
                Arc::new(BinaryArray::from_iter_values(bytes))
            }
        })
    }
}

/// The values there are, and none for the groups beyond them.
fn bags(stored: &ArrayRef, groups: usize) -> Result<Vec<ValueBag>, OperatorError> {
    let stored = stored.as_binary::<i32>();
    let mut bags = Vec::with_capacity(groups);
    for row in 0..stored.len() {
        let bag = ValueBag::decode(stored.value(row)).ok_or_else(|| OperatorError {
            reason: "the state of an aggregate: the bytes are no values".to_owned(),
            fatal: true,
        })?;
        bags.push(bag);
    }
    bags.resize(groups, ValueBag::default());
    Ok(bags)
}

/// A value of each group, or null where there is none.
fn ends<'b>(
    call: &Call,
    ends: impl Iterator<Item = Option<&'b [u8]>>,
) -> Result<ArrayRef, OperatorError> {
    let Keeps::Values(codec) = &call.keeps else {
        unreachable!("values are kept with how they are read");
    };
    let mut null = EncodedKeys::default();
    codec.encode(&[new_null_array(&codec.types()[0], 1)], 1, &mut null);
    let columns = codec.decode(ends.map(|end| end.unwrap_or(null.key(0))));
    let mut columns = columns.map_err(|error| OperatorError {
        reason: format!("the state of an aggregate: {error}"),
        fatal: true,
    })?;
    Ok(columns.remove(0))
}

/// The type that values are kept as, where several are the same.
fn as_key(values: &DataType) -> DataType {
    match values {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        other => other.clone(),
    }
}

fn cannot_take_back(text: &str, values: &DataType) -> Problem {
    let detail = format!("{text} cannot take back values of type {values}");
    Problem::new(ErrorCode::UnsupportedFeature, detail)
}

/// What sums of such values are, after the conversion that the call's types need.
fn sum_type(text: &str, values: &DataType) -> Result<SumType, Problem> {
    match values {
        DataType::Int64 => Ok(SumType::Int),
        DataType::UInt64 => Ok(SumType::UnsignedInt),
        DataType::Float64 => Ok(SumType::Float),
        DataType::Decimal128(_, scale) => Ok(SumType::Decimal { scale: *scale }),
        other => Err(cannot_take_back(text, other)),
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
