//! A partition's replicas: which one this is, what its followers are told, and what it is told by its leader.

use actix::fut::{ActorFutureExt, WrapFuture};
use actix::{AsyncContext, Context, Handler, ResponseFuture};
use common::error::Problem;
use common::ids::PartitionEpoch;
use common::offset::Offset;
use common::protocol::metadata::LogEnd;
use common::protocol::replicate::{IsrVerdict, LogEndReport, ReplicaPosition};
use common::time::Span;
use tokio::sync::oneshot;

use super::actor::PartitionActor;
use super::agenda::MAX_WAITING;
use super::machine::{FollowerAnswer, FollowerFetch};
use super::messages::{ApplyNews, Assign, Follow, Followed, Position};
use super::problems;
use super::replica_work::{PositionReply, QueuedNews};
use super::waiter::{FollowReply, Waiter};
use super::waiting::APPEND_TIMEOUT;
use super::work::answer;
use crate::log::reader::LogReader;

/// How often a leader looks whether who is in sync should change.
const LOOK_AT_ISR_EVERY: Span = Span::from_millis(500);

impl PartitionActor {
    /// The role changes, if it is to and may now.
    pub(super) fn assign(&mut self) {
        if !self.agenda.takes_role() {
            return;
        }
        let now = self.settings.clock.tick();
        let Assign { image, config } = &self.assigned;
        let was_leader = self.machine.is_leader();
        self.machine.assign(now, image, config);
        if self.machine.leads_uncleanly() && !was_leader {
            tracing::error!(
                partition = %self.id, log_end = %self.machine.log_end(),
                "DATA_LOSS_POSSIBLE: leads although acknowledged records may be missing here"
            );
        }
        if was_leader != self.machine.is_leader() {
            for waiter in self.waiting.drain() {
                match waiter {
                    // It is in a log, which may be that of the next leader's followers.
                    Waiter::Append { reply, .. } => {
                        answer(reply, Err(problems::lead_lost(self.id)));
                    }
                    other => other.refuse(self.not_leader()),
                }
            }
        }
    }

    /// What a follower is told whose log is a prefix of this one.
    pub(super) fn continues(&self) -> Result<Followed, Problem> {
        let reader = self.reader.clone().ok_or_else(|| self.not_leader())?;
        Ok(Followed::Continues {
            reader,
            log_end: self.machine.log_end(),
            committed: self.readable().committed,
        })
    }

    /// Says where the log is once all of it is safe: nobody would ask again when it is, and until the leader's log
    /// goes on nobody would be told.
    pub(super) fn park_until_safe(&mut self, reply: PositionReply) {
        let end = self.machine.log_end();
        let deadline = self.settings.clock.tick().plus(APPEND_TIMEOUT);
        let waiter = Waiter::Position { reply };
        self.waiting.park_until_safe(end, deadline, waiter);
    }

    /// Where this replica's log is.
    pub(super) fn here(&self) -> ReplicaPosition {
        ReplicaPosition {
            partition: self.id,
            leader_epoch: self.machine.leader_epoch(),
            log_end: self.machine.log_end(),
            last_epoch: self.epochs.latest(),
            durable: self.machine.durable(),
            committed: self.machine.committed().unwrap_or(Offset::ZERO),
        }
    }

    fn followed(&mut self, message: &Follow, reply: FollowReply, context: &mut Context<Self>) {
        if let Some(problem) = self.agenda.unwritable() {
            return answer(reply, Err(problem.clone()));
        }
        if !self.agenda.has_role() {
            return answer(reply, Err(problems::position_unknown(self.id)));
        }
        let Follow { life, at, wait } = message;
        let fetch = FollowerFetch {
            from: life.0,
            worker_epoch: life.1,
            leader_epoch: at.leader_epoch,
            log_end: at.log_end,
            last_epoch: at.last_epoch,
            durable: at.durable,
        };
        let now = self.settings.clock.tick();
        let log_start = self.reader.as_ref().map_or(Offset::ZERO, LogReader::start);
        let answered = self
            .machine
            .follower_fetched(now, fetch, &self.epochs, log_start);
        match answered {
            Err(refusal) => return answer(reply, Err(problems::follower_refused(refusal))),
            Ok(FollowerAnswer::Removed) => {
                return answer(reply, Ok(Followed::Removed { log_start }));
            }
            Ok(FollowerAnswer::Diverging(end)) => {
                return answer(reply, Ok(Followed::Diverges(end)));
            }
            Ok(FollowerAnswer::Continue) => {}
        }
        if at.log_end < self.machine.log_end() {
            answer(reply, self.continues());
        } else {
            let deadline = now.plus(*wait);
            let waiter = Waiter::Follower { reply };
            self.waiting.park_follower(at.log_end, deadline, waiter);
        }
        // What it said may have committed something.
        self.go_on(context);
    }

    pub(super) fn note_offline(&mut self) {
        let replicas = &self.assigned.image.replicas;
        if replicas.len() > 1 {
            let image = self.settings.image.borrow();
            let replicas = replicas.iter().copied();
            let offline = replicas.filter(|node| image.active(*node).is_none());
            self.machine.set_offline(offline.collect());
        }
    }

    /// While it leads and others follow: asks for those to be in sync who are. While nobody leads, and it is asked:
    /// says where its log ends.
    pub(super) fn look_at_isr(&mut self, context: &mut Context<Self>) {
        let has_followers = self.assigned.image.replicas.len() > 1;
        let leads = has_followers && self.machine.is_leader();
        if self.looks_at_isr || !(leads || self.machine.asked().is_some()) {
            return;
        }
        self.looks_at_isr = true;
        context.run_later(LOOK_AT_ISR_EVERY.as_duration(), |actor, context| {
            actor.looks_at_isr = false;
            actor.propose_isr(context);
            actor.say_log_end();
            actor.look_at_isr(context);
        });
    }

    /// Again and again, until the metadata says that it was heard.
    fn say_log_end(&self) {
        let Some(partition_epoch) = self.machine.asked() else {
            return;
        };
        if self.agenda.is_here() && self.agenda.has_role() {
            self.settings.isr.say(LogEndReport {
                partition: self.id,
                partition_epoch,
                log_end: LogEnd {
                    last_epoch: self.epochs.latest(),
                    log_end: self.machine.log_end(),
                },
            });
        }
    }

    fn propose_isr(&mut self, context: &mut Context<Self>) {
        self.note_offline();
        let now = self.settings.clock.tick();
        let Some(proposal) = self.machine.propose_isr(now) else {
            return;
        };
        let epoch = proposal.partition_epoch;
        let isr = proposal.isr.keys();
        // One that was refused is asked for again and again.
        match self.isr_refused {
            None => tracing::info!(partition = %self.id, ?isr, "asks for these to be in sync"),
            Some(_) => tracing::debug!(partition = %self.id, ?isr, "asks again"),
        }
        let Some(answered) = self.settings.isr.send(self.id, proposal) else {
            self.machine.isr_refused(epoch);
            return;
        };
        let heard = answered.into_actor(self).map(|verdict, actor, context| {
            match verdict {
                // It comes with the metadata.
                Ok(IsrVerdict::Accepted) => actor.isr_refused = None,
                Ok(IsrVerdict::Refused {
                    partition_epoch,
                    reason,
                }) => actor.isr_was_refused(partition_epoch, reason, context),
                // Nobody knows what became of it.
                Err(_) => {}
            }
        });
        context.spawn(heard);
    }

    fn isr_was_refused(
        &mut self,
        partition_epoch: Option<PartitionEpoch>,
        reason: String,
        context: &mut Context<Self>,
    ) {
        if self.isr_refused.as_ref() != Some(&reason) {
            tracing::info!(partition = %self.id, %reason, "who is in sync stays");
            self.isr_refused = Some(reason);
        }
        if let Some(epoch) = partition_epoch {
            self.machine.isr_refused(epoch);
            self.go_on(context);
        }
    }
}

impl Handler<Assign> for PartitionActor {
    type Result = ();

    fn handle(&mut self, message: Assign, context: &mut Context<Self>) {
        self.assigned = message;
        self.agenda.assign();
        self.assign();
        if self.undecided.has_open() {
            self.agenda.reconcile();
        }
        self.go_on(context);
    }
}

impl Handler<Follow> for PartitionActor {
    type Result = ResponseFuture<Result<Followed, Problem>>;

    fn handle(&mut self, message: Follow, context: &mut Context<Self>) -> Self::Result {
        if self.waiting.len() >= MAX_WAITING {
            let problem = problems::overloaded(self.id, "fetches");
            return Box::pin(std::future::ready(Err(problem)));
        }
        let (reply, replied) = oneshot::channel();
        self.followed(&message, reply, context);
        let id = self.id;
        Box::pin(async move { replied.await.unwrap_or_else(|_| Err(problems::lost(id))) })
    }
}

impl Handler<Position> for PartitionActor {
    type Result = ResponseFuture<Result<ReplicaPosition, Problem>>;

    fn handle(&mut self, message: Position, context: &mut Context<Self>) -> Self::Result {
        let quiet = self.agenda.is_here() && self.agenda.has_role() && self.news.is_none();
        if !quiet || self.machine.follows() != Some(message.leader_epoch) {
            return Box::pin(std::future::ready(Err(problems::position_unknown(self.id))));
        }
        let (reply, replied) = oneshot::channel();
        self.park_until_safe(reply);
        self.go_on(context);
        let id = self.id;
        Box::pin(async move { replied.await.unwrap_or_else(|_| Err(problems::lost(id))) })
    }
}

impl Handler<ApplyNews> for PartitionActor {
    type Result = ResponseFuture<Result<ReplicaPosition, Problem>>;

    fn handle(&mut self, message: ApplyNews, context: &mut Context<Self>) -> Self::Result {
        let ApplyNews {
            at,
            verdict,
            batches,
        } = message;
        if self.news.is_some() || self.agenda.unwritable().is_some() {
            return Box::pin(std::future::ready(Err(problems::position_unknown(self.id))));
        }
        let (reply, replied) = oneshot::channel();
        self.news = Some(QueuedNews {
            at,
            verdict,
            batches,
            reply,
        });
        self.agenda.follow();
        self.start_work(context);
        let id = self.id;
        Box::pin(async move { replied.await.unwrap_or_else(|_| Err(problems::lost(id))) })
    }
}
