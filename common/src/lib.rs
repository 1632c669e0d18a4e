//! The words every process of the system speaks: ids, log batches, messages, plans, transport, storage.
//!
//! In reading order: what things are called, what a record is, what a job is, what processes say to
//! each other, how it travels, how it is stored, how a program talks to a cluster.

pub mod ids;
pub mod offset;
pub mod time;
pub mod random;
pub mod limits;
pub mod error;
pub mod json;

pub mod record;
pub mod compression;
pub mod log_batch;
pub mod producer_id;
pub mod partitioner;

pub mod schema;
pub mod key_group;

pub mod objects;

pub mod plan;
pub mod savepoint;
pub mod protocol;

pub mod transport;

pub mod config;
pub mod telemetry;
pub mod shutdown;
pub mod data_dir;
pub mod seglog;
pub mod kv;
pub mod client;
