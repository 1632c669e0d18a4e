//! What arrives from other workers: frames go to the channels of local tasks, once and in order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::ids::{Generation, JobId, NodeId};
use common::limits::CHANNEL_BYTES;
use common::protocol::exchange::{ChannelId, ChannelStanding, Frame, FrameBody};
use tracing::warn;

use super::codec;
use super::receive_channel::{Receipt, ReceiveChannel};
use crate::task::channel::{ChannelWriter, Consumption};

/// The channels that end in tasks of this worker and begin elsewhere.
#[derive(Debug, Default)]
pub struct Inbound {
    channels: Mutex<BTreeMap<ChannelId, Arc<Incoming>>>,
}

#[derive(Debug)]
struct Incoming {
    peer: NodeId,
    lane: u8,
    receiving: Mutex<ReceiveChannel>,
    writer: ChannelWriter,
    consumption: Consumption,
}

impl Inbound {
    /// Frames of this channel go to `writer` from now on. `peer` and `lane`: where credit is sent.
    pub fn open(&self, channel: ChannelId, peer: NodeId, lane: u8, writer: ChannelWriter) {
        let consumption = writer.consumption();
        let receiving = Mutex::new(ReceiveChannel::new(CHANNEL_BYTES as u64));
        let incoming = Incoming {
            peer,
            lane,
            receiving,
            writer,
            consumption,
        };
        self.channels().insert(channel, Arc::new(incoming));
    }

    pub fn close(&self, job: JobId, generation: Generation) {
        self.channels()
            .retain(|id, _| (id.job, id.generation) != (job, generation));
    }

    /// Takes a frame. Answers how its channel stands; `None`: there is no such channel here.
    pub fn receive(&self, frame: Frame) -> Option<ChannelStanding> {
        let incoming = self.channels().get(&frame.channel)?.clone();
        // Held until the message is in the task's queue: a repeated bundle may be received on another
        // thread at the same time, and must not overtake.
        let mut receiving = incoming
            .receiving
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let bytes = match &frame.body {
            FrameBody::Hello | FrameBody::Credit { .. } => {
                return Some(receiving.standing(incoming.consumption.bytes()));
            }
            FrameBody::Rows { ipc } => ipc.len(),
            _ => 0,
        };
        match receiving.receive(frame.sequence, bytes as u64) {
            Receipt::Accepted => match codec::decode(frame.body) {
                Ok(Some(message)) => incoming.writer.push_sized(message, bytes),
                Ok(None) => {}
                // The sender's own encoding, over a connection that checks its bytes: not the world's
                // failure but ours. Going on would lose rows.
                Err(error) => panic!("rows of channel {:?} do not decode: {error}", frame.channel),
            },
            Receipt::Repeated | Receipt::Early => {}
            Receipt::Overdrawn => {
                warn!(channel = ?frame.channel, bytes, "a peer sent more than it had credit for");
            }
        }
        Some(receiving.standing(incoming.consumption.bytes()))
    }

    /// The channels from this peer and lane whose writers may be waiting for credit that is there.
    pub fn grants(&self, peer: NodeId, lane: u8) -> Vec<(ChannelId, ChannelStanding)> {
        let mut grants = Vec::new();
        for (id, incoming) in self.channels().iter() {
            if (incoming.peer, incoming.lane) != (peer, lane) {
                continue;
            }
            let consumed = incoming.consumption.bytes();
            let mut receiving = incoming
                .receiving
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if receiving.should_grant(consumed) {
                grants.push((*id, receiving.standing(consumed)));
            }
        }
        grants
    }

    fn channels(&self) -> MutexGuard<'_, BTreeMap<ChannelId, Arc<Incoming>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
