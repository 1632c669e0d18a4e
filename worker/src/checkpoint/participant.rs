//! Which tasks of this worker have sealed which checkpoint (pure).
//!
//! A checkpoint is persisted once every local task of the generation has sealed it, together with
//! everything sealed before it that has not been: a task may have sealed a checkpoint that another one
//! abandoned, and what it sealed then is part of its state ever after. Acknowledging a checkpoint
//! therefore says that all of its past is held.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{CheckpointId, TaskId};

/// The local tasks of one generation of a job. `S` is what a task hands over when it has sealed.
#[derive(Clone, Debug)]
pub struct Participant<S> {
    tasks: BTreeSet<TaskId>,
    /// Sealed and not yet handed out for persisting.
    sealed: BTreeMap<CheckpointId, BTreeMap<TaskId, S>>,
    /// Handed out; nothing else is until this is done.
    persisting: Option<CheckpointId>,
}

/// What to persist with one sync.
#[derive(Clone, Debug, PartialEq)]
pub struct Persist<S> {
    /// The checkpoint that is acknowledged afterwards.
    pub checkpoint: CheckpointId,
    /// Everything sealed up to it, oldest first.
    pub chunks: Vec<(CheckpointId, TaskId, S)>,
}

impl<S> Participant<S> {
    pub fn new(tasks: BTreeSet<TaskId>) -> Participant<S> {
        Participant {
            tasks,
            sealed: BTreeMap::new(),
            persisting: None,
        }
    }

    /// A task has sealed a checkpoint, and its sink is prepared.
    pub fn sealed(&mut self, task: TaskId, checkpoint: CheckpointId, snapshot: S) {
        assert!(
            self.tasks.contains(&task),
            "task {task} is not one of this generation here"
        );
        let repeated = self
            .sealed
            .entry(checkpoint)
            .or_default()
            .insert(task, snapshot);
        assert!(
            repeated.is_none(),
            "task {task} sealed checkpoint {checkpoint} twice"
        );
    }

    /// What can be persisted now, if anything: the newest checkpoint that all tasks have sealed.
    pub fn take_ready(&mut self) -> Option<Persist<S>> {
        if self.persisting.is_some() {
            return None;
        }
        let complete = |tasks: &BTreeMap<TaskId, S>| tasks.len() == self.tasks.len();
        let (checkpoint, _) = self
            .sealed
            .iter()
            .rev()
            .find(|(_, tasks)| complete(tasks))?;
        let checkpoint = *checkpoint;
        let later = self.sealed.split_off(&checkpoint.next());
        let ready = std::mem::replace(&mut self.sealed, later);
        self.persisting = Some(checkpoint);
        let chunks = ready.into_iter().flat_map(|(checkpoint, tasks)| {
            tasks
                .into_iter()
                .map(move |(task, snapshot)| (checkpoint, task, snapshot))
        });
        Some(Persist {
            checkpoint,
            chunks: chunks.collect(),
        })
    }

    /// What was handed out is on disk.
    pub fn persisted(&mut self, checkpoint: CheckpointId) {
        assert_eq!(
            self.persisting.take(),
            Some(checkpoint),
            "another checkpoint was under way"
        );
    }
}
