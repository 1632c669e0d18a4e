//! The event times of rows, as milliseconds.

use arrow::array::{Array, AsArray, PrimitiveArray};
use arrow::compute::max;
use arrow::datatypes::{
    ArrowTimestampType, DataType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use common::time::Timestamp;

/// The latest time in a timestamp column; `None` if it has none, or is no timestamp.
pub fn latest(column: &dyn Array) -> Option<Timestamp> {
    let DataType::Timestamp(unit, _) = column.data_type() else {
        return None;
    };
    let ms = match unit {
        TimeUnit::Second => greatest::<TimestampSecondType>(column)?.saturating_mul(1_000),
        TimeUnit::Millisecond => greatest::<TimestampMillisecondType>(column)?,
        TimeUnit::Microsecond => greatest::<TimestampMicrosecondType>(column)?.div_euclid(1_000),
        TimeUnit::Nanosecond => greatest::<TimestampNanosecondType>(column)?.div_euclid(1_000_000),
    };
    Some(Timestamp(ms))
}

fn greatest<T: ArrowTimestampType>(column: &dyn Array) -> Option<i64> {
    let array: &PrimitiveArray<T> = column.as_primitive();
    max(array)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, TimestampMicrosecondArray, TimestampMillisecondArray};

    use super::*;

    #[test]
    fn times_of_any_unit_are_milliseconds_rounded_down() {
        let millis = TimestampMillisecondArray::from(vec![Some(3), None, Some(7)]);
        assert_eq!(latest(&millis), Some(Timestamp(7)));
        let micros = TimestampMicrosecondArray::from(vec![-1_500]);
        assert_eq!(latest(&micros), Some(Timestamp(-2)));
        assert_eq!(
            latest(&TimestampMillisecondArray::from(vec![None; 2])),
            None
        );
        assert_eq!(latest(&Int64Array::from(vec![1])), None);
    }
}
