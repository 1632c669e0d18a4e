//! Rows, watermarks, barriers and credit between tasks of different workers.
//!
//! A bundle is everything that was waiting for one peer on one lane: a MessagePack array of frames, each
//! a header and a payload. Its reply acknowledges what was received, not what was processed, and says
//! how much more each channel may send, as absolute byte counts, so that a repeated or overtaken reply
//! does no harm.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Call;
use crate::ids::{CheckpointId, Generation, JobId, NodeId, WorkerEpoch};
use crate::time::Timestamp;

/// One direction between two tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChannelId {
    pub job: JobId,
    pub generation: Generation,
    /// The edge's position in the task graph.
    pub edge: u16,
    pub from: u32,
    pub to: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bundle {
    pub from: NodeId,
    pub from_epoch: WorkerEpoch,
    pub to: NodeId,
    pub lane: u8,
    pub frames: Vec<Frame>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Frame {
    pub channel: ChannelId,
    /// From 0, without gaps, per channel.
    pub sequence: u64,
    pub body: FrameBody,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameBody {
    /// Opens the channel, or asks how it stands. Has no sequence number.
    Hello,
    /// From the receiver to the sender, on its own lane: what a reply would say. Has no sequence number.
    Credit {
        standing: ChannelStanding,
    },
    /// Arrow IPC stream bytes of one batch; kinds of change, if any, as one more column.
    Rows {
        ipc: Bytes,
    },
    Watermark {
        timestamp: Timestamp,
    },
    Idle,
    Active,
    Barrier {
        checkpoint: CheckpointId,
        stop: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BundleReply {
    pub channels: Vec<ChannelStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelStatus {
    pub channel: ChannelId,
    pub standing: ChannelStanding,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelStanding {
    /// Everything below `expected` was received; bytes up to `limit`, counted from the channel's start, may be sent.
    Open { expected: u64, limit: u64 },
    /// The receiver has yet to start this task.
    NotReady,
    /// The receiver runs a newer generation, or none: the sender is of the past.
    Stale,
}

impl Call for Bundle {
    const PATH: &'static str = "/internal/v1/exchange";
    type Reply = BundleReply;
}
