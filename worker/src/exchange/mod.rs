//! Rows between workers: channels over bundles, one bundle in flight per peer and lane.
//!
//! A task writes to a channel as if its reader were in the same process. Between workers the messages
//! are numbered, kept until the reader's worker has them, sent again after a cut, and held back when the
//! reader has given no credit. A reply means received, not processed.

pub mod codec;
pub mod send_channel;
pub mod receive_channel;
pub mod outbound;
pub mod inbound;
pub mod outbound_actor;

#[cfg(test)]
mod channel_tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::{Actor, ArbiterHandle};
use common::error::{ErrorCode, Problem};
use common::ids::{Generation, JobId, NodeId, WorkerEpoch};
use common::protocol::exchange::{
    Bundle, BundleReply, ChannelId, ChannelStanding, ChannelStatus, FrameBody,
};
use common::transport::client::Transport;
use tokio::sync::Notify;

use crate::metadata_image::ImageWatch;
use crate::task::channel::{ChannelReader, channel};
use inbound::Inbound;
use outbound::{Lane, RemoteWriter};
use outbound_actor::OutboundActor;

/// Rows of one channel always take the same lane, so they stay in order.
const MAX_LANES: u8 = 4;

/// A worker's channels to and from other workers.
#[derive(Clone, Debug)]
pub struct Exchange {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    me: NodeId,
    my_epoch: WorkerEpoch,
    lanes_per_peer: u8,
    lanes: Mutex<BTreeMap<(NodeId, u8), Arc<Lane>>>,
    inbound: Arc<Inbound>,
    image: ImageWatch,
    transport: Transport,
    /// Where lanes run.
    arbiter: ArbiterHandle,
}

impl Exchange {
    pub fn new(
        me: NodeId,
        my_epoch: WorkerEpoch,
        cores: u32,
        image: ImageWatch,
        transport: Transport,
        arbiter: ArbiterHandle,
    ) -> Exchange {
        let lanes_per_peer = u8::try_from(cores).unwrap_or(MAX_LANES).clamp(1, MAX_LANES);
        let inbound = Arc::default();
        let lanes = Mutex::default();
        let shared = Shared {
            me,
            my_epoch,
            lanes_per_peer,
            lanes,
            inbound,
            image,
            transport,
            arbiter,
        };
        Exchange {
            shared: Arc::new(shared),
        }
    }

    /// The way to a task on `peer`. `writer` is woken when there is room again.
    pub fn writer(&self, channel: ChannelId, peer: NodeId, writer: Arc<Notify>) -> RemoteWriter {
        self.lane(peer, self.lane_of(channel)).open(channel, writer)
    }

    /// The way from a task on `peer`. `reader` is woken when something arrives.
    pub fn reader(&self, id: ChannelId, peer: NodeId, reader: Arc<Notify>) -> ChannelReader {
        let number = self.lane_of(id);
        let lane = self.lane(peer, number);
        // Reading wakes the lane to the peer, which carries the credit back.
        let (writer, reader) = channel(reader, lane.wake.clone());
        self.shared.inbound.open(id, peer, number, writer);
        reader
    }

    /// Forgets the channels of a generation that has been stopped here.
    pub fn close(&self, job: JobId, generation: Generation) {
        for lane in self.lanes().values() {
            lane.close(job, generation);
        }
        self.shared.inbound.close(job, generation);
    }

    /// Takes a bundle from a peer.
    pub fn receive(&self, bundle: Bundle) -> Result<BundleReply, Problem> {
        if bundle.to != self.shared.me {
            let detail = format!(
                "the bundle is for worker {}, this is worker {}",
                bundle.to, self.shared.me
            );
            return Err(Problem::new(ErrorCode::FencedWorkerEpoch, detail));
        }
        let mut channels: BTreeMap<ChannelId, ChannelStanding> = BTreeMap::new();
        for frame in bundle.frames {
            let id = frame.channel;
            if let FrameBody::Credit { standing } = &frame.body {
                self.lane(bundle.from, self.lane_of(id))
                    .stands(id, standing);
                continue;
            }
            let standing = self.shared.inbound.receive(frame);
            channels.insert(id, standing.unwrap_or_else(|| self.standing_of_unknown(id)));
        }
        let status = |(channel, standing)| ChannelStatus { channel, standing };
        Ok(BundleReply {
            channels: channels.into_iter().map(status).collect(),
        })
    }

    /// A channel that is not here belongs to the past, or to a task that has yet to start.
    fn standing_of_unknown(&self, channel: ChannelId) -> ChannelStanding {
        let image = self.shared.image.borrow();
        let newest = image.jobs.get(&channel.job).map(|job| job.generation);
        match newest {
            Some(newest) if channel.generation < newest => ChannelStanding::Stale,
            _ => ChannelStanding::NotReady,
        }
    }

    fn lane_of(&self, channel: ChannelId) -> u8 {
        let mix = u32::from(channel.edge) + channel.from + channel.to + channel.job.0;
        u8::try_from(mix % u32::from(self.shared.lanes_per_peer)).expect("lanes are few")
    }

    fn lane(&self, peer: NodeId, number: u8) -> Arc<Lane> {
        let mut lanes = self.lanes();
        if let Some(lane) = lanes.get(&(peer, number)) {
            return lane.clone();
        }
        let lane = Lane::new(peer, number);
        lanes.insert((peer, number), lane.clone());
        let actor = OutboundActor {
            me: self.shared.me,
            my_epoch: self.shared.my_epoch,
            lane: lane.clone(),
            inbound: self.shared.inbound.clone(),
            image: self.shared.image.clone(),
            transport: self.shared.transport.clone(),
        };
        OutboundActor::start_in_arbiter(&self.shared.arbiter, move |_| actor);
        lane
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<(NodeId, u8), Arc<Lane>>> {
        self.shared
            .lanes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
