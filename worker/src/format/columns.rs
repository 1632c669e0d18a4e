//! Columns that grow value by value, and the rules by which a value becomes one of a column's type.
//!
//! Every format hands its values over as a `Value`; the rules are the same for all. A value that does not
//! fit leaves its column as it was, and whole rows can be taken back, so a bad record leaves no trace.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, ListArray, NullArray, PrimitiveArray,
    StringArray, StructArray,
};
use arrow::array::{BooleanBufferBuilder, NullBufferBuilder};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, Time64NanosecondType, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use common::schema::{Column, ColumnType};

use super::instant::{self, Instant};
use super::json_decode::JsonFields;
use super::json_scan::{Scanner, Token, TokenKind, string_value};
use super::{msgpack, number};

/// A value of some format, on its way into a column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    /// Digits as JSON writes them.
    Number(&'a str),
    Integer(i128),
    Float(f64),
    Text(Cow<'a, str>),
    Bytes(&'a [u8]),
    Instant(Instant),
    /// A MessagePack extension of this type, which no column holds.
    Extension(i8),
    /// A whole array or object, checked for its form.
    JsonArray(&'a str),
    JsonObject(&'a str),
    MsgpackArray(&'a [u8]),
    MsgpackMap(&'a [u8]),
}

/// Why a value does not fit its column, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misfit(pub(crate) String);

/// A column under construction.
#[derive(Debug)]
pub(crate) struct ColumnBuilder {
    column: Column,
    validity: NullBufferBuilder,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Null,
    Boolean(BooleanBufferBuilder),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    UInt8(Vec<u8>),
    UInt16(Vec<u16>),
    UInt32(Vec<u32>),
    UInt64(Vec<u64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Decimal {
        values: Vec<i128>,
        precision: u8,
        scale: i8,
    },
    Text(Strings),
    Json(Strings),
    Bytes(Strings),
    Date(Vec<i32>),
    Time(Vec<i64>),
    Timestamp {
        values: Vec<i64>,
        unit: TimeUnit,
    },
    List {
        ends: Vec<i32>,
        items: Box<ColumnBuilder>,
    },
    Row {
        names: JsonFields,
        columns: Vec<ColumnBuilder>,
    },
}

/// Values of varying length, one after another.
#[derive(Debug, Default)]
struct Strings {
    bytes: Vec<u8>,
    /// Where each value ends; the first starts at 0.
    ends: Vec<i32>,
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl ColumnBuilder {
    pub(crate) fn new(column: &Column) -> ColumnBuilder {
        let data = match &column.kind {
            ColumnType::Null => Data::Null,
            ColumnType::Boolean => Data::Boolean(BooleanBufferBuilder::new(0)),
            ColumnType::TinyInt => Data::Int8(Vec::new()),
            ColumnType::SmallInt => Data::Int16(Vec::new()),
            ColumnType::Int => Data::Int32(Vec::new()),
            ColumnType::BigInt => Data::Int64(Vec::new()),
            ColumnType::UnsignedTinyInt => Data::UInt8(Vec::new()),
            ColumnType::UnsignedSmallInt => Data::UInt16(Vec::new()),
            ColumnType::UnsignedInt => Data::UInt32(Vec::new()),
            ColumnType::UnsignedBigInt => Data::UInt64(Vec::new()),
            ColumnType::Float => Data::Float32(Vec::new()),
            ColumnType::Double => Data::Float64(Vec::new()),
            ColumnType::Decimal { precision, scale } => Data::Decimal {
                values: Vec::new(),
                precision: *precision,
                scale: *scale,
            },
            ColumnType::Varchar => Data::Text(Strings::default()),
            ColumnType::Json => Data::Json(Strings::default()),
            ColumnType::Bytes => Data::Bytes(Strings::default()),
            ColumnType::Date => Data::Date(Vec::new()),
            ColumnType::Time => Data::Time(Vec::new()),
            ColumnType::Timestamp(_) => Data::Timestamp {
                values: Vec::new(),
                unit: match column.kind.to_arrow() {
                    DataType::Timestamp(unit, _) => unit,
                    other => unreachable!("a timestamp column is {other}"),
                },
            },
            ColumnType::Array(item) => Data::List {
                ends: Vec::new(),
                items: Box::new(ColumnBuilder::new(&Column::new(
                    "item",
                    item.as_ref().clone(),
                    true,
                ))),
            },
            ColumnType::Row(columns) => Data::Row {
                names: JsonFields::new(columns),
                columns: columns.iter().map(ColumnBuilder::new).collect(),
            },
        };
        ColumnBuilder {
            column: column.clone(),
            validity: NullBufferBuilder::new(0),
            data,
        }
    }

    pub(crate) fn column(&self) -> &Column {
        &self.column
    }

    fn len(&self) -> usize {
        self.validity.len()
    }

    /// Appends a value that a JSON scanner found in this text; `None` is an absent one.
    #[inline]
    pub(crate) fn push_json(&mut self, text: &str, token: Option<Token>) -> Result<(), Misfit> {
        let Some(token) = token else {
            return self.push(Value::Null);
        };
        let raw = &text[token.start..token.end];
        if let Data::Json(strings) = &mut self.data
            && token.kind != TokenKind::Null
        {
            strings.push(raw.as_bytes())?;
            self.validity.append_non_null();
            return Ok(());
        }
        self.push(match token.kind {
            TokenKind::Null => Value::Null,
            TokenKind::True => Value::Bool(true),
            TokenKind::False => Value::Bool(false),
            TokenKind::Number => Value::Number(raw),
            TokenKind::PlainString | TokenKind::EscapedString => match string_value(text, token) {
                Some(text) => Value::Text(text),
                None => {
                    return Err(Misfit(format!(
                        "column \"{}\": the string has half of a surrogate pair, which is no character",
                        self.column.name
                    )));
                }
            },
            TokenKind::Array => Value::JsonArray(raw),
            TokenKind::Object => Value::JsonObject(raw),
        })
    }

    /// Appends a value, or leaves the column as it was.
    #[inline]
    pub(crate) fn push(&mut self, value: Value<'_>) -> Result<(), Misfit> {
        if matches!(value, Value::Null) {
            if !self.column.nullable {
                return Err(Misfit(format!(
                    "column \"{}\" is NOT NULL, but the value is absent or null",
                    self.column.name
                )));
            }
            self.push_null();
            return Ok(());
        }
        let fits = match &mut self.data {
            Data::Null => Ok(false),
            Data::Boolean(values) => match value {
                Value::Bool(value) => {
                    values.append(value);
                    Ok(true)
                }
                _ => Ok(false),
            },
            Data::Int8(values) => Ok(push_integer(values, &value, false)),
            Data::Int16(values) => Ok(push_integer(values, &value, false)),
            Data::Int32(values) => Ok(push_integer(values, &value, false)),
            Data::Int64(values) => Ok(push_integer(values, &value, true)),
            Data::UInt8(values) => Ok(push_integer(values, &value, false)),
            Data::UInt16(values) => Ok(push_integer(values, &value, false)),
            Data::UInt32(values) => Ok(push_integer(values, &value, false)),
            Data::UInt64(values) => Ok(push_integer(values, &value, true)),
            Data::Float32(values) => Ok(push_some(values, float32(&value))),
            Data::Float64(values) => Ok(push_some(values, float64(&value))),
            Data::Decimal {
                values,
                precision,
                scale,
            } => Ok(push_some(values, decimal(&value, *precision, *scale))),
            Data::Text(strings) => match &value {
                Value::Text(text) => strings.push(text.as_bytes()).map(|()| true),
                _ => Ok(false),
            },
            Data::Json(strings) => push_as_json(strings, &value).map(|()| true),
            Data::Bytes(strings) => push_bytes(strings, &value),
            Data::Date(values) => Ok(push_some(values, date(&value))),
            Data::Time(values) => Ok(push_some(values, time(&value))),
            Data::Timestamp { values, unit } => Ok(push_some(values, timestamp(&value, *unit))),
            Data::List { ends, items } => push_list(ends, items, &value),
            Data::Row { names, columns } => push_row(names, columns, &value),
        };
        match fits {
            Ok(true) => {
                self.validity.append_non_null();
                Ok(())
            }
            Ok(false) => Err(self.misfit(&value)),
            Err(Misfit(inner)) => Err(Misfit(format!("column \"{}\": {inner}", self.column.name))),
        }
    }

    fn push_null(&mut self) {
        self.validity.append_null();
        match &mut self.data {
            Data::Null => {}
            Data::Boolean(values) => values.append(false),
            Data::Int8(values) => values.push(0),
            Data::Int16(values) => values.push(0),
            Data::Int32(values) | Data::Date(values) => values.push(0),
            Data::Int64(values) | Data::Time(values) | Data::Timestamp { values, .. } => {
                values.push(0);
            }
            Data::UInt8(values) => values.push(0),
            Data::UInt16(values) => values.push(0),
            Data::UInt32(values) => values.push(0),
            Data::UInt64(values) => values.push(0),
            Data::Float32(values) => values.push(0.0),
            Data::Float64(values) => values.push(0.0),
            Data::Decimal { values, .. } => values.push(0),
            Data::Text(strings) | Data::Json(strings) | Data::Bytes(strings) => {
                strings.ends.push(strings.end(strings.ends.len()));
            }
            Data::List { ends, .. } => ends.push(ends.last().copied().unwrap_or(0)),
            // What a null row's columns hold is nobody's business, NOT NULL or not.
            Data::Row { columns, .. } => columns.iter_mut().for_each(ColumnBuilder::push_null),
        }
    }

    /// Takes back everything after the first `rows` values.
    pub(crate) fn truncate(&mut self, rows: usize) {
        if rows >= self.len() {
            return;
        }
        self.validity.truncate(rows);
        match &mut self.data {
            Data::Null => {}
            Data::Boolean(values) => values.truncate(rows),
            Data::Int8(values) => values.truncate(rows),
            Data::Int16(values) => values.truncate(rows),
            Data::Int32(values) | Data::Date(values) => values.truncate(rows),
            Data::Int64(values) | Data::Time(values) | Data::Timestamp { values, .. } => {
                values.truncate(rows);
            }
            Data::UInt8(values) => values.truncate(rows),
            Data::UInt16(values) => values.truncate(rows),
            Data::UInt32(values) => values.truncate(rows),
            Data::UInt64(values) => values.truncate(rows),
            Data::Float32(values) => values.truncate(rows),
            Data::Float64(values) => values.truncate(rows),
            Data::Decimal { values, .. } => values.truncate(rows),
            Data::Text(strings) | Data::Json(strings) | Data::Bytes(strings) => {
                strings.truncate(rows);
            }
            Data::List { ends, items } => {
                ends.truncate(rows);
                items.truncate(unsigned(ends.last().copied().unwrap_or(0)));
            }
            Data::Row { columns, .. } => {
                for column in columns {
                    column.truncate(rows);
                }
            }
        }
    }

    /// The values so far as an array; the column is empty afterwards.
    pub(crate) fn finish(&mut self) -> ArrayRef {
        let rows = self.len();
        let nulls = self.validity.finish();
        match &mut self.data {
            Data::Null => Arc::new(NullArray::new(rows)),
            Data::Boolean(values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Data::Int8(values) => primitive::<Int8Type>(values, nulls),
            Data::Int16(values) => primitive::<Int16Type>(values, nulls),
            Data::Int32(values) => primitive::<Int32Type>(values, nulls),
            Data::Int64(values) => primitive::<Int64Type>(values, nulls),
            Data::UInt8(values) => primitive::<UInt8Type>(values, nulls),
            Data::UInt16(values) => primitive::<UInt16Type>(values, nulls),
            Data::UInt32(values) => primitive::<UInt32Type>(values, nulls),
            Data::UInt64(values) => primitive::<UInt64Type>(values, nulls),
            Data::Float32(values) => primitive::<Float32Type>(values, nulls),
            Data::Float64(values) => primitive::<Float64Type>(values, nulls),
            Data::Decimal {
                values,
                precision,
                scale,
            } => Arc::new(
                Decimal128Array::new(take_values(values), nulls)
                    .with_precision_and_scale(*precision, *scale)
                    .expect("the schema's precision and scale were checked when it was read"),
            ),
            Data::Text(strings) | Data::Json(strings) => {
                let (offsets, bytes) = strings.take();
                // Checks UTF-8 once more, at the speed of memory.
                Arc::new(StringArray::new(offsets, bytes, nulls))
            }
            Data::Bytes(strings) => {
                let (offsets, bytes) = strings.take();
                Arc::new(BinaryArray::new(offsets, bytes, nulls))
            }
            Data::Date(values) => primitive::<Date32Type>(values, nulls),
            Data::Time(values) => primitive::<Time64NanosecondType>(values, nulls),
            Data::Timestamp { values, unit } => match unit {
                TimeUnit::Second | TimeUnit::Millisecond => {
                    primitive::<TimestampMillisecondType>(values, nulls)
                }
                TimeUnit::Microsecond => primitive::<TimestampMicrosecondType>(values, nulls),
                TimeUnit::Nanosecond => primitive::<TimestampNanosecondType>(values, nulls),
            },
            Data::List { ends, items } => {
                let field = match self.column.kind.to_arrow() {
                    DataType::List(field) => field,
                    other => unreachable!("an array column is {other}"),
                };
                Arc::new(ListArray::new(field, offsets(ends), items.finish(), nulls))
            }
            Data::Row { columns, .. } => {
                let fields = match self.column.kind.to_arrow() {
                    DataType::Struct(fields) => fields,
                    other => unreachable!("a row column is {other}"),
                };
                let arrays = columns.iter_mut().map(ColumnBuilder::finish).collect();
                match StructArray::try_new_with_length(fields, arrays, nulls, rows) {
                    Ok(array) => Arc::new(array),
                    Err(error) => unreachable!("rows were built column by column: {error}"),
                }
            }
        }
    }

    #[cold]
    fn misfit(&self, value: &Value<'_>) -> Misfit {
        let Column { name, kind, .. } = &self.column;
        let found = describe(value);
        Misfit(format!(
            "column \"{name}\" is {kind}, but the value is {found}"
        ))
    }
}

impl Strings {
    fn push(&mut self, value: &[u8]) -> Result<(), Misfit> {
        let end = i32::try_from(self.bytes.len() + value.len());
        let end = end.map_err(|_| Misfit("the batch's text is over 2 GiB".to_owned()))?;
        self.bytes.extend_from_slice(value);
        self.ends.push(end);
        Ok(())
    }

    /// Where the first `values` values end.
    fn end(&self, values: usize) -> i32 {
        values.checked_sub(1).map_or(0, |last| self.ends[last])
    }

    fn truncate(&mut self, values: usize) {
        let end = self.end(values);
        self.bytes.truncate(unsigned(end));
        self.ends.truncate(values);
    }

    fn take(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let capacity = self.bytes.len();
        let bytes = std::mem::replace(&mut self.bytes, Vec::with_capacity(capacity));
        (offsets(&mut self.ends), Buffer::from(bytes))
    }
}

/// Arrow's offsets of values that end here; room is kept for as many again.
fn offsets(ends: &mut Vec<i32>) -> OffsetBuffer<i32> {
    let mut offsets = Vec::with_capacity(ends.len() + 1);
    offsets.push(0);
    offsets.append(ends);
    OffsetBuffer::new(ScalarBuffer::from(offsets))
}

fn take_values<T: arrow::datatypes::ArrowNativeType>(values: &mut Vec<T>) -> ScalarBuffer<T> {
    let capacity = values.len();
    ScalarBuffer::from(std::mem::replace(values, Vec::with_capacity(capacity)))
}

fn primitive<T: ArrowPrimitiveType>(
    values: &mut Vec<T::Native>,
    nulls: Option<NullBuffer>,
) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(take_values(values), nulls))
}

fn unsigned(offset: i32) -> usize {
    usize::try_from(offset).expect("an offset is not negative")
}

fn push_some<T>(values: &mut Vec<T>, value: Option<T>) -> bool {
    let found = value.is_some();
    values.extend(value);
    found
}

/// `from_text`: JSON cannot carry 64-bit integers everywhere, so for those a string of digits will do.
#[inline]
fn push_integer<T: TryFrom<i128> + TryFrom<i64>>(
    values: &mut Vec<T>,
    value: &Value<'_>,
    from_text: bool,
) -> bool {
    let wide = match value {
        Value::Number(text) => match number::small_integer(text) {
            Some(small) => return push_some(values, T::try_from(small).ok()),
            None => number::integer(text),
        },
        Value::Integer(integer) => Some(*integer),
        Value::Float(float) => whole(*float),
        Value::Text(text) if from_text => {
            let digits = text.strip_prefix('-').unwrap_or(text);
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| text.parse().ok()).flatten()
        }
        _ => None,
    };
    push_some(values, wide.and_then(|wide| T::try_from(wide).ok()))
}

/// The integer that a double is, if it is one.
fn whole(float: f64) -> Option<i128> {
    const LIMIT: f64 = 1e18;
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
    (float.fract() == 0.0 && float.abs() < LIMIT).then_some(float as i128)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a double is rounded to the nearest float; one that is too large for it is refused"
)]
fn float32(value: &Value<'_>) -> Option<f32> {
    match value {
        Value::Number(text) => text.parse().ok().filter(|float: &f32| float.is_finite()),
        Value::Float(float) => {
            let narrow = *float as f32;
            (narrow.is_finite() || !float.is_finite()).then_some(narrow)
        }
        #[expect(clippy::cast_precision_loss, reason = "the nearest float is meant")]
        Value::Integer(integer) => Some(*integer as f32),
        _ => None,
    }
}

fn float64(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Number(text) => text.parse().ok().filter(|float: &f64| float.is_finite()),
        Value::Float(float) => Some(*float),
        #[expect(clippy::cast_precision_loss, reason = "the nearest double is meant")]
        Value::Integer(integer) => Some(*integer as f64),
        _ => None,
    }
}

fn decimal(value: &Value<'_>, precision: u8, scale: i8) -> Option<i128> {
    let scaled = match value {
        Value::Number(text) => number::scaled(text, scale),
        Value::Text(text) if number::is_number(text) => number::scaled(text, scale),
        Value::Integer(integer) => number::scaled(&integer.to_string(), scale),
        // The shortest decimal that is this double: what its writer meant.
        Value::Float(float) if float.is_finite() => number::scaled(&float.to_string(), scale),
        _ => None,
    };
    let limit = 10_i128.pow(u32::from(precision));
    scaled
        .map(|scaled| scaled.value)
        .filter(|value| -limit < *value && *value < limit)
}

fn date(value: &Value<'_>) -> Option<i32> {
    match value {
        Value::Text(text) => instant::parse_date(text),
        _ => None,
    }
}

fn time(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Text(text) => instant::parse_time(text),
        _ => None,
    }
}

/// A text is ISO 8601, a number is milliseconds since 1970.
fn timestamp(value: &Value<'_>, unit: TimeUnit) -> Option<i64> {
    let per_millisecond = instant::units_per_second(unit) / 1_000;
    let from_millis = |millis: i64| millis.checked_mul(per_millisecond);
    match value {
        Value::Text(text) => instant::parse_timestamp(text)?.to_unit(unit),
        Value::Number(text) => from_millis(i64::try_from(number::integer(text)?).ok()?),
        Value::Integer(integer) => from_millis(i64::try_from(*integer).ok()?),
        Value::Instant(instant) => instant.to_unit(unit),
        _ => None,
    }
}

fn push_bytes(strings: &mut Strings, value: &Value<'_>) -> Result<bool, Misfit> {
    match value {
        Value::Bytes(bytes) => strings.push(bytes).map(|()| true),
        Value::Text(text) => match BASE64.decode(text.as_bytes()) {
            Ok(bytes) => strings.push(&bytes).map(|()| true),
            Err(error) => Err(Misfit(format!("the text is not base64: {error}"))),
        },
        _ => Ok(false),
    }
}

/// A value of another format in a JSON column becomes the JSON it would be.
fn push_as_json(strings: &mut Strings, value: &Value<'_>) -> Result<(), Misfit> {
    let mut out = Vec::new();
    msgpack::write_json(&mut out, value)?;
    strings.push(&out)
}

fn push_list(
    ends: &mut Vec<i32>,
    items: &mut ColumnBuilder,
    value: &Value<'_>,
) -> Result<bool, Misfit> {
    let start = items.len();
    let pushed = match value {
        Value::JsonArray(text) => push_json_items(items, text),
        Value::MsgpackArray(bytes) => msgpack::for_each_item(bytes, |value| items.push(value)),
        _ => return Ok(false),
    };
    let end = i32::try_from(items.len())
        .map_err(|_| Misfit("the batch's arrays have over 2^31 items".to_owned()));
    match pushed.and(end) {
        Ok(end) => {
            ends.push(end);
            Ok(true)
        }
        Err(error) => {
            items.truncate(start);
            Err(error)
        }
    }
}

fn push_json_items(items: &mut ColumnBuilder, text: &str) -> Result<(), Misfit> {
    const CHECKED: &str = "the array's form was checked";
    let mut scanner = Scanner::new(text);
    scanner.open(b'[').expect(CHECKED);
    let mut more = scanner.first(b']');
    while more {
        let token = scanner.value().expect(CHECKED);
        items.push_json(text, Some(token))?;
        more = scanner.more(b']').expect(CHECKED);
    }
    Ok(())
}

fn push_row(
    names: &mut JsonFields,
    columns: &mut [ColumnBuilder],
    value: &Value<'_>,
) -> Result<bool, Misfit> {
    let rows = columns.first().map_or(0, ColumnBuilder::len);
    let pushed = match value {
        Value::JsonObject(text) => {
            names
                .scan(&mut Scanner::new(text))
                .expect("the object's form was checked");
            names.push_into(text, columns)
        }
        Value::MsgpackMap(bytes) => msgpack::push_fields(bytes, columns),
        _ => return Ok(false),
    };
    if pushed.is_err() {
        for column in columns {
            column.truncate(rows);
        }
    }
    pushed.map(|()| true)
}

fn describe(value: &Value<'_>) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(text) => format!("the number {}", shortened(text)),
        Value::Integer(integer) => format!("the number {integer}"),
        Value::Float(float) => format!("the number {float}"),
        Value::Text(text) => format!("the string \"{}\"", shortened(text)),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Value::Instant(_) => "a timestamp".to_owned(),
        Value::Extension(number) => format!("an extension of type {number}"),
        Value::JsonArray(_) | Value::MsgpackArray(_) => "an array".to_owned(),
        Value::JsonObject(_) | Value::MsgpackMap(_) => "an object".to_owned(),
    }
}

/// Enough of a text to recognise it.
fn shortened(text: &str) -> Cow<'_, str> {
    const ENOUGH: usize = 64;
    match text.char_indices().nth(ENOUGH) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}
