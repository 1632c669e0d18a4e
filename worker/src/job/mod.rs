//! This worker's share of each job: which generations run here, and the tasks of each.

pub mod assignment;
pub mod services;
pub mod handover;
pub mod messages;
pub mod wiring;
pub mod assembly;
mod at_rest;
pub mod actor;
pub mod jobs_actor;
