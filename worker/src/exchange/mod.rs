//! Rows between workers: channels over bundles, one bundle in flight per peer and lane.
//!
//! A task writes to a channel as if its reader were in the same process. Between workers the messages
//! are numbered, kept until the reader's worker has them, sent again after a cut, and held back when the
//! reader has given no credit. A reply means received, not processed.

pub mod codec;
pub mod send_channel;
pub mod receive_channel;

#[cfg(test)]
mod channel_tests;
