//! Makes what workers hold even without being asked, a few moves at a time.
//!
//! A worker that joins, and is still there after a while, gets replicas of partitions from those that have more,
//! then tasks of jobs and standbys. Every move makes the cluster more even by more than one, so that it ends and nothing goes to and fro. What people
//! ask for comes first, and a worker that is drained, quarantined or gone gets nothing. With `rebalance = manual`
//! none of this happens.

pub mod replicas;
pub mod instances;
pub mod standbys;
pub mod jobs;
pub mod status;
pub mod machine;
#[cfg(test)]
mod machine_tests;
pub mod actor;
