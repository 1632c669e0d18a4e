//! A table of keyed state: what operators read and write between checkpoints (pure).
//!
//! `(namespace, key) → value`. The namespace is the start of a window or slice in milliseconds, 0 where
//! there is none; the key is canonical bytes. Reads see every write before them.
//!
//! A table is layers: the base (the state at a completed checkpoint), one sealed overlay per checkpoint
//! since, and the active overlay that is written.
//!
//! ```text
//! put, delete, clear ─▶ active ─seal(7)─▶ [7] [6] [5] ─complete(6)─▶ base
//! ```
//!
//! Sealing moves a pointer. Completing a checkpoint merges into the base what was sealed up to the one
//! completed before it: the newest completed checkpoint stays readable, and is what a rollback returns to.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use common::ids::CheckpointId;
use common::key_group::hash_key;

use super::base::Base;
pub use super::overlay::Overlay;
use super::space::{Known, Space};

#[derive(Debug, Default)]
pub struct Table {
    base: Base,
    /// The checkpoint the base is the state of; `None`: of none, it is empty.
    base_at: Option<CheckpointId>,
    /// Oldest first; checkpoints that changed nothing have none.
    sealed: Vec<(CheckpointId, Arc<Overlay>)>,
    active: Overlay,
    completed: Option<CheckpointId>,
    /// What there is in all layers together, by namespace; none is empty.
    live: BTreeMap<i64, Size>,
}

/// Which state a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Live,
    /// As it was when this checkpoint was sealed.
    Completed(CheckpointId),
}

/// An entry: namespace, key, value.
pub type Entry<'a> = (i64, &'a [u8], &'a [u8]);

/// The state at this checkpoint is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state at checkpoint {asked} is no longer kept, the oldest is that at {oldest}")]
pub struct EpochGone {
    pub asked: CheckpointId,
    pub oldest: CheckpointId,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    bytes: u64,
    entries: u64,
}

impl Table {
    /// The table whose state at a completed checkpoint is what these changes of an empty one make.
    pub fn restored(at: CheckpointId, state: Overlay) -> Table {
        let mut table = Table {
            base: Base::new(state),
            base_at: Some(at),
            completed: Some(at),
            ..Table::default()
        };
        table.count();
        table
    }

    pub fn get(&self, namespace: i64, key: &[u8]) -> Option<&[u8]> {
        let hash = hash_key(key);
        match self.active.get(namespace, hash, key) {
            Known::Value(value) => Some(value),
            Known::Deleted => None,
            Known::Nothing => self.get_below(usize::MAX, namespace, hash, key),
        }
    }

    pub fn put(&mut self, namespace: i64, key: &[u8], value: &[u8]) {
        let hash = hash_key(key);
        let before = match self.active.get(namespace, hash, key) {
            Known::Value(value) => Some(value),
            Known::Deleted => None,
            Known::Nothing => self.get_below(usize::MAX, namespace, hash, key),
        };
        let before = before.map(<[u8]>::len);
        self.account(namespace, key, before, Some(value.len()));
        self.active.set(namespace, hash, key, Some(value));
    }

    pub fn delete(&mut self, namespace: i64, key: &[u8]) {
        let hash = hash_key(key);
        let noted = self.active.get(namespace, hash, key);
        let emptied = self
            .active
            .space(namespace)
            .is_some_and(|space| space.cleared);
        let below = match emptied {
            true => None,
            false => self.get_below(usize::MAX, namespace, hash, key),
        };
        let before = match noted {
            Known::Value(value) => Some(value.len()),
            Known::Deleted => None,
            Known::Nothing => below.map(<[u8]>::len),
        };
        // What no older layer has needs no tombstone.
        let needs_tombstone = below.is_some();
        self.account(namespace, key, before, None);
        match needs_tombstone {
            true => self.active.set(namespace, hash, key, None),
            false => self.active.forget(namespace, hash, key),
        }
    }

    /// Removes every entry of a namespace at once.
    pub fn clear_namespace(&mut self, namespace: i64) {
        self.live.remove(&namespace);
        let sealed = self
            .sealed
            .iter()
            .any(|(_, overlay)| overlay.space(namespace).is_some());
        match sealed || self.base.space(namespace).is_some() {
            true => self.active.clear_namespace(namespace),
            false => self.active.forget_namespace(namespace),
        }
    }

    /// The namespaces that have entries, in order.
    pub fn namespaces(&self) -> impl Iterator<Item = i64> + '_ {
        self.live.keys().copied()
    }

    /// The entries of a namespace, each once, in no particular order.
    pub fn for_each(&self, namespace: i64, visit: impl FnMut(&[u8], &[u8])) {
        visit_visible(&self.spaces(At::Live, namespace), visit);
    }

    /// Bytes of keys and values, and entries, as they are now.
    pub fn size(&self) -> (u64, u64) {
        self.live.values().fold((0, 0), |(bytes, entries), size| {
            (bytes + size.bytes, entries + size.entries)
        })
    }

    /// One value, as it is or was.
    pub fn get_at(&self, at: At, namespace: i64, key: &[u8]) -> Result<Option<&[u8]>, EpochGone> {
        self.check(at)?;
        Ok(match at {
            At::Live => self.get(namespace, key),
            At::Completed(_) => {
                self.get_below(self.sealed_up_to(at), namespace, hash_key(key), key)
            }
        })
    }

    /// All entries, as they are or were, by namespace and key. `None`: that state is no longer kept.
    pub fn entries(&self, at: At) -> Option<Vec<Entry<'_>>> {
        self.check(at).ok()?;
        let mut entries = Vec::new();
        for namespace in self.all_namespaces(at) {
            let first = entries.len();
            visit_visible(&self.spaces(at, namespace), |key, value| {
                entries.push((namespace, key, value));
            });
            entries[first..].sort_unstable_by_key(|(_, key, _)| *key);
        }
        Some(entries)
    }

    /// At most `limit` entries, as they are or were, by namespace and key, from after the one given.
    pub fn page(
        &self,
        at: At,
        after: Option<(i64, &[u8])>,
        limit: usize,
    ) -> Result<Vec<Entry<'_>>, EpochGone> {
        self.check(at)?;
        let mut page = Vec::new();
        let first = after.map_or(i64::MIN, |(namespace, _)| namespace);
        for namespace in self.all_namespaces(at).range(first..) {
            let left = limit - page.len();
            if left == 0 {
                break;
            }
            // The smallest keys: the greatest of those kept makes room for a smaller one.
            let mut kept = BinaryHeap::new();
            visit_visible(&self.spaces(at, *namespace), |key, value| {
                if after.is_some_and(|after| (*namespace, key) <= after) {
                    return;
                }
                kept.push((key, value));
                if kept.len() > left {
                    kept.pop();
                }
            });
            let kept = kept.into_sorted_vec().into_iter();
            page.extend(kept.map(|(key, value)| (*namespace, key, value)));
        }
        Ok(page)
    }

    /// Ends a checkpoint's time: what was written since the last one is its delta.
    pub fn seal(&mut self, checkpoint: CheckpointId) {
        let last = self
            .sealed
            .last()
            .map(|(sealed, _)| *sealed)
            .max(self.completed);
        assert!(
            last < Some(checkpoint),
            "checkpoint {checkpoint} is sealed after {last:?}"
        );
        if !self.active.is_empty() {
            let overlay = std::mem::take(&mut self.active);
            self.sealed.push((checkpoint, Arc::new(overlay)));
        }
    }

    /// What changed between this checkpoint and the one sealed before; `None`: nothing. Kept until a later
    /// one than this is completed.
    pub fn delta(&self, checkpoint: CheckpointId) -> Option<Arc<Overlay>> {
        self.sealed
            .iter()
            .find(|(sealed, _)| *sealed == checkpoint)
            .map(|(_, overlay)| Arc::clone(overlay))
    }

    /// The checkpoint is completed: nothing before it is ever asked for again. The state at the one
    /// completed before it becomes the base, so that readers who come a little late still find that.
    pub fn complete(&mut self, checkpoint: CheckpointId) {
        assert!(
            self.completed < Some(checkpoint),
            "checkpoint {checkpoint} is completed after {:?}",
            self.completed
        );
        if let Some(previous) = self.completed.replace(checkpoint) {
            let older = self
                .sealed
                .partition_point(|(sealed, _)| *sealed <= previous);
            for (_, overlay) in self.sealed.drain(..older) {
                self.base.merge(overlay);
            }
            self.base_at = Some(previous);
        }
    }

    /// Back to the state at a checkpoint: everything written since is gone.
    pub fn rollback(&mut self, checkpoint: CheckpointId) -> Result<(), EpochGone> {
        let at = At::Completed(checkpoint);
        self.check(at)?;
        self.active = Overlay::default();
        self.sealed.truncate(self.sealed_up_to(at));
        self.completed = self.completed.min(Some(checkpoint));
        self.live.clear();
        self.count();
        Ok(())
    }

    fn check(&self, at: At) -> Result<(), EpochGone> {
        match (at, self.base_at) {
            (At::Completed(asked), Some(oldest)) if asked < oldest => {
                Err(EpochGone { asked, oldest })
            }
            (At::Live | At::Completed(_), _) => Ok(()),
        }
    }

    /// How many of the sealed overlays belong to a state.
    fn sealed_up_to(&self, at: At) -> usize {
        match at {
            At::Live => self.sealed.len(),
            At::Completed(checkpoint) => self
                .sealed
                .partition_point(|(sealed, _)| *sealed <= checkpoint),
        }
    }

    /// Looks below the first `count` sealed overlays' newest.
    fn get_below(&self, count: usize, namespace: i64, hash: u64, key: &[u8]) -> Option<&[u8]> {
        let count = count.min(self.sealed.len());
        let sealed = self.sealed[..count].iter().rev();
        for known in sealed.map(|(_, overlay)| overlay.get(namespace, hash, key)) {
            match known {
                Known::Value(value) => return Some(value),
                Known::Deleted => return None,
                Known::Nothing => {}
            }
        }
        match self.base.get(namespace, hash, key) {
            Known::Value(value) => Some(value),
            Known::Deleted | Known::Nothing => None,
        }
    }

    /// What each layer has of a namespace, newest first, down to where it was emptied.
    fn spaces(&self, at: At, namespace: i64) -> Vec<&Space> {
        let active = match at {
            At::Live => self.active.space(namespace),
            At::Completed(_) => None,
        };
        let sealed = self.sealed[..self.sealed_up_to(at)].iter().rev();
        let mut spaces = Vec::new();
        let layers = active
            .into_iter()
            .chain(sealed.filter_map(|(_, overlay)| overlay.space(namespace)))
            .chain(self.base.space(namespace));
        for space in layers {
            spaces.push(space);
            if space.cleared {
                break;
            }
        }
        spaces
    }

    /// Every namespace that some layer of a state mentions.
    fn all_namespaces(&self, at: At) -> BTreeSet<i64> {
        let sealed = self.sealed[..self.sealed_up_to(at)].iter();
        let active = (at == At::Live).then_some(&self.active);
        let overlays = sealed.map(|(_, overlay)| &**overlay).chain(active);
        overlays
            .flat_map(Overlay::spaces)
            .chain(self.base.spaces())
            .map(|(namespace, _)| namespace)
            .collect()
    }

    /// Keeps `live` true for one key, whose value had and will have these lengths.
    fn account(&mut self, namespace: i64, key: &[u8], before: Option<usize>, after: Option<usize>) {
        if before.is_none() && after.is_none() {
            return;
        }
        let size = self.live.entry(namespace).or_default();
        if let Some(value) = before {
            size.entries -= 1;
            size.bytes -= as_u64(key.len() + value);
        }
        if let Some(value) = after {
            size.entries += 1;
            size.bytes += as_u64(key.len() + value);
        }
        if size.entries == 0 {
            self.live.remove(&namespace);
        }
    }

    fn count(&mut self) {
        for namespace in self.all_namespaces(At::Live) {
            let mut size = Size::default();
            visit_visible(&self.spaces(At::Live, namespace), |key, value| {
                size.entries += 1;
                size.bytes += as_u64(key.len() + value.len());
            });
            if size.entries > 0 {
                self.live.insert(namespace, size);
            }
        }
    }
}

/// Visits the entries that a stack of layers, newest first, shows.
fn visit_visible<'a>(spaces: &[&'a Space], mut visit: impl FnMut(&'a [u8], &'a [u8])) {
    for (depth, space) in spaces.iter().enumerate() {
        let newer = &spaces[..depth];
        for (key, value) in space.iter() {
            let Some(value) = value else { continue };
            let hidden = !newer.is_empty() && {
                let hash = hash_key(key);
                newer
                    .iter()
                    .any(|newer| newer.get(hash, key) != Known::Nothing)
            };
            if !hidden {
                visit(key, value);
            }
        }
    }
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).expect("a length fits into 64 bits")
}
