//! What sources, operators and sinks have in common: the messages between them and the surroundings
//! they run in.

pub mod message;
pub mod dead_letter;
pub mod channel;
pub mod input_gate;
pub mod channel_input;
pub mod source_gate;
pub mod source_input;
pub mod router;
pub mod output;
pub mod sink_pump;
pub mod context;
pub mod chain;
pub mod event_time;
pub mod task_state;
pub mod memory;
pub mod query;
pub mod messages;
pub mod failure;
pub mod progress;
pub mod under_way;
pub mod machine;
pub mod actor;

#[cfg(test)]
mod chain_tests;
#[cfg(test)]
mod input_gate_tests;
#[cfg(test)]
mod router_tests;
