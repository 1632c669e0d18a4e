//! The state of a table at a completed checkpoint: what every layer lies on (pure).
//!
//! Every read of the base goes through this file, because the base may be larger than memory. Once a store
//! has all changes up to some checkpoint (`folded`), what was not changed since is there as it is here, and
//! may be forgotten (`evict`) until it is asked for again (`load`). What changed since stays: deletions too,
//! because the store does not know of them yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::overlay::Overlay;
use super::space::{Known, Space, Stamp};
use super::stored::LARGEST_STORED_VALUE;

/// What was read from the store, and is there as it is here.
const CLEAN: Stamp = 0;
/// Chunks of memory that are given back at a time: some milliseconds, for which a task does nothing else.
const CHUNKS_AT_ONCE: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Base {
    parts: BTreeMap<i64, Part>,
    /// Whether a store has all of it too.
    spills: bool,
    /// The store has everything that was written up to here.
    folded: Stamp,
    /// How often something was forgotten.
    evictions: u64,
    /// The namespace to be looked at next for what can be forgotten.
    hand: i64,
    eviction: Option<Eviction>,
}

/// What is left of going once over everything for what can be forgotten.
#[derive(Debug)]
struct Eviction {
    /// The next one is the last.
    namespaces: Vec<i64>,
    /// Chunks of that one that were not looked at; `None`: it was not begun.
    chunks: Option<usize>,
}

/// One namespace.
#[derive(Debug, Default)]
struct Part {
    space: Space,
    /// What is not here may be in the store.
    stored: bool,
}

impl Base {
    /// From now on a store is told of everything, and may be all that has it.
    pub(super) fn spill(&mut self) {
        self.spills = true;
    }

    pub(super) fn spills(&self) -> bool {
        self.spills
    }

    /// Takes over what a store was found to have in a namespace: all of it, or not (`stored`).
    pub(super) fn restore(&mut self, namespace: i64, space: Space, stored: bool) {
        self.parts.insert(namespace, Part { space, stored });
    }

    pub(super) fn get(&self, namespace: i64, hash: u64, key: &[u8]) -> Known<'_> {
        let Some(part) = self.parts.get(&namespace) else {
            return Known::Nothing;
        };
        match part.space.get(hash, key) {
            Known::Nothing if part.stored => Known::Stored,
            known => known,
        }
    }

    pub(super) fn space(&self, namespace: i64) -> Option<&Space> {
        self.parts.get(&namespace).map(|part| &part.space)
    }

    pub(super) fn has(&self, namespace: i64) -> bool {
        self.parts.contains_key(&namespace)
    }

    /// Whether a namespace may have entries that only the store has.
    pub(super) fn is_stored(&self, namespace: i64) -> bool {
        self.parts.get(&namespace).is_some_and(|part| part.stored)
    }

    pub(super) fn any_stored(&self) -> bool {
        self.parts.values().any(|part| part.stored)
    }

    pub(super) fn namespaces(&self) -> impl Iterator<Item = i64> {
        self.parts.keys().copied()
    }

    pub(super) fn footprint(&self) -> u64 {
        self.parts.values().map(|part| part.space.footprint()).sum()
    }

    /// Grows whenever something is forgotten: what was read from the store before may be outdated.
    pub(super) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Applies what changed after it. A namespace that is new or was emptied is taken over as it is,
    /// unless someone else still looks at the changes.
    pub(super) fn merge(&mut self, changes: Arc<Overlay>) {
        let stamp = changes.stamp();
        match Arc::try_unwrap(changes) {
            Ok(changes) => {
                for (namespace, newer) in changes.into_spaces() {
                    if newer.cleared || !self.parts.contains_key(&namespace) {
                        self.replace(namespace, newer);
                    } else {
                        self.merge_space(namespace, &newer, stamp);
                    }
                }
            }
            Err(changes) => {
                for (namespace, newer) in changes.spaces() {
                    if newer.cleared {
                        self.parts.remove(&namespace);
                    }
                    self.merge_space(namespace, newer, stamp);
                }
            }
        }
    }

    /// The store has everything that was written up to here.
    pub(super) fn folded(&mut self, up_to: Stamp) {
        self.folded = self.folded.max(up_to);
    }

    /// Notes what the store has of a key that only it knows.
    pub(super) fn load(&mut self, namespace: i64, hash: u64, key: &[u8], value: Option<&[u8]>) {
        if self.get(namespace, hash, key) == Known::Stored
            && let Some(part) = self.parts.get_mut(&namespace)
        {
            part.space.set(hash, key, value, CLEAN);
        }
    }

    /// Gives back about so many bytes of memory, of what was written or read the longest ago, as far as the
    /// store has it too. A little at a time: answers whether there is to be another one.
    pub(super) fn evict(&mut self, bytes: u64) -> bool {
        if !self.spills {
            return false;
        }
        let folded = self.folded;
        let stays = |stamp: Stamp, value: Option<&[u8]>| {
            stamp > folded || value.is_some_and(|value| value.len() > LARGEST_STORED_VALUE)
        };
        let mut eviction = self
            .eviction
            .take()
            .unwrap_or_else(|| self.begin_eviction());
        let (mut freed, mut looked_at) = (0, 0);
        while let Some(namespace) = eviction.namespaces.last().copied() {
            self.hand = namespace;
            let mut left = 0;
            if let Some(part) = self.parts.get_mut(&namespace) {
                let before = part.space.footprint();
                left = eviction.chunks.unwrap_or(part.space.chunks());
                // What stays is moved behind those that were there when it began.
                while left > 0 && looked_at < CHUNKS_AT_ONCE {
                    if freed + before.saturating_sub(part.space.footprint()) >= bytes {
                        break;
                    }
                    let (values, deletions) = part.space.rewrite_oldest(stays);
                    part.stored |= values > 0;
                    self.evictions += u64::from(values + deletions > 0);
                    (left, looked_at) = (left - 1, looked_at + 1);
                }
                freed += before.saturating_sub(part.space.footprint());
                if part.space.len() == 0 && !part.stored {
                    self.parts.remove(&namespace);
                }
            }
            if freed >= bytes {
                return false;
            }
            if left > 0 {
                eviction.chunks = Some(left);
                self.eviction = Some(eviction);
                return true;
            }
            eviction.namespaces.pop();
            eviction.chunks = None;
        }
        false
    }

    /// Once around all namespaces, from the hand on.
    fn begin_eviction(&self) -> Eviction {
        let behind = self.parts.range(self.hand..);
        let around = behind.chain(self.parts.range(..self.hand));
        let mut namespaces: Vec<i64> = around.map(|(namespace, _)| *namespace).collect();
        namespaces.reverse();
        Eviction {
            namespaces,
            chunks: None,
        }
    }

    fn replace(&mut self, namespace: i64, mut space: Space) {
        space.cleared = false;
        if !self.spills {
            space.forget_deletions();
        }
        let stored = false;
        match space.len() {
            0 => self.parts.remove(&namespace),
            _ => self.parts.insert(namespace, Part { space, stored }),
        };
    }

    fn merge_space(&mut self, namespace: i64, newer: &Space, stamp: Stamp) {
        let part = self.parts.entry(namespace).or_default();
        for (key, value) in newer.iter() {
            let hash = common::key_group::hash_key(key);
            match value {
                None if !self.spills => part.space.forget(hash, key),
                _ => part.space.set(hash, key, value, stamp),
            }
        }
        if part.space.len() == 0 && !part.stored {
            self.parts.remove(&namespace);
        }
    }
}
