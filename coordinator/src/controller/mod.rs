//! How a request becomes a fact: the controller is the only one that proposes commands.
//!
//! It decides on what is applied, and what it decided on is in the command: if that has changed by the
//! time the command is applied, the command is rejected. So no decision needs a lock, and a decision
//! that was made twice takes effect once.

pub mod topics;
pub mod reconcile;
pub mod seen;
pub mod messages;
pub mod actor;

pub use actor::Controller;
