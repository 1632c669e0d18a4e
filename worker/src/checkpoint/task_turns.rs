//! Who works on what a task has, one at a time for each task.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};

use common::ids::TaskId;

use super::state_store::lock;

#[derive(Debug, Default)]
pub(super) struct TaskTurns {
    taken: Mutex<BTreeSet<TaskId>>,
    given_back: Condvar,
}

/// Given back when it is dropped.
#[derive(Debug)]
pub(super) struct TaskTurn<'a> {
    turns: &'a TaskTurns,
    task: TaskId,
}

impl TaskTurns {
    /// Waits for who has it. Blocks.
    pub(super) fn take(&self, task: TaskId) -> TaskTurn<'_> {
        let taken = lock(&self.taken);
        let waited = self
            .given_back
            .wait_while(taken, |taken| taken.contains(&task));
        waited.unwrap_or_else(PoisonError::into_inner).insert(task);
        TaskTurn { turns: self, task }
    }

    /// `None`: somebody has it.
    pub(super) fn try_take(&self, task: TaskId) -> Option<TaskTurn<'_>> {
        let is_free = lock(&self.taken).insert(task);
        is_free.then(|| TaskTurn { turns: self, task })
    }
}

impl Drop for TaskTurn<'_> {
    fn drop(&mut self) {
        lock(&self.turns.taken).remove(&self.task);
        self.turns.given_back.notify_all();
    }
}
