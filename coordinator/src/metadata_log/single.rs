//! The command log of a coordinator that is alone: one thread, one segment log, one snapshot file.
//!
//! The thread takes every proposal that is waiting, appends them all, syncs once, applies them in order
//! and answers. When enough has been appended since the last snapshot, the metadata is written as one
//! file and the segments before it are dropped: a start reads the snapshot and the commands after it.
//!
//! After one failed sync the log accepts nothing more, because nobody can tell what is on the disk; the
//! process has to start again.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use common::data_dir::{DataDir, DataDirError};
use common::error::{ErrorCode, Problem};
use common::seglog::storage::LogStorage;
use common::seglog::{LogError, Position};
use common::transport::msgpack::MsgpackError;

use super::command_log::{CommandLog, Refused};
use super::{MetadataLog, Proposal, ProposeError, Published};
use crate::metadata::ClusterMetadata;
use crate::metadata::snapshot::SnapshotError;

/// Proposals that wait; more have to wait before they wait.
const MAX_WAITING: usize = 1_024;
/// Proposals that share one sync.
const MAX_GROUP: usize = 256;
const SNAPSHOT_FILE: &str = "metadata.snapshot";

/// When the metadata is written as a whole. The log holds about twice as much at most.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotPolicy {
    /// After this much of the log, or four times the last snapshot if that is more: writing a large
    /// snapshot for every few commands would cost more than it saves.
    pub after_bytes: u64,
}

impl Default for SnapshotPolicy {
    fn default() -> SnapshotPolicy {
        SnapshotPolicy {
            after_bytes: 16 << 20,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("\"{SNAPSHOT_FILE}\" is damaged: {0}")]
    Snapshot(#[from] SnapshotError),
    #[error("command {index} of the metadata log cannot be read: it {source}")]
    Record {
        index: u64,
        #[source]
        source: MsgpackError,
    },
    #[error("the metadata log goes from command {before} to {found}")]
    Gap { before: u64, found: u64 },
    #[error("\"{SNAPSHOT_FILE}\" is missing, though the log begins behind it")]
    NoSnapshot,
    #[error(
        "the metadata log ends at command {end}, though \"{SNAPSHOT_FILE}\" reaches to {snapshot}"
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
            OpenError::Snapshot(_)
            | OpenError::Record { .. }
            | OpenError::Gap { .. }
            | OpenError::NoSnapshot
            | OpenError::EndsEarly { .. } => true,
            OpenError::DataDir(_) | OpenError::Thread(_) => false,
        }
    }
}

/// The thread behind the handles. It ends when it is stopped, or when the log fails.
#[derive(Debug)]
pub struct SingleNodeLog {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Writer {
    log: CommandLog,
    data_dir: Arc<DataDir>,
    policy: SnapshotPolicy,
    published: Published,
    /// Where the log ended at the last snapshot, and how large that was.
    snapshot_at: Position,
    snapshot_bytes: u64,
}

impl SingleNodeLog {
    /// Opens the log, brings the metadata up to its end, and starts the thread. Blocks.
    ///
    /// `on_failure` is called at most once, when nothing can be stored any more.
    pub fn open(
        storage: Arc<dyn LogStorage>,
        data_dir: Arc<DataDir>,
        policy: SnapshotPolicy,
        on_failure: impl FnOnce(&LogError) + Send + 'static,
    ) -> Result<(SingleNodeLog, MetadataLog), OpenError> {
        let mut metadata = ClusterMetadata::default();
        let mut snapshot_bytes = 0;
        if let Some(bytes) = data_dir.read(SNAPSHOT_FILE)? {
            metadata = ClusterMetadata::from_snapshot(&bytes)?;
            snapshot_bytes = bytes.len() as u64;
        }
        let segment_bytes = (policy.after_bytes / 2).max(1);
        let log = CommandLog::open(storage, segment_bytes, &mut metadata)?;

        let (published, view) = Published::new(metadata);
        let (proposals, waiting) = mpsc::channel(MAX_WAITING);
        let (stop, stopped) = oneshot::channel();
        let mut writer = Writer {
            snapshot_at: log.start(),
            log,
            data_dir,
            policy,
            published,
            snapshot_bytes,
        };
        let thread = std::thread::Builder::new()
            .name("metadata-log".to_owned())
            .spawn(move || {
                if let Err(failure) = writer.run(waiting, stopped) {
                    error!(error = %failure, "the metadata log failed: nothing more can be decided");
                    on_failure(&failure);
                }
            })?;
        let owner = SingleNodeLog {
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok((owner, MetadataLog { proposals, view }))
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

impl Drop for SingleNodeLog {
    fn drop(&mut self) {
        self.end();
    }
}

impl Writer {
    fn run(
        &mut self,
        mut waiting: mpsc::Receiver<Proposal>,
        stopped: oneshot::Receiver<()>,
    ) -> Result<(), LogError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime without IO and timers needs nothing of the system");
        let mut stopped = Some(stopped);
        let mut group = Vec::with_capacity(MAX_GROUP);
        loop {
            let received = runtime.block_on(async {
                match &mut stopped {
                    None => waiting.recv_many(&mut group, MAX_GROUP).await,
                    Some(stop) => tokio::select! {
                        biased;
                        received = waiting.recv_many(&mut group, MAX_GROUP) => received,
                        _ = stop => 0,
                    },
                }
            });
            if received > 0 {
                self.commit(&mut group)?;
                self.snapshot_if_due()?;
            } else if stopped.take().is_some() {
                // What is waiting is still answered; nothing else is taken.
                waiting.close();
            } else {
                return Ok(());
            }
        }
    }

    /// Stores the proposals with one sync, applies them and answers.
    fn commit(&mut self, group: &mut Vec<Proposal>) -> Result<(), LogError> {
        let mut stored = Vec::with_capacity(group.len());
        let mut answers = Vec::with_capacity(group.len());
        for Proposal { entry, answer } in group.drain(..) {
            match self.log.append(&entry) {
                Ok(index) => {
                    stored.push((index, entry));
                    answers.push(answer);
                }
                Err(Refused::ByDisk) => {
                    warn!("the disk is full: a command was refused");
                    let problem = Problem::new(ErrorCode::DiskFull, "the disk is full")
                        .hint("Free space where the coordinator keeps its data.");
                    // Who no longer waits does not want to know.
                    answer.send(Err(ProposeError::NotAccepted(problem))).ok();
                }
                Err(Refused::TooLarge(bytes)) => {
                    let problem = Problem::new(
                        ErrorCode::RequestTooLarge,
                        format!("a command of {bytes} bytes is too large"),
                    );
                    answer.send(Err(ProposeError::NotAccepted(problem))).ok();
                }
                Err(Refused::Fatally(failure)) => return Err(failure),
            }
        }
        // On failure the answers are dropped with this frame: their outcome is unknown.
        self.log.sync()?;
        let outcomes = self.published.apply(stored.into_iter());
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            answer.send(outcome).ok();
        }
        Ok(())
    }

    fn snapshot_if_due(&mut self) -> Result<(), LogError> {
        let due_after = self.policy.after_bytes.max(4 * self.snapshot_bytes);
        if self.log.end().since(self.snapshot_at) < due_after {
            return Ok(());
        }
        let end = self.log.end();
        let bytes = self.published.read(ClusterMetadata::to_snapshot);
        if let Err(failure) = self.data_dir.replace(SNAPSHOT_FILE, &bytes) {
            // The log still has everything; it is tried again after as much again.
            warn!(error = %failure, "could not write the metadata snapshot");
            self.snapshot_at = end;
            return Ok(());
        }
        self.snapshot_at = end;
        self.snapshot_bytes = bytes.len() as u64;
        self.log.drop_before(end)
    }
}
