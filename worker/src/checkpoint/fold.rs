//! The view of state in a `KvStore`: what completed checkpoints left, key by key.
//!
//! ```text
//! 0 | task                                                   → version u8, checkpoint u64, digest  the marker
//! 1 | task | operator 0 table                                → table u16
//! 2 | task | table | namespace | key                         → length u32, value or its first piece
//! 3 | task | table | namespace | key length u32 | key | piece u16 → piece
//! ```
//!
//! Entries stand in the order of their keys, so a stretch of them can be read as it is wanted. A value of up
//! to 4 KiB is one piece, a larger one is cut, and its further pieces are elsewhere. A value over 1 MiB is
//! not kept here, only its length: who needs it reads the base file.
//!
//! A fold writes entries one by one, flushes, writes the marker, flushes. Cut short anywhere, it leaves
//! entries that do not agree with the marker's digest, and the view of that task is built anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use common::ids::{CheckpointId, TaskId};
use common::key_group::key_group;
use common::kv::{Digest, KvError, KvStore, after_prefix, scan_prefix};

use super::changes::{Changes, stretches};
use super::state_store::StateError;
use crate::keyed_state::overlay::{Change, Overlay};
use crate::keyed_state::section::TableId;
use crate::keyed_state::stored::{Answer, Ask, AskRange, LARGEST_STORED_VALUE, StoredRange, Until};
use crate::keyed_state::table::StoredTable;

/// Of the layout above.
const VERSION: u8 = 2;
const MARKER: u8 = 0;
const CATALOG: u8 = 1;
const ENTRY: u8 = 2;
const PIECE: u8 = 3;
const WHOLE_BYTES: usize = 4 << 10;
const PIECE_BYTES: usize = 2 << 10;
const LENGTH: usize = 4;
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
                let first = [&as_u32(value.len()).to_be_bytes()[..], pieces[0]].concat();
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

/// What a task's view has of a table.
pub(super) fn answer(
    store: &dyn KvStore,
    task: TaskId,
    table: &TableId,
    ask: Ask,
) -> Result<Answer, KvError> {
    let id = store.get(&catalog_key(task, table))?;
    let Some(id) = id.and_then(|id| Some(u16::from_be_bytes(id[..].try_into().ok()?))) else {
        // Nothing was ever folded of it.
        return Ok(match ask {
            Ask::Keys(keys) => Answer::Keys(keys.into_iter().map(|(n, k)| (n, k, None)).collect()),
            Ask::Range(_) => Answer::Range(StoredRange::default()),
        });
    };
    match ask {
        Ask::Keys(mut keys) => {
            // Neighbours are on the same pages.
            keys.sort_unstable();
            let mut found = Vec::with_capacity(keys.len());
            for (namespace, key) in keys {
                let value = read_value(store, task, id, namespace, &key)?;
                found.push((namespace, key, value));
            }
            Ok(Answer::Keys(found))
        }
        Ask::Range(ask) => Ok(Answer::Range(read_range(store, task, id, &ask)?)),
    }
}

/// Reads on in each namespace until there are enough bytes; the range ends where the first of them does.
fn read_range(
    store: &dyn KvStore,
    task: TaskId,
    table: u16,
    ask: &AskRange,
) -> Result<StoredRange, KvError> {
    let mut range = StoredRange::default();
    let enough = ask.bytes / ask.namespaces.len().max(1);
    for namespace in &ask.namespaces {
        let prefix = namespace_prefix(ENTRY, task, table, *namespace);
        let end = after_prefix(&prefix);
        let mut start = prefix.clone();
        if let Some(after) = &ask.after {
            // The next key in order is this one and a zero.
            start.extend_from_slice(after);
            start.push(0);
        }
        let (mut bytes, mut cut) = (0, Vec::new());
        let until = &mut range.until;
        let entries = &mut range.entries;
        store.scan(&start, end.as_deref(), &mut |key, value| {
            let key = &key[prefix.len()..];
            if !until.includes(key) {
                return ControlFlow::Break(());
            }
            let length = read_length(value).unwrap_or(0);
            match piece_count(length) {
                1 => {
                    let value = value.get(LENGTH..).unwrap_or_default().to_vec();
                    drop(entries.insert((*namespace, key.to_vec()), value));
                }
                _ => cut.push(key.to_vec()),
            }
            bytes += key.len() + length;
            if bytes >= enough {
                *until = Until::Key(key.to_vec());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        for key in cut {
            if let Some(value) = read_value(store, task, table, *namespace, &key)? {
                range.entries.insert((*namespace, key), value);
            }
        }
    }
    Ok(range)
}

fn read_value(
    store: &dyn KvStore,
    task: TaskId,
    table: u16,
    namespace: i64,
    key: &[u8],
) -> Result<Option<Vec<u8>>, KvError> {
    let mut entry = namespace_prefix(ENTRY, task, table, namespace);
    entry.extend_from_slice(key);
    let Some(first) = store.get(&entry)? else {
        return Ok(None);
    };
    let mut value = first.get(LENGTH..).unwrap_or_default().to_vec();
    for number in 1..piece_count(read_length(&first).unwrap_or(0)) {
        let piece = store.get(&piece_key(task, table, namespace, key, number))?;
        value.extend_from_slice(&piece.unwrap_or_default());
    }
    Ok(Some(value))
}

/// A kind and a task, which every key begins with.
const PREFIX: usize = 7;

fn prefix(kind: u8, task: TaskId) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.push(kind);
    key.extend_from_slice(&task.stage.0.to_be_bytes());
    key.extend_from_slice(&task.index.to_be_bytes());
    key
}

fn namespace_prefix(kind: u8, task: TaskId, table: u16, namespace: i64) -> Vec<u8> {
    let mut key = prefix(kind, task);
    key.extend_from_slice(&table.to_be_bytes());
    key.extend_from_slice(&(namespace ^ i64::MIN).to_be_bytes());
    key
}

fn piece_key(task: TaskId, table: u16, namespace: i64, key: &[u8], number: usize) -> Vec<u8> {
    let number = u16::try_from(number).expect("a value has few pieces");
    let mut piece = namespace_prefix(PIECE, task, table, namespace);
    piece.extend_from_slice(&as_u32(key.len()).to_be_bytes());
    piece.extend_from_slice(key);
    piece.extend_from_slice(&number.to_be_bytes());
    piece
}

fn catalog_key(task: TaskId, table: &TableId) -> Vec<u8> {
    let mut key = prefix(CATALOG, task);
    key.extend_from_slice(table.operator.as_bytes());
    key.push(0);
    key.extend_from_slice(table.table.as_bytes());
    key
}

fn read_marker(
    store: &dyn KvStore,
    task: TaskId,
) -> Result<Option<(CheckpointId, Digest)>, KvError> {
    let Some(marker) = store.get(&prefix(MARKER, task))? else {
        return Ok(None);
    };
    let digest = marker.strip_prefix(&[VERSION]);
    let Some((at, digest)) = digest.and_then(|rest| rest.split_first_chunk::<8>()) else {
        return Ok(None);
    };
    let digest = <[u8; Digest::BYTES]>::try_from(digest).map(Digest::from_bytes);
    Ok(digest
        .ok()
        .map(|digest| (CheckpointId(u64::from_be_bytes(*at)), digest)))
}

fn read_catalog(name: &[u8], id: &[u8]) -> Option<(u16, TableId)> {
    let end = name.iter().position(|byte| *byte == 0)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let table = TableId {
        operator: text(&name[..end])?,
        table: text(&name[end + 1..])?,
    };
    Some((u16::from_be_bytes(id.try_into().ok()?), table))
}

fn read_length(first_piece: &[u8]) -> Option<usize> {
    let (length, _) = first_piece.split_first_chunk::<LENGTH>()?;
    Some(u32::from_be_bytes(*length) as usize)
}

/// The pieces of a value, at least one.
fn cut(value: &[u8]) -> Vec<&[u8]> {
    match piece_count(value.len()) {
        1 if value.len() > LARGEST_STORED_VALUE => vec![&[]],
        1 => vec![value],
        _ => value.chunks(PIECE_BYTES).collect(),
    }
}

fn piece_count(value_bytes: usize) -> usize {
    if value_bytes <= WHOLE_BYTES - LENGTH || value_bytes > LARGEST_STORED_VALUE {
        1
    } else {
        value_bytes.div_ceil(PIECE_BYTES)
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

fn as_u32(number: usize) -> u32 {
    u32::try_from(number).expect("keys and values have less than 4 GiB")
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).expect("a length fits into 64 bits")
}
