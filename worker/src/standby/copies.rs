//! What a standby has of the tasks it stands by for, on its disk and, of those there is memory for, in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use common::ids::{CheckpointId, Generation, NodeId, TaskId};
use common::protocol::metadata::JobImage;
use common::protocol::standby::{PieceOf, StatePiece};
use common::protocol::task::Deployment;
use tracing::debug;

use super::machine::Followed;
use crate::checkpoint::hot_tables::{HotTables, Limit};
use crate::checkpoint::state_error::StateError;
use crate::checkpoint::state_store::{JobStateStore, RestoredTask};
use crate::job::assembly::{self, Left};
use crate::operator::custom::CustomOperators;
use crate::task::memory::StateMemory;

/// As of one moment; all calls block.
#[derive(Debug)]
pub struct Copies {
    /// This worker.
    pub me: NodeId,
    pub deployment: Arc<Deployment>,
    pub facts: Option<JobImage>,
    pub store: Arc<JobStateStore>,
    pub hot: Arc<Mutex<BTreeMap<TaskId, HotTables>>>,
    pub custom: Arc<CustomOperators>,
    pub memory: Arc<StateMemory>,
}

/// What is here of the tasks that are stood by for.
#[derive(Debug)]
pub struct Found {
    pub followed: Vec<Followed>,
    /// Those of which nothing is in memory.
    pub cold: Vec<TaskId>,
}

impl Copies {
    /// How far each of these tasks is here. `left`: what the generation before had of them in memory. `successors`:
    /// what is in memory of these stays, too.
    pub fn find(
        &self,
        tasks: BTreeSet<TaskId>,
        successors: &BTreeSet<TaskId>,
        mut left: Left,
    ) -> Found {
        lock(&self.hot).retain(|task, _| tasks.contains(task) || successors.contains(task));
        let (mut followed, mut cold) = (Vec::new(), Vec::new());
        for task in tasks {
            let generation = self.deployment.generation;
            let held = self.store.held(task, generation, &self.history());
            followed.push(Followed {
                task,
                runs_on: self.deployment.worker_of(task),
                held,
            });
            if lock(&self.hot).contains_key(&task) {
                continue;
            }
            let at = self.completed_of(task);
            let begins = match at {
                None => Some(RestoredTask::default()),
                Some(at) => left.remove(&task).and_then(|left| left.back_at(at)),
            };
            match begins.filter(RestoredTask::is_whole) {
                Some(begins) => self.heat(task, at, begins),
                None => cold.push(task),
            }
        }
        Found { followed, cold }
    }

    /// Makes pieces durable, in their order; records that come one after the other with one sync. Answers the
    /// tasks of which nothing is in memory any more, and something may be again.
    pub fn keep(&self, pieces: Vec<(StatePiece, Bytes)>) -> Result<BTreeSet<TaskId>, StateError> {
        let (mut records, mut cold) = (Vec::new(), BTreeSet::new());
        for (piece, bytes) in &pieces {
            match piece.of {
                PieceOf::Chunk { .. } => records.push(bytes.clone()),
                PieceOf::Base { at, length } => {
                    self.store.keep_base(piece.task, at, length, bytes)?;
                    // It goes on from there, not from what was in memory.
                    lock(&self.hot).remove(&piece.task);
                    if at.offset + u64::from(piece.bytes) == length {
                        cold.insert(piece.task);
                    }
                }
            }
        }
        if !records.is_empty() {
            self.store.keep_records(&records)?;
        }
        for (piece, bytes) in &pieces {
            // Held for a moment at a time: who ends this generation waits for it.
            if let PieceOf::Chunk { .. } = piece.of
                && let Applied::DoesNotFollow = self.apply(&mut lock(&self.hot), piece.task, bytes)
            {
                cold.insert(piece.task);
            }
        }
        Ok(cold)
    }

    /// Brings a task's tables into memory, if there is room for them. Without them everything is as safe, and only
    /// takes longer. Of a large task it takes its time, and others are kept meanwhile.
    pub fn warm_up(&self, task: TaskId) {
        let Some(at) = self.completed_of(task) else {
            return;
        };
        let (spilling, limit) = self.limit_of(task);
        let history = self.history();
        let copy = self
            .store
            .copy_at(task, at, &history, &spilling, limit.bytes());
        match copy {
            Ok(Some(tables)) => {
                let reader = None;
                self.heat(task, Some(at), RestoredTask { tables, reader });
            }
            Ok(None) => {}
            Err(error) => debug!(%task, %error, "a standby's tables are not brought into memory"),
        }
    }

    /// A successor has got further on the disk than this.
    pub fn catch_up(&self, task: TaskId, from: CheckpointId) -> Result<(), StateError> {
        let generation = self.deployment.generation;
        let since = self
            .store
            .records_after(task, Some(from), generation, &self.history())?;
        for record in &since {
            self.apply(&mut lock(&self.hot), task, record);
        }
        Ok(())
    }

    pub fn is_hot(&self, task: TaskId) -> bool {
        lock(&self.hot).contains_key(&task)
    }

    /// These are a task's tables at a checkpoint that counts. They are brought to where its chunks are, which wait
    /// for that: what is kept meanwhile is either read here or applied afterwards.
    fn heat(&self, task: TaskId, at: Option<CheckpointId>, begins: RestoredTask) {
        let (spilling, limit) = self.limit_of(task);
        let mut copy = HotTables::new(at, begins, spilling, limit);
        if !copy.fit() {
            debug!(%task, "a standby's tables do not fit into memory");
            return;
        }
        let mut hot = lock(&self.hot);
        hot.insert(task, copy);
        let generation = self.deployment.generation;
        let since = self
            .store
            .records_after(task, at, generation, &self.history());
        match since {
            Ok(records) => {
                for record in &records {
                    self.apply(&mut hot, task, record);
                }
            }
            Err(error) => {
                debug!(%task, %error, "a standby's tables are not brought into memory");
                hot.remove(&task);
            }
        }
    }

    /// What does not fit into memory any more, or does not follow, is on the disk only from now on.
    fn apply(
        &self,
        hot: &mut BTreeMap<TaskId, HotTables>,
        task: TaskId,
        record: &Bytes,
    ) -> Applied {
        let Some(copy) = hot.get_mut(&task) else {
            return Applied::Cold;
        };
        let applied = copy.apply(record);
        if let Some(completed) = self.facts.as_ref().and_then(|facts| facts.completed) {
            copy.complete(completed);
        }
        match applied {
            Err(_) => {
                hot.remove(&task);
                Applied::DoesNotFollow
            }
            Ok(()) if !copy.fit() => {
                hot.remove(&task);
                Applied::Cold
            }
            Ok(()) => Applied::Hot,
        }
    }

    /// The last completed checkpoint of which all of a task is here.
    fn completed_of(&self, task: TaskId) -> Option<CheckpointId> {
        let held = self
            .store
            .held(task, self.deployment.generation, &self.history());
        let completed = self.facts.as_ref().and_then(|facts| facts.completed);
        // A base file is of a completed checkpoint, also of one that is not known here yet.
        held.min(completed).max(self.store.base_at(task))
    }

    fn limit_of(&self, task: TaskId) -> (BTreeSet<String>, Limit) {
        let stage = self.deployment.stage_of(task);
        let spilling = assembly::spilling(stage, &self.custom);
        let limit = match spilling.is_empty() {
            true => Limit::Bytes(self.memory.bytes_for(1)),
            false if self.deployment.is_prepared(task) => Limit::Rest(self.memory.rest()),
            false => Limit::Share(self.memory.share()),
        };
        (spilling, limit)
    }

    pub fn history(&self) -> impl Fn(Generation, CheckpointId) -> Option<bool> + '_ {
        |generation, checkpoint| self.facts.as_ref()?.counts(generation, checkpoint)
    }
}

/// What became of a record in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Applied {
    Hot,
    /// Nothing of its task is there, or it does not fit any more.
    Cold,
    DoesNotFollow,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
