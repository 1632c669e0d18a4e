//! What coordinators say to each other: they agree on the log, and take each other into their group.
//!
//! What Raft says travels as it writes it; only the coordinator reads it. Every message names the cluster
//! and the member that it is for, and whoever is not that member refuses it: addresses are given again,
//! numbers of members are not.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Call;
use crate::ids::{ClusterId, CoordinatorId};

/// From one member to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    pub cluster: ClusterId,
    pub from: CoordinatorId,
    pub to: CoordinatorId,
}

/// Entries for a follower, or none: the leader is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftAppend {
    pub envelope: Envelope,
    pub body: Bytes,
}

/// A candidate asks for a vote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftVote {
    pub envelope: Envelope,
    pub body: Bytes,
}

/// A piece of the metadata as a whole, for a follower that is too far behind for entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftSnapshot {
    pub envelope: Envelope,
    pub body: Bytes,
}

/// What Raft answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftReply {
    pub body: Bytes,
}

/// To a coordinator that belongs to no cluster yet: it is this member of this one from now on. May be
/// repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGroup {
    pub cluster: ClusterId,
    pub coordinator: CoordinatorId,
    /// The addresses of the group that is being formed, which the receiver was started with as well; empty if
    /// it joins a group that there is.
    pub peers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedGroup {
    pub version: String,
}

impl Call for RaftAppend {
    const PATH: &'static str = "/internal/v1/raft/append";
    type Reply = RaftReply;
}

impl Call for RaftVote {
    const PATH: &'static str = "/internal/v1/raft/vote";
    type Reply = RaftReply;
}

impl Call for RaftSnapshot {
    const PATH: &'static str = "/internal/v1/raft/snapshot";
    type Reply = RaftReply;
}

impl Call for JoinGroup {
    const PATH: &'static str = "/internal/v1/raft/join";
    type Reply = JoinedGroup;
}
