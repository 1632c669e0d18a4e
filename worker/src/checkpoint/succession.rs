//! The state of tasks that are to take the place of others, made on this worker of the others' state.
//!
//! A job that is to be divided into tasks in another way runs on meanwhile. Its predecessors' state is here, because
//! they run here or are stood by for. A successor begins with a base file of its own at a completed checkpoint; after
//! that each checkpoint of its predecessors gives it a chunk. So when the last checkpoint of the old
//! division is here, that of the new one is too, however large it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use common::ids::{CheckpointId, Generation, TaskId};
use common::key_group::KeyGroupRange;
use common::plan::redistribution::Share;

use super::changes::Changes;
use super::chunk::TaskChunk;
use super::delta_log::{ChunkRef, chain};
use super::folding::{Folding, since};
use super::state_error::StateError;
use super::state_store::{History, JobStateStore, lock};
use super::view::TaskView;
use crate::keyed_state::base_file::{self, BaseFile, Portion, Since};
use crate::keyed_state::overlay::Overlay;
use crate::keyed_state::section::TableId;

/// What belongs to a task itself and to no key of its operators, by table.
pub type OwnTables = BTreeMap<TableId, Overlay>;

/// Makes of what tasks have of their own what their successor has.
pub type Inherit = dyn Fn(Vec<(&Share, OwnTables)>) -> OwnTables + Send + Sync;

/// What a predecessor has of its own at a checkpoint, followed from chunk to chunk: to read it from its base file on
/// takes the longer the older that is, and in the end longer than to the next checkpoint.
#[derive(Debug)]
pub(super) struct OwnState {
    generation: Generation,
    at: CheckpointId,
    tables: OwnTables,
}

/// A task that is to take the place of others.
#[derive(Clone)]
pub struct Successor {
    pub task: TaskId,
    pub shares: Vec<Share>,
    /// Whether a table belongs to the task itself.
    pub is_own: fn(&TableId) -> bool,
    /// What a successor has of its own, from what its predecessors have.
    pub inherit: Arc<Inherit>,
}

/// What gets a successor further.
#[derive(Clone, Debug)]
pub enum Advance {
    By(Vec<TaskChunk>),
    /// What is here of its predecessors does not meet at that checkpoint; at a later one it will.
    Later,
    /// Something in between has gone: it has to begin anew.
    Gap,
}

impl fmt::Debug for Successor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Successor")
            .field("task", &self.task)
            .field("shares", &self.shares)
            .finish_non_exhaustive()
    }
}

impl JobStateStore {
    /// Writes a successor's base file at a completed checkpoint, of which all of its predecessors is here. From now
    /// on what they seal stays until the successor has it. Blocks.
    pub fn begin_successor(
        &self,
        generation: Generation,
        successor: &Successor,
        at: CheckpointId,
        history: History<'_>,
    ) -> Result<(), StateError> {
        // What is left of an earlier attempt goes first.
        if lock(&self.unswept).contains(&successor.task) {
            let directory = self.directory.join(successor.task.to_string());
            return Err(StateError::InUse { directory });
        }
        for share in &successor.shares {
            let place = (share.of, successor.task);
            lock(&self.awaited).insert(place, CheckpointId(0));
        }
        let mut predecessors = Vec::new();
        for share in &successor.shares {
            let base = self.base_of(share.of);
            let counted = self.counted(share.of, at, history);
            let lost = || StateError::Lost { task: share.of, at };
            let from = base.as_deref().map(BaseFile::checkpoint);
            let chunks = chain(&counted, from, at).ok_or_else(lost)?;
            let changes = Changes::of(&self.log, chunks)?;
            predecessors.push(Predecessor {
                share,
                base,
                changes,
            });
        }
        let mut own_states = Vec::new();
        for predecessor in &predecessors {
            own_states.push(self.own_state(generation, successor, predecessor, at)?);
        }
        let own = inherited(successor, own_states.iter());
        let key_groups = self.options().key_groups;
        let reads: Vec<_> = predecessors.iter().map(Predecessor::reader).collect();
        let since: Vec<_> = predecessors
            .iter()
            .zip(&reads)
            .map(|(predecessor, read)| since(&predecessor.changes, read))
            .collect();
        let keyed: Vec<_> = predecessors
            .iter()
            .map(|of| |table: &TableId| of.share.operators.contains(&table.operator))
            .collect();
        let portions = predecessors.iter().zip(&since).zip(&keyed);
        let portions = portions.filter_map(|((predecessor, since), tables)| {
            Some(Portion {
                base: predecessor.base.as_deref(),
                since,
                groups: inclusive(predecessor.share.groups)?,
                tables,
            })
        });
        let mut portions: Vec<Portion<'_, StateError>> = portions.collect();
        let read_own = |table: &TableId, _: &_| Ok::<_, StateError>(own[table].clone());
        let all = || (BTreeSet::new(), vec![0..=u16::MAX]);
        let own = Since {
            tables: own.keys().map(|table| (table.clone(), all())).collect(),
            read: &read_own,
        };
        portions.push(Portion::whole(None, &own));
        let directory = self.directory.join(successor.task.to_string());
        let _turn = self.writing_bases.take(successor.task);
        // First: what a generation that is over still does changes nothing of the task in the one that runs.
        self.log.restart(successor.task, generation, Some(at))?;
        // If there is one it is of another life.
        lock(&self.successor_views).remove(&successor.task);
        // Those of a generation that is over are not awaited any more.
        let go_on = || match self.awaits(successor) {
            true => Ok(()),
            false => Err(StateError::Stale {
                task: successor.task,
                generation,
            }),
        };
        let base = base_file::write_portions(&directory, at, key_groups, &portions, &go_on)?;
        self.put_base(successor.task, base)?;
        self.await_after(successor, at);
        let of = successor.shares.iter().map(|share| share.of);
        self.keep_own_states(successor.task, of.zip(own_states));
        Ok(())
    }

    /// Goes on with a successor of which everything up to a checkpoint is here, in this generation. Blocks.
    pub fn go_on_with_successor(
        &self,
        generation: Generation,
        successor: &Successor,
        at: CheckpointId,
    ) -> Result<(), StateError> {
        self.log.restart(successor.task, generation, Some(at))?;
        self.await_after(successor, at);
        Ok(())
    }

    /// Whether a view was made of a successor, and is still good.
    pub fn has_view(&self, successor: TaskId) -> bool {
        lock(&self.successor_views).contains_key(&successor)
    }

    /// Makes a view of a successor that does not fit into memory. From now on folds bring it along, so its task begins
    /// at once, however large it is, and reads what it needs. Blocks, and waits for no fold.
    pub fn view_successor(&self, successor: &Successor) -> Result<(), StateError> {
        let task = successor.task;
        let gone = || StateError::InUse {
            directory: self.directory.join(task.to_string()),
        };
        let go_on = || match self.awaits(successor) {
            true => Ok(()),
            false => Err(StateError::CutShort),
        };
        // A generation that begins meanwhile may let go of the task.
        let _turn = lock(&self.sweeping);
        let base = self.base_of(task).ok_or_else(gone)?;
        let view = self.build_view(&self.view()?, task, &base, &go_on)?;
        go_on()?;
        lock(&self.successor_views).insert(task, Some(view));
        Ok(())
    }

    /// The views of successors are folded into from now on.
    pub(super) fn take_views(&self, folding: &mut Folding) {
        for (task, view) in lock(&self.successor_views).iter_mut() {
            if let Some(view) = view.take() {
                folding.tasks.entry(*task).or_default().view = Some(view);
            }
        }
    }

    /// What a successor gets of what its predecessors have sealed from one checkpoint to another, of which all is
    /// here: a chunk for each at which they meet, so that it has all of any of them that comes to be completed. If that
    /// is much, only of the first of them. Blocks.
    ///
    /// A namespace that one predecessor has emptied is empty in the others too: it is by what all of them had heard of
    /// event time.
    pub fn advance_of_successor(
        &self,
        generation: Generation,
        successor: &Successor,
        from: CheckpointId,
        to: CheckpointId,
        history: History<'_>,
    ) -> Result<Advance, StateError> {
        let mut lines = Vec::new();
        for share in &successor.shares {
            let sealed = self.following(share.of, Some(from), generation, history);
            if !meets(&sealed, from) {
                return Ok(Advance::Gap);
            }
            let own = lock(&self.own_states).remove(&(share.of, successor.task));
            let before = sealed.first().and_then(|chunk| chunk.previous);
            let own = own.filter(|own| own.generation == generation && Some(own.at) == before);
            lines.push(Line { share, sealed, own });
        }
        let first = lines.first().expect("a successor is never made of nothing");
        let sealed = first.sealed.iter().map(|chunk| chunk.checkpoint);
        let met = sealed.filter(|at| *at <= to && lines.iter().all(|line| line.is_sealed(*at)));
        let (mut chunks, mut after) = (Vec::new(), from);
        for at in met.collect::<Vec<_>>() {
            let bytes: u64 = lines.iter().map(|line| line.bytes(from, at)).sum();
            if bytes > self.options().step_bytes && !chunks.is_empty() {
                break;
            }
            for line in &mut lines {
                if line.own.is_none() {
                    line.own = self.own_state_at(generation, successor, line.share, at, history)?;
                }
            }
            if lines.iter().all(|line| line.own.is_some()) {
                chunks.push(self.chunk_of_successor(successor, &mut lines, after, at)?);
                after = at;
            }
        }
        let own_states = lines.into_iter();
        let own_states = own_states.filter_map(|line| Some((line.share.of, line.own?)));
        self.keep_own_states(successor.task, own_states);
        match chunks.is_empty() {
            true => Ok(Advance::Later),
            false => Ok(Advance::By(chunks)),
        }
    }

    /// What a successor gets from one checkpoint to another, at both of which its predecessors meet.
    fn chunk_of_successor(
        &self,
        successor: &Successor,
        lines: &mut [Line<'_>],
        from: CheckpointId,
        to: CheckpointId,
    ) -> Result<TaskChunk, StateError> {
        let mut tables: BTreeMap<TableId, Vec<Overlay>> = BTreeMap::new();
        for line in &mut *lines {
            for (table, changes) in self.follow(successor, line, from, to)? {
                tables.entry(table).or_default().push(changes);
            }
        }
        let keyed = tables
            .into_iter()
            .map(|(table, parts)| (table, together(&parts)));
        // All of it anew.
        let own_states = || lines.iter().filter_map(|line| line.own.as_ref());
        let mut own = inherited(successor, own_states());
        for table in own_states().flat_map(|own| own.tables.keys()) {
            own.entry(table.clone()).or_default();
        }
        let own = own.into_iter().map(|(table, state)| {
            let mut anew = Overlay::default();
            anew.clear_namespace(0);
            add(&mut anew, &state);
            (table, anew)
        });
        Ok(TaskChunk {
            task: successor.task,
            checkpoint: to,
            tables: keyed
                .chain(own)
                .map(|(table, changes)| (table, Arc::new(changes)))
                .collect(),
        })
    }

    /// What a predecessor's chunks have for a successor, one after the other. What it has of its own is taken along.
    fn follow(
        &self,
        successor: &Successor,
        line: &mut Line<'_>,
        from: CheckpointId,
        to: CheckpointId,
    ) -> Result<BTreeMap<TableId, Overlay>, StateError> {
        let own = line.own.as_mut().expect("it is known where they meet");
        let mut keyed: BTreeMap<TableId, Overlay> = BTreeMap::new();
        let groups = inclusive(line.share.groups);
        for chunk in between(&line.sealed, from, to) {
            for (table, placed) in self.log.tables_of(chunk)? {
                if (successor.is_own)(&table) {
                    // Also one of which nothing is left by now: the successor may still have of it.
                    let table = own.tables.entry(table).or_default();
                    if chunk.checkpoint > own.at {
                        let mut changes = Overlay::default();
                        let all = 0..=u16::MAX;
                        self.log.apply_table(&placed, &all, &mut changes)?;
                        table.settle(&changes);
                    }
                } else if let Some(groups) = &groups
                    && line.share.operators.contains(&table.operator)
                {
                    let changes = keyed.entry(table).or_default();
                    self.log.apply_table(&placed, groups, changes)?;
                }
            }
        }
        own.at = to;
        Ok(keyed)
    }

    /// Makes durable what successors get, with one sync. Blocks.
    pub fn advance_successors(
        &self,
        generation: Generation,
        successors: &[&Successor],
        chunks: &[TaskChunk],
    ) -> Result<(), StateError> {
        self.log.append(generation, chunks)?;
        for chunk in chunks {
            let mut all = successors.iter();
            let successor = all.find(|successor| successor.task == chunk.task);
            let successor = successor.expect("each gets its own");
            self.await_after(successor, chunk.checkpoint);
        }
        Ok(())
    }

    /// There are no successors any more, or none yet.
    pub fn await_no_successors(&self) {
        lock(&self.awaited).clear();
        lock(&self.own_states).clear();
    }

    /// Lets go of everything that is kept of other tasks: `sweep` removes it.
    pub fn keep_only(&self, tasks: &BTreeSet<TaskId>) {
        let mut folding = self.folding.take_urgently();
        self.take_views(&mut folding);
        lock(&self.successor_views).clear();
        let in_log = self.log.tasks();
        let mut bases = lock(&self.bases);
        let known = bases.keys().copied().chain(in_log);
        let others: BTreeSet<TaskId> = known.filter(|task| !tasks.contains(task)).collect();
        folding.tasks.retain(|task, _| tasks.contains(task));
        bases.retain(|task, _| tasks.contains(task));
        drop(bases);
        self.log.keep_only(tasks);
        lock(&self.unswept).extend(others);
    }

    /// Removes what is left on the disk of tasks that were let go of. It takes as long as they were large. Blocks.
    ///
    /// What is not removed by the time the process ends is found again by the tasks' directories, which go last.
    pub fn sweep(&self) -> Result<(), StateError> {
        // Another one that works on the same task would go on with it after this one has said that it is done.
        let _turn = lock(&self.sweeping);
        // Not held while it works: who asks whether a task is among them does not wait.
        let next = || lock(&self.unswept).first().copied();
        while let Some(task) = next() {
            self.open_view.begin(task);
            TaskView::begin(&self.view()?, task)?;
            base_file::remove_job(&self.directory.join(task.to_string()))?;
            lock(&self.unswept).remove(&task);
        }
        Ok(())
    }

    /// Whether a successor of its task has not had a chunk yet.
    pub(super) fn is_awaited(&self, task: TaskId, chunk: &ChunkRef) -> bool {
        let awaited = lock(&self.awaited);
        let mut of_task = awaited.iter().filter(|((of, _), _)| *of == task);
        of_task.any(|(_, after)| chunk.checkpoint > *after)
    }

    fn awaits(&self, successor: &Successor) -> bool {
        let awaited = lock(&self.awaited);
        let mut of = successor.shares.iter().map(|share| share.of);
        of.all(|of| awaited.contains_key(&(of, successor.task)))
    }

    fn await_after(&self, successor: &Successor, at: CheckpointId) {
        let mut awaited = lock(&self.awaited);
        for share in &successor.shares {
            awaited.insert((share.of, successor.task), at);
        }
    }

    fn keep_own_states(&self, successor: TaskId, of: impl Iterator<Item = (TaskId, OwnState)>) {
        let kept = of.map(|(of, own)| ((of, successor), own));
        lock(&self.own_states).extend(kept);
    }

    /// Read from its base file on; `None`: what is here of it does not lead to that checkpoint.
    fn own_state_at(
        &self,
        generation: Generation,
        successor: &Successor,
        share: &Share,
        at: CheckpointId,
        history: History<'_>,
    ) -> Result<Option<OwnState>, StateError> {
        let base = self.base_of(share.of);
        let base_at = base.as_deref().map(BaseFile::checkpoint);
        let since = self.following(share.of, base_at, generation, history);
        let Some(chunks) = chain(&since, base_at, at) else {
            return Ok(None);
        };
        let changes = Changes::of(&self.log, chunks)?;
        let predecessor = Predecessor {
            share,
            base,
            changes,
        };
        self.own_state(generation, successor, &predecessor, at)
            .map(Some)
    }

    fn own_state(
        &self,
        generation: Generation,
        successor: &Successor,
        predecessor: &Predecessor<'_>,
        at: CheckpointId,
    ) -> Result<OwnState, StateError> {
        let read = predecessor.reader();
        let since = since(&predecessor.changes, &read);
        let portion = Portion {
            base: predecessor.base.as_deref(),
            since: &since,
            groups: 0..=u16::MAX,
            tables: &successor.is_own,
        };
        let tables = base_file::read_portions(&[portion], self.options().key_groups)?;
        Ok(OwnState {
            generation,
            at,
            tables,
        })
    }
}

/// What is here of a predecessor: what it has sealed since a successor got of it, and what it has of its own.
struct Line<'a> {
    share: &'a Share,
    sealed: Vec<ChunkRef>,
    own: Option<OwnState>,
}

impl Line<'_> {
    fn bytes(&self, from: CheckpointId, to: CheckpointId) -> u64 {
        between(&self.sealed, from, to)
            .map(|chunk| chunk.bytes)
            .sum()
    }

    fn is_sealed(&self, at: CheckpointId) -> bool {
        let sealed = |chunk: &ChunkRef| chunk.checkpoint;
        self.sealed.binary_search_by_key(&at, sealed).is_ok()
    }
}

/// The state of a predecessor at a checkpoint.
struct Predecessor<'a> {
    share: &'a Share,
    base: Option<Arc<BaseFile>>,
    changes: Changes<'a>,
}

impl Predecessor<'_> {
    fn reader(
        &self,
    ) -> impl Fn(&TableId, &RangeInclusive<u16>) -> Result<Overlay, StateError> + '_ {
        |table, groups| Ok(self.changes.read(table, groups)?)
    }
}

/// What a successor has of its own, from what its predecessors have.
fn inherited<'o>(
    successor: &Successor,
    own_states: impl Iterator<Item = &'o OwnState>,
) -> OwnTables {
    let own = own_states.map(|own| own.tables.clone());
    (successor.inherit)(successor.shares.iter().zip(own).collect())
}

/// The chunks after one checkpoint and up to another.
fn between(
    chunks: &[ChunkRef],
    from: CheckpointId,
    to: CheckpointId,
) -> impl Iterator<Item = &ChunkRef> {
    let is_between = move |chunk: &&ChunkRef| from < chunk.checkpoint && chunk.checkpoint <= to;
    chunks.iter().filter(is_between)
}

/// Whether these chunks are all that comes after a checkpoint, without a gap.
fn meets(chunks: &[ChunkRef], from: CheckpointId) -> bool {
    let first = chunks.first();
    let begins = first.is_some_and(|first| first.previous <= Some(from));
    let pairs = chunks.iter().zip(chunks.iter().skip(1));
    let mut pairs = pairs.map(|(chunk, next)| (chunk.checkpoint, next.previous));
    begins && pairs.all(|(checkpoint, previous)| previous == Some(checkpoint))
}

/// The changes of parts that speak of different keys, but of the same namespaces.
fn together(parts: &[Overlay]) -> Overlay {
    let mut all = Overlay::default();
    for namespace in parts.iter().flat_map(Overlay::cleared) {
        all.clear_namespace(namespace);
    }
    parts.iter().for_each(|part| add(&mut all, part));
    all
}

fn add(all: &mut Overlay, part: &Overlay) {
    for change in part.sorted(1) {
        match change.value {
            Some(value) => all.put(change.namespace, change.key, value),
            None => all.delete(change.namespace, change.key),
        }
    }
}

fn inclusive(groups: KeyGroupRange) -> Option<RangeInclusive<u16>> {
    (!groups.is_empty()).then(|| groups.start..=groups.end - 1)
}
