//! The queue between two tasks: bounded, and quiet: it wakes its reader and its writer, nothing else.
//!
//! Data is never in actor mailboxes. A writer asks `has_room` before it works on something whose result
//! it would have to put here; what one such piece of work gives is always taken, so the bound is exceeded
//! by at most that.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::limits::{CHANNEL_BYTES, CHANNEL_MESSAGES};
use tokio::sync::Notify;

use super::message::Message;

/// The writing end.
#[derive(Clone, Debug)]
pub struct ChannelWriter(Arc<Shared>);

/// The reading end.
#[derive(Debug)]
pub struct ChannelReader(Arc<Shared>);

/// How much of what a channel carried has been read: what a remote writer's credit is made of.
#[derive(Clone, Debug)]
pub struct Consumption(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Wakes the task that reads.
    reader: Arc<Notify>,
    /// Wakes whoever writes, once there is room again.
    writer: Arc<Notify>,
    consumed_bytes: AtomicU64,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<(Message, usize)>,
    bytes: usize,
    barriers: usize,
}

/// A channel whose ends wake these.
pub fn channel(reader: Arc<Notify>, writer: Arc<Notify>) -> (ChannelWriter, ChannelReader) {
    let shared = Arc::new(Shared {
        queue: Mutex::default(),
        reader,
        writer,
        consumed_bytes: AtomicU64::new(0),
        closed: AtomicBool::new(false),
    });
    (ChannelWriter(shared.clone()), ChannelReader(shared))
}

impl ChannelWriter {
    pub fn has_room(&self) -> bool {
        let queue = self.0.lock();
        self.0.closed.load(Ordering::Acquire)
            || (queue.messages.len() < CHANNEL_MESSAGES && queue.bytes < CHANNEL_BYTES)
    }

    pub fn push(&self, message: Message) {
        let bytes = match &message {
            Message::Rows(rows) => rows.bytes(),
            Message::Signal(_) => 0,
        };
        self.push_sized(message, bytes);
    }

    /// Puts a message that counts as so many bytes.
    pub fn push_sized(&self, message: Message, bytes: usize) {
        if self.0.closed.load(Ordering::Acquire) {
            return;
        }
        let mut queue = self.0.lock();
        queue.barriers += usize::from(message.is_barrier());
        queue.messages.push_back((message, bytes));
        queue.bytes += bytes;
        drop(queue);
        self.0.reader.notify_one();
    }

    pub fn consumption(&self) -> Consumption {
        Consumption(self.0.clone())
    }
}

impl Consumption {
    pub fn bytes(&self) -> u64 {
        self.0.consumed_bytes.load(Ordering::Acquire)
    }
}

impl ChannelReader {
    pub fn pop(&self) -> Option<Message> {
        let mut queue = self.0.lock();
        let (message, bytes) = queue.messages.pop_front()?;
        queue.bytes -= bytes;
        queue.barriers -= usize::from(message.is_barrier());
        drop(queue);
        self.0
            .consumed_bytes
            .fetch_add(bytes as u64, Ordering::AcqRel);
        self.0.writer.notify_one();
        Some(message)
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().messages.is_empty()
    }

    /// Whether a barrier is behind what is there to be read.
    pub fn has_barrier(&self) -> bool {
        self.0.lock().barriers > 0
    }
}

impl Drop for ChannelReader {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        *self.0.lock() = Queue::default();
        self.0.writer.notify_one();
    }
}

impl Shared {
    /// The queue is whole after every statement, so a writer that panicked elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use common::ids::CheckpointId;

    use super::*;
    use crate::task::message::{Barrier, Signal};

    #[test]
    fn a_full_channel_has_no_room_until_it_is_read() {
        let (writer, reader) = channel(Arc::default(), Arc::default());
        let signal = Signal::Barrier(Barrier {
            checkpoint: CheckpointId(1),
            stop: false,
        });
        for _ in 0..CHANNEL_MESSAGES {
            assert!(writer.has_room());
            writer.push(Message::Signal(signal));
        }
        assert!(!writer.has_room());
        assert!(reader.pop().is_some());
        assert!(writer.has_room());
    }

    #[test]
    fn a_barrier_is_seen_until_it_is_read() {
        let (writer, reader) = channel(Arc::default(), Arc::default());
        writer.push(Message::Signal(Signal::Idle));
        assert!(!reader.has_barrier());
        writer.push(Message::Signal(Signal::Barrier(Barrier {
            checkpoint: CheckpointId(1),
            stop: false,
        })));
        for _ in 0..2 {
            assert!(reader.has_barrier());
            reader.pop();
        }
        assert!(!reader.has_barrier());
    }

    #[test]
    fn a_channel_nobody_reads_any_more_takes_everything_and_keeps_nothing() {
        let (writer, reader) = channel(Arc::default(), Arc::default());
        drop(reader);
        writer.push(Message::Signal(Signal::Idle));
        assert!(writer.has_room());
    }
}
