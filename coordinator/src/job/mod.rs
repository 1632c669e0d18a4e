//! A job's life: created, placed, deployed, running, recovered, paused, ended.

pub mod wishes;
pub mod facts;
pub mod machine;
mod dividing;
pub(crate) mod numbering;
#[cfg(test)]
mod test_world;
#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod dividing_tests;
pub(crate) mod messages;
pub(crate) mod actor;
pub mod jobs_actor;
pub mod observed;
pub mod describe;
pub mod creation;
pub mod state_query;
#[cfg(test)]
mod room_tests;
