//! Copies of partitions in the world: the machines of those who follow and of those who are followed, and
//! what their actors would do for them.

use std::collections::BTreeMap;

use common::error::{ErrorCode, Problem};
use common::ids::{LeaderEpoch, NodeId, TopicPartition, WorkerEpoch};
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::replicate::{ReplicaPosition, Replicate, Replicated, Verdict};
use common::time::{Span, Tick};
use worker::log::reader::LogReader;
use worker::metadata_image::MetadataImage;
use worker::partition::problems;
use worker::replication::follower_machine::{Effect as FollowerEffect, FollowerMachine, Say};
use worker::replication::followers::followed;
use worker::replication::session_machine::{
    CallId, Effect, Look, REPLICA_BYTES, SessionMachine, WatchId,
};

use super::env::Env;
use super::network::{CallFailed, Process, Reply, ReturnAddress};
use super::partition::Partition;
use super::worker::{MAILBOX_MS, Timer as WorkerTimer, Who};

/// How long a leader may hold a call, and how long reading for a follower takes at most.
const HOLD: Span = Span::from_secs(1);
const READ_MS: u64 = 5;

pub type Partitions = BTreeMap<TopicPartition, Partition>;

#[derive(Debug)]
pub enum Timer {
    /// A partition has said what there is for a follower's position.
    Looked(WatchId, Look<LogReader>),
    /// A log is read for a follower.
    Read(WatchId, LogReader, Offset, Offset),
    /// Calls have waited long enough, or sessions are over.
    Sessions,
    /// A replica that follows this worker has said where it is.
    Positioned(NodeId, TopicPartition, LeaderEpoch, Option<ReplicaPosition>),
    /// What follows this worker has rested long enough.
    Wake(NodeId),
}

/// Both sides of one worker.
#[derive(Debug)]
pub struct Replication {
    me: NodeId,
    my_epoch: WorkerEpoch,
    sessions: SessionMachine<LogReader>,
    asked: BTreeMap<CallId, ReturnAddress>,
    timer: Option<Tick>,
    followers: BTreeMap<NodeId, Follower>,
    conversations: u64,
}

/// All that follows one worker.
#[derive(Debug)]
struct Follower {
    leader: Option<Leader>,
    machine: FollowerMachine,
    timer: Option<Tick>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Leader {
    process: Process,
    epoch: WorkerEpoch,
}

/// A call to a leader.
#[derive(Debug)]
pub struct NextCall {
    pub leader: NodeId,
    pub process: Process,
    pub call: Replicate,
}

impl Replication {
    pub fn new(me: NodeId, my_epoch: WorkerEpoch) -> Replication {
        Replication {
            me,
            my_epoch,
            sessions: SessionMachine::default(),
            asked: BTreeMap::new(),
            timer: None,
            followers: BTreeMap::new(),
            conversations: 0,
        }
    }

    pub fn worker_is_now(&mut self, epoch: WorkerEpoch) {
        self.my_epoch = epoch;
    }

    pub fn timer(
        &mut self,
        env: &mut Env,
        who: Who,
        partitions: &mut Partitions,
        timer: Timer,
    ) -> Vec<NextCall> {
        match timer {
            Timer::Looked(watch, look) => {
                let effects = self.sessions.looked(env.now, watch, look);
                self.tell(env, who, partitions, effects);
            }
            Timer::Read(watch, log, from, to) => {
                let read = log.read(from, to, REPLICA_BYTES, Isolation::ReadUncommitted);
                let read = read.map(|read| read.bytes);
                let read = read.map_err(|error| problems::read_failed(&error));
                let effects = self.sessions.read(env.now, watch, read);
                self.tell(env, who, partitions, effects);
            }
            Timer::Sessions => {
                self.timer = None;
                let effects = self.sessions.time_passed(env.now);
                self.tell(env, who, partitions, effects);
            }
            Timer::Positioned(leader, partition, leader_epoch, position) => {
                if let Some(follower) = self.followers.get_mut(&leader) {
                    match position {
                        Some(position) => follower.machine.positioned(position),
                        None => follower
                            .machine
                            .unpositioned(env.now, partition, leader_epoch),
                    }
                    return self.go_on(env, who, partitions, leader, Vec::new());
                }
            }
            Timer::Wake(leader) => {
                if let Some(follower) = self.followers.get_mut(&leader) {
                    follower.timer = None;
                    return self.go_on(env, who, partitions, leader, Vec::new());
                }
            }
        }
        Vec::new()
    }

    // The side of those who follow.

    /// Partitions follow whom the metadata says.
    pub fn follow(
        &mut self,
        env: &mut Env,
        who: Who,
        partitions: &mut Partitions,
        image: &MetadataImage,
    ) -> Vec<NextCall> {
        let mut wanted = followed(self.me, image);
        self.followers
            .retain(|leader, _| wanted.contains_key(leader));
        let mut calls = Vec::new();
        for (worker, replicas) in std::mem::take(&mut wanted) {
            let leader = image.workers.get(&worker).map(|known| Leader {
                process: Process::Worker(known.address.parse().expect("an index")),
                epoch: known.epoch,
            });
            let follower = self.followers.entry(worker).or_insert_with(|| {
                self.conversations += 1;
                let first = (who.life << 32) + (self.conversations << 16);
                Follower {
                    leader,
                    machine: FollowerMachine::new(first),
                    timer: None,
                }
            });
            if leader.is_some() && follower.leader != leader {
                follower.leader = leader;
                let session = follower.machine.session();
                follower.machine.failed(env.now, session);
            }
            let effects = follower.machine.follow(&replicas);
            calls.extend(self.go_on(env, who, partitions, worker, effects));
        }
        calls
    }

    pub fn answered(
        &mut self,
        env: &mut Env,
        who: Who,
        partitions: &mut Partitions,
        (leader, session): (NodeId, u64),
        answer: Result<Replicated, CallFailed>,
    ) -> Vec<NextCall> {
        let Some(follower) = self.followers.get_mut(&leader) else {
            return Vec::new();
        };
        let effects = match answer {
            Ok(reply) => follower.machine.answered(env.now, session, reply),
            Err(_) => {
                follower.machine.failed(env.now, session);
                Vec::new()
            }
        };
        self.go_on(env, who, partitions, leader, effects)
    }

    fn go_on(
        &mut self,
        env: &mut Env,
        who: Who,
        partitions: &mut Partitions,
        leader: NodeId,
        mut effects: Vec<FollowerEffect>,
    ) -> Vec<NextCall> {
        let Some(follower) = self.followers.get_mut(&leader) else {
            return Vec::new();
        };
        effects.extend(follower.machine.wake(env.now));
        for effect in effects {
            let (partition, leader_epoch) = match &effect {
                FollowerEffect::Position {
                    partition,
                    leader_epoch,
                } => (*partition, *leader_epoch),
                FollowerEffect::Apply { at, .. } => (at.partition, at.leader_epoch),
            };
            match (partitions.get_mut(&partition), effect) {
                (Some(replica), FollowerEffect::Position { .. }) => {
                    replica.position(env, who, leader, leader_epoch);
                }
                (
                    Some(replica),
                    FollowerEffect::Apply {
                        at,
                        verdict,
                        batches,
                    },
                ) => replica.apply(env, who, leader, (at, verdict, batches)),
                (None, _) => positioned(env, who, leader, (partition, leader_epoch), None),
            }
        }
        let mut calls = Vec::new();
        while let (Some(to), Some(say)) = (follower.leader, follower.machine.next_call(env.now)) {
            let Say {
                session,
                number,
                positions,
            } = say;
            calls.push(NextCall {
                leader,
                process: to.process,
                call: Replicate {
                    from: self.me,
                    from_epoch: self.my_epoch,
                    session,
                    number,
                    positions,
                    wait: HOLD,
                },
            });
        }
        if let Some(at) = follower.machine.next_wake()
            && follower.timer.is_none_or(|set| at < set)
        {
            follower.timer = Some(at);
            let delay = at.since(env.now);
            after(env, who, Span(delay.0 + 1), Timer::Wake(leader));
        }
        calls
    }

    // The side of those who are followed.

    pub fn called(
        &mut self,
        env: &mut Env,
        who: Who,
        partitions: &mut Partitions,
        call: Replicate,
        from: ReturnAddress,
    ) {
        match self.sessions.called(env.now, call) {
            Ok((call, effects)) => {
                self.asked.insert(call, from);
                self.tell(env, who, partitions, effects);
            }
            Err(problem) => env.answer(from, Err(problem)),
        }
    }

    fn tell(
        &mut self,
        env: &mut Env,
        who: Who,
        partitions: &mut Partitions,
        effects: Vec<Effect<LogReader>>,
    ) {
        for effect in effects {
            match effect {
                Effect::Look { watch, life, at } => match partitions.get_mut(&at.partition) {
                    Some(partition) => partition.followed(env, who, watch, life, at),
                    None => {
                        let problem = Problem::new(ErrorCode::NotLeader, "it is not here");
                        looked(env, who, watch, refused(problem));
                    }
                },
                Effect::Read {
                    watch,
                    log,
                    from,
                    to,
                } => {
                    let delay = env.some_disk_ms(READ_MS);
                    after(env, who, delay, Timer::Read(watch, log, from, to));
                }
                Effect::Answer { call, reply } => {
                    let from = self.asked.remove(&call).expect("it was asked");
                    env.answer(from, Ok(Reply::Replicated(reply)));
                }
            }
        }
        if let Some(at) = self.sessions.next_wake()
            && self.timer.is_none_or(|set| at < set)
        {
            self.timer = Some(at);
            let delay = at.since(env.now);
            after(env, who, delay, Timer::Sessions);
        }
    }
}

/// What a partition says to a follower's position, a moment later.
pub fn looked(env: &mut Env, who: Who, watch: WatchId, look: Look<LogReader>) {
    let delay = env.some_ms(MAILBOX_MS);
    after(env, who, delay, Timer::Looked(watch, look));
}

pub fn refused(problem: Problem) -> Look<LogReader> {
    Look::Tell(Verdict::Refused { problem })
}

/// What a replica says to whoever follows for it, a moment later.
pub fn positioned(
    env: &mut Env,
    who: Who,
    leader: NodeId,
    (partition, leader_epoch): (TopicPartition, LeaderEpoch),
    position: Option<ReplicaPosition>,
) {
    let delay = env.some_ms(MAILBOX_MS);
    let timer = Timer::Positioned(leader, partition, leader_epoch, position);
    after(env, who, delay, timer);
}

fn after(env: &mut Env, who: Who, delay: Span, timer: Timer) {
    who.after(env, delay, WorkerTimer::Replication(timer));
}
