//! Brings completed checkpoints into base files and the view, task by task, and lets go of what is in both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use common::ids::{CheckpointId, TaskId};
use common::kv::KvStore;
use common::seglog::Position;

use super::changes::Changes;
use super::delta_log::{ChunkRef, chain};
use super::state_error::StateError;
use super::state_store::{History, JobStateStore, counts, lock};
use super::view::{InMemory, TaskView};
use super::view_reader::ViewReader;
use crate::keyed_state::base_file::{self, BaseFile, ReadStretch, Since};
use crate::keyed_state::section::TableId;

/// A base file of which more than one part in so many has changed is written anew before a view is made of it.
const MOST_CHANGED: u64 = 8;

/// What a worker has the state of a task for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// The task runs here.
    #[default]
    Runs,
    /// It runs here and waits for its view; for others some checkpoints gather first.
    RunsAndWaits,
    /// It runs elsewhere, may come to run here, and reads from a view then.
    StandsBy,
    /// It runs elsewhere. No view is needed of it, unless one was made for a successor: building one takes long.
    IsCopied,
}

/// What is not mentioned runs here.
pub type Purposes = BTreeMap<TaskId, Purpose>;

/// How far a task's part of the view is.
#[derive(Clone, Debug)]
pub struct FoldedTask {
    pub task: TaskId,
    pub at: CheckpointId,
    pub reader: ViewReader,
}

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
    /// Brings completed checkpoints into view and base files, and lets go of the chunks that are in a base
    /// file. In the background, one at a time. Blocks.
    ///
    /// `completed`: a completed checkpoint so recent that no task with spilling operators will be asked for
    /// an older state. `purposes`: of tasks that do not run here there may be what is left of an earlier time
    /// and leads nowhere. Answers how far the view of each task is.
    pub fn fold(
        &self,
        completed: CheckpointId,
        purposes: &Purposes,
        history: History<'_>,
    ) -> Result<Vec<FoldedTask>, StateError> {
        let mut folding = self.folding.take();
        self.take_views(&mut folding);
        let (mut last_changed, mut passed_over) = (BTreeMap::new(), BTreeSet::new());
        for task in self.log.tasks() {
            self.folding.give_way()?;
            let counted = self.counted(task, completed, history);
            let Some(to) = counted.last().map(|chunk| chunk.checkpoint) else {
                continue;
            };
            last_changed.insert(task, to);
            let purpose = purposes.get(&task).copied().unwrap_or_default();
            let leads_here = self.fold_into_base(&mut folding, task, to, &counted, purpose)?;
            if !leads_here {
                let counts = counts(completed, history);
                let wanted = |chunk: &ChunkRef| self.is_wanted(task, chunk);
                let base_at = || self.base_at(task);
                self.log.forget_severed(task, &counts, &base_at, &wanted);
            }
            let is_viewed = match purpose {
                Purpose::Runs | Purpose::RunsAndWaits => true,
                Purpose::StandsBy => leads_here,
                Purpose::IsCopied => self.has_view(task) && folding.has_view(task),
            };
            if !is_viewed {
                passed_over.insert(task);
                continue;
            }
            let at_once = purpose == Purpose::RunsAndWaits;
            match self.fold_into_view(&mut folding, task, to, at_once, &counted) {
                Ok(()) => {}
                Err(StateError::View(error)) => self.give_up_view(&mut folding, error)?,
                Err(error) => return Err(error),
            }
        }
        // A view that lags behind its base file still gets there by chunks: built anew, it would take its
        // readers with it.
        let needed = |task: TaskId, chunk: &ChunkRef| {
            let folded = folding.tasks.get(&task);
            let view = folded.and_then(|folded| folded.view.as_ref());
            let in_base = Some(chunk.checkpoint) <= self.base_at(task);
            let in_view = view.is_none_or(|view| Some(chunk.checkpoint) <= view.at());
            let in_view = in_view || passed_over.contains(&task);
            let settled = in_base && in_view && !self.is_wanted(task, chunk);
            !settled && history(chunk.generation, chunk.checkpoint) != Some(false)
        };
        self.log.drop_unneeded(&needed)?;
        let folded = |(task, folded): (&TaskId, &Folded)| {
            let at = folded.view.as_ref()?.at()?;
            // Nothing has changed from its last change to the checkpoint.
            let has_all = last_changed.get(task).is_none_or(|last| *last <= at);
            Some(FoldedTask {
                task: *task,
                at: if has_all { at.max(completed) } else { at },
                reader: self.open_view.reader(*task),
            })
        };
        Ok(folding.tasks.iter().filter_map(folded).collect())
    }

    /// Whether a chunk is to go to another worker, or to a successor.
    fn is_wanted(&self, task: TaskId, chunk: &ChunkRef) -> bool {
        self.follows_a_loan(task, chunk) || self.is_awaited(task, chunk)
    }

    /// Writes a base file if it is worth it, from the view if the truth is damaged. False: what there is of a task
    /// that runs elsewhere does not lead to this checkpoint.
    fn fold_into_base(
        &self,
        folding: &mut Folding,
        task: TaskId,
        to: CheckpointId,
        counted: &[ChunkRef],
        purpose: Purpose,
    ) -> Result<bool, StateError> {
        let error = match self.write_base(task, to, counted) {
            Err(error) if error.is_loss() => error,
            written => return written.map(|()| true),
        };
        let leads_nowhere = matches!(error, StateError::Lost { .. });
        if leads_nowhere && purpose == Purpose::IsCopied {
            return Ok(false);
        }
        match self.write_base_from_view(folding, task, to, counted) {
            Err(StateError::Lost { .. }) if leads_nowhere && purpose == Purpose::StandsBy => {
                Ok(false)
            }
            written => {
                written?;
                tracing::warn!(%task, %error, "a base file was written anew from the view");
                Ok(true)
            }
        }
    }

    /// If it is worth it, and nobody writes another: then the next fold does.
    fn write_base(
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
        let Some(_turn) = self.writing_bases.try_take(task) else {
            return Ok(());
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
    fn write_base_from_view(
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
        let _turn = self.writing_bases.take(task);
        let go_on = || self.folding.give_way();
        let base = base_file::write(&directory, to, key_groups, None, &since, &go_on)?;
        self.put_base(task, base)
    }

    fn fold_into_view(
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
