//! The metadata log of one coordinator, or of a group of three that agree by Raft.
//!
//! This folder is the only one that knows openraft. A coordinator that is alone is a group of one: there is
//! one log, whoever many keep it. What it promises: a command is answered once a majority has it on the
//! disk and it is applied; a command that got no answer may still become a fact; members never lose what
//! they have acknowledged, votes included, because everything they write is synced before they say so.
//!
//! The index of an entry is the version of the metadata, so entries of Raft's own count as well.

pub mod types;
pub mod records;
mod snapshot_file;
mod log_store;
mod state_machine;
mod network;
pub mod leadership;
mod election;
pub mod formation;
pub mod membership;
mod proposals;
pub mod confirmations;
pub mod group;
#[cfg(test)]
mod log_store_tests;

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};
use tracing::error;

use common::data_dir::{DataDir, DataDirError};
use common::seglog::storage::LogStorage;
use common::seglog::{LogError, Position};
use common::transport::client::Transport;
use common::transport::msgpack::MsgpackError;

use crate::metadata_log::MetadataLog;
pub use group::Group;
use group::Parts;
use log_store::LogStore;
use proposals::MAX_WAITING;
use snapshot_file::{SNAPSHOT_FILE, SnapshotFileError};
use state_machine::StateMachine;
use types::TypeConfig;

type Raft = openraft::Raft<TypeConfig>;

/// When the metadata is written as a whole. The log holds about twice as much at most.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotPolicy {
    /// After this much of the log, or four times the last snapshot if that is more: writing a large
    /// snapshot for every few commands would cost more than it saves.
    pub after_bytes: u64,
    /// So many entries before it stay in the log, for members that are a little behind.
    pub entries_kept: u64,
}

impl Default for SnapshotPolicy {
    fn default() -> SnapshotPolicy {
        SnapshotPolicy {
            after_bytes: 16 << 20,
            entries_kept: 256,
        }
    }
}

/// Why what a coordinator has kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotFileError),
    #[error("the record of the metadata log at position {position} cannot be read: it {source}")]
    Record {
        position: Position,
        #[source]
        source: MsgpackError,
    },
    #[error("the metadata log goes from entry {before} to {found}")]
    Gap { before: u64, found: u64 },
    #[error("\"{SNAPSHOT_FILE}\" is missing, though the log begins behind it")]
    NoSnapshot,
    #[error(
        "the metadata log ends at entry {end}, though \"{SNAPSHOT_FILE}\" reaches to {snapshot}"
    )]
    EndsEarly { end: u64, snapshot: u64 },
    #[error("could not start the metadata log's thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl OpenError {
    /// Whether what was stored once is not there as it was: trying again does not help.
    pub fn is_damage(&self) -> bool {
        match self {
            OpenError::Log(error) => matches!(error, LogError::Corrupt { .. }),
            OpenError::Snapshot(error) => matches!(error, SnapshotFileError::Damaged(_)),
            OpenError::Record { .. }
            | OpenError::Gap { .. }
            | OpenError::NoSnapshot
            | OpenError::EndsEarly { .. } => true,
            OpenError::Thread(_) => false,
        }
    }
}

impl From<DataDirError> for OpenError {
    fn from(error: DataDirError) -> OpenError {
        OpenError::Snapshot(error.into())
    }
}

/// The thread behind the handles: Raft and all that belongs to it run there. It ends when it is stopped.
#[derive(Debug)]
pub struct GroupThread {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl GroupThread {
    /// Opens the log and the snapshot, and starts the thread. Nothing is agreed on before
    /// [`Group::begin`]. Blocks.
    ///
    /// `on_failure` is called at most once, when nothing can be stored any more.
    pub fn open(
        storage: Arc<dyn LogStorage>,
        data_dir: Arc<DataDir>,
        policy: SnapshotPolicy,
        transport: Transport,
        on_failure: impl FnOnce() + Send + 'static,
    ) -> Result<(GroupThread, Group, MetadataLog), OpenError> {
        let log = LogStore::open(storage, (policy.after_bytes / 2).max(1))?;
        let (machine, view) = StateMachine::open(Arc::clone(&data_dir), log.clone())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (proposals, waiting) = mpsc::channel(MAX_WAITING);
        let metadata_log = MetadataLog::new(proposals, view.clone());
        let (stop, stopped) = oneshot::channel();
        let (group, life) = group::group(Parts {
            log,
            machine,
            data_dir,
            policy,
            transport,
            view,
            waiting,
            runtime: runtime.handle().clone(),
            on_failure: Box::new(on_failure),
        });
        let thread = std::thread::Builder::new()
            .name("metadata-log".to_owned())
            .spawn(move || runtime.block_on(life.run(stopped)))?;
        let owner = GroupThread {
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok((owner, group, metadata_log))
    }

    /// Answers what has been proposed so far and ends the thread. Blocks.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the metadata log's thread panicked");
        }
    }
}

impl Drop for GroupThread {
    fn drop(&mut self) {
        self.end();
    }
}
