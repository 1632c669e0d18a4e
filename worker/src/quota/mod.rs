//! Bytes per second that one client may send to this worker, and read from it: whichever way it comes in.
//!
//! What nodes send each other is not counted: replication, sources and sinks of jobs, and what one worker
//! appends at another for a client that was counted where its request came in.

pub mod client;
pub mod machine;

use std::sync::{Arc, Mutex, PoisonError};

use common::config::worker::WorkerConfig;
use common::error::{ErrorCode, Problem};
use common::time::{Clock, Span};

use self::client::ClientId;
use self::machine::{Answer, ByteRate};

/// Both directions.
#[derive(Clone, Debug)]
pub struct Quotas {
    pub producers: Quota,
    pub consumers: Quota,
}

/// One direction. Without a rate everything is allowed.
#[derive(Clone, Debug)]
pub struct Quota {
    rate: Option<Arc<Mutex<ByteRate>>>,
    clock: Arc<dyn Clock>,
}

impl Quotas {
    pub fn of(config: &WorkerConfig, clock: &Arc<dyn Clock>) -> Quotas {
        Quotas {
            producers: Quota::new(config.producer_byte_rate, clock.clone()),
            consumers: Quota::new(config.consumer_byte_rate, clock.clone()),
        }
    }
}

impl Quota {
    pub fn new(bytes_per_second: Option<u64>, clock: Arc<dyn Clock>) -> Quota {
        let rate = bytes_per_second.map(|rate| Arc::new(Mutex::new(ByteRate::new(rate))));
        Quota { rate, clock }
    }

    /// Counts these bytes, unless the client has to wait. Zero bytes: whether it has to.
    pub fn ask(&self, client: &ClientId, bytes: u64) -> Answer {
        self.with(|rate, clock| rate.handle(clock.tick(), client, bytes))
            .unwrap_or(Answer::Allowed)
    }

    /// Counts bytes that the client was given.
    pub fn charge(&self, client: &ClientId, bytes: u64) {
        self.with(|rate, clock| rate.charge(clock.tick(), client, bytes))
            .unwrap_or_default();
    }

    fn with<T>(&self, work: impl FnOnce(&mut ByteRate, &dyn Clock) -> T) -> Option<T> {
        let rate = self.rate.as_ref()?;
        let mut rate = rate.lock().unwrap_or_else(PoisonError::into_inner);
        Some(work(&mut rate, &*self.clock))
    }
}

/// What one is told that has to wait. `what`: it has had more than it may have of this.
pub fn exceeded(what: &str, wait: Span) -> Problem {
    let detail = format!("the client {what} more bytes a second than one may at this worker");
    Problem::new(ErrorCode::QuotaExceeded, detail).retry_after(wait)
}
