//! Models: the product's own machines in worlds so small that every course of events is looked at.
//!
//! The simulated world (`sim`) draws long lives from seeds; a model has a few processes, a few records and a
//! few faults, and its explorer takes every order of everything that may happen. What surrounds the machines
//! (logs, messages, who is up) is plain data here; rules are never written again: a model that decides
//! something itself says nothing of the product. Each model says its scope, what always holds in it, what
//! happens in it at least once, so that it is known to be no empty one, and what never becomes impossible.
//! A mistake made on purpose in its environment must be found, with the shortest way to it.

pub mod explorer;
mod facts;
pub mod replication;
pub mod transactions;
pub mod generations;
