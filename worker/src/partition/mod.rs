//! One actor per partition this node has: the story of an append from request to acknowledgement.
//!
//! A batch arrives at the actor, which asks the machine whether this node may append it at all. The log
//! then goes, with every batch that is waiting, to a thread that may block: there each batch is checked
//! against its producer's numbers and the open transactions, stamped, and written. Back at the actor, a
//! sync is begun; while it runs, more is written, and the next sync takes all of that (group commit).
//! What is durable here and on every in-sync replica is committed, and the appends that waited for it
//! are answered. Where a topic's records are acknowledged in memory, what is written is committed, and syncs
//! follow within a second (`lazy_sync`).
//!
//! A replica that follows is told by its leader what comes next (`replication`): a turn of its log writes it
//! as it is, or cuts off what went another way, and its position is said again once that is safe.
//!
//! Reading does not pass through the actor's turn: it says up to where a reader may read, or parks the
//! reader until there is more, and the bytes are then read on the reader's side.

pub mod machine;
pub mod agenda;
pub mod lazy_sync;
pub mod age_clock;
pub mod waiting;
pub mod transactions;
pub mod reconcile;
pub mod work;
pub mod replica_work;
pub mod settings;
mod opening;
pub mod messages;
mod waiter;
mod actor;
mod reading_actor;
mod replication_actor;
pub mod actors;
pub mod registry;
pub mod problems;

#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod partition_tests;
