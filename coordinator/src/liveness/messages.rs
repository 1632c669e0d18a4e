//! The mailbox of the liveness actor.

use std::collections::BTreeMap;

use actix::Message;

use common::error::Problem;
use common::ids::{NodeId, WorkerEpoch};
use common::protocol::node::{Heartbeat, HeartbeatReply, NodeLoad};
use common::time::Span;

#[derive(Debug)]
pub struct Heard(pub Heartbeat);

impl Message for Heard {
    type Result = Result<HeartbeatReply, Problem>;
}

/// A connection of this worker's broke while it waited for an answer.
#[derive(Debug)]
pub struct Suspect(pub NodeId);

impl Message for Suspect {
    type Result = ();
}

/// What is known of the workers beside the metadata.
#[derive(Debug)]
pub struct Describe;

impl Message for Describe {
    type Result = Described;
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Described {
    pub heard: BTreeMap<NodeId, LastHeard>,
    /// For how long yet they are given nothing new.
    pub quarantined: BTreeMap<NodeId, Span>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LastHeard {
    pub epoch: WorkerEpoch,
    pub ago: Span,
    pub load: NodeLoad,
}
