//! Lines of comma-separated values, one per record, into rows and back: RFC 4180.
//!
//! Fields stand in the order of the schema's columns. An empty field is null, an empty text is `""`.
//! Arrays, rows and JSON columns are JSON inside a field.

use common::schema::{Column, ColumnType};

use super::BadRecord;
use super::cells::{Cell, Row};
use super::columns::ColumnBuilder;
use super::json_encode;
use super::json_scan::Scanner;
use super::number;
use super::row_builder::RowBuilder;
use super::value::{Misfit, Value};

/// Decodes one line per record.
#[derive(Debug)]
pub(crate) struct CsvDecoder {
    /// How many fields a line has.
    fields: usize,
    /// Per needed column, the field it is in.
    positions: Vec<usize>,
    /// The fields of the line read last; kept for its memory.
    line: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    text: String,
    quoted: bool,
}

impl CsvDecoder {
    /// `needed` are some of the columns of `schema`, by name.
    pub(crate) fn new(schema: &[Column], needed: &[Column]) -> CsvDecoder {
        let position = |column: &Column| {
            schema
                .iter()
                .position(|c| c.name == column.name)
                .expect("a needed column is one of its schema")
        };
        CsvDecoder {
            fields: schema.len(),
            positions: needed.iter().map(position).collect(),
            line: Vec::new(),
        }
    }

    /// Appends the line's row.
    pub(crate) fn push(&mut self, record: &[u8], rows: &mut RowBuilder) -> Result<(), BadRecord> {
        let text = super::json_decode::utf8(record)?;
        let found = split(text, &mut self.line)?;
        if found != self.fields {
            return Err(BadRecord::new(format!(
                "the line has {found} fields, the schema has {} columns",
                self.fields
            )));
        }
        rows.push_row(|columns| {
            for (column, position) in columns.iter_mut().zip(&self.positions) {
                push_field(column, &self.line[*position])?;
            }
            Ok(())
        })
    }
}

/// Cuts a line into fields, reusing their memory; returns how many there are.
fn split(line: &str, fields: &mut Vec<Field>) -> Result<usize, BadRecord> {
    let line = line.strip_suffix('\n').unwrap_or(line);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let mut rest = line;
    let mut count = 0;
    loop {
        if count == fields.len() {
            fields.push(Field {
                text: String::new(),
                quoted: false,
            });
        }
        let field = &mut fields[count];
        field.text.clear();
        field.quoted = rest.starts_with('"');
        count += 1;
        if field.quoted {
            rest = quoted(&rest[1..], &mut field.text).ok_or_else(|| {
                BadRecord::new(format!("field {count}: the quotes are not closed"))
            })?;
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            if rest[..end].contains('"') {
                return Err(BadRecord::new(format!(
                    "field {count}: a quote stands in a field that does not start with one"
                )));
            }
            field.text.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        if rest.is_empty() {
            return Ok(count);
        }
        rest = rest.strip_prefix(',').ok_or_else(|| {
            BadRecord::new(format!(
                "field {count}: something follows the closing quote"
            ))
        })?;
    }
}

/// Reads up to the closing quote; two quotes are one. Returns what follows.
fn quoted<'a>(mut rest: &'a str, text: &mut String) -> Option<&'a str> {
    loop {
        let quote = rest.find('"')?;
        text.push_str(&rest[..quote]);
        rest = &rest[quote + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                text.push('"');
                rest = after;
            }
            None => return Some(rest),
        }
    }
}

fn push_field(column: &mut ColumnBuilder, field: &Field) -> Result<(), Misfit> {
    let text = field.text.as_str();
    if text.is_empty() && !field.quoted {
        return column.push(Value::Null);
    }
    match &column.column().kind {
        ColumnType::Json | ColumnType::Array(_) | ColumnType::Row(_) => {
            let mut scanner = Scanner::new(text);
            scanner.skip_whitespace();
            let token = scanner
                .value()
                .and_then(|token| scanner.end().map(|()| token));
            match token {
                Ok(token) => column.push_json(text, Some(token)),
                Err(error) => Err(Misfit(format!(
                    "column \"{}\": {error}",
                    column.column().name
                ))),
            }
        }
        ColumnType::Boolean if text.eq_ignore_ascii_case("true") => column.push(Value::Bool(true)),
        ColumnType::Boolean if text.eq_ignore_ascii_case("false") => {
            column.push(Value::Bool(false))
        }
        ColumnType::Varchar => column.push(Value::Text(text.into())),
        _ if number::is_number(text) => column.push(Value::Number(text)),
        _ => column.push(Value::Text(text.into())),
    }
}

/// Writes a row as a line, without its end.
pub(crate) fn write_row(out: &mut Vec<u8>, row: Row<'_>) {
    let mut json = Vec::new();
    for (i, (_, cell)) in row.cells().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        match cell {
            Cell::Null => {}
            Cell::Text(text) => write_field(out, text.as_bytes()),
            Cell::Json(text) => write_field(out, text.as_bytes()),
            Cell::List(..) | Cell::Row(_) => {
                json.clear();
                json_encode::write_cell(&mut json, cell);
                write_field(out, &json);
            }
            // CSV has no types: what JSON needs a word for can be left empty.
            Cell::Float(value) if !value.is_finite() => {}
            Cell::Double(value) if !value.is_finite() => {}
            other => {
                json.clear();
                json_encode::write_cell(&mut json, other);
                let bare = json.strip_prefix(b"\"").and_then(|j| j.strip_suffix(b"\""));
                write_field(out, bare.unwrap_or(&json));
            }
        }
    }
}

/// The names of the columns, as the first line of a file.
pub(crate) fn write_header(out: &mut Vec<u8>, columns: &[Column]) {
    for (i, column) in columns.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_field(out, column.name.as_bytes());
    }
}

/// Whether a line is the names of these columns.
pub(crate) fn is_header(line: &[u8], schema: &[Column]) -> bool {
    let Ok(text) = std::str::from_utf8(line) else {
        return false;
    };
    let mut fields = Vec::new();
    let found = split(text, &mut fields);
    found.is_ok_and(|found| found == schema.len())
        && fields.iter().zip(schema).all(|(f, c)| f.text == c.name)
}

/// Whether a record goes on behind the end of this line: an odd number of quotes is open.
pub(crate) fn is_open(text: &[u8]) -> bool {
    text.iter().filter(|byte| **byte == b'"').count() % 2 == 1
}

fn write_field(out: &mut Vec<u8>, field: &[u8]) {
    let plain = !field.is_empty()
        && !field
            .iter()
            .any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r'));
    if plain {
        out.extend_from_slice(field);
        return;
    }
    out.push(b'"');
    for byte in field {
        out.push(*byte);
        if *byte == b'"' {
            out.push(b'"');
        }
    }
    out.push(b'"');
}
