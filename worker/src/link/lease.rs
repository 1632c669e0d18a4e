//! Whether this worker may say what is newest.
//!
//! A worker that is not heard of loses what it leads to others after its session, and what it knows is then no longer all
//! there is. Before that, at four fifths of a session since a heartbeat was sent that was answered, it stops saying what
//! is newest: its own clock alone decides, and a clock that runs a quarter too slow is forgiven. What is committed
//! stays so, and is given to whoever asks for it; nothing that is written depends on this.

use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::time::Clock;

use super::Session;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lease {
    session: Arc<Session>,
    clock: Arc<dyn Clock>,
}

impl Lease {
    pub fn new(session: Arc<Session>, clock: Arc<dyn Clock>) -> Lease {
        Lease { session, clock }
    }

    /// An error, which may pass, where others may know something newer.
    pub fn check(&self) -> Result<(), Problem> {
        let silence = self.session.silence(self.clock.tick());
        if self.session.is_heard(silence) {
            return Ok(());
        }
        let detail = format!(
            "this worker has not heard a coordinator for {silence}, and cannot say what is newest"
        );
        Err(Problem::new(ErrorCode::MetadataStale, detail).hint(
            "Ask again in a moment; committed records from an offset on can be read meanwhile.",
        ))
    }
}
