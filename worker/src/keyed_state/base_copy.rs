//! A copy of another worker's base file, which comes piece by piece.
//!
//! It grows beside the place it will have. Once all of it is here it is verified, made durable, and renamed, like
//! one that was written here. What is left of one that was never finished is removed with the next start.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::ids::CheckpointId;
use common::seglog::fs::{create_directory, sync_directory};

use super::base_file::{BaseFile, BaseFileError, SYNC_BYTES, failed, not_synced, path_of};

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
    let end = offset + piece_bytes;
    if end < original.length {
        // All of it at the end would keep whoever waits for the disk then waiting, as long as that takes.
        if offset / SYNC_BYTES < end / SYNC_BYTES {
            file.sync_data().map_err(not_synced(&path))?;
        }
        return Ok(None);
    }
    let copy = BaseFile::open(&path)?;
    if (copy.checkpoint(), copy.key_groups()) != (original.checkpoint, original.key_groups) {
        return Err(BaseFileError::Damaged { path });
    }
    copy.verify_and_sync()?;
    let place = path_of(directory, original.checkpoint);
    fs::rename(&path, &place).map_err(failed("rename", &path))?;
    sync_directory(directory).map_err(not_synced(directory))?;
    Ok(Some(copy.moved_to(place)))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::base_file::{self, Since};
    use super::super::overlay::Overlay;
    use super::super::section::TableId;
    use super::*;

    const KEY_GROUPS: u16 = 4;

    /// A base file of three syncs, and its bytes.
    fn original(directory: &Path) -> (Original, Vec<u8>) {
        let mut overlay = Overlay::default();
        for key in 0..3 * SYNC_BYTES / 1_000 {
            overlay.put(0, &key.to_be_bytes(), &[7; 1_000]);
        }
        let table = TableId {
            operator: "count".to_owned(),
            table: "groups".to_owned(),
        };
        let since = Since {
            tables: BTreeMap::from([(table, (BTreeSet::new(), vec![0..=u16::MAX]))]),
            read: &|_, _| Ok::<_, BaseFileError>(overlay.clone()),
        };
        let checkpoint = CheckpointId(5);
        let go_on = || Ok(());
        let base = base_file::write(directory, checkpoint, KEY_GROUPS, None, &since, &go_on);
        let bytes = fs::read(base.unwrap().path()).unwrap();
        let original = Original {
            checkpoint,
            key_groups: KEY_GROUPS,
            length: bytes.len() as u64,
        };
        (original, bytes)
    }

    /// What comes of the last piece.
    fn copy(original: Original, bytes: &[u8]) -> Result<Option<Vec<u8>>, BaseFileError> {
        let directory = tempfile::tempdir().unwrap();
        let (mut offset, mut added) = (0, None);
        for piece in bytes.chunks(700_000) {
            assert!(added.is_none(), "it is not whole yet");
            added = add(directory.path(), original, offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(added.map(|base| fs::read(base.path()).unwrap()))
    }

    #[test]
    fn a_copy_is_the_same_byte_for_byte_and_damage_in_any_section_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (original, mut bytes) = original(directory.path());
        assert!(copy(original, &bytes).unwrap().as_ref() == Some(&bytes));
        let sections = u64::from(KEY_GROUPS);
        for section in 0..sections {
            let at = usize::try_from(original.length * (2 * section + 1) / (2 * sections));
            let at = at.unwrap();
            bytes[at] ^= 1;
            let copied = copy(original, &bytes);
            assert!(matches!(copied, Err(BaseFileError::Damaged { .. })));
            bytes[at] ^= 1;
        }
    }
}
