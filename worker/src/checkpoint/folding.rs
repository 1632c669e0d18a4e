//! Brings completed checkpoints into base files and the view, task by task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use common::ids::{CheckpointId, TaskId};
use common::kv::KvStore;
use common::seglog::Position;

use super::changes::Changes;
use super::delta_log::{ChunkRef, chain};
use super::state_error::StateError;
use super::state_store::{JobStateStore, lock};
use super::view::{InMemory, TaskView};
use crate::keyed_state::base_file::{self, BaseFile, ReadStretch, Since};
use crate::keyed_state::section::TableId;

/// A base file of which more than one part in so many has changed is written anew before a view is made of it.
const MOST_CHANGED: u64 = 8;

/// How far all tasks have been folded, and whose turn it is with that.
#[derive(Default)]
pub(super) struct FoldingTurn {
    folding: Mutex<Folding>,
    /// Those who begin a generation and wait for it.
    urgent: AtomicUsize,
}

#[derive(Default)]
pub(super) struct Folding {
    pub(super) tasks: BTreeMap<TaskId, Folded>,
}

/// How far a task's chunks have been folded into the view; how far into its base file, that says.
#[derive(Default)]
pub(super) struct Folded {
    /// `None`: it is to be read back or built anew.
    pub(super) view: Option<TaskView>,
}

impl JobStateStore {
    /// If it is worth it, and nobody writes another: then the next fold does.
    pub(super) fn write_base(
        &self,
        task: TaskId,
        to: CheckpointId,
        counted: &[ChunkRef],
    ) -> Result<(), StateError> {
        let options = self.options();
        self.write_base_if(task, to, counted, &|before, bytes, oldest| {
            bytes >= options.base_after_bytes.max(before)
                || self.log.end().since(oldest) > options.log_bytes
        })
    }

    /// `is_worth_it`: asked with the bytes of the base file there is and of what came since, and where that begins.
    fn write_base_if(
        &self,
        task: TaskId,
        to: CheckpointId,
        counted: &[ChunkRef],
        is_worth_it: &dyn Fn(u64, u64, Position) -> bool,
    ) -> Result<(), StateError> {
        // Not waited for: who begins a generation waits for a fold.
        let _turn = match self.writing_base.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Ok(turn) => turn,
        };
        let before = self.base_of(task);
        let before = before.as_deref();
        let from = before.map(BaseFile::checkpoint);
        if from >= Some(to) {
            return Ok(());
        }
        let chunks = chain(counted, from, to).ok_or(StateError::Lost { task, at: to })?;
        let Some(oldest) = chunks.first() else {
            return Ok(());
        };
        let bytes: u64 = chunks.iter().map(|chunk| chunk.bytes).sum();
        match is_worth_it(before.map_or(0, BaseFile::bytes), bytes, oldest.position()) {
            true => self.write_new_base(before, task, to, chunks),
            false => Ok(()),
        }
    }

    /// `chunks`: what leads to that checkpoint from the base file there is.
    fn write_new_base(
        &self,
        before: Option<&BaseFile>,
        task: TaskId,
        to: CheckpointId,
        chunks: &[ChunkRef],
    ) -> Result<(), StateError> {
        let changes = Changes::of(&self.log, chunks)?;
        let read = |table: &TableId, groups: &_| Ok::<_, StateError>(changes.read(table, groups)?);
        let since = since(&changes, &read);
        let directory = self.directory.join(task.to_string());
        let key_groups = self.options().key_groups;
        let go_on = || self.folding.give_way();
        let base = base_file::write(&directory, to, key_groups, before, &since, &go_on)?;
        self.put_base(task, base)
    }

    /// The former one goes only now that the new one can be relied upon. A copy may be that of the same one, fetched
    /// again because what came with it could not be kept.
    pub(super) fn put_base(&self, task: TaskId, base: BaseFile) -> Result<(), StateError> {
        let place = base.path().to_owned();
        let before = lock(&self.bases).insert(task, Arc::new(base));
        if let Some(before) = before
            && before.path() != place
        {
            base_file::remove(before.path())?;
        }
        Ok(())
    }

    /// The base file is gone or damaged; the view has the same, as long as it is there.
    pub(super) fn write_base_from_view(
        &self,
        folding: &mut Folding,
        task: TaskId,
        to: CheckpointId,
        counted: &[ChunkRef],
    ) -> Result<(), StateError> {
        let store = self.view()?;
        let folded = folding.tasks.entry(task).or_default();
        self.bring_view(&store, folded, task, to, counted)?;
        let view = folded.view.as_ref().expect("it was just brought there");
        let to = view.at().expect("it was just brought there");
        let key_groups = self.options().key_groups;
        let mut tables = BTreeMap::new();
        for table in view.tables() {
            let stretches = view.stretches(table, key_groups)?;
            let stretches = stretches.ok_or(StateError::Lost { task, at: to })?;
            tables.insert(table.clone(), (BTreeSet::new(), stretches));
        }
        let since = Since {
            tables,
            read: &|table, groups| Ok::<_, StateError>(view.read(table, key_groups, groups)?),
        };
        let directory = self.directory.join(task.to_string());
        let _turn = lock(&self.writing_base);
        let go_on = || self.folding.give_way();
        let base = base_file::write(&directory, to, key_groups, None, &since, &go_on)?;
        self.put_base(task, base)
    }

    pub(super) fn fold_into_view(
        &self,
        folding: &mut Folding,
        task: TaskId,
        to: CheckpointId,
        at_once: bool,
        counted: &[ChunkRef],
    ) -> Result<(), StateError> {
        let store = self.view()?;
        let folded = folding.tasks.entry(task).or_default();
        let view = folded.view.as_ref();
        let waiting = view.and_then(|view| view.since(counted, to));
        if let (Some(chunks), false) = (waiting, at_once) {
            let bytes: u64 = chunks.iter().map(|chunk| chunk.bytes).sum();
            if chunks.len() < self.options().fold_every && bytes < self.options().fold_bytes {
                return Ok(());
            }
        }
        self.bring_view(&store, folded, task, to, counted)
    }

    /// Brings the view of a task to a checkpoint; after an error other than `CutShort` it has to be read back.
    pub(super) fn bring_view(
        &self,
        store: &Arc<dyn KvStore>,
        folded: &mut Folded,
        task: TaskId,
        to: CheckpointId,
        counted: &[ChunkRef],
    ) -> Result<(), StateError> {
        let view = match folded.view.take() {
            Some(view) => Some(view),
            None => {
                let loaded = self.load_view(store, task, InMemory::Nothing, counted)?;
                loaded.map(|loaded| loaded.view)
            }
        };
        if let Some(view) = view
            && (view.has(to) || view.since(counted, to).is_some())
        {
            return self.fold_on(folded, view, to, counted);
        }
        self.write_base_if(task, to, counted, &|before, bytes, _| {
            bytes > before / MOST_CHANGED
        })?;
        // There is one, unless another is being written.
        let in_use = || StateError::InUse {
            directory: self.directory.join(task.to_string()),
        };
        let base = self.base_of(task).ok_or_else(in_use)?;
        let view = self.build_view(store, task, &base, &|| self.folding.give_way())?;
        self.fold_on(folded, view, to, counted)
    }

    /// A view that is cut short goes on from where it is.
    fn fold_on(
        &self,
        folded: &mut Folded,
        mut view: TaskView,
        to: CheckpointId,
        counted: &[ChunkRef],
    ) -> Result<(), StateError> {
        if view.has(to) {
            folded.view = Some(view);
            return Ok(());
        }
        let task = view.task();
        let chunks = view.since(counted, to);
        let chunks = chunks.ok_or(StateError::Lost { task, at: to })?;
        let changes = Changes::of(&self.log, chunks)?;
        let outcome = view.fold(to, &changes, &|| self.folding.give_way());
        if matches!(outcome, Ok(()) | Err(StateError::CutShort)) {
            folded.view = Some(view);
        }
        outcome
    }

    /// Makes a view of a base file, in the order in which the store has it: that is several times as fast as any
    /// other. `go_on`: asked before each entry.
    pub(super) fn build_view(
        &self,
        store: &Arc<dyn KvStore>,
        task: TaskId,
        base: &BaseFile,
        go_on: &dyn Fn() -> Result<(), StateError>,
    ) -> Result<TaskView, StateError> {
        let _turn = lock(&self.building_view);
        self.open_view.begin(task);
        let mut view = TaskView::begin(store, task)?;
        for table in base.tables() {
            base.visit_in_order(table, &mut |change| {
                go_on()?;
                Ok::<(), StateError>(view.set(table, change)?)
            })?;
        }
        view.mark(base.checkpoint())?;
        Ok(view)
    }
}

impl FoldingTurn {
    /// For work behind the job's back: it asks now and then whether to `give_way`.
    pub(super) fn take(&self) -> MutexGuard<'_, Folding> {
        lock(&self.folding)
    }

    /// For who keeps a job waiting: what is under way is cut short.
    pub(super) fn take_urgently(&self) -> MutexGuard<'_, Folding> {
        self.urgent.fetch_add(1, Ordering::SeqCst);
        let folding = lock(&self.folding);
        self.urgent.fetch_sub(1, Ordering::SeqCst);
        folding
    }

    #[cfg(test)]
    pub(super) fn is_free(&self) -> bool {
        self.folding.try_lock().is_ok()
    }

    /// As if somebody took it urgently, and until nobody does any more.
    #[cfg(test)]
    pub(super) fn hurry(&self, wanted: bool) {
        self.urgent.store(usize::from(wanted), Ordering::SeqCst);
    }

    /// `CutShort`: somebody keeps a job waiting. A view that is folded into stays as far as it is, everything else is begun anew.
    pub(super) fn give_way(&self) -> Result<(), StateError> {
        match self.urgent.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(StateError::CutShort),
        }
    }
}

impl Folding {
    pub(super) fn has_view(&self, task: TaskId) -> bool {
        let folded = self.tasks.get(&task);
        folded.is_some_and(|folded| folded.view.is_some())
    }

    pub(super) fn forget_views(&mut self) {
        for folded in self.tasks.values_mut() {
            folded.view = None;
        }
    }
}

pub(super) fn since<'a>(
    changes: &Changes<'_>,
    read: &'a ReadStretch<'a, StateError>,
) -> Since<'a, StateError> {
    let tables = changes.tables().map(|table| {
        let stretches = changes.stretches(table);
        (table.clone(), (changes.cleared(table), stretches))
    });
    Since {
        tables: tables.collect(),
        read,
    }
}
