//! The receiving half of a channel (pure): takes each message once and in order, grants credit.

use common::protocol::exchange::ChannelStanding;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReceiveChannel {
    expected: u64,
    received_bytes: u64,
    granted: u64,
    window: u64,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It is the next one: hand it over.
    Accepted,
    /// It was taken before.
    Repeated,
    /// Something before it is missing; it will come again.
    Early,
    /// The sender had no credit for it.
    Overdrawn,
}

impl ReceiveChannel {
    pub fn new(window: u64) -> ReceiveChannel {
        ReceiveChannel {
            expected: 0,
            received_bytes: 0,
            granted: window,
            window,
        }
    }

    pub fn receive(&mut self, sequence: u64, bytes: u64) -> Receipt {
        if sequence < self.expected {
            return Receipt::Repeated;
        }
        if sequence > self.expected {
            return Receipt::Early;
        }
        if bytes > 0 && self.received_bytes + bytes > self.granted {
            return Receipt::Overdrawn;
        }
        self.expected += 1;
        self.received_bytes += bytes;
        Receipt::Accepted
    }

    /// How the channel stands once the task has consumed so many bytes. Grants never shrink.
    pub fn standing(&mut self, consumed_bytes: u64) -> ChannelStanding {
        self.granted = self.granted.max(consumed_bytes + self.window);
        ChannelStanding::Open {
            expected: self.expected,
            limit: self.granted,
        }
    }

    /// Whether so much was consumed since the last grant that the sender may be waiting for another.
    pub fn should_grant(&self, consumed_bytes: u64) -> bool {
        consumed_bytes + self.window >= self.granted + self.window / 2
    }
}
