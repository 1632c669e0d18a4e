//! The coordinator's half of a checkpoint.
//!
//! ```text
//! coordinator                         workers with sources        every worker of the job
//!   InjectBarrier(e)  ──────────────▶  emit barrier e  ─ rows and barriers ─▶  align, seal e, fsync
//!        (again until answered)                                                │
//!   AckCheckpoint(e, tasks)  ◀──────────────────────────────────────────────────┘
//!   every task has acknowledged, and AckStandby ◀─── standbys that keep up, once it is on their disks
//!   command: checkpoint e of this generation is complete      ◀ the single point of no return
//!   metadata image  ────────────────────────────────────────▶  commit output, fold state
//! ```
//!
//! A checkpoint that is declined, late or interrupted is forgotten: nothing is rolled back, and what
//! tasks have sealed for it is part of the next one. Its number is never used again.

pub mod machine;
#[cfg(test)]
mod machine_tests;
mod holders;
pub mod permit;
pub mod history;
pub(crate) mod actor;
