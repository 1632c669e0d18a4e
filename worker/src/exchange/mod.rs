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
pub mod lanes;
pub mod outbound_actor;

#[cfg(test)]
mod channel_tests;

use std::sync::Arc;

use actix::{Actor, ArbiterHandle};
use common::error::Problem;
use common::ids::{Generation, JobId, NodeId, WorkerEpoch};
use common::protocol::exchange::{Bundle, BundleReply};
use common::transport::client::Transport;

use crate::metadata_image::ImageWatch;
use lanes::Lanes;
use outbound_actor::OutboundActor;

/// A worker's channels to and from other workers, and those who send their bundles.
#[derive(Clone, Debug)]
pub struct Exchange {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    me: NodeId,
    my_epoch: WorkerEpoch,
    lanes: Lanes,
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
        let shared = Shared {
            me,
            my_epoch,
            lanes: Lanes::new(me, cores),
            image,
            transport,
            arbiter,
        };
        Exchange {
            shared: Arc::new(shared),
        }
    }

    /// The channels. Whoever opens some calls `start_senders` afterwards.
    pub fn lanes(&self) -> &Lanes {
        &self.shared.lanes
    }

    /// Forgets the channels of a generation that has been stopped here.
    pub fn close(&self, job: JobId, generation: Generation) {
        self.shared.lanes.close(job, generation);
    }

    /// Takes a bundle from a peer.
    pub fn receive(&self, bundle: Bundle) -> Result<BundleReply, Problem> {
        let image = self.shared.image.borrow().clone();
        let reply = self.shared.lanes.receive(bundle, &image.jobs);
        self.start_senders();
        reply
    }

    /// Every lane that was opened needs somebody who sends its bundles.
    pub fn start_senders(&self) {
        for lane in self.shared.lanes.take_opened() {
            let actor = OutboundActor {
                me: self.shared.me,
                my_epoch: self.shared.my_epoch,
                lane,
                inbound: self.shared.lanes.inbound().clone(),
                image: self.shared.image.clone(),
                transport: self.shared.transport.clone(),
            };
            OutboundActor::start_in_arbiter(&self.shared.arbiter, move |_| actor);
        }
    }
}
