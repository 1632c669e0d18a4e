//! The append engine under everything that must survive: a directory of segment files, one writer.
//!
//! Partition logs, the metadata command log and the delta logs of jobs are each a [`SegLog`]. It promises:
//!
//! - After a crash, the log is every record that was synced, in order, perhaps followed by some that
//!   were not. What is torn is cut off; what was durable and is damaged is reported, never cut off.
//! - `append` writes to the page cache and returns. `sync` is what makes records durable; it runs on
//!   whichever thread the owner has for waiting, while the owner goes on appending (group commit).
//! - After one failed fsync nothing is ever accepted or called durable again, because the kernel may have
//!   thrown the pages away: the owner must stop, and come back through recovery.
//! - A full disk refuses a record and nothing else: the log is as it was before.
//!
//! The log does not frame what it is given: see [`frame`].

pub mod frame;
mod position;
mod error;
mod segment;
mod blocking;
mod salvage;
mod recovery;
pub mod storage;
pub mod fs;
pub mod memory;
#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod conformance_tests;
#[cfg(test)]
mod crash_tests;

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use blocking::{PendingSync, Removal, Synced};
use blocking::{Shared, lock};
use error::sync_result;
pub use error::{LogError, is_disk_full};
use frame::{Scanner, frame_header, scan_frame};
pub use position::Position;
pub use recovery::{Cut, Recovery};
pub use salvage::salvage;
pub use segment::{Reader, Record, Records, SegmentInfo};
use segment::{Segment, Segments, segment_name};
use storage::LogStorage;

/// How a log is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub scanner: Scanner,
    /// A segment is not appended to beyond this, unless it is empty.
    pub segment_bytes: u64,
    /// Up to here the owner knows the log to be durable; where a record begins. The log keeps a note of
    /// its own, which an owner that knows nothing (`Position::ZERO`) may rely on.
    pub recovery_point: Position,
}

/// The one writer of a log.
#[derive(Debug)]
pub struct SegLog {
    storage: Arc<dyn LogStorage>,
    scanner: Scanner,
    segment_bytes: u64,
    segments: Arc<Segments>,
    active: Arc<Segment>,
    end: Position,
    durable: Position,
    /// Segments changed since they were last synced, and the number of changes each has seen.
    dirty: Vec<(Arc<Segment>, u64)>,
    changes: u64,
    directory_changed: Option<u64>,
    /// A sync that began before a cut must not vouch for what was appended after it.
    cuts: u64,
    shared: Arc<Shared>,
}

impl SegLog {
    /// Opens the log of this directory, or begins one; what is returned is durable. May block.
    pub fn open(
        storage: Arc<dyn LogStorage>,
        options: Options,
    ) -> Result<(SegLog, Recovery), LogError> {
        let (log, recovery) = SegLog::open_unverified(storage, options)?;
        log.verified()?;
        Ok((log, recovery))
    }

    /// The same, for who knows more of its records than the scanner: where they do not belong there, and begin at or
    /// after `Recovery::verified_from`, a crash tore the log, and it is to be cut off there. Then it is `verified`.
    pub fn open_unverified(
        storage: Arc<dyn LogStorage>,
        options: Options,
    ) -> Result<(SegLog, Recovery), LogError> {
        let recovered = recovery::recover(&*storage, options.scanner, options.recovery_point)?;
        let active = Arc::clone(recovered.segments.last().expect("a log has a segment"));
        let end = active.end();
        let log = SegLog {
            storage,
            scanner: options.scanner,
            segment_bytes: options.segment_bytes,
            segments: Segments::new(recovered.segments),
            active,
            end,
            durable: end,
            dirty: Vec::new(),
            changes: 0,
            directory_changed: None,
            cuts: 0,
            shared: Arc::default(),
        };
        Ok((log, recovered.recovery))
    }

    /// All of its records are what was written: from now on anything else among them is damage.
    pub fn verified(&self) -> Result<(), LogError> {
        recovery::note_recovery_point(&*self.storage, self.end, false)
    }

    /// Where the oldest record begins.
    pub fn start(&self) -> Position {
        self.reader().start()
    }

    /// Where the next record will begin.
    pub fn end(&self) -> Position {
        self.end
    }

    /// Records before this survive whatever happens.
    pub fn durable(&self) -> Position {
        self.durable
    }

    pub fn reader(&self) -> Reader {
        Reader {
            segments: Arc::clone(&self.segments),
            scanner: self.scanner,
        }
    }

    /// The segments, the active one last.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.reader().segments()
    }

    /// The first byte of the segment that is appended to.
    pub fn active_base(&self) -> Position {
        self.active.base
    }

    /// Whether a record of this size belongs into a new segment.
    pub fn needs_roll(&self, bytes: usize) -> bool {
        let used = self.active.bytes();
        used > 0 && used.saturating_add(as_u64(bytes)) > self.segment_bytes
    }

    /// Appends whole records and returns where the first begins. Not durable yet.
    pub fn append(&mut self, records: &[u8]) -> Result<Position, LogError> {
        self.append_vectored(&[records])
    }

    /// Appends one payload, given in parts, in the standard frame.
    pub fn append_framed(&mut self, payload: &[&[u8]]) -> Result<Position, LogError> {
        let header = frame_header(payload);
        let mut parts: Vec<&[u8]> = Vec::with_capacity(payload.len() + 1);
        parts.push(&header);
        parts.extend_from_slice(payload);
        self.append_vectored(&parts)
    }

    /// Appends whole records that lie in several places, as one write if the system can.
    pub fn append_vectored(&mut self, parts: &[&[u8]]) -> Result<Position, LogError> {
        self.refuse_if_poisoned()?;
        let position = self.end;
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        if !left.is_empty() {
            self.mark_dirty();
        }
        while !left.is_empty() {
            match self.active.file.append(left) {
                Ok(0) => return Err(self.take_back(ErrorKind::WriteZero.into())),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.take_back(error)),
            }
        }
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        self.end = position.plus(as_u64(bytes));
        self.active.set_bytes(self.end.since(self.active.base));
        Ok(position)
    }

    /// Begins a new segment; later records go there. Does not block for long: the old segment becomes
    /// durable with the next sync.
    pub fn roll(&mut self) -> Result<(), LogError> {
        self.refuse_if_poisoned()?;
        if self.active.bytes() == 0 {
            return Ok(());
        }
        let name = segment_name(self.end);
        let file = self
            .storage
            .create(&name)
            .map_err(|error| LogError::io("create", &name, error))?;
        let segment = recovery::segment(self.end, file)?;
        self.changes += 1;
        self.directory_changed = Some(self.changes);
        self.active = Arc::clone(&segment);
        self.segments.change(|list| list.push(segment));
        Ok(())
    }

    /// Begins to make durable what has been appended so far; `None` if it is. Several may be under way.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use common::seglog::{SegLog, Options, memory::MemoryStorage};
    /// # let disk = MemoryStorage::new(Arc::new(common::time::ManualClock::default()));
    /// let (mut log, _) = SegLog::open(disk.shared(), Options::standard()).unwrap();
    /// log.append_framed(&[b"record"]).unwrap();
    /// let sync = log.begin_sync().expect("there is something to sync");
    /// let synced = std::thread::spawn(move || sync.run()).join().unwrap();
    /// assert_eq!(log.finish_sync(synced.unwrap()).unwrap(), log.end());
    /// ```
    pub fn begin_sync(&self) -> Option<PendingSync> {
        if self.dirty.is_empty() && self.directory_changed.is_none() {
            return None;
        }
        Some(PendingSync {
            storage: Arc::clone(&self.storage),
            shared: Arc::clone(&self.shared),
            files: self.dirty.clone(),
            directory: self.directory_changed,
            end: self.end,
            cuts: self.cuts,
        })
    }

    /// Takes note of a sync that has run, and returns up to where the log is durable now.
    pub fn finish_sync(&mut self, synced: Synced) -> Result<Position, LogError> {
        self.refuse_if_poisoned()?;
        self.dirty.retain(|(_, change)| *change > synced.changes);
        if self.directory_changed.is_some_and(|c| c <= synced.changes) {
            self.directory_changed = None;
        }
        if synced.cuts == self.cuts && synced.end > self.durable {
            self.durable = synced.end;
            // A note that stays behind costs a longer verification at the next start, nothing else.
            recovery::note_recovery_point(&*self.storage, self.durable, false).ok();
        }
        Ok(self.durable)
    }

    /// Makes durable what has been appended so far, on this thread.
    pub fn sync(&mut self) -> Result<Position, LogError> {
        self.refuse_if_poisoned()?;
        match self.begin_sync() {
            Some(sync) => {
                let synced = sync.run()?;
                self.finish_sync(synced)
            }
            None => Ok(self.durable),
        }
    }

    /// Cuts off everything from this position, where a record begins, on; durably. May block.
    pub fn truncate_suffix(&mut self, to: Position) -> Result<(), LogError> {
        self.refuse_if_poisoned()?;
        let start = self.start();
        if to < start || to > self.end {
            return Err(LogError::OutOfRange {
                position: to,
                start,
                end: self.end,
            });
        }
        if to == self.end {
            return Ok(());
        }
        // Before anything is removed, or a crash would make what is missing look like damage.
        self.durable = self.durable.min(to);
        recovery::note_recovery_point(&*self.storage, self.durable, true)
            .map_err(|error| self.poison(error))?;
        self.cuts += 1;

        let removed = self.segments.change(|list| {
            let keep = list.partition_point(|s| s.base < to).max(1);
            let removed = list.split_off(keep);
            let last = list.last().expect("the first segment stays");
            last.set_bytes(to.since(last.base));
            self.active = Arc::clone(last);
            removed
        });
        self.end = to;
        self.dirty
            .retain(|(segment, _)| removed.iter().all(|gone| gone.base != segment.base));
        self.cut_files(&removed).map_err(|error| self.poison(error))
    }

    /// Drops the segments that lie before this position as a whole, but never the active one. They are
    /// gone for readers at once; their files are removed by running what is returned.
    pub fn drop_prefix(&mut self, before: Position) -> Option<Removal> {
        let dropped: Vec<Arc<Segment>> = self.segments.change(|list| {
            let sealed = &list[..list.len() - 1];
            let count = sealed.partition_point(|s| s.end() <= before);
            list.drain(..count).collect()
        });
        if dropped.is_empty() {
            return None;
        }
        self.dirty
            .retain(|(segment, _)| dropped.iter().all(|gone| gone.base != segment.base));
        let names = dropped.iter().map(|segment| segment.name.clone());
        lock(&self.shared.removals).extend(names);
        Some(Removal {
            storage: Arc::clone(&self.storage),
            shared: Arc::clone(&self.shared),
        })
    }

    fn cut_files(&mut self, removed: &[Arc<Segment>]) -> Result<(), LogError> {
        for segment in removed.iter().rev() {
            self.storage
                .remove(&segment.name)
                .map_err(|error| LogError::io("remove", &segment.name, error))?;
        }
        if !removed.is_empty() {
            sync_result("directory", self.storage.sync_directory())?;
        }
        self.active
            .file
            .truncate(self.active.bytes())
            .map_err(|error| LogError::io("truncate", &self.active.name, error))?;
        sync_result(&self.active.name, self.active.file.sync())
    }

    /// Removes what a failed append left behind.
    fn take_back(&mut self, error: io::Error) -> LogError {
        let failed = LogError::io("append to", &self.active.name, error);
        match self.active.file.truncate(self.active.bytes()) {
            Ok(()) => failed,
            Err(_) => self.poison(failed),
        }
    }

    fn mark_dirty(&mut self) {
        self.changes += 1;
        match self.dirty.last_mut() {
            Some((segment, change)) if Arc::ptr_eq(segment, &self.active) => *change = self.changes,
            _ => self.dirty.push((Arc::clone(&self.active), self.changes)),
        }
    }

    fn poison(&self, error: LogError) -> LogError {
        self.shared.poisoned.store(true, Ordering::Release);
        error
    }

    fn refuse_if_poisoned(&self) -> Result<(), LogError> {
        self.shared.refuse_if_poisoned()
    }
}

impl Options {
    /// Standard frames, segments of 64 MiB.
    pub fn standard() -> Options {
        Options {
            scanner: scan_frame,
            segment_bytes: 64 << 20,
            recovery_point: Position::ZERO,
        }
    }
}

fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a length fits into 64 bits")
}
