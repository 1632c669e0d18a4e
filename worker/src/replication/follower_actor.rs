//! Asks one other worker for what its partitions have, on behalf of all that follow it here.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::{
    Actor, ActorFutureExt, Addr, ArbiterHandle, AsyncContext, Context, Handler, Message, WrapFuture,
};
use common::error::Problem;
use common::ids::{LeaderEpoch, NodeId, TopicPartition, WorkerEpoch};
use common::protocol::replicate::{ReplicaPosition, Replicate, Replicated};
use common::time::{Clock, Span};
use common::transport::client::{CallError, Transport};
use tracing::debug;
use uuid::Uuid;

use super::follower_machine::{Effect, FollowerMachine, Say};
use crate::link::Session;
use crate::partition::registry::Partitions;

/// How long the leader may hold a call, and how long it may take altogether.
const HOLD: Span = Span::from_secs(1);
const DEADLINE: Span = Span::from_secs(5);

/// What all followers of a worker work with.
#[derive(Clone, Debug)]
pub struct FollowerSettings {
    pub session: Arc<Session>,
    pub partitions: Partitions,
    pub transport: Transport,
    pub clock: Arc<dyn Clock>,
    /// Where they run.
    pub arbiter: ArbiterHandle,
}

/// The worker that is followed, in one of its lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leader {
    pub(super) worker: NodeId,
    pub(super) epoch: WorkerEpoch,
    pub(super) address: String,
}

/// What follows a worker here. Once nothing does, and the handle is dropped, the actor ends.
#[derive(Debug)]
pub(super) struct FollowerHandle(Addr<FollowerActor>);

#[derive(Debug)]
struct FollowerActor {
    settings: FollowerSettings,
    leader: Leader,
    machine: FollowerMachine,
    timer: bool,
}

/// These partitions follow this leader, each in this reign.
#[derive(Debug)]
struct FollowThese {
    /// `None`: as before.
    leader: Option<Leader>,
    replicas: BTreeMap<TopicPartition, LeaderEpoch>,
}

impl Message for FollowThese {
    type Result = ();
}

impl FollowerHandle {
    pub(super) fn start(settings: FollowerSettings, leader: Leader) -> FollowerHandle {
        // A number that was not used before, also not in an earlier life.
        let (session, _) = Uuid::new_v4().as_u64_pair();
        let arbiter = settings.arbiter.clone();
        FollowerHandle(FollowerActor::start_in_arbiter(&arbiter, move |_| {
            FollowerActor {
                settings,
                leader,
                machine: FollowerMachine::new(session),
                timer: false,
            }
        }))
    }

    /// From now on these follow, each in this reign. `leader`: if something changed about it.
    pub(super) async fn follow(
        &self,
        leader: Option<Leader>,
        replicas: BTreeMap<TopicPartition, LeaderEpoch>,
    ) {
        let told = self.0.send(FollowThese { leader, replicas }).await;
        // It ends with its thread, and so does everything else here.
        told.unwrap_or_default();
    }
}

impl FollowerActor {
    fn go_on(&mut self, effects: Vec<Effect>, context: &mut Context<Self>) {
        for effect in effects {
            self.run(effect, context);
        }
        let now = self.settings.clock.tick();
        for effect in self.machine.wake(now) {
            self.run(effect, context);
        }
        while let Some(say) = self.machine.next_call(now) {
            self.call(say, context);
        }
        self.set_timer(context);
    }

    fn run(&mut self, effect: Effect, context: &mut Context<Self>) {
        let (partition, leader_epoch) = match &effect {
            Effect::Position {
                partition,
                leader_epoch,
            } => (*partition, *leader_epoch),
            Effect::Apply { at, .. } => (at.partition, at.leader_epoch),
        };
        let handle = self.settings.partitions.get(partition);
        let running = async move {
            let handle = handle?;
            let outcome: Result<ReplicaPosition, Problem> = match effect {
                Effect::Position { leader_epoch, .. } => handle.position(leader_epoch).await,
                Effect::Apply {
                    at,
                    verdict,
                    batches,
                } => handle.apply(at, verdict, batches).await,
            };
            outcome
                .inspect_err(
                    |problem| debug!(%partition, %problem, "a replica does not follow yet"),
                )
                .ok()
        };
        let done = running
            .into_actor(self)
            .map(move |position, actor, context| {
                let now = actor.settings.clock.tick();
                match position {
                    Some(position) => actor.machine.positioned(position),
                    None => actor.machine.unpositioned(now, partition, leader_epoch),
                }
                actor.go_on(Vec::new(), context);
            });
        context.spawn(done);
    }

    fn call(&mut self, say: Say, context: &mut Context<Self>) {
        let Say {
            session,
            number,
            positions,
        } = say;
        let call = Replicate {
            from: self.settings.session.worker,
            from_epoch: self.settings.session.epoch(),
            session,
            number,
            positions,
            wait: HOLD,
        };
        let transport = self.settings.transport.clone();
        let asked = transport.call(&self.leader.address, &call, DEADLINE);
        let answered = asked
            .into_actor(self)
            .map(move |answer, actor, context| actor.answered(session, answer, context));
        context.spawn(answered);
    }

    fn answered(
        &mut self,
        session: u64,
        answer: Result<Replicated, CallError>,
        context: &mut Context<Self>,
    ) {
        let now = self.settings.clock.tick();
        let effects = match answer {
            Ok(reply) => self.machine.answered(now, session, reply),
            Err(error) => {
                debug!(leader = %self.leader.worker, %error, "a leader does not answer");
                self.machine.failed(now, session);
                Vec::new()
            }
        };
        self.go_on(effects, context);
    }

    fn set_timer(&mut self, context: &mut Context<Self>) {
        let Some(at) = self.machine.next_wake().filter(|_| !self.timer) else {
            return;
        };
        self.timer = true;
        let after = Span(at.since(self.settings.clock.tick()).0 + 1);
        context.run_later(after.as_duration(), |actor, context| {
            actor.timer = false;
            actor.go_on(Vec::new(), context);
        });
    }
}

impl Actor for FollowerActor {
    type Context = Context<Self>;
}

impl Handler<FollowThese> for FollowerActor {
    type Result = ();

    fn handle(&mut self, message: FollowThese, context: &mut Context<Self>) {
        if let Some(leader) = message.leader.filter(|leader| *leader != self.leader) {
            self.leader = leader;
            let session = self.machine.session();
            self.machine.failed(self.settings.clock.tick(), session);
        }
        let effects = self.machine.follow(&message.replicas);
        self.go_on(effects, context);
    }
}
