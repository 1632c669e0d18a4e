//! Named tables scoped to key groups: what operators remember.

mod ordered;
pub mod codec;
pub mod table;

#[cfg(test)]
mod codec_tests;
