//! Columns that grow value by value.
//!
//! A value that does not fit leaves its column as it was, and whole rows can be taken back, so a bad record
//! leaves no trace.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, ListArray, NullArray, PrimitiveArray,
    StringArray, StructArray,
};
use arrow::array::{BooleanBufferBuilder, NullBufferBuilder};
use arrow::buffer::{NullBuffer, ScalarBuffer};
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

use super::json_decode::JsonFields;
use super::json_scan::{Scanner, Token, TokenKind, string_value};
use super::msgpack;
use super::strings::{Strings, offsets, unsigned};
use super::value::{Misfit, Value};

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
            Data::Float32(values) => Ok(push_some(values, value.to_float32())),
            Data::Float64(values) => Ok(push_some(values, value.to_float64())),
            Data::Decimal {
                values,
                precision,
                scale,
            } => Ok(push_some(values, value.to_decimal(*precision, *scale))),
            Data::Text(strings) => match &value {
                Value::Text(text) => strings.push(text.as_bytes()).map(|()| true),
                _ => Ok(false),
            },
            Data::Json(strings) => push_as_json(strings, &value).map(|()| true),
            Data::Bytes(strings) => push_bytes(strings, &value),
            Data::Date(values) => Ok(push_some(values, value.to_date())),
            Data::Time(values) => Ok(push_some(values, value.to_time())),
            Data::Timestamp { values, unit } => Ok(push_some(values, value.to_timestamp(*unit))),
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
                strings.push_empty();
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
        let found = value.described();
        Misfit(format!(
            "column \"{name}\" is {kind}, but the value is {found}"
        ))
    }
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
    push_some(values, value.to_integer(from_text))
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
