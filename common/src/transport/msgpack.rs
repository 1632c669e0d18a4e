//! MessagePack as it goes over the wire and into files: structs with their field names.
//!
//! Names instead of positions let a field be added without breaking a node of another version. Lengths
//! are those of the bytes at hand: a decoder never allocates for a length that is only claimed.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Deeper than any message of ours nests, and shallow enough for every thread's stack.
const MAX_DEPTH: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum MsgpackError {
    #[error("cannot be written as MessagePack: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error("is not the MessagePack expected: {0}")]
    Decode(#[from] rmp_serde::decode::Error),
    #[error("has {0} bytes after its end")]
    TrailingBytes(usize),
}

pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, MsgpackError> {
    Ok(Bytes::from(rmp_serde::to_vec_named(value)?))
}

/// Reads exactly one value: what follows it is an error, not ignored.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MsgpackError> {
    let mut reader = bytes;
    let mut deserializer = rmp_serde::Deserializer::new(&mut reader);
    deserializer.set_max_depth(MAX_DEPTH);
    let value = T::deserialize(&mut deserializer)?;
    match reader.len() {
        0 => Ok(value),
        left => Err(MsgpackError::TrailingBytes(left)),
    }
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
    fn nesting_without_end_is_an_error_and_not_a_stack_overflow() {
        let deep = vec![0x91; 100_000];
        assert!(decode::<serde_json::Value>(&deep).is_err());
    }
}
