//! What is wrong with a log.

use std::io::{self, ErrorKind};

use super::position::Position;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The record was not appended; others may be once there is room.
    #[error("the disk is full")]
    DiskFull,
    /// Bytes that were durable are not what they were.
    #[error("\"{file}\" is corrupt: at position {position} there is {found}")]
    Corrupt {
        file: String,
        position: Position,
        found: &'static str,
    },
    #[error("position {position} is outside of the log, which has {start}..{end}")]
    OutOfRange {
        position: Position,
        start: Position,
        end: Position,
    },
    /// Fatal: what was appended since the last sync may be lost, and the kernel will not say so again.
    #[error("\"{file}\" could not be made durable")]
    SyncFailed {
        file: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "an earlier failure left the log in doubt; it accepts nothing until it is opened again"
    )]
    Poisoned,
    #[error("could not {operation} \"{file}\"")]
    Io {
        operation: &'static str,
        file: String,
        #[source]
        source: io::Error,
    },
}

impl LogError {
    /// Whether the owner has to stop: what it was told was appended may not be there.
    pub fn is_fatal(&self) -> bool {
        match self {
            LogError::SyncFailed { .. } | LogError::Poisoned => true,
            LogError::DiskFull
            | LogError::Corrupt { .. }
            | LogError::OutOfRange { .. }
            | LogError::Io { .. } => false,
        }
    }

    pub(super) fn io(operation: &'static str, file: &str, source: io::Error) -> LogError {
        if is_disk_full(&source) {
            return LogError::DiskFull;
        }
        LogError::Io {
            operation,
            file: file.to_owned(),
            source,
        }
    }
}

pub(super) fn sync_result(file: &str, result: io::Result<()>) -> Result<(), LogError> {
    result.map_err(|source| LogError::SyncFailed {
        file: file.to_owned(),
        source,
    })
}

/// Whether the same may succeed once there is room. A limit on the size of files is as good as no room.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}
