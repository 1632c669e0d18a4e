//! One per job: sends barriers, collects acknowledgements, and proposes what the machine has proven.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tracing::{debug, warn};

use common::error::{ErrorCode, Problem};
use common::ids::{CheckpointId, Generation, JobId, JobName, NodeId, WorkerEpoch};
use common::limits::JOB_MAILBOX;
use common::protocol::checkpoint::{
    AckCheckpoint, Acknowledged, CheckpointKind, DeclineCheckpoint, InjectBarrier,
};
use common::protocol::standby::AckStandby;
use common::time::{Clock, Span, Tick, Timestamp};
use common::transport::client::Transport;

use super::history::Record;
use super::machine::{CheckpointMachine, Effect, Event, Fence, INJECT_AGAIN, Pace, Settings, Team};
use super::permit::CommitPermit;
use crate::controller::Controller;
use crate::job::messages::FinalCheckpointCompleted;
use crate::metadata::command::{Command, Outcome};
use crate::metadata::jobs::JobRow;

#[derive(Debug)]
pub(crate) struct CheckpointActor {
    job: JobId,
    name: JobName,
    controller: Controller,
    transport: Transport,
    clock: Arc<dyn Clock>,
    machine: CheckpointMachine,
    /// Who waits for the last checkpoint of a generation.
    job_actor: Recipient<FinalCheckpointCompleted>,
    timer: Option<SpawnHandle>,
}

/// From the job: which checkpoints to take from now on.
#[derive(Debug)]
pub(crate) enum TakeCheckpoints {
    Off,
    Of {
        generation: Generation,
        team: Team,
        pace: Pace,
        /// A last one, after which sources read nothing, or periodic ones.
        kind: CheckpointKind,
        /// The last completed one.
        completed: Option<CheckpointId>,
    },
}

impl Message for TakeCheckpoints {
    type Result = ();
}

/// A task of this generation wants a checkpoint soon.
#[derive(Debug)]
pub(crate) struct WantCheckpoint(pub(crate) Generation);

impl Message for WantCheckpoint {
    type Result = ();
}

/// A checkpoint of this generation is to begin soon. Answered with the last one that was given a number before.
#[derive(Debug)]
pub(crate) struct HurryCheckpoint(pub(crate) Generation);

impl Message for HurryCheckpoint {
    type Result = CheckpointId;
}

#[derive(Debug)]
pub(crate) struct Acknowledge(pub(crate) AckCheckpoint);

impl Message for Acknowledge {
    type Result = Result<Acknowledged, Problem>;
}

#[derive(Debug)]
pub(crate) struct Hold(pub(crate) AckStandby);

impl Message for Hold {
    type Result = Result<Acknowledged, Problem>;
}

#[derive(Debug)]
pub(crate) struct Decline(pub(crate) DeclineCheckpoint);

impl Message for Decline {
    type Result = Result<Acknowledged, Problem>;
}

#[derive(Debug)]
pub(crate) struct ListRecords;

impl Message for ListRecords {
    type Result = Vec<DatedRecord>;
}

/// A record with the wall clock's idea of when it was.
#[derive(Clone, Debug)]
pub(crate) struct DatedRecord {
    pub(crate) record: Record,
    pub(crate) triggered_at: Timestamp,
}

impl Pace {
    pub(crate) fn of(row: &JobRow) -> Pace {
        Pace {
            interval: row.checkpoint_interval,
            timeout: row.spec.config.checkpoint_timeout,
        }
    }
}

impl CheckpointActor {
    pub(crate) fn new(
        controller: Controller,
        transport: Transport,
        clock: Arc<dyn Clock>,
        session_timeout: Span,
        row: &JobRow,
        job_actor: Recipient<FinalCheckpointCompleted>,
    ) -> CheckpointActor {
        let settings = Settings {
            pace: Pace::of(row),
            session_timeout,
        };
        CheckpointActor {
            job: row.id,
            name: row.name.clone(),
            controller,
            transport,
            clock,
            machine: CheckpointMachine::new(settings, row.reserved, row.completed, &row.holders),
            job_actor,
            timer: None,
        }
    }

    fn now(&self) -> Tick {
        self.clock.tick()
    }

    fn happen(&mut self, event: Event, ctx: &mut Context<CheckpointActor>) {
        let effects = self.machine.handle(self.now(), event);
        for effect in effects {
            match effect {
                Effect::Reserve { generation } => self.reserve(generation, ctx),
                Effect::Inject {
                    worker,
                    generation,
                    checkpoint,
                    kind,
                } => self.inject(worker, generation, checkpoint, kind, ctx),
                Effect::Complete(permit) => self.complete(permit, ctx),
                Effect::Completed {
                    generation,
                    checkpoint,
                    kind,
                } => self.completed(generation, checkpoint, kind, ctx),
                Effect::Aborted { checkpoint, reason } => {
                    warn!(job = %self.name, %checkpoint, reason, "checkpoint given up");
                }
            }
        }
        self.set_timer(ctx);
    }

    fn reserve(&mut self, generation: Generation, ctx: &mut Context<CheckpointActor>) {
        let controller = self.controller.clone();
        let job = self.job;
        let proposed = async move {
            let command = Command::ReserveEpochs { job, generation };
            controller.propose(command).await
        };
        ctx.spawn(proposed.into_actor(self).map(|result, actor, ctx| {
            let event = match result.map(|committed| committed.outcome) {
                Ok(Outcome::EpochsReserved { first, last }) => Event::Reserved { first, last },
                Ok(other) => unreachable!("reserving epochs is answered by {other:?}"),
                Err(error) => {
                    debug!(job = %actor.name, %error, "no checkpoint numbers were reserved");
                    Event::ReservationFailed
                }
            };
            actor.happen(event, ctx);
        }));
    }

    fn inject(
        &mut self,
        worker: NodeId,
        generation: Generation,
        checkpoint: CheckpointId,
        kind: CheckpointKind,
        ctx: &mut Context<CheckpointActor>,
    ) {
        let (control_epoch, address) = self.controller.view().read(|metadata| {
            let row = metadata.worker(worker);
            (metadata.control_epoch(), row.map(|row| row.address.clone()))
        });
        let Some(address) = address else { return };
        let barrier = InjectBarrier {
            control_epoch,
            worker,
            job: self.job,
            generation,
            checkpoint,
            kind,
        };
        // No longer than until it is sent again.
        let call = self.transport.call(&address, &barrier, INJECT_AGAIN);
        ctx.spawn(call.into_actor(self).map(move |result, actor, ctx| {
            match result {
                Ok(_) => {
                    let event = Event::BarrierInjected {
                        generation,
                        checkpoint,
                        worker,
                    };
                    actor.happen(event, ctx);
                }
                Err(error) => {
                    debug!(job = %actor.name, %worker, %checkpoint, %error, "barrier not confirmed");
                }
            }
        }));
    }

    fn complete(&mut self, permit: CommitPermit, ctx: &mut Context<CheckpointActor>) {
        let checkpoint = permit.checkpoint();
        let command = permit.into_command(self.job);
        let controller = self.controller.clone();
        let proposed = async move { controller.propose(command).await };
        ctx.spawn(proposed.into_actor(self).map(move |result, actor, ctx| {
            let completed = match result {
                // Its generation has ended, or nothing can be decided now.
                Err(error) if !actor.is_completed(checkpoint) => {
                    Err(format!("it could not be completed: {error}"))
                }
                Ok(_) | Err(_) => Ok(()),
            };
            let event = Event::Settled {
                checkpoint,
                completed,
            };
            actor.happen(event, ctx);
        }));
    }

    /// Also when the answer to the proposal was lost, the metadata knows.
    fn is_completed(&self, checkpoint: CheckpointId) -> bool {
        self.controller.view().read(|metadata| {
            let row = metadata.job(self.job);
            row.is_some_and(|row| row.completed == Some(checkpoint))
        })
    }

    fn completed(
        &mut self,
        generation: Generation,
        checkpoint: CheckpointId,
        kind: CheckpointKind,
        ctx: &mut Context<CheckpointActor>,
    ) {
        debug!(job = %self.name, %generation, %checkpoint, ?kind, "checkpoint complete");
        if kind.is_last() {
            let told = self.job_actor.send(FinalCheckpointCompleted { generation });
            ctx.spawn(told.into_actor(self).map(|result, actor, _| {
                if result.is_err() {
                    debug!(job = %actor.name, "the job has ended with its last checkpoint");
                }
            }));
        }
    }

    fn set_timer(&mut self, ctx: &mut Context<CheckpointActor>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let now = self.now();
        self.timer = self.machine.wake_at().map(|at| {
            let pause = Duration::from_millis(at.since(now).0);
            ctx.run_later(pause, |actor, ctx| {
                actor.timer = None;
                actor.happen(Event::TimePassed, ctx);
            })
        });
    }

    fn check(
        &self,
        generation: Generation,
        worker: NodeId,
        epoch: WorkerEpoch,
    ) -> Result<(), Problem> {
        let job = &self.name;
        let fence = match self.machine.check(generation, worker, epoch) {
            Ok(()) => return Ok(()),
            Err(fence) => fence,
        };
        Err(match fence {
            Fence::PastGeneration => Problem::new(
                ErrorCode::FencedGeneration,
                format!("generation {generation} of job \"{job}\" takes no checkpoints"),
            ),
            Fence::FutureGeneration => Problem::new(
                ErrorCode::MetadataStale,
                format!("generation {generation} of job \"{job}\" is not known here yet"),
            ),
            Fence::WorkerEpoch => Problem::new(
                ErrorCode::FencedWorkerEpoch,
                format!("worker {worker} at epoch {epoch} runs nothing of job \"{job}\""),
            ),
        })
    }
}

impl Actor for CheckpointActor {
    type Context = Context<CheckpointActor>;

    fn started(&mut self, ctx: &mut Context<CheckpointActor>) {
        ctx.set_mailbox_capacity(JOB_MAILBOX);
    }
}

impl Handler<TakeCheckpoints> for CheckpointActor {
    type Result = ();

    fn handle(&mut self, order: TakeCheckpoints, ctx: &mut Context<CheckpointActor>) {
        let event = match order {
            TakeCheckpoints::Off => Event::Halt,
            TakeCheckpoints::Of {
                generation,
                team,
                pace,
                kind,
                completed,
            } => {
                self.happen(Event::Paced(pace), ctx);
                Event::Run {
                    generation,
                    team,
                    kind,
                    completed,
                }
            }
        };
        self.happen(event, ctx);
    }
}

impl Handler<WantCheckpoint> for CheckpointActor {
    type Result = ();

    fn handle(&mut self, wanted: WantCheckpoint, ctx: &mut Context<CheckpointActor>) {
        let WantCheckpoint(generation) = wanted;
        self.happen(Event::Wanted { generation }, ctx);
    }
}

impl Handler<HurryCheckpoint> for CheckpointActor {
    type Result = MessageResult<HurryCheckpoint>;

    fn handle(
        &mut self,
        HurryCheckpoint(generation): HurryCheckpoint,
        ctx: &mut Context<CheckpointActor>,
    ) -> MessageResult<HurryCheckpoint> {
        let last = self.machine.last_given();
        self.happen(Event::Wanted { generation }, ctx);
        MessageResult(last)
    }
}

impl Handler<Acknowledge> for CheckpointActor {
    type Result = Result<Acknowledged, Problem>;

    fn handle(
        &mut self,
        Acknowledge(ack): Acknowledge,
        ctx: &mut Context<CheckpointActor>,
    ) -> Result<Acknowledged, Problem> {
        self.check(ack.generation, ack.worker, ack.worker_epoch)?;
        let event = Event::Acknowledged {
            worker: ack.worker,
            generation: ack.generation,
            checkpoint: ack.checkpoint,
            tasks: ack.tasks,
        };
        self.happen(event, ctx);
        Ok(Acknowledged {})
    }
}

impl Handler<Hold> for CheckpointActor {
    type Result = Result<Acknowledged, Problem>;

    fn handle(
        &mut self,
        Hold(ack): Hold,
        ctx: &mut Context<CheckpointActor>,
    ) -> Result<Acknowledged, Problem> {
        self.check(ack.generation, ack.worker, ack.worker_epoch)?;
        let event = Event::Held {
            worker: ack.worker,
            generation: ack.generation,
            held: ack.held,
        };
        self.happen(event, ctx);
        Ok(Acknowledged {})
    }
}

impl Handler<Decline> for CheckpointActor {
    type Result = Result<Acknowledged, Problem>;

    fn handle(
        &mut self,
        Decline(decline): Decline,
        ctx: &mut Context<CheckpointActor>,
    ) -> Result<Acknowledged, Problem> {
        self.check(decline.generation, decline.worker, decline.worker_epoch)?;
        let event = Event::Declined {
            worker: decline.worker,
            generation: decline.generation,
            checkpoint: decline.checkpoint,
            reason: decline.reason,
        };
        self.happen(event, ctx);
        Ok(Acknowledged {})
    }
}

impl Handler<ListRecords> for CheckpointActor {
    type Result = Vec<DatedRecord>;

    fn handle(&mut self, _: ListRecords, _: &mut Context<CheckpointActor>) -> Vec<DatedRecord> {
        let (now, wall) = (self.now(), self.clock.wall());
        let records = self.machine.history().records();
        records
            .map(|record| DatedRecord {
                record: record.clone(),
                triggered_at: wall.minus(now.since(record.triggered)),
            })
            .collect()
    }
}
