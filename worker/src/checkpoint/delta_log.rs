//! The delta log of a job on this worker: the chunks of all its tasks here, in the order they were sealed.
//!
//! One append log, one sync for everything that a checkpoint's tasks sealed. What it has is known
//! by its index, which is read when it is opened: which chunk is where, of which generation and
//! checkpoint. Whether a chunk counts is not written in it: that is a fact of the job's history.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use common::ids::{CheckpointId, Generation, TaskId};
use common::seglog::frame::{FRAME_HEADER_BYTES, FrameCheck, scan_frame};
use common::seglog::storage::LogStorage;
use common::seglog::{LogError, Options, Position, Reader, Record, SegLog};

use super::chunk::{self, ChunkHeader, EncodedRecord, NotAChunk, TaskChunk};
use crate::keyed_state::overlay::Overlay;
use crate::keyed_state::section::{Section, TableId};

#[derive(Debug)]
pub(super) struct DeltaLog {
    key_groups: u16,
    /// Held from the writing of chunks until they are in the index.
    appending: Mutex<()>,
    inner: Mutex<Inner>,
    reader: Reader,
}

#[derive(Debug)]
struct Inner {
    log: SegLog,
    chunks: BTreeMap<TaskId, Vec<ChunkRef>>,
    /// The generation a task runs in, and the checkpoint its next chunk builds on.
    last: BTreeMap<TaskId, (Generation, Option<CheckpointId>)>,
    /// Chunks of which the last record is not here yet.
    begun: Begun,
    /// From here on there are chunks that the index does not have yet.
    unindexed: Option<Position>,
}

/// A chunk, the checkpoint it builds on, and its records.
type EncodedChunk<'c> = (&'c TaskChunk, Option<CheckpointId>, Vec<EncodedRecord>);

/// Where a whole chunk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChunkRef {
    pub(super) generation: Generation,
    pub(super) checkpoint: CheckpointId,
    pub(super) previous: Option<CheckpointId>,
    pub(super) bytes: u64,
    records: Vec<Position>,
}

impl ChunkRef {
    pub(super) fn records(&self) -> &[Position] {
        &self.records
    }

    pub(super) fn position(&self) -> Position {
        *self.records.first().expect("a chunk has a record")
    }
}

/// Where one record has the changes of one table.
#[derive(Clone, Debug)]
pub(super) struct PlacedTable {
    pub(super) cleared: Vec<i64>,
    /// By key group, one after the other.
    pub(super) sections: Vec<(Position, Section)>,
    record: Position,
}

#[derive(Debug, thiserror::Error)]
pub enum DeltaLogError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("task {task} was not restored for generation {generation}")]
    Stale {
        task: TaskId,
        generation: Generation,
    },
    #[error("at position {position} of the delta log: {source}")]
    NotAChunk {
        position: Position,
        #[source]
        source: NotAChunk,
    },
}

impl DeltaLog {
    pub(super) fn open(
        storage: Arc<dyn LogStorage>,
        key_groups: u16,
        segment_bytes: u64,
    ) -> Result<DeltaLog, DeltaLogError> {
        let options = Options {
            segment_bytes,
            ..Options::standard()
        };
        let (log, recovery) = SegLog::open(storage, options)?;
        if let Some(cut) = recovery.cut {
            tracing::info!(at = %cut.at, bytes = cut.bytes, "a torn end of a delta log was cut off");
        }
        let reader = log.reader();
        let mut chunks = BTreeMap::new();
        let mut begun = BTreeMap::new();
        for record in reader.records(reader.start()) {
            let record = record?;
            index(&mut chunks, &mut begun, record.position, &record.payload())?;
        }
        let inner = Inner {
            log,
            chunks,
            last: BTreeMap::new(),
            begun,
            unindexed: None,
        };
        Ok(DeltaLog {
            key_groups,
            appending: Mutex::new(()),
            inner: Mutex::new(inner),
            reader,
        })
    }

    /// Makes chunks durable, with one sync; says how many bytes each task added. Blocks.
    pub(super) fn append(
        &self,
        generation: Generation,
        chunks: &[TaskChunk],
    ) -> Result<BTreeMap<TaskId, u64>, DeltaLogError> {
        // Encoding is the work: others write meanwhile, and begin tasks anew.
        let (_turn, encoded) = loop {
            let last = self.inner().last.clone();
            let encoded = self.encode(generation, chunks, last.clone())?;
            let turn = self.turn();
            let inner = self.inner();
            let mut tasks = chunks.iter().map(|chunk| chunk.task);
            if tasks.all(|task| inner.last.get(&task) == last.get(&task)) {
                break (turn, encoded);
            }
        };
        // Readers go on while the disk is waited for.
        let mut written = Vec::new();
        let sync = {
            let mut inner = self.inner();
            inner.unindexed = Some(inner.log.end());
            for (chunk, before, records) in &encoded {
                let positions = inner.write(records)?;
                let bytes = records.iter().map(EncodedRecord::bytes).sum::<usize>();
                let at = ChunkRef {
                    generation,
                    checkpoint: chunk.checkpoint,
                    previous: *before,
                    bytes: u64::try_from(bytes).expect("a length fits into 64 bits"),
                    records: positions,
                };
                written.push((chunk.task, at));
            }
            inner.log.begin_sync()
        };
        let synced = sync.map(|sync| sync.run()).transpose()?;

        let mut inner = self.inner();
        if let Some(synced) = synced {
            inner.log.finish_sync(synced)?;
        }
        inner.unindexed = None;
        let mut bytes = BTreeMap::new();
        for (task, chunk) in written {
            let last = (generation, Some(chunk.checkpoint));
            inner.last.insert(task, last);
            *bytes.entry(task).or_default() += chunk.bytes;
            inner.note(task, chunk);
        }
        Ok(bytes)
    }

    /// The records of chunks, each with the checkpoint it builds on. `last`: of before.
    fn encode<'c>(
        &self,
        generation: Generation,
        chunks: &'c [TaskChunk],
        mut last: BTreeMap<TaskId, (Generation, Option<CheckpointId>)>,
    ) -> Result<Vec<EncodedChunk<'c>>, DeltaLogError> {
        let encoded = chunks.iter().map(|chunk| {
            let stale = || DeltaLogError::Stale {
                task: chunk.task,
                generation,
            };
            let last = last.get_mut(&chunk.task);
            let (_, last) = last.filter(|(of, _)| *of == generation).ok_or_else(stale)?;
            let before = last.replace(chunk.checkpoint);
            let records = chunk::encode(chunk, generation, before, self.key_groups);
            Ok((chunk, before, records))
        });
        encoded.collect()
    }

    /// Makes records of another worker's log durable as they are, with one sync. Blocks.
    pub(super) fn append_verbatim(&self, records: &[Bytes]) -> Result<(), DeltaLogError> {
        let sound = |record: &Bytes| scan_frame(record) == FrameCheck::Complete(record.len());
        if !records.iter().all(sound) {
            return Err(DeltaLogError::NotAChunk {
                position: self.end(),
                source: NotAChunk,
            });
        }
        let _turn = self.turn();
        let mut positions = Vec::with_capacity(records.len());
        let sync = {
            let mut inner = self.inner();
            inner.unindexed = Some(inner.log.end());
            for record in records {
                if inner.log.needs_roll(record.len()) {
                    inner.log.roll()?;
                }
                positions.push(inner.log.append(record)?);
            }
            inner.log.begin_sync()
        };
        let synced = sync.map(|sync| sync.run()).transpose()?;
        let mut inner = self.inner();
        if let Some(synced) = synced {
            inner.log.finish_sync(synced)?;
        }
        inner.unindexed = None;
        let Inner { chunks, begun, .. } = &mut *inner;
        for (position, record) in positions.into_iter().zip(records) {
            index(chunks, begun, position, &record.slice(FRAME_HEADER_BYTES..))?;
        }
        Ok(())
    }

    /// The record at a position.
    pub(super) fn record(&self, position: Position) -> Result<Record, LogError> {
        let out_of_range = || LogError::OutOfRange {
            position,
            start: self.reader.start(),
            end: self.reader.end(),
        };
        let mut records = self.reader.records(position);
        records.next().ok_or_else(out_of_range)?
    }

    /// A task begins again from this checkpoint; for a generation that is over, it does not.
    pub(super) fn restart(
        &self,
        task: TaskId,
        generation: Generation,
        at: Option<CheckpointId>,
    ) -> Result<(), DeltaLogError> {
        let _turn = self.turn();
        let mut inner = self.inner();
        let of = inner.last.get(&task).map(|(of, _)| *of);
        if of > Some(generation) {
            return Err(DeltaLogError::Stale { task, generation });
        }
        inner.last.insert(task, (generation, at));
        Ok(())
    }

    /// As if nothing of all other tasks were here.
    pub(super) fn keep_only(&self, tasks: &BTreeSet<TaskId>) {
        let mut inner = self.inner();
        inner.chunks.retain(|task, _| tasks.contains(task));
        inner.last.retain(|task, _| tasks.contains(task));
        inner.begun.retain(|(task, _, _), _| tasks.contains(task));
    }

    /// Where the next chunk will be.
    pub(super) fn end(&self) -> Position {
        self.reader.end()
    }

    pub(super) fn tasks(&self) -> Vec<TaskId> {
        self.inner().chunks.keys().copied().collect()
    }

    /// The chunks of a task that count, in order: those that lead to the last of them. A successor may have been made
    /// here in other steps than on the worker it is fetched from now; of such a past each chunk is right, and only one
    /// line is followed.
    pub(super) fn counted(
        &self,
        task: TaskId,
        counts: &dyn Fn(Generation, CheckpointId) -> bool,
    ) -> Vec<ChunkRef> {
        self.inner().counted(task, counts)
    }

    /// As if a task's chunks were not here up to the last that counts, if no chain leads there from its base file; but
    /// for those that are wanted. What was lacking may have come, and somebody been told so: nobody sees a part of
    /// them, or adds to them, while it is decided.
    pub(super) fn forget_severed(
        &self,
        task: TaskId,
        counts: &dyn Fn(Generation, CheckpointId) -> bool,
        base_at: &dyn Fn() -> Option<CheckpointId>,
        wanted: &dyn Fn(&ChunkRef) -> bool,
    ) {
        let mut inner = self.inner();
        let counted = inner.counted(task, counts);
        let Some(last) = counted.last().map(|chunk| chunk.checkpoint) else {
            return;
        };
        if chain(&counted, base_at(), last).is_some() {
            return;
        }
        tracing::debug!(%task, "what is left of a task leads nowhere, and goes");
        if let Some(chunks) = inner.chunks.get_mut(&task) {
            chunks.retain(|chunk| chunk.checkpoint > last || wanted(chunk));
        }
    }

    /// What is here of a chunk that follows a checkpoint and whose last record is not here yet.
    pub(super) fn begun(
        &self,
        task: TaskId,
        generation: Generation,
        after: Option<CheckpointId>,
    ) -> Option<ChunkRef> {
        let inner = self.inner();
        let first = (task, generation, CheckpointId(0));
        let last = (task, generation, CheckpointId(u64::MAX));
        let mut begun = inner.begun.range(first..=last).rev();
        let (_, chunk) = begun.find(|(_, chunk)| chunk.previous == after)?;
        Some(chunk.clone())
    }

    /// Applies a chunk's changes to what came before.
    pub(super) fn apply(
        &self,
        chunk: &ChunkRef,
        changes: &mut BTreeMap<TableId, Overlay>,
    ) -> Result<(), DeltaLogError> {
        for position in &chunk.records {
            let not_a_chunk = |source| DeltaLogError::NotAChunk {
                position: *position,
                source,
            };
            let record = self.record(*position)?;
            let (header, body) = chunk::decode(&record.payload()).map_err(not_a_chunk)?;
            header.apply(&body, changes).map_err(not_a_chunk)?;
        }
        Ok(())
    }

    /// Where a chunk has the changes of each table; reads no more than the headers.
    pub(super) fn tables_of(
        &self,
        chunk: &ChunkRef,
    ) -> Result<Vec<(TableId, PlacedTable)>, DeltaLogError> {
        let mut tables = Vec::new();
        for record in &chunk.records {
            let not_a_chunk = |source| DeltaLogError::NotAChunk {
                position: *record,
                source,
            };
            let payload = record.plus(FRAME_HEADER_BYTES as u64);
            let length = self.reader.read(payload, chunk::LENGTH_BYTES)?;
            let header_at = payload.plus(length.len() as u64);
            let length = chunk::header_length(&length).map_err(not_a_chunk)?;
            let header = self.reader.read(header_at, length)?;
            let header = ChunkHeader::read(&header).map_err(not_a_chunk)?;
            let mut at = header_at.plus(length as u64);
            for table in header.tables {
                let place = |section: Section| {
                    let start = at;
                    at = at.plus(section.bytes);
                    (start, section)
                };
                let placed = PlacedTable {
                    cleared: table.cleared,
                    sections: table.sections.into_iter().map(place).collect(),
                    record: *record,
                };
                tables.push((table.table, placed));
            }
        }
        Ok(tables)
    }

    /// Applies what a record has of a table in some key groups. Emptied namespaces are emptied in each.
    pub(super) fn apply_table(
        &self,
        placed: &PlacedTable,
        groups: &RangeInclusive<u16>,
        changes: &mut Overlay,
    ) -> Result<(), DeltaLogError> {
        for namespace in &placed.cleared {
            changes.clear_namespace(*namespace);
        }
        let wanted = |(_, section): &&(Position, Section)| groups.contains(&section.group.0);
        let sections: Vec<_> = placed.sections.iter().filter(wanted).collect();
        let (Some((start, _)), Some((last, section))) = (sections.first(), sections.last()) else {
            return Ok(());
        };
        let bytes = last.plus(section.bytes).since(*start);
        let bytes = usize::try_from(bytes).expect("a record fits into memory");
        let bytes = self.reader.read(*start, bytes)?;
        let mut rest = &bytes[..];
        for (_, section) in sections {
            section
                .apply(&mut rest, changes)
                .map_err(|_| DeltaLogError::NotAChunk {
                    position: placed.record,
                    source: NotAChunk,
                })?;
        }
        Ok(())
    }

    /// Drops the segments all of whose chunks nobody needs any more. Blocks.
    pub(super) fn drop_unneeded(
        &self,
        needed: &dyn Fn(TaskId, &ChunkRef) -> bool,
    ) -> Result<(), DeltaLogError> {
        let removal = {
            let mut inner = self.inner();
            let oldest_needed = inner
                .chunks
                .iter()
                .flat_map(|(task, chunks)| chunks.iter().map(move |chunk| (*task, chunk)))
                .filter(|(task, chunk)| needed(*task, chunk))
                .map(|(_, chunk)| chunk.position())
                .min();
            let end = inner.unindexed.unwrap_or(inner.log.end());
            let before = oldest_needed.unwrap_or(end).min(end);
            let removal = inner.log.drop_prefix(before);
            let start = inner.log.start();
            inner.forget_before(start);
            removal
        };
        match removal {
            Some(removal) => Ok(removal.run()?),
            None => Ok(()),
        }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.appending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn counted(
        &self,
        task: TaskId,
        counts: &dyn Fn(Generation, CheckpointId) -> bool,
    ) -> Vec<ChunkRef> {
        let chunks = self.chunks.get(&task).into_iter().flatten();
        let counted = chunks.filter(|chunk| counts(chunk.generation, chunk.checkpoint));
        let mut counted: Vec<ChunkRef> = counted.cloned().collect();
        counted.sort_by_key(|chunk| chunk.checkpoint);
        let mut line: Vec<ChunkRef> = Vec::new();
        for chunk in counted.into_iter().rev() {
            let next = line.last();
            if next.is_none_or(|next| next.previous == Some(chunk.checkpoint)) {
                line.push(chunk);
            }
        }
        line.reverse();
        line
    }

    fn write(&mut self, records: &[EncodedRecord]) -> Result<Vec<Position>, LogError> {
        let mut positions = Vec::with_capacity(records.len());
        for record in records {
            if self.log.needs_roll(record.bytes()) {
                self.log.roll()?;
            }
            positions.push(self.log.append_framed(&record.parts())?);
        }
        Ok(positions)
    }

    /// A chunk that was written again takes the place of the former one.
    fn note(&mut self, task: TaskId, chunk: ChunkRef) {
        note(&mut self.chunks, task, chunk);
    }

    fn forget_before(&mut self, start: Position) {
        for chunks in self.chunks.values_mut() {
            chunks.retain(|chunk| chunk.records.iter().all(|position| *position >= start));
        }
        self.chunks.retain(|_, chunks| !chunks.is_empty());
    }
}

fn note(chunks: &mut BTreeMap<TaskId, Vec<ChunkRef>>, task: TaskId, chunk: ChunkRef) {
    let chunks = chunks.entry(task).or_default();
    chunks.retain(|c| (c.generation, c.checkpoint) != (chunk.generation, chunk.checkpoint));
    chunks.push(chunk);
}

type Begun = BTreeMap<(TaskId, Generation, CheckpointId), ChunkRef>;

/// Adds a record to the index: its chunk is known once its last record is.
fn index(
    chunks: &mut BTreeMap<TaskId, Vec<ChunkRef>>,
    begun: &mut Begun,
    position: Position,
    payload: &Bytes,
) -> Result<(), DeltaLogError> {
    let (header, _) =
        chunk::decode(payload).map_err(|source| DeltaLogError::NotAChunk { position, source })?;
    let key = (header.task, header.generation, header.checkpoint);
    if header.part == 0 {
        let chunk = ChunkRef {
            generation: header.generation,
            checkpoint: header.checkpoint,
            previous: header.previous,
            bytes: 0,
            records: Vec::new(),
        };
        begun.insert(key, chunk);
    }
    // The first records may have been dropped with an older segment: then it is needed by nobody.
    let Some(mut chunk) = begun.remove(&key) else {
        return Ok(());
    };
    chunk.bytes += u64::try_from(payload.len()).expect("a length fits into 64 bits");
    chunk.records.push(position);
    if header.last {
        note(chunks, header.task, chunk);
    } else {
        begun.insert(key, chunk);
    }
    Ok(())
}

/// The chunks that lead from one checkpoint to another without a gap; `None` if there are none.
pub(super) fn chain(
    counted: &[ChunkRef],
    from: Option<CheckpointId>,
    to: CheckpointId,
) -> Option<&[ChunkRef]> {
    let first = counted.partition_point(|chunk| Some(chunk.checkpoint) <= from);
    let end = counted.partition_point(|chunk| chunk.checkpoint <= to);
    let chain = counted.get(first..end)?;
    let mut at = from;
    for chunk in chain {
        if chunk.previous != at {
            return None;
        }
        at = Some(chunk.checkpoint);
    }
    (at == Some(to)).then_some(chain)
}
