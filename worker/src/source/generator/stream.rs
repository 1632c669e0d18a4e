//! A generated stream: any rows of it, column by column.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringBuilder,
    TimestampMillisecondArray,
};
use arrow::datatypes::SchemaRef;
use common::error::{ErrorCode, Problem};
use common::plan::connector::{GeneratorKind, GeneratorSource};
use common::schema::{Column, to_arrow_schema};

use super::clickstream::Clickstream;
use super::nexmark::{EVENTS_PER_ROUND, Nexmark};
use super::payments::Payments;
use super::sensors::Sensors;

/// The events of all kinds per second of event time, if no rate is asked for.
const NEXMARK_EVENTS_PER_SECOND: u64 = 10_000;
const EVENTS_PER_SECOND: u64 = 1_000;

/// A stream and the columns wanted of it.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    kind: Kind,
    schema: SchemaRef,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Nexmark(Nexmark),
    Clickstream(Clickstream),
    Payments(Payments),
    Sensors(Sensors),
}

impl Stream {
    /// Event time keeps pace with the rate, so that a window of ten seconds takes ten seconds.
    pub(super) fn new(spec: &GeneratorSource, columns: &[Column]) -> Result<Stream, Problem> {
        let seed = spec.seed;
        let events_per_second = spec.rate.unwrap_or(EVENTS_PER_SECOND).max(1);
        let kind = match spec.generator {
            kind @ (GeneratorKind::NexmarkPerson
            | GeneratorKind::NexmarkAuction
            | GeneratorKind::NexmarkBid) => {
                let of_all = |rate: u64| rate * EVENTS_PER_ROUND / Nexmark::rows_per_round(kind);
                Kind::Nexmark(Nexmark {
                    kind,
                    seed,
                    events_per_second: spec.rate.map_or(NEXMARK_EVENTS_PER_SECOND, of_all).max(1),
                })
            }
            GeneratorKind::Clickstream => Kind::Clickstream(Clickstream {
                seed,
                events_per_second,
            }),
            GeneratorKind::Payments => Kind::Payments(Payments {
                seed,
                events_per_second,
            }),
            GeneratorKind::Sensors => Kind::Sensors(Sensors {
                seed,
                events_per_second,
            }),
        };
        let known = spec.generator.columns();
        for column in columns {
            let same = |known: &&Column| known.name == column.name && known.kind == column.kind;
            if known.iter().find(same).is_none() {
                return Err(Problem::new(
                    ErrorCode::InvalidGraph,
                    format!(
                        "the generator has no column \"{}\" {}",
                        column.name, column.kind
                    ),
                ));
            }
        }
        Ok(Stream {
            kind,
            schema: to_arrow_schema(columns),
        })
    }

    /// The rows of these numbers.
    pub(super) fn rows(&self, numbers: &[u64]) -> RecordBatch {
        let column = |name: &str| {
            let array = match &self.kind {
                Kind::Nexmark(stream) => stream.column(name, numbers),
                Kind::Clickstream(stream) => stream.column(name, numbers),
                Kind::Payments(stream) => stream.column(name, numbers),
                Kind::Sensors(stream) => stream.column(name, numbers),
            };
            array.expect("a stream generates every column it is said to have")
        };
        let arrays = self
            .schema
            .fields()
            .iter()
            .map(|field| column(field.name()))
            .collect();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(numbers.len()));
        match RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options) {
            Ok(batch) => batch,
            Err(error) => {
                unreachable!("a stream's columns have the types they are said to have: {error}")
            }
        }
    }
}

pub(super) fn integers(rows: &[u64], value: impl Fn(u64) -> u64) -> ArrayRef {
    let signed = |row: &u64| i64::try_from(value(*row)).expect("generated numbers are small");
    Arc::new(Int64Array::from_iter_values(rows.iter().map(signed)))
}

pub(super) fn doubles(rows: &[u64], value: impl Fn(u64) -> f64) -> ArrayRef {
    Arc::new(Float64Array::from_iter_values(
        rows.iter().map(|row| value(*row)),
    ))
}

pub(super) fn booleans(rows: &[u64], value: impl Fn(u64) -> bool) -> ArrayRef {
    let values: Vec<bool> = rows.iter().map(|row| value(*row)).collect();
    Arc::new(BooleanArray::from(values))
}

pub(super) fn timestamps(rows: &[u64], value: impl Fn(u64) -> i64) -> ArrayRef {
    let values = rows.iter().map(|row| value(*row));
    Arc::new(TimestampMillisecondArray::from_iter_values(values))
}

pub(super) fn strings(rows: &[u64], write: impl Fn(u64, &mut String)) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(rows.len(), rows.len() * 16);
    let mut text = String::new();
    for row in rows {
        text.clear();
        write(*row, &mut text);
        builder.append_value(&text);
    }
    Arc::new(builder.finish())
}
