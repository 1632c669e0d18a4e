//! Append batches to partitions, between nodes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Call;
use crate::error::Problem;
use crate::ids::{LeaderEpoch, TopicPartition};
use crate::offset::Offset;
use crate::time::Timestamp;

/// When an append is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acks {
    /// Once it is committed: stored, as the topic's durability says, on every in-sync replica.
    #[default]
    All,
    /// Once the leader has written it.
    Leader,
}

/// Record batches for partitions the receiver leads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Append {
    pub acks: Acks,
    pub batches: Vec<PartitionAppend>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionAppend {
    pub partition: TopicPartition,
    /// The leader epoch the sender knows; `None` if it does not care.
    pub leader_epoch: Option<LeaderEpoch>,
    /// One record batch, as `LogBatch` has it.
    pub batch: Bytes,
}

/// One answer per batch, in the order of the request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Appended {
    pub results: Vec<Result<AppendedBatch, Problem>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendedBatch {
    pub base_offset: Offset,
    pub records: u32,
    /// The same batch was appended before; this is where.
    pub duplicate: bool,
    pub timestamp: Timestamp,
}

impl Call for Append {
    const PATH: &'static str = "/internal/v1/append";
    type Reply = Appended;
}
