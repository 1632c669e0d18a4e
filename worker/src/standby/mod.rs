//! Standbys: the state of tasks that run on other workers, kept here so that they can go on here.
//!
//! ```text
//! worker that runs the task                       standby                       coordinator
//!   seals e, fsync  ◀── FetchState(after) ───────  StandbyActor
//!        chunks after it, or a base file  ───────▶  appends them as they are, fsync
//!                                                   AckStandby(e)  ───────────▶  a holder of e
//! ```
//!
//! What is here of tasks is also what the tasks of a job's next division are made of (`successors.rs`).

pub mod machine;
pub mod successors;
#[cfg(test)]
mod standby_tests;
pub mod copies;
pub mod preparing;
pub(crate) mod actor;
mod preparing_actor;
pub(crate) mod serving;
