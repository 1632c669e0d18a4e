//! Records' bytes ↔ rows: one decoder and one encoder per format, picked once.
//!
//! Decoding is strict: a record is exactly one value of its format, or it is a bad record and leaves no
//! row. Only the columns a job needs are built; of the rest only the form is checked.

mod json_scan;
mod instant;
mod number;
mod value;
mod strings;
mod columns;
mod row_builder;
mod json_decode;
mod msgpack;
mod csv;
mod debezium_json;
mod cells;
mod json_encode;
mod encoder;

#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod conformance_tests;

use arrow::array::{Int8Array, RecordBatch};
use common::error::{ErrorCode, Problem};
use common::plan::connector::Format;
use common::schema::Column;

pub(crate) use csv::{
    is_header as is_csv_header, is_open as is_csv_open, write_header as write_csv_header,
};
pub use encoder::{EncodedRecord, EncodedRecords, Encoder};
pub(crate) use json_encode::write_string as write_json_string;

use debezium_json::DebeziumDecoder;
use json_decode::JsonDecoder;
use row_builder::RowBuilder;

/// Why a record is no row, in words a user understands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct BadRecord {
    pub detail: String,
}

/// Turns records into rows of the columns a job needs.
#[derive(Debug)]
pub struct Decoder {
    format: FormatDecoder,
    rows: RowBuilder,
    /// One per row, if the format has kinds.
    kinds: Vec<i8>,
}

#[derive(Debug)]
enum FormatDecoder {
    Json(JsonDecoder),
    Csv(csv::CsvDecoder),
    Msgpack,
    Debezium(DebeziumDecoder),
}

impl Decoder {
    /// Reads `needed`, which are some of the columns of `schema`.
    pub fn new(format: Format, schema: &[Column], needed: &[Column]) -> Result<Decoder, Problem> {
        if let Some(column) = needed
            .iter()
            .find(|column| schema.iter().all(|known| known.name != column.name))
        {
            return Err(Problem::new(
                ErrorCode::InvalidGraph,
                format!("the schema has no column \"{}\"", column.name),
            ));
        }
        Ok(Decoder {
            format: match format {
                Format::Json => FormatDecoder::Json(JsonDecoder::new(needed)),
                Format::Csv => FormatDecoder::Csv(csv::CsvDecoder::new(schema, needed)),
                Format::Msgpack => FormatDecoder::Msgpack,
                Format::DebeziumJson => FormatDecoder::Debezium(DebeziumDecoder::new(needed)),
            },
            rows: RowBuilder::new(needed),
            kinds: Vec::new(),
        })
    }

    /// Appends a record's rows, and says how many they are: one, unless the format has changes. A bad
    /// record leaves none.
    #[inline]
    pub fn push(&mut self, value: Option<&[u8]>) -> Result<usize, BadRecord> {
        let before = self.rows.rows();
        match (&mut self.format, value) {
            (FormatDecoder::Debezium(_), None) => {}
            (_, None) => return Err(BadRecord::new("the record has no value".to_owned())),
            (FormatDecoder::Json(decoder), Some(value)) => decoder.push(value, &mut self.rows)?,
            (FormatDecoder::Csv(decoder), Some(value)) => decoder.push(value, &mut self.rows)?,
            (FormatDecoder::Msgpack, Some(value)) => msgpack::push(value, &mut self.rows)?,
            (FormatDecoder::Debezium(decoder), Some(value)) => {
                decoder.push(value, &mut self.rows, &mut self.kinds)?;
            }
        }
        Ok(self.rows.rows() - before)
    }

    /// How many rows there are so far.
    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// The rows so far, with their kinds unless all are inserts; the decoder is empty afterwards.
    pub fn finish(&mut self) -> (RecordBatch, Option<Int8Array>) {
        let kinds = std::mem::take(&mut self.kinds);
        let changes = kinds
            .iter()
            .any(|kind| *kind != crate::task::message::kind::INSERT);
        (self.rows.finish(), changes.then(|| Int8Array::from(kinds)))
    }
}

impl BadRecord {
    pub(crate) fn new(detail: String) -> BadRecord {
        BadRecord { detail }
    }
}

impl From<json_scan::JsonError> for BadRecord {
    fn from(error: json_scan::JsonError) -> BadRecord {
        BadRecord::new(error.to_string())
    }
}

/// Whether these bytes are one JSON value.
pub(crate) fn is_json(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let mut scanner = json_scan::Scanner::new(text);
    scanner.skip_whitespace();
    scanner.value().is_ok() && scanner.end().is_ok()
}
