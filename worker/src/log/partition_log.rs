//! A partition's log: record batches appended in order, read back, and cut at either end.
//!
//! A batch is checked against what its producer sent before and against the open transactions, gets its
//! offset, and is written; only then is it part of what the log knows. So a write that fails leaves
//! nothing to take back. Everything here may block on the disk.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use common::ids::LeaderEpoch;
use common::kv::KvError;
use common::log_batch::{BatchError, BatchHeader, HEADER_BYTES, LogBatch, end_transaction};
use common::offset::Offset;
use common::protocol::topic::TopicConfig;
use common::seglog::frame::FrameCheck;
use common::seglog::storage::LogStorage;
use common::seglog::{LogError, Options, PendingSync, Position, Removal, SegLog, Synced};
use common::time::Timestamp;

use super::derived::{BrokenLog, Covered, Derived, follows};
use super::idempotency::{Known, RequestPart};
use super::index::LogIndex;
use super::producer_state::{ProducerRefusal, Verdict};
use super::reader::{LogReader, ReadError, View, Walk};
use super::replay::Replay;
use super::retention::{self, SegmentFacts};
use super::saved::SavedState;
use super::start_note;
use crate::partition::reconcile::{self, JobFacts, TransactionRefusal};

/// What an opening log reads at once.
const SCAN_BYTES: usize = 1 << 20;
/// What was appended since the derived state was last saved, before it is saved again: reading it back
/// takes a few milliseconds.
const SAVE_AFTER_BYTES: u64 = 8 << 20;
/// The state is saved again only when the log has grown by this many times the state.
const SAVE_AFTER_STATES: u64 = 16;

#[derive(Debug)]
pub struct PartitionLog {
    storage: Arc<dyn LogStorage>,
    log: SegLog,
    derived: Derived,
    view: Arc<RwLock<View>>,
    next_offset: Offset,
    durable_offset: Offset,
    /// Up to which offset the log is durable once it is so up to a position, for syncs under way.
    durable_at: BTreeMap<Position, Offset>,
    saved: Option<Saved>,
}

#[derive(Debug)]
struct Saved {
    store: SavedState,
    at: Position,
    state_bytes: u64,
}

/// Where an appended batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub base_offset: Offset,
    pub records: u32,
    pub max_timestamp: Timestamp,
    /// It was there before.
    pub duplicate: bool,
}

/// Why a batch was not appended. Nothing of it is in the log.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error(transparent)]
    Producer(#[from] ProducerRefusal),
    #[error(transparent)]
    Transaction(#[from] TransactionRefusal),
    #[error("the idempotency key \"{key}\" was used for another request")]
    KeyReused { key: String },
    #[error("a marker is written by the partition's leader only")]
    Marker,
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Why what a leader wrote is not appended to a follower's log. Nothing of it is in the log.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    #[error(transparent)]
    Broken(#[from] BrokenLog),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Why a log cannot be cut off.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    #[error("what was saved of the log cannot be forgotten")]
    Saved(#[from] KvError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Reopen(#[from] OpenError),
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the batch at position {position} is not the one that was written")]
    Broken {
        position: Position,
        #[source]
        source: BrokenLog,
    },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the log is empty and nothing says which offset comes next")]
    StartUnknown,
}

impl PartitionLog {
    /// Opens the log of this directory, or begins one. What it then holds is durable. `steady`, here and elsewhere:
    /// `AgeClock::steady`, by which producers and keys are forgotten.
    pub fn open(
        storage: Arc<dyn LogStorage>,
        mut saved: Option<SavedState>,
        config: &TopicConfig,
        steady: Timestamp,
    ) -> Result<PartitionLog, OpenError> {
        let restored = saved.as_mut().and_then(SavedState::load);
        let options = Options {
            scanner: scan_batch,
            segment_bytes: retention::segment_bytes(config),
            // What was saved was durable before it was saved: a log that is shorter has lost something.
            recovery_point: restored
                .as_ref()
                .map_or(Position::ZERO, |restored| restored.covered.position),
        };
        let (log, recovery) = SegLog::open_unverified(Arc::clone(&storage), options)?;
        let mut opened = PartitionLog {
            storage: Arc::clone(&storage),
            log,
            derived: Derived::default(),
            view: Arc::default(),
            next_offset: Offset::ZERO,
            durable_offset: Offset::ZERO,
            durable_at: BTreeMap::new(),
            saved: saved.map(|store| Saved {
                store,
                at: Position::ZERO,
                state_bytes: 0,
            }),
        };
        let start = opened.first_offset()?;
        let mut from = Covered {
            position: opened.log.start(),
            offset: start,
        };
        let mut index = LogIndex::default();
        if let Some(restored) = restored
            && restored.covered.position >= from.position
            && restored.covered.offset >= start
        {
            from = restored.covered;
            opened.derived = restored.derived;
            index = restored.index;
            if let Some(saved) = &mut opened.saved {
                saved.at = restored.covered.position;
                saved.state_bytes = restored.state_bytes;
            }
        }
        index.truncate(from.position);
        match opened.replay(from, index, steady) {
            // A batch's offset lies before its checksum, and perhaps in another sector: with the power one may be lost
            // without the other.
            Err(OpenError::Broken { position, source }) if position >= recovery.verified_from => {
                tracing::warn!(%position, %source, "a log is cut off where it was torn");
                opened.log.truncate_suffix(position)?;
                let saved = opened.saved.take().map(|saved| saved.store);
                drop(opened);
                return PartitionLog::open(storage, saved, config, steady);
            }
            replayed => replayed?,
        }
        opened.log.verified()?;
        opened.derived.drop_before(start);
        opened.derived.expire(steady);
        opened.change_view(|view| view.start = start);
        opened.share_aborted();
        Ok(opened)
    }

    /// Appends a batch as the leader of this epoch.
    pub fn append(
        &mut self,
        batch: &LogBatch,
        leader_epoch: LeaderEpoch,
        facts: &JobFacts,
        steady: Timestamp,
    ) -> Result<Placed, AppendError> {
        let header = batch.header();
        if header.control {
            return Err(AppendError::Marker);
        }
        if let Some(stamp) = header.producer {
            // Only the repetition of a batch may still come when its transaction has ended.
            if let Verdict::Duplicate(known) =
                self.derived.producers.check(stamp, header.record_count)?
            {
                return Ok(Placed {
                    base_offset: known.base_offset,
                    records: known.records,
                    max_timestamp: known.max_timestamp,
                    duplicate: true,
                });
            }
            let transactions = &self.derived.transactions;
            if transactions.open_of(stamp.id).is_some() {
                self.reconcile(leader_epoch, facts, steady)?;
            }
            let transactions = &self.derived.transactions;
            reconcile::admit(stamp, header.transactional, transactions, facts)?;
        }
        let part = RequestPart::of(batch);
        if let Some(part) = &part {
            match self.derived.keys.look_up(part) {
                Known::Not => {}
                Known::Appended(known) => {
                    return Ok(Placed {
                        base_offset: known.base_offset,
                        records: known.records,
                        max_timestamp: known.max_timestamp,
                        duplicate: true,
                    });
                }
                Known::OtherRequest => {
                    return Err(AppendError::KeyReused {
                        key: part.key.clone(),
                    });
                }
            }
        }
        let base_offset = self.write(batch, part.as_ref(), leader_epoch, steady)?;
        Ok(Placed {
            base_offset,
            records: header.record_count,
            max_timestamp: header.max_timestamp,
            duplicate: false,
        })
    }

    /// Appends a batch as its leader wrote it.
    pub fn append_verbatim(
        &mut self,
        batch: &LogBatch,
        steady: Timestamp,
    ) -> Result<(), ReplicaError> {
        let header = *batch.header();
        follows(&header, self.next_offset)?;
        self.derived
            .epochs
            .check(header.leader_epoch, header.base_offset)
            .map_err(BrokenLog::from)?;
        if header.control {
            batch.outcome().map_err(BrokenLog::from)?;
        }
        let part = RequestPart::of(batch);
        self.place(&header, &[batch.bytes()], batch, part.as_ref(), steady)?;
        if header.control {
            self.share_aborted();
        }
        Ok(())
    }

    /// Ends the open transactions of jobs that these facts decide. Returns how many.
    pub fn reconcile(
        &mut self,
        leader_epoch: LeaderEpoch,
        facts: &JobFacts,
        steady: Timestamp,
    ) -> Result<usize, LogError> {
        let markers = reconcile::markers(&self.derived.transactions, facts);
        if markers.is_empty() {
            return Ok(0);
        }
        let time = self.latest_timestamp();
        for marker in &markers {
            let batch = end_transaction(marker.producer, marker.epoch, marker.outcome, time);
            self.write(&batch, None, leader_epoch, steady)?;
        }
        self.share_aborted();
        Ok(markers.len())
    }

    /// Begins to make durable what was appended; `None` if all of it is. Run it on a blocking thread.
    pub fn begin_sync(&mut self) -> Option<PendingSync> {
        let sync = self.log.begin_sync()?;
        self.durable_at.insert(self.log.end(), self.next_offset);
        Some(sync)
    }

    /// Up to which offset the log is durable, now that a sync has run.
    pub fn finish_sync(&mut self, synced: Synced) -> Result<Offset, LogError> {
        let durable = self.log.finish_sync(synced)?;
        while let Some(entry) = self.durable_at.first_entry()
            && *entry.key() <= durable
        {
            self.durable_offset = self.durable_offset.max(entry.remove());
        }
        Ok(self.durable_offset)
    }

    /// Tells the log what is committed: markers before it can no longer be lost.
    pub fn committed(&mut self, committed: Offset) {
        self.derived.transactions.committed(committed);
    }

    /// Saves the derived state if it is worth it, or in any case when the log is about to be closed. What
    /// is saved is durable before.
    pub fn save(&mut self, closing: bool) -> Result<(), LogError> {
        let Some(saved) = &self.saved else {
            return Ok(());
        };
        let grown = self.log.end().0.saturating_sub(saved.at.0);
        let due = grown >= SAVE_AFTER_BYTES.max(saved.state_bytes * SAVE_AFTER_STATES);
        let wanted = due || (closing && grown > 0);
        if !wanted {
            return Ok(());
        }
        self.sync()?;
        let covered = Covered {
            position: self.log.end(),
            offset: self.next_offset,
        };
        let Some(saved) = &mut self.saved else {
            return Ok(());
        };
        // Whether it goes well or not, it is tried again after as much more.
        saved.at = covered.position;
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        match saved.store.save(covered, &self.derived, &view.index) {
            Ok(state_bytes) => saved.state_bytes = state_bytes,
            Err(error) => {
                tracing::warn!(%error, "the derived state of a partition could not be saved");
            }
        }
        Ok(())
    }

    /// Makes durable what was appended so far, on this thread.
    pub fn sync(&mut self) -> Result<Offset, LogError> {
        match self.begin_sync() {
            Some(sync) => {
                let synced = sync.run()?;
                self.finish_sync(synced)
            }
            None => Ok(self.durable_offset),
        }
    }

    /// Forgets producers and keys that have been silent for too long.
    pub fn forget_silent(&mut self, steady: Timestamp) {
        self.derived.expire(steady);
    }

    /// Removes what is too old or too much, up to `limit`. Returns the work of removing the files.
    pub fn retain(
        &mut self,
        config: &TopicConfig,
        limit: Offset,
        now: Timestamp,
    ) -> Result<Option<Removal>, LogError> {
        let segments = self.segment_facts()?;
        let plan = retention::plan(&segments, config, limit, now);
        if plan.roll {
            self.roll()?;
        }
        let Some(last_dropped) = plan.drop.checked_sub(1) else {
            return Ok(None);
        };
        let start = segments[last_dropped].end_offset;
        let before = self.log.segments()[plan.drop].base;
        // Should the rest of the log be empty, only this says which offset comes next.
        start_note::write(
            &*self.storage,
            Covered {
                position: before,
                offset: start,
            },
        )?;
        let removal = self.log.drop_prefix(before);
        self.derived.drop_before(start);
        self.change_view(|view| {
            view.start = start;
            view.index.drop_before(before);
        });
        self.share_aborted();
        Ok(removal)
    }

    /// Cuts off everything from this offset on, which must be where a batch begins or the end.
    pub fn truncate(&mut self, to: Offset, steady: Timestamp) -> Result<(), CutError> {
        if to >= self.next_offset {
            return Ok(());
        }
        let position = self.position_of(to).map_err(OpenError::from)?;
        // First: what was saved of a longer log would be taken for that of what grows here again.
        self.forget_saved()?;
        self.log.truncate_suffix(position)?;
        self.durable_at.clear();
        // What producers and transactions were before cannot be told from what they are now.
        self.derived = Derived::default();
        let start = self.first_offset()?;
        let from = Covered {
            position: self.log.start(),
            offset: start,
        };
        self.replay(from, LogIndex::default(), steady)?;
        self.share_aborted();
        Ok(())
    }

    /// Removes everything: the next record has this offset, which is not among those that the log has.
    pub fn begin_anew(&mut self, at: Offset) -> Result<(), CutError> {
        assert!(
            at >= self.next_offset || self.next_offset == self.start_offset(),
            "a log with records does not begin before its end"
        );
        self.forget_saved()?;
        self.log.sync()?;
        self.roll()?;
        let position = self.log.active_base();
        start_note::write(
            &*self.storage,
            Covered {
                position,
                offset: at,
            },
        )?;
        if let Some(removal) = self.log.drop_prefix(position) {
            removal.run()?;
        }
        self.derived = Derived::default();
        self.next_offset = at;
        self.durable_offset = at;
        self.durable_at.clear();
        self.change_view(|view| {
            *view = View {
                start: at,
                ..View::default()
            };
            view.index.segment_begins();
        });
        Ok(())
    }

    fn forget_saved(&mut self) -> Result<(), KvError> {
        if let Some(saved) = &mut self.saved {
            saved.store.forget_durably()?;
            saved.at = Position::ZERO;
        }
        Ok(())
    }

    /// A reader for other threads.
    pub fn reader(&self) -> LogReader {
        LogReader::new(self.log.reader(), Arc::clone(&self.view))
    }

    pub fn start_offset(&self) -> Offset {
        self.view
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .start
    }

    /// The offset the next record will have.
    pub fn end_offset(&self) -> Offset {
        self.next_offset
    }

    /// Records before this survive whatever happens.
    pub fn durable_offset(&self) -> Offset {
        self.durable_offset
    }

    /// Of what was written, so much may be lost with the power.
    pub fn unsynced_bytes(&self) -> u64 {
        self.log.end().since(self.log.durable())
    }

    pub fn derived(&self) -> &Derived {
        &self.derived
    }

    pub fn bytes(&self) -> u64 {
        self.log.end().since(self.log.start())
    }

    fn write(
        &mut self,
        batch: &LogBatch,
        part: Option<&RequestPart>,
        leader_epoch: LeaderEpoch,
        steady: Timestamp,
    ) -> Result<Offset, LogError> {
        let base_offset = self.next_offset;
        let stamped = batch.stamped_start(base_offset, leader_epoch);
        let rest = &batch.bytes()[stamped.len()..];
        let header = BatchHeader {
            base_offset,
            leader_epoch,
            ..*batch.header()
        };
        self.place(&header, &[&stamped, rest], batch, part, steady)?;
        Ok(base_offset)
    }

    /// Writes a batch that was checked, in these parts, and takes note of it.
    fn place(
        &mut self,
        header: &BatchHeader,
        parts: &[&[u8]],
        batch: &LogBatch,
        part: Option<&RequestPart>,
        steady: Timestamp,
    ) -> Result<(), LogError> {
        if self.log.needs_roll(header.total_bytes()) {
            self.roll()?;
        }
        let position = self.log.append_vectored(parts)?;
        self.next_offset = header.end_offset();
        self.change_view(|view| {
            view.index
                .append(header.base_offset, position, header.max_timestamp);
        });
        self.derived
            .record(header, batch, part, steady)
            .expect("its leader's epoch is the newest, and the batch was checked");
        Ok(())
    }

    fn roll(&mut self) -> Result<(), LogError> {
        self.log.roll()?;
        self.change_view(|view| view.index.segment_begins());
        Ok(())
    }

    /// Reads the log from `from` on into the derived state.
    fn replay(
        &mut self,
        from: Covered,
        index: LogIndex,
        steady: Timestamp,
    ) -> Result<(), OpenError> {
        let mut replay = Replay {
            derived: std::mem::take(&mut self.derived),
            index,
            next_offset: from.offset,
        };
        replay.run(&self.log.reader(), from.position, steady)?;
        self.derived = replay.derived;
        // What is in the log when it is opened is durable.
        self.derived.transactions.committed(replay.next_offset);
        self.next_offset = replay.next_offset;
        self.durable_offset = replay.next_offset;
        self.change_view(|view| view.index = replay.index);
        Ok(())
    }

    /// The offset of the first record, or of the next one if there is none.
    fn first_offset(&self) -> Result<Offset, OpenError> {
        let reader = self.log.reader();
        let start = self.log.start();
        if let Some(first) = Walk::new(&reader, start, HEADER_BYTES).next()? {
            return Ok(first.header.base_offset);
        }
        if start == Position::ZERO {
            return Ok(Offset::ZERO);
        }
        match start_note::read(&*self.storage)? {
            Some(note) if note.position == start => Ok(note.offset),
            Some(_) | None => Err(OpenError::StartUnknown),
        }
    }

    fn position_of(&self, offset: Offset) -> Result<Position, ReadError> {
        let block = self
            .view
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .index
            .floor(offset);
        let out_of_range = || ReadError::OutOfRange {
            offset,
            start: self.start_offset(),
            end: self.next_offset,
        };
        let block = block.ok_or_else(out_of_range)?;
        let reader = self.log.reader();
        let mut walk = Walk::new(&reader, block.position, SCAN_BYTES);
        while let Some(step) = walk.next()? {
            if step.header.base_offset == offset {
                return Ok(step.position);
            }
            if step.header.base_offset > offset {
                break;
            }
        }
        Err(out_of_range())
    }

    /// That of the last block. With it a marker, which no reader sees, changes nothing in where a time is looked for.
    fn latest_timestamp(&self) -> Timestamp {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.index
            .last()
            .map(|block| block.max_timestamp)
            .unwrap_or_default()
    }

    fn segment_facts(&self) -> Result<Vec<SegmentFacts>, LogError> {
        let segments = self.log.segments();
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let ends = segments.iter().skip(1).map(|segment| segment.base);
        // Every segment's first batch begins a block.
        let mut blocks = view.index.blocks();
        let mut facts: Vec<SegmentFacts> = Vec::with_capacity(segments.len());
        for (segment, end) in segments.iter().zip(ends) {
            let end_offset = blocks
                .find(|block| block.position >= end)
                .map_or(self.next_offset, |block| block.offset);
            facts.push(SegmentFacts {
                end_offset,
                bytes: segment.bytes,
                created: segment.created,
            });
        }
        if let Some(active) = segments.last() {
            facts.push(SegmentFacts {
                end_offset: self.next_offset,
                bytes: active.bytes,
                created: active.created,
            });
        }
        Ok(facts)
    }

    fn share_aborted(&mut self) {
        let aborted = self.derived.transactions.aborted().to_vec();
        self.change_view(|view| view.aborted = aborted);
    }

    fn change_view(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Tells what bytes of the log begin with.
pub fn scan_batch(bytes: &[u8]) -> FrameCheck {
    if bytes.len() < HEADER_BYTES {
        return FrameCheck::Incomplete(HEADER_BYTES);
    }
    match LogBatch::verify(bytes) {
        Ok(header) => FrameCheck::Complete(header.total_bytes()),
        Err(BatchError::CutOff { needed, .. }) => FrameCheck::Incomplete(needed),
        Err(_) => FrameCheck::Corrupt,
    }
}
