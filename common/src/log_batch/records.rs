//! The records of a batch, borrowed from its bytes.
//!
//! Every length is checked against what is there before anything is done with it: any bytes at all give
//! records or an error, never a panic and never memory the bytes do not account for.

use bytes::Bytes;

use super::header::BatchHeader;
use super::{BatchError, varint};
use crate::offset::Offset;
use crate::record::{Header, Record};
use crate::time::Timestamp;

/// The least a record takes: six one-byte numbers and the attributes.
const MIN_RECORD_BYTES: usize = 7;

/// A batch's records, plain.
#[derive(Clone, Debug)]
pub struct Records {
    header: BatchHeader,
    plain: Bytes,
}

impl Records {
    pub(super) fn new(header: BatchHeader, plain: Bytes) -> Result<Records, BatchError> {
        let records = usize::try_from(header.record_count).expect("a usize has at least 32 bits");
        if records > plain.len() / MIN_RECORD_BYTES {
            return Err(BatchError::Field {
                field: "record count",
                value: i64::from(header.record_count),
            });
        }
        Ok(Records { header, plain })
    }

    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The records' bytes, which every `RecordRef` borrows from.
    pub fn plain(&self) -> &Bytes {
        &self.plain
    }

    pub fn iter(&self) -> RecordsIter<'_> {
        RecordsIter {
            header: &self.header,
            rest: &self.plain,
            index: 0,
            failed: false,
        }
    }

    /// A record that keeps the batch's bytes instead of borrowing them.
    pub fn to_record(&self, record: &RecordRef<'_>) -> Record {
        let share = |bytes: &[u8]| self.plain.slice_ref(bytes);
        Record {
            key: record.key.map(share),
            value: record.value.map(share),
            headers: record
                .headers
                .iter()
                .map(|header| Header {
                    key: header.key.to_owned(),
                    value: header.value.map(share),
                })
                .collect(),
            timestamp: record.timestamp,
        }
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = Result<RecordRef<'a>, BatchError>;
    type IntoIter = RecordsIter<'a>;

    fn into_iter(self) -> RecordsIter<'a> {
        self.iter()
    }
}

/// A record where it lies in its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    pub offset: Offset,
    pub timestamp: Timestamp,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: HeadersRef<'a>,
}

/// A record's headers where they lie, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadersRef<'a> {
    count: usize,
    bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderRef<'a> {
    pub key: &'a str,
    pub value: Option<&'a [u8]>,
}

impl RecordRef<'_> {
    /// The bytes that count against a topic's `max_message_bytes`.
    pub fn payload_bytes(&self) -> usize {
        // The headers' few length bytes count too: nobody can tell the difference.
        self.key.map_or(0, <[u8]>::len)
            + self.value.map_or(0, <[u8]>::len)
            + self.headers.bytes.len()
    }
}

impl<'a> HeadersRef<'a> {
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = HeaderRef<'a>> + use<'a> {
        let mut rest = self.bytes;
        (0..self.count).map(move |_| {
            take_header(&mut rest).expect("headers were checked when the record was decoded")
        })
    }
}

/// Ends after the last record, or at the first that is malformed.
#[derive(Clone, Debug)]
pub struct RecordsIter<'a> {
    header: &'a BatchHeader,
    rest: &'a [u8],
    index: u32,
    failed: bool,
}

impl<'a> Iterator for RecordsIter<'a> {
    type Item = Result<RecordRef<'a>, BatchError>;

    fn next(&mut self) -> Option<Result<RecordRef<'a>, BatchError>> {
        if self.failed {
            return None;
        }
        if self.index == self.header.record_count {
            if self.rest.is_empty() {
                return None;
            }
            self.failed = true;
            return Some(Err(BatchError::Record {
                index: self.index,
                reason: "more bytes follow than the batch has records for",
            }));
        }
        let record = self.decode().map_err(|reason| BatchError::Record {
            index: self.index,
            reason,
        });
        self.failed = record.is_err();
        self.index += 1;
        Some(record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.header.record_count - self.index).unwrap_or(usize::MAX);
        (0, Some(left.saturating_add(1)))
    }
}

impl<'a> RecordsIter<'a> {
    fn decode(&mut self) -> Result<RecordRef<'a>, &'static str> {
        let length = take_length(&mut self.rest)
            .ok_or("its length is malformed")?
            .ok_or("it has no length")?;
        let (mut body, rest) = self.rest.split_at_checked(length).ok_or("it is cut off")?;
        self.rest = rest;
        // The attributes: none are defined, and none are looked at.
        body = body.get(1..).ok_or("its attributes are cut off")?;
        let timestamp_delta = varint::take(&mut body).ok_or("its timestamp is malformed")?;
        let offset_delta = varint::take(&mut body).ok_or("its offset is malformed")?;
        if offset_delta != i64::from(self.index) {
            return Err("its offset is not the next one");
        }
        let key = take_bytes(&mut body).ok_or("its key is malformed")?;
        let value = take_bytes(&mut body).ok_or("its value is malformed")?;
        let headers = take_headers(&mut body)?;
        if !body.is_empty() {
            return Err("it is longer than its parts");
        }
        Ok(RecordRef {
            offset: self.header.base_offset.plus(u64::from(self.index)),
            timestamp: Timestamp(self.header.first_timestamp.0.wrapping_add(timestamp_delta)),
            key,
            value,
            headers,
        })
    }
}

fn take_headers<'a>(body: &mut &'a [u8]) -> Result<HeadersRef<'a>, &'static str> {
    let count = varint::take(body)
        .and_then(|count| usize::try_from(count).ok())
        .ok_or("its number of headers is malformed")?;
    let all = *body;
    for _ in 0..count {
        take_header(body).ok_or("a header is malformed")?;
    }
    Ok(HeadersRef {
        count,
        bytes: &all[..all.len() - body.len()],
    })
}

fn take_header<'a>(body: &mut &'a [u8]) -> Option<HeaderRef<'a>> {
    let key = take_bytes(body)??;
    let value = take_bytes(body)?;
    Some(HeaderRef {
        key: std::str::from_utf8(key).ok()?,
        value,
    })
}

/// A length and so many bytes; −1 is "absent". The outer `None`: malformed.
fn take_bytes<'a>(body: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let Some(length) = take_length(body)? else {
        return Some(None);
    };
    let (bytes, rest) = body.split_at_checked(length)?;
    *body = rest;
    Some(Some(bytes))
}

fn take_length(body: &mut &[u8]) -> Option<Option<usize>> {
    match varint::take(body)? {
        -1 => Some(None),
        length => usize::try_from(length).ok().map(Some),
    }
}
