//! What processes say to each other: one file per conversation.
//!
//! Every message is a `Call`: a request that is POSTed as MessagePack to `path` and answered by a reply
//! or a `Problem`. Messages are encoded with field names and unknown fields are ignored, so that nodes
//! of neighbouring versions understand each other. Every message carries the epochs that fence it and
//! may arrive twice, late, or never.

pub mod topic;
pub mod node;
pub mod metadata;
pub mod produce;
pub mod fetch;
pub mod job;
pub mod task;
pub mod checkpoint;
pub mod exchange;
pub mod state;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A request between nodes, and the reply it has.
pub trait Call: Serialize + DeserializeOwned + Send + 'static {
    /// The path it is POSTed to, below the receiver's address.
    const PATH: &'static str;
    type Reply: Serialize + DeserializeOwned + Send + 'static;
}
