//! `CommitPermit`: proof that a checkpoint may be completed.
//!
//! Completing a checkpoint makes everything before it final: output becomes visible, state is folded.
//! The command that does so is built from a permit, and only the machine, which has seen every task of
//! the generation acknowledge the checkpoint, can make one.

use std::collections::BTreeMap;

use common::ids::{CheckpointId, Generation, JobId, NodeId, TaskId};
use common::protocol::checkpoint::{CheckpointKind, TaskCounts};
use common::time::Span;

use crate::metadata::command::{Command, EpochCompleted};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CommitPermit(Proven);

/// What the machine has seen of a checkpoint that every task has acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proven {
    pub generation: Generation,
    pub checkpoint: CheckpointId,
    pub kind: CheckpointKind,
    /// Which workers have each task's part of it on their disks, the one it runs on first.
    pub holders: BTreeMap<TaskId, Vec<NodeId>>,
    /// Of source tasks: split → the position after the last row before the barrier.
    pub positions: BTreeMap<TaskId, BTreeMap<String, i64>>,
    /// What each task has done before the barrier, since its generation began.
    pub counts: BTreeMap<TaskId, TaskCounts>,
    /// From the first barrier to the last acknowledgement.
    pub duration: Span,
    pub delta_bytes: u64,
    pub state_bytes: u64,
}

impl CommitPermit {
    pub(in crate::checkpoint) fn new(proven: Proven) -> CommitPermit {
        CommitPermit(proven)
    }

    pub fn checkpoint(&self) -> CheckpointId {
        self.0.checkpoint
    }

    /// Spends the permit.
    pub fn into_proven(self) -> Proven {
        self.0
    }

    /// Spends the permit on the command that makes the completion a fact.
    pub fn into_command(self, job: JobId) -> Command {
        let proven = self.0;
        Command::EpochCompleted(EpochCompleted {
            job,
            generation: proven.generation,
            checkpoint: proven.checkpoint,
            kind: proven.kind,
            holders: proven.holders,
            positions: proven.positions,
            counts: proven.counts,
            duration: proven.duration,
            delta_bytes: proven.delta_bytes,
            state_bytes: proven.state_bytes,
        })
    }
}
