//! The state of a table at a completed checkpoint: what every layer lies on (pure).
//!
//! Every read of the base goes through this file, so that a base larger than memory can come to be here and
//! nowhere else: entries that are in the store as they are here may be dropped, and read back before an
//! operator asks for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::overlay::Overlay;
use super::space::{Known, Space};

#[derive(Debug, Default)]
pub(super) struct Base {
    /// Without deletions: what is not here is not.
    spaces: BTreeMap<i64, Space>,
}

impl Base {
    /// The base that these changes of an empty one make.
    pub(super) fn new(changes: Overlay) -> Base {
        let mut base = Base::default();
        base.merge(Arc::new(changes));
        base
    }

    pub(super) fn get(&self, namespace: i64, hash: u64, key: &[u8]) -> Known<'_> {
        match self.spaces.get(&namespace) {
            Some(space) => space.get(hash, key),
            None => Known::Nothing,
        }
    }

    pub(super) fn space(&self, namespace: i64) -> Option<&Space> {
        self.spaces.get(&namespace)
    }

    pub(super) fn spaces(&self) -> impl Iterator<Item = (i64, &Space)> {
        self.spaces
            .iter()
            .map(|(namespace, space)| (*namespace, space))
    }

    /// Applies what changed after it. A namespace that is new or was emptied is taken over as it is,
    /// unless someone else still looks at the changes.
    pub(super) fn merge(&mut self, changes: Arc<Overlay>) {
        match Arc::try_unwrap(changes) {
            Ok(changes) => {
                for (namespace, newer) in changes.into_spaces() {
                    if newer.cleared || !self.spaces.contains_key(&namespace) {
                        self.replace(namespace, newer);
                    } else {
                        self.merge_space(namespace, &newer);
                    }
                }
            }
            Err(changes) => {
                for (namespace, newer) in changes.spaces() {
                    if newer.cleared {
                        self.spaces.remove(&namespace);
                    }
                    self.merge_space(namespace, newer);
                }
            }
        }
    }

    fn replace(&mut self, namespace: i64, mut space: Space) {
        space.forget_deletions();
        match space.len() {
            0 => self.spaces.remove(&namespace),
            _ => self.spaces.insert(namespace, space),
        };
    }

    fn merge_space(&mut self, namespace: i64, newer: &Space) {
        let space = self.spaces.entry(namespace).or_default();
        for (key, value) in newer.iter() {
            let hash = common::key_group::hash_key(key);
            match value {
                Some(_) => space.set(hash, key, value),
                None => space.forget(hash, key),
            }
        }
        if space.len() == 0 {
            self.spaces.remove(&namespace);
        }
    }
}
