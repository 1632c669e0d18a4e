//! The 61 bytes before a batch's records: parse, verify, write.
//!
//! Everything a leader decides on is here, so that it never has to open the records.

use super::BatchError;
use crate::compression::Compression;
use crate::ids::{LeaderEpoch, ProducerEpoch, ProducerId};
use crate::limits::MAX_BATCH_BYTES;
use crate::offset::{Offset, OffsetRange};
use crate::time::Timestamp;

pub const HEADER_BYTES: usize = 61;

/// The bytes before this are not covered by the checksum, nor is the checksum itself.
pub(super) const CHECKED_FROM: usize = 21;
const MAGIC: i8 = 2;
/// The length field counts from its own end.
const LENGTH_ENDS_AT: usize = 12;

const CODEC_BITS: u16 = 0x07;
const LOG_APPEND_TIME_BIT: u16 = 0x08;
const TRANSACTIONAL_BIT: u16 = 0x10;
const CONTROL_BIT: u16 = 0x20;
const KNOWN_BITS: u16 = CODEC_BITS | TRANSACTIONAL_BIT | CONTROL_BIT;

/// A batch's header, in the types the rest of the system uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchHeader {
    pub base_offset: Offset,
    /// What follows the length field, in bytes.
    pub batch_length: u32,
    pub leader_epoch: LeaderEpoch,
    pub crc: u32,
    pub compression: Compression,
    pub transactional: bool,
    /// The batch holds a transaction's marker, not a client's records.
    pub control: bool,
    pub first_timestamp: Timestamp,
    pub max_timestamp: Timestamp,
    /// `None`: the producer asked for no duplicate detection.
    pub producer: Option<ProducerStamp>,
    pub record_count: u32,
}

/// Who wrote a batch, and where it stands in what that producer wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProducerStamp {
    pub id: ProducerId,
    pub epoch: ProducerEpoch,
    /// The number of the first record; −1 in a transaction's marker. Wraps after `i32::MAX` to 0.
    pub base_sequence: i32,
}

impl BatchHeader {
    /// Reads and checks the header at the start of `bytes`; the records need not be there.
    pub fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(BatchError::CutOff {
                present: bytes.len(),
                needed: HEADER_BYTES,
            });
        };
        // Other versions put other things behind the magic byte: it is looked at first.
        let magic = i8::from_be_bytes(field(header, 16));
        if magic != MAGIC {
            return Err(BatchError::Magic { magic });
        }
        let batch_length = not_negative("length", i32::from_be_bytes(field(header, 8)))?;
        let total =
            LENGTH_ENDS_AT + usize::try_from(batch_length).expect("a usize has at least 32 bits");
        if total < HEADER_BYTES {
            return Err(impossible("length", batch_length));
        }
        if total > MAX_BATCH_BYTES {
            return Err(BatchError::TooLarge {
                bytes: total,
                limit: MAX_BATCH_BYTES,
            });
        }
        let base_offset = i64::from_be_bytes(field(header, 0));
        if base_offset < 0 {
            return Err(impossible("base offset", base_offset));
        }
        let attributes = u16::from_be_bytes(field(header, 21));
        if attributes & !KNOWN_BITS != 0 {
            return Err(impossible("attributes field", attributes));
        }
        let codec = u8::try_from(attributes & CODEC_BITS).expect("three bits");
        let compression =
            Compression::from_code(codec).ok_or_else(|| impossible("codec", codec))?;
        let last_offset_delta =
            not_negative("last offset delta", i32::from_be_bytes(field(header, 23)))?;
        let record_count = not_negative("record count", i32::from_be_bytes(field(header, 57)))?;
        if record_count != last_offset_delta + 1 {
            return Err(BatchError::RecordCount {
                records: record_count,
                offsets: last_offset_delta + 1,
            });
        }
        if base_offset.checked_add(i64::from(record_count)).is_none() {
            return Err(impossible("base offset", base_offset));
        }
        let transactional = attributes & TRANSACTIONAL_BIT != 0;
        let control = attributes & CONTROL_BIT != 0;
        Ok(BatchHeader {
            base_offset: Offset(base_offset),
            batch_length,
            leader_epoch: LeaderEpoch(i32::from_be_bytes(field(header, 12))),
            crc: u32::from_be_bytes(field(header, 17)),
            compression,
            transactional,
            control,
            first_timestamp: Timestamp(i64::from_be_bytes(field(header, 27))),
            max_timestamp: Timestamp(i64::from_be_bytes(field(header, 35))),
            producer: parse_producer(header, transactional, control)?,
            record_count,
        })
    }

    /// The whole batch, header and records, in bytes.
    pub fn total_bytes(&self) -> usize {
        LENGTH_ENDS_AT + usize::try_from(self.batch_length).expect("a usize has at least 32 bits")
    }

    pub fn last_offset(&self) -> Offset {
        self.base_offset.plus(u64::from(self.record_count - 1))
    }

    /// The offset after the last record.
    pub fn end_offset(&self) -> Offset {
        self.base_offset.plus(u64::from(self.record_count))
    }

    pub fn offsets(&self) -> OffsetRange {
        OffsetRange::new(self.base_offset, self.end_offset())
    }

    /// Writes the header before records that are already in place, and the checksum over both.
    pub(super) fn write(&mut self, batch: &mut [u8]) {
        let mut attributes = u16::from(self.compression.code());
        if self.transactional {
            attributes |= TRANSACTIONAL_BIT;
        }
        if self.control {
            attributes |= CONTROL_BIT;
        }
        let (id, epoch, sequence) = match self.producer {
            Some(stamp) => (stamp.id.0, stamp.epoch.0, stamp.base_sequence),
            None => (-1, -1, -1),
        };
        batch[8..12].copy_from_slice(&self.batch_length.to_be_bytes());
        stamp(batch, self.base_offset, self.leader_epoch);
        batch[16..17].copy_from_slice(&MAGIC.to_be_bytes());
        batch[21..23].copy_from_slice(&attributes.to_be_bytes());
        batch[23..27].copy_from_slice(&(self.record_count - 1).to_be_bytes());
        batch[27..35].copy_from_slice(&self.first_timestamp.0.to_be_bytes());
        batch[35..43].copy_from_slice(&self.max_timestamp.0.to_be_bytes());
        batch[43..51].copy_from_slice(&id.to_be_bytes());
        batch[51..53].copy_from_slice(&epoch.to_be_bytes());
        batch[53..57].copy_from_slice(&sequence.to_be_bytes());
        batch[57..61].copy_from_slice(&self.record_count.to_be_bytes());
        self.crc = crc32c::crc32c(&batch[CHECKED_FROM..]);
        batch[17..21].copy_from_slice(&self.crc.to_be_bytes());
    }
}

impl ProducerStamp {
    /// The sequence number of the last of so many records: sequences wrap from `i32::MAX` to 0.
    pub fn last_sequence(&self, records: u32) -> i32 {
        sequence_after(self.base_sequence, records - 1)
    }
}

/// The sequence number `steps` after `sequence`.
pub(crate) fn sequence_after(sequence: i32, steps: u32) -> i32 {
    const SEQUENCES: i64 = i32::MAX as i64 + 1;
    let next = (i64::from(sequence) + i64::from(steps)) % SEQUENCES;
    i32::try_from(next).expect("a sequence is below 2^31")
}

pub(super) fn stamp(batch: &mut [u8], base_offset: Offset, leader_epoch: LeaderEpoch) {
    batch[0..8].copy_from_slice(&base_offset.0.to_be_bytes());
    batch[12..16].copy_from_slice(&leader_epoch.0.to_be_bytes());
}

fn parse_producer(
    header: &[u8; HEADER_BYTES],
    transactional: bool,
    control: bool,
) -> Result<Option<ProducerStamp>, BatchError> {
    let id = i64::from_be_bytes(field(header, 43));
    let epoch = i16::from_be_bytes(field(header, 51));
    let base_sequence = i32::from_be_bytes(field(header, 53));
    if id == -1 {
        if transactional || control {
            return Err(impossible("producer id", id));
        }
        return Ok(None);
    }
    if id < 0 {
        return Err(impossible("producer id", id));
    }
    if epoch < 0 {
        return Err(impossible("producer epoch", epoch));
    }
    // A marker is written by a leader, not counted by a producer.
    if base_sequence < if control { -1 } else { 0 } {
        return Err(impossible("base sequence", base_sequence));
    }
    Ok(Some(ProducerStamp {
        id: ProducerId(id),
        epoch: ProducerEpoch(epoch),
        base_sequence,
    }))
}

fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    *header[at..]
        .first_chunk::<N>()
        .expect("every field lies inside the header")
}

fn not_negative(field: &'static str, value: i32) -> Result<u32, BatchError> {
    u32::try_from(value).map_err(|_| impossible(field, value))
}

fn impossible(field: &'static str, value: impl Into<i64>) -> BatchError {
    BatchError::Field {
        field,
        value: value.into(),
    }
}

const _: () = assert!(KNOWN_BITS & LOG_APPEND_TIME_BIT == 0);
