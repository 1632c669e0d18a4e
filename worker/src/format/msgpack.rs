//! MessagePack maps, one per record, into rows and back.
//!
//! The same rules as for JSON, with what MessagePack has more of: bytes are bytes, integers are exact, and
//! a timestamp may be its extension type −1. Reading trusts no length: nothing is allocated for what has
//! not been seen, and nesting is bounded.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::limits::MAX_JSON_DEPTH;

use super::BadRecord;
use super::cells::{Cell, Row};
use super::columns::ColumnBuilder;
use super::instant::{self, Instant, NANOS_PER_SECOND};
use super::json_encode;
use super::number;
use super::row_builder::RowBuilder;
use super::value::{Misfit, Value};

/// Appends the record's row.
pub(crate) fn push(record: &[u8], rows: &mut RowBuilder) -> Result<(), BadRecord> {
    let mut reader = Reader {
        bytes: record,
        at: 0,
    };
    let map = match reader.value()? {
        Value::MsgpackMap(map) => map,
        _ => return Err(BadRecord::new("the record is not a map".to_owned())),
    };
    if reader.at != record.len() {
        return Err(reader.malformed("something follows the value").into());
    }
    rows.push_row(|columns| push_fields(map, columns))
}

/// Appends the fields of a map whose form was checked. Of several fields of one name the last counts.
pub(crate) fn push_fields(map: &[u8], columns: &mut [ColumnBuilder]) -> Result<(), Misfit> {
    let mut values: Vec<Value<'_>> = vec![Value::Null; columns.len()];
    let mut reader = Reader { bytes: map, at: 0 };
    for _ in 0..reader.count()? {
        let name = reader.value()?;
        let value = reader.value()?;
        if let Value::Text(name) = name
            && let Some(column) = columns.iter().position(|c| c.column().name == name)
        {
            values[column] = value;
        }
    }
    for (column, value) in columns.iter_mut().zip(values) {
        column.push(value)?;
    }
    Ok(())
}

/// Visits the items of an array whose form was checked.
pub(crate) fn for_each_item<'a>(
    array: &'a [u8],
    mut visit: impl FnMut(Value<'a>) -> Result<(), Misfit>,
) -> Result<(), Misfit> {
    let mut reader = Reader {
        bytes: array,
        at: 0,
    };
    for _ in 0..reader.count()? {
        visit(reader.value()?)?;
    }
    Ok(())
}

/// Writes a value as the JSON that says the same.
pub(crate) fn write_json(out: &mut Vec<u8>, value: &Value<'_>) -> Result<(), Misfit> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(value) => json_encode::write_bool(out, *value),
        Value::Number(text) | Value::JsonArray(text) | Value::JsonObject(text) => {
            out.extend_from_slice(text.as_bytes());
        }
        Value::Integer(integer) => out.extend_from_slice(integer.to_string().as_bytes()),
        Value::Float(float) => json_encode::write_float(out, *float),
        Value::Text(text) => json_encode::write_string(out, text),
        Value::Bytes(bytes) => json_encode::write_string(out, &BASE64_STANDARD.encode(bytes)),
        Value::Instant(instant) => {
            out.push(b'"');
            instant::write_instant(out, *instant);
            out.push(b'"');
        }
        Value::Extension(number) => {
            return Err(Misfit(format!(
                "JSON has nothing for an extension of type {number}"
            )));
        }
        Value::MsgpackArray(bytes) => {
            out.push(b'[');
            let mut first = true;
            for_each_item(bytes, |item| {
                if !std::mem::take(&mut first) {
                    out.push(b',');
                }
                write_json(out, &item)
            })?;
            out.push(b']');
        }
        Value::MsgpackMap(bytes) => {
            out.push(b'{');
            let mut reader = Reader { bytes, at: 0 };
            for i in 0..reader.count()? {
                if i > 0 {
                    out.push(b',');
                }
                match reader.value()? {
                    Value::Text(name) => json_encode::write_string(out, &name),
                    _ => return Err(Misfit("a map has a key that is not text".to_owned())),
                }
                out.push(b':');
                write_json(out, &reader.value()?)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

/// The bytes are not MessagePack, from this one on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not MessagePack at byte {at}: {what}")]
struct Malformed {
    at: usize,
    what: &'static str,
}

impl From<Malformed> for Misfit {
    fn from(error: Malformed) -> Misfit {
        Misfit(error.to_string())
    }
}

impl From<Malformed> for BadRecord {
    fn from(error: Malformed) -> BadRecord {
        BadRecord::new(error.to_string())
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The first part of a value: all of it, or what a container holds.
enum Head<'a> {
    Scalar(Value<'a>),
    Array(u64),
    Map(u64),
}

impl<'a> Reader<'a> {
    fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { at: self.at, what }
    }

    /// One whole value; a container's items are checked and passed over.
    fn value(&mut self) -> Result<Value<'a>, Malformed> {
        let start = self.at;
        let (values, is_map) = match self.head()? {
            Head::Scalar(value) => return Ok(value),
            Head::Array(items) => (items, false),
            Head::Map(fields) => (fields * 2, true),
        };
        self.skip(values)?;
        let whole = &self.bytes[start..self.at];
        Ok(if is_map {
            Value::MsgpackMap(whole)
        } else {
            Value::MsgpackArray(whole)
        })
    }

    /// Passes over so many values and everything in them.
    fn skip(&mut self, values: u64) -> Result<(), Malformed> {
        // How many values each open container still has, the innermost last.
        let mut left = [0_u64; MAX_JSON_DEPTH];
        left[0] = values;
        let mut depth = 0;
        loop {
            if left[depth] == 0 {
                match depth.checked_sub(1) {
                    Some(outer) => depth = outer,
                    None => return Ok(()),
                }
                continue;
            }
            left[depth] -= 1;
            let inside = match self.head()? {
                Head::Scalar(_) => continue,
                Head::Array(items) => items,
                Head::Map(fields) => fields * 2,
            };
            depth += 1;
            if depth == MAX_JSON_DEPTH {
                return Err(self.malformed("it is nested too deeply"));
            }
            left[depth] = inside;
        }
    }

    /// The number of items or fields of the container that starts here.
    fn count(&mut self) -> Result<u64, Malformed> {
        match self.head()? {
            Head::Array(count) | Head::Map(count) => Ok(count),
            Head::Scalar(_) => Err(self.malformed("a container is expected")),
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(length)
            .ok()
            .and_then(|length| rest.get(..length));
        match taken {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(self.malformed("it ends too early")),
        }
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.try_into().expect("exactly so many bytes were taken"))
    }

    /// An unsigned number of so many bytes.
    fn unsigned<const N: usize>(&mut self) -> Result<u64, Malformed> {
        let mut wide = [0; 8];
        wide[8 - N..].copy_from_slice(&self.fixed::<N>()?);
        Ok(u64::from_be_bytes(wide))
    }

    fn head(&mut self) -> Result<Head<'a>, Malformed> {
        let [marker] = self.fixed()?;
        let value = match marker {
            0x00..=0x7f => Value::Integer(i128::from(marker)),
            0x80..=0x8f => return Ok(Head::Map(u64::from(marker & 0x0f))),
            0x90..=0x9f => return Ok(Head::Array(u64::from(marker & 0x0f))),
            0xa0..=0xbf => self.text(u64::from(marker & 0x1f))?,
            0xc0 => Value::Null,
            0xc1 => return Err(self.malformed("0xc1 is never used")),
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4 => self.binary::<1>()?,
            0xc5 => self.binary::<2>()?,
            0xc6 => self.binary::<4>()?,
            0xc7 => self.extension_of::<1>()?,
            0xc8 => self.extension_of::<2>()?,
            0xc9 => self.extension_of::<4>()?,
            0xca => Value::Float(f64::from(f32::from_be_bytes(self.fixed()?))),
            0xcb => Value::Float(f64::from_be_bytes(self.fixed()?)),
            0xcc => Value::Integer(self.unsigned::<1>()?.into()),
            0xcd => Value::Integer(self.unsigned::<2>()?.into()),
            0xce => Value::Integer(self.unsigned::<4>()?.into()),
            0xcf => Value::Integer(self.unsigned::<8>()?.into()),
            0xd0 => Value::Integer(i8::from_be_bytes(self.fixed()?).into()),
            0xd1 => Value::Integer(i16::from_be_bytes(self.fixed()?).into()),
            0xd2 => Value::Integer(i32::from_be_bytes(self.fixed()?).into()),
            0xd3 => Value::Integer(i64::from_be_bytes(self.fixed()?).into()),
            0xd4..=0xd8 => self.extension(1 << (marker - 0xd4))?,
            0xd9 => self.text_of::<1>()?,
            0xda => self.text_of::<2>()?,
            0xdb => self.text_of::<4>()?,
            0xdc => return Ok(Head::Array(self.unsigned::<2>()?)),
            0xdd => return Ok(Head::Array(self.unsigned::<4>()?)),
            0xde => return Ok(Head::Map(self.unsigned::<2>()?)),
            0xdf => return Ok(Head::Map(self.unsigned::<4>()?)),
            0xe0..=0xff => Value::Integer(i128::from(i8::from_be_bytes([marker]))),
        };
        Ok(Head::Scalar(value))
    }

    fn binary<const N: usize>(&mut self) -> Result<Value<'a>, Malformed> {
        let length = self.unsigned::<N>()?;
        self.take(length).map(Value::Bytes)
    }

    fn text_of<const N: usize>(&mut self) -> Result<Value<'a>, Malformed> {
        let length = self.unsigned::<N>()?;
        self.text(length)
    }

    fn text(&mut self, length: u64) -> Result<Value<'a>, Malformed> {
        match std::str::from_utf8(self.take(length)?) {
            Ok(text) => Ok(Value::Text(text.into())),
            Err(_) => Err(self.malformed("a text is not UTF-8")),
        }
    }

    fn extension_of<const N: usize>(&mut self) -> Result<Value<'a>, Malformed> {
        let length = self.unsigned::<N>()?;
        self.extension(length)
    }

    fn extension(&mut self, length: u64) -> Result<Value<'a>, Malformed> {
        const TIMESTAMP: i8 = -1;
        let number = i8::from_be_bytes(self.fixed()?);
        let body = self.take(length)?;
        if number != TIMESTAMP {
            return Ok(Value::Extension(number));
        }
        match instant_of(body) {
            Some(instant) => Ok(Value::Instant(instant)),
            None => Err(self.malformed("a timestamp is not of its form")),
        }
    }
}

/// 32 bits of seconds; or 30 bits of nanoseconds and 34 of seconds; or 32 of nanoseconds and 64 of seconds.
fn instant_of(body: &[u8]) -> Option<Instant> {
    let (seconds, nanos) = match *body {
        [a, b, c, d] => (i64::from(u32::from_be_bytes([a, b, c, d])), 0),
        [_, _, _, _, _, _, _, _] => {
            let packed = u64::from_be_bytes(body.try_into().ok()?);
            let seconds = i64::try_from(packed & ((1 << 34) - 1)).ok()?;
            (seconds, u32::try_from(packed >> 34).ok()?)
        }
        _ => {
            let (nanos, seconds) = body.split_first_chunk::<4>()?;
            let seconds = i64::from_be_bytes(seconds.try_into().ok()?);
            (seconds, u32::from_be_bytes(*nanos))
        }
    };
    (i64::from(nanos) < NANOS_PER_SECOND).then_some(Instant { seconds, nanos })
}

/// Writes a row as a map of its columns. Timestamps, dates and decimals are text, as in JSON.
pub(crate) fn write_row(out: &mut Vec<u8>, row: Row<'_>) {
    write_length(out, row.columns().len(), [0x80, 0xde, 0xdf], 16);
    for (name, cell) in row.cells() {
        write_text(out, name.as_bytes());
        write_cell(out, cell);
    }
}

fn write_cell(out: &mut Vec<u8>, cell: Cell<'_>) {
    let mut text = Vec::new();
    match cell {
        Cell::Null => out.push(0xc0),
        Cell::Bool(value) => out.push(0xc2 + u8::from(value)),
        Cell::Int(value) => write_integer(out, value),
        Cell::Uint(value) => match i64::try_from(value) {
            Ok(value) => write_integer(out, value),
            Err(_) => {
                out.push(0xcf);
                out.extend_from_slice(&value.to_be_bytes());
            }
        },
        Cell::Float(value) => {
            out.push(0xca);
            out.extend_from_slice(&value.to_be_bytes());
        }
        Cell::Double(value) => {
            out.push(0xcb);
            out.extend_from_slice(&value.to_be_bytes());
        }
        Cell::Text(value) | Cell::Json(value) => write_text(out, value.as_bytes()),
        Cell::Bytes(value) => {
            match u8::try_from(value.len()) {
                Ok(length) => out.extend_from_slice(&[0xc4, length]),
                Err(_) => write_length(out, value.len(), [0, 0xc5, 0xc6], 0),
            }
            out.extend_from_slice(value);
        }
        Cell::Decimal(value, scale) => {
            number::write_decimal(&mut text, value, scale);
            write_text(out, &text);
        }
        Cell::Date(days) => {
            instant::write_date(&mut text, days);
            write_text(out, &text);
        }
        Cell::Time(nanos) => {
            instant::write_time(&mut text, nanos);
            write_text(out, &text);
        }
        Cell::Timestamp(value, unit) => {
            instant::write_timestamp(&mut text, value, unit);
            write_text(out, &text);
        }
        Cell::List(items, range) => {
            write_length(out, range.len(), [0x90, 0xdc, 0xdd], 16);
            for i in range {
                write_cell(out, items.cell(i));
            }
        }
        Cell::Row(row) => write_row(out, row),
    }
}

fn write_integer(out: &mut Vec<u8>, value: i64) {
    if let Ok(small) = i8::try_from(value) {
        if small < -32 {
            out.push(0xd0);
        }
        out.extend_from_slice(&small.to_be_bytes());
    } else if let Ok(small) = i16::try_from(value) {
        out.push(0xd1);
        out.extend_from_slice(&small.to_be_bytes());
    } else if let Ok(small) = i32::try_from(value) {
        out.push(0xd2);
        out.extend_from_slice(&small.to_be_bytes());
    } else {
        out.push(0xd3);
        out.extend_from_slice(&value.to_be_bytes());
    }
}

fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    match u8::try_from(text.len()) {
        Ok(length) if length < 32 => out.push(0xa0 | length),
        Ok(length) => out.extend_from_slice(&[0xd9, length]),
        Err(_) => write_length(out, text.len(), [0, 0xda, 0xdb], 0),
    }
    out.extend_from_slice(text);
}

/// Writes a length below `short` into the first marker, others behind the marker for 16 or 32 bits.
fn write_length(out: &mut Vec<u8>, length: usize, markers: [u8; 3], short: usize) {
    if length < short {
        out.push(markers[0] | u8::try_from(length).expect("a short length has four bits"));
    } else if let Ok(length) = u16::try_from(length) {
        out.push(markers[1]);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        let length = u32::try_from(length).expect("a record is far below 4 GiB");
        out.push(markers[2]);
        out.extend_from_slice(&length.to_be_bytes());
    }
}
