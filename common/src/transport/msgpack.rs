//! MessagePack as it goes over the wire and into files: structs with their field names.
//!
//! Names instead of positions let a field be added without breaking a node of another version. Lengths
//! are those of the bytes at hand: a decoder never allocates for a length that is only claimed.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Deeper than any message of ours nests, and shallow enough for every thread's stack.
const MAX_DEPTH: usize = 256;
/// What ends a value whose last field is no bytes at all.
const NO_BYTES: [u8; 2] = [0xc4, 0];
/// The marker of bytes whose number has 32 bits.
const BYTES_32: u8 = 0xc6;

/// A value as it is written, in two parts so that many bytes at its end are not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub head: Bytes,
    pub tail: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum MsgpackError {
    #[error("cannot be written as MessagePack: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error("is not the MessagePack expected: {0}")]
    Decode(#[from] rmp_serde::decode::Error),
    #[error("has {0} bytes after its end")]
    TrailingBytes(usize),
    #[error("ends before its end")]
    CutOff,
}

pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, MsgpackError> {
    Ok(Bytes::from(rmp_serde::to_vec_named(value)?))
}

/// Writes a struct whose last field is `tail`, and is empty in `value`.
pub fn encode_before<T: Serialize>(value: &T, tail: Bytes) -> Result<Encoded, MsgpackError> {
    let mut head = rmp_serde::to_vec_named(value)?;
    let without = head.strip_suffix(&NO_BYTES).map(<[u8]>::len);
    head.truncate(without.expect("the last field is bytes, and has none"));
    let length = u32::try_from(tail.len()).expect("a message is far smaller than 4 GiB");
    head.push(BYTES_32);
    head.extend_from_slice(&length.to_be_bytes());
    Ok(Encoded {
        head: head.into(),
        tail,
    })
}

/// Reads exactly one value: what follows it is an error, not ignored. The value may borrow from the bytes.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, MsgpackError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut deserializer)?;
    match bytes.len() - value_bytes(bytes).ok_or(MsgpackError::CutOff)? {
        0 => Ok(value),
        left => Err(MsgpackError::TrailingBytes(left)),
    }
}

/// How many bytes the value has that these begin with; `None` if they do not hold one as a whole.
fn value_bytes(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    let mut values: u64 = 1;
    while values > 0 {
        values -= 1;
        let marker = take_number(&mut rest, 1)?;
        let (payload, within) = match marker {
            // Numbers that are their own marker, nil, false and true.
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (0, 0),
            0x80..=0x8f => (0, 2 * (marker & 0x0f)),
            0x90..=0x9f => (0, marker & 0x0f),
            0xa0..=0xbf => (marker & 0x1f, 0),
            // Bytes and strings.
            0xc4 | 0xd9 => (take_number(&mut rest, 1)?, 0),
            0xc5 | 0xda => (take_number(&mut rest, 2)?, 0),
            0xc6 | 0xdb => (take_number(&mut rest, 4)?, 0),
            // Extensions, which have one byte that tells their type.
            0xc7 => (take_number(&mut rest, 1)? + 1, 0),
            0xc8 => (take_number(&mut rest, 2)? + 1, 0),
            0xc9 => (take_number(&mut rest, 4)? + 1, 0),
            0xd4..=0xd8 => ((1 << (marker - 0xd4)) + 1, 0),
            // Numbers.
            0xca | 0xce | 0xd2 => (4, 0),
            0xcb | 0xcf | 0xd3 => (8, 0),
            0xcc | 0xd0 => (1, 0),
            0xcd | 0xd1 => (2, 0),
            // Arrays and maps.
            0xdc => (0, take_number(&mut rest, 2)?),
            0xdd => (0, take_number(&mut rest, 4)?),
            0xde => (0, 2 * take_number(&mut rest, 2)?),
            0xdf => (0, 2 * take_number(&mut rest, 4)?),
            _ => return None,
        };
        rest = rest.get(usize::try_from(payload).ok()?..)?;
        values += within;
    }
    Some(bytes.len() - rest.len())
}

/// Takes a number of so many bytes, at most eight, off the front.
fn take_number(rest: &mut &[u8], bytes: usize) -> Option<u64> {
    let (number, behind) = rest.split_at_checked(bytes)?;
    *rest = behind;
    Some(
        number
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use uuid::Uuid;

    use super::*;
    use crate::error::{ErrorCode, Problem};
    use crate::ids::TopicId;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Older {
        topic: TopicId,
        payload: Bytes,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Newer {
        added: BTreeMap<u32, Option<u64>>,
        payload: Bytes,
        topic: TopicId,
        result: Result<u8, Problem>,
    }

    fn newer() -> Newer {
        Newer {
            added: BTreeMap::from([(1, None), (2, Some(3))]),
            payload: Bytes::from_static(b"\x00\xff"),
            topic: TopicId(Uuid::from_u128(7)),
            result: Err(Problem::new(ErrorCode::NotLeader, "moved").at("record 3")),
        }
    }

    #[test]
    fn what_was_written_reads_back() {
        let bytes = encode(&newer()).unwrap();
        assert_eq!(decode::<Newer>(&bytes).unwrap(), newer());
    }

    #[test]
    fn a_node_of_an_older_version_reads_the_fields_it_knows() {
        let bytes = encode(&newer()).unwrap();
        let older: Older = decode(&bytes).unwrap();
        assert_eq!(older.topic, newer().topic);
        assert_eq!(older.payload, newer().payload);
    }

    #[test]
    fn bytes_travel_as_bytes_and_not_as_a_list_of_numbers() {
        let payload = Bytes::from(vec![0xff; 1000]);
        assert!(encode(&payload).unwrap().len() < 1010);
    }

    #[test]
    fn every_cut_and_every_claimed_length_is_an_error_and_allocates_nothing() {
        let bytes = encode(&newer()).unwrap();
        for end in 0..bytes.len() {
            assert!(decode::<Newer>(&bytes[..end]).is_err(), "cut at {end}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0xc0);
        assert!(matches!(
            decode::<Newer>(&longer),
            Err(MsgpackError::TrailingBytes(1))
        ));
        // An array of 2^32 - 1 elements, a string of 2^32 - 1 bytes.
        assert!(decode::<Vec<u64>>(&[0xdd, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(decode::<String>(&[0xdb, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    #[test]
    fn the_end_of_every_kind_of_value_is_found() {
        let strings: Vec<String> = [0, 31, 32, 255, 256, 70_000].map(|n| "x".repeat(n)).into();
        let bytes: Vec<Bytes> = [0, 255, 256, 70_000].map(|n| vec![7; n].into()).into();
        let numbers: Vec<i64> = [0, 127, 128, 255, 256, 65_535, 65_536, 1 << 31, 1 << 32]
            .into_iter()
            .flat_map(|number| [number, -number - 1])
            .collect();
        let arrays: Vec<Vec<u8>> = [0, 15, 16, 65_535, 65_536].map(|n| vec![1; n]).into();
        let maps: Vec<BTreeMap<u32, Option<bool>>> = [0, 15, 16, 65_536]
            .map(|n| {
                (0..n)
                    .map(|i| (i, (i % 3 > 0).then_some(i % 2 > 0)))
                    .collect()
            })
            .into();
        let value = (strings, bytes, numbers, arrays, maps, 0.5_f32, 0.5_f64);
        let mut written = encode(&value).unwrap().to_vec();
        assert_eq!(value_bytes(&written), Some(written.len()));
        written.push(0);
        assert_eq!(value_bytes(&written), Some(written.len() - 1));
        written.truncate(written.len() - 2);
        assert_eq!(value_bytes(&written), None);
        // One byte of a type and so many of what it says; no message of ours has any.
        for (extension, length) in [
            (&[0xd4][..], 3),
            (&[0xd8], 18),
            (&[0xc7, 5], 8),
            (&[0xc8, 0, 5], 9),
            (&[0xc9, 0, 0, 0, 5], 11),
        ] {
            let mut extension = extension.to_vec();
            extension.resize(20, 0);
            assert_eq!(value_bytes(&extension), Some(length));
        }
        assert_eq!(value_bytes(&[0xc1]), None);
    }

    #[test]
    fn bytes_at_the_end_are_written_without_a_copy_and_read_as_part_of_the_value() {
        for length in [0, 1, 255, 256, 70_000] {
            let tail = Bytes::from(vec![9; length]);
            let without = Older {
                topic: TopicId(Uuid::from_u128(7)),
                payload: Bytes::new(),
            };
            let encoded = encode_before(&without, tail.clone()).unwrap();
            assert_eq!(encoded.tail.as_ptr(), tail.as_ptr());
            let whole = [&encoded.head[..], &encoded.tail].concat();
            let read: Older = decode(&whole).unwrap();
            assert_eq!((read.topic, read.payload), (without.topic, tail));
        }
    }

    #[test]
    fn nesting_without_end_is_an_error_and_not_a_stack_overflow() {
        let deep = vec![0x91; 100_000];
        assert!(decode::<serde_json::Value>(&deep).is_err());
    }
}
