//! Read batches of a partition and wait for more, between nodes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Call;
use crate::ids::TopicPartition;
use crate::log_batch::{BatchError, LogBatch, LogBatches};
use crate::offset::Offset;
use crate::plan::connector::Isolation;
use crate::time::{Span, Timestamp};

/// Batches from `offset` on. Waits up to `wait` while there are none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FetchBatches {
    pub partition: TopicPartition,
    pub offset: Offset,
    pub max_bytes: u32,
    pub wait: Span,
    pub isolation: Isolation,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FetchedBatches {
    /// Whole record batches, one after another. The first may start before the offset asked for.
    /// Control batches and batches of aborted transactions are left out when reading committed.
    /// They come as they lie on the disk: who opens them checks whether they are what was written.
    pub batches: Bytes,
    /// Where to go on reading: past everything looked at, also what was left out.
    pub next_offset: Offset,
    pub log_start_offset: Offset,
    /// One past the last record that may be read with this isolation.
    pub end_offset: Offset,
}

impl FetchedBatches {
    /// The batches, checked, and where to go on reading. Damage is an error for who asks for it, not for
    /// who asked for what comes before: that is given, and the next fetch begins at the damage.
    pub fn open(self) -> Result<(Vec<LogBatch>, Offset), BatchError> {
        let mut sound: Vec<LogBatch> = Vec::new();
        for batch in LogBatches::new(self.batches) {
            match (batch, sound.last()) {
                (Ok(batch), _) => sound.push(batch),
                (Err(_), Some(before)) => {
                    let damage = before.header().end_offset();
                    return Ok((sound, damage));
                }
                (Err(error), None) => return Err(error),
            }
        }
        Ok((sound, self.next_offset))
    }
}

impl Call for FetchBatches {
    const PATH: &'static str = "/internal/v1/fetch";
    type Reply = FetchedBatches;
}

/// Where a partition starts and ends, and which offset a time has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListOffsets {
    pub partition: TopicPartition,
    /// Also look up the first record at or after this time.
    pub at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionOffsets {
    pub log_start_offset: Offset,
    /// One past the last record that read-committed readers see.
    pub last_stable_offset: Offset,
    pub committed_offset: Offset,
    pub log_end_offset: Offset,
    /// The first record at or after the time asked for; `None` if there is none.
    pub at: Option<Offset>,
}

impl Call for ListOffsets {
    const PATH: &'static str = "/internal/v1/list-offsets";
    type Reply = PartitionOffsets;
}
