//! What sources, operators and sinks have in common: the messages between them and the surroundings
//! they run in.

pub mod message;
pub mod dead_letter;
pub mod channel;
pub mod input_gate;
pub mod router;
pub mod context;

#[cfg(test)]
mod input_gate_tests;
#[cfg(test)]
mod router_tests;
