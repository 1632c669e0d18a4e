//! Objects: whole byte strings under names, in a directory or in S3.

pub mod location;
#[cfg(feature = "objects")]
pub mod store;
