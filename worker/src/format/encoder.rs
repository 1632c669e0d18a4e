//! Rows into records: a value each, a key where the rows have one, nothing where a row is no record.
//!
//! `debezium_json` says every change: an update whose two rows stand together is one record, one whose rows are
//! apart is a delete and a create, because its reader refuses an update that does not say the row before. The other
//! formats say the latest row per key: a delete is the key with no value, and the row before an update is
//! nothing. A key is a JSON object of the key's columns, whatever the format of the value.

use std::ops::Range;

use common::error::{ErrorCode, Problem};
use common::plan::connector::Format;
use common::schema::Column;

use super::cells::{Row, Table};
use super::json_encode::JsonEncoder;
use super::{csv, debezium_json, msgpack};
use crate::task::message::{Rows, kind};

/// Encodes rows of fixed columns.
#[derive(Debug)]
pub struct Encoder {
    format: Format,
    columns: Vec<Column>,
    json: JsonEncoder,
    key: Option<JsonEncoder>,
}

/// Encoded records, in memory that is used again.
#[derive(Debug, Default)]
pub struct EncodedRecords {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

#[derive(Debug)]
struct Span {
    row: usize,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedRecord<'a> {
    /// The row it was made of; the later one of an update.
    pub row: usize,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

impl Encoder {
    /// `key` names the columns of the record key; empty: records have none.
    pub fn new(format: Format, columns: &[Column], key: &[String]) -> Result<Encoder, Problem> {
        let position = |name: &String| {
            let found = columns.iter().position(|column| column.name == *name);
            found.ok_or_else(|| {
                let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
                Problem::new(
                    ErrorCode::InvalidGraph,
                    format!("the key's column \"{name}\" is not one of the rows' columns"),
                )
                .hint(format!("The columns are: {}.", names.join(", ")))
            })
        };
        let key_columns: Vec<usize> = key.iter().map(position).collect::<Result<_, _>>()?;
        Ok(Encoder {
            format,
            columns: columns.to_vec(),
            json: JsonEncoder::new(columns),
            key: (!key.is_empty()).then(|| JsonEncoder::of_some(columns, key_columns)),
        })
    }

    /// Appends the records of these rows.
    pub fn encode(&self, rows: &Rows, out: &mut EncodedRecords) -> Result<(), Problem> {
        let table = Table::new(&rows.batch, &self.columns)
            .map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))?;
        let kinds: Option<&[i8]> = rows.kinds.as_ref().map(|kinds| &kinds.values()[..]);
        let kind_of = |row: usize| kinds.map_or(kind::INSERT, |kinds| kinds[row]);
        let mut row = 0;
        while row < rows.len() {
            let this = table.row(row);
            match (self.format, kind_of(row)) {
                // Of an update in two halves the first has become a delete, so the second one creates.
                (Format::DebeziumJson, kind::INSERT | kind::UPDATE_AFTER) => {
                    self.change(out, row, (None, Some(this)), b'c');
                }
                (Format::DebeziumJson, kind::DELETE) => {
                    self.change(out, row, (Some(this), None), b'd');
                }
                (Format::DebeziumJson, kind::UPDATE_BEFORE) => {
                    let paired = row + 1 < rows.len() && kind_of(row + 1) == kind::UPDATE_AFTER;
                    if paired {
                        let after = table.row(row + 1);
                        self.change(out, row + 1, (Some(this), Some(after)), b'u');
                        row += 1;
                    } else {
                        self.change(out, row, (Some(this), None), b'd');
                    }
                }
                (_, kind::UPDATE_BEFORE) => {}
                (_, kind::DELETE) => self.delete(out, row, this)?,
                (_, _) => self.upsert(out, row, this),
            }
            row += 1;
        }
        Ok(())
    }

    fn upsert(&self, out: &mut EncodedRecords, number: usize, row: Row<'_>) {
        let key = self.write_key(out, row);
        let start = out.bytes.len();
        match self.format {
            Format::Json | Format::DebeziumJson => self.json.write(&mut out.bytes, row),
            Format::Csv => csv::write_row(&mut out.bytes, row),
            Format::Msgpack => msgpack::write_row(&mut out.bytes, row),
        }
        let value = Some(start..out.bytes.len());
        out.spans.push(Span {
            row: number,
            key,
            value,
        });
    }

    fn delete(&self, out: &mut EncodedRecords, number: usize, row: Row<'_>) -> Result<(), Problem> {
        let Some(key) = self.write_key(out, row) else {
            return Err(Problem::new(
                ErrorCode::InvalidGraph,
                "a row was deleted, but the records have no key to say which",
            )
            .hint(
                "Name the key's columns in the sink's option key, or use format debezium_json.",
            ));
        };
        out.spans.push(Span {
            row: number,
            key: Some(key),
            value: None,
        });
        Ok(())
    }

    fn change(
        &self,
        out: &mut EncodedRecords,
        number: usize,
        (before, after): (Option<Row<'_>>, Option<Row<'_>>),
        op: u8,
    ) {
        let key = after.or(before).and_then(|row| self.write_key(out, row));
        let start = out.bytes.len();
        debezium_json::write_change(&mut out.bytes, &self.json, before, after, op);
        let value = Some(start..out.bytes.len());
        out.spans.push(Span {
            row: number,
            key,
            value,
        });
    }

    fn write_key(&self, out: &mut EncodedRecords, row: Row<'_>) -> Option<Range<usize>> {
        let key = self.key.as_ref()?;
        let start = out.bytes.len();
        key.write(&mut out.bytes, row);
        Some(start..out.bytes.len())
    }
}

impl EncodedRecords {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Keys and values together.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = EncodedRecord<'_>> {
        self.spans.iter().map(|span| EncodedRecord {
            row: span.row,
            key: span.key.clone().map(|range| &self.bytes[range]),
            value: span.value.clone().map(|range| &self.bytes[range]),
        })
    }
}
