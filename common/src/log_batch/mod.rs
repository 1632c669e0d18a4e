//! The unit of the log: Kafka's record batch, version 2, byte for byte.
//!
//! Producers over REST are encoded into it once; batches of Kafka clients are checked and stored as they
//! are; readers get the stored bytes. A `LogBatch` is a promise that its header is sound and that its
//! checksum held when it was made from bytes. Its records are decoded on demand, within strict bounds.
//!
//! ```text
//!  at  bytes  field
//!   0      8  base offset             ┐ given by the partition's leader:
//!   8      4  length of what follows  │ outside the checksum, stamped
//!  12      4  leader epoch            ┘ in place
//!  16      1  magic: 2
//!  17      4  CRC32C of what follows
//!  21      2  attributes: codec (3 bits), time kind (1), transactional (1), control (1)
//!  23      4  last offset − base offset
//!  27      8  timestamp of the first record
//!  35      8  largest timestamp
//!  43      8  producer id, or −1
//!  51      2  producer epoch, or −1
//!  53      4  sequence number of the first record, or −1
//!  57      4  number of records
//!  61         records, all compressed as one if a codec is set
//! ```
//!
//! Offsets inside a batch have no gaps: the number of records is always the last offset's distance + 1.

mod builder;
mod control;
mod header;
mod records;
mod varint;

#[cfg(test)]
mod log_batch_tests;

use bytes::{Bytes, BytesMut};

pub use builder::LogBatchBuilder;
pub use control::{TransactionOutcome, end_transaction};
pub use header::{BatchHeader, HEADER_BYTES, ProducerStamp};
pub use records::{HeaderRef, HeadersRef, RecordRef, Records, RecordsIter};

use crate::compression::{Compression, CompressionError};
use crate::error::{ErrorCode, Problem};
use crate::ids::LeaderEpoch;
use crate::limits::MAX_BATCH_BYTES;
use crate::offset::Offset;

/// One record batch: a sound header, a checksum that held, and its records.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogBatch {
    header: BatchHeader,
    bytes: Bytes,
}

/// Why bytes are not a record batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("the batch is cut off: {present} of {needed} bytes are there")]
    CutOff { present: usize, needed: usize },
    #[error("the batch has format version {magic}, only 2 is supported")]
    Magic { magic: i8 },
    #[error("the batch's {field} is {value}, which cannot be")]
    Field { field: &'static str, value: i64 },
    #[error("the batch has {bytes} bytes, the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the batch's checksum is {stored:08x}, its bytes have {computed:08x}")]
    Checksum { stored: u32, computed: u32 },
    #[error("the batch says it has {records} records, its last offset says {offsets}")]
    RecordCount { records: u32, offsets: u32 },
    #[error(transparent)]
    Compression(#[from] CompressionError),
    #[error("record {index} of the batch is malformed: {reason}")]
    Record { index: u32, reason: &'static str },
}

impl LogBatch {
    /// The batch these bytes are, all of them; its header and checksum are verified.
    pub fn parse(bytes: Bytes) -> Result<LogBatch, BatchError> {
        let mut rest = bytes;
        let batch = LogBatch::split_from(&mut rest)?;
        if !rest.is_empty() {
            let extra = i64::try_from(rest.len()).unwrap_or(i64::MAX);
            return Err(BatchError::Field {
                field: "number of bytes after its end",
                value: extra,
            });
        }
        Ok(batch)
    }

    /// Takes the first batch off `bytes`; its header and checksum are verified.
    pub fn split_from(bytes: &mut Bytes) -> Result<LogBatch, BatchError> {
        let header = LogBatch::verify(bytes)?;
        let bytes = bytes.split_to(header.total_bytes());
        Ok(LogBatch { header, bytes })
    }

    /// Whether `bytes` begin with a whole sound batch; its header if so.
    pub fn verify(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        let needed = header.total_bytes();
        let Some(batch) = bytes.get(..needed) else {
            return Err(BatchError::CutOff {
                present: bytes.len(),
                needed,
            });
        };
        let computed = crc32c::crc32c(&batch[header::CHECKED_FROM..]);
        if computed == header.crc {
            Ok(header)
        } else {
            Err(BatchError::Checksum {
                stored: header.crc,
                computed,
            })
        }
    }

    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Writes the place in the log and the leader's epoch into the batch. In place if nobody else holds
    /// its bytes; neither is covered by the checksum.
    pub fn stamp(&mut self, base_offset: Offset, leader_epoch: LeaderEpoch) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut bytes = bytes
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        header::stamp(&mut bytes, base_offset, leader_epoch);
        self.bytes = bytes.freeze();
        self.header.base_offset = base_offset;
        self.header.leader_epoch = leader_epoch;
    }

    /// The first bytes of the batch as they would be stamped, for writers that do not own its bytes: all
    /// that comes behind them stays as it is.
    pub fn stamped_start(&self, base_offset: Offset, leader_epoch: LeaderEpoch) -> [u8; 16] {
        let mut start = *self
            .bytes
            .first_chunk::<16>()
            .expect("a batch has a header");
        header::stamp(&mut start, base_offset, leader_epoch);
        start
    }

    /// The records, decompressed if they were compressed. Each is checked as it is reached.
    pub fn records(&self) -> Result<Records, BatchError> {
        let payload = self.bytes.slice(HEADER_BYTES..);
        let plain = match self.header.compression {
            Compression::None => payload,
            codec => codec.decompress(&payload, crate::limits::MAX_UNCOMPRESSED_BATCH_BYTES)?,
        };
        Records::new(self.header, plain)
    }

    /// Decodes every record once and gives nothing back: what is stored must be readable by everyone.
    /// Also refuses a record with more than `max_record_bytes` of key, value and headers.
    pub fn validate_records(&self, max_record_bytes: usize) -> Result<(), BatchError> {
        let records = self.records()?;
        for (index, record) in (0..).zip(records.iter()) {
            if record?.payload_bytes() > max_record_bytes {
                return Err(BatchError::Record {
                    index,
                    reason: "it is larger than the topic allows",
                });
            }
        }
        Ok(())
    }
}

/// Batches one after another, each verified as it is reached. Ends at the first that is not sound.
#[derive(Clone, Debug)]
pub struct LogBatches {
    rest: Bytes,
}

impl LogBatches {
    pub fn new(bytes: Bytes) -> LogBatches {
        LogBatches { rest: bytes }
    }
}

impl Iterator for LogBatches {
    type Item = Result<LogBatch, BatchError>;

    fn next(&mut self) -> Option<Result<LogBatch, BatchError>> {
        if self.rest.is_empty() {
            return None;
        }
        let batch = LogBatch::split_from(&mut self.rest);
        if batch.is_err() {
            self.rest = Bytes::new();
        }
        Some(batch)
    }
}

const _: () = assert!(MAX_BATCH_BYTES <= crate::limits::MAX_UNCOMPRESSED_BATCH_BYTES);

impl From<BatchError> for Problem {
    fn from(error: BatchError) -> Problem {
        Problem::new(
            ErrorCode::InvalidRecord,
            format!("the record batch is refused: {error}"),
        )
    }
}
