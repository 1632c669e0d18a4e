//! The shell that prepares the tasks of a job's next division here.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use common::ids::TaskId;
use tracing::{error, info, warn};

use super::actor::StandbyActor;
use super::preparing::{self, Reached, predecessors};
use super::successors::{Effect, Event, Step, SuccessorsMachine};
use crate::checkpoint::state_error::StateError;

/// The tasks of the next division that are prepared here.
#[derive(Debug, Default)]
pub(super) struct Successors {
    machine: SuccessorsMachine,
    tasks: Arc<preparing::Successors>,
    timer: bool,
}

impl Successors {
    /// The tasks that they are made of.
    pub(super) fn predecessors(&self) -> BTreeSet<TaskId> {
        predecessors(&self.tasks)
    }
}

impl StandbyActor {
    /// Prepares what is to be prepared here now, and nothing else.
    pub(super) fn prepare(&mut self, context: &mut Context<Self>) {
        let (me, known) = (self.services.session.worker, &self.successors.tasks);
        let tasks = preparing::successors(&self.deployment, me, known);
        self.successors.tasks = Arc::new(tasks);
        if self.successors.tasks.is_empty() {
            self.store.await_no_successors();
        } else {
            info!(
                job = %self.deployment.name, generation = %self.deployment.generation,
                tasks = self.successors.tasks.len(), "preparing the next division",
            );
        }
        let prepared = self.copies().prepared(&self.successors.tasks);
        self.happen_to_successors(prepared, context);
        self.grow(context);
    }

    /// There may be more here of those that successors are made of.
    pub(super) fn grow(&mut self, context: &mut Context<Self>) {
        if !self.successors.tasks.is_empty() {
            let grown = self.copies().grown(&self.successors.tasks);
            self.happen_to_successors(grown, context);
        }
    }

    fn happen_to_successors(&mut self, event: Event, context: &mut Context<Self>) {
        let now = self.services.clock.tick();
        for effect in self.successors.machine.handle(now, event) {
            match effect {
                Effect::Take(step) => self.step(step, context),
                Effect::Acknowledge(held) => self.acknowledge(held, context),
            }
        }
        let wake_at = self.successors.machine.wake_at();
        if let Some(at) = wake_at.filter(|_| !self.successors.timer) {
            self.successors.timer = true;
            context.run_later(at.since(now).as_duration(), |actor, context| {
                actor.successors.timer = false;
                actor.happen_to_successors(Event::TimePassed, context);
            });
        }
    }

    fn step(&self, step: Step, context: &mut Context<Self>) {
        let (copies, successors) = (self.copies(), self.successors.tasks.clone());
        // A checkpoint waits for this once everything is prepared, and before that for the log it writes to; nobody
        // waits for the rest.
        let is_urgent = matches!(step, Step::Advance(_));
        let work = move || copies.take(&successors, step);
        let working = match is_urgent {
            true => tokio::task::spawn_blocking(work),
            false => self.services.threads.background().run(work),
        };
        let worked = working.into_actor(self).map(|reached, actor, context| {
            let Reached { tasks, errors } = reached.expect("preparing a task does not panic");
            judge(&errors);
            actor.happen_to_successors(Event::Reached(tasks), context);
        });
        context.spawn(worked);
    }
}

/// As when a checkpoint cannot be written: after some errors nothing here can be relied upon any more.
fn judge(errors: &[StateError]) {
    for error in errors {
        if error.is_fatal() {
            error!(%error, "a task that is prepared cannot be written; the worker ends");
            std::process::abort();
        }
        warn!(%error, "a task is not prepared yet");
    }
}
