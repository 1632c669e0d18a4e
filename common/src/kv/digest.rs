//! A digest of a set of entries, by which a store's owner notices that some are missing.
//!
//! Sled, opened on a damaged file, comes back without an error and with fewer or older entries. So who
//! relies on a store keeps a digest of what should be in it under a key of its own (the marker), and
//! compares when it reads the store back. The digest does not depend on the order of writes and is
//! updated entry by entry: a sum of hashes, and a count.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// ```
/// use common::kv::Digest;
/// let mut one = Digest::default();
/// one.add(b"a", b"1");
/// one.add(b"b", b"2");
/// one.remove(b"a", b"1");
/// let mut other = Digest::default();
/// other.add(b"b", b"2");
/// assert_eq!(one, other);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    entries: u64,
    sum: u128,
}

impl Digest {
    pub const BYTES: usize = 24;

    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.entries = self.entries.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash(key, value));
    }

    /// Takes out an entry that was added.
    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.entries = self.entries.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash(key, value));
    }

    pub fn to_bytes(self) -> [u8; Digest::BYTES] {
        let mut bytes = [0; Digest::BYTES];
        bytes[..8].copy_from_slice(&self.entries.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sum.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: [u8; Digest::BYTES]) -> Digest {
        let mut entries = [0; 8];
        entries.copy_from_slice(&bytes[..8]);
        let mut sum = [0; 16];
        sum.copy_from_slice(&bytes[8..]);
        Digest {
            entries: u64::from_le_bytes(entries),
            sum: u128::from_le_bytes(sum),
        }
    }
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    xxh3_128_with_seed(value, xxh3_64(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_which_key_matters() {
        let digest = |entries: &[(&[u8], &[u8])]| {
            let mut digest = Digest::default();
            for (key, value) in entries {
                digest.add(key, value);
            }
            assert_eq!(Digest::from_bytes(digest.to_bytes()), digest);
            digest
        };
        let plain = digest(&[(b"a", b"1"), (b"b", b"2")]);
        assert_eq!(plain, digest(&[(b"b", b"2"), (b"a", b"1")]));
        assert_ne!(plain, digest(&[(b"a", b"2"), (b"b", b"1")]));
        assert_ne!(plain, digest(&[(b"a1", b""), (b"b", b"2")]));
        assert_ne!(plain, digest(&[(b"a", b"1")]));
        assert_ne!(plain, digest(&[(b"a", b"1"), (b"b", b"2"), (b"b", b"2")]));
    }
}
