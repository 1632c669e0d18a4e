//! A table of keyed state: what operators read and write between checkpoints.
//!
//! `(namespace, key) → value`. The namespace is the start of a window or slice in milliseconds, 0 where
//! there is none; the key is canonical bytes. Reads see every write before them.

use std::collections::BTreeMap;

use bytes::Bytes;

#[derive(Debug, Default)]
pub struct Table {
    entries: BTreeMap<i64, BTreeMap<Bytes, Bytes>>,
}

impl Table {
    pub fn get(&self, namespace: i64, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(&namespace)?.get(key).map(Bytes::as_ref)
    }

    pub fn put(&mut self, namespace: i64, key: &[u8], value: &[u8]) {
        let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        self.entries
            .entry(namespace)
            .or_default()
            .insert(key, value);
    }

    pub fn delete(&mut self, namespace: i64, key: &[u8]) {
        if let Some(entries) = self.entries.get_mut(&namespace) {
            entries.remove(key);
        }
    }

    /// Removes every entry of a namespace at once.
    pub fn clear_namespace(&mut self, namespace: i64) {
        self.entries.remove(&namespace);
    }

    /// The namespaces that have entries, in order.
    pub fn namespaces(&self) -> impl Iterator<Item = i64> + '_ {
        self.entries
            .iter()
            .filter(|(_, entries)| !entries.is_empty())
            .map(|(ns, _)| *ns)
    }

    /// The entries of a namespace, each once, in no particular order.
    pub fn for_each(&self, namespace: i64, mut visit: impl FnMut(&[u8], &[u8])) {
        for (key, value) in self.entries.get(&namespace).into_iter().flatten() {
            visit(key, value);
        }
    }
}
