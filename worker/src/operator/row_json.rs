//! Rows and values as JSON, for people: dead letters and state read over HTTP.
//!
//! Timestamps without zone and with only the digits they need, decimals and integers as exact numbers,
//! bytes as base64, NaN and infinities as null.

use std::fmt::Write as _;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine;
use chrono::{DateTime, Days, NaiveDate, NaiveDateTime, NaiveTime, Timelike};
use serde_json::{Map, Value};

/// One row as a JSON object's text.
pub(crate) fn row_text(batch: &RecordBatch, row: usize) -> String {
    let mut text = String::from("{");
    for (i, (field, column)) in batch
        .schema_ref()
        .fields()
        .iter()
        .zip(batch.columns())
        .enumerate()
    {
        if i > 0 {
            text.push(',');
        }
        push_text(&mut text, field.name());
        text.push(':');
        push_value(&mut text, column.as_ref(), row);
    }
    text.push('}');
    text
}

/// Columns' values in one row, by name.
pub(crate) fn object<'a>(
    columns: impl IntoIterator<Item = (&'a str, &'a dyn Array)>,
    row: usize,
) -> Map<String, Value> {
    columns
        .into_iter()
        .map(|(name, column)| {
            let mut text = String::new();
            push_value(&mut text, column, row);
            let value = serde_json::from_str(&text).expect("what is written here is JSON");
            (name.to_owned(), value)
        })
        .collect()
}

fn push_value(text: &mut String, array: &dyn Array, row: usize) {
    if array.is_null(row) {
        return text.push_str("null");
    }
    match array.data_type() {
        DataType::Null => text.push_str("null"),
        DataType::Boolean => push(text, array.as_boolean().value(row)),
        DataType::Int8 => push(text, array.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => push(text, array.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => push(text, array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => push(text, array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => push(text, array.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => push(text, array.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => push(text, array.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => push(text, array.as_primitive::<UInt64Type>().value(row)),
        DataType::Float32 => {
            let number = array.as_primitive::<Float32Type>().value(row);
            push_number(text, serde_json::to_string(&number));
        }
        DataType::Float64 => {
            let number = array.as_primitive::<Float64Type>().value(row);
            push_number(text, serde_json::to_string(&number));
        }
        DataType::Decimal128(..) => {
            text.push_str(&array.as_primitive::<Decimal128Type>().value_as_string(row));
        }
        DataType::Utf8 => push_text(text, array.as_string::<i32>().value(row)),
        DataType::Binary => {
            let bytes = array.as_binary::<i32>().value(row);
            push_text(
                text,
                &base64::engine::general_purpose::STANDARD.encode(bytes),
            );
        }
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>().value(row);
            push_text(text, &date(days));
        }
        DataType::Time64(TimeUnit::Nanosecond) => {
            let nanos = array.as_primitive::<Time64NanosecondType>().value(row);
            push_text(text, &time(nanos));
        }
        DataType::Timestamp(unit, _) => {
            push_text(text, &timestamp(array, *unit, row));
        }
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            text.push('[');
            for i in 0..items.len() {
                if i > 0 {
                    text.push(',');
                }
                push_value(text, items.as_ref(), i);
            }
            text.push(']');
        }
        DataType::Struct(fields) => {
            text.push('{');
            for (i, (field, column)) in fields.iter().zip(array.as_struct().columns()).enumerate() {
                if i > 0 {
                    text.push(',');
                }
                push_text(text, field.name());
                text.push(':');
                push_value(text, column.as_ref(), row);
            }
            text.push('}');
        }
        // Types no column has, only intermediate values: as Arrow shows them.
        _ => {
            let shown = ArrayFormatter::try_new(array, &FormatOptions::default())
                .map(|formatter| formatter.value(row).to_string());
            push_text(text, &shown.unwrap_or_default());
        }
    }
}

fn push(text: &mut String, value: impl std::fmt::Display) {
    write!(text, "{value}").expect("writing to a string does not fail");
}

/// JSON has no NaN and no infinities; serde_json writes null for them.
fn push_number(text: &mut String, number: serde_json::Result<String>) {
    text.push_str(&number.expect("a float can be written"));
}

fn push_text(text: &mut String, value: &str) {
    text.push_str(&serde_json::to_string(value).expect("text can be written"));
}

fn timestamp(array: &dyn Array, unit: TimeUnit, row: usize) -> String {
    let (value, time) = match unit {
        TimeUnit::Second => {
            let value = array.as_primitive::<TimestampSecondType>().value(row);
            (value, DateTime::from_timestamp(value, 0))
        }
        TimeUnit::Millisecond => {
            let value = array.as_primitive::<TimestampMillisecondType>().value(row);
            (value, DateTime::from_timestamp_millis(value))
        }
        TimeUnit::Microsecond => {
            let value = array.as_primitive::<TimestampMicrosecondType>().value(row);
            (value, DateTime::from_timestamp_micros(value))
        }
        TimeUnit::Nanosecond => {
            let value = array.as_primitive::<TimestampNanosecondType>().value(row);
            (value, Some(DateTime::from_timestamp_nanos(value)))
        }
    };
    match time {
        Some(time) => shortest(time.naive_utc()),
        // Beyond the years a calendar has: the number is all that can be said.
        None => value.to_string(),
    }
}

fn shortest(time: NaiveDateTime) -> String {
    let digits = time.format("%Y-%m-%dT%H:%M:%S");
    format!("{digits}{}", fraction(time.nanosecond()))
}

fn time(nanos: i64) -> String {
    const NANOS_PER_SECOND: i64 = 1_000_000_000;
    let parts = (
        u32::try_from(nanos.div_euclid(NANOS_PER_SECOND)),
        u32::try_from(nanos.rem_euclid(NANOS_PER_SECOND)),
    );
    let (Ok(seconds), Ok(nanos)) = parts else {
        return nanos.to_string();
    };
    match NaiveTime::from_num_seconds_from_midnight_opt(seconds, nanos) {
        Some(time) => format!("{}{}", time.format("%H:%M:%S"), fraction(nanos)),
        None => (i64::from(seconds) * NANOS_PER_SECOND).to_string(),
    }
}

fn date(days: i32) -> String {
    let epoch = NaiveDate::default();
    let count = Days::new(u64::from(days.unsigned_abs()));
    let date = if days < 0 {
        epoch.checked_sub_days(count)
    } else {
        epoch.checked_add_days(count)
    };
    date.map_or_else(|| days.to_string(), |date| date.to_string())
}

/// Nothing, or a point and three, six or nine digits.
fn fraction(nanos: u32) -> String {
    if nanos == 0 {
        String::new()
    } else if nanos.is_multiple_of(1_000_000) {
        format!(".{:03}", nanos / 1_000_000)
    } else if nanos.is_multiple_of(1_000) {
        format!(".{:06}", nanos / 1_000)
    } else {
        format!(".{nanos:09}")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, BinaryArray, Decimal128Array, Float64Array, Int64Array, StringArray,
        TimestampMillisecondArray,
    };

    use super::*;

    #[test]
    fn a_row_reads_as_its_sink_would_write_it() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("n", Arc::new(Int64Array::from(vec![i64::MAX]))),
            ("t", Arc::new(StringArray::from(vec!["say \"hi\"\n"]))),
            ("none", Arc::new(StringArray::from(vec![None::<&str>]))),
            (
                "at",
                Arc::new(TimestampMillisecondArray::from(vec![1_700_000_000_120])),
            ),
            (
                "whole",
                Arc::new(TimestampMillisecondArray::from(vec![-1_000])),
            ),
            ("nan", Arc::new(Float64Array::from(vec![f64::NAN]))),
            ("bytes", Arc::new(BinaryArray::from_vec(vec![b"\x00\xff"]))),
            (
                "money",
                Arc::new(
                    Decimal128Array::from(vec![-123_456_i128])
                        .with_precision_and_scale(20, 3)
                        .unwrap(),
                ),
            ),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        assert_eq!(
            row_text(&batch, 0),
            r#"{"n":9223372036854775807,"t":"say \"hi\"\n","none":null,"at":"2023-11-14T22:13:20.120","whole":"1969-12-31T23:59:59","nan":null,"bytes":"AP8=","money":-123.456}"#
        );
    }
}
