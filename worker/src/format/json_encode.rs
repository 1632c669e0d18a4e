//! Rows into JSON objects, written straight into bytes.
//!
//! Numbers are numbers, whatever their size; a NaN or an infinity, which JSON does not have, is null;
//! bytes are base64; timestamps have no zone.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::schema::Column;

use super::cells::{Cell, Row};
use super::instant;
use super::json_scan::plain_run_end;
use super::number;

/// Writes rows of these columns.
#[derive(Debug)]
pub(crate) struct JsonEncoder {
    /// Per column what stands before its value: a brace or comma, the name, a colon.
    prefixes: Vec<Vec<u8>>,
    /// The columns written, by their position in the row.
    columns: Vec<usize>,
}

impl JsonEncoder {
    /// Writes every column of a row.
    pub(crate) fn new(columns: &[Column]) -> JsonEncoder {
        JsonEncoder::of_some(columns, (0..columns.len()).collect())
    }

    /// Writes only the columns at these positions.
    pub(crate) fn of_some(columns: &[Column], chosen: Vec<usize>) -> JsonEncoder {
        let prefix = |(i, column): (usize, &usize)| {
            let mut prefix = vec![if i == 0 { b'{' } else { b',' }];
            write_string(&mut prefix, &columns[*column].name);
            prefix.push(b':');
            prefix
        };
        JsonEncoder {
            prefixes: chosen.iter().enumerate().map(prefix).collect(),
            columns: chosen,
        }
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>, row: Row<'_>) {
        if self.columns.is_empty() {
            out.push(b'{');
        }
        for (prefix, column) in self.prefixes.iter().zip(&self.columns) {
            out.extend_from_slice(prefix);
            write_cell(out, row.cell(*column));
        }
        out.push(b'}');
    }
}

pub(crate) fn write_cell(out: &mut Vec<u8>, cell: Cell<'_>) {
    match cell {
        Cell::Null => out.extend_from_slice(b"null"),
        Cell::Bool(value) => write_bool(out, value),
        Cell::Int(value) => out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
        Cell::Uint(value) => out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
        Cell::Float(value) if value.is_finite() => {
            out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
        }
        Cell::Float(_) => out.extend_from_slice(b"null"),
        Cell::Double(value) => write_float(out, value),
        Cell::Decimal(value, scale) => number::write_decimal(out, value, scale),
        Cell::Text(value) => write_string(out, value),
        // It was JSON when it was read, on one line or several; here it must stay on one.
        Cell::Json(value) if value.contains(['\n', '\r']) => {
            out.extend(value.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')));
        }
        Cell::Json(value) => out.extend_from_slice(value.as_bytes()),
        Cell::Bytes(value) => write_string(out, &BASE64_STANDARD.encode(value)),
        Cell::Date(days) => quoted(out, |out| instant::write_date(out, days)),
        Cell::Time(nanos) => quoted(out, |out| instant::write_time(out, nanos)),
        Cell::Timestamp(value, unit) => {
            quoted(out, |out| instant::write_timestamp(out, value, unit));
        }
        Cell::List(items, range) => {
            out.push(b'[');
            for i in range.clone() {
                if i != range.start {
                    out.push(b',');
                }
                write_cell(out, items.cell(i));
            }
            out.push(b']');
        }
        Cell::Row(row) => {
            let mut before = b'{';
            for (name, cell) in row.cells() {
                out.push(before);
                before = b',';
                write_string(out, name);
                out.push(b':');
                write_cell(out, cell);
            }
            if before == b'{' {
                out.push(b'{');
            }
            out.push(b'}');
        }
    }
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

pub(crate) fn write_bool(out: &mut Vec<u8>, value: bool) {
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

pub(crate) fn write_float(out: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

/// Writes a text in quotes, escaping what must be.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bytes = text.as_bytes();
    out.push(b'"');
    let mut start = 0;
    loop {
        let end = plain_run_end(bytes, start);
        out.extend_from_slice(&bytes[start..end]);
        let Some(special) = bytes.get(end) else {
            break;
        };
        match special {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *special]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
        start = end + 1;
    }
    out.push(b'"');
}
