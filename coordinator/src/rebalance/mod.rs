//! Makes what workers hold even without being asked, a few moves at a time.

pub mod replicas;
pub mod instances;
pub mod standbys;
