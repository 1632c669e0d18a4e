//! The worker's half of a checkpoint: local tasks seal, one sync makes all of it durable, one
//! acknowledgement says so.

pub mod participant;
pub mod chunk;
mod delta_log;
mod changes;
mod task_turns;
mod view_layout;
mod view_sizes;
mod view_steps;
mod view_answers;
mod view;
pub mod view_reader;
pub mod state_error;
pub mod folding;
mod lending;
pub mod hot_tables;
mod receiving;
pub mod succession;
mod saving;
pub(crate) mod upload;
pub(crate) mod download;
pub mod state_store;

#[cfg(test)]
mod delta_log_tests;
#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod participant_tests;
#[cfg(test)]
pub(crate) mod state_store_tests;
#[cfg(test)]
mod savepoint_tests;
#[cfg(test)]
mod spill_tests;
#[cfg(test)]
mod succession_tests;
#[cfg(test)]
mod turn_tests;
