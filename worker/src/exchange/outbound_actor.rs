//! The shell of a lane: sends its bundles, one at a time, for as long as the worker lives.

use std::sync::Arc;

use actix::{Actor, AsyncContext, Context, WrapFuture};
use common::ids::{NodeId, WorkerEpoch};
use common::protocol::exchange::{Bundle, Frame, FrameBody};
use common::time::Span;
use common::transport::client::Transport;
use tracing::debug;

use super::inbound::Inbound;
use super::outbound::Lane;
use crate::metadata_image::ImageWatch;

/// A channel that waits for an answer asks again this often.
const ASK_EVERY: Span = Span::from_millis(50);
/// A bundle that is not answered by then goes again.
const BUNDLE_DEADLINE: Span = Span::from_secs(10);

#[derive(Debug)]
pub(super) struct OutboundActor {
    pub(super) me: NodeId,
    pub(super) my_epoch: WorkerEpoch,
    pub(super) lane: Arc<Lane>,
    pub(super) inbound: Arc<Inbound>,
    pub(super) image: ImageWatch,
    pub(super) transport: Transport,
}

impl Actor for OutboundActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        let sender = Sender {
            me: self.me,
            my_epoch: self.my_epoch,
            lane: self.lane.clone(),
            inbound: self.inbound.clone(),
            image: self.image.clone(),
            transport: self.transport.clone(),
        };
        context.spawn(sender.run().into_actor(self));
    }
}

struct Sender {
    me: NodeId,
    my_epoch: WorkerEpoch,
    lane: Arc<Lane>,
    inbound: Arc<Inbound>,
    image: ImageWatch,
    transport: Transport,
}

impl Sender {
    async fn run(self) {
        let mut ask = true;
        loop {
            let mut frames = self.lane.take(ask);
            frames.extend(self.grants());
            if frames.is_empty() {
                ask = self.wait().await;
                continue;
            }
            ask = false;
            if !self.send(frames).await {
                tokio::time::sleep(ASK_EVERY.as_duration()).await;
                ask = true;
            }
        }
    }

    /// Waits for something to send. True: it is time to ask how channels stand.
    async fn wait(&self) -> bool {
        if !self.lane.is_starved() {
            self.lane.wake.notified().await;
            return false;
        }
        let woken = self.lane.wake.notified();
        tokio::time::timeout(ASK_EVERY.as_duration(), woken)
            .await
            .is_err()
    }

    fn grants(&self) -> impl Iterator<Item = Frame> {
        let grants = self.inbound.grants(self.lane.peer, self.lane.number);
        grants.into_iter().map(|(channel, standing)| Frame {
            channel,
            sequence: 0,
            body: FrameBody::Credit { standing },
        })
    }

    async fn send(&self, frames: Vec<Frame>) -> bool {
        let address = self
            .image
            .borrow()
            .active(self.lane.peer)
            .map(|peer| peer.address.clone());
        let Some(address) = address else {
            self.lane.bundle_over(None);
            return false;
        };
        let bundle = Bundle {
            from: self.me,
            from_epoch: self.my_epoch,
            to: self.lane.peer,
            lane: self.lane.number,
            frames,
        };
        match self
            .transport
            .call(&address, &bundle, BUNDLE_DEADLINE)
            .await
        {
            Ok(reply) => {
                self.lane.bundle_over(Some(&reply));
                true
            }
            Err(error) => {
                // The coordinator decides whether the peer is gone; until then the bundle goes again.
                debug!(peer = %self.lane.peer, %error, "a bundle was not answered");
                self.lane.bundle_over(None);
                false
            }
        }
    }
}
