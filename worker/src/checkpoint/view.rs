//! The view of state in a `KvStore`: what completed checkpoints left, key by key.
//!
//! How it lies there is said in `view_layout`. A value over 1 MiB is not kept, only its length: who needs it
//! reads the base file.
//!
//! A fold flushes, writes its changes in steps (`view_steps`), flushes, writes the marker, flushes. Cut short
//! anywhere it leaves what came before and some of the changes: who reads them all again over it has the state
//! that they lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use common::ids::{CheckpointId, TaskId};
use common::key_group::key_group;
use common::kv::{Digest, KvError, KvStore, scan_prefix};

use super::changes::{Changes, stretches};
use super::delta_log::{ChunkRef, chain};
use super::state_error::StateError;
use super::view_answers::read_value;
use super::view_layout::{
    CATALOG, ENTRY, LENGTH, MARKER, Marker, PIECE, PREFIX, UnderWay, catalog_key, piece_count,
    prefix, read_catalog, read_length, read_marker,
};
use super::view_sizes::ViewSizes;
use super::view_steps::{Step, Write, for_each_step, push_writes, remove_all};
use crate::keyed_state::overlay::{Change, Overlay};
use crate::keyed_state::section::TableId;
use crate::keyed_state::stored::LARGEST_STORED_VALUE;
use crate::keyed_state::table::StoredTable;

/// Flushed at once, about: whoever else waits for the disk would wait for all that was written and not flushed.
pub(super) const FLUSH_BYTES: usize = 4 << 20;

/// The part of the store that is one task's, and what should be in it.
#[derive(Debug)]
pub(super) struct TaskView {
    store: Arc<dyn KvStore>,
    task: TaskId,
    at: Option<CheckpointId>,
    /// A fold to this checkpoint was begun, and some of it may be there.
    begun: Option<CheckpointId>,
    digest: Digest,
    tables: BTreeMap<TableId, ViewTable>,
    /// What was written since the store was last flushed.
    unflushed: usize,
}

#[derive(Debug)]
struct ViewTable {
    /// What stands for it in the store's keys.
    id: u16,
    sizes: ViewSizes,
}

/// A view from which a task can begin.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) view: TaskView,
    pub(super) tables: BTreeMap<TableId, StoredTable>,
}

/// What changed between two checkpoints; `None`: that is not known.
pub(super) type ChangesBetween<'l, 'c> =
    &'c dyn Fn(CheckpointId, CheckpointId) -> Result<Option<Changes<'l>>, StateError>;

/// Namespace, key, length and first piece of the value.
type VisitStored<'v> = &'v mut dyn FnMut(i64, &[u8], &[u8]);

/// How much of a view is brought into memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum InMemory<'a> {
    Nothing,
    /// All tables, but of those of spilling operators only about so many bytes.
    Tables {
        spilling: &'a BTreeSet<String>,
        bytes: u64,
    },
}

impl TaskView {
    /// Reads a task's view back. `None`: there is none, or it is not what was written, or it lacks a value
    /// that is too large for it, or it has changes of which `changes` knows nothing.
    ///
    /// After a fold that was cut short, some of what changed since `at` is in it.
    pub(super) fn load(
        store: &Arc<dyn KvStore>,
        task: TaskId,
        in_memory: InMemory<'_>,
        changes: ChangesBetween<'_, '_>,
    ) -> Result<Option<Loaded>, StateError> {
        let Some(marker) = read_marker(&**store, task)? else {
            return Ok(None);
        };
        let begun = marker.under_way.map(|under_way| under_way.to);
        if let Some(under_way) = marker.under_way {
            let Some(changes) = changes(marker.at, under_way.to)? else {
                return Ok(None);
            };
            repeat_step(&**store, task, under_way.step, &changes)?;
        }
        let mut digest = Digest::default();
        let (ids, mut sound) = catalog(&**store, task, &mut digest)?;
        let mut reading = Reading {
            ids: &ids,
            in_memory,
            tables: BTreeMap::new(),
            sizes: BTreeMap::new(),
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
        if digest != marker.digest || !sound {
            return Ok(None);
        }
        let Reading {
            tables: mut entries,
            mut sizes,
            cut,
            ..
        } = reading;
        for (id, namespace, key) in cut {
            let Some(value) = read_value(&**store, task, id, namespace, &key)? else {
                return Ok(None);
            };
            let table = entries.entry(ids[&id].clone()).or_default();
            table.put(namespace, &key, &value);
        }
        let tables = ids.into_iter().map(|(id, table)| {
            let sizes = sizes.remove(&id).unwrap_or_default();
            (table, ViewTable { id, sizes })
        });
        let view = TaskView {
            store: Arc::clone(store),
            task,
            at: Some(marker.at),
            begun,
            digest,
            tables: tables.collect(),
            unflushed: 0,
        };
        let tables = view.stored_tables(|id| entries.remove(id));
        Ok(Some(Loaded { view, tables }))
    }

    /// Begins a task with a view that was kept up to now, and is what was written to it: of the tables of spilling
    /// operators nothing is read. `None`: it lacks a value that is too large for it.
    pub(super) fn resume(self, spilling: &BTreeSet<String>) -> Result<Option<Loaded>, KvError> {
        if !self.tables.values().all(|table| table.sizes.is_whole()) {
            return Ok(None);
        }
        let in_memory = |table: &&TableId| !spilling.contains(&table.operator);
        let mut entries = BTreeMap::new();
        for table in self.tables.keys().filter(in_memory) {
            entries.insert(table.clone(), self.read_if(table, &|_| true)?);
        }
        let tables = self.stored_tables(|id| entries.remove(id));
        Ok(Some(Loaded { view: self, tables }))
    }

    /// Its tables that are not empty, with what was read of them.
    fn stored_tables(
        &self,
        mut entries: impl FnMut(&TableId) -> Option<Overlay>,
    ) -> BTreeMap<TableId, StoredTable> {
        let tables = self.tables.iter();
        let tables = tables.filter(|(_, table)| !table.sizes.is_empty());
        let tables = tables.map(|(id, table)| {
            let stored = StoredTable {
                entries: entries(id).unwrap_or_default(),
                sizes: table.sizes.of_namespaces(),
            };
            (id.clone(), stored)
        });
        tables.collect()
    }

    /// Removes whatever the store has of a task, to begin anew.
    pub(super) fn begin(store: &Arc<dyn KvStore>, task: TaskId) -> Result<TaskView, KvError> {
        // The marker first: without it the rest does not count.
        store.delete(&prefix(MARKER, task))?;
        for kind in [CATALOG, ENTRY, PIECE] {
            remove_all(&**store, &prefix(kind, task))?;
        }
        Ok(TaskView {
            store: Arc::clone(store),
            task,
            at: None,
            begun: None,
            digest: Digest::default(),
            tables: BTreeMap::new(),
            unflushed: 0,
        })
    }

    pub(super) fn task(&self) -> TaskId {
        self.task
    }

    /// The checkpoint it is at.
    pub(super) fn at(&self) -> Option<CheckpointId> {
        self.at
    }

    /// Whether it is at a checkpoint or a later one, and nothing was begun since.
    pub(super) fn has(&self, checkpoint: CheckpointId) -> bool {
        self.begun.is_none() && self.at >= Some(checkpoint)
    }

    /// What leads from it to a checkpoint, of chunks that count; `None`: nothing does, or some of what is in it does
    /// not count.
    pub(super) fn since<'c>(
        &self,
        counted: &'c [ChunkRef],
        to: CheckpointId,
    ) -> Option<&'c [ChunkRef]> {
        if let Some(begun) = self.begun {
            chain(counted, self.at, begun).filter(|_| begun <= to)?;
        }
        chain(counted, self.at, to)
    }

    /// Applies everything that changed up to a checkpoint, durably. After an error of the store the view has to be
    /// loaded again. `go_on`: asked before each step; where it ends a fold, the next one begins anew.
    pub(super) fn fold(
        &mut self,
        to: CheckpointId,
        changes: &Changes<'_>,
        go_on: &dyn Fn() -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        for_each_step(changes, &mut |number, table, step| {
            go_on()?;
            self.begun = Some(to);
            self.take_step(UnderWay { to, step: number }, table, step)?;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(self.mark(to)?)
    }

    fn take_step(
        &mut self,
        under_way: UnderWay,
        table: &TableId,
        step: Step<'_>,
    ) -> Result<(), KvError> {
        let is_new = !self.tables.contains_key(table);
        if is_new {
            let (id, sizes) = (new_id(self.tables.len()), ViewSizes::default());
            let catalog = catalog_key(self.task, table);
            self.digest.add(&catalog, &id.to_be_bytes());
            self.tables.insert(table.clone(), ViewTable { id, sizes });
        }
        let known = self.tables.get_mut(table).expect("it has its number");
        let id = known.id;
        let (digest, sizes) = (&mut self.digest, &mut known.sizes);
        let writes = step.prepare(&*self.store, self.task, id, digest, sizes)?;
        let at = self.at.expect("what is folded into was marked");
        self.put_marker(at, Some(under_way))?;
        if is_new {
            self.store
                .put(&catalog_key(self.task, table), &id.to_be_bytes())?;
        }
        step.write(&*self.store, self.task, id, &writes)?;
        self.wrote(writes.iter().map(Write::bytes).sum())
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
        self.read_if(table, &|key| wanted.contains(&key_group(key, key_groups).0))
    }

    fn read_if(&self, table: &TableId, wanted: &dyn Fn(&[u8]) -> bool) -> Result<Overlay, KvError> {
        let mut found = Overlay::default();
        let mut cut = Vec::new();
        self.for_each(table, &mut |namespace, key, first| {
            if !wanted(key) {
                return;
            }
            match piece_count(read_length(first).unwrap_or(0)) {
                1 => found.put(namespace, key, first.get(LENGTH..).unwrap_or_default()),
                _ => cut.push((namespace, key.to_vec())),
            }
        })?;
        for (namespace, key) in cut {
            let id = self.tables[table].id;
            let value = read_value(&*self.store, self.task, id, namespace, &key)?;
            found.put(namespace, &key, &value.unwrap_or_default());
        }
        Ok(found)
    }

    /// Visits the entries of a table.
    fn for_each(&self, table: &TableId, visit: VisitStored<'_>) -> Result<(), KvError> {
        let mut prefix = prefix(ENTRY, self.task);
        prefix.extend_from_slice(&self.tables[table].id.to_be_bytes());
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
        self.put_marker(at, None)?;
        self.store.flush()?;
        self.at = Some(at);
        self.begun = None;
        Ok(())
    }

    fn put_marker(&self, at: CheckpointId, under_way: Option<UnderWay>) -> Result<(), KvError> {
        let marker = Marker {
            at,
            digest: self.digest,
            under_way,
        };
        self.store
            .put(&prefix(MARKER, self.task), &marker.to_bytes())?;
        Ok(())
    }

    /// Writes one entry of a view that was begun anew.
    pub(super) fn set(&mut self, table: &TableId, change: Change<'_>) -> Result<(), KvError> {
        let known = self.table(table)?;
        let id = known.id;
        if let Some(value) = change.value {
            known.sizes.add(change.namespace, change.key, value.len());
        }
        let mut writes = Vec::new();
        push_writes(&mut writes, self.task, id, change, 1);
        for write in writes {
            if let Some(value) = write.value {
                self.put(&write.key, &value)?;
            }
        }
        Ok(())
    }

    /// A table, which gets its number when it is first written.
    fn table(&mut self, table: &TableId) -> Result<&mut ViewTable, KvError> {
        if !self.tables.contains_key(table) {
            let (id, sizes) = (new_id(self.tables.len()), ViewSizes::default());
            self.put(&catalog_key(self.task, table), &id.to_be_bytes())?;
            self.tables.insert(table.clone(), ViewTable { id, sizes });
        }
        Ok(self.tables.get_mut(table).expect("it has its number"))
    }

    /// Writes what was not there.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        let before = self.store.put(key, value)?;
        assert!(
            before.is_none(),
            "a view that is begun anew is written once"
        );
        self.digest.add(key, value);
        self.wrote(key.len() + value.len())
    }

    fn wrote(&mut self, bytes: usize) -> Result<(), KvError> {
        self.unflushed += bytes;
        if self.unflushed >= FLUSH_BYTES {
            self.unflushed = 0;
            self.store.flush()?;
        }
        Ok(())
    }
}

/// Writes a step again that may have been cut short.
fn repeat_step(
    store: &dyn KvStore,
    task: TaskId,
    wanted: u64,
    changes: &Changes<'_>,
) -> Result<(), StateError> {
    let (mut ids, _) = catalog(store, task, &mut Digest::default())?;
    for_each_step(changes, &mut |number, table, step| {
        if number < wanted {
            return Ok(ControlFlow::Continue(()));
        }
        let known = ids.iter().find(|(_, known)| *known == table);
        let id = known.map_or_else(|| new_id(ids.len()), |(id, _)| *id);
        store.put(&catalog_key(task, table), &id.to_be_bytes())?;
        ids.insert(id, table.clone());
        step.repeat(store, task, id)?;
        Ok(ControlFlow::Break(()))
    })
}

/// The tables of a task by their numbers, and whether all of them could be read.
fn catalog(
    store: &dyn KvStore,
    task: TaskId,
    digest: &mut Digest,
) -> Result<(BTreeMap<u16, TableId>, bool), KvError> {
    let (mut ids, mut sound) = (BTreeMap::new(), true);
    scan_prefix(store, &prefix(CATALOG, task), &mut |key, value| {
        digest.add(key, value);
        match read_catalog(&key[PREFIX..], value) {
            Some((id, table)) => drop(ids.insert(id, table)),
            None => sound = false,
        }
        ControlFlow::Continue(())
    })?;
    Ok((ids, sound))
}

/// The number of the next table.
fn new_id(tables: usize) -> u16 {
    u16::try_from(tables).expect("a task has few tables")
}

/// Entries being read back, as many as there is memory for.
struct Reading<'a> {
    ids: &'a BTreeMap<u16, TableId>,
    in_memory: InMemory<'a>,
    tables: BTreeMap<TableId, Overlay>,
    sizes: BTreeMap<u16, ViewSizes>,
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
        let sizes = self.sizes.entry(id).or_default();
        sizes.add(namespace, key, length);
        let bytes = as_u64(key.len() + length);
        match self.in_memory {
            InMemory::Nothing => return Some(()),
            InMemory::Tables {
                spilling,
                bytes: most,
            } if spilling.contains(&table.operator) => {
                if self.bytes + bytes > most {
                    return Some(());
                }
                self.bytes += bytes;
            }
            InMemory::Tables { .. } => {}
        }
        if !self.tables.contains_key(table) {
            self.tables.insert(table.clone(), Overlay::default());
        }
        let entries = self.tables.get_mut(table).expect("it was just put there");
        match piece_count(length) {
            1 => entries.put(namespace, key, &value[LENGTH..]),
            _ => self.cut.push((id, namespace, key.to_vec())),
        }
        Some(())
    }
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).expect("a length fits into 64 bits")
}
