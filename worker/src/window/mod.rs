//! How event time is cut, so that each row is aggregated once however many windows it is in.

pub mod slices;
