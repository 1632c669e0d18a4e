//! How a `Call` travels: POSTed as MessagePack, answered by its reply or by a `Problem`.
//!
//! The client side is a handle that any thread and any runtime may use; the server side is a handful of
//! actix-web pieces (feature `server`). Nothing here knows what a call means.

pub mod msgpack;
pub mod retry;
pub mod client;
#[cfg(feature = "server")]
pub mod server;

/// The content type of calls, replies, and of records and state for those who ask for it.
pub const MSGPACK: &str = "application/msgpack";
/// A problem as another node reads it.
pub const PROBLEM_MSGPACK: &str = "application/problem+msgpack";
/// A problem as a user reads it (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";

#[cfg(test)]
#[cfg(feature = "server")]
mod transport_tests;
