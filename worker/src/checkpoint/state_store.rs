//! What a worker keeps of one job's state on its disk, and the one way to it.
//!
//! ```text
//! <job>/deltas/                     chunks: what each task changed until each checkpoint
//! <job>/<task>/base-<checkpoint>.bin  all of a task's state at a completed checkpoint
//! <job>/state.sled/                 a view of the same, key by key
//! ```
//!
//! Base file and the chunks that count are the truth. Every chunk names the one before it, so a gap is
//! noticed and never read over. The view answers restarts and single keys faster, and is all that has, at
//! hand, what a task does not keep in memory; it is thrown away and built anew whenever it does not open or
//! is not exactly what was written to it.
//!
//! In the order of a task's life: `restore` gives it its tables; `persist` makes what it sealed durable;
//! `fold`, in the background, brings completed checkpoints into view and base file and lets chunks go (`folding.rs`).
//! Other workers stand by with copies of the truth: they take what `lend` gives (`receiving.rs`). Tasks that are to
//! take the place of others get their state from theirs (`succession.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::ids::{CheckpointId, Generation, StageId, TaskId};
use common::kv::{KvError, KvStore, SledOptions, SledStore};
use common::seglog::LogError;
use common::seglog::fs::{DirectoryLock, FsStorage, create_directory};
use common::seglog::storage::LogStorage;
use common::time::Span;

use super::changes::Changes;
use super::chunk::TaskChunk;
use super::delta_log::{ChunkRef, DeltaLog, DeltaLogError, chain};
use super::folding::{Folding, FoldingTurn};
use super::lending::Loan;
use super::state_error::StateError;
use super::succession::OwnState;
use super::task_turns::TaskTurns;
use super::view::{InMemory, Loaded, TaskView};
use super::view_reader::{ViewError, ViewReader, ViewSlot};
use crate::keyed_state::base_file::{self, BaseFile, BaseFileError};
use crate::keyed_state::overlay::Overlay;
use crate::keyed_state::section::TableId;
use crate::keyed_state::table::Table;

const DELTAS: &str = "deltas";
const VIEW: &str = "state.sled";

/// How long a store waits for the one before it to be done with what it was doing.
const LOCK_WAIT: Span = Span::from_secs(30);

/// What changed since the view takes a look into it for each key, to know what is overwritten. In the time of a look
/// the truth, which is read in one stretch, gives so many times as much.
const STRETCH_FOR_A_LOOK: u64 = 16;

/// The tables of one task.
pub type TaskTables = BTreeMap<TableId, Table>;

/// What a task begins with.
#[derive(Debug, Default)]
pub struct RestoredTask {
    pub tables: TaskTables,
    /// Answers what the tables of the spilling operators do not have in memory.
    pub reader: Option<ViewReader>,
}

/// What a generation that is over leaves of a task.
#[derive(Debug)]
pub struct LeftTask {
    /// Everything up to this checkpoint is sealed in its tables.
    pub sealed: Option<CheckpointId>,
    pub tables: RestoredTask,
}

/// Whether what was sealed under this generation and checkpoint belongs to the job's past;
/// `None`: it is not decided yet.
pub type History<'a> = &'a dyn Fn(Generation, CheckpointId) -> Option<bool>;

/// How a store works.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Fixed for the job's life.
    pub key_groups: u16,
    /// Memory for the view's pages.
    pub view_cache_bytes: u64,
    /// Memory for what a task's spilling operators read back of their state when it begins.
    pub resident_bytes: u64,
    /// Completed checkpoints that are folded into the view together, or fewer if they have so many bytes.
    pub fold_every: usize,
    pub fold_bytes: u64,
    /// Chunks of a task that are worth a new base file, if they are also more than its last one.
    pub base_after_bytes: u64,
    /// How far the log may grow beyond a chunk that is in no base file.
    pub log_bytes: u64,
    /// Chunks of its predecessors that a successor gets in one step, about: it is made in memory, and whoever else
    /// writes to the log waits for it.
    pub step_bytes: u64,
}

/// What a worker keeps of one job.
pub struct JobStateStore {
    pub(super) directory: PathBuf,
    options: Mutex<StoreOptions>,
    pub(super) log: DeltaLog,
    pub(super) view: ViewPlace,
    pub(super) open_view: ViewSlot,
    /// Sealed, but not durable yet: after a failure they go with the next ones.
    unpersisted: Mutex<Vec<TaskChunk>>,
    pub(super) folding: FoldingTurn,
    /// The newest base file of each task, also while a fold is under way.
    pub(super) bases: Mutex<BTreeMap<TaskId, Arc<BaseFile>>>,
    /// Of who writes one: it takes the place of the one it was made of. What is prepared does not wait for a view, and
    /// what is kept of a task that runs elsewhere for no other task's.
    pub(super) writing_bases: TaskTurns,
    /// Base files that standbys are fetching.
    pub(super) lent: Mutex<BTreeMap<(TaskId, CheckpointId), Loan>>,
    /// Predecessor and successor → the checkpoint after which the former's chunks are still to go to the latter.
    pub(super) awaited: Mutex<BTreeMap<(TaskId, TaskId), CheckpointId>>,
    /// Predecessor and successor → what the former had of its own where the latter is.
    pub(super) own_states: Mutex<BTreeMap<(TaskId, TaskId), OwnState>>,
    /// Views that were made of successors. Who makes one does not wait for a fold: the next one takes it from here.
    pub(super) successor_views: Mutex<BTreeMap<TaskId, Option<TaskView>>>,
    /// Held by who makes a view: of the same task one at a time.
    pub(super) building_view: Mutex<()>,
    /// Tasks that were let go of, and of which something is still on the disk.
    pub(super) unswept: Mutex<BTreeSet<TaskId>>,
    /// Held by the one that removes it, and by who makes a view of a successor: neither goes on with a task behind
    /// the other's back.
    pub(super) sweeping: Mutex<()>,
    /// The last to be dropped: then the next store of this directory may open.
    _lock: DirectoryLock,
}

/// How to get at the store the view is in.
pub struct ViewPlace {
    pub open: Box<dyn Fn() -> Result<Arc<dyn KvStore>, KvError> + Send + Sync>,
    pub set_aside: Box<dyn Fn() -> Result<(), StateError> + Send + Sync>,
}

impl LeftTask {
    /// Every table taken back to a completed checkpoint; `None`: they are not so far, or have let go of it.
    pub fn back_at(mut self, checkpoint: CheckpointId) -> Option<RestoredTask> {
        let mut tables = self.tables.tables.values_mut();
        let sound = self.sealed >= Some(checkpoint)
            && tables.all(|table| table.rollback(checkpoint).is_ok());
        sound.then_some(self.tables)
    }
}

impl RestoredTask {
    /// Whether everything is in memory.
    pub fn is_whole(&self) -> bool {
        !self.tables.values().any(Table::needs_store)
    }
}

impl StoreOptions {
    pub fn new(key_groups: u16) -> StoreOptions {
        StoreOptions {
            key_groups,
            view_cache_bytes: 16 << 20,
            resident_bytes: 64 << 20,
            fold_every: 8,
            fold_bytes: 8 << 20,
            base_after_bytes: 4 << 20,
            log_bytes: 128 << 20,
            step_bytes: 4 << 20,
        }
    }
}

impl JobStateStore {
    /// Opens what the directory has of a job, or begins. Waits for a former store of the same directory
    /// to be dropped: an earlier generation may still be writing. Blocks.
    pub fn open(directory: &Path, options: StoreOptions) -> Result<JobStateStore, StateError> {
        let deltas = directory.join(DELTAS);
        let storage = FsStorage::create(&deltas).map_err(failed(&deltas))?;
        let view = directory.join(VIEW);
        let sled = SledOptions {
            cache_capacity: options.view_cache_bytes,
        };
        let place = ViewPlace {
            open: Box::new({
                let view = view.clone();
                move || Ok(Arc::new(SledStore::open(&view, sled)?))
            }),
            set_aside: Box::new(move || Ok(base_file::set_aside(&view).map(drop)?)),
        };
        JobStateStore::assemble(directory, options, storage, place)
    }

    /// Removes everything kept of a job, once no store of it is open. Blocks.
    pub fn remove(directory: &Path) -> Result<(), StateError> {
        let _lock = match lock_directory(directory) {
            Err(StateError::Directory { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(());
            }
            locked => locked?,
        };
        Ok(base_file::remove_job(directory)?)
    }

    /// A store whose deltas and view are where the caller says. Blocks.
    pub fn assemble(
        directory: &Path,
        options: StoreOptions,
        deltas: Arc<dyn LogStorage>,
        view: ViewPlace,
    ) -> Result<JobStateStore, StateError> {
        create_directory(directory).map_err(failed(directory))?;
        let lock = lock_directory(directory)?;
        let mut bases = BTreeMap::new();
        for task in base_file::subdirectories(directory)?
            .iter()
            .filter_map(|n| parse_task(n))
        {
            let base = newest_base(&directory.join(task.to_string()))?.map(Arc::new);
            bases.extend(base.map(|base| (task, base)));
        }
        Ok(JobStateStore {
            directory: directory.to_owned(),
            options: Mutex::new(options),
            log: DeltaLog::open(deltas, options.key_groups, options.log_bytes / 8)?,
            view,
            open_view: ViewSlot::default(),
            unpersisted: Mutex::default(),
            folding: FoldingTurn::default(),
            bases: Mutex::new(bases),
            writing_bases: TaskTurns::default(),
            lent: Mutex::default(),
            awaited: Mutex::default(),
            own_states: Mutex::default(),
            successor_views: Mutex::default(),
            building_view: Mutex::default(),
            unswept: Mutex::default(),
            sweeping: Mutex::default(),
            _lock: lock,
        })
    }

    /// As it was when the next generation took it over, for as many tasks as that has.
    pub fn go_on_with(&self, options: StoreOptions) {
        let mut current = lock(&self.options);
        assert_eq!(
            current.key_groups, options.key_groups,
            "they are fixed for the job's life"
        );
        *current = options;
    }

    pub(super) fn options(&self) -> StoreOptions {
        *lock(&self.options)
    }

    /// A task goes on in this generation with the tables it has, which are those at a completed checkpoint.
    pub fn take_over(
        &self,
        generation: Generation,
        task: TaskId,
        at: CheckpointId,
    ) -> Result<(), StateError> {
        lock(&self.unpersisted).retain(|chunk| chunk.task != task);
        Ok(self.log.restart(task, generation, Some(at))?)
    }

    /// The state a task begins with: that at a completed checkpoint, or none at all. Every task of a
    /// generation is restored before anything of it is persisted. Blocks.
    ///
    /// `spilling`: the operators that ask before they read. Of their tables no more is read than there is
    /// memory for; all others are in memory.
    ///
    /// `Lost` says that this disk does not have all of it; nothing is ever filled in.
    pub fn restore(
        &self,
        generation: Generation,
        task: TaskId,
        at: Option<CheckpointId>,
        history: History<'_>,
        spilling: &BTreeSet<String>,
    ) -> Result<RestoredTask, StateError> {
        let mut folding = self.folding.take_urgently();
        self.take_views(&mut folding);
        lock(&self.unpersisted).retain(|chunk| chunk.task != task);
        let restored = match at {
            Some(at) => self.read(&mut folding, task, at, history, spilling)?,
            None => RestoredTask::default(),
        };
        self.log.restart(task, generation, at)?;
        Ok(restored)
    }

    /// Makes everything durable that tasks have sealed, with one sync, and says how many bytes each
    /// task added. Blocks.
    ///
    /// If the disk is full, what was given is kept and goes with the next call: a later checkpoint builds
    /// on it. After any other error the process has to stop (`is_fatal`), or the job to start again.
    pub fn persist(
        &self,
        generation: Generation,
        chunks: Vec<TaskChunk>,
    ) -> Result<BTreeMap<TaskId, u64>, StateError> {
        let mut unpersisted = lock(&self.unpersisted);
        unpersisted.extend(chunks);
        let appended = self.log.append(generation, &unpersisted);
        if !matches!(appended, Err(DeltaLogError::Log(LogError::DiskFull))) {
            unpersisted.clear();
        }
        Ok(appended?)
    }

    /// The state of a task at a completed checkpoint, from the view if it is right, else from the truth.
    fn read(
        &self,
        folding: &mut Folding,
        task: TaskId,
        at: CheckpointId,
        history: History<'_>,
        spilling: &BTreeSet<String>,
    ) -> Result<RestoredTask, StateError> {
        let counted = self.counted(task, at, history);
        match self.read_view(folding, task, at, &counted, spilling) {
            Ok(Some(restored)) => return Ok(restored),
            Ok(None) => {}
            Err(StateError::View(error) | StateError::Reading(ViewError::Store(error))) => {
                self.give_up_view(folding, error)?;
            }
            Err(error) => return Err(error),
        }
        let base = self.base_of(task);
        let base_at = base.as_deref().map(BaseFile::checkpoint);
        let chunks = chain(&counted, base_at, at).ok_or(StateError::Lost { task, at })?;
        let mut tables = match &base {
            Some(base) => base.read()?,
            None => BTreeMap::new(),
        };
        self.apply(chunks, &mut tables)?;
        Ok(RestoredTask {
            tables: restored_at(at, tables, spilling),
            reader: None,
        })
    }

    /// The state of a task as the view has it, and the few chunks since; `None`: the view is of no use.
    fn read_view(
        &self,
        folding: &mut Folding,
        task: TaskId,
        at: CheckpointId,
        counted: &[ChunkRef],
        spilling: &BTreeSet<String>,
    ) -> Result<Option<RestoredTask>, StateError> {
        let store = self.view()?;
        let in_memory = InMemory::Tables {
            spilling,
            bytes: self.options().resident_bytes,
        };
        let folded = folding.tasks.entry(task).or_default();
        // One that was kept is what was written to it, and is not read.
        let mut loaded = match folded.view.take() {
            Some(view) if view.since(counted, at).is_some() => view.resume(spilling)?,
            Some(_) => None,
            None => self.load_view(&store, task, in_memory, counted)?,
        };
        loaded = loaded.filter(|loaded| loaded.view.since(counted, at).is_some());
        let replayed: u64 = loaded
            .iter()
            .filter_map(|loaded| loaded.view.since(counted, at))
            .flatten()
            .map(|chunk| chunk.bytes)
            .sum();
        if !spilling.is_empty() {
            let base = self.base_of(task);
            let base = base.as_deref();
            let since = chain(counted, base.map(BaseFile::checkpoint), at);
            let since = since.map(|chunks| chunks.iter().map(|chunk| chunk.bytes).sum::<u64>());
            let whole = since.map(|since| since + base.map_or(0, BaseFile::bytes));
            let fits = whole.filter(|bytes| *bytes <= self.options().resident_bytes);
            let is_far = |whole| loaded.is_none() || replayed > whole / STRETCH_FOR_A_LOOK;
            if fits.is_some_and(is_far) {
                // It is soon read from the truth, and a fold brings the view there behind the job's back.
                folded.view = loaded.take().map(|loaded| loaded.view);
                return Ok(None);
            }
        }
        let too_much = replayed > self.options().resident_bytes;
        if (loaded.is_none() || too_much) && !spilling.is_empty() {
            // All of it in memory may be too much: the view is brought here first.
            folded.view = loaded.take().map(|loaded| loaded.view);
            self.bring_view(&store, folded, task, at, counted)?;
            let view = folded.view.take().expect("it was just brought there");
            loaded = view.resume(spilling)?;
        }
        let Some(Loaded { view, mut tables }) = loaded else {
            return Ok(None);
        };
        let Some(chunks) = view.since(counted, at) else {
            return Ok(None);
        };
        let mut changes: BTreeMap<TableId, Overlay> = BTreeMap::new();
        for (id, stored) in &mut tables {
            if !spilling.contains(&id.operator) {
                changes.insert(id.clone(), std::mem::take(&mut stored.entries));
            }
        }
        self.apply(chunks, &mut changes)?;
        let reader = self.open_view.reader(task);
        let mut restored = TaskTables::new();
        for id in tables
            .keys()
            .chain(changes.keys())
            .cloned()
            .collect::<BTreeSet<_>>()
        {
            let changes = changes.remove(&id).unwrap_or_default();
            let table = match spilling.contains(&id.operator) {
                true => {
                    let stored = tables.remove(&id).unwrap_or_default();
                    let mut ask = |ask| reader.answer(&id, ask).map_err(StateError::Reading);
                    Table::restored_from_store(at, stored, changes, &mut ask)?
                }
                false => Table::restored(at, changes),
            };
            restored.insert(id, table);
        }
        folded.view = Some(view);
        Ok(Some(RestoredTask {
            tables: restored,
            reader: Some(reader),
        }))
    }

    /// Reads back what the store has of a task's view.
    pub(super) fn load_view(
        &self,
        store: &Arc<dyn KvStore>,
        task: TaskId,
        in_memory: InMemory<'_>,
        counted: &[ChunkRef],
    ) -> Result<Option<Loaded>, StateError> {
        let changes = |from, to| {
            let chunks = chain(counted, Some(from), to);
            let changes = chunks.map(|chunks| Changes::of(&self.log, chunks));
            Ok(changes.transpose()?)
        };
        TaskView::load(store, task, in_memory, &changes)
    }

    pub(super) fn view(&self) -> Result<Arc<dyn KvStore>, KvError> {
        self.open_view.store_or(&self.view.open)
    }

    /// The view failed: it is closed, and thrown away if it is damaged. The truth is elsewhere.
    pub(super) fn give_up_view(
        &self,
        folding: &mut Folding,
        error: KvError,
    ) -> Result<(), StateError> {
        folding.forget_views();
        lock(&self.successor_views).clear();
        self.open_view.give_up();
        match error {
            KvError::SyncFailed { .. } => Err(error.into()),
            KvError::Damaged { .. } => {
                tracing::warn!(%error, "the view of a job's state is built anew");
                (self.view.set_aside)()
            }
            KvError::InUse { .. } | KvError::Io { .. } => {
                tracing::warn!(%error, "the view of a job's state cannot be used for now");
                Ok(())
            }
        }
    }

    /// The chunks of a task that count, up to a checkpoint, in order.
    pub(super) fn counted(
        &self,
        task: TaskId,
        up_to: CheckpointId,
        history: History<'_>,
    ) -> Vec<ChunkRef> {
        self.log.counted(task, &counts(up_to, history))
    }

    pub(super) fn apply(
        &self,
        chunks: &[ChunkRef],
        tables: &mut BTreeMap<TableId, Overlay>,
    ) -> Result<(), StateError> {
        for chunk in chunks {
            self.log.apply(chunk, tables)?;
        }
        Ok(())
    }
}

impl fmt::Debug for ViewPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ViewPlace").finish_non_exhaustive()
    }
}

impl fmt::Debug for JobStateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobStateStore")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// Whether a chunk counts and is not of a later checkpoint.
pub(super) fn counts(
    up_to: CheckpointId,
    history: History<'_>,
) -> impl Fn(Generation, CheckpointId) -> bool {
    move |generation, checkpoint| {
        checkpoint <= up_to && history(generation, checkpoint) == Some(true)
    }
}

/// Tables whose state at a checkpoint is what these changes of empty ones make.
pub(super) fn restored_at(
    at: CheckpointId,
    tables: BTreeMap<TableId, Overlay>,
    spilling: &BTreeSet<String>,
) -> TaskTables {
    let restored = tables.into_iter().map(|(id, state)| {
        let mut table = Table::restored(at, state);
        if spilling.contains(&id.operator) {
            table.spill();
        }
        (id, table)
    });
    restored.collect()
}

/// The newest base file that is sound; older ones are removed, and are there only after a crash.
fn newest_base(directory: &Path) -> Result<Option<BaseFile>, StateError> {
    let mut newest: Option<BaseFile> = None;
    for (_, path) in base_file::list(directory)? {
        if newest.is_some() {
            base_file::remove(&path)?;
            continue;
        }
        match BaseFile::open(&path) {
            Ok(base) => newest = Some(base),
            Err(error @ BaseFileError::Damaged { .. }) => {
                tracing::error!(%error, "a base file cannot be used");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(newest)
}

fn lock_directory(directory: &Path) -> Result<DirectoryLock, StateError> {
    let lock = DirectoryLock::acquire(directory, LOCK_WAIT).map_err(failed(directory))?;
    lock.ok_or_else(|| StateError::InUse {
        directory: directory.to_owned(),
    })
}

pub(super) fn failed(directory: &Path) -> impl FnOnce(io::Error) -> StateError + use<> {
    let directory = directory.to_owned();
    move |source| StateError::Directory { directory, source }
}

fn parse_task(name: &str) -> Option<TaskId> {
    let (stage, index) = name.split_once('.')?;
    let task = TaskId {
        stage: StageId(stage.parse().ok()?),
        index: index.parse().ok()?,
    };
    (task.to_string() == name).then_some(task)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
