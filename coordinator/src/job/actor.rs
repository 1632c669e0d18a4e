//! One per job: tells the job's machine what happens, and proposes what it decides.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::Stream;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use common::ids::{JobId, JobName, MetadataVersion};
use common::limits::JOB_MAILBOX;
use common::time::{Clock, Tick};

use super::facts::{Facts, Proposal, slots_by_job, workers_for};
use super::machine::{Checkpointing, Effect, Event, JobMachine, Settings};
use super::messages::{FinalCheckpointCompleted, JobFacts, Observe, TasksReported};
use super::observed::Observed;
use crate::checkpoint::actor::{CheckpointActor, TakeCheckpoints, WantCheckpoint};
use crate::checkpoint::machine::Pace;
use crate::controller::Controller;
use crate::metadata::jobs::JobRow;
use crate::metadata_log::ProposeError;

#[derive(Debug)]
pub(crate) struct JobActor {
    job: JobId,
    name: JobName,
    controller: Controller,
    clock: Arc<dyn Clock>,
    checkpoints: Addr<CheckpointActor>,
    /// The version the machine's facts are of. What comes from an older one is late.
    version: MetadataVersion,
    facts: watch::Receiver<JobFacts>,
    machine: JobMachine,
    settings: Settings,
    pace: Pace,
    observed: Observed,
    timer: Option<SpawnHandle>,
}

impl JobActor {
    pub(crate) fn new(
        controller: Controller,
        clock: Arc<dyn Clock>,
        checkpoints: Addr<CheckpointActor>,
        facts: watch::Receiver<JobFacts>,
    ) -> JobActor {
        let known = facts.borrow().clone();
        let settings = settings_of(&known.row);
        let machine = JobMachine::new(
            clock.tick(),
            settings.clone(),
            Facts::of(&known.row),
            known.workers,
        );
        JobActor {
            job: known.row.id,
            name: known.row.name.clone(),
            controller,
            clock,
            checkpoints,
            version: known.version,
            facts,
            machine,
            settings,
            pace: Pace::of(&known.row),
            observed: Observed::default(),
            timer: None,
        }
    }

    fn now(&self) -> Tick {
        self.clock.tick()
    }

    fn happen(&mut self, event: Event, ctx: &mut Context<JobActor>) {
        let effects = self.machine.handle(self.now(), event);
        for effect in effects {
            match effect {
                Effect::Propose(proposal) => self.propose(proposal, ctx),
                Effect::Checkpoint(checkpointing) => self.take_checkpoints(checkpointing, ctx),
            }
        }
        self.set_timer(ctx);
    }

    fn learn(&mut self, facts: JobFacts, ctx: &mut Context<JobActor>) {
        if facts.version < self.version {
            return;
        }
        self.version = facts.version;
        // What ran last is shown until something runs again.
        if facts.row.deployment.is_some() {
            self.observed.follow(facts.row.generation);
        } else {
            self.observed.stand_still();
        }
        self.pace = Pace::of(&facts.row);
        let settings = settings_of(&facts.row);
        if settings != self.settings {
            self.settings = settings.clone();
            self.happen(Event::Configured(settings), ctx);
        }
        let event = Event::MetadataChanged {
            facts: Facts::of(&facts.row),
            workers: facts.workers,
        };
        self.happen(event, ctx);
    }

    fn propose(&mut self, proposal: Proposal, ctx: &mut Context<JobActor>) {
        self.log(&proposal);
        let division = self.facts.borrow().row.division.clone();
        let completed = self.machine.facts().completed;
        let command = proposal.into_command(self.job, completed, division.as_ref());
        let controller = self.controller.clone();
        let proposed = async move { controller.propose(command).await };
        ctx.spawn(proposed.into_actor(self).map(|result, actor, ctx| {
            let applied = match result {
                Ok(_) => true,
                Err(ProposeError::Rejected(rejection)) => {
                    debug!(job = %actor.name, %rejection, "the facts had changed");
                    false
                }
                Err(error) => {
                    warn!(job = %actor.name, %error, "a proposal did not come through");
                    false
                }
            };
            // The outcome is told together with the facts it made, before the machine goes on.
            match actor.read_facts() {
                Some(facts) => actor.learn(facts, ctx),
                None => return ctx.stop(),
            }
            let settled = match applied {
                true => Event::ProposalApplied,
                false => Event::ProposalRejected,
            };
            actor.happen(settled, ctx);
        }));
    }

    fn read_facts(&self) -> Option<JobFacts> {
        self.controller.view().read(|metadata| {
            let row = metadata.job(self.job).filter(|row| !row.deleted)?;
            Some(JobFacts {
                version: metadata.version(),
                row: Arc::clone(row),
                workers: workers_for(metadata, &slots_by_job(metadata), self.job),
            })
        })
    }

    fn take_checkpoints(&mut self, checkpointing: Checkpointing, ctx: &mut Context<JobActor>) {
        let of = |(generation, kind)| TakeCheckpoints::Of {
            generation,
            team: self.machine.team(),
            pace: self.pace,
            kind,
            completed: self.machine.facts().completed,
        };
        let order = checkpointing.of().map_or(TakeCheckpoints::Off, of);
        // Waits, so that a later order never overtakes this one.
        let told = self.checkpoints.send(order).into_actor(self);
        ctx.wait(told.map(|result, actor, _| {
            if result.is_err() {
                warn!(job = %actor.name, "the job's checkpoints have ended");
            }
        }));
    }

    fn set_timer(&mut self, ctx: &mut Context<JobActor>) {
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

    fn log(&self, proposal: &Proposal) {
        let job = &self.name;
        match proposal {
            Proposal::Start {
                generation,
                failure: Some(failure),
                ..
            } => warn!(%job, generation = %generation.next(), failure, "starting again"),
            Proposal::Start {
                generation,
                failure: None,
                ..
            } => info!(%job, generation = %generation.next(), "starting"),
            Proposal::Halt {
                generation,
                state,
                reason,
                ..
            } => info!(%job, %generation, ?state, reason, "halting"),
            Proposal::Run { generation } => info!(%job, %generation, "running"),
            Proposal::StandBy {
                generation,
                standbys,
            } => info!(%job, %generation, ?standbys, "standing by"),
            Proposal::Prepare {
                generation, next, ..
            } => info!(%job, %generation, tasks = next.tasks.len(), "preparing another division"),
            Proposal::CutOver { generation } => info!(%job, %generation, "cutting over"),
        }
    }
}

impl Actor for JobActor {
    type Context = Context<JobActor>;

    fn started(&mut self, ctx: &mut Context<JobActor>) {
        ctx.set_mailbox_capacity(JOB_MAILBOX);
        ctx.add_stream(changes(self.facts.clone()));
        let known = self.facts.borrow().clone();
        self.learn(known, ctx);
    }
}

impl StreamHandler<JobFacts> for JobActor {
    fn handle(&mut self, facts: JobFacts, ctx: &mut Context<JobActor>) {
        self.learn(facts, ctx);
    }

    /// The job is no longer in the metadata.
    fn finished(&mut self, ctx: &mut Context<JobActor>) {
        ctx.stop();
    }
}

impl Handler<TasksReported> for JobActor {
    type Result = ();

    fn handle(&mut self, reported: TasksReported, ctx: &mut Context<JobActor>) {
        let now = self.now();
        for report in &reported.tasks {
            self.observed.report(now, report);
        }
        if let Some(report) = reported.tasks.iter().find(|report| report.wants_checkpoint) {
            // One that is lost is followed by the next heartbeat's.
            drop(self.checkpoints.try_send(WantCheckpoint(report.generation)));
        }
        let tasks = reported.tasks.into_iter();
        let event = Event::TasksReported {
            worker: reported.worker,
            epoch: reported.epoch,
            tasks: tasks
                .map(|report| (report.generation, report.task, report.state))
                .collect(),
        };
        self.happen(event, ctx);
    }
}

impl Handler<FinalCheckpointCompleted> for JobActor {
    type Result = ();

    fn handle(&mut self, completed: FinalCheckpointCompleted, ctx: &mut Context<JobActor>) {
        let generation = completed.generation;
        self.happen(Event::FinalCheckpointCompleted { generation }, ctx);
    }
}

impl Handler<Observe> for JobActor {
    type Result = MessageResult<Observe>;

    fn handle(&mut self, _: Observe, _: &mut Context<JobActor>) -> MessageResult<Observe> {
        let obstacle = self.machine.undividable();
        let obstacle = obstacle.map(|unplaceable| unplaceable.to_string());
        MessageResult(self.observed.clone().with_obstacle(obstacle))
    }
}

fn settings_of(row: &JobRow) -> Settings {
    let config = &row.spec.config;
    Settings {
        restart_budget: config.restart_budget as usize,
        standbys: config.standbys as usize,
        ..Settings::default()
    }
}

/// The values of a watch, as they change; ends with its sender.
pub(crate) fn changes(facts: watch::Receiver<JobFacts>) -> Pin<Box<dyn Stream<Item = JobFacts>>> {
    Box::pin(futures_util::stream::unfold(facts, |mut facts| async {
        facts.changed().await.ok()?;
        let changed = facts.borrow_and_update().clone();
        Some((changed, facts))
    }))
}
