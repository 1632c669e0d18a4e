//! Savepoints: the state of a job goes to an object store, and a job begins with it.
//!
//! ```text
//! user                       coordinator                                workers
//!   POST …/savepoints ────▶  BeginSavepoint is a fact
//!                            a checkpoint, or the last one at rest
//!                            SaveState(task, position) ──────────────▶  one object into the store
//!                            …until every task has given all  ◀───────  its length and checksum
//!                            the manifest into the store, last
//!   201, or 202 before       EndSavepoint is a fact
//!
//!   an archive, now and then  BeginSavepoint, and what is left of the oldest is removed
//!
//!   POST …/restore ───────▶  reads the manifest, compares it with the job
//!                            RestoreJob is a fact  ───────────────────▶  fetch what they run, begin
//! ```

pub mod archive;
pub mod machine;
#[cfg(test)]
mod machine_tests;
pub(crate) mod actor;
pub mod fit;
pub(crate) mod reading;
