//! A copy of another worker's base file, which comes piece by piece.
//!
//! It grows beside the place it will have. Once all of it is here it is verified, made durable, and renamed, like
//! one that was written here. What is left of one that was never finished is removed with the next start.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::ids::CheckpointId;
use common::seglog::fs::{create_directory, sync_directory};

use super::base_file::{BaseFile, BaseFileError, failed, path_of};

const FETCHED: &str = "fetched.tmp";

/// Which base file it is a copy of.
#[derive(Clone, Copy, Debug)]
pub struct Original {
    pub checkpoint: CheckpointId,
    pub key_groups: u16,
    pub length: u64,
}

/// Writes a piece, the first one over whatever was fetched before. Answers the file, with the last one.
pub fn add(
    directory: &Path,
    original: Original,
    offset: u64,
    piece: &[u8],
) -> Result<Option<BaseFile>, BaseFileError> {
    create_directory(directory).map_err(failed("create", directory))?;
    let path = directory.join(FETCHED);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(offset == 0);
    let file = options.open(&path).map_err(failed("open", &path))?;
    let written = file.write_all_at(piece, offset);
    written.map_err(failed("write", &path))?;
    let piece_bytes = u64::try_from(piece.len()).expect("a length fits into 64 bits");
    if offset + piece_bytes < original.length {
        return Ok(None);
    }
    let copy = BaseFile::open(&path)?;
    if (copy.checkpoint(), copy.key_groups()) != (original.checkpoint, original.key_groups) {
        return Err(BaseFileError::Damaged { path });
    }
    copy.verify_and_sync()?;
    let place = path_of(directory, original.checkpoint);
    fs::rename(&path, &place).map_err(failed("rename", &path))?;
    sync_directory(directory).map_err(|source| BaseFileError::SyncFailed {
        path: directory.to_owned(),
        source,
    })?;
    Ok(Some(copy.moved_to(place)))
}
