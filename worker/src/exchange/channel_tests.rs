//! A sending and a receiving half over a network that loses, repeats and delays.

use bytes::Bytes;
use common::protocol::exchange::{ChannelStanding, FrameBody};
use common::time::Timestamp;
use proptest::prelude::*;

use super::receive_channel::{Receipt, ReceiveChannel};
use super::send_channel::SendChannel;

const WINDOW: u64 = 1_000;

fn rows(bytes: usize) -> FrameBody {
    FrameBody::Rows {
        ipc: Bytes::from(vec![0; bytes]),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Signal,
    /// A bundle: the request may be lost, the reply may be lost, the request may arrive twice.
    Send {
        request_lost: bool,
        reply_lost: bool,
        twice: bool,
    },
    Consume,
    /// A grant sent long ago arrives now.
    OldGrant,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..=400_usize).prop_map(Step::Write),
        Just(Step::Signal),
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(request_lost, reply_lost, twice)| {
                Step::Send {
                    request_lost,
                    reply_lost,
                    twice,
                }
            }
        ),
        Just(Step::Consume),
        Just(Step::OldGrant),
    ]
}

struct World {
    sender: SendChannel,
    receiver: ReceiveChannel,
    written: Vec<FrameBody>,
    arrived: Vec<FrameBody>,
    consumed: usize,
    consumed_bytes: u64,
    grants: Vec<ChannelStanding>,
}

fn size(body: &FrameBody) -> u64 {
    match body {
        FrameBody::Rows { ipc } => ipc.len() as u64,
        _ => 0,
    }
}

impl World {
    fn write(&mut self, body: FrameBody) {
        self.written.push(body.clone());
        self.sender.push(body);
    }

    fn send(&mut self, request_lost: bool, reply_lost: bool, twice: bool) {
        let bundle = self.sender.take(700);
        for _ in 0..if request_lost {
            0
        } else {
            1 + usize::from(twice)
        } {
            for (sequence, body) in &bundle {
                match self.receiver.receive(*sequence, size(body)) {
                    Receipt::Accepted => self.arrived.push(body.clone()),
                    Receipt::Repeated | Receipt::Early => {}
                    Receipt::Overdrawn => panic!("the sender overdrew its credit"),
                }
            }
        }
        let reply = self.receiver.standing(self.consumed_bytes);
        self.grants.push(reply.clone());
        if !request_lost && !reply_lost {
            self.sender.stands(&reply);
        }
        self.sender.bundle_over();
    }

    fn consume(&mut self) {
        if let Some(body) = self.arrived.get(self.consumed) {
            self.consumed_bytes += size(body);
            self.consumed += 1;
        }
    }

    fn waiting_bytes(&self) -> u64 {
        self.arrived[self.consumed..].iter().map(size).sum()
    }
}

proptest! {
    #[test]
    fn every_message_arrives_once_and_in_order_and_never_more_than_the_window_waits(
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let mut world = World {
            sender: SendChannel::default(),
            receiver: ReceiveChannel::new(WINDOW),
            written: Vec::new(),
            arrived: Vec::new(),
            consumed: 0,
            consumed_bytes: 0,
            grants: Vec::new(),
        };
        let mut time = 0;
        for step in steps {
            match step {
                Step::Write(bytes) => world.write(rows(bytes)),
                Step::Signal => {
                    time += 1;
                    world.write(FrameBody::Watermark { timestamp: Timestamp(time) });
                }
                Step::Send { request_lost, reply_lost, twice } => {
                    world.send(request_lost, reply_lost, twice);
                }
                Step::Consume => world.consume(),
                Step::OldGrant => {
                    if let Some(grant) = world.grants.first().cloned() {
                        world.sender.stands(&grant);
                    }
                }
            }
            prop_assert!(world.waiting_bytes() <= WINDOW);
            prop_assert_eq!(&world.arrived[..], &world.written[..world.arrived.len()]);
        }
        // The network heals and the reader reads: everything arrives.
        for _ in 0..2_000 {
            world.send(false, false, false);
            world.consume();
        }
        prop_assert_eq!(world.arrived.len(), world.written.len());
        prop_assert_eq!(world.sender.queued_messages(), 0);
    }
}

#[test]
fn a_stale_channel_takes_everything_and_sends_nothing() {
    let mut sender = SendChannel::default();
    sender.push(rows(10));
    sender.stands(&ChannelStanding::Stale);
    sender.push(rows(10));
    assert_eq!(sender.queued_bytes(), 0);
    assert!(sender.take(1_000).is_empty());
    assert!(!sender.is_starved());
}
