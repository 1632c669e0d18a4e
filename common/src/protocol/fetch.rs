//! Read batches of a partition and wait for more, between nodes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Call;
use crate::ids::TopicPartition;
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
    pub batches: Bytes,
    /// Where to go on reading: past everything looked at, also what was left out.
    pub next_offset: Offset,
    pub log_start_offset: Offset,
    /// One past the last record that may be read with this isolation.
    pub end_offset: Offset,
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
