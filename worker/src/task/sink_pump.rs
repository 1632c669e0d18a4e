//! The way out of a task: its sink and its dead letters, driven by one future behind a bounded queue.
//!
//! The task puts rows, dead letters and barriers in order and goes on; the future writes them, and tells
//! when everything before a barrier is prepared. A full queue is the task's backpressure.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use common::ids::CheckpointId;
use futures_util::future::LocalBoxFuture;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use super::dead_letter::DeadLetter;
use super::message::Rows;
use crate::sink::dead_letters::DeadLetterSink;
use crate::sink::{Committable, Sink, SinkError};
use crate::source::LINGER;

/// Batches that wait for the sink.
const QUEUE: usize = 4;

/// What the task tells its sink, in order.
#[derive(Debug)]
pub enum SinkCommand {
    Rows(Rows),
    DeadLetters(Vec<DeadLetter>),
    /// Everything before this belongs to the checkpoint.
    Barrier(CheckpointId),
    /// The checkpoint is completed; these were prepared up to it.
    Commit {
        checkpoint: CheckpointId,
        prepared: Vec<Committable>,
        /// The job ends with it.
        last: bool,
    },
}

/// What the sink tells its task.
#[derive(Debug)]
pub enum SinkEvent {
    Prepared(CheckpointId, Option<Committable>),
    /// Everything up to this checkpoint is visible.
    Committed(CheckpointId),
    Failed(SinkError),
}

/// The task's end of the queue.
#[derive(Debug)]
pub struct SinkQueue {
    commands: mpsc::Sender<SinkCommand>,
    /// What did not fit; goes first.
    waiting: VecDeque<SinkCommand>,
    has_sink: bool,
    events: mpsc::Receiver<SinkEvent>,
}

/// The writing end of the queue.
#[derive(Debug)]
pub struct SinkEnd {
    pub commands: mpsc::Receiver<SinkCommand>,
    pub events: mpsc::Sender<SinkEvent>,
}

/// A sink that is being opened.
pub type Opening = LocalBoxFuture<'static, Result<Box<dyn Sink>, SinkError>>;

/// The future's end.
pub struct SinkPump {
    opening: Option<Opening>,
    sink: Option<Box<dyn Sink>>,
    letters: DeadLetterSink,
    end: SinkEnd,
    wake: Arc<Notify>,
}

/// A queue and the pump behind it. `wake`: wakes the task.
pub fn sink_queue(
    opening: Option<Opening>,
    letters: DeadLetterSink,
    wake: Arc<Notify>,
) -> (SinkQueue, SinkPump) {
    let (queue, end) = SinkQueue::new(opening.is_some());
    let pump = SinkPump {
        opening,
        sink: None,
        letters,
        end,
        wake,
    };
    (queue, pump)
}

impl SinkQueue {
    /// A queue and its other end, where somebody performs the commands in order.
    pub fn new(has_sink: bool) -> (SinkQueue, SinkEnd) {
        let (commands, received) = mpsc::channel(QUEUE);
        let (told, events) = mpsc::channel(QUEUE);
        let queue = SinkQueue {
            commands,
            waiting: VecDeque::new(),
            has_sink,
            events,
        };
        let end = SinkEnd {
            commands: received,
            events: told,
        };
        (queue, end)
    }

    /// Whether rows can be written here, and not only dead letters.
    pub fn has_sink(&self) -> bool {
        self.has_sink
    }

    pub fn has_room(&self) -> bool {
        self.waiting.is_empty() && self.commands.capacity() > 0
    }

    /// Puts a command behind all others.
    pub fn push(&mut self, command: SinkCommand) {
        self.waiting.push_back(command);
        self.advance();
    }

    /// Moves what waits into the queue as far as it fits.
    pub fn advance(&mut self) {
        while let Some(command) = self.waiting.pop_front() {
            match self.commands.try_send(command) {
                Ok(()) => {}
                Err(TrySendError::Full(command)) => {
                    self.waiting.push_front(command);
                    return;
                }
                // The pump has failed and said so; the task is about to end.
                Err(TrySendError::Closed(_)) => {}
            }
        }
    }

    pub fn event(&mut self) -> Option<SinkEvent> {
        self.events.try_recv().ok()
    }
}

impl SinkPump {
    /// Runs until the task is gone, or writing has failed.
    pub async fn run(mut self) {
        if let Err(error) = self.write_all().await {
            self.tell(SinkEvent::Failed(error)).await;
        }
    }

    async fn write_all(&mut self) -> Result<(), SinkError> {
        if let Some(opening) = self.opening.take() {
            self.sink = Some(opening.await?);
        }
        loop {
            let command =
                tokio::time::timeout(LINGER.as_duration(), self.end.commands.recv()).await;
            let Ok(command) = command else {
                self.flush().await?;
                match self.end.commands.recv().await {
                    Some(command) => self.perform(command).await?,
                    None => return Ok(()),
                }
                continue;
            };
            match command {
                Some(command) => self.perform(command).await?,
                None => return Ok(()),
            }
        }
    }

    async fn perform(&mut self, command: SinkCommand) -> Result<(), SinkError> {
        // One place in the queue is free again.
        self.wake.notify_one();
        match command {
            SinkCommand::Rows(rows) => {
                let sink = self
                    .sink
                    .as_mut()
                    .expect("rows come out only of a task with a sink");
                sink.write(rows).await
            }
            SinkCommand::DeadLetters(letters) => self.letters.write(letters).await,
            SinkCommand::Barrier(checkpoint) => {
                self.letters.prepare(checkpoint).await?;
                let committable = match &mut self.sink {
                    Some(sink) => sink.prepare(checkpoint).await?,
                    None => None,
                };
                self.tell(SinkEvent::Prepared(checkpoint, committable))
                    .await;
                Ok(())
            }
            SinkCommand::Commit {
                checkpoint,
                prepared,
                last,
            } => {
                self.letters.commit(checkpoint);
                if let Some(sink) = &mut self.sink {
                    sink.commit(checkpoint, prepared).await?;
                }
                if last {
                    self.letters.shown().await;
                    if let Some(sink) = &mut self.sink {
                        sink.shown().await;
                    }
                }
                self.tell(SinkEvent::Committed(checkpoint)).await;
                Ok(())
            }
        }
    }

    async fn flush(&mut self) -> Result<(), SinkError> {
        self.letters.flush().await?;
        match &mut self.sink {
            Some(sink) => sink.flush().await,
            None => Ok(()),
        }
    }

    async fn tell(&self, event: SinkEvent) {
        // A task that is gone needs to hear nothing.
        self.end.events.send(event).await.unwrap_or_default();
        self.wake.notify_one();
    }
}

impl fmt::Debug for SinkPump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SinkPump")
            .field("sink", &self.sink)
            .finish_non_exhaustive()
    }
}
