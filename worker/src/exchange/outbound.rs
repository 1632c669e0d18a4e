//! What waits for one peer on one lane: the channels written here, and the credit owed to those read here.
//!
//! One bundle at a time is on its way. The reply, or its absence, says what the next one holds; it fills
//! by itself while the last is under way, so bundles are large under load and small when little happens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::ids::{Generation, JobId, NodeId};
use common::limits::{CHANNEL_BYTES, CHANNEL_MESSAGES, MAX_BUNDLE_BYTES};
use common::protocol::exchange::{BundleReply, ChannelId, ChannelStanding, Frame, FrameBody};
use tokio::sync::Notify;

use super::codec;
use super::send_channel::SendChannel;
use crate::task::message::Message;

/// One lane to one peer.
#[derive(Debug)]
pub struct Lane {
    pub peer: NodeId,
    pub number: u8,
    /// Wakes the sender: something was written, or something that was received has been consumed.
    pub wake: Arc<Notify>,
    channels: Mutex<BTreeMap<ChannelId, Outgoing>>,
}

#[derive(Debug)]
struct Outgoing {
    channel: SendChannel,
    /// Wakes the task that writes.
    writer: Arc<Notify>,
}

/// A task's way to a task on another worker.
#[derive(Clone, Debug)]
pub struct RemoteWriter {
    lane: Arc<Lane>,
    channel: ChannelId,
}

impl Lane {
    pub fn new(peer: NodeId, number: u8) -> Arc<Lane> {
        let wake = Arc::default();
        Arc::new(Lane {
            peer,
            number,
            wake,
            channels: Mutex::default(),
        })
    }

    pub fn open(self: &Arc<Lane>, channel: ChannelId, writer: Arc<Notify>) -> RemoteWriter {
        let outgoing = Outgoing {
            channel: SendChannel::default(),
            writer,
        };
        self.channels().insert(channel, outgoing);
        self.wake.notify_one();
        RemoteWriter {
            lane: self.clone(),
            channel,
        }
    }

    pub fn close(&self, job: JobId, generation: Generation) {
        self.channels()
            .retain(|id, _| (id.job, id.generation) != (job, generation));
    }

    /// The frames of the next bundle. `ask`: also ask how those channels stand that wait for an answer.
    pub fn take(&self, ask: bool) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut room = MAX_BUNDLE_BYTES as u64;
        for (id, outgoing) in self.channels().iter_mut() {
            if ask && outgoing.channel.is_starved() {
                frames.push(Frame {
                    channel: *id,
                    sequence: 0,
                    body: FrameBody::Hello,
                });
            }
            if room == 0 {
                continue;
            }
            for (sequence, body) in outgoing.channel.take(room) {
                if let FrameBody::Rows { ipc } = &body {
                    room = room.saturating_sub(ipc.len() as u64);
                }
                frames.push(Frame {
                    channel: *id,
                    sequence,
                    body,
                });
            }
        }
        frames
    }

    /// Whether some channel waits for the receiver to say something.
    pub fn is_starved(&self) -> bool {
        self.channels()
            .values()
            .any(|outgoing| outgoing.channel.is_starved())
    }

    /// The bundle is over; `reply` is what the receiver said to it, if it said anything.
    pub fn bundle_over(&self, reply: Option<&BundleReply>) {
        for status in reply.into_iter().flat_map(|reply| &reply.channels) {
            self.stands(status.channel, &status.standing);
        }
        for outgoing in self.channels().values_mut() {
            outgoing.channel.bundle_over();
        }
    }

    /// The receiver says how a channel stands.
    pub fn stands(&self, channel: ChannelId, standing: &ChannelStanding) {
        if let Some(outgoing) = self.channels().get_mut(&channel) {
            outgoing.channel.stands(standing);
            outgoing.writer.notify_one();
        }
    }

    fn channels(&self) -> MutexGuard<'_, BTreeMap<ChannelId, Outgoing>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RemoteWriter {
    pub fn has_room(&self) -> bool {
        self.lane
            .channels()
            .get(&self.channel)
            .is_none_or(|outgoing| {
                outgoing.channel.queued_messages() < CHANNEL_MESSAGES
                    && outgoing.channel.queued_bytes() < CHANNEL_BYTES as u64
            })
    }

    pub fn push(&self, message: &Message) -> Result<(), arrow::error::ArrowError> {
        // Encoded by the task that writes, so that no lane waits for another's encoding.
        let body = codec::encode(message)?;
        if let Some(outgoing) = self.lane.channels().get_mut(&self.channel) {
            outgoing.channel.push(body);
        }
        self.lane.wake.notify_one();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use common::protocol::exchange::ChannelStatus;
    use common::time::Timestamp;

    use super::*;
    use crate::task::message::Signal;

    fn id(edge: u16) -> ChannelId {
        ChannelId {
            job: JobId(1),
            generation: Generation(1),
            edge,
            from: 0,
            to: 0,
        }
    }

    #[test]
    fn what_a_lost_bundle_held_goes_again_and_what_was_received_does_not() {
        let lane = Lane::new(NodeId(2), 0);
        let writer = lane.open(id(0), Arc::default());
        for time in 0..3 {
            writer
                .push(&Message::Signal(Signal::Watermark(Timestamp(time))))
                .unwrap();
        }
        assert_eq!(lane.take(false).len(), 3);
        lane.bundle_over(None);
        assert_eq!(lane.take(false).len(), 3);
        let standing = ChannelStanding::Open {
            expected: 2,
            limit: 0,
        };
        let status = ChannelStatus {
            channel: id(0),
            standing,
        };
        lane.bundle_over(Some(&BundleReply {
            channels: vec![status],
        }));
        assert_eq!(
            lane.take(false)
                .iter()
                .map(|frame| frame.sequence)
                .collect::<Vec<_>>(),
            [2]
        );
    }

    #[test]
    fn a_channel_that_waits_for_an_answer_asks_only_when_it_is_time_to() {
        let lane = Lane::new(NodeId(2), 0);
        let _writer = lane.open(id(0), Arc::default());
        assert!(lane.take(false).is_empty());
        assert!(lane.is_starved());
        assert_eq!(lane.take(true).len(), 1);
    }

    #[test]
    fn closing_a_generation_leaves_the_others() {
        let lane = Lane::new(NodeId(2), 0);
        let _old = lane.open(id(0), Arc::default());
        let newer = ChannelId {
            generation: Generation(2),
            ..id(0)
        };
        let _new = lane.open(newer, Arc::default());
        lane.close(JobId(1), Generation(1));
        assert_eq!(
            lane.take(true)
                .iter()
                .map(|frame| frame.channel)
                .collect::<Vec<_>>(),
            [newer]
        );
    }
}
