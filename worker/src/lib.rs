//! Where data lives and moves: partitions of topics, tasks of jobs, the state of operators.
//!
//! In the order a record meets it.

pub mod metadata_image;
pub mod partition;
pub mod replication;
pub mod log;
pub mod link;
pub mod log_client;
pub mod task;
pub mod keyed_state;
pub mod checkpoint;
pub mod standby;
pub mod exchange;
pub mod format;
pub mod source;
pub mod window;
pub mod operator;
pub mod sink;
pub mod job;

pub mod quota;
pub mod load;
pub mod metrics;
pub mod background;
pub mod slots;
pub mod http;
pub mod node;

#[cfg(test)]
mod test_log;
