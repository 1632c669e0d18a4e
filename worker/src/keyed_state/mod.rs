//! Named tables scoped to key groups: what operators remember.

pub mod table;
