//! The shell that prepares the tasks of a job's next division here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use common::ids::{CheckpointId, TaskId};
use common::plan::redistribution;
use common::protocol::task::Deployment;
use tracing::{error, info, warn};

use super::actor::StandbyActor;
use super::copies::Copies;
use super::successors::{Effect, Event, Prepared, SuccessorsMachine};
use crate::checkpoint::state_error::StateError;
use crate::checkpoint::succession::{Advance, Successor};
use crate::job::assignment::successors_here;
use crate::source;
use crate::task::task_state;

/// The tasks of the next division that are prepared here.
#[derive(Debug, Default)]
pub(super) struct Successors {
    machine: SuccessorsMachine,
    tasks: BTreeMap<TaskId, Arc<Successor>>,
    timer: bool,
}

/// What a step came to, by task.
type Reached = BTreeMap<TaskId, Option<CheckpointId>>;

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
        let prepared = self.successors.tasks.iter().map(|(task, of)| Prepared {
            task: *task,
            predecessors: of.shares.iter().map(|share| share.of).collect(),
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
                    self.step(context, move |copies| {
                        let held = begin(copies, &successor, at);
                        [(task, settle(held, None))].into()
                    });
                }
                Effect::Advance(tasks) => {
                    let successors = self.successors.tasks.clone();
                    self.step(context, move |copies| advance(copies, &successors, tasks));
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
        work: impl FnOnce(&Copies) -> Reached + Send + 'static,
    ) {
        let copies = self.copies();
        let working = tokio::task::spawn_blocking(move || work(&copies));
        let worked = working.into_actor(self).map(|reached, actor, context| {
            let reached = reached.expect("preparing a task does not panic");
            actor.happen_to_successors(Event::Reached(reached), context);
        });
        context.spawn(worked);
    }
}

/// Brings a successor to a completed checkpoint, on the disk and, if there is room, in memory. Blocks.
fn begin(
    copies: &Copies,
    successor: &Successor,
    at: CheckpointId,
) -> Result<Option<CheckpointId>, StateError> {
    let (store, generation) = (&copies.store, copies.deployment.generation);
    let history = copies.history();
    let held = store.held(successor.task, generation, &history);
    let held = match held.filter(|held| *held >= at) {
        Some(held) => {
            store.go_on_with_successor(generation, successor, held);
            held
        }
        None => {
            store.begin_successor(generation, successor, at, &history)?;
            at
        }
    };
    if !copies.is_hot(successor.task) {
        copies.warm_up(successor.task);
    }
    Ok(Some(held))
}

/// Takes successors from one checkpoint to another, each. Blocks.
fn advance(
    copies: &Copies,
    successors: &BTreeMap<TaskId, Arc<Successor>>,
    tasks: Vec<(TaskId, CheckpointId, CheckpointId)>,
) -> Reached {
    let (store, generation) = (&copies.store, copies.deployment.generation);
    let mut reached = Reached::new();
    let (mut advancing, mut chunks) = (Vec::new(), Vec::new());
    for (task, from, to) in tasks {
        let successor = &*successors[&task];
        let history = copies.history();
        match store.advance_of_successor(generation, successor, from, to, &history) {
            Ok(Advance::By(chunk)) => {
                advancing.push((successor, from));
                chunks.push(chunk);
            }
            Ok(Advance::Later) => drop(reached.insert(task, Some(from))),
            Ok(Advance::Gap) => drop(reached.insert(task, None)),
            Err(error) => drop(reached.insert(task, settle(Err(error), Some(from)))),
        }
    }
    let getting: Vec<&Successor> = advancing.iter().map(|(successor, _)| *successor).collect();
    let advanced = store.advance_successors(generation, &getting, &chunks);
    if let Err(error) = advanced {
        settle(Err(error), None);
        reached.extend(advancing.iter().map(|(of, from)| (of.task, Some(*from))));
        return reached;
    }
    for ((successor, from), chunk) in advancing.iter().zip(&chunks) {
        let caught_up = copies.catch_up(successor.task, *from);
        let held = caught_up.map(|()| Some(chunk.checkpoint));
        reached.insert(successor.task, settle(held, Some(*from)));
    }
    reached
}

/// `otherwise`: what there is if the step has failed.
fn settle(
    held: Result<Option<CheckpointId>, StateError>,
    otherwise: Option<CheckpointId>,
) -> Option<CheckpointId> {
    match held {
        Ok(held) => held,
        Err(error) if error.is_fatal() => {
            // As when a checkpoint cannot be written: nothing here can be relied upon any more.
            error!(%error, "a task that is prepared cannot be written; the worker ends");
            std::process::abort();
        }
        Err(error) => {
            warn!(%error, "a task is not prepared yet");
            otherwise
        }
    }
}

fn successor(deployment: &Deployment, task: TaskId) -> Successor {
    let next = deployment.next.as_ref();
    let next = next.expect("a task is prepared for a next division");
    let stage = next.graph.stage(task.stage);
    let (source, index, parallelism) = (stage.source.clone(), task.index, stage.parallelism);
    Successor {
        task,
        shares: redistribution::shares(&deployment.graph, &next.graph, task),
        is_own: task_state::is_own,
        inherit: Arc::new(move |of| {
            let is_dealt = |split: &str| {
                let spec = source.as_ref().map(|planned| &planned.spec);
                spec.is_some_and(|spec| source::is_dealt(spec, split, index, parallelism))
            };
            task_state::inherit(of, &is_dealt)
        }),
    }
}
