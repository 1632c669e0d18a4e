//! What a standby's store takes of tasks that run elsewhere: the same chunks and base files, byte for byte.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::ids::{CheckpointId, Generation, TaskId};
use common::protocol::standby::BasePosition;

use super::delta_log::chain;
use super::state_error::StateError;
use super::state_store::{History, JobStateStore, TaskTables, restored_at};
use crate::keyed_state::base_copy::{self, Original};

impl JobStateStore {
    /// The last checkpoint of which everything of a task is here. `generation`: the one whose chunks may
    /// come to count.
    pub fn held(
        &self,
        task: TaskId,
        generation: Generation,
        history: History<'_>,
    ) -> Option<CheckpointId> {
        let base = self.base_at(task);
        let chunks = self.following(task, base, generation, history);
        let mut held = base;
        for chunk in chunks {
            if chunk.previous != held {
                break;
            }
            held = Some(chunk.checkpoint);
        }
        held
    }

    /// The tables of a task at a completed checkpoint of which everything is here, if they fit into so many
    /// bytes. Blocks.
    pub fn copy_at(
        &self,
        task: TaskId,
        at: CheckpointId,
        history: History<'_>,
        spilling: &BTreeSet<String>,
        most: u64,
    ) -> Result<Option<TaskTables>, StateError> {
        let base = self.base_of(task);
        let base_at = base.as_ref().map(|base| base.checkpoint());
        let counted = self.counted(task, at, history);
        let chunks = chain(&counted, base_at, at).ok_or(StateError::Lost { task, at })?;
        let bytes: u64 = chunks.iter().map(|chunk| chunk.bytes).sum();
        if bytes + base.as_ref().map_or(0, |base| base.bytes()) > most {
            return Ok(None);
        }
        let mut tables = match &base {
            Some(base) => base.read()?,
            None => BTreeMap::new(),
        };
        self.apply(chunks, &mut tables)?;
        Ok(Some(restored_at(at, tables, spilling)))
    }

    /// Makes records of another worker's delta log durable, with one sync. Blocks.
    pub fn keep_records(&self, records: &[Bytes]) -> Result<(), StateError> {
        Ok(self.log.append_verbatim(records)?)
    }

    /// Keeps a piece of a base file; with the last one it takes its place. Blocks.
    pub fn keep_base(
        &self,
        task: TaskId,
        at: BasePosition,
        length: u64,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        let original = Original {
            checkpoint: at.checkpoint,
            key_groups: self.options().key_groups,
            length,
        };
        let directory = self.directory.join(task.to_string());
        let Some(base) = base_copy::add(&directory, original, at.offset, bytes)? else {
            return Ok(());
        };
        let _turn = self.writing_bases.take(task);
        self.put_base(task, base)
    }
}
