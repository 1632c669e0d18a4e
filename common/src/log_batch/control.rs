//! The markers that end transactions, as Kafka writes them.
//!
//! A control batch holds one record. Its key is `version: i16 = 0, kind: i16`, its value
//! `version: i16 = 0, coordinator epoch: i32`. It belongs to the producer whose transaction it ends and
//! has no sequence number. Readers skip it.

use super::{BatchError, LogBatch, LogBatchBuilder, ProducerStamp};
use crate::ids::{ProducerEpoch, ProducerId};
use crate::time::Timestamp;

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransactionOutcome {
    Abort,
    Commit,
}

/// The batch that ends the producer's open transaction.
pub fn end_transaction(
    id: ProducerId,
    epoch: ProducerEpoch,
    outcome: TransactionOutcome,
    timestamp: Timestamp,
) -> LogBatch {
    let kind: u8 = match outcome {
        TransactionOutcome::Abort => 0,
        TransactionOutcome::Commit => 1,
    };
    let key = [0, 0, 0, kind];
    // Version 0 and coordinator epoch 0: the outcome is decided by the cluster's metadata.
    let value = [0; 6];
    let mut builder = LogBatchBuilder::new().transactional(ProducerStamp {
        id,
        epoch,
        base_sequence: -1,
    });
    builder.control = true;
    builder.push(timestamp, Some(&key), Some(&value), &[]);
    builder.build()
}

impl LogBatch {
    /// How the transaction of this control batch's producer ended; `None` for markers of other kinds,
    /// which have no meaning here.
    pub fn outcome(&self) -> Result<Option<TransactionOutcome>, BatchError> {
        assert!(self.header().control, "only a control batch has an outcome");
        let records = self.records()?;
        let Some(record) = records.iter().next() else {
            return Ok(None);
        };
        let kind = record?
            .key
            .and_then(|key| key.get(2..4))
            .and_then(|kind| kind.first_chunk::<2>());
        Ok(match kind.map(|kind| i16::from_be_bytes(*kind)) {
            Some(0) => Some(TransactionOutcome::Abort),
            Some(1) => Some(TransactionOutcome::Commit),
            _ => None,
        })
    }
}
