//! Records of one split on their way to rows: decoded together, with their offsets, bad ones put aside.
//!
//! What becomes of a bad record is the source's option: a dead letter, nothing, or the end of the job.

use std::sync::Arc;

use arrow::array::Int64Array;
use bytes::Bytes;
use common::error::Problem;
use common::limits::{MAX_ROWS_BYTES, MAX_ROWS_PER_MESSAGE};
use common::plan::connector::{BadRecords, Format};
use common::schema::Column;

use super::{SourceError, SourceRows};
use crate::format::{BadRecord, Decoder};
use crate::task::dead_letter::{DeadLetter, LetterOrigin, Reason};
use crate::task::message::{Origin, Rows};

/// A source's decoder.
#[derive(Debug)]
pub(super) struct SourceDecoder {
    decoder: Decoder,
    bad_records: BadRecords,
    /// The source's name in its job, which dead letters carry.
    operator: String,
    /// The records since the last `finish`.
    offsets: Vec<i64>,
    dead_letters: Vec<DeadLetter>,
    bytes: u64,
}

/// Where a run of records comes from.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The split, as checkpoints know it.
    pub(super) split: Arc<str>,
    /// The topic's or file's name.
    pub(super) source: Arc<str>,
    pub(super) partition: u32,
}

impl SourceDecoder {
    pub(super) fn new(
        operator: &str,
        format: Format,
        schema: &[Column],
        columns: &[Column],
        bad_records: BadRecords,
    ) -> Result<SourceDecoder, Problem> {
        Ok(SourceDecoder {
            decoder: Decoder::new(format, schema, columns)?,
            bad_records,
            operator: operator.to_owned(),
            offsets: Vec::new(),
            dead_letters: Vec::new(),
            bytes: 0,
        })
    }

    /// Takes a record; a bad one may be the end of the job.
    #[inline]
    pub(super) fn push(
        &mut self,
        place: &Place,
        offset: i64,
        value: Option<&[u8]>,
    ) -> Result<(), SourceError> {
        self.bytes += value.map_or(0, <[u8]>::len) as u64;
        match self.decoder.push(value) {
            Ok(1) => self.offsets.push(offset),
            Ok(rows) => self.offsets.extend(std::iter::repeat_n(offset, rows)),
            Err(BadRecord { detail }) => self.give_up(place, offset, value, detail)?,
        }
        Ok(())
    }

    #[cold]
    fn give_up(
        &mut self,
        place: &Place,
        offset: i64,
        value: Option<&[u8]>,
        detail: String,
    ) -> Result<(), SourceError> {
        match self.bad_records {
            BadRecords::Drop => {}
            BadRecords::Fail => {
                return Err(SourceError::Fatal(format!(
                    "record {offset} of {}, partition {}: {detail}",
                    place.source, place.partition
                )));
            }
            BadRecords::DeadLetter => self.dead_letters.push(DeadLetter {
                reason: Reason::BadRecord,
                detail,
                operator: self.operator.clone(),
                origin: Some(LetterOrigin {
                    topic: place.source.to_string(),
                    partition: place.partition,
                    offset,
                }),
                value: value.map(Bytes::copy_from_slice).unwrap_or_default(),
            }),
        }
        Ok(())
    }

    /// Whether the records so far are enough for one message.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= MAX_ROWS_PER_MESSAGE || self.bytes >= MAX_ROWS_BYTES as u64
    }

    /// Rows so far, bad records included.
    pub(super) fn len(&self) -> usize {
        self.decoder.rows() + self.dead_letters.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The records so far; `next_position` is the split's position after them.
    pub(super) fn finish(&mut self, place: &Place, next_position: i64, lag: u64) -> SourceRows {
        let (batch, kinds) = self.decoder.finish();
        let offsets = Int64Array::from(std::mem::take(&mut self.offsets));
        SourceRows {
            split: place.split.clone(),
            rows: Rows {
                batch,
                kinds,
                origin: Some(Origin {
                    source: place.source.clone(),
                    partition: place.partition,
                    offsets,
                }),
            },
            next_position,
            dead_letters: std::mem::take(&mut self.dead_letters),
            bytes: std::mem::take(&mut self.bytes),
            lag,
        }
    }
}
