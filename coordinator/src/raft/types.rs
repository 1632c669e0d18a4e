//! What Raft is told about us: what an entry holds, who a member is, how long is too long.

use std::io::Cursor;

use serde::{Deserialize, Serialize};

use common::ids::CoordinatorId;

use crate::metadata::command;

openraft::declare_raft_types!(
    /// The coordinators' group.
    pub TypeConfig:
        D = command::Entry,
        R = Applied,
        NodeId = CoordinatorId,
        Node = Member,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<CoordinatorId>;
pub(crate) type Vote = openraft::Vote<CoordinatorId>;
pub(crate) type Membership = openraft::Membership<CoordinatorId, Member>;
pub(crate) type StoredMembership = openraft::StoredMembership<CoordinatorId, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CoordinatorId, Member>;
pub(crate) type StorageError = openraft::StorageError<CoordinatorId>;
pub(crate) type StorageIOError = openraft::StorageIOError<CoordinatorId>;

/// A coordinator as the others know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `http://host:port`; empty while it is alone and nobody has to reach it.
    pub address: String,
}

/// What became of a command when it was applied; nothing for entries of Raft's own. It stays within the
/// process: that it can be written is what the trait asks for, nobody does it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Applied {
    #[serde(skip)]
    pub(crate) outcome: Option<Result<command::Outcome, command::Rejection>>,
}

/// A leader says this often that it is there.
pub(crate) const HEARTBEAT_MS: u64 = 200;
/// A follower grants no vote for so long after it has heard of its leader, and asks for votes itself after
/// `ELECTION_MS_MIN` to `ELECTION_MS_MAX` more: a silent leader is replaced after 1.3 to 1.6 s, and a busy
/// machine of two cores has four heartbeats to be late with, of which openraft sends one in each one and a
/// half of their time. One whose address refuses connections is replaced sooner, see `election.rs`.
pub(crate) const LEASE_MS: u64 = ELECTION_MS_MAX;
pub(crate) const ELECTION_MS_MIN: u64 = 500;
pub(crate) const ELECTION_MS_MAX: u64 = 800;
/// One message of entries; a larger entry is sent alone.
pub(crate) const MAX_APPEND_BYTES: usize = 4 << 20;
/// A snapshot travels in pieces of this size.
pub(crate) const SNAPSHOT_PIECE_BYTES: u64 = 4 << 20;
/// A piece, and the installation after the last one, take no longer.
pub(crate) const SNAPSHOT_PIECE_DEADLINE_MS: u64 = 10_000;
