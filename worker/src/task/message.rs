//! What travels between tasks: rows with their kinds, event time, barriers.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int8Array, Int64Array, RecordBatch, UInt32Array,
};
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
    /// Bytes of memory its values take, wherever they are: of a slice, its own part.
    pub fn bytes(&self) -> usize {
        let own = |column: &ArrayRef| {
            let own = column.to_data().get_slice_memory_size();
            own.unwrap_or_else(|_| column.get_array_memory_size())
        };
        self.batch.columns().iter().map(own).sum()
    }

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

    /// The same in pieces of at most so many rows and about so many bytes, but two rows or more. The two rows
    /// of an update stay together: a sink may write them as one.
    pub fn pieces(self, most: usize, most_bytes: usize) -> impl Iterator<Item = Rows> {
        let pieces = self.bytes().div_ceil(most_bytes).max(1);
        let most = most.min(self.len().div_ceil(pieces)).max(2);
        let mut start = 0;
        std::iter::from_fn(move || {
            let left = self.len() - start;
            let mut length = left.min(most);
            let ends_between = |length: usize| {
                let kinds = self.kinds.as_ref();
                length < left
                    && kinds.is_some_and(|k| k.value(start + length - 1) == kind::UPDATE_BEFORE)
            };
            if length > 1 && ends_between(length) {
                length -= 1;
            }
            let piece = (length > 0).then(|| self.slice(start, length));
            start += length;
            piece
        })
    }

    fn select(
        &self,
        batch: RecordBatch,
        choose: impl Fn(&dyn Array) -> Result<ArrayRef, ArrowError>,
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

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;

    use super::*;

    /// A sink of Debezium records wrote a deletion and an update without what was before, for the pair.
    #[test]
    fn an_update_is_never_cut_in_two() {
        use kind::{INSERT, UPDATE_AFTER, UPDATE_BEFORE};
        let kinds = [
            INSERT,
            UPDATE_BEFORE,
            UPDATE_AFTER,
            UPDATE_BEFORE,
            UPDATE_AFTER,
            INSERT,
            INSERT,
        ];
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..7));
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let rows = Rows {
            kinds: Some(Int8Array::from_iter_values(kinds)),
            ..Rows::inserts(batch)
        };
        let lengths = |most| -> Vec<usize> {
            rows.clone()
                .pieces(most, usize::MAX)
                .map(|r| r.len())
                .collect()
        };
        assert_eq!(lengths(2), [1, 2, 2, 2]);
        assert_eq!(lengths(4), [3, 4]);
        assert_eq!(lengths(7), [7]);
        let pieces: Vec<Rows> = rows.clone().pieces(4, usize::MAX).collect();
        assert_eq!(pieces[1].kinds.as_ref().unwrap().value(0), UPDATE_BEFORE);
    }

    /// 8,192 rows of 3 kB were one message, which was more than a task's tables had memory for.
    #[test]
    fn wide_rows_are_cut_by_their_bytes() {
        let texts = StringArray::from_iter_values((0..100).map(|_| "x".repeat(3_000)));
        let column: ArrayRef = Arc::new(texts);
        let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
        let rows = Rows::inserts(batch);
        let bytes = rows.bytes();
        assert!((300_000..310_000).contains(&bytes), "{bytes}");
        let pieces: Vec<Rows> = rows.pieces(8_192, 100_000).collect();
        let lengths: Vec<usize> = pieces.iter().map(Rows::len).collect();
        assert_eq!(lengths, [25, 25, 25, 25]);
        assert!(pieces.iter().all(|piece| piece.bytes() < 100_000));
    }
}
