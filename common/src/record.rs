//! What a client writes and reads: a key, a value, headers and a time.
//!
//! `Record` owns its bytes; `log_batch::RecordRef` is the same thing borrowed from the batch it lies in.

use bytes::Bytes;

use crate::time::Timestamp;

/// One record as it is handed to a partition. A record without a value deletes its key where that matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<Header>,
    pub timestamp: Timestamp,
}

/// A name and a value beside a record's payload. Names may repeat.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    pub key: String,
    pub value: Option<Bytes>,
}

impl Record {
    /// The bytes that count against a topic's `max_message_bytes`.
    pub fn payload_bytes(&self) -> usize {
        let optional = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self
            .headers
            .iter()
            .map(|header| header.key.len() + optional(&header.value))
            .sum();
        optional(&self.key) + optional(&self.value) + headers
    }
}
