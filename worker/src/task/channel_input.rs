//! The inputs of a task that reads other tasks: its channels, behind the gate that aligns them.

use common::ids::CheckpointId;
use common::time::Timestamp;

use super::channel::ChannelReader;
use super::input_gate::InputGate;
use super::message::{Message, Rows, Signal};

/// One input channel of a task.
#[derive(Debug)]
pub struct InputChannel {
    pub reader: ChannelReader,
    /// The numbered input of the task's first operator it leads to.
    pub input: u16,
}

#[derive(Debug)]
pub struct ChannelInput {
    channels: Vec<InputChannel>,
    gate: InputGate,
    /// Channels are read in turn, so that a busy one does not starve the others.
    next: usize,
}

/// What the task has to act on.
#[derive(Debug)]
pub enum Arrival {
    Rows(u16, Rows),
    Signal(Signal),
}

impl ChannelInput {
    /// Restored at `sealed`, with the watermark of then.
    pub fn new(
        channels: Vec<InputChannel>,
        sealed: CheckpointId,
        watermark: Timestamp,
    ) -> ChannelInput {
        let gate = InputGate::new(channels.len(), sealed, watermark);
        ChannelInput {
            channels,
            gate,
            next: 0,
        }
    }

    /// The next thing to act on; `None`: nothing that may be read is there.
    pub fn take(&mut self) -> Option<Arrival> {
        let mut silent = 0;
        while silent < self.channels.len() {
            let index = self.next;
            self.next = (self.next + 1) % self.channels.len();
            let message = match self.gate.may_read(index) {
                true => self.channels[index].reader.pop(),
                false => None,
            };
            match message {
                Some(Message::Rows(rows)) => {
                    return Some(Arrival::Rows(self.channels[index].input, rows));
                }
                Some(Message::Signal(signal)) => {
                    silent = 0;
                    if let Some(signal) = self.gate.push(index, signal) {
                        return Some(Arrival::Signal(signal));
                    }
                }
                None => silent += 1,
            }
        }
        None
    }

    /// Whether a barrier is waiting in some channel, or has come out of one and not of the others.
    pub fn has_barrier(&self) -> bool {
        self.gate.is_aligning() || self.channels.iter().any(|c| c.reader.has_barrier())
    }

    pub fn watermark(&self) -> Timestamp {
        self.gate.watermark()
    }
}
