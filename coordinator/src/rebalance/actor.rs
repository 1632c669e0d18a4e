//! Looks at the cluster every now and then, and proposes what its machine decides.

use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, WrapFuture};
use tokio::sync::watch;
use tracing::{info, warn};

use common::config::coordinator::Rebalance as Mode;
use common::time::{Clock, Span};

use super::machine::RebalanceMachine;
use super::status::{State, Status};
use crate::controller::Controller;
use crate::metadata::command::Command;

const LOOK_EVERY: Span = Span::from_millis(500);

/// A handle on what it says of itself.
#[derive(Clone, Debug)]
pub struct Rebalance {
    status: watch::Receiver<Status>,
}

impl Rebalance {
    /// Starts the actor on this arbiter, if anything is to be done without being asked.
    pub fn start(mode: Mode, controller: Controller, clock: Arc<dyn Clock>) -> Rebalance {
        let (status, receiver) = watch::channel(Status::manual());
        match mode {
            Mode::Manual => {}
            Mode::Auto => {
                RebalanceActor {
                    machine: RebalanceMachine::default(),
                    controller,
                    clock,
                    status,
                    proposing: false,
                }
                .start();
            }
        }
        Rebalance { status: receiver }
    }

    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }
}

#[derive(Debug)]
struct RebalanceActor {
    machine: RebalanceMachine,
    controller: Controller,
    clock: Arc<dyn Clock>,
    status: watch::Sender<Status>,
    /// Commands are on their way; what they change is looked at again afterwards.
    proposing: bool,
}

impl RebalanceActor {
    fn look(&mut self, context: &mut Context<RebalanceActor>) {
        if self.proposing {
            return;
        }
        let now = self.clock.tick();
        let machine = &mut self.machine;
        let view = self.controller.view();
        let decision = view.read(|metadata| machine.look(now, metadata));
        self.tell(decision.status);
        if !decision.commands.is_empty() {
            self.propose(decision.commands, context);
        }
    }

    fn tell(&self, status: Status) {
        let before = self.status.borrow().state;
        match status.state {
            State::Moving if before != State::Moving => info!("making the cluster even"),
            State::Balanced if before == State::Moving => info!("the cluster is even"),
            State::Manual | State::Moving | State::Waiting | State::Balanced => {}
        }
        self.status.send_replace(status);
    }

    fn propose(&mut self, commands: Vec<Command>, context: &mut Context<RebalanceActor>) {
        self.proposing = true;
        let controller = self.controller.clone();
        let proposals = async move {
            for command in commands {
                log(&command);
                // A rejection says that the facts have moved on; what is to be done now is seen then.
                if let Err(error) = controller.propose(command).await {
                    warn!(%error, "not moved");
                }
            }
        };
        context.spawn(proposals.into_actor(self).map(|(), actor, _| {
            actor.proposing = false;
        }));
    }
}

fn log(command: &Command) {
    match command {
        Command::MoveReplica {
            id,
            partition,
            target,
            ..
        } => info!(topic = %id, %partition, ?target, "moving a replica"),
        Command::Divide {
            job,
            division: Some(division),
            ..
        } => info!(%job, places = ?division.places, "moving tasks"),
        Command::Divide {
            job,
            division: None,
            ..
        } => info!(%job, "its tasks stay where they are: what was begun is taken back"),
        Command::AssignStandbys { job, standbys, .. } => {
            info!(%job, ?standbys, "moving standbys");
        }
        other => info!(command = ?other, "proposing"),
    }
}

impl Actor for RebalanceActor {
    type Context = Context<RebalanceActor>;

    fn started(&mut self, context: &mut Self::Context) {
        self.look(context);
        context.run_interval(LOOK_EVERY.as_duration(), RebalanceActor::look);
    }
}
