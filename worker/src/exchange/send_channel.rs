//! The sending half of a channel (pure): numbers messages, keeps them until acknowledged, obeys credit.
//!
//! Credit is an absolute count of bytes from the channel's start, so a repeated, late or reordered grant
//! does no harm. Signals cost nothing but stay in order behind the rows before them.

use std::collections::VecDeque;

use common::protocol::exchange::{ChannelStanding, FrameBody};

#[derive(Clone, Debug, Default)]
pub struct SendChannel {
    /// Not yet acknowledged, in order; the first has sequence `acknowledged`.
    queue: VecDeque<Queued>,
    acknowledged: u64,
    /// The sequence of the next message to be sent.
    unsent: u64,
    /// Bytes of everything ever put here, and up to where they may be sent.
    written_bytes: u64,
    limit: u64,
    stale: bool,
    /// A first `Hello` has been answered.
    open: bool,
}

#[derive(Clone, Debug)]
struct Queued {
    body: FrameBody,
    bytes: u64,
    /// The count of bytes that must have been granted before this may be sent.
    ends_at: u64,
}

impl SendChannel {
    /// Puts a message at the end.
    pub fn push(&mut self, body: FrameBody) {
        if self.stale {
            return;
        }
        let bytes = match &body {
            FrameBody::Rows { ipc } => ipc.len() as u64,
            _ => 0,
        };
        self.written_bytes += bytes;
        self.queue.push_back(Queued {
            body,
            bytes,
            ends_at: self.written_bytes,
        });
    }

    /// Bytes that wait here, sent or not, until the receiver has them.
    pub fn queued_bytes(&self) -> u64 {
        self.queue.iter().map(|queued| queued.bytes).sum()
    }

    pub fn queued_messages(&self) -> usize {
        self.queue.len()
    }

    /// The next messages that may be sent, with their sequences, up to about `max_bytes`.
    pub fn take(&mut self, max_bytes: u64) -> Vec<(u64, FrameBody)> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        let from = self.index_of(self.unsent);
        for queued in self.queue.iter().skip(from) {
            let fits = taken.is_empty() || bytes + queued.bytes <= max_bytes;
            if queued.ends_at > self.limit || !fits {
                break;
            }
            bytes += queued.bytes;
            taken.push((self.unsent, queued.body.clone()));
            self.unsent += 1;
        }
        taken
    }

    /// Whether something waits that may not be sent before the receiver says more.
    pub fn is_starved(&self) -> bool {
        let next = self.queue.get(self.index_of(self.unsent));
        !self.stale && (!self.open || next.is_some_and(|queued| queued.ends_at > self.limit))
    }

    /// The receiver said how the channel stands, in a reply or on its own. `Stale` is for ever.
    pub fn stands(&mut self, standing: &ChannelStanding) {
        match standing {
            ChannelStanding::Open { expected, limit } => {
                self.open = true;
                self.limit = self.limit.max(*limit);
                while self.acknowledged < *expected && self.queue.pop_front().is_some() {
                    self.acknowledged += 1;
                }
                self.unsent = self.unsent.max(self.acknowledged);
            }
            ChannelStanding::NotReady => {}
            ChannelStanding::Stale => {
                self.stale = true;
                self.queue.clear();
            }
        }
    }

    /// The bundle is over, answered or not: what was sent and not acknowledged goes again. With one
    /// bundle in flight there is nothing else it could be waiting for.
    pub fn bundle_over(&mut self) {
        self.unsent = self.acknowledged;
    }

    pub fn is_stale(&self) -> bool {
        self.stale
    }

    fn index_of(&self, sequence: u64) -> usize {
        usize::try_from(sequence - self.acknowledged).expect("a queue's length fits in memory")
    }
}
