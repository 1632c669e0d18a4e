//! The channels of a worker and where each belongs: which lane carries it, which peer it comes from,
//! what becomes of frames whose channel is not here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::error::{ErrorCode, Problem};
use common::ids::{Generation, JobId, NodeId};
use common::protocol::exchange::{
    Bundle, BundleReply, ChannelId, ChannelStanding, ChannelStatus, FrameBody,
};
use common::protocol::metadata::JobImage;
use tokio::sync::Notify;

use super::inbound::Inbound;
use super::outbound::{Lane, RemoteWriter};
use crate::task::channel::{ChannelReader, channel};

/// Rows of one channel always take the same lane, so they stay in order.
const MAX_LANES: u8 = 4;

/// A worker's channels to and from other workers.
#[derive(Debug)]
pub struct Lanes {
    me: NodeId,
    per_peer: u8,
    lanes: Mutex<BTreeMap<(NodeId, u8), Arc<Lane>>>,
    /// Opened, and not yet given to whoever sends their bundles.
    opened: Mutex<Vec<Arc<Lane>>>,
    inbound: Arc<Inbound>,
}

impl Lanes {
    /// Of worker `me`, with as many lanes to each peer as it has cores for.
    pub fn new(me: NodeId, cores: u32) -> Lanes {
        Lanes {
            me,
            per_peer: u8::try_from(cores).unwrap_or(MAX_LANES).clamp(1, MAX_LANES),
            lanes: Mutex::default(),
            opened: Mutex::default(),
            inbound: Arc::default(),
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
        self.inbound.open(id, peer, number, writer);
        reader
    }

    /// Forgets the channels of a generation that has been stopped here.
    pub fn close(&self, job: JobId, generation: Generation) {
        for lane in self.lanes().values() {
            lane.close(job, generation);
        }
        self.inbound.close(job, generation);
    }

    /// Takes a bundle from a peer. `jobs`: what is known of jobs now.
    pub fn receive(
        &self,
        bundle: Bundle,
        jobs: &BTreeMap<JobId, JobImage>,
    ) -> Result<BundleReply, Problem> {
        if bundle.to != self.me {
            let detail = format!(
                "the bundle is for worker {}, this is worker {}",
                bundle.to, self.me
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
            let standing = self.inbound.receive(frame);
            channels.insert(
                id,
                standing.unwrap_or_else(|| standing_of_unknown(id, jobs)),
            );
        }
        let status = |(channel, standing)| ChannelStatus { channel, standing };
        Ok(BundleReply {
            channels: channels.into_iter().map(status).collect(),
        })
    }

    /// The lanes that were opened since this was last asked: each needs somebody who sends its bundles.
    pub fn take_opened(&self) -> Vec<Arc<Lane>> {
        std::mem::take(&mut self.opened.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn inbound(&self) -> &Arc<Inbound> {
        &self.inbound
    }

    fn lane_of(&self, channel: ChannelId) -> u8 {
        let mix = u32::from(channel.edge) + channel.from + channel.to + channel.job.0;
        u8::try_from(mix % u32::from(self.per_peer)).expect("lanes are few")
    }

    fn lane(&self, peer: NodeId, number: u8) -> Arc<Lane> {
        let mut lanes = self.lanes();
        if let Some(lane) = lanes.get(&(peer, number)) {
            return lane.clone();
        }
        let lane = Lane::new(peer, number);
        lanes.insert((peer, number), lane.clone());
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.push(lane.clone());
        lane
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<(NodeId, u8), Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel that is not here belongs to the past, or to a task that has yet to start.
fn standing_of_unknown(channel: ChannelId, jobs: &BTreeMap<JobId, JobImage>) -> ChannelStanding {
    let newest = jobs.get(&channel.job).map(|job| job.generation);
    match newest {
        Some(newest) if channel.generation < newest => ChannelStanding::Stale,
        _ => ChannelStanding::NotReady,
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{JobName, WorkerEpoch};
    use common::protocol::exchange::Frame;

    use super::*;

    fn id(generation: u32) -> ChannelId {
        ChannelId {
            job: JobId(1),
            generation: Generation(generation),
            edge: 0,
            from: 0,
            to: 0,
        }
    }

    fn hello(to: u32, generation: u32) -> Bundle {
        Bundle {
            from: NodeId(2),
            from_epoch: WorkerEpoch(1),
            to: NodeId(to),
            lane: 0,
            frames: vec![Frame {
                channel: id(generation),
                sequence: 0,
                body: FrameBody::Hello,
            }],
        }
    }

    fn jobs(generation: u32) -> BTreeMap<JobId, JobImage> {
        let image = JobImage {
            id: JobId(1),
            name: JobName::new("job").unwrap(),
            generation: Generation(generation),
            completed: None,
            finals: BTreeMap::new(),
            running: true,
            deleted: false,
        };
        BTreeMap::from([(JobId(1), image)])
    }

    #[test]
    fn a_channel_that_is_not_here_is_of_the_past_or_yet_to_come() {
        let lanes = Lanes::new(NodeId(1), 1);
        let _reader = lanes.reader(id(5), NodeId(2), Arc::default());
        for (generation, known, expected) in [
            (4, jobs(5), ChannelStanding::Stale),
            (6, jobs(5), ChannelStanding::NotReady),
            (4, BTreeMap::new(), ChannelStanding::NotReady),
        ] {
            let reply = lanes.receive(hello(1, generation), &known).unwrap();
            assert_eq!(reply.channels[0].standing, expected);
        }
        let reply = lanes.receive(hello(1, 5), &jobs(5)).unwrap();
        assert!(matches!(
            reply.channels[0].standing,
            ChannelStanding::Open { expected: 0, .. }
        ));
    }

    #[test]
    fn a_bundle_for_another_worker_is_refused() {
        let lanes = Lanes::new(NodeId(1), 1);
        let refused = lanes.receive(hello(3, 5), &jobs(5)).unwrap_err();
        assert_eq!(refused.code, ErrorCode::FencedWorkerEpoch);
    }

    #[test]
    fn each_lane_is_handed_out_once_to_be_sent() {
        let lanes = Lanes::new(NodeId(1), 1);
        let _writer = lanes.writer(id(5), NodeId(2), Arc::default());
        let _reader = lanes.reader(id(5), NodeId(2), Arc::default());
        assert_eq!(lanes.take_opened().len(), 1);
        assert!(lanes.take_opened().is_empty());
    }
}
