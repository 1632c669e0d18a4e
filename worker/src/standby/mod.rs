//! Standbys: the state of tasks that run on other workers, kept here so that they can go on here.
//!
//! ```text
//! worker that runs the task                       standby                       coordinator
//!   seals e, fsync  ◀── FetchState(after) ───────  StandbyActor
//!        chunks after it, or a base file  ───────▶  appends them as they are, fsync
//!                                                   AckStandby(e)  ───────────▶  a holder of e
//! ```

pub mod machine;
#[cfg(test)]
mod standby_tests;
pub mod copies;
pub(crate) mod actor;
pub(crate) mod serving;
