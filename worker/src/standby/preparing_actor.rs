//! The shell that prepares the tasks of a job's next division here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use common::ids::TaskId;
use tracing::{error, info, warn};

use super::actor::StandbyActor;
use super::copies::Copies;
use super::preparing::{Step, successor};
use super::successors::{Effect, Event, Prepared, SuccessorsMachine};
use crate::checkpoint::state_error::StateError;
use crate::checkpoint::succession::Successor;
use crate::job::assignment::successors_here;

/// The tasks of the next division that are prepared here.
#[derive(Debug, Default)]
pub(super) struct Successors {
    machine: SuccessorsMachine,
    tasks: BTreeMap<TaskId, Arc<Successor>>,
    timer: bool,
}

impl Successors {
    /// Whether a task's state goes into one of them.
    pub(super) fn are_made_of(&self, task: TaskId) -> bool {
        self.predecessors().any(|of| of == task)
    }

    fn predecessors(&self) -> impl Iterator<Item = TaskId> + '_ {
        let shares = self.tasks.values().flat_map(|of| &of.shares);
        shares.map(|share| share.of)
    }
}

impl StandbyActor {
    /// Prepares what is to be prepared here now, and nothing else.
    pub(super) fn prepare(&mut self, context: &mut Context<Self>) {
        let here = successors_here(&self.deployment, self.services.session.worker);
        let successors = here.into_iter().map(|task| {
            let known = self.successors.tasks.get(&task).cloned();
            let successor = known.unwrap_or_else(|| Arc::new(successor(&self.deployment, task)));
            (task, successor)
        });
        self.successors.tasks = successors.collect();
        if self.successors.tasks.is_empty() {
            self.store.await_no_successors();
        } else {
            info!(
                job = %self.deployment.name, generation = %self.deployment.generation,
                tasks = self.successors.tasks.len(), "preparing the next division",
            );
        }
        let copies = self.copies();
        let (history, generation) = (copies.history(), self.deployment.generation);
        let prepared = self.successors.tasks.iter().map(|(task, of)| Prepared {
            task: *task,
            predecessors: of.shares.iter().map(|share| share.of).collect(),
            held: self.store.held(*task, generation, &history),
        });
        let prepared = Event::Prepare(prepared.collect());
        self.happen_to_successors(prepared, context);
        self.grow(context);
    }

    /// There may be more here of those that successors are made of.
    pub(super) fn grow(&mut self, context: &mut Context<Self>) {
        if self.successors.tasks.is_empty() {
            return;
        }
        let copies = self.copies();
        let (history, generation) = (copies.history(), self.deployment.generation);
        let predecessors: BTreeSet<TaskId> = self.successors.predecessors().collect();
        let held = predecessors.into_iter().filter_map(|task| {
            let held = self.store.held(task, generation, &history)?;
            Some((task, held))
        });
        let grown = Event::Grown {
            held: held.collect(),
            completed: copies.facts.as_ref().and_then(|facts| facts.completed),
        };
        self.happen_to_successors(grown, context);
    }

    fn happen_to_successors(&mut self, event: Event, context: &mut Context<Self>) {
        let now = self.services.clock.tick();
        for effect in self.successors.machine.handle(now, event) {
            match effect {
                Effect::Begin { task, at } => {
                    let successor = self.successors.tasks[&task].clone();
                    self.step(context, move |copies| copies.begin(&successor, at));
                }
                Effect::GoOn { task, at } => {
                    let successor = self.successors.tasks[&task].clone();
                    self.step(context, move |copies| copies.go_on(&successor, at));
                }
                Effect::Advance(tasks) => {
                    let successors = self.successors.tasks.clone();
                    self.step(context, move |copies| copies.advance(&successors, tasks));
                }
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

    fn step(
        &self,
        context: &mut Context<Self>,
        work: impl FnOnce(&Copies) -> Step + Send + 'static,
    ) {
        let copies = self.copies();
        let working = tokio::task::spawn_blocking(move || work(&copies));
        let worked = working.into_actor(self).map(|step, actor, context| {
            let Step { reached, errors } = step.expect("preparing a task does not panic");
            judge(&errors);
            actor.happen_to_successors(Event::Reached(reached), context);
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
