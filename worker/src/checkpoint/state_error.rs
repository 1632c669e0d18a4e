//! Why a job's state could not be written or read back, and what follows from it.

use std::io;
use std::path::PathBuf;

use common::ids::{CheckpointId, Generation, TaskId};
use common::kv::KvError;
use common::seglog::{LogError, is_disk_full};

use super::delta_log::DeltaLogError;
use super::view_reader::ViewError;
use crate::keyed_state::base_file::BaseFileError;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Base(#[from] BaseFileError),
    #[error(transparent)]
    View(#[from] KvError),
    #[error(transparent)]
    Reading(ViewError),
    #[error("the state in \"{}\" is still in use", directory.display())]
    InUse { directory: PathBuf },
    #[error("could not use \"{}\"", directory.display())]
    Directory {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the delta log of the job is damaged: {0}")]
    DamagedLog(String),
    /// A newer generation has begun; nothing of this one counts any more.
    #[error("task {task} was not restored for generation {generation}")]
    Stale {
        task: TaskId,
        generation: Generation,
    },
    #[error("a view or base file was cut short: what it was for is over")]
    CutShort,
    #[error("the state of task {task} at checkpoint {at} is not on this worker")]
    Lost { task: TaskId, at: CheckpointId },
}

impl StateError {
    /// Whether the process has to stop, because what it wrote may not be there.
    pub fn is_fatal(&self) -> bool {
        match self {
            StateError::Log(error) => error.is_fatal(),
            StateError::Base(error) => matches!(error, BaseFileError::SyncFailed { .. }),
            StateError::View(error) => matches!(error, KvError::SyncFailed { .. }),
            StateError::Reading(_)
            | StateError::DamagedLog(_)
            | StateError::InUse { .. }
            | StateError::Directory { .. }
            | StateError::Stale { .. }
            | StateError::CutShort
            | StateError::Lost { .. } => false,
        }
    }

    /// Whether what is asked for is not on this disk any more: nobody can give it back by trying again.
    pub fn is_loss(&self) -> bool {
        match self {
            StateError::Lost { .. } | StateError::DamagedLog(_) => true,
            StateError::Log(error) => matches!(error, LogError::Corrupt { .. }),
            StateError::Base(error) => matches!(error, BaseFileError::Damaged { .. }),
            StateError::View(_)
            | StateError::Reading(_)
            | StateError::InUse { .. }
            | StateError::Directory { .. }
            | StateError::Stale { .. }
            | StateError::CutShort => false,
        }
    }

    /// Whether the same may succeed once there is room.
    pub fn is_disk_full(&self) -> bool {
        match self {
            StateError::Log(error) => matches!(error, LogError::DiskFull),
            StateError::Base(BaseFileError::Io { source, .. })
            | StateError::View(KvError::Io { source, .. })
            | StateError::Directory { source, .. } => is_disk_full(source),
            StateError::Base(_)
            | StateError::View(_)
            | StateError::Reading(_)
            | StateError::DamagedLog(_)
            | StateError::InUse { .. }
            | StateError::Stale { .. }
            | StateError::CutShort
            | StateError::Lost { .. } => false,
        }
    }
}

impl From<DeltaLogError> for StateError {
    fn from(error: DeltaLogError) -> StateError {
        match error {
            DeltaLogError::Log(error) => StateError::Log(error),
            DeltaLogError::Stale { task, generation } => StateError::Stale { task, generation },
            DeltaLogError::NotAChunk { .. } => StateError::DamagedLog(error.to_string()),
        }
    }
}
