//! Work on a log's files for a thread that may block, while the log is appended to: to make durable what was
//! appended, to remove what was dropped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::LogError;
use super::error::sync_result;
use super::position::Position;
use super::segment::Segment;
use super::storage::LogStorage;

/// What the log has in common with its syncs and removals, which run on other threads.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) poisoned: AtomicBool,
    /// An fsync error is reported to one caller only: syncs take turns, so that none succeeds after
    /// another has failed.
    syncing: Mutex<()>,
    pub(super) removals: Mutex<VecDeque<String>>,
}

/// Work to be done on a thread that may block: see [`super::SegLog::begin_sync`].
#[derive(Debug)]
#[must_use = "nothing is durable before the sync has run and was finished"]
pub struct PendingSync {
    pub(super) storage: Arc<dyn LogStorage>,
    pub(super) shared: Arc<Shared>,
    pub(super) files: Vec<(Arc<Segment>, u64)>,
    pub(super) directory: Option<u64>,
    pub(super) end: Position,
    pub(super) cuts: u64,
}

/// The proof that a [`PendingSync`] has run, which only running it gives.
#[derive(Debug)]
#[must_use = "tell the log with `finish_sync`"]
pub struct Synced {
    pub(super) changes: u64,
    pub(super) end: Position,
    pub(super) cuts: u64,
}

/// Files of dropped segments, to be removed on a thread that may block: see [`super::SegLog::drop_prefix`].
#[derive(Debug)]
#[must_use = "the files are there until the removal has run"]
pub struct Removal {
    pub(super) storage: Arc<dyn LogStorage>,
    pub(super) shared: Arc<Shared>,
}

impl PendingSync {
    /// Blocks until what was appended before it began is durable. After an error the log is poisoned.
    pub fn run(self) -> Result<Synced, LogError> {
        let _turn = lock(&self.shared.syncing);
        self.shared.refuse_if_poisoned()?;
        self.sync_all().inspect_err(|_| {
            self.shared.poisoned.store(true, Ordering::Release);
        })?;
        let changes = self.files.iter().map(|(_, change)| *change);
        Ok(Synced {
            changes: changes.chain(self.directory).max().unwrap_or(0),
            end: self.end,
            cuts: self.cuts,
        })
    }

    fn sync_all(&self) -> Result<(), LogError> {
        for (segment, _) in &self.files {
            sync_result(&segment.name, segment.file.sync())?;
        }
        if self.directory.is_some() {
            sync_result("directory", self.storage.sync_directory())?;
        }
        Ok(())
    }
}

impl Removal {
    /// Removes the files of everything dropped so far, the oldest first and each durably before the
    /// next, so that no crash leaves a hole.
    pub fn run(self) -> Result<(), LogError> {
        let mut names = lock(&self.shared.removals);
        while let Some(name) = names.front() {
            self.storage
                .remove(name)
                .map_err(|error| LogError::io("remove", name, error))?;
            sync_result("directory", self.storage.sync_directory()).inspect_err(|_| {
                self.shared.poisoned.store(true, Ordering::Release);
            })?;
            names.pop_front();
        }
        Ok(())
    }
}

impl Shared {
    pub(super) fn refuse_if_poisoned(&self) -> Result<(), LogError> {
        if self.poisoned.load(Ordering::Acquire) {
            Err(LogError::Poisoned)
        } else {
            Ok(())
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
