//! The input of a task that reads a source: a future that reads ahead, and how far the task has come.
//!
//! Only what the task has taken counts as read: the positions that a checkpoint keeps are those of the
//! rows before its barrier, whatever the future has read ahead.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::source::{Source, SourceError, SourceEvent, SplitState};

/// Batches read ahead of the task.
const AHEAD: usize = 2;

#[derive(Debug)]
pub struct SourceInput {
    events: mpsc::Receiver<Result<SourceEvent, SourceError>>,
    pump: JoinHandle<()>,
    splits: BTreeMap<Arc<str>, SplitState>,
}

impl SourceInput {
    /// Starts reading on this thread. `wake` wakes the task when there is something to take.
    pub fn start(mut source: Box<dyn Source>, wake: Arc<Notify>) -> SourceInput {
        let splits = source.splits().into_iter().map(|split| (split.split.clone(), split)).collect();
        let (sender, events) = mpsc::channel(AHEAD);
        let pump = tokio::task::spawn_local(async move {
            loop {
                let event = source.next().await;
                let last = matches!(event, Err(_) | Ok(SourceEvent::Exhausted));
                if sender.send(event).await.is_err() || last {
                    wake.notify_one();
                    return;
                }
                wake.notify_one();
            }
        });
        SourceInput { events, pump, splits }
    }

    /// The next event, with the positions moved past it.
    pub fn next(&mut self) -> Option<Result<SourceEvent, SourceError>> {
        let event = self.events.try_recv().ok()?;
        match &event {
            Ok(SourceEvent::Rows(rows)) => {
                let split = self.splits.get_mut(&rows.split).expect("rows come of a known split");
                assert!(rows.next_position >= split.position, "a split was read backwards");
                split.position = rows.next_position;
            }
            Ok(SourceEvent::Discovered { split }) => {
                self.splits.insert(split.split.clone(), split.clone());
            }
            Ok(
                SourceEvent::CaughtUp { .. } | SourceEvent::Ended { .. } | SourceEvent::Exhausted,
            )
            | Err(_) => {}
        }
        Some(event)
    }

    pub fn splits(&self) -> impl Iterator<Item = &SplitState> {
        self.splits.values()
    }
}

impl Drop for SourceInput {
    fn drop(&mut self) {
        self.pump.abort();
    }
}
