//! What travels between tasks: rows with their kinds, event time, barriers.

use std::sync::Arc;

use arrow::array::{Array, BooleanArray, Int8Array, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{filter, filter_record_batch, take, take_record_batch};
use arrow::error::ArrowError;
use common::ids::CheckpointId;
use common::time::Timestamp;

/// The kinds of change a row can be, as they stand in the `kinds` column.
pub mod kind {
    pub const INSERT: i8 = 0;
    /// The row as it was; the row as it is now follows.
    pub const UPDATE_BEFORE: i8 = 1;
    pub const UPDATE_AFTER: i8 = 2;
    pub const DELETE: i8 = 3;
}

/// A batch of rows.
#[derive(Clone, Debug)]
pub struct Rows {
    pub batch: RecordBatch,
    /// One kind per row; absent: all are inserts.
    pub kinds: Option<Int8Array>,
    /// Where the rows were read, as long as each is still one source record.
    pub origin: Option<Origin>,
}

/// The records a batch of rows was read from: all of one split.
#[derive(Clone, Debug)]
pub struct Origin {
    /// A topic's or file's name.
    pub source: Arc<str>,
    pub partition: u32,
    /// One offset (in a file: the byte where the record begins) per row.
    pub offsets: Int64Array,
}

/// What one task says to the next, in order.
#[derive(Clone, Debug)]
pub enum Message {
    Rows(Rows),
    Signal(Signal),
}

impl Message {
    pub fn is_barrier(&self) -> bool {
        matches!(self, Message::Signal(Signal::Barrier(_)))
    }
}

/// What a channel says besides rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// No row before this time will follow. Never falls.
    Watermark(Timestamp),
    /// Nothing will come for a while: do not wait for this channel's watermark.
    Idle,
    /// Rows may come again.
    Active,
    Barrier(Barrier),
}

/// Separates the rows of one checkpoint from those of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Barrier {
    pub checkpoint: CheckpointId,
    /// No row follows it. Another such barrier may: the checkpoint of this one may come to nothing.
    pub stop: bool,
}

impl Rows {
    /// Rows that are all inserts and of no known origin.
    pub fn inserts(batch: RecordBatch) -> Rows {
        Rows {
            batch,
            kinds: None,
            origin: None,
        }
    }

    pub fn len(&self) -> usize {
        self.batch.num_rows()
    }

    pub fn is_empty(&self) -> bool {
        self.batch.num_rows() == 0
    }

    /// The same rows with other columns.
    pub fn with_batch(self, batch: RecordBatch) -> Rows {
        assert_eq!(
            batch.num_rows(),
            self.batch.num_rows(),
            "columns are replaced row for row"
        );
        Rows { batch, ..self }
    }

    /// The rows for which `keep` is true.
    pub fn filter(&self, keep: &BooleanArray) -> Result<Rows, ArrowError> {
        let batch = filter_record_batch(&self.batch, keep)?;
        self.select(batch, |array| filter(array, keep))
    }

    /// The rows at these positions, in this order.
    pub fn take(&self, positions: &UInt32Array) -> Result<Rows, ArrowError> {
        let batch = take_record_batch(&self.batch, positions)?;
        self.select(batch, |array| take(array, positions, None))
    }

    /// A run of rows, sharing their memory.
    pub fn slice(&self, start: usize, length: usize) -> Rows {
        Rows {
            batch: self.batch.slice(start, length),
            kinds: self.kinds.as_ref().map(|kinds| kinds.slice(start, length)),
            origin: self.origin.as_ref().map(|origin| Origin {
                offsets: origin.offsets.slice(start, length),
                ..origin.clone()
            }),
        }
    }

    fn select(
        &self,
        batch: RecordBatch,
        choose: impl Fn(&dyn Array) -> Result<arrow::array::ArrayRef, ArrowError>,
    ) -> Result<Rows, ArrowError> {
        let kinds = match &self.kinds {
            Some(kinds) => Some(as_array::<Int8Array>(&choose(kinds)?)),
            None => None,
        };
        let origin = match &self.origin {
            Some(origin) => Some(Origin {
                offsets: as_array::<Int64Array>(&choose(&origin.offsets)?),
                ..origin.clone()
            }),
            None => None,
        };
        Ok(Rows {
            batch,
            kinds,
            origin,
        })
    }
}

fn as_array<A: Array + Clone + 'static>(array: &dyn Array) -> A {
    array
        .as_any()
        .downcast_ref::<A>()
        .expect("filter and take keep an array's type")
        .clone()
}
