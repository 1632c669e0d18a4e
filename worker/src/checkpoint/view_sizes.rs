//! How much a view has of a table, namespace by namespace, so that a task can begin with it before it is read.

use std::collections::BTreeMap;

use crate::keyed_state::stored::LARGEST_STORED_VALUE;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ViewSizes {
    /// None is empty.
    namespaces: BTreeMap<i64, Size>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    /// Of keys and values.
    bytes: u64,
    entries: u64,
    /// Entries whose values are too large to be in a view.
    lacking: u64,
}

impl ViewSizes {
    /// `value_bytes`: of all its pieces.
    pub(super) fn add(&mut self, namespace: i64, key: &[u8], value_bytes: usize) {
        let size = self.namespaces.entry(namespace).or_default();
        size.bytes += as_u64(key.len() + value_bytes);
        size.entries += 1;
        size.lacking += u64::from(value_bytes > LARGEST_STORED_VALUE);
    }

    /// What was added.
    pub(super) fn remove(&mut self, namespace: i64, key: &[u8], value_bytes: usize) {
        let size = self.namespaces.get_mut(&namespace);
        let size = size.expect("a namespace with an entry has a size");
        size.bytes -= as_u64(key.len() + value_bytes);
        size.entries -= 1;
        size.lacking -= u64::from(value_bytes > LARGEST_STORED_VALUE);
        if size.entries == 0 {
            self.namespaces.remove(&namespace);
        }
    }

    pub(super) fn clear(&mut self, namespace: i64) {
        self.namespaces.remove(&namespace);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// Whether all values are in the view.
    pub(super) fn is_whole(&self) -> bool {
        self.namespaces.values().all(|size| size.lacking == 0)
    }

    /// Namespace → bytes of keys and values, and entries.
    pub(super) fn of_namespaces(&self) -> BTreeMap<i64, (u64, u64)> {
        let sizes = self.namespaces.iter();
        let sizes = sizes.map(|(namespace, size)| (*namespace, (size.bytes, size.entries)));
        sizes.collect()
    }
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).expect("a length fits into 64 bits")
}
