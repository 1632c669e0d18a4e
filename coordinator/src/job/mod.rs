//! A job's life: created, placed, deployed, running, recovered, paused, ended.

pub mod wishes;
pub mod facts;
pub mod machine;
#[cfg(test)]
mod machine_tests;
pub mod observed;
pub mod describe;
#[cfg(test)]
mod room_tests;
