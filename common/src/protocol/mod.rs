//! What processes say to each other: one file per conversation.
//!
//! Every message is a `Call`: a request that is POSTed as MessagePack to `path` and answered by a reply
//! or a `Problem`. Messages are encoded with field names and unknown fields are ignored, so that nodes
//! of neighbouring versions understand each other. Every message carries the epochs that fence it and
//! may arrive twice, late, or never.

pub mod topic;
pub mod node;
pub mod coordinator;
pub mod metadata;
pub mod produce;
pub mod fetch;
pub mod replicate;
pub mod job;
pub mod task;
pub mod checkpoint;
pub mod standby;
pub mod savepoint;
pub mod exchange;
pub mod state;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::transport::msgpack::{self, Encoded, MsgpackError};

/// A request between nodes, and the reply it has.
pub trait Call: Serialize + DeserializeOwned + Send + 'static {
    /// The path it is POSTed to, below the receiver's address.
    const PATH: &'static str;
    type Reply: Serialize + DeserializeOwned + Send + 'static;

    /// The reply as MessagePack. One that is mostly one run of bytes has both of these of its own, so
    /// that the bytes are not copied into a message and out of it.
    fn write_reply(reply: Self::Reply) -> Result<Encoded, MsgpackError> {
        Ok(Encoded {
            head: msgpack::encode(&reply)?,
            tail: Bytes::new(),
        })
    }

    fn read_reply(body: Bytes) -> Result<Self::Reply, MsgpackError> {
        msgpack::decode(&body)
    }
}
