//! Where the log starts, in a note beside it.
//!
//! A log all of whose segments were dropped has no record left that says which offset comes next. Two
//! notes are written in turns, so that one is whole whatever happens while the other is written.

use common::offset::Offset;
use common::seglog::storage::LogStorage;
use common::seglog::{LogError, Position};

use super::derived::Covered;

const NAMES: [&str; 2] = ["log-start.0", "log-start.1"];
const NOTE_BYTES: usize = 20;

/// Makes durable that the log starts here.
pub(super) fn write(storage: &dyn LogStorage, start: Covered) -> Result<(), LogError> {
    let [first, second] = NAMES.map(|name| read_one(storage, name));
    // The older one, or the one that is not whole, is overwritten.
    let older = match (first?, second?) {
        (Some(first), Some(second)) if second.position < first.position => NAMES[1],
        (Some(_), None) => NAMES[1],
        (None | Some(_), Some(_)) | (None, None) => NAMES[0],
    };
    let failed = |source| LogError::Io {
        operation: "write",
        file: older.to_owned(),
        source,
    };
    storage
        .write_note(older, &encode(start), true)
        .and_then(|()| storage.sync_directory())
        .map_err(failed)
}

/// The last place that was made durable.
pub(super) fn read(storage: &dyn LogStorage) -> Result<Option<Covered>, LogError> {
    let [first, second] = NAMES.map(|name| read_one(storage, name));
    let notes = [first?, second?];
    Ok(notes.into_iter().flatten().max_by_key(|note| note.position))
}

fn read_one(storage: &dyn LogStorage, name: &str) -> Result<Option<Covered>, LogError> {
    let note = storage.read_note(name).map_err(|source| LogError::Io {
        operation: "read",
        file: name.to_owned(),
        source,
    })?;
    Ok(note.and_then(|bytes| decode(&bytes)))
}

fn encode(start: Covered) -> [u8; NOTE_BYTES] {
    let mut note = [0; NOTE_BYTES];
    note[..8].copy_from_slice(&start.position.0.to_be_bytes());
    note[8..16].copy_from_slice(&start.offset.0.to_be_bytes());
    let crc = crc32c::crc32c(&note[..16]);
    note[16..].copy_from_slice(&crc.to_be_bytes());
    note
}

fn decode(note: &[u8]) -> Option<Covered> {
    let note = <[u8; NOTE_BYTES]>::try_from(note).ok()?;
    let (body, crc) = note.split_at(16);
    if crc32c::crc32c(body).to_be_bytes() != crc {
        return None;
    }
    let (position, offset) = body.split_at(8);
    Some(Covered {
        position: Position(u64::from_be_bytes(position.try_into().ok()?)),
        offset: Offset(i64::from_be_bytes(offset.try_into().ok()?)),
    })
}
