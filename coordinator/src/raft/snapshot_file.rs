//! The snapshot on disk: the metadata as a whole, and how far of the log it is.
//!
//! ```text
//!  ┌────────────────┬──────────────┬─────────────────────────────────┐
//!  │ "MSRAFT01"     │ CRC-32C u32  │ MessagePack {meta, metadata}    │      little endian
//!  └────────────────┴──────────────┴─────────────────────────────────┘
//!                     of the rest
//! ```

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use common::data_dir::{DataDir, DataDirError};
use common::transport::msgpack;

use super::types::SnapshotMeta;
use crate::metadata::ClusterMetadata;
use crate::metadata::snapshot::SnapshotError;

pub(crate) const SNAPSHOT_FILE: &str = "metadata.snapshot";
const MAGIC: &[u8; 8] = b"MSRAFT01";
const HEADER_BYTES: usize = MAGIC.len() + 4;

/// Where the newest snapshot is kept.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    data_dir: Arc<DataDir>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub(crate) meta: SnapshotMeta,
    /// As [`ClusterMetadata::to_snapshot`] writes it, and as it goes to other members.
    pub(crate) metadata: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("\"{SNAPSHOT_FILE}\" is damaged: {0}")]
    Damaged(#[from] SnapshotError),
}

impl SnapshotFile {
    pub(crate) fn new(data_dir: Arc<DataDir>) -> SnapshotFile {
        SnapshotFile { data_dir }
    }

    /// Replaces the snapshot, durably. Blocks.
    pub(crate) fn replace(&self, stored: &Stored) -> Result<(), DataDirError> {
        let body = msgpack::encode(stored).expect("a snapshot is plain data");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        self.data_dir.replace(SNAPSHOT_FILE, &bytes)
    }

    /// The snapshot, and its size on the disk; `None`: there has been none. Blocks.
    pub(crate) fn read(&self) -> Result<Option<(Stored, u64)>, SnapshotFileError> {
        let Some(bytes) = self.data_dir.read(SNAPSHOT_FILE)? else {
            return Ok(None);
        };
        let rest = bytes.strip_prefix(MAGIC).ok_or(SnapshotError::Foreign)?;
        let (checksum, body) = rest.split_first_chunk().ok_or(SnapshotError::Corrupt)?;
        if u32::from_le_bytes(*checksum) != crc32c::crc32c(body) {
            return Err(SnapshotError::Corrupt.into());
        }
        let stored = msgpack::decode(body).map_err(SnapshotError::from)?;
        Ok(Some((stored, bytes.len() as u64)))
    }
}

impl Stored {
    pub(crate) fn decoded(&self) -> Result<ClusterMetadata, SnapshotError> {
        ClusterMetadata::from_snapshot(&self.metadata)
    }
}
