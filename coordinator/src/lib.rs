//! The coordinator: where decisions about the cluster live.

pub mod metadata;
pub mod metadata_log;
pub mod raft;
pub mod election;
pub mod placement;
pub mod controller;
pub mod liveness;

pub mod planner;
pub mod job;
pub mod checkpoint;
pub mod savepoint;
pub mod rebalance;

pub mod http;
pub mod metrics;
mod reign;
pub mod node;
