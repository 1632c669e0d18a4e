//! How the tasks of this worker are, as the heartbeat tells it: written by tasks, read without them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::ids::{Generation, JobId, TaskId};
use common::protocol::task::{TaskMetrics, TaskReport, TaskState};
use tokio::sync::Notify;

/// The tasks that run here.
#[derive(Debug, Default)]
pub struct TaskReports {
    tasks: Mutex<BTreeMap<(JobId, Generation, TaskId), Arc<TaskStatus>>>,
}

/// One task's state and numbers. A task that has failed keeps saying so until its generation is over.
#[derive(Debug)]
pub struct TaskStatus {
    current: Mutex<(TaskState, TaskMetrics)>,
    wants_checkpoint: AtomicBool,
    urgent: Arc<Notify>,
}

impl TaskReports {
    /// The status of a task that is about to start.
    pub fn add(
        &self,
        job: JobId,
        generation: Generation,
        task: TaskId,
        urgent: Arc<Notify>,
    ) -> Arc<TaskStatus> {
        let current = Mutex::new((TaskState::Deploying, TaskMetrics::default()));
        let status = Arc::new(TaskStatus {
            current,
            wants_checkpoint: AtomicBool::new(false),
            urgent,
        });
        self.tasks().insert((job, generation, task), status.clone());
        status
    }

    pub fn get(&self, job: JobId, generation: Generation, task: TaskId) -> Option<Arc<TaskStatus>> {
        self.tasks().get(&(job, generation, task)).cloned()
    }

    /// Forgets a generation that has been stopped.
    pub fn remove(&self, job: JobId, generation: Generation) {
        self.tasks()
            .retain(|(j, g, _), _| (*j, *g) != (job, generation));
    }

    pub fn all(&self) -> Vec<TaskReport> {
        let tasks = self.tasks();
        let report = |(key, status): (&(JobId, Generation, TaskId), &Arc<TaskStatus>)| {
            let (state, metrics) = status.current().clone();
            TaskReport {
                job: key.0,
                generation: key.1,
                task: key.2,
                state,
                metrics,
                wants_checkpoint: status.wants_checkpoint.load(Ordering::Relaxed),
            }
        };
        tasks.iter().map(report).collect()
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<(JobId, Generation, TaskId), Arc<TaskStatus>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TaskStatus {
    /// Says at once that the task is in another state now. The first failure stays.
    pub fn set_state(&self, state: TaskState) {
        let mut current = self.current();
        if !matches!(current.0, TaskState::Failed { .. }) && current.0 != state {
            current.0 = state;
            self.urgent.notify_one();
        }
    }

    pub fn state(&self) -> TaskState {
        self.current().0.clone()
    }

    pub fn set_metrics(&self, metrics: TaskMetrics) {
        self.current().1 = metrics;
    }

    /// Asks for a checkpoint at once, or no longer.
    pub fn want_checkpoint(&self, wanted: bool) {
        self.wants_checkpoint.store(wanted, Ordering::Relaxed);
        if wanted {
            self.urgent.notify_one();
        }
    }

    fn current(&self) -> MutexGuard<'_, (TaskState, TaskMetrics)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
