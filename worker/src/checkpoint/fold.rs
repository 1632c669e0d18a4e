//! The view of state in a `KvStore`: what completed checkpoints left, key by key.
//!
//! ```text
//! 0 | task                                                   → checkpoint u64, digest    the marker
//! 1 | task | operator 0 table                                → table u16
//! 2 | task | table | namespace | key length u32 | key | piece u16 → piece
//! ```
//!
//! A value of up to 4 KiB is one piece, a larger one is cut; the first piece begins with the value's length.
//! A value over 1 MiB is not kept here, only its length: who needs it reads the base file.
//!
//! A fold writes entries one by one, flushes, writes the marker, flushes. Cut short anywhere, it leaves
//! entries that do not agree with the marker's digest, and the view of that task is built anew.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use common::ids::{CheckpointId, TaskId};
use common::kv::{Digest, KvError, KvStore, scan_prefix};

use crate::keyed_state::overlay::{Change, Overlay};
use crate::keyed_state::section::TableId;

const MARKER: u8 = 0;
const CATALOG: u8 = 1;
const ENTRY: u8 = 2;
const WHOLE_BYTES: usize = 4 << 10;
const PIECE_BYTES: usize = 2 << 10;
const LARGEST_VALUE: usize = 1 << 20;
const LENGTH: usize = 4;

/// The part of the store that is one task's, and what should be in it.
#[derive(Debug)]
pub(super) struct TaskView {
    store: Arc<dyn KvStore>,
    task: TaskId,
    at: Option<CheckpointId>,
    digest: Digest,
    tables: BTreeMap<TableId, u16>,
}

/// A view that was read back, with all it has.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) view: TaskView,
    pub(super) tables: BTreeMap<TableId, Overlay>,
}

impl TaskView {
    /// Reads a task's view back. `None`: there is none, or it is not what was written,
    /// or it lacks a value that is too large for it.
    pub(super) fn load(store: &Arc<dyn KvStore>, task: TaskId) -> Result<Option<Loaded>, KvError> {
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
        let mut reading = Reading::default();
        scan_prefix(&**store, &prefix(ENTRY, task), &mut |key, value| {
            digest.add(key, value);
            sound = sound && reading.piece(&key[PREFIX..], value).is_some();
            ControlFlow::Continue(())
        })?;
        let whole = sound && reading.end().is_some();
        if digest != expected || !whole {
            return Ok(None);
        }
        let mut tables = BTreeMap::new();
        for (id, overlay) in reading.tables {
            let Some(table) = ids.get(&id) else {
                return Ok(None);
            };
            tables.insert(table.clone(), overlay);
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
        for kind in [CATALOG, ENTRY] {
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
        changes: &BTreeMap<TableId, Overlay>,
    ) -> Result<(), KvError> {
        for (table, overlay) in changes {
            for namespace in overlay.cleared() {
                self.clear(table, namespace)?;
            }
            for change in overlay.sorted(1) {
                self.set(table, change)?;
            }
        }
        self.mark(to)
    }

    /// Says that what was set until now is the state at a checkpoint, durably.
    pub(super) fn mark(&mut self, at: CheckpointId) -> Result<(), KvError> {
        self.store.flush()?;
        let marker = [&at.0.to_be_bytes()[..], &self.digest.to_bytes()].concat();
        self.store.put(&prefix(MARKER, self.task), &marker)?;
        self.store.flush()?;
        self.at = Some(at);
        Ok(())
    }

    /// Writes one entry, or deletes it.
    pub(super) fn set(&mut self, table: &TableId, change: Change<'_>) -> Result<(), KvError> {
        let id = self.table(table)?;
        let mut key = namespace_prefix(self.task, id, change.namespace);
        key.extend_from_slice(&as_u32(change.key.len()).to_be_bytes());
        key.extend_from_slice(change.key);
        let place = key.len();
        key.extend_from_slice(&[0, 0]);

        let (before, pieces) = match change.value {
            None => (self.delete(&key)?, 0),
            Some(value) => {
                let pieces = cut(value);
                let first = [&as_u32(value.len()).to_be_bytes()[..], pieces[0]].concat();
                let before = self.put(&key, &first)?;
                for (number, piece) in (0_u16..).zip(&pieces).skip(1) {
                    key[place..].copy_from_slice(&number.to_be_bytes());
                    self.put(&key, piece)?;
                }
                (before, pieces.len())
            }
        };
        // What a larger value had beyond the new one.
        let before = before.map_or(0, |first| piece_count(read_length(&first).unwrap_or(0)));
        for number in pieces.max(1)..before {
            let number = u16::try_from(number).expect("a value has few pieces");
            key[place..].copy_from_slice(&number.to_be_bytes());
            self.delete(&key)?;
        }
        Ok(())
    }

    fn clear(&mut self, table: &TableId, namespace: i64) -> Result<(), KvError> {
        let prefix = namespace_prefix(self.task, self.table(table)?, namespace);
        let digest = &mut self.digest;
        remove_all(&*self.store, &prefix, &mut |key, value| {
            digest.remove(key, value)
        })
    }

    /// The number of a table, which it gets when it is first written.
    fn table(&mut self, table: &TableId) -> Result<u16, KvError> {
        if let Some(id) = self.tables.get(table) {
            return Ok(*id);
        }
        let id = u16::try_from(self.tables.len()).expect("a task has few tables");
        let mut key = prefix(CATALOG, self.task);
        key.extend_from_slice(table.operator.as_bytes());
        key.push(0);
        key.extend_from_slice(table.table.as_bytes());
        self.put(&key, &id.to_be_bytes())?;
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

/// Entries being put together from their pieces, which come in order.
#[derive(Debug, Default)]
struct Reading {
    tables: BTreeMap<u16, Overlay>,
    current: Option<Entry>,
}

#[derive(Debug)]
struct Entry {
    table: u16,
    namespace: i64,
    key: Vec<u8>,
    length: usize,
    value: Vec<u8>,
    pieces: u16,
}

impl Reading {
    /// Takes the next piece; `None` if it does not follow the one before.
    fn piece(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let (table, key) = key.split_first_chunk::<2>()?;
        let (namespace, key) = key.split_first_chunk::<8>()?;
        let (length, key) = key.split_first_chunk::<4>()?;
        let (key, number) = key.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        let number = u16::from_be_bytes(number.try_into().ok()?);
        if number > 0 {
            let entry = self.current.as_mut()?;
            entry.value.extend_from_slice(value);
            entry.pieces += 1;
            return (entry.pieces == number && entry.key == key).then_some(());
        }
        self.end()?;
        self.current = Some(Entry {
            table: u16::from_be_bytes(*table),
            namespace: i64::from_be_bytes(*namespace) ^ i64::MIN,
            key: key.to_vec(),
            length: read_length(value)?,
            value: value[LENGTH..].to_vec(),
            pieces: 0,
        });
        Some(())
    }

    /// Ends the current entry; `None` if something of it is missing.
    fn end(&mut self) -> Option<()> {
        let Some(entry) = self.current.take() else {
            return Some(());
        };
        let whole = entry.value.len() == entry.length;
        let overlay = self.tables.entry(entry.table).or_default();
        overlay.put(entry.namespace, &entry.key, &entry.value);
        whole.then_some(())
    }
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

fn namespace_prefix(task: TaskId, table: u16, namespace: i64) -> Vec<u8> {
    let mut key = prefix(ENTRY, task);
    key.extend_from_slice(&table.to_be_bytes());
    key.extend_from_slice(&(namespace ^ i64::MIN).to_be_bytes());
    key
}

fn read_marker(
    store: &dyn KvStore,
    task: TaskId,
) -> Result<Option<(CheckpointId, Digest)>, KvError> {
    let Some(marker) = store.get(&prefix(MARKER, task))? else {
        return Ok(None);
    };
    let Some((at, digest)) = marker.split_first_chunk::<8>() else {
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
        1 if value.len() > LARGEST_VALUE => vec![&[]],
        1 => vec![value],
        _ => value.chunks(PIECE_BYTES).collect(),
    }
}

fn piece_count(value_bytes: usize) -> usize {
    if value_bytes <= WHOLE_BYTES - LENGTH || value_bytes > LARGEST_VALUE {
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
    let mut keys = Vec::new();
    scan_prefix(store, prefix, &mut |key, _| {
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    })?;
    for key in keys {
        if let Some(value) = store.delete(&key)? {
            removed(&key, &value);
        }
    }
    Ok(())
}

fn as_u32(number: usize) -> u32 {
    u32::try_from(number).expect("keys and values have less than 4 GiB")
}
