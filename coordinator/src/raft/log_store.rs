//! Raft's log on our own append engine: whatever is acknowledged is on the disk.
//!
//! The entries are kept in memory as well: what is not in a snapshot yet is little, and followers that are
//! a little behind read it all the time. A full disk holds the log up until there is room, and whoever
//! proposes is told; nothing that was accepted is lost by it. Every other failure ends the node, because
//! nobody can tell what is on the disk.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader};
use tokio::sync::watch;
use tracing::{info, warn};

use common::seglog::storage::LogStorage;
use common::seglog::{LogError, Options, Position, SegLog};
use common::time::Span;
use common::transport::msgpack;

use super::OpenError;
use super::records::{Belongs, Contents, Record};
use super::types::{
    Entry, LogId, MAX_APPEND_BYTES, StorageError, StorageIOError, TypeConfig, Vote,
};

/// How often a full disk is asked whether there is room again.
const ROOM_EVERY: Span = Span::from_millis(100);

/// A handle on the log. Raft's core is the one that writes.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Held while the disk is written to and synced.
    disk: Mutex<SegLog>,
    contents: Mutex<Contents>,
    end: watch::Sender<Position>,
    full: watch::Sender<bool>,
    stopping: AtomicBool,
}

/// How far a write has come.
enum Wrote {
    All,
    /// The rest does not fit on the disk now.
    UpTo(Vec<Record>),
}

impl LogStore {
    /// Opens the log, or begins one. Blocks. What is not sound and was durable once is refused.
    pub(crate) fn open(
        storage: Arc<dyn LogStorage>,
        segment_bytes: u64,
    ) -> Result<LogStore, OpenError> {
        let options = Options {
            segment_bytes,
            ..Options::standard()
        };
        let (log, recovery) = SegLog::open(storage, options)?;
        if let Some(cut) = recovery.cut {
            info!(
                bytes = cut.bytes,
                found = cut.found,
                "cut off what was never answered"
            );
        }
        let contents = Contents::read(&log)?;
        Ok(LogStore {
            shared: Arc::new(Shared {
                end: watch::Sender::new(log.end()),
                disk: Mutex::new(log),
                contents: Mutex::new(contents),
                full: watch::Sender::new(false),
                stopping: AtomicBool::new(false),
            }),
        })
    }

    pub(crate) fn belongs(&self) -> Option<Belongs> {
        self.contents().belongs
    }

    /// Whether nothing was ever written here.
    pub(crate) fn is_new(&self) -> bool {
        self.end() == Position::ZERO
    }

    /// Whether it may go with a snapshot that reaches up to here.
    pub(crate) fn fits(&self, snapshot: Option<LogId>) -> Result<(), OpenError> {
        self.contents().fits(snapshot)
    }

    /// Where it ends on the disk, to be watched: how much was written since the last snapshot.
    pub(crate) fn ends(&self) -> watch::Receiver<Position> {
        self.shared.end.subscribe()
    }

    /// Where the oldest record begins.
    pub(crate) fn start(&self) -> Position {
        lock(&self.shared.disk).start()
    }

    fn end(&self) -> Position {
        *self.shared.end.borrow()
    }

    /// Whether the disk is full and the log waits for room.
    pub(crate) fn full(&self) -> watch::Receiver<bool> {
        self.shared.full.subscribe()
    }

    /// Writes whose log this is: before anything else, and durably.
    pub(crate) async fn belong(&self, belongs: Belongs) -> Result<(), LogError> {
        self.write(vec![Record::Belongs(belongs)]).await
    }

    /// Says that a snapshot that reaches beyond the log is about to be kept.
    pub(super) async fn install(&self, up_to: LogId) -> Result<(), LogError> {
        self.write(vec![Record::Install { up_to }]).await
    }

    /// What waits for room waits no longer.
    pub(crate) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }

    /// Appends the records, in order, and makes them durable.
    async fn write(&self, records: Vec<Record>) -> Result<(), LogError> {
        let mut left = records;
        loop {
            let store = self.clone();
            let wrote = tokio::task::spawn_blocking(move || store.write_what_fits(left)).await;
            // The task was cancelled, with the runtime: nobody hears the answer.
            match wrote.unwrap_or(Err(LogError::Poisoned))? {
                Wrote::All => {
                    self.say_full(false);
                    return Ok(());
                }
                Wrote::UpTo(rest) => left = rest,
            }
            self.say_full(true);
            if self.shared.stopping.load(Ordering::Acquire) {
                return Err(LogError::DiskFull);
            }
            tokio::time::sleep(ROOM_EVERY.as_duration()).await;
        }
    }

    fn say_full(&self, full: bool) {
        let changed = self
            .shared
            .full
            .send_if_modified(|said| std::mem::replace(said, full) != full);
        if changed && full {
            warn!("the disk is full: nothing is decided until there is room");
        } else if changed {
            info!("there is room on the disk again");
        }
    }

    /// Blocks.
    fn write_what_fits(&self, records: Vec<Record>) -> Result<Wrote, LogError> {
        let mut disk = lock(&self.shared.disk);
        let mut records = records.into_iter();
        while let Some(record) = records.next() {
            let bytes = msgpack::encode(&record).expect("records are plain data");
            match append(&mut disk, &bytes) {
                Ok(position) => self.contents().take(record, position, bytes.len()),
                Err(LogError::DiskFull) => {
                    disk.sync()?;
                    self.shared.end.send_replace(disk.end());
                    let rest = std::iter::once(record).chain(records).collect();
                    return Ok(Wrote::UpTo(rest));
                }
                Err(fatal) => return Err(fatal),
            }
        }
        disk.sync()?;
        self.shared.end.send_replace(disk.end());
        Ok(Wrote::All)
    }

    /// Drops the segments of which nothing is needed any more. Blocks.
    fn drop_before(&self, position: Position) -> Result<(), LogError> {
        let removal = lock(&self.shared.disk).drop_prefix(position);
        removal.map_or(Ok(()), |removal| removal.run())
    }

    async fn purge_up_to(&self, up_to: LogId) -> Result<(), LogError> {
        let (repeated, before) = {
            let contents = self.contents();
            let belongs = contents.belongs.map(Record::Belongs);
            let vote = contents.vote.map(Record::Vote);
            let repeated: Vec<Record> = belongs.into_iter().chain(vote).collect();
            (repeated, self.end())
        };
        let mut records = repeated;
        records.push(Record::Purge { up_to });
        self.write(records).await?;
        let needed = self.contents().first_position().unwrap_or(before);
        let store = self.clone();
        let dropping = move || store.drop_before(needed.min(before));
        let dropped = tokio::task::spawn_blocking(dropping).await;
        dropped.unwrap_or(Err(LogError::Poisoned))
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        lock(&self.shared.contents)
    }
}

fn append(disk: &mut SegLog, payload: &[u8]) -> Result<Position, LogError> {
    if disk.needs_roll(payload.len()) {
        disk.roll()?;
    }
    disk.append_framed(&[payload])
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let contents = self.contents();
        let found = contents.entries.range(range);
        Ok(found.map(|(_, kept)| kept.entry.clone()).collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let contents = self.contents();
        let mut entries = Vec::new();
        let mut bytes = 0;
        for kept in contents.entries.range(start..end).map(|(_, kept)| kept) {
            bytes += kept.bytes;
            if bytes > MAX_APPEND_BYTES && !entries.is_empty() {
                break;
            }
            entries.push(kept.entry.clone());
        }
        Ok(entries)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let contents = self.contents();
        Ok(LogState {
            last_purged_log_id: contents.purged,
            last_log_id: contents.last(),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let written = self.write(vec![Record::Vote(*vote)]).await;
        written.map_err(|error| StorageIOError::write_vote(any(&error)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.contents().vote)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records: Vec<Record> = entries.into_iter().map(Record::Entry).collect();
        match self.write(records).await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(io::Error::other(error.to_string())));
                Err(StorageIOError::write_logs(any(&error)).into())
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let since = log_id.index;
        let written = self.write(vec![Record::Truncate { since }]).await;
        written.map_err(|error| StorageIOError::write_logs(any(&error)).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let purged = self.purge_up_to(log_id).await;
        purged.map_err(|error| StorageIOError::write_logs(any(&error)).into())
    }
}

/// An error with all of its reasons.
pub(super) fn any(error: &(impl std::error::Error + 'static)) -> AnyError {
    AnyError::new(error)
}

/// For tests: what an id of the group's log is made of.
#[cfg(test)]
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    let leader = openraft::CommittedLeaderId::new(term, common::ids::CoordinatorId(1));
    openraft::LogId::new(leader, index)
}
