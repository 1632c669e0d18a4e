//! A table of keyed state: what operators read and write between checkpoints.
//!
//! `(namespace, key) → value`. The namespace is the start of a window or slice in milliseconds, 0 where
//! there is none; the key is canonical bytes. Reads see every write before them.
//!
//! A table is layers: the base (the state at a completed checkpoint), one sealed overlay per checkpoint
//! since, and the active overlay that is written. Sealing is moving one pointer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use common::ids::CheckpointId;

#[derive(Debug, Default)]
pub struct Table {
    base: Overlay,
    /// Oldest first.
    sealed: Vec<(CheckpointId, Arc<Overlay>)>,
    active: Overlay,
}

/// What changed in one checkpoint's time.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// Namespaces that were emptied; what `entries` has of them was put afterwards.
    cleared: BTreeSet<i64>,
    entries: BTreeMap<i64, BTreeMap<Bytes, Option<Bytes>>>,
}

/// Which state a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Live,
    Completed(CheckpointId),
}

impl Table {
    pub fn get(&self, namespace: i64, key: &[u8]) -> Option<&[u8]> {
        self.layers(At::Live)
            .find_map(|layer| layer.get(namespace, key))?
    }

    pub fn put(&mut self, namespace: i64, key: &[u8], value: &[u8]) {
        self.active
            .set(namespace, key, Some(Bytes::copy_from_slice(value)));
    }

    pub fn delete(&mut self, namespace: i64, key: &[u8]) {
        self.active.set(namespace, key, None);
    }

    /// Removes every entry of a namespace at once.
    pub fn clear_namespace(&mut self, namespace: i64) {
        self.active.entries.remove(&namespace);
        self.active.cleared.insert(namespace);
    }

    /// The namespaces that have entries, in order.
    pub fn namespaces(&self) -> impl Iterator<Item = i64> + '_ {
        let all: BTreeSet<i64> = self
            .layers(At::Live)
            .flat_map(|layer| layer.entries.keys().copied())
            .collect();
        all.into_iter()
            .filter(|namespace| !self.namespace(At::Live, *namespace).is_empty())
    }

    /// The entries of a namespace, each once.
    pub fn for_each(&self, namespace: i64, mut visit: impl FnMut(&[u8], &[u8])) {
        for (key, value) in self.namespace(At::Live, namespace) {
            visit(key, value);
        }
    }

    /// The entries as they are, or were when the checkpoint was sealed, by namespace and key. `None`:
    /// that state is no longer kept.
    pub fn entries(&self, at: At) -> Option<Vec<(i64, &[u8], &[u8])>> {
        let namespaces: BTreeSet<i64> = self
            .layers(at)
            .flat_map(|layer| layer.entries.keys().copied())
            .collect();
        let entries = namespaces.into_iter().flat_map(|namespace| {
            let entries = self.namespace(at, namespace);
            entries
                .into_iter()
                .map(move |(key, value)| (namespace, key, value))
        });
        Some(entries.collect())
    }

    /// Ends a checkpoint's time: what was written since the last one is its delta.
    pub fn seal(&mut self, checkpoint: CheckpointId) {
        let overlay = std::mem::take(&mut self.active);
        self.sealed.push((checkpoint, Arc::new(overlay)));
    }

    /// What the checkpoint changed, until it is folded into the base.
    pub fn delta(&self, checkpoint: CheckpointId) -> Option<Arc<Overlay>> {
        self.sealed
            .iter()
            .find(|(c, _)| *c == checkpoint)
            .map(|(_, overlay)| overlay.clone())
    }

    /// The checkpoint is completed: everything before it becomes the base. Its own delta stays a layer,
    /// so that readers who come a little late still find the one before.
    pub fn complete(&mut self, checkpoint: CheckpointId) {
        let older = self.sealed.iter().filter(|(c, _)| *c < checkpoint).count();
        for (_, overlay) in self.sealed.drain(..older) {
            self.base.merge(&overlay);
        }
    }

    /// Bytes of keys and values, and entries, in all layers.
    pub fn size(&self) -> (u64, u64) {
        let mut size = (0, 0);
        for layer in self.layers(At::Live) {
            for (key, value) in layer.entries.values().flatten() {
                size.0 += (key.len() + value.as_ref().map_or(0, Bytes::len)) as u64;
                size.1 += 1;
            }
        }
        size
    }

    fn namespace(&self, at: At, namespace: i64) -> BTreeMap<&[u8], &[u8]> {
        let mut found: BTreeMap<&[u8], Option<&[u8]>> = BTreeMap::new();
        for layer in self.layers(at) {
            for (key, value) in layer.entries.get(&namespace).into_iter().flatten() {
                found.entry(key).or_insert(value.as_deref());
            }
            if layer.cleared.contains(&namespace) {
                break;
            }
        }
        found
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect()
    }

    /// Newest first.
    fn layers(&self, at: At) -> impl Iterator<Item = &Overlay> {
        let newest = match at {
            At::Live => CheckpointId(u64::MAX),
            At::Completed(checkpoint) => checkpoint,
        };
        let active = (at == At::Live).then_some(&self.active);
        let sealed = self.sealed.iter().rev().filter(move |(c, _)| *c <= newest);
        active
            .into_iter()
            .chain(sealed.map(|(_, overlay)| &**overlay))
            .chain([&self.base])
    }
}

impl Overlay {
    fn get(&self, namespace: i64, key: &[u8]) -> Option<Option<&[u8]>> {
        let entry = self
            .entries
            .get(&namespace)
            .and_then(|entries| entries.get(key));
        match entry {
            Some(value) => Some(value.as_deref()),
            None => self.cleared.contains(&namespace).then_some(None),
        }
    }

    fn set(&mut self, namespace: i64, key: &[u8], value: Option<Bytes>) {
        self.entries
            .entry(namespace)
            .or_default()
            .insert(Bytes::copy_from_slice(key), value);
    }

    fn merge(&mut self, newer: &Overlay) {
        for namespace in &newer.cleared {
            self.entries.remove(namespace);
        }
        for (namespace, entries) in &newer.entries {
            let mine = self.entries.entry(*namespace).or_default();
            for (key, value) in entries {
                match value {
                    Some(value) => drop(mine.insert(key.clone(), Some(value.clone()))),
                    None => drop(mine.remove(key)),
                }
            }
        }
    }
}
