//! Record key → partition, as Kafka's own clients choose it, so that all writers of a key agree.
//!
//! A record with a key goes where murmur2 of the key says. Records without one stick to a partition
//! until it has received a batch's worth, then move on to the next.

use crate::ids::PartitionId;

/// Kafka's seed.
const SEED: u32 = 0x9747_b28c;
const MULTIPLIER: u32 = 0x5bd1_e995;
const SHIFT: u32 = 24;

/// What one partition receives of records without a key before the next one's turn: large enough to
/// make a good batch, small enough to spread one request of many records over all partitions.
const STICKY_BYTES: usize = 64 << 10;

/// The 32-bit murmur2 hash Kafka's default partitioner uses.
pub fn murmur2(bytes: &[u8]) -> u32 {
    // Kafka's length is an i32; only its low bits enter the hash.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the hash is defined over 32 bits"
    )]
    let mut hash = SEED ^ (bytes.len() as u32);
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        mixed ^= mixed >> SHIFT;
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed.wrapping_mul(MULTIPLIER);
    }
    if !tail.is_empty() {
        for (position, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * position);
        }
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

/// The partition of `partitions` that records with this key go to.
pub fn partition_of_key(key: &[u8], partitions: u32) -> PartitionId {
    assert!(partitions > 0, "a topic has at least one partition");
    // Kafka drops the sign bit rather than taking the absolute value.
    PartitionId((murmur2(key) & 0x7fff_ffff) % partitions)
}

/// Where records without a key go: one partition until it has had its share, then the next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StickyPartitioner {
    current: u32,
    bytes: usize,
}

impl StickyPartitioner {
    /// Starts at partition `start`, modulo their number.
    pub fn starting_at(start: u32) -> StickyPartitioner {
        StickyPartitioner {
            current: start,
            bytes: 0,
        }
    }

    /// The partition for the next record, of so many bytes.
    pub fn next(&mut self, record_bytes: usize, partitions: u32) -> PartitionId {
        assert!(partitions > 0, "a topic has at least one partition");
        if self.bytes >= STICKY_BYTES {
            self.advance();
        }
        self.bytes += record_bytes;
        PartitionId(self.current % partitions)
    }

    /// Moves on to the next partition, as at the end of a request.
    pub fn advance(&mut self) {
        self.current = self.current.wrapping_add(1);
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_kafka_clients_compute() {
        for (key, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn a_key_always_goes_to_one_partition_that_exists() {
        for partitions in 1..20 {
            for key in 0..500_u32 {
                let chosen = partition_of_key(&key.to_be_bytes(), partitions);
                assert!(chosen.0 < partitions);
                assert_eq!(chosen, partition_of_key(&key.to_be_bytes(), partitions));
            }
        }
    }

    #[test]
    fn keyless_records_stay_until_a_batch_is_full_then_visit_every_partition() {
        let mut sticky = StickyPartitioner::starting_at(u32::MAX);
        let first = sticky.next(100, 3);
        assert_eq!(sticky.next(STICKY_BYTES, 3), first);
        let mut seen: Vec<u32> = (0..3).map(|_| sticky.next(STICKY_BYTES, 3).0).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2]);
    }
}
