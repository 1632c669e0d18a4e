//! The lanes of a worker in the world: who sends their bundles, one at a time, and what is received.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::error::Problem;
use common::ids::{NodeId, WorkerEpoch};
use common::protocol::exchange::{
    Bundle, BundleReply, ChannelId, ChannelStanding, ChannelStatus, Frame, FrameBody,
};
use common::time::Span;
use worker::exchange::lanes::Lanes;
use worker::exchange::outbound::Lane;
use worker::metadata_image::MetadataImage;

use super::env::Env;
use super::network::Process;
use super::sabotage::Sabotage;
use super::worker::{Timer, Who, was_woken};

/// A channel that waits for an answer asks again this often.
const ASK_EVERY: Span = Span::from_millis(50);

#[derive(Debug)]
pub struct WorkerLanes {
    me: NodeId,
    my_epoch: WorkerEpoch,
    pub lanes: Lanes,
    senders: Vec<Sender>,
}

/// Who sends the bundles of a lane.
#[derive(Debug)]
struct Sender {
    lane: Arc<Lane>,
    /// It is time to ask how the channels stand that wait for an answer.
    ask: bool,
    /// A bundle is on its way, or a pause after one that was not answered.
    busy: bool,
    asking: bool,
}

/// A bundle to be sent for a lane.
#[derive(Debug)]
pub struct NextBundle {
    pub lane: usize,
    pub callee: Process,
    pub bundle: Bundle,
}

impl WorkerLanes {
    pub fn new(me: NodeId, my_epoch: WorkerEpoch) -> WorkerLanes {
        WorkerLanes {
            me,
            my_epoch,
            lanes: Lanes::new(me, 1),
            senders: Vec::new(),
        }
    }

    /// What lanes have to send that were opened or woken since this was last asked.
    pub fn settle(&mut self, env: &mut Env, who: Who, image: &MetadataImage) -> Vec<NextBundle> {
        let known = self.senders.len();
        for lane in self.lanes.take_opened() {
            self.senders.push(Sender {
                lane,
                ask: true,
                busy: false,
                asking: false,
            });
        }
        let woken: Vec<usize> = (0..self.senders.len())
            .filter(|index| was_woken(&self.senders[*index].lane.wake) || *index >= known)
            .collect();
        woken
            .into_iter()
            .filter_map(|index| self.next_bundle(env, who, image, index))
            .collect()
    }

    /// Nothing came for a while: it is time to ask.
    pub fn ask(
        &mut self,
        env: &mut Env,
        who: Who,
        image: &MetadataImage,
        lane: usize,
    ) -> Option<NextBundle> {
        let sender = &mut self.senders[lane];
        sender.asking = false;
        sender.ask |= !sender.busy;
        self.next_bundle(env, who, image, lane)
    }

    /// The pause after a bundle that was not answered is over.
    pub fn resume(
        &mut self,
        env: &mut Env,
        who: Who,
        image: &MetadataImage,
        lane: usize,
    ) -> Option<NextBundle> {
        let sender = &mut self.senders[lane];
        sender.busy = false;
        sender.ask = true;
        self.next_bundle(env, who, image, lane)
    }

    /// A bundle is over; `reply` is what the receiver said to it, if it said anything.
    pub fn answered(
        &mut self,
        env: &mut Env,
        who: Who,
        image: &MetadataImage,
        lane: usize,
        reply: Option<&BundleReply>,
    ) -> Option<NextBundle> {
        let sender = &mut self.senders[lane];
        sender.lane.bundle_over(reply);
        if reply.is_none() {
            who.after(env, ASK_EVERY, Timer::Resume(lane));
            return None;
        }
        sender.busy = false;
        self.next_bundle(env, who, image, lane)
    }

    pub fn receive(
        &self,
        env: &Env,
        image: &MetadataImage,
        mut bundle: Bundle,
    ) -> Result<BundleReply, Problem> {
        if env.sabotaged(Sabotage::BarrierOvertakesRows) {
            overtake(&mut bundle.frames);
        }
        if env.sabotaged(Sabotage::TakeRepeatedFrames) {
            return take_as_next(&self.lanes, image, bundle);
        }
        self.lanes.receive(bundle, &image.jobs)
    }

    fn next_bundle(
        &mut self,
        env: &mut Env,
        who: Who,
        image: &MetadataImage,
        lane: usize,
    ) -> Option<NextBundle> {
        let sender = &mut self.senders[lane];
        if sender.busy {
            return None;
        }
        let (peer, number) = (sender.lane.peer, sender.lane.number);
        let mut frames = sender.lane.take(sender.ask);
        let grants = self.lanes.inbound().grants(peer, number).into_iter();
        frames.extend(grants.map(|(channel, standing)| Frame {
            channel,
            sequence: 0,
            body: FrameBody::Credit { standing },
        }));
        if frames.is_empty() {
            if sender.lane.is_starved() && !std::mem::replace(&mut sender.asking, true) {
                who.after(env, ASK_EVERY, Timer::Ask(lane));
            }
            return None;
        }
        sender.ask = false;
        sender.busy = true;
        let Some(address) = image.active(peer).map(|peer| peer.address.clone()) else {
            sender.lane.bundle_over(None);
            who.after(env, ASK_EVERY, Timer::Resume(lane));
            return None;
        };
        Some(NextBundle {
            lane,
            callee: Process::Worker(address.parse().expect("an index")),
            bundle: Bundle {
                from: self.me,
                from_epoch: self.my_epoch,
                to: peer,
                lane: number,
                frames,
            },
        })
    }
}

/// Puts every barrier in front of what was sent just before it on its channel.
fn overtake(frames: &mut [Frame]) {
    for index in 1..frames.len() {
        let (before, after) = frames.split_at_mut(index);
        let (rows, barrier) = (&mut before[index - 1], &mut after[0]);
        let overtakes = matches!(barrier.body, FrameBody::Barrier { .. })
            && matches!(rows.body, FrameBody::Rows { .. })
            && rows.channel == barrier.channel;
        if overtakes {
            std::mem::swap(&mut rows.body, &mut barrier.body);
        }
    }
}

/// Takes every frame as the next of its channel, and says that it was taken by its number.
fn take_as_next(
    lanes: &Lanes,
    image: &MetadataImage,
    bundle: Bundle,
) -> Result<BundleReply, Problem> {
    let alone = |frame| Bundle {
        frames: vec![frame],
        ..bundle.clone()
    };
    let mut channels: BTreeMap<ChannelId, ChannelStanding> = BTreeMap::new();
    for mut frame in bundle.frames.clone() {
        let channel = frame.channel;
        let numbered = !matches!(frame.body, FrameBody::Hello | FrameBody::Credit { .. });
        let number = frame.sequence;
        if numbered {
            let hello = Frame {
                channel,
                sequence: 0,
                body: FrameBody::Hello,
            };
            let asked = lanes.receive(alone(hello), &image.jobs)?;
            if let Some(ChannelStanding::Open { expected, .. }) =
                asked.channels.first().map(|status| &status.standing)
            {
                frame.sequence = *expected;
            }
        }
        for mut status in lanes.receive(alone(frame), &image.jobs)?.channels {
            if let ChannelStanding::Open { expected, .. } = &mut status.standing
                && numbered
            {
                *expected = number + 1;
            }
            channels.insert(status.channel, status.standing);
        }
    }
    let status = |(channel, standing)| ChannelStatus { channel, standing };
    Ok(BundleReply {
        channels: channels.into_iter().map(status).collect(),
    })
}
