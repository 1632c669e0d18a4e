//! What goes where: a problem in, an assignment out.

pub mod racks;
pub mod replicas;
pub mod standbys;
pub mod tasks;
#[cfg(test)]
mod tasks_tests;
