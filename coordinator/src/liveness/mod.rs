//! How we decide that a worker is gone: it is silent for a session timeout, or refuses connections. It is asked when
//! it hangs up or a heartbeat of it is missing.
//!
//! Nothing is lost by a wrong decision, only time: what a worker does under an epoch that was ended is
//! refused everywhere, whether it agrees or not. A worker that is gone again and again is given as little as can be.

pub mod flapping;
pub mod machine;
pub mod messages;
pub mod actor;

pub use actor::Liveness;
