//! What changed in a table during one checkpoint's time, or during several (pure).

use std::collections::BTreeMap;

use common::key_group::{KeyGroup, hash_key, key_group};

use super::space::{Known, Space, Stamp};

/// Changes of a table: values, deletions, and namespaces that were emptied before those. As a delta it is
/// what a checkpoint makes durable; over older layers it hides what they say.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    spaces: BTreeMap<i64, Space>,
    /// What its entries are stamped with.
    stamp: Stamp,
}

/// One change of a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change<'a> {
    pub group: KeyGroup,
    pub namespace: i64,
    pub key: &'a [u8],
    /// `None`: the key was deleted.
    pub value: Option<&'a [u8]>,
}

impl Overlay {
    pub(super) fn stamped(stamp: Stamp) -> Overlay {
        Overlay {
            stamp,
            ..Overlay::default()
        }
    }

    pub(super) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Says that all of it was written at this time.
    pub(super) fn restamp(&mut self, stamp: Stamp) {
        self.stamp = stamp;
        self.spaces
            .values_mut()
            .for_each(|space| space.restamp(stamp));
    }

    /// Bytes of memory it takes.
    pub(super) fn footprint(&self) -> u64 {
        self.spaces.values().map(Space::footprint).sum()
    }

    pub fn put(&mut self, namespace: i64, key: &[u8], value: &[u8]) {
        self.set(namespace, hash_key(key), key, Some(value));
    }

    pub fn delete(&mut self, namespace: i64, key: &[u8]) {
        self.set(namespace, hash_key(key), key, None);
    }

    /// Empties a namespace; what was noted of it before does not count any more.
    pub fn clear_namespace(&mut self, namespace: i64) {
        self.spaces.insert(namespace, Space::cleared());
    }

    /// Takes newer changes over as what is so now: of what they delete nothing stays.
    pub fn settle(&mut self, newer: &Overlay) {
        for namespace in newer.cleared() {
            self.forget_namespace(namespace);
        }
        for change in newer.sorted(1) {
            match change.value {
                Some(value) => self.put(change.namespace, change.key, value),
                None => self.forget(change.namespace, hash_key(change.key), change.key),
            }
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.spaces.is_empty()
    }

    /// Entries, deletions included.
    pub fn len(&self) -> usize {
        self.spaces.values().map(Space::len).sum()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> u64 {
        self.spaces.values().map(Space::bytes).sum()
    }

    /// The namespaces that were emptied, in order.
    pub fn cleared(&self) -> impl Iterator<Item = i64> + '_ {
        let cleared = self.spaces.iter().filter(|(_, space)| space.cleared);
        cleared.map(|(namespace, _)| *namespace)
    }

    /// The changes, by key group of `groups`, namespace and key.
    pub fn sorted(&self, groups: u16) -> Vec<Change<'_>> {
        let mut changes = Vec::with_capacity(self.len());
        for (namespace, space) in &self.spaces {
            changes.extend(space.iter().map(|(key, value)| Change {
                group: key_group(key, groups),
                namespace: *namespace,
                key,
                value,
            }));
        }
        // Keys are unique within a namespace.
        changes.sort_unstable_by_key(|change| (change.group, change.namespace, change.key));
        changes
    }

    pub(super) fn get(&self, namespace: i64, hash: u64, key: &[u8]) -> Known<'_> {
        match self.spaces.get(&namespace) {
            Some(space) => space.get(hash, key),
            None => Known::Nothing,
        }
    }

    pub(super) fn set(&mut self, namespace: i64, hash: u64, key: &[u8], value: Option<&[u8]>) {
        let space = self.spaces.entry(namespace).or_default();
        space.set(hash, key, value, self.stamp);
    }

    /// As if the key had never been written here.
    pub(super) fn forget(&mut self, namespace: i64, hash: u64, key: &[u8]) {
        if let Some(space) = self.spaces.get_mut(&namespace) {
            space.forget(hash, key);
            self.drop_if_void(namespace);
        }
    }

    /// As if the namespace had never been written here.
    pub(super) fn forget_namespace(&mut self, namespace: i64) {
        self.spaces.remove(&namespace);
    }

    pub(super) fn space(&self, namespace: i64) -> Option<&Space> {
        self.spaces.get(&namespace)
    }

    pub(super) fn spaces(&self) -> impl Iterator<Item = (i64, &Space)> {
        self.spaces
            .iter()
            .map(|(namespace, space)| (*namespace, space))
    }

    pub(super) fn into_spaces(self) -> BTreeMap<i64, Space> {
        self.spaces
    }

    fn drop_if_void(&mut self, namespace: i64) {
        let void = |space: &Space| space.len() == 0 && !space.cleared;
        if self.spaces.get(&namespace).is_some_and(void) {
            self.spaces.remove(&namespace);
        }
    }
}
