//! Records in, a batch out: encodes each record once, into the buffer that becomes the batch.

use bytes::Bytes;

use super::header::{BatchHeader, HEADER_BYTES, ProducerStamp};
use super::{LogBatch, varint};
use crate::compression::Compression;
use crate::ids::LeaderEpoch;
use crate::limits::MAX_BATCH_BYTES;
use crate::offset::Offset;
use crate::record::{Header, Record};
use crate::time::Timestamp;

/// The epoch a batch carries until a leader has stamped it.
const NO_LEADER: LeaderEpoch = LeaderEpoch(-1);

/// Collects records for one batch. The caller watches `encoded_bytes`.
#[derive(Clone, Debug)]
pub struct LogBatchBuilder {
    /// Room for the header, then the records.
    buffer: Vec<u8>,
    first_timestamp: Timestamp,
    max_timestamp: Timestamp,
    records: u32,
    compression: Compression,
    producer: Option<ProducerStamp>,
    transactional: bool,
    pub(super) control: bool,
}

impl Default for LogBatchBuilder {
    fn default() -> LogBatchBuilder {
        LogBatchBuilder::new()
    }
}

impl LogBatchBuilder {
    pub fn new() -> LogBatchBuilder {
        LogBatchBuilder::with_capacity(0)
    }

    /// A builder that expects so many bytes of records.
    pub fn with_capacity(record_bytes: usize) -> LogBatchBuilder {
        let mut buffer = Vec::with_capacity(HEADER_BYTES + record_bytes);
        buffer.resize(HEADER_BYTES, 0);
        LogBatchBuilder {
            buffer,
            first_timestamp: Timestamp::default(),
            max_timestamp: Timestamp::default(),
            records: 0,
            compression: Compression::None,
            producer: None,
            transactional: false,
            control: false,
        }
    }

    pub fn compression(mut self, compression: Compression) -> LogBatchBuilder {
        self.compression = compression;
        self
    }

    /// The leader knows a repetition of this batch by this.
    pub fn producer(mut self, stamp: ProducerStamp) -> LogBatchBuilder {
        self.producer = Some(stamp);
        self
    }

    /// The records are part of the producer's open transaction.
    pub fn transactional(mut self, stamp: ProducerStamp) -> LogBatchBuilder {
        self.producer = Some(stamp);
        self.transactional = true;
        self
    }

    pub fn push_record(&mut self, record: &Record) {
        self.push(
            record.timestamp,
            record.key.as_deref(),
            record.value.as_deref(),
            &record.headers,
        );
    }

    pub fn push(
        &mut self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
    ) {
        if self.records == 0 {
            self.first_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        let offset_delta = i64::from(self.records);
        // Far apart timestamps may differ by more than 64 bits hold; readers add it back the same way.
        let timestamp_delta = timestamp.0.wrapping_sub(self.first_timestamp.0);
        self.records += 1;

        let optional_length = |bytes: Option<&[u8]>| match bytes {
            Some(bytes) => varint::length(signed(bytes.len())) + bytes.len(),
            None => varint::length(-1),
        };
        let headers_length: usize = headers
            .iter()
            .map(|header| {
                optional_length(Some(header.key.as_bytes()))
                    + optional_length(header.value.as_deref())
            })
            .sum();
        let length = 1
            + varint::length(timestamp_delta)
            + varint::length(offset_delta)
            + optional_length(key)
            + optional_length(value)
            + varint::length(signed(headers.len()))
            + headers_length;

        let buffer = &mut self.buffer;
        buffer.reserve(length + 5);
        varint::put(buffer, signed(length));
        // A record's own attributes: none are defined.
        buffer.push(0);
        varint::put(buffer, timestamp_delta);
        varint::put(buffer, offset_delta);
        put_optional(buffer, key);
        put_optional(buffer, value);
        varint::put(buffer, signed(headers.len()));
        for header in headers {
            put_optional(buffer, Some(header.key.as_bytes()));
            put_optional(buffer, header.value.as_deref());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub fn record_count(&self) -> u32 {
        self.records
    }

    /// The batch as it stands, header and records, before compression.
    pub fn encoded_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// At most what one more record of this payload adds.
    pub fn bytes_of_record(payload_bytes: usize, headers: usize) -> usize {
        // Five lengths and numbers of at most ten bytes, the attributes, and two lengths per header.
        payload_bytes + 51 + headers * 10
    }

    /// The finished batch. It must have a record, and at most `MAX_BATCH_BYTES`.
    pub fn build(mut self) -> LogBatch {
        assert!(self.records > 0, "a batch has at least one record");
        if self.compression != Compression::None {
            let compressed = self.compression.compress(&self.buffer[HEADER_BYTES..]);
            self.buffer.truncate(HEADER_BYTES);
            self.buffer.extend_from_slice(&compressed);
        }
        assert!(
            self.buffer.len() <= MAX_BATCH_BYTES,
            "a batch of {} bytes was built, the limit is {MAX_BATCH_BYTES}",
            self.buffer.len()
        );
        let mut header = BatchHeader {
            base_offset: Offset::ZERO,
            batch_length: u32::try_from(self.buffer.len() - 12).expect("a batch is below 4 GiB"),
            leader_epoch: NO_LEADER,
            crc: 0,
            compression: self.compression,
            transactional: self.transactional,
            control: self.control,
            first_timestamp: self.first_timestamp,
            max_timestamp: self.max_timestamp,
            producer: self.producer,
            record_count: self.records,
        };
        header.write(&mut self.buffer);
        LogBatch {
            header,
            bytes: Bytes::from(self.buffer),
        }
    }
}

fn put_optional(buffer: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            varint::put(buffer, signed(bytes.len()));
            buffer.extend_from_slice(bytes);
        }
        None => varint::put(buffer, -1),
    }
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).expect("nothing in memory has 2^63 bytes")
}
