//! A worker arrives, and stays: registration and heartbeats.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Call;
use super::task::TaskReport;
use crate::ids::{ClusterId, ControlEpoch, MetadataVersion, NodeId, StorageId, WorkerEpoch};
use crate::time::Span;

/// A process with this data directory wants to serve. A registration with the storage of a worker that
/// is still active fences that one: the data directory is locked, so the old process is gone. If it is still
/// there, the directory of one of them is a copy, and the new one is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegisterWorker {
    /// What its data directory says, if it has been registered before.
    pub cluster: Option<ClusterId>,
    pub worker: Option<NodeId>,
    pub storage: StorageId,
    /// Chosen at process start: a repeated request of one process is known by it.
    pub incarnation: Uuid,
    /// `http://host:port` under which other nodes reach it.
    pub address: String,
    /// Whether its last life ended in order.
    pub clean_shutdown: bool,
    pub version: String,
    pub cores: u32,
    pub slots: u32,
    pub memory_bytes: u64,
    /// The names of the custom operators it was built with.
    pub operators: Vec<String>,
    /// What it is in that fails as a whole.
    #[serde(default)]
    pub rack: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    pub cluster: ClusterId,
    pub worker: NodeId,
    pub epoch: WorkerEpoch,
    pub control_epoch: ControlEpoch,
    pub heartbeat_interval: Span,
    pub session_timeout: Span,
}

impl Call for RegisterWorker {
    const PATH: &'static str = "/internal/v1/register";
    type Reply = Registered;
}

/// Which process answers at an address. Asked by a coordinator where another one says that it has the same storage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identify {}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identified {
    pub incarnation: Uuid,
}

impl Call for Identify {
    const PATH: &'static str = "/internal/v1/identify";
    type Reply = Identified;
}

/// Alive, and what it is doing. Sent every `heartbeat_interval`, and at once when a task changes state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub cluster: ClusterId,
    pub worker: NodeId,
    pub epoch: WorkerEpoch,
    /// Grows with every heartbeat of one epoch; one that is not above the last is out of date.
    pub sequence: u64,
    pub metadata_version: MetadataVersion,
    /// Its logs are recovered and it has seen its own registration: it may be given work.
    pub ready: bool,
    pub tasks: Vec<TaskReport>,
    pub load: NodeLoad,
}

/// What a node uses, as people want to see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeLoad {
    pub resident_bytes: u64,
    pub state_bytes: u64,
    pub disk_used_bytes: u64,
    pub disk_free_bytes: u64,
    pub partitions_led: u32,
    pub tasks: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    pub control_epoch: ControlEpoch,
    /// What the worker's image should have reached soon.
    pub metadata_version: MetadataVersion,
}

impl Call for Heartbeat {
    const PATH: &'static str = "/internal/v1/heartbeat";
    type Reply = HeartbeatReply;
}
