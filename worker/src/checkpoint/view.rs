//! The view of state in a `KvStore`: what completed checkpoints left, key by key.
//!
//! How it lies there is said in `view_layout`. A value over 1 MiB is not kept, only its length: who needs it
//! reads the base file.
//!
//! A fold writes entries one by one, flushes, writes the marker, flushes. Cut short anywhere, it leaves
//! entries that do not agree with the marker's digest, and the view of that task is built anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use common::ids::{CheckpointId, TaskId};
use common::key_group::key_group;
use common::kv::{Digest, KvError, KvStore, scan_prefix};

use super::changes::{Changes, stretches};
use super::state_error::StateError;
use super::view_answers::read_value;
use super::view_layout::{
    CATALOG, ENTRY, LENGTH, MARKER, PIECE, PREFIX, VERSION, catalog_key, cut, namespace_prefix,
    piece_count, piece_key, prefix, read_catalog, read_length, read_marker, stored_length,
};
use crate::keyed_state::overlay::{Change, Overlay};
use crate::keyed_state::section::TableId;
use crate::keyed_state::stored::LARGEST_STORED_VALUE;
use crate::keyed_state::table::StoredTable;

/// Keys that are removed at once.
const REMOVED_AT_ONCE: usize = 4_096;

/// The part of the store that is one task's, and what should be in it.
#[derive(Debug)]
pub(super) struct TaskView {
    store: Arc<dyn KvStore>,
    task: TaskId,
    at: Option<CheckpointId>,
    digest: Digest,
    tables: BTreeMap<TableId, u16>,
}

/// A view that was read back.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) view: TaskView,
    pub(super) tables: BTreeMap<TableId, StoredTable>,
}

/// Namespace, key, length and first piece of the value.
type VisitStored<'v> = &'v mut dyn FnMut(i64, &[u8], &[u8]);

/// How much of a view is brought into memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct InMemory<'a> {
    /// The operators whose tables may be in the view only; all others are read whole.
    pub(super) spilling: &'a BTreeSet<String>,
    /// About so many bytes of theirs are read all the same.
    pub(super) bytes: u64,
}

impl TaskView {
    /// Reads a task's view back. `None`: there is none, or it is not what was written,
    /// or it lacks a value that is too large for it.
    pub(super) fn load(
        store: &Arc<dyn KvStore>,
        task: TaskId,
        in_memory: InMemory<'_>,
    ) -> Result<Option<Loaded>, KvError> {
        let Some((at, expected)) = read_marker(&**store, task)? else {
            return Ok(None);
        };
        let mut digest = Digest::default();
        let mut ids = BTreeMap::new();
        let mut sound = true;
        scan_prefix(&**store, &prefix(CATALOG, task), &mut |key, value| {
            digest.add(key, value);
            match read_catalog(&key[PREFIX..], value) {
                Some((id, table)) => drop(ids.insert(id, table)),
                None => sound = false,
            }
            ControlFlow::Continue(())
        })?;
        let mut reading = Reading {
            ids: &ids,
            in_memory,
            tables: BTreeMap::new(),
            cut: Vec::new(),
            bytes: 0,
        };
        scan_prefix(&**store, &prefix(ENTRY, task), &mut |key, value| {
            digest.add(key, value);
            sound = sound && reading.entry(&key[PREFIX..], value).is_some();
            ControlFlow::Continue(())
        })?;
        scan_prefix(&**store, &prefix(PIECE, task), &mut |key, value| {
            digest.add(key, value);
            ControlFlow::Continue(())
        })?;
        if digest != expected || !sound {
            return Ok(None);
        }
        let Reading {
            mut tables, cut, ..
        } = reading;
        for (id, namespace, key) in cut {
            let Some(value) = read_value(&**store, task, id, namespace, &key)? else {
                return Ok(None);
            };
            let table = tables.entry(ids[&id].clone()).or_default();
            table.entries.put(namespace, &key, &value);
        }
        let view = TaskView {
            store: Arc::clone(store),
            task,
            at: Some(at),
            digest,
            tables: ids.into_iter().map(|(id, table)| (table, id)).collect(),
        };
        Ok(Some(Loaded { view, tables }))
    }

    /// Removes whatever the store has of a task, to begin anew.
    pub(super) fn begin(store: &Arc<dyn KvStore>, task: TaskId) -> Result<TaskView, KvError> {
        // The marker first: without it the rest does not count.
        store.delete(&prefix(MARKER, task))?;
        for kind in [CATALOG, ENTRY, PIECE] {
            remove_all(&**store, &prefix(kind, task), &mut |_, _| ())?;
        }
        Ok(TaskView {
            store: Arc::clone(store),
            task,
            at: None,
            digest: Digest::default(),
            tables: BTreeMap::new(),
        })
    }

    /// The checkpoint it is at.
    pub(super) fn at(&self) -> Option<CheckpointId> {
        self.at
    }

    /// Applies everything that changed up to a checkpoint, durably. After an error the view is of no use.
    pub(super) fn fold(
        &mut self,
        to: CheckpointId,
        changes: &Changes<'_>,
    ) -> Result<(), StateError> {
        for table in changes.tables() {
            for namespace in changes.cleared(table) {
                self.clear(table, namespace)?;
            }
            for stretch in changes.stretches(table) {
                for change in changes.read(table, &stretch)?.sorted(1) {
                    self.set(table, change)?;
                }
            }
        }
        Ok(self.mark(to)?)
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = &TableId> {
        self.tables.keys()
    }

    /// All key groups in stretches of which one fits into memory; `None`: some value is too large to be
    /// kept here. Reads every entry of the table.
    pub(super) fn stretches(
        &self,
        table: &TableId,
        key_groups: u16,
    ) -> Result<Option<Vec<RangeInclusive<u16>>>, KvError> {
        let mut bytes: BTreeMap<u16, u64> = BTreeMap::new();
        let mut whole = true;
        self.for_each(table, &mut |_, key, first| {
            let length = read_length(first).unwrap_or(usize::MAX);
            whole &= length <= LARGEST_STORED_VALUE;
            let group = bytes.entry(key_group(key, key_groups).0).or_default();
            *group += as_u64(key.len().saturating_add(length));
        })?;
        Ok(whole.then(|| stretches(bytes)))
    }

    /// What it has of a table in a stretch of key groups. Reads every entry of the table.
    pub(super) fn read(
        &self,
        table: &TableId,
        key_groups: u16,
        wanted: &RangeInclusive<u16>,
    ) -> Result<Overlay, KvError> {
        let mut found = Overlay::default();
        let mut cut = Vec::new();
        self.for_each(table, &mut |namespace, key, first| {
            if !wanted.contains(&key_group(key, key_groups).0) {
                return;
            }
            match piece_count(read_length(first).unwrap_or(0)) {
                1 => found.put(namespace, key, first.get(LENGTH..).unwrap_or_default()),
                _ => cut.push((namespace, key.to_vec())),
            }
        })?;
        for (namespace, key) in cut {
            let id = self.tables[table];
            let value = read_value(&*self.store, self.task, id, namespace, &key)?;
            found.put(namespace, &key, &value.unwrap_or_default());
        }
        Ok(found)
    }

    /// Visits the entries of a table.
    fn for_each(&self, table: &TableId, visit: VisitStored<'_>) -> Result<(), KvError> {
        let mut prefix = prefix(ENTRY, self.task);
        prefix.extend_from_slice(&self.tables[table].to_be_bytes());
        scan_prefix(&*self.store, &prefix, &mut |key, value| {
            if let Some((namespace, key)) = key[prefix.len()..].split_first_chunk::<8>() {
                visit(i64::from_be_bytes(*namespace) ^ i64::MIN, key, value);
            }
            ControlFlow::Continue(())
        })
    }

    /// Says that what was set until now is the state at a checkpoint, durably.
    pub(super) fn mark(&mut self, at: CheckpointId) -> Result<(), KvError> {
        self.store.flush()?;
        let marker = [&[VERSION][..], &at.0.to_be_bytes(), &self.digest.to_bytes()].concat();
        self.store.put(&prefix(MARKER, self.task), &marker)?;
        self.store.flush()?;
        self.at = Some(at);
        Ok(())
    }

    /// Writes one entry, or deletes it.
    pub(super) fn set(&mut self, table: &TableId, change: Change<'_>) -> Result<(), KvError> {
        let id = self.table(table)?;
        let mut key = namespace_prefix(ENTRY, self.task, id, change.namespace);
        key.extend_from_slice(change.key);
        let (before, pieces) = match change.value {
            None => (self.delete(&key)?, 1),
            Some(value) => {
                let pieces = cut(value);
                let first = [&stored_length(value).to_be_bytes()[..], pieces[0]].concat();
                let before = self.put(&key, &first)?;
                for (number, piece) in pieces.iter().enumerate().skip(1) {
                    let key = piece_key(self.task, id, change.namespace, change.key, number);
                    self.put(&key, piece)?;
                }
                (before, pieces.len())
            }
        };
        // What a larger value had beyond the new one.
        let before = before.map_or(0, |first| piece_count(read_length(&first).unwrap_or(0)));
        for number in pieces..before {
            let key = piece_key(self.task, id, change.namespace, change.key, number);
            self.delete(&key)?;
        }
        Ok(())
    }

    fn clear(&mut self, table: &TableId, namespace: i64) -> Result<(), KvError> {
        let id = self.table(table)?;
        let digest = &mut self.digest;
        for kind in [ENTRY, PIECE] {
            let prefix = namespace_prefix(kind, self.task, id, namespace);
            remove_all(&*self.store, &prefix, &mut |key, value| {
                digest.remove(key, value)
            })?;
        }
        Ok(())
    }

    /// The number of a table, which it gets when it is first written.
    fn table(&mut self, table: &TableId) -> Result<u16, KvError> {
        if let Some(id) = self.tables.get(table) {
            return Ok(*id);
        }
        let id = u16::try_from(self.tables.len()).expect("a task has few tables");
        self.put(&catalog_key(self.task, table), &id.to_be_bytes())?;
        self.tables.insert(table.clone(), id);
        Ok(id)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<Option<bytes::Bytes>, KvError> {
        let before = self.store.put(key, value)?;
        if let Some(before) = &before {
            self.digest.remove(key, before);
        }
        self.digest.add(key, value);
        Ok(before)
    }

    fn delete(&mut self, key: &[u8]) -> Result<Option<bytes::Bytes>, KvError> {
        let before = self.store.delete(key)?;
        if let Some(before) = &before {
            self.digest.remove(key, before);
        }
        Ok(before)
    }
}

/// Entries being read back, as many as there is memory for.
struct Reading<'a> {
    ids: &'a BTreeMap<u16, TableId>,
    in_memory: InMemory<'a>,
    tables: BTreeMap<TableId, StoredTable>,
    /// Entries of more than one piece, which are still to be read.
    cut: Vec<(u16, i64, Vec<u8>)>,
    bytes: u64,
}

impl Reading<'_> {
    /// Takes the next entry; `None` if it is none, or is not kept here.
    fn entry(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let (id, key) = key.split_first_chunk::<2>()?;
        let (namespace, key) = key.split_first_chunk::<8>()?;
        let id = u16::from_be_bytes(*id);
        let namespace = i64::from_be_bytes(*namespace) ^ i64::MIN;
        let length = read_length(value).filter(|length| *length <= LARGEST_STORED_VALUE)?;
        let table = self.ids.get(&id)?;
        if !self.tables.contains_key(table) {
            self.tables.insert(table.clone(), StoredTable::default());
        }
        let stored = self.tables.get_mut(table).expect("it was just put there");
        let bytes = as_u64(key.len() + length);
        let size = stored.sizes.entry(namespace).or_default();
        *size = (size.0 + bytes, size.1 + 1);
        let spills = self.in_memory.spilling.contains(&table.operator);
        if spills {
            if self.bytes + bytes > self.in_memory.bytes {
                return Some(());
            }
            self.bytes += bytes;
        }
        match piece_count(length) {
            1 => stored.entries.put(namespace, key, &value[LENGTH..]),
            _ => self.cut.push((id, namespace, key.to_vec())),
        }
        Some(())
    }
}

fn remove_all(
    store: &dyn KvStore,
    prefix: &[u8],
    removed: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), KvError> {
    loop {
        let mut keys = Vec::new();
        scan_prefix(store, prefix, &mut |key, _| {
            keys.push(key.to_vec());
            match keys.len() < REMOVED_AT_ONCE {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        for key in &keys {
            if let Some(value) = store.delete(key)? {
                removed(key, &value);
            }
        }
        if keys.len() < REMOVED_AT_ONCE {
            return Ok(());
        }
    }
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).expect("a length fits into 64 bits")
}
