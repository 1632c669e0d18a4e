//! Key → key group → task: what makes rescaling possible.
//!
//! A job divides its keys into a fixed number of key groups for ever; a task owns a contiguous range of
//! them. The hash is pinned: state on disk depends on it.

use serde::{Deserialize, Serialize};

/// The index of a key group, from 0 to before the job's number of key groups.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct KeyGroup(pub u16);

/// Key groups from `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyGroupRange {
    pub start: u16,
    pub end: u16,
}

/// The pinned hash of a key's canonical bytes (xxh3, 64 bits, seed 0).
pub fn hash_key(canonical_key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(canonical_key)
}

/// The key group of a key: the high bits of its hash, scaled.
pub fn key_group(canonical_key: &[u8], groups: u16) -> KeyGroup {
    key_group_of_hash(hash_key(canonical_key), groups)
}

pub fn key_group_of_hash(hash: u64, groups: u16) -> KeyGroup {
    let scaled = (u128::from(hash) * u128::from(groups)) >> 64;
    KeyGroup(u16::try_from(scaled).expect("a scaled hash is below the number of groups"))
}

/// The task, of `parallelism`, that owns a key group.
pub fn owner(group: KeyGroup, groups: u16, parallelism: u32) -> u32 {
    u32::from(group.0) * parallelism / u32::from(groups)
}

impl KeyGroupRange {
    /// The key groups that task `index` of `parallelism` owns: from ⌈iK/P⌉ to before ⌈(i+1)K/P⌉.
    pub fn of_task(index: u32, groups: u16, parallelism: u32) -> KeyGroupRange {
        assert!(
            index < parallelism,
            "task {index} of {parallelism} does not exist"
        );
        let bound = |i: u32| {
            let start = (u64::from(i) * u64::from(groups)).div_ceil(u64::from(parallelism));
            u16::try_from(start).expect("a bound is at most the number of groups")
        };
        KeyGroupRange {
            start: bound(index),
            end: bound(index + 1),
        }
    }

    pub fn contains(self, group: KeyGroup) -> bool {
        self.start <= group.0 && group.0 < self.end
    }

    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// The key groups that are in both.
    #[must_use]
    pub fn and(self, other: KeyGroupRange) -> KeyGroupRange {
        KeyGroupRange {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_group_has_exactly_one_owner_and_it_is_the_one_the_range_names() {
        for groups in [1_u16, 7, 256, 1024] {
            for parallelism in 1..=u32::from(groups).min(40) {
                for group in (0..groups).map(KeyGroup) {
                    let owners: Vec<u32> = (0..parallelism)
                        .filter(|i| KeyGroupRange::of_task(*i, groups, parallelism).contains(group))
                        .collect();
                    assert_eq!(owners, [owner(group, groups, parallelism)]);
                }
            }
        }
    }

    #[test]
    fn the_hash_is_pinned() {
        assert_eq!(hash_key(b"millstream"), HASH_OF_MILLSTREAM);
        assert_eq!(key_group_of_hash(u64::MAX, 256), KeyGroup(255));
        assert_eq!(key_group_of_hash(0, 256), KeyGroup(0));
    }

    const HASH_OF_MILLSTREAM: u64 = 13_633_401_194_662_858_628;
}
