//! Debezium's JSON envelopes, one change per record, into rows with kinds and back.
//!
//! `{"before": …, "after": …, "op": "c" | "r" | "u" | "d"}`, alone or as the `payload` of an envelope with
//! a schema. An update is one record and two rows; a record without a value, which Debezium sends after a
//! delete so that compaction may forget the key, is no row. A change that does not say the row it takes back is
//! a bad record: whatever counts the rows would count it twice.

use common::schema::{Column, ColumnType};

use super::BadRecord;
use super::cells::Row;
use super::json_decode::{JsonFields, utf8};
use super::json_encode::JsonEncoder;
use super::json_scan::{Scanner, Token, TokenKind};
use super::row_builder::RowBuilder;
use crate::task::message::kind;

/// Decodes one envelope per record.
#[derive(Debug)]
pub(crate) struct DebeziumDecoder {
    /// `payload`, and the same fields without one.
    outer: JsonFields,
    inner: JsonFields,
    row: JsonFields,
}

/// The positions of an envelope's fields.
const BEFORE: usize = 0;
const AFTER: usize = 1;
const OP: usize = 2;
const PAYLOAD: usize = 3;

impl DebeziumDecoder {
    pub(crate) fn new(columns: &[Column]) -> DebeziumDecoder {
        let names = ["before", "after", "op", "payload"];
        let envelope = names.map(|name| Column::new(name, ColumnType::Json, true));
        DebeziumDecoder {
            outer: JsonFields::new(&envelope),
            inner: JsonFields::new(&envelope[..PAYLOAD]),
            row: JsonFields::new(columns),
        }
    }

    /// Appends the change's rows and their kinds: all of them, or none.
    pub(crate) fn push(
        &mut self,
        record: &[u8],
        rows: &mut RowBuilder,
        kinds: &mut Vec<i8>,
    ) -> Result<(), BadRecord> {
        let text = utf8(record)?;
        let mut scanner = Scanner::new(text);
        scanner.skip_whitespace();
        self.outer.scan(&mut scanner)?;
        scanner.end()?;
        let mut envelope = (text, &self.outer);
        if let Some(payload) = present(self.outer.value(PAYLOAD)) {
            let payload = &text[payload.start..payload.end];
            self.inner.scan(&mut Scanner::new(payload))?;
            envelope = (payload, &self.inner);
        }
        let (text, fields) = envelope;
        let image = |field: usize| present(fields.value(field)).map(|t| &text[t.start..t.end]);
        let (before, after) = (image(BEFORE), image(AFTER));
        let op = image(OP).ok_or_else(|| BadRecord::new("\"op\" is missing".to_owned()))?;
        let changes = match op {
            "\"c\"" | "\"r\"" => [None, Some((kind::INSERT, after, "after"))],
            "\"u\"" => [
                Some((kind::UPDATE_BEFORE, before, "before")),
                Some((kind::UPDATE_AFTER, after, "after")),
            ],
            "\"d\"" => [None, Some((kind::DELETE, before, "before"))],
            other => {
                return Err(BadRecord::new(format!(
                    "\"op\" is {other}, not \"c\", \"r\", \"u\" or \"d\""
                )));
            }
        };
        let start = rows.rows();
        for (kind, image, name) in changes.into_iter().flatten() {
            let pushed = match image {
                Some(image) => self
                    .push_image(image, rows)
                    .map_err(|BadRecord { detail }| format!("\"{name}\": {detail}")),
                None => Err(without(name, op)),
            };
            if let Err(detail) = pushed {
                rows.truncate(start);
                kinds.truncate(start);
                return Err(BadRecord::new(detail));
            }
            kinds.push(kind);
        }
        Ok(())
    }

    fn push_image(&mut self, image: &str, rows: &mut RowBuilder) -> Result<(), BadRecord> {
        self.row.scan(&mut Scanner::new(image))?;
        rows.push_row(|columns| self.row.push_into(image, columns))
    }
}

fn without(name: &str, op: &str) -> String {
    let hint = match name {
        "before" => {
            "; it takes a row back, and must say which: in PostgreSQL, ALTER TABLE … REPLICA IDENTITY FULL"
        }
        _ => "",
    };
    format!("\"{name}\" is missing or null, though \"op\" is {op}{hint}")
}

/// A field that is there and not null.
fn present(token: Option<Token>) -> Option<Token> {
    token.filter(|token| token.kind != TokenKind::Null)
}

/// Writes a change as one envelope.
pub(crate) fn write_change(
    out: &mut Vec<u8>,
    rows: &JsonEncoder,
    before: Option<Row<'_>>,
    after: Option<Row<'_>>,
    op: u8,
) {
    let mut image = |name: &[u8], row: Option<Row<'_>>| {
        out.extend_from_slice(name);
        match row {
            Some(row) => rows.write(out, row),
            None => out.extend_from_slice(b"null"),
        }
    };
    image(b"{\"before\":", before);
    image(b",\"after\":", after);
    out.extend_from_slice(b",\"op\":\"");
    out.push(op);
    out.extend_from_slice(b"\"}");
}
