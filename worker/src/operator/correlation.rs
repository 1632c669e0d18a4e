//! `corr(y, x)`: the coefficient of correlation, the same however its rows were split.
//!
//! Only pairs without a null count. Null if there are fewer than two, or if one of the columns does not vary:
//! then there is no correlation. NaN if an infinity or NaN is among them, or a square of their differences
//! is more than a DOUBLE can be.
//!
//! What a column's values are is kept as differences from one of them. So a column that does not vary has
//! differences of exactly 0, and the spread of any other is never small against what it is computed from:
//! splits differ by less than 1e-9, where sums of squares would give any number for values that are large and
//! close together.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, UInt64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, UInt64Type};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};

/// The function, under the name that DataFusion has for its own.
pub(super) fn corr() -> AggregateUDF {
    AggregateUDF::new_from_impl(Correlation {
        signature: Signature::exact(
            vec![DataType::Float64, DataType::Float64],
            Volatility::Immutable,
        ),
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Correlation {
    signature: Signature,
}

const STATE: [&str; 8] = [
    "count", "origin_y", "origin_x", "mean_y", "mean_x", "spread_y", "spread_x", "together",
];

impl AggregateUDFImpl for Correlation {
    fn name(&self) -> &str {
        "corr"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType, DataFusionError> {
        Ok(DataType::Float64)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>, DataFusionError> {
        let field = |(i, name): (usize, &str)| {
            let kind = match i {
                0 => DataType::UInt64,
                _ => DataType::Float64,
            };
            Arc::new(Field::new(format!("{}[{name}]", args.name), kind, false))
        };
        Ok(STATE.into_iter().enumerate().map(field).collect())
    }

    fn accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn Accumulator>, DataFusionError> {
        Ok(Box::new(OneGroup(Moments::default())))
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(
        &self,
        _args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>, DataFusionError> {
        Ok(Box::new(Groups(Vec::new())))
    }
}

/// What is held of the pairs of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Moments {
    count: u64,
    y: Column,
    x: Column,
    /// The sum of the products of both columns' differences from their means.
    together: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Column {
    /// One of the values.
    origin: f64,
    /// The mean of the differences from it.
    mean: f64,
    /// The sum of the squares of the differences from the mean.
    spread: f64,
}

impl Moments {
    fn of_one(y: f64, x: f64) -> Moments {
        // An infinity or NaN differs from itself by what is no number, and so from every mean.
        let from_itself = |value: f64| match value.is_finite() {
            true => 0.0,
            false => f64::NAN,
        };
        let column = |value: f64| Column {
            origin: value,
            mean: from_itself(value),
            spread: from_itself(value),
        };
        Moments {
            count: 1,
            y: column(y),
            x: column(x),
            together: from_itself(y) + from_itself(x),
        }
    }

    fn merge(&mut self, other: &Moments) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = *other;
            return;
        }
        let (mine, theirs) = (self.count as f64, other.count as f64);
        let share = theirs / (mine + theirs);
        let apart = |a: &Column, b: &Column| (b.origin - a.origin) + b.mean - a.mean;
        let (y, x) = (apart(&self.y, &other.y), apart(&self.x, &other.x));
        self.together += other.together + y * x * mine * share;
        for (column, of_other, apart) in [(&mut self.y, &other.y, y), (&mut self.x, &other.x, x)] {
            column.spread += of_other.spread + apart * apart * mine * share;
            column.mean += apart * share;
        }
        self.count += other.count;
    }

    fn result(&self) -> Option<f64> {
        if self.count < 2 || self.y.spread == 0.0 || self.x.spread == 0.0 {
            return None;
        }
        if !self.y.spread.is_finite() || !self.x.spread.is_finite() {
            return Some(f64::NAN);
        }
        // One root each: the product of both spreads may be more than a DOUBLE can be.
        let correlation = self.together / self.y.spread.sqrt() / self.x.spread.sqrt();
        Some(correlation.clamp(-1.0, 1.0))
    }
}

/// Calls `add` with the pairs of which neither is null.
fn pairs(values: &[ArrayRef], mut add: impl FnMut(usize, f64, f64)) {
    let (y, x) = (
        values[0].as_primitive::<Float64Type>(),
        values[1].as_primitive::<Float64Type>(),
    );
    for row in 0..y.len() {
        if y.is_valid(row) && x.is_valid(row) {
            add(row, y.value(row), x.value(row));
        }
    }
}

fn to_states(moments: &[Moments]) -> Vec<ArrayRef> {
    let counts = UInt64Array::from_iter_values(moments.iter().map(|m| m.count));
    let numbers: [fn(&Moments) -> f64; 7] = [
        |m| m.y.origin,
        |m| m.x.origin,
        |m| m.y.mean,
        |m| m.x.mean,
        |m| m.y.spread,
        |m| m.x.spread,
        |m| m.together,
    ];
    let mut states: Vec<ArrayRef> = vec![Arc::new(counts)];
    for number in numbers {
        let values = Float64Array::from_iter_values(moments.iter().map(number));
        states.push(Arc::new(values));
    }
    states
}

fn from_states(states: &[ArrayRef]) -> Vec<Moments> {
    let number = |field: usize, row: usize| states[field].as_primitive::<Float64Type>().value(row);
    let counts = states[0].as_primitive::<UInt64Type>();
    let column = |row: usize, first: usize| Column {
        origin: number(first, row),
        mean: number(first + 2, row),
        spread: number(first + 4, row),
    };
    (0..counts.len())
        .map(|row| Moments {
            count: counts.value(row),
            y: column(row, 1),
            x: column(row, 2),
            together: number(7, row),
        })
        .collect()
}

#[derive(Debug)]
struct OneGroup(Moments);

impl Accumulator for OneGroup {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<(), DataFusionError> {
        pairs(values, |_, y, x| self.0.merge(&Moments::of_one(y, x)));
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<(), DataFusionError> {
        for moments in from_states(states) {
            self.0.merge(&moments);
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>, DataFusionError> {
        to_states(&[self.0])
            .iter()
            .map(|array| ScalarValue::try_from_array(array, 0))
            .collect()
    }

    fn evaluate(&mut self) -> Result<ScalarValue, DataFusionError> {
        Ok(ScalarValue::Float64(self.0.result()))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

#[derive(Debug)]
struct Groups(Vec<Moments>);

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_of_row: &[usize],
        filter: Option<&BooleanArray>,
        groups: usize,
    ) -> Result<(), DataFusionError> {
        self.0.resize(groups, Moments::default());
        pairs(values, |row, y, x| {
            if filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                self.0[group_of_row[row]].merge(&Moments::of_one(y, x));
            }
        });
        Ok(())
    }

    fn merge_batch(
        &mut self,
        states: &[ArrayRef],
        group_of_state: &[usize],
        groups: usize,
    ) -> Result<(), DataFusionError> {
        self.0.resize(groups, Moments::default());
        for (moments, group) in from_states(states).iter().zip(group_of_state) {
            self.0[*group].merge(moments);
        }
        Ok(())
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>, DataFusionError> {
        Ok(to_states(&emit.take_needed(&mut self.0)))
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef, DataFusionError> {
        let moments = emit.take_needed(&mut self.0);
        let results: Float64Array = moments.iter().map(Moments::result).collect();
        Ok(Arc::new(results))
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>, DataFusionError> {
        let rows = values[0].len();
        let mut each = Groups(Vec::new());
        let groups: Vec<usize> = (0..rows).collect();
        each.update_batch(values, &groups, filter, rows)?;
        each.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        self.0.capacity() * size_of::<Moments>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn over(pairs: &[(f64, f64)]) -> Moments {
        let mut moments = Moments::default();
        for (y, x) in pairs {
            moments.merge(&Moments::of_one(*y, *x));
        }
        moments
    }

    #[test]
    fn known_correlations() {
        for (pairs, expected) in [
            (vec![(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)], Some(1.0)),
            (vec![(1.0, 6.0), (2.0, 4.0), (3.0, 2.0)], Some(-1.0)),
            (
                vec![(1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (2.0, 2.0)],
                Some(0.0),
            ),
            // Far from 0 and close together: nanoseconds since 1970.
            (
                vec![
                    (1.7e18, 1.0),
                    (1.7e18 + 1024.0, 2.0),
                    (1.7e18 + 2048.0, 3.0),
                ],
                Some(1.0),
            ),
            (vec![(1.0, 2.0)], None),
            (vec![], None),
            (vec![(0.1, 1.0), (0.1, 2.0), (0.1, 3.0)], None),
            (vec![(1.0, 1e16), (2.0, 1e16)], None),
        ] {
            let found = over(&pairs).result();
            match (expected, found) {
                (Some(expected), Some(found)) => {
                    assert!((expected - found).abs() < 1e-12, "{pairs:?}: {found}");
                }
                _ => assert_eq!(expected, found, "{pairs:?}"),
            }
        }
        for pairs in [
            [(f64::NAN, 1.0), (2.0, 2.0)],
            [(1.0, f64::INFINITY), (2.0, 2.0)],
            [(1e200, 1.0), (2e200, 2.0)],
        ] {
            assert!(over(&pairs).result().unwrap().is_nan(), "{pairs:?}");
        }
    }

    /// Values at any height, with any spread around it, also none.
    fn column() -> impl Strategy<Value = Vec<f64>> {
        let height = prop_oneof![
            Just(0.0),
            Just(0.1),
            Just(-7e15),
            Just(1.7e18),
            -1e6..1e6_f64
        ];
        let spread = prop_oneof![Just(0.0), Just(1e-3), Just(1.0), Just(1e9)];
        (height, spread).prop_flat_map(|(height, spread)| {
            prop::collection::vec(-1.0..1.0_f64, 30).prop_map(move |values| {
                values
                    .into_iter()
                    .map(|value| height + spread * value)
                    .collect()
            })
        })
    }

    /// The textbook's formula over exact differences.
    fn expected(pairs: &[(f64, f64)]) -> Option<f64> {
        let (y0, x0) = *pairs.first()?;
        let n = pairs.len() as f64;
        let (my, mx) = (
            pairs.iter().map(|p| p.0 - y0).sum::<f64>() / n,
            pairs.iter().map(|p| p.1 - x0).sum::<f64>() / n,
        );
        let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            pairs.iter().map(|p| f(p.0 - y0 - my, p.1 - x0 - mx)).sum()
        };
        let varies = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().any(|p| of(p) != of(&pairs[0]));
        if pairs.len() < 2 || !varies(&|p| p.0) || !varies(&|p| p.1) {
            return None;
        }
        Some(sum(&|y, x| y * x) / sum(&|y, _| y * y).sqrt() / sum(&|_, x| x * x).sqrt())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_textbooks_correlation(
            ys in column(), xs in column(), cuts in prop::collection::vec(0_usize..30, 0..6),
        ) {
            let pairs: Vec<(f64, f64)> = ys.into_iter().zip(xs).collect();
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut merged = Moments::default();
            let mut start = 0;
            for cut in cuts.into_iter().chain([pairs.len()]) {
                merged.merge(&over(&pairs[start..cut]));
                start = cut;
            }
            match (merged.result(), expected(&pairs)) {
                (Some(found), Some(expected)) => {
                    prop_assert!((found - expected).abs() <= 1e-9, "{} is not {}", found, expected);
                }
                (found, expected) => prop_assert_eq!(found, expected),
            }
        }
    }
}
