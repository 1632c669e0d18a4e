//! A chunk: what one task changed until one checkpoint, as the delta log has it (pure).
//!
//! ```text
//! header length u32 | header (MessagePack) | sections of table after table, by key group
//! ```
//!
//! Large deltas are several records, numbered from 0; the last one says that it is. Written again, as after
//! a full disk, they begin at 0 again, and what was begun before does not count.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use common::ids::{CheckpointId, Generation, TaskId};
use serde::{Deserialize, Serialize};

use crate::keyed_state::overlay::Overlay;
use crate::keyed_state::section::{SectionWriter, TableId, TableSections};

/// A record is ended when it has this many bytes of entries.
const RECORD_BYTES: usize = 16 << 20;
const VERSION: u8 = 1;

/// What a task sealed.
#[derive(Clone, Debug)]
pub struct TaskChunk {
    pub task: TaskId,
    pub checkpoint: CheckpointId,
    /// The tables that changed.
    pub tables: Vec<(TableId, Arc<Overlay>)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChunkHeader {
    version: u8,
    pub(super) generation: Generation,
    pub(super) checkpoint: CheckpointId,
    pub(super) task: TaskId,
    /// The checkpoint this one's changes are to be applied to: the last one sealed or restored before.
    pub(super) previous: Option<CheckpointId>,
    pub(super) part: u32,
    pub(super) last: bool,
    pub(super) tables: Vec<TableSections>,
}

/// A record that is no chunk, though the log's checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record of a delta log is not a chunk")]
pub struct NotAChunk;

/// A record's payload, in parts that are written one after the other.
#[derive(Debug)]
pub(super) struct EncodedRecord {
    length: [u8; 4],
    header: Vec<u8>,
    body: Vec<u8>,
}

impl EncodedRecord {
    pub(super) fn parts(&self) -> [&[u8]; 3] {
        [&self.length, &self.header, &self.body]
    }

    pub(super) fn bytes(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }
}

/// The records of a chunk.
pub(super) fn encode(
    chunk: &TaskChunk,
    generation: Generation,
    previous: Option<CheckpointId>,
    key_groups: u16,
) -> Vec<EncodedRecord> {
    let mut records = Vec::new();
    let mut tables: Vec<TableSections> = Vec::new();
    let mut body = Vec::new();
    let mut writer = SectionWriter::default();
    let mut end_record = |tables: &mut Vec<TableSections>, body: &mut Vec<u8>, last: bool| {
        let header = ChunkHeader {
            version: VERSION,
            generation,
            checkpoint: chunk.checkpoint,
            task: chunk.task,
            previous,
            part: u32::try_from(records.len()).expect("a delta has fewer than 2^32 records"),
            last,
            tables: std::mem::take(tables),
        };
        let header = rmp_serde::to_vec_named(&header).expect("a header can always be written");
        let length = u32::try_from(header.len()).expect("a header has less than 4 GiB");
        records.push(EncodedRecord {
            length: length.to_le_bytes(),
            header,
            body: std::mem::take(body),
        });
    };
    for (table, overlay) in &chunk.tables {
        let begin = |cleared: Vec<i64>| TableSections {
            table: table.clone(),
            cleared,
            sections: Vec::new(),
        };
        tables.push(begin(overlay.cleared().collect()));
        for change in overlay.sorted(key_groups) {
            if body.len() >= RECORD_BYTES {
                let current = tables.last_mut().expect("it was begun");
                current.sections = writer.finish();
                end_record(&mut tables, &mut body, false);
                tables.push(begin(Vec::new()));
            }
            writer.push(&mut body, change);
        }
        tables.last_mut().expect("it was begun").sections = writer.finish();
    }
    end_record(&mut tables, &mut body, true);
    records
}

/// Before the header stands its length, in so many bytes.
pub(super) const LENGTH_BYTES: usize = 4;

/// The header of a record, and the bytes it speaks of.
pub(super) fn decode(payload: &Bytes) -> Result<(ChunkHeader, Bytes), NotAChunk> {
    let length = header_length(payload)?;
    let header = payload
        .get(LENGTH_BYTES..)
        .and_then(|rest| rest.get(..length));
    let header = ChunkHeader::read(header.ok_or(NotAChunk)?)?;
    Ok((header, payload.slice(LENGTH_BYTES + length..)))
}

pub(super) fn header_length(payload: &[u8]) -> Result<usize, NotAChunk> {
    let (length, _) = payload.split_first_chunk().ok_or(NotAChunk)?;
    Ok(u32::from_le_bytes(*length) as usize)
}

impl ChunkHeader {
    pub(super) fn read(bytes: &[u8]) -> Result<ChunkHeader, NotAChunk> {
        let header: ChunkHeader = rmp_serde::from_slice(bytes).map_err(|_| NotAChunk)?;
        match header.version {
            VERSION => Ok(header),
            _ => Err(NotAChunk),
        }
    }

    /// Applies the record's changes to what came before.
    pub(super) fn apply(
        &self,
        body: &Bytes,
        changes: &mut BTreeMap<TableId, Overlay>,
    ) -> Result<(), NotAChunk> {
        let mut rest = &body[..];
        for table in &self.tables {
            let overlay = match changes.get_mut(&table.table) {
                Some(overlay) => overlay,
                None => changes.entry(table.table.clone()).or_default(),
            };
            table.apply(&mut rest, overlay).map_err(|_| NotAChunk)?;
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err(NotAChunk),
        }
    }
}
