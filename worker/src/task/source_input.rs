//! The input of a task that reads a source: a future that reads ahead, and how far the task has come.
//!
//! Only what the task has taken counts as read: the positions that a checkpoint keeps are those of the
//! rows before its barrier, whatever the future has read ahead.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::source::{Source, SourceError, SourceEvent, SplitState};

/// Batches read ahead of the task.
const AHEAD: usize = 2;

#[derive(Debug)]
pub struct SourceInput {
    events: mpsc::Receiver<Result<SourceEvent, SourceError>>,
    /// What reads ahead, if this task started it.
    pump: Option<JoinHandle<()>>,
    splits: BTreeMap<Arc<str>, SplitState>,
}

/// Where what a source gives is put.
pub type SourceFeed = mpsc::Sender<Result<SourceEvent, SourceError>>;

/// A source that is being opened; it may have to ask partitions where they end.
pub type Opening = LocalBoxFuture<'static, Result<Box<dyn Source>, SourceError>>;

impl SourceInput {
    /// Opens the source and reads it on this thread. `wake` wakes the task when there is something to take.
    pub fn start(opening: Opening, wake: Arc<Notify>) -> SourceInput {
        let (sender, mut input) = SourceInput::fed();
        let pump = tokio::task::spawn_local(async move {
            if let Err(error) = read(opening, &sender, &wake).await {
                // A task that is gone needs to hear nothing.
                sender.send(Err(error)).await.unwrap_or_default();
            }
            wake.notify_one();
        });
        input.pump = Some(pump);
        input
    }

    /// An input that somebody else feeds, and the feed.
    pub fn fed() -> (SourceFeed, SourceInput) {
        let (feed, events) = mpsc::channel(AHEAD);
        let input = SourceInput {
            events,
            pump: None,
            splits: BTreeMap::new(),
        };
        (feed, input)
    }

    /// The next event, with the positions moved past it.
    pub fn take(&mut self) -> Option<Result<SourceEvent, SourceError>> {
        let event = self.events.try_recv().ok()?;
        match &event {
            Ok(SourceEvent::Rows(rows)) => {
                let split = self
                    .splits
                    .get_mut(&rows.split)
                    .expect("rows come of a known split");
                assert!(
                    rows.next_position >= split.position,
                    "a split was read backwards"
                );
                split.position = rows.next_position;
            }
            Ok(SourceEvent::Discovered { split }) => {
                self.splits.insert(split.split.clone(), split.clone());
            }
            // A later life must know that there is nothing to look for: the split itself may be gone by then.
            Ok(SourceEvent::Ended { split }) => {
                if let Some(split) = self.splits.get_mut(split) {
                    split.end = Some(split.position);
                }
            }
            Ok(SourceEvent::CaughtUp { .. } | SourceEvent::Waiting | SourceEvent::Exhausted)
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
        if let Some(pump) = &self.pump {
            pump.abort();
        }
    }
}

async fn read(opening: Opening, sender: &SourceFeed, wake: &Notify) -> Result<(), SourceError> {
    let mut source = opening.await?;
    let found = source
        .splits()
        .into_iter()
        .map(|split| SourceEvent::Discovered { split });
    for event in found.collect::<Vec<_>>() {
        if sender.send(Ok(event)).await.is_err() {
            return Ok(());
        }
        wake.notify_one();
    }
    loop {
        let event = source.next().await?;
        let last = matches!(event, SourceEvent::Exhausted);
        if sender.send(Ok(event)).await.is_err() || last {
            return Ok(());
        }
        wake.notify_one();
    }
}
