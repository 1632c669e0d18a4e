//! Copies of partitions on other workers: followers ask, leaders answer.
//!
//! A follower says where its log is (`FollowerMachine` decides when). At the leader that position waits in the
//! partition until the log goes on, and the batches are read as they lie there (`SessionMachine`). They are appended
//! at the follower as they are; once they are safe there it says its new position, and by that the leader
//! commits. Logs that went different ways are cut back to where they agree. Who is in sync is the leader's
//! wish and the coordinator's word (`IsrProposals`).

pub mod follower_machine;
pub mod isr_proposals;
pub mod session_machine;
pub mod sessions;
pub mod follower_actor;
pub mod followers;

#[cfg(test)]
mod follower_machine_tests;
#[cfg(test)]
mod session_machine_tests;
#[cfg(test)]
mod sessions_tests;
