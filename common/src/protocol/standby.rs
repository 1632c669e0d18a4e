//! A standby asks the worker that runs a task for what the task has sealed, and says what it holds.
//!
//! A standby keeps the state of tasks that run elsewhere: base files and the chunks that follow them, byte
//! for byte. It asks, and so decides how fast it is served; the worker that is asked remembers nothing. One
//! call speaks of all tasks that a worker runs and another stands by for. What has been synced at the
//! standby is told to the coordinator, which counts it among the holders of a checkpoint.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Call;
use super::checkpoint::Acknowledged;
use crate::ids::{CheckpointId, Generation, JobId, NodeId, TaskId, WorkerEpoch};
use crate::time::Span;
use crate::transport::msgpack::{self, Encoded, MsgpackError};

/// What comes after these positions; waits up to `wait` if nothing does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FetchState {
    pub job: JobId,
    /// The one whose tasks are asked for.
    pub generation: Generation,
    pub positions: Vec<StandbyPosition>,
    pub wait: Span,
}

/// How much of a task's state a standby has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StandbyPosition {
    pub task: TaskId,
    /// The last checkpoint of which it has everything; `None`: it has nothing yet.
    pub after: Option<CheckpointId>,
    /// Records that it has of the chunk that comes next.
    pub records: u32,
    /// It is in the middle of a base file.
    pub base: Option<BasePosition>,
}

/// A place in the base file of a checkpoint, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BasePosition {
    pub checkpoint: CheckpointId,
    pub offset: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateFetched {
    /// Those of a task in the order in which they belong.
    pub pieces: Vec<StatePiece>,
    /// Theirs, one after the other.
    pub bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StatePiece {
    pub task: TaskId,
    pub bytes: u32,
    pub of: PieceOf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PieceOf {
    /// One framed record of the delta log. `previous`: what its chunk builds on; `last`: the chunk is whole
    /// with it.
    Chunk {
        previous: Option<CheckpointId>,
        checkpoint: CheckpointId,
        last: bool,
    },
    /// The base file is so long. What was fetched of another one is of no use any more.
    Base { at: BasePosition, length: u64 },
}

/// As it is read: the bytes are part of the message.
#[derive(Deserialize)]
struct Lent<'a> {
    pieces: Vec<StatePiece>,
    bytes: &'a [u8],
}

impl StateFetched {
    /// Each with its bytes.
    pub fn into_each(self) -> impl Iterator<Item = (StatePiece, Bytes)> {
        let mut rest = self.bytes;
        self.pieces.into_iter().map(move |piece| {
            // Less than was said is found out by whoever checks them.
            let own = rest.split_to((piece.bytes as usize).min(rest.len()));
            (piece, own)
        })
    }
}

impl Call for FetchState {
    const PATH: &'static str = "/internal/v1/fetch-state";
    type Reply = StateFetched;

    fn write_reply(mut reply: StateFetched) -> Result<Encoded, MsgpackError> {
        let bytes = std::mem::take(&mut reply.bytes);
        msgpack::encode_before(&reply, bytes)
    }

    fn read_reply(body: Bytes) -> Result<StateFetched, MsgpackError> {
        let lent: Lent<'_> = msgpack::decode(&body)?;
        Ok(StateFetched {
            pieces: lent.pieces,
            bytes: body.slice_ref(lent.bytes),
        })
    }
}

/// The sender, a standby, has everything of these tasks up to these checkpoints on its disk. Repeated with
/// the next one, so one that is lost does no harm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AckStandby {
    pub worker: NodeId,
    pub worker_epoch: WorkerEpoch,
    pub job: JobId,
    pub generation: Generation,
    pub held: Vec<(TaskId, CheckpointId)>,
}

impl Call for AckStandby {
    const PATH: &'static str = "/internal/v1/ack-standby";
    type Reply = Acknowledged;
}
