//! Everything a log knows that its bytes say: rebuilt by reading them, saved so as not to.
//!
//! What is saved is a shortcut, never the truth: it carries a checksum and the place in the log it
//! speaks of, and what does not fit is thrown away.

use common::ids::ProducerId;
use common::log_batch::{BatchError, BatchHeader, LogBatch};
use common::offset::Offset;
use common::seglog::Position;
use common::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::idempotency::{IdempotencyKeys, RequestPart};
use super::leader_epochs::{EpochFellBack, LeaderEpochs};
use super::producer_state::ProducerState;
use crate::partition::transactions::Transactions;

/// The derived state of a log up to one place in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derived {
    pub producers: ProducerState,
    pub transactions: Transactions,
    pub epochs: LeaderEpochs,
    pub keys: IdempotencyKeys,
}

/// Up to where what was saved speaks of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    pub position: Position,
    pub offset: Offset,
}

/// Why a batch in the log cannot be what was written.
#[derive(Debug, thiserror::Error)]
pub enum BrokenLog {
    #[error(transparent)]
    Epoch(#[from] EpochFellBack),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error("offset {found} follows {expected}")]
    Gap { expected: Offset, found: Offset },
}

impl Derived {
    /// This batch is in the log now, under this header: its own, stamped.
    pub fn record(
        &mut self,
        header: &BatchHeader,
        batch: &LogBatch,
        part: Option<&RequestPart>,
        steady: Timestamp,
    ) -> Result<(), BrokenLog> {
        self.epochs
            .append(header.leader_epoch, header.base_offset)?;
        self.producers.record(header, steady);
        if header.control {
            if let (Some(stamp), Some(outcome)) = (header.producer, batch.outcome()?) {
                self.transactions.end(stamp.id, outcome, header.base_offset);
            }
        } else {
            self.transactions.record(header);
        }
        if let Some(part) = part {
            self.keys.record(part, header, steady);
        }
        Ok(())
    }

    /// Forgets who has been silent for too long.
    pub fn expire(&mut self, steady: Timestamp) {
        let transactions = &self.transactions;
        let is_open = |producer: ProducerId| transactions.open_of(producer).is_some();
        self.producers.expire(steady, is_open);
        self.keys.expire(steady);
    }

    /// The log starts here now.
    pub fn drop_before(&mut self, log_start: Offset) {
        self.transactions.drop_before(log_start);
        self.epochs.drop_before(log_start);
    }
}

/// Checks that a batch read from the log is the one that belongs there.
pub fn follows(header: &BatchHeader, expected: Offset) -> Result<(), BrokenLog> {
    if header.base_offset == expected {
        Ok(())
    } else {
        Err(BrokenLog::Gap {
            expected,
            found: header.base_offset,
        })
    }
}
