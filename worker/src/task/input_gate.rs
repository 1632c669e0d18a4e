//! Barrier alignment and watermark merge over the input channels of a task (pure).
//!
//! A checkpoint cuts a task's inputs consistently: once one channel has delivered a barrier, nothing
//! more is read from it until every other channel has delivered the same barrier. Rows between are the
//! next checkpoint's. Rows themselves never pass through here: the task asks `may_read` first.
//!
//! Alignment is abandoned when a later barrier overtakes it. That happens only after a coordinator died
//! while it was injecting: the earlier checkpoint was not injected everywhere, so it can never be
//! completed, and waiting for it would be for ever.

use common::ids::CheckpointId;
use common::time::Timestamp;

use super::message::{Barrier, Signal};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Channel {
    /// Has delivered the barrier that is being aligned.
    blocked: bool,
    watermark: Timestamp,
    idle: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InputGate {
    channels: Vec<Channel>,
    aligning: Option<CheckpointId>,
    /// No barrier up to this one is of interest any more.
    sealed: CheckpointId,
    /// What was last passed on; never falls.
    watermark: Timestamp,
    idle: bool,
}

impl InputGate {
    /// A gate over `channels` inputs, restored at `sealed` with the watermark of then.
    pub fn new(channels: usize, sealed: CheckpointId, watermark: Timestamp) -> InputGate {
        assert!(channels > 0, "a gate has at least one channel");
        let channel = Channel {
            blocked: false,
            watermark: Timestamp::MIN,
            idle: false,
        };
        InputGate {
            channels: vec![channel; channels],
            aligning: None,
            sealed,
            watermark,
            idle: false,
        }
    }

    /// Whether the next message of this channel may be taken now.
    pub fn may_read(&self, channel: usize) -> bool {
        !self.channels[channel].blocked
    }

    /// Whether a barrier has come from some channel and not yet from all.
    pub fn is_aligning(&self) -> bool {
        self.aligning.is_some()
    }

    pub fn watermark(&self) -> Timestamp {
        self.watermark
    }

    /// Takes a signal that a readable channel delivered. Answers what the task has to act on, if anything.
    pub fn push(&mut self, channel: usize, signal: Signal) -> Option<Signal> {
        assert!(
            self.may_read(channel),
            "channel {channel} was read while it is blocked"
        );
        match signal {
            Signal::Watermark(watermark) => {
                let channel = &mut self.channels[channel];
                channel.watermark = channel.watermark.max(watermark);
                channel.idle = false;
                self.merge_time()
            }
            Signal::Idle => {
                self.channels[channel].idle = true;
                self.merge_time()
            }
            Signal::Active => {
                self.channels[channel].idle = false;
                self.merge_time()
            }
            Signal::Barrier(barrier) => self.align(channel, barrier),
        }
    }

    fn align(&mut self, channel: usize, barrier: Barrier) -> Option<Signal> {
        let checkpoint = barrier.checkpoint;
        let stale = checkpoint <= self.sealed
            || self.aligning.is_some_and(|aligning| checkpoint < aligning);
        if stale {
            return None;
        }
        if self.aligning != Some(checkpoint) {
            self.unblock();
            self.aligning = Some(checkpoint);
        }
        self.channels[channel].blocked = true;
        if !self.channels.iter().all(|channel| channel.blocked) {
            return None;
        }
        self.unblock();
        self.aligning = None;
        self.sealed = checkpoint;
        Some(Signal::Barrier(barrier))
    }

    fn unblock(&mut self) {
        for channel in &mut self.channels {
            channel.blocked = false;
        }
    }

    /// The least watermark of the active channels, if that says something new.
    fn merge_time(&mut self) -> Option<Signal> {
        let active = self.channels.iter().filter(|channel| !channel.idle);
        let Some(least) = active.map(|channel| channel.watermark).min() else {
            // What idle channels last said no longer holds anyone back, but it is not raised either:
            // a channel that wakes may still be behind the others.
            return (!std::mem::replace(&mut self.idle, true)).then_some(Signal::Idle);
        };
        let woke = std::mem::replace(&mut self.idle, false);
        if least > self.watermark {
            self.watermark = least;
            return Some(Signal::Watermark(least));
        }
        woke.then_some(Signal::Active)
    }
}
