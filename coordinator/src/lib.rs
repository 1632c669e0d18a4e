//! The coordinator: where decisions about the cluster live.

pub mod placement;

pub mod job;
