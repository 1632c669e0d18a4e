//! How the view of a task's state lies in its store: keys, values and their pieces.
//!
//! ```text
//! 0 | task                                                   → version u8, checkpoint u64, digest  the marker
//! 1 | task | operator 0 table                                → table u16
//! 2 | task | table | namespace | key                         → length u32, value or its first piece
//! 3 | task | table | namespace | key length u32 | key | piece u16 → piece
//! ```
//!
//! Entries stand in the order of their keys, so a stretch of them can be read as it is wanted. A value of up
//! to 4 KiB is one piece, a larger one is cut, and its further pieces are elsewhere. A value over 1 MiB is
//! not kept here, only its length: who needs it reads the base file.

use common::ids::{CheckpointId, TaskId};
use common::kv::{Digest, KvError, KvStore};

use crate::keyed_state::section::TableId;
use crate::keyed_state::stored::LARGEST_STORED_VALUE;

/// Of this layout.
pub(super) const VERSION: u8 = 2;
pub(super) const MARKER: u8 = 0;
pub(super) const CATALOG: u8 = 1;
pub(super) const ENTRY: u8 = 2;
pub(super) const PIECE: u8 = 3;
pub(super) const WHOLE_BYTES: usize = 4 << 10;
pub(super) const PIECE_BYTES: usize = 2 << 10;
pub(super) const LENGTH: usize = 4;

/// A kind and a task, which every key begins with.
pub(super) const PREFIX: usize = 7;

pub(super) fn prefix(kind: u8, task: TaskId) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.push(kind);
    key.extend_from_slice(&task.stage.0.to_be_bytes());
    key.extend_from_slice(&task.index.to_be_bytes());
    key
}

pub(super) fn namespace_prefix(kind: u8, task: TaskId, table: u16, namespace: i64) -> Vec<u8> {
    let mut key = prefix(kind, task);
    key.extend_from_slice(&table.to_be_bytes());
    key.extend_from_slice(&(namespace ^ i64::MIN).to_be_bytes());
    key
}

pub(super) fn piece_key(
    task: TaskId,
    table: u16,
    namespace: i64,
    key: &[u8],
    number: usize,
) -> Vec<u8> {
    let number = u16::try_from(number).expect("a value has few pieces");
    let mut piece = namespace_prefix(PIECE, task, table, namespace);
    piece.extend_from_slice(&as_u32(key.len()).to_be_bytes());
    piece.extend_from_slice(key);
    piece.extend_from_slice(&number.to_be_bytes());
    piece
}

pub(super) fn catalog_key(task: TaskId, table: &TableId) -> Vec<u8> {
    let mut key = prefix(CATALOG, task);
    key.extend_from_slice(table.operator.as_bytes());
    key.push(0);
    key.extend_from_slice(table.table.as_bytes());
    key
}

pub(super) fn read_marker(
    store: &dyn KvStore,
    task: TaskId,
) -> Result<Option<(CheckpointId, Digest)>, KvError> {
    let Some(marker) = store.get(&prefix(MARKER, task))? else {
        return Ok(None);
    };
    let digest = marker.strip_prefix(&[VERSION]);
    let Some((at, digest)) = digest.and_then(|rest| rest.split_first_chunk::<8>()) else {
        return Ok(None);
    };
    let digest = <[u8; Digest::BYTES]>::try_from(digest).map(Digest::from_bytes);
    Ok(digest
        .ok()
        .map(|digest| (CheckpointId(u64::from_be_bytes(*at)), digest)))
}

pub(super) fn read_catalog(name: &[u8], id: &[u8]) -> Option<(u16, TableId)> {
    let end = name.iter().position(|byte| *byte == 0)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let table = TableId {
        operator: text(&name[..end])?,
        table: text(&name[end + 1..])?,
    };
    Some((u16::from_be_bytes(id.try_into().ok()?), table))
}

pub(super) fn read_length(first_piece: &[u8]) -> Option<usize> {
    let (length, _) = first_piece.split_first_chunk::<LENGTH>()?;
    Some(u32::from_be_bytes(*length) as usize)
}

/// What stands before the first piece of a value.
pub(super) fn stored_length(value: &[u8]) -> u32 {
    as_u32(value.len())
}

/// The pieces of a value, at least one.
pub(super) fn cut(value: &[u8]) -> Vec<&[u8]> {
    match piece_count(value.len()) {
        1 if value.len() > LARGEST_STORED_VALUE => vec![&[]],
        1 => vec![value],
        _ => value.chunks(PIECE_BYTES).collect(),
    }
}

pub(super) fn piece_count(value_bytes: usize) -> usize {
    if value_bytes <= WHOLE_BYTES - LENGTH || value_bytes > LARGEST_STORED_VALUE {
        1
    } else {
        value_bytes.div_ceil(PIECE_BYTES)
    }
}

fn as_u32(number: usize) -> u32 {
    u32::try_from(number).expect("keys and values have less than 4 GiB")
}
