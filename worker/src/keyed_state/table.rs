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
//!
//! A table that spills need not fit into memory. A store is told of every completed checkpoint (`folded`),
//! and what the base has in common with it may be forgotten (`evict`). Before such an entry is read or
//! written its owner asks whether it is here (`is_known`), gets it from the store, and gives it back
//! (`load`). Reads answer at once or not at all: whoever has not asked is stopped.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use common::ids::CheckpointId;
use common::key_group::hash_key;

use super::base::Base;
pub use super::overlay::Overlay;
use super::space::{Known, Space, Stamp};
use super::stored::{Answer, Ask, AskRange, StoredRange};

#[derive(Debug)]
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
    /// The same as each checkpoint has it that can be returned to.
    sizes: Vec<(CheckpointId, BTreeMap<i64, Size>)>,
    /// What each checkpoint's changes are stamped with, as long as the store does not have them.
    unfolded: Vec<(CheckpointId, Stamp)>,
}

/// What a store was found to have of a table.
#[derive(Debug, Default)]
pub struct StoredTable {
    /// Part of it, for as much as there is memory for.
    pub entries: Overlay,
    /// Bytes of keys and values, and entries, of each namespace; all of them.
    pub sizes: BTreeMap<i64, (u64, u64)>,
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

/// An entry of a namespace.
pub type KeyValue<'a> = (&'a [u8], &'a [u8]);

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

/// The first stamp of a table; what was read from a store has a smaller one.
const FIRST: Stamp = 1;

/// Checkpoints that are kept apart although no store has them.
const MANY_UNFOLDED: usize = 1_024;

impl Default for Table {
    fn default() -> Table {
        Table {
            base: Base::default(),
            base_at: None,
            sealed: Vec::new(),
            active: Overlay::stamped(FIRST),
            completed: None,
            live: BTreeMap::new(),
            sizes: Vec::new(),
            unfolded: Vec::new(),
        }
    }
}

impl Table {
    /// The table whose state at a completed checkpoint is what these changes of an empty one make.
    pub fn restored(at: CheckpointId, state: Overlay) -> Table {
        let mut table = Table::at(at);
        table.take_base(at, state);
        table.count();
        table.sizes.push((at, table.live.clone()));
        table
    }

    /// The table whose state at a completed checkpoint is what a store has and what changed since then. The
    /// store answers what is not in memory.
    pub fn restored_from_store<E>(
        at: CheckpointId,
        stored: StoredTable,
        changes: Overlay,
        ask: &mut dyn FnMut(Ask) -> Result<Answer, E>,
    ) -> Result<Table, E> {
        let mut table = Table::at(at);
        table.spill();
        let mut spaces = stored.entries.into_spaces();
        for (namespace, (bytes, entries)) in stored.sizes {
            let space = spaces.remove(&namespace).unwrap_or_default();
            let missing = as_u64(space.len()) < entries;
            table.base.restore(namespace, space, missing);
            table.live.insert(namespace, Size { bytes, entries });
        }
        // What is overwritten has to be known for the sizes.
        let mut missing = Vec::new();
        for (namespace, changed) in changes.spaces() {
            if !changed.cleared {
                let keys = changed.iter().map(|(key, _)| key);
                missing.extend(table.unknown(keys.map(|key| (namespace, key))));
            }
        }
        if !missing.is_empty() {
            table.load(ask(Ask::Keys(missing))?);
        }
        for (namespace, changed) in changes.spaces() {
            if changed.cleared {
                table.live.remove(&namespace);
            }
            for (key, value) in changed.iter() {
                let before = match changed.cleared {
                    true => None,
                    false => table.get(namespace, key).map(<[u8]>::len),
                };
                table.account(namespace, key, before, value.map(<[u8]>::len));
            }
        }
        table.take_base(at, changes);
        table.sizes.push((at, table.live.clone()));
        Ok(table)
    }

    fn at(at: CheckpointId) -> Table {
        Table {
            base_at: Some(at),
            completed: Some(at),
            ..Table::default()
        }
    }

    /// Applies changes that led to the state at the checkpoint it begins with.
    fn take_base(&mut self, at: CheckpointId, mut changes: Overlay) {
        changes.restamp(FIRST);
        self.base.merge(Arc::new(changes));
        self.unfolded.push((at, FIRST));
        self.active = Overlay::stamped(FIRST + 1);
    }

    /// From now on a store is told of every completed checkpoint, and the table may let go of what it has.
    pub fn spill(&mut self) {
        self.base.spill();
    }

    pub fn get(&self, namespace: i64, key: &[u8]) -> Option<&[u8]> {
        value_of(self.look(At::Live, namespace, hash_key(key), key))
    }

    /// Whether a key can be read and written without asking the store.
    pub fn is_known(&self, namespace: i64, key: &[u8]) -> bool {
        self.look(At::Live, namespace, hash_key(key), key) != Known::Stored
    }

    /// Which of these keys the store has to be asked for.
    pub fn unknown<'k>(
        &self,
        keys: impl IntoIterator<Item = (i64, &'k [u8])>,
    ) -> Vec<(i64, Vec<u8>)> {
        let unknown = keys
            .into_iter()
            .filter(|(namespace, key)| !self.is_known(*namespace, key));
        unknown
            .map(|(namespace, key)| (namespace, key.to_vec()))
            .collect()
    }

    /// What the store answered, for the next calls; it stays until something is evicted.
    pub fn load(&mut self, answer: Answer) {
        let Answer::Keys(keys) = answer else {
            panic!("a range is read as it comes");
        };
        for (namespace, key, value) in keys {
            let hash = hash_key(&key);
            self.base.load(namespace, hash, &key, value.as_deref());
        }
    }

    pub fn put(&mut self, namespace: i64, key: &[u8], value: &[u8]) {
        let hash = hash_key(key);
        let before = value_of(self.look(At::Live, namespace, hash, key)).map(<[u8]>::len);
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
            true => Known::Nothing,
            false => self.get_below(usize::MAX, namespace, hash, key),
        };
        let before = match noted {
            Known::Nothing | Known::Stored => value_of(below),
            noted => value_of(noted),
        };
        let before = before.map(<[u8]>::len);
        // What no older layer has needs no tombstone.
        let needs_tombstone = matches!(below, Known::Value(_) | Known::Stored);
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
        match sealed || self.base.has(namespace) {
            true => self.active.clear_namespace(namespace),
            false => self.active.forget_namespace(namespace),
        }
    }

    /// The namespaces that have entries, in order.
    pub fn namespaces(&self) -> impl Iterator<Item = i64> + '_ {
        self.live.keys().copied()
    }

    /// Whether a namespace has entries.
    pub fn has_namespace(&self, namespace: i64) -> bool {
        self.live.contains_key(&namespace)
    }

    /// The entries of a namespace, each once, in no particular order.
    pub fn for_each(&self, namespace: i64, visit: impl FnMut(&[u8], &[u8])) {
        assert!(
            self.is_whole(At::Live, namespace),
            "the store was not asked for namespace {namespace}"
        );
        visit_visible(&self.spaces(At::Live, namespace), visit);
    }

    /// Whether all entries of a namespace are in memory.
    pub fn is_whole(&self, at: At, namespace: i64) -> bool {
        let emptied = self.spaces(at, namespace).iter().any(|space| space.cleared);
        emptied || !self.base.is_stored(namespace)
    }

    /// What to ask the store for, to go over these namespaces together in the order of their keys;
    /// `None`: they are all in memory.
    pub fn ask_range(
        &self,
        at: At,
        namespaces: impl IntoIterator<Item = i64>,
        after: Option<&[u8]>,
        bytes: usize,
    ) -> Option<AskRange> {
        let stored = namespaces
            .into_iter()
            .filter(|namespace| !self.is_whole(at, *namespace));
        let namespaces: Vec<i64> = stored.collect();
        (!namespaces.is_empty()).then(|| AskRange {
            namespaces,
            after: after.map(<[u8]>::to_vec),
            bytes,
        })
    }

    /// Visits the entries of a namespace whose keys are in the range the store answered, after `after`, in
    /// no particular order. The answer is of this moment: nothing was evicted since it was asked for.
    pub fn for_each_in<'t>(
        &'t self,
        at: At,
        namespace: i64,
        after: Option<&[u8]>,
        range: &'t StoredRange,
        mut visit: impl FnMut(&'t [u8], &'t [u8]),
    ) {
        let wanted =
            |key: &[u8]| after.is_none_or(|after| key > after) && range.until.includes(key);
        visit_visible(&self.spaces(at, namespace), |key, value| {
            if wanted(key) {
                visit(key, value);
            }
        });
        if self.is_whole(at, namespace) {
            return;
        }
        let of_namespace = (namespace, Vec::new())..;
        for ((_, key), value) in range
            .entries
            .range(of_namespace)
            .take_while(|((of, _), _)| *of == namespace)
        {
            if wanted(key) && self.look(at, namespace, hash_key(key), key) == Known::Stored {
                visit(key, value);
            }
        }
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
        Ok(value_of(self.look(at, namespace, hash_key(key), key)))
    }

    /// What to ask the store for before `get_at`; `None`: nothing.
    pub fn ask_key(&self, at: At, namespace: i64, key: &[u8]) -> Option<Ask> {
        let known = self.look(at, namespace, hash_key(key), key);
        (known == Known::Stored).then(|| Ask::Keys(vec![(namespace, key.to_vec())]))
    }

    /// The namespaces that a state may have entries of, from this one.
    pub fn namespaces_at(&self, at: At, from: i64) -> Result<Vec<i64>, EpochGone> {
        self.check(at)?;
        Ok(self.all_namespaces(at).range(from..).copied().collect())
    }

    /// All entries, as they are or were, by namespace and key, of a table that is in memory. `None`: that
    /// state is no longer kept.
    pub fn entries(&self, at: At) -> Option<Vec<Entry<'_>>> {
        self.check(at).ok()?;
        let mut entries = Vec::new();
        for namespace in self.all_namespaces(at) {
            let first = entries.len();
            assert!(self.is_whole(at, namespace), "the table is in memory");
            visit_visible(&self.spaces(at, namespace), |key, value| {
                entries.push((namespace, key, value));
            });
            entries[first..].sort_unstable_by_key(|(_, key, _)| *key);
        }
        Some(entries)
    }

    /// At most `limit` entries of a namespace as they are or were, by key, from after the one given. What is
    /// not in memory is in the range the store answered.
    pub fn page<'t>(
        &'t self,
        at: At,
        namespace: i64,
        after: Option<&[u8]>,
        range: &'t StoredRange,
        limit: usize,
    ) -> Result<Vec<KeyValue<'t>>, EpochGone> {
        self.check(at)?;
        // The smallest keys: the greatest of those kept makes room for a smaller one.
        let mut kept = BinaryHeap::new();
        self.for_each_in(at, namespace, after, range, |key, value| {
            kept.push((key, value));
            if kept.len() > limit {
                kept.pop();
            }
        });
        Ok(kept.into_sorted_vec())
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
            let stamp = self.active.stamp();
            let next = stamp
                .checked_add(1)
                .expect("a generation has fewer than 2^32 checkpoints");
            let overlay = std::mem::replace(&mut self.active, Overlay::stamped(next));
            self.sealed.push((checkpoint, Arc::new(overlay)));
            if self.base.spills() {
                self.unfolded.push((checkpoint, stamp));
            }
        }
        self.sizes.push((checkpoint, self.live.clone()));
    }

    /// Takes what another worker's table of the same task sealed at a checkpoint, after the same past.
    pub fn seal_as_there(&mut self, checkpoint: CheckpointId, changes: &Overlay) {
        assert!(
            self.active.is_empty(),
            "a copy is written by its original only"
        );
        for (namespace, changed) in changes.spaces() {
            if changed.cleared {
                self.clear_namespace(namespace);
            }
            for (key, value) in changed.iter() {
                match value {
                    Some(value) => self.put(namespace, key, value),
                    None => self.delete(namespace, key),
                }
            }
        }
        self.seal(checkpoint);
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
            let oldest = self
                .sizes
                .partition_point(|(sealed, _)| *sealed <= previous);
            self.sizes.drain(..oldest.saturating_sub(1));
            self.gather_unfolded(previous);
        }
    }

    /// Where nobody tells how far a store is, as in a copy of a table elsewhere, many checkpoints become one.
    fn gather_unfolded(&mut self, base_at: CheckpointId) {
        let in_base = self
            .unfolded
            .partition_point(|(sealed, _)| *sealed <= base_at);
        if in_base > MANY_UNFOLDED {
            self.unfolded.drain(..in_base - 1);
        }
    }

    /// The store has everything up to this checkpoint, and nothing that was sealed after it. It is one whose
    /// state the base is at least. Answers whether that is news.
    pub fn folded(&mut self, checkpoint: CheckpointId) -> bool {
        let known = self
            .unfolded
            .partition_point(|(sealed, _)| *sealed <= checkpoint);
        let Some((sealed, stamp)) = self.unfolded.drain(..known).next_back() else {
            return false;
        };
        assert!(
            Some(sealed) <= self.base_at,
            "checkpoint {sealed} was folded while {:?} may still be read",
            self.base_at
        );
        self.base.folded(stamp);
        true
    }

    /// Whether the store has all there is.
    pub fn is_folded(&self) -> bool {
        self.active.is_empty() && self.unfolded.is_empty()
    }

    /// The first checkpoint with changes that the store does not have.
    pub fn first_unfolded(&self) -> Option<CheckpointId> {
        self.unfolded.first().map(|(sealed, _)| *sealed)
    }

    /// Gives back about so many bytes of memory, as far as the store has what is in them. A little at a time: answers
    /// whether there is to be another one.
    pub fn evict(&mut self, bytes: u64) -> bool {
        self.base.evict(bytes)
    }

    /// Whether it has let go of anything that it would have to read back.
    pub fn needs_store(&self) -> bool {
        self.base.any_stored()
    }

    /// Grows whenever something was let go: what the store answered before may be outdated.
    pub fn evictions(&self) -> u64 {
        self.base.evictions()
    }

    /// Bytes of memory it takes.
    pub fn footprint(&self) -> u64 {
        let sealed = self.sealed.iter().map(|(_, overlay)| overlay.footprint());
        self.base.footprint() + sealed.sum::<u64>() + self.active.footprint()
    }

    /// Back to the state at a completed checkpoint: everything written since is gone. What a store has of it
    /// is of that checkpoint or an earlier one.
    pub fn rollback(&mut self, checkpoint: CheckpointId) -> Result<(), EpochGone> {
        let at = At::Completed(checkpoint);
        self.check(at)?;
        self.active = Overlay::stamped(self.active.stamp());
        self.sealed.truncate(self.sealed_up_to(at));
        self.unfolded.retain(|(sealed, _)| *sealed <= checkpoint);
        let known = self
            .sizes
            .partition_point(|(sealed, _)| *sealed <= checkpoint);
        self.sizes.truncate(known);
        let sizes = self.sizes.last().map(|(_, sizes)| sizes.clone());
        self.live = sizes.unwrap_or_default();
        self.completed = self.completed.min(Some(checkpoint));
        if self.completed < Some(checkpoint) {
            self.complete(checkpoint);
        }
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

    /// What a state says of a key: never `Nothing` but for no value.
    fn look(&self, at: At, namespace: i64, hash: u64, key: &[u8]) -> Known<'_> {
        if at == At::Live {
            match self.active.get(namespace, hash, key) {
                Known::Nothing => {}
                known => return known,
            }
        }
        self.get_below(self.sealed_up_to(at), namespace, hash, key)
    }

    /// Looks below the first `count` sealed overlays' newest.
    fn get_below(&self, count: usize, namespace: i64, hash: u64, key: &[u8]) -> Known<'_> {
        let count = count.min(self.sealed.len());
        let sealed = self.sealed[..count].iter().rev();
        for known in sealed.map(|(_, overlay)| overlay.get(namespace, hash, key)) {
            match known {
                Known::Nothing => {}
                known => return known,
            }
        }
        self.base.get(namespace, hash, key)
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
            .map(|(namespace, _)| namespace)
            .chain(self.base.namespaces())
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

fn value_of(known: Known<'_>) -> Option<&[u8]> {
    match known {
        Known::Value(value) => Some(value),
        Known::Deleted | Known::Nothing => None,
        Known::Stored => panic!("a key was used that the store was not asked for"),
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
