//! The tables of a task that runs elsewhere, in memory as they are there: what its chunks make, one after the
//! other. So the task can go on here at once.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::ids::CheckpointId;
use common::seglog::frame::FRAME_HEADER_BYTES;

use super::chunk::{self, NotAChunk};
use super::state_store::{LeftTask, RestoredTask, TaskTables};
use super::view_reader::ViewReader;
use crate::keyed_state::overlay::Overlay;
use crate::keyed_state::section::TableId;
use crate::keyed_state::table::Table;
use crate::task::memory::{MemoryRest, MemoryShare};

#[derive(Debug)]
pub struct HotTables {
    tables: TaskTables,
    /// The checkpoint they are at, and the last one that was completed of those.
    at: Option<CheckpointId>,
    completed: Option<CheckpointId>,
    /// What has come of the next chunk, and how many of its records that is.
    begun: BTreeMap<TableId, Overlay>,
    records: u32,
    /// Operators whose tables need not be in memory once they run here.
    spilling: BTreeSet<String>,
    /// Answers what they let go of when the task ran here.
    reader: Option<ViewReader>,
    limit: Limit,
}

/// How much memory the tables of one task may take.
#[derive(Debug)]
pub enum Limit {
    /// What a task whose tables need not be in memory has.
    Share(MemoryShare),
    /// What such a task has that is only prepared.
    Rest(MemoryRest),
    Bytes(u64),
}

impl Limit {
    pub fn bytes(&self) -> u64 {
        match self {
            Limit::Share(share) => share.bytes(),
            Limit::Rest(rest) => rest.bytes(),
            Limit::Bytes(bytes) => *bytes,
        }
    }

    fn has_room_for(&mut self, used: u64) -> bool {
        match self {
            Limit::Share(share) => share.has_room_for(used),
            Limit::Rest(rest) => rest.has_room_for(used),
            Limit::Bytes(bytes) => used <= *bytes,
        }
    }
}

impl HotTables {
    /// `begins`: what it has at a completed checkpoint, or nothing at all.
    pub fn new(
        at: Option<CheckpointId>,
        begins: RestoredTask,
        spilling: BTreeSet<String>,
        limit: Limit,
    ) -> HotTables {
        HotTables {
            tables: begins.tables,
            reader: begins.reader,
            at,
            completed: at,
            begun: BTreeMap::new(),
            records: 0,
            spilling,
            limit,
        }
    }

    /// Takes a framed record of the chunk that comes next, in their order; one of a chunk that is there already
    /// changes nothing; nothing else is taken.
    pub fn apply(&mut self, record: &Bytes) -> Result<(), NotAChunk> {
        let (header, body) = chunk::decode(&record.slice(FRAME_HEADER_BYTES..))?;
        if Some(header.checkpoint) <= self.at {
            return Ok(());
        }
        // The first one may come again.
        if header.part == 0 {
            self.begun.clear();
            self.records = 0;
        }
        if header.previous != self.at || header.part != self.records {
            return Err(NotAChunk);
        }
        header.apply(&body, &mut self.begun)?;
        self.records += 1;
        if !header.last {
            return Ok(());
        }
        self.records = 0;
        for (id, changes) in std::mem::take(&mut self.begun) {
            let spills = self.spilling.contains(&id.operator);
            let table = self.tables.entry(id).or_insert_with(|| {
                let mut table = Table::default();
                if spills {
                    table.spill();
                }
                table
            });
            table.seal_as_there(header.checkpoint, &changes);
        }
        self.at = Some(header.checkpoint);
        Ok(())
    }

    /// The checkpoint is completed; one that has not come yet is so when it has.
    pub fn complete(&mut self, checkpoint: CheckpointId) {
        if Some(checkpoint) <= self.at && self.completed < Some(checkpoint) {
            self.completed = Some(checkpoint);
            let tables = self.tables.values_mut();
            tables.for_each(|table| table.complete(checkpoint));
        }
    }

    /// Whether they take no more memory than they may.
    pub fn fit(&mut self) -> bool {
        let bytes: u64 = self.tables.values().map(Table::footprint).sum();
        self.limit.has_room_for(bytes)
    }

    /// What the task goes on from if it runs here next.
    pub fn into_left(self) -> LeftTask {
        LeftTask {
            sealed: self.at,
            tables: RestoredTask {
                tables: self.tables,
                reader: self.reader,
            },
        }
    }
}
