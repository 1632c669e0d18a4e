//! Clusters to test: real processes, what they are asked, and what they must never do.

pub mod process;
pub mod port;
pub mod network;
pub mod cluster;
pub mod topics;
pub mod replica_logs;
pub mod data;
pub mod golden;
pub mod measure;
pub mod load;
pub mod steady_job;
pub mod overload;
pub mod checkers;
pub mod sim;
pub mod models;
pub mod source_tree;
pub mod chaos;
