//! What a partition's log is: segments of record batches, and what can be derived from them.
//!
//! The bytes of the log are record batches, one after another, exactly as `common::log_batch` has them,
//! in the segments of a `common::seglog`. Everything else here is derived from those bytes: where an
//! offset lies, which batch is a producer's repetition, which transactions are open. It is kept in memory, saved
//! now and then so that opening a log need not read all of it, and rebuilt from the bytes when lost.

pub mod index;
pub mod leader_epochs;
pub mod producer_state;
pub mod idempotency;
pub mod retention;
pub mod derived;
pub mod saved;
mod start_note;
pub mod reader;
mod replay;
pub mod partition_log;
pub mod salvaged;

#[cfg(test)]
mod partition_log_tests;
