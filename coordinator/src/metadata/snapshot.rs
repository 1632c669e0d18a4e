//! The bytes of the metadata, as a snapshot file holds them.
//!
//! ```text
//!  ┌────────────────┬──────────────┬─────────────┐
//!  │ "MSMETA01"     │ CRC-32C u32  │ MessagePack │      little endian
//!  └────────────────┴──────────────┴─────────────┘
//!                     of the rest
//! ```

use common::transport::msgpack;

use super::ClusterMetadata;

const MAGIC: &[u8; 8] = b"MSMETA01";
const HEADER_BYTES: usize = MAGIC.len() + 4;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("it does not begin as a metadata snapshot of this version does")]
    Foreign,
    #[error("its checksum is wrong")]
    Corrupt,
    #[error("it cannot be read: it {0}")]
    Unreadable(#[from] msgpack::MsgpackError),
}

impl ClusterMetadata {
    pub fn to_snapshot(&self) -> Vec<u8> {
        let body = msgpack::encode(self).expect("metadata is made of plain data");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    pub fn from_snapshot(bytes: &[u8]) -> Result<ClusterMetadata, SnapshotError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(SnapshotError::Foreign)?;
        let (checksum, body) = rest.split_first_chunk().ok_or(SnapshotError::Corrupt)?;
        if u32::from_le_bytes(*checksum) != crc32c::crc32c(body) {
            return Err(SnapshotError::Corrupt);
        }
        let mut metadata: ClusterMetadata = msgpack::decode(body)?;
        metadata.index();
        Ok(metadata)
    }
}
