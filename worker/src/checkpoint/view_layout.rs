//! How the view of a task's state lies in its store: keys, values and their pieces.
//!
//! ```text
//! 0 | task                                                   → the marker: version u8, checkpoint u64, digest, and
//!                                                            while a fold is under way its checkpoint u64, step u64
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
pub(super) const VERSION: u8 = 3;
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

pub(super) fn entry_key(task: TaskId, table: u16, namespace: i64, key: &[u8]) -> Vec<u8> {
    let mut entry = namespace_prefix(ENTRY, task, table, namespace);
    entry.extend_from_slice(key);
    entry
}

/// What the keys of all further pieces of a value begin with, and only those.
pub(super) fn piece_prefix(task: TaskId, table: u16, namespace: i64, key: &[u8]) -> Vec<u8> {
    let mut piece = namespace_prefix(PIECE, task, table, namespace);
    piece.extend_from_slice(&as_u32(key.len()).to_be_bytes());
    piece.extend_from_slice(key);
    piece
}

pub(super) fn piece_key(
    task: TaskId,
    table: u16,
    namespace: i64,
    key: &[u8],
    number: usize,
) -> Vec<u8> {
    let number = u16::try_from(number).expect("a value has few pieces");
    let mut piece = piece_prefix(task, table, namespace, key);
    piece.extend_from_slice(&number.to_be_bytes());
    piece
}

/// Which piece a key of `piece_key` is.
pub(super) fn piece_number(key: &[u8]) -> usize {
    let number = key.last_chunk::<2>().copied().unwrap_or_default();
    u16::from_be_bytes(number).into()
}

pub(super) fn catalog_key(task: TaskId, table: &TableId) -> Vec<u8> {
    let mut key = prefix(CATALOG, task);
    key.extend_from_slice(table.operator.as_bytes());
    key.push(0);
    key.extend_from_slice(table.table.as_bytes());
    key
}

/// Says what a task's part of the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    /// All that changed up to here is in it.
    pub(super) at: CheckpointId,
    /// Of all its entries, once the step under way is written.
    pub(super) digest: Digest,
    pub(super) under_way: Option<UnderWay>,
}

/// A fold that is not finished: of what changed up to its checkpoint everything before its step is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnderWay {
    pub(super) to: CheckpointId,
    pub(super) step: u64,
}

impl Marker {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.at.0.to_be_bytes());
        bytes.extend_from_slice(&self.digest.to_bytes());
        if let Some(UnderWay { to, step }) = self.under_way {
            bytes.extend_from_slice(&to.0.to_be_bytes());
            bytes.extend_from_slice(&step.to_be_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Marker> {
        let (at, rest) = bytes.strip_prefix(&[VERSION])?.split_first_chunk::<8>()?;
        let (digest, rest) = rest.split_first_chunk::<{ Digest::BYTES }>()?;
        let under_way = match rest.split_first_chunk::<8>() {
            None if rest.is_empty() => None,
            None => return None,
            Some((to, step)) => Some(UnderWay {
                to: CheckpointId(u64::from_be_bytes(*to)),
                step: u64::from_be_bytes(step.try_into().ok()?),
            }),
        };
        Some(Marker {
            at: CheckpointId(u64::from_be_bytes(*at)),
            digest: Digest::from_bytes(*digest),
            under_way,
        })
    }
}

/// The marker of a task; `None`: there is none that can be read.
pub(super) fn read_marker(store: &dyn KvStore, task: TaskId) -> Result<Option<Marker>, KvError> {
    let marker = store.get(&prefix(MARKER, task))?;
    Ok(marker.and_then(|marker| Marker::from_bytes(&marker)))
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
