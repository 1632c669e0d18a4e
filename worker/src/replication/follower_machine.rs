//! What this worker's followers of one leader ask for, and when (pure).
//!
//! A replica is idle until its position is known, ready until a call has said it, listed until the leader
//! has answered it, and applying until the answer is in its log and durable: it takes part in at most one
//! call and one change of its log. There is always one call at the leader; a second one goes out as soon as
//! replicas are ready, and makes the leader answer the first. When anything goes wrong with a call, what it
//! said may or may not have arrived: the next one begins another session.

use std::collections::BTreeMap;

use bytes::Bytes;
use common::ids::{LeaderEpoch, TopicPartition};
use common::protocol::replicate::{ReplicaPosition, Replicated, Verdict};
use common::time::{Span, Tick};

/// One that the leader holds, and one that takes its place.
pub const MAX_CALLS: usize = 2;
/// Positions one call speaks of at most.
pub const MAX_POSITIONS: usize = 4_096;
/// After a call that failed.
const CALL_AGAIN: Span = Span::from_millis(100);
/// After a replica was refused, here or by its leader: usually one of the two has yet to hear who leads, and nothing
/// is committed until both have.
const ASK_AGAIN: Span = Span::from_millis(20);

/// The replicas here that follow one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FollowerMachine {
    replicas: BTreeMap<TopicPartition, Replica>,
    session: Session,
    /// Nothing is asked before.
    quiet_until: Option<Tick>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Replica {
    leader_epoch: LeaderEpoch,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Standing {
    /// Its position is not known: it was asked for it, or does something to its log.
    Unknown,
    Ready(ReplicaPosition),
    Listed(ReplicaPosition),
    /// It is asked for its position again then.
    Resting(Tick),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Session {
    number: u64,
    /// Calls that were made, and those without an answer yet.
    calls: u64,
    under_way: usize,
}

/// What a call says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Say {
    pub session: u64,
    pub number: u64,
    pub positions: Vec<ReplicaPosition>,
}

/// What a replica is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Say where its log is.
    Position {
        partition: TopicPartition,
        leader_epoch: LeaderEpoch,
    },
    /// Do what the leader's answer to this position says.
    Apply {
        at: ReplicaPosition,
        verdict: Verdict,
        batches: Bytes,
    },
}

impl FollowerMachine {
    /// `session`: the number of its first session.
    pub fn new(session: u64) -> FollowerMachine {
        FollowerMachine {
            session: Session {
                number: session,
                ..Session::default()
            },
            ..FollowerMachine::default()
        }
    }

    /// These follow that leader, each in this reign; others do not any more.
    pub fn follow(&mut self, replicas: &BTreeMap<TopicPartition, LeaderEpoch>) -> Vec<Effect> {
        self.replicas
            .retain(|partition, _| replicas.contains_key(partition));
        let mut effects = Vec::new();
        for (partition, leader_epoch) in replicas {
            let known = self.replicas.get(partition);
            if known.is_some_and(|known| known.leader_epoch == *leader_epoch) {
                continue;
            }
            self.replicas.insert(
                *partition,
                Replica {
                    leader_epoch: *leader_epoch,
                    standing: Standing::Unknown,
                },
            );
            effects.push(Effect::Position {
                partition: *partition,
                leader_epoch: *leader_epoch,
            });
        }
        effects
    }

    /// A replica says where its log is, and that nothing is done to it.
    pub fn positioned(&mut self, position: ReplicaPosition) {
        if let Some(replica) = self.replica(position.partition, position.leader_epoch)
            && replica.standing == Standing::Unknown
        {
            replica.standing = Standing::Ready(position);
        }
    }

    /// A replica cannot say where its log is, or do what it was told, for now.
    pub fn unpositioned(
        &mut self,
        now: Tick,
        partition: TopicPartition,
        leader_epoch: LeaderEpoch,
    ) {
        if let Some(replica) = self.replica(partition, leader_epoch)
            && replica.standing == Standing::Unknown
        {
            replica.standing = Standing::Resting(now.plus(ASK_AGAIN));
        }
    }

    /// Replicas that rested long enough.
    pub fn wake(&mut self, now: Tick) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (partition, replica) in &mut self.replicas {
            if matches!(replica.standing, Standing::Resting(until) if until <= now) {
                replica.standing = Standing::Unknown;
                effects.push(Effect::Position {
                    partition: *partition,
                    leader_epoch: replica.leader_epoch,
                });
            }
        }
        effects
    }

    /// When `wake` or `next_call` may have something that they do not have now.
    pub fn next_wake(&self) -> Option<Tick> {
        let resting = self.replicas.values().filter_map(|r| match r.standing {
            Standing::Resting(until) => Some(until),
            _ => None,
        });
        resting.chain(self.quiet_until).min()
    }

    /// The next call, if one is to be made now.
    pub fn next_call(&mut self, now: Tick) -> Option<Say> {
        if self.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        self.quiet_until = None;
        if self.session.under_way >= MAX_CALLS {
            return None;
        }
        let mut positions = Vec::new();
        let mut listed = false;
        for replica in self.replicas.values_mut() {
            match replica.standing {
                Standing::Ready(position) if positions.len() < MAX_POSITIONS => {
                    replica.standing = Standing::Listed(position);
                    positions.push(position);
                }
                Standing::Listed(_) => listed = true,
                Standing::Unknown | Standing::Ready(_) | Standing::Resting(_) => {}
            }
        }
        let wanted = !positions.is_empty() || (listed && self.session.under_way == 0);
        wanted.then(|| {
            let number = self.session.calls;
            self.session.calls += 1;
            self.session.under_way += 1;
            Say {
                session: self.session.number,
                number,
                positions,
            }
        })
    }

    /// A call of this session was answered.
    pub fn answered(&mut self, now: Tick, session: u64, reply: Replicated) -> Vec<Effect> {
        if session != self.session.number {
            return Vec::new();
        }
        self.session.under_way -= 1;
        let mut effects = Vec::new();
        for (at, verdict, batches) in reply.into_each() {
            let Some(replica) = self.replica(at.partition, at.leader_epoch) else {
                continue;
            };
            // An answer to another position is one of the past: its log may have grown again to where it was.
            if replica.standing != Standing::Listed(at) {
                continue;
            }
            if let Verdict::Refused { problem } = verdict {
                tracing::debug!(partition = %at.partition, %problem, "the leader has no answer");
                replica.standing = Standing::Resting(now.plus(ASK_AGAIN));
                continue;
            }
            replica.standing = Standing::Unknown;
            effects.push(Effect::Apply {
                at,
                verdict,
                batches,
            });
        }
        effects
    }

    /// A call of this session failed, or the leader is another process now.
    pub fn failed(&mut self, now: Tick, session: u64) {
        if session != self.session.number {
            return;
        }
        self.session = Session {
            number: session.wrapping_add(1),
            ..Session::default()
        };
        self.quiet_until = Some(now.plus(CALL_AGAIN));
        for replica in self.replicas.values_mut() {
            if let Standing::Listed(position) = replica.standing {
                replica.standing = Standing::Ready(position);
            }
        }
    }

    pub fn session(&self) -> u64 {
        self.session.number
    }

    fn replica(
        &mut self,
        partition: TopicPartition,
        leader_epoch: LeaderEpoch,
    ) -> Option<&mut Replica> {
        let replica = self.replicas.get_mut(&partition)?;
        (replica.leader_epoch == leader_epoch).then_some(replica)
    }
}
