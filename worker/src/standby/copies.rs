//! What a standby has of the tasks it stands by for, on its disk and, of those there is memory for, in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use common::ids::{CheckpointId, Generation, TaskId};
use common::protocol::metadata::JobImage;
use common::protocol::standby::{PieceOf, StatePiece};
use common::protocol::task::Deployment;
use tracing::debug;

use super::machine::Followed;
use crate::checkpoint::hot_tables::{HotTables, Limit};
use crate::checkpoint::state_error::StateError;
use crate::checkpoint::state_store::{JobStateStore, LeftTask, RestoredTask};
use crate::job::assembly::{self, Left};
use crate::operator::custom::CustomOperators;
use crate::task::memory::StateMemory;

/// As of one moment; all calls block.
#[derive(Debug)]
pub struct Copies {
    pub deployment: Arc<Deployment>,
    pub facts: Option<JobImage>,
    pub store: Arc<JobStateStore>,
    pub hot: Arc<Mutex<BTreeMap<TaskId, HotTables>>>,
    pub custom: Arc<CustomOperators>,
    pub memory: Arc<StateMemory>,
}

impl Copies {
    /// How far each of these tasks is here. Brings those into memory that fit; `left`: what the generation
    /// before had there.
    pub fn find(&self, tasks: BTreeSet<TaskId>, mut left: Left) -> Vec<Followed> {
        lock(&self.hot).retain(|task, _| tasks.contains(task));
        let mut followed = Vec::new();
        for task in tasks {
            let generation = self.deployment.generation;
            let held = self.store.held(task, generation, &self.history());
            if !lock(&self.hot).contains_key(&task) {
                let completed = self.facts.as_ref().and_then(|facts| facts.completed);
                // A base file is of a completed checkpoint, also of one that is not known here yet.
                let counts = held.min(completed).max(self.store.base_at(task));
                self.warm_up(task, counts, left.remove(&task));
            }
            followed.push(Followed {
                task,
                runs_on: self.deployment.worker_of(task),
                held,
            });
        }
        followed
    }

    /// Makes pieces durable, in their order; records that come one after the other with one sync.
    pub fn keep(&self, pieces: Vec<(StatePiece, Bytes)>) -> Result<(), StateError> {
        let mut records = Vec::new();
        for (piece, bytes) in &pieces {
            match piece.of {
                PieceOf::Chunk { .. } => records.push(bytes.clone()),
                PieceOf::Base { at, length } => {
                    self.store.keep_base(piece.task, at, length, bytes)?;
                    // It goes on from there, not from what was in memory.
                    lock(&self.hot).remove(&piece.task);
                    if at.offset + u64::from(piece.bytes) == length {
                        self.warm_up(piece.task, Some(at.checkpoint), None);
                    }
                }
            }
        }
        if !records.is_empty() {
            self.store.keep_records(&records)?;
        }
        for (piece, bytes) in &pieces {
            if let PieceOf::Chunk { .. } = piece.of {
                self.apply(piece.task, bytes);
            }
        }
        Ok(())
    }

    /// Brings a task's tables into memory, if there is room for them: at a checkpoint that counts, and then what
    /// came after it. Without them everything is as safe, and only takes longer.
    fn warm_up(&self, task: TaskId, at: Option<CheckpointId>, left: Option<LeftTask>) {
        let stage = self.deployment.graph.stage(task.stage);
        let spilling = assembly::spilling(stage, &self.custom);
        let limit = match spilling.is_empty() {
            true => Limit::Bytes(self.memory.bytes_for(1)),
            false => Limit::Share(self.memory.share()),
        };
        let left = at.zip(left).and_then(|(at, left)| left.back_at(at));
        let begins = match (at, left.filter(RestoredTask::is_whole)) {
            (_, Some(left)) => left,
            (None, None) => RestoredTask::default(),
            (Some(at), None) => {
                let history = self.history();
                let copy = self
                    .store
                    .copy_at(task, at, &history, &spilling, limit.bytes());
                match copy {
                    Ok(Some(tables)) => RestoredTask {
                        tables,
                        reader: None,
                    },
                    Ok(None) => return,
                    Err(error) => {
                        debug!(%task, %error, "a standby's tables are not brought into memory");
                        return;
                    }
                }
            }
        };
        lock(&self.hot).insert(task, HotTables::new(at, begins, spilling, limit));
        let generation = self.deployment.generation;
        let since = self
            .store
            .records_after(task, at, generation, &self.history());
        match since {
            Ok(records) => records.iter().for_each(|record| self.apply(task, record)),
            Err(error) => {
                debug!(%task, %error, "a standby's tables are not brought into memory");
                lock(&self.hot).remove(&task);
            }
        }
    }

    /// What does not fit into memory any more, or does not follow, is on the disk only from now on.
    fn apply(&self, task: TaskId, record: &Bytes) {
        let mut hot = lock(&self.hot);
        let Some(copy) = hot.get_mut(&task) else {
            return;
        };
        let applied = copy.apply(record);
        if let Some(completed) = self.facts.as_ref().and_then(|facts| facts.completed) {
            copy.complete(completed);
        }
        if applied.is_err() || !copy.fit() {
            hot.remove(&task);
        }
    }

    fn history(&self) -> impl Fn(Generation, CheckpointId) -> Option<bool> + '_ {
        |generation, checkpoint| self.facts.as_ref()?.counts(generation, checkpoint)
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
