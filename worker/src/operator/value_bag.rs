//! Values of one group with how often each is there, in their order (pure).
//!
//! What is the least, the greatest, or one more of those seen cannot be known after a row is taken back unless
//! every value is kept. As bytes, smallest value first:
//!
//! ```text
//! for each value: length u32 little endian, the value, how often u64 little endian
//! ```

use std::collections::BTreeMap;

/// Values are bytes that sort as they do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ValueBag {
    counts: BTreeMap<Box<[u8]>, u64>,
    /// What the values take as bytes.
    bytes: usize,
}

impl ValueBag {
    pub(super) fn add(&mut self, value: &[u8]) {
        if let Some(count) = self.counts.get_mut(value) {
            *count += 1;
            return;
        }
        self.counts.insert(value.into(), 1);
        self.bytes += entry_bytes(value);
    }

    pub(super) fn has(&self, value: &[u8]) -> bool {
        self.counts.contains_key(value)
    }

    /// Takes one back that is there.
    pub(super) fn take(&mut self, value: &[u8]) {
        let count = self
            .counts
            .get_mut(value)
            .expect("only what was added is taken back");
        *count -= 1;
        if *count == 0 {
            self.counts.remove(value);
            self.bytes -= entry_bytes(value);
        }
    }

    /// How many different values there are.
    pub(super) fn distinct(&self) -> usize {
        self.counts.len()
    }

    pub(super) fn least(&self) -> Option<&[u8]> {
        self.counts.first_key_value().map(|(value, _)| &**value)
    }

    pub(super) fn greatest(&self) -> Option<&[u8]> {
        self.counts.last_key_value().map(|(value, _)| &**value)
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes);
        for (value, count) in &self.counts {
            let length = u32::try_from(value.len()).expect("a value is shorter than a record");
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        bytes
    }

    /// `None`: the bytes are no values.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<ValueBag> {
        let mut bag = ValueBag {
            bytes: bytes.len(),
            ..ValueBag::default()
        };
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_first_chunk::<4>()?;
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            let (value, rest) = rest.split_at_checked(length)?;
            let (count, rest) = rest.split_first_chunk::<8>()?;
            bag.counts.insert(value.into(), u64::from_le_bytes(*count));
            bytes = rest;
        }
        Some(bag)
    }
}

fn entry_bytes(value: &[u8]) -> usize {
    size_of::<u32>() + value.len() + size_of::<u64>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bag_is_the_values_that_are_left(
            steps in prop::collection::vec((any::<bool>(), prop::collection::vec(0_u8..3, 0..3)), 0..40),
        ) {
            let (mut bag, mut left) = (ValueBag::default(), Vec::<Vec<u8>>::new());
            for (adds, value) in steps {
                if adds {
                    bag.add(&value);
                    left.push(value);
                } else if let Some(at) = left.iter().position(|other| *other == value) {
                    prop_assert!(bag.has(&value));
                    bag.take(&value);
                    left.swap_remove(at);
                } else {
                    prop_assert!(!bag.has(&value));
                }
                left.sort();
                prop_assert_eq!(bag.least(), left.first().map(Vec::as_slice));
                prop_assert_eq!(bag.greatest(), left.last().map(Vec::as_slice));
                let mut distinct = left.clone();
                distinct.dedup();
                prop_assert_eq!(bag.distinct(), distinct.len());
                let bytes = bag.encode();
                prop_assert_eq!(bag.size_bytes(), bytes.len());
                prop_assert_eq!(ValueBag::decode(&bytes), Some(bag.clone()));
                if !bytes.is_empty() {
                    prop_assert_eq!(ValueBag::decode(&bytes[..bytes.len() - 1]), None);
                }
            }
        }
    }
}
