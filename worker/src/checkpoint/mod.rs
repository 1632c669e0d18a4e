//! The worker's half of a checkpoint: local tasks seal, one sync makes all of it durable, one
//! acknowledgement says so.

pub mod participant;

#[cfg(test)]
mod participant_tests;
