//! Reads single entries of a job's view for its tasks, while it is folded into.
//!
//! A task relies on the view for what it does not have in memory. A view that was given up or built anew
//! meanwhile lacks some of that, so each has a life: a reader of a former one answers nothing, and its task
//! starts again from the truth.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::ids::TaskId;
use common::kv::{KvError, KvStore};

use super::view_answers;
use crate::keyed_state::section::TableId;
use crate::keyed_state::stored::{Answer, Ask};

/// The store that the view of a job is in, and the lives of its tasks' parts of it.
#[derive(Clone, Debug, Default)]
pub(super) struct ViewSlot {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    store: Option<Arc<dyn KvStore>>,
    /// Grows whenever all of the view is given up.
    given_up: u64,
    /// Grows whenever the task's part is begun anew.
    begun: BTreeMap<TaskId, u64>,
}

/// The life of one task's part of the view.
type Life = (u64, u64);

/// Answers what one task asks of its part of the view. Cheap to clone.
#[derive(Clone)]
pub struct ViewReader {
    slot: ViewSlot,
    task: TaskId,
    life: Life,
}

#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    #[error("the view of the state was built anew")]
    BuiltAnew,
    #[error("the view of the state cannot be read: {0}")]
    Store(#[from] KvError),
}

impl ViewSlot {
    /// Opened if it is not, by one at a time.
    pub(super) fn store_or(
        &self,
        open: &dyn Fn() -> Result<Arc<dyn KvStore>, KvError>,
    ) -> Result<Arc<dyn KvStore>, KvError> {
        let mut inner = self.inner();
        if let Some(store) = &inner.store {
            return Ok(Arc::clone(store));
        }
        let store = open()?;
        inner.store = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Nobody reads it any more.
    pub(super) fn give_up(&self) {
        let mut inner = self.inner();
        inner.store = None;
        inner.given_up += 1;
    }

    /// The task's part is about to be begun anew: its readers are to notice.
    pub(super) fn begin(&self, task: TaskId) {
        *self.inner().begun.entry(task).or_default() += 1;
    }

    pub(super) fn reader(&self, task: TaskId) -> ViewReader {
        ViewReader {
            slot: self.clone(),
            task,
            life: self.inner().life(task),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn life(&self, task: TaskId) -> Life {
        let begun = self.begun.get(&task).copied().unwrap_or(0);
        (self.given_up, begun)
    }
}

impl ViewReader {
    /// Blocks.
    pub fn answer(&self, table: &TableId, ask: Ask) -> Result<Answer, ViewError> {
        let store = self.store()?;
        let answer = view_answers::answer(&*store, self.task, table, ask)?;
        // It may have ended while this was reading.
        self.store()?;
        Ok(answer)
    }

    /// Whether both read the same view.
    pub fn is_like(&self, other: &ViewReader) -> bool {
        self.life == other.life
    }

    fn store(&self) -> Result<Arc<dyn KvStore>, ViewError> {
        let inner = self.slot.inner();
        match &inner.store {
            Some(store) if inner.life(self.task) == self.life => Ok(Arc::clone(store)),
            _ => Err(ViewError::BuiltAnew),
        }
    }
}

impl fmt::Debug for ViewReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ViewReader")
            .field("task", &self.task)
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}
