//! What preparing the tasks of a job's next division does on the disk and in memory, step by step. All steps block.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::ids::{CheckpointId, NodeId, TaskId};
use common::plan::redistribution;
use common::protocol::task::Deployment;

use super::copies::Copies;
use super::successors::{Event, Prepared, Step};
use crate::checkpoint::state_error::StateError;
use crate::checkpoint::succession::{Advance, Successor};
use crate::job::assembly;
use crate::job::assignment::{is_to_run_here, successors_here};
use crate::source;
use crate::task::task_state;

/// The tasks of the next division that are prepared here, and what each is made of.
pub type Successors = BTreeMap<TaskId, Arc<Successor>>;

/// What a step came to: how far its tasks are now, and what went wrong.
#[derive(Debug, Default)]
pub struct Reached {
    pub tasks: BTreeMap<TaskId, Option<CheckpointId>>,
    pub errors: Vec<StateError>,
}

/// What is to be prepared on a worker. `known`: what was until now.
pub fn successors(deployment: &Deployment, me: NodeId, known: &Successors) -> Successors {
    let here = successors_here(deployment, me).into_iter();
    here.map(|task| {
        let known = known.get(&task).cloned();
        (
            task,
            known.unwrap_or_else(|| Arc::new(successor(deployment, task))),
        )
    })
    .collect()
}

/// The tasks that these are made of.
pub fn predecessors(successors: &Successors) -> BTreeSet<TaskId> {
    let shares = successors.values().flat_map(|of| &of.shares);
    shares.map(|share| share.of).collect()
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

impl Copies {
    /// How far successors are here from before.
    pub fn prepared(&self, successors: &Successors) -> Event {
        let (generation, history) = (self.deployment.generation, self.history());
        let prepared = successors.iter().map(|(task, of)| Prepared {
            task: *task,
            predecessors: of.shares.iter().map(|share| share.of).collect(),
            held: self.store.held(*task, generation, &history),
        });
        Event::Prepare(prepared.collect())
    }

    /// How much is here of those that successors are made of.
    pub fn grown(&self, successors: &Successors) -> Event {
        let (generation, history) = (self.deployment.generation, self.history());
        let held = predecessors(successors).into_iter().filter_map(|task| {
            let held = self.store.held(task, generation, &history)?;
            Some((task, held))
        });
        Event::Grown {
            held: held.collect(),
            completed: self.facts.as_ref().and_then(|facts| facts.completed),
        }
    }

    pub fn take(&self, successors: &Successors, step: Step) -> Reached {
        match step {
            Step::Begin { task, at } => self.begin(&successors[&task], at),
            Step::GoOn { task, at } => self.go_on(&successors[&task], at),
            Step::Advance(tasks) => self.advance(successors, tasks),
        }
    }

    /// Makes all of a successor at a completed checkpoint.
    fn begin(&self, successor: &Successor, at: CheckpointId) -> Reached {
        let (generation, history) = (self.deployment.generation, self.history());
        let begun = self
            .store
            .begin_successor(generation, successor, at, &history);
        let mut reached = Reached::default();
        reached.settle(successor.task, begun.map(|()| at), None);
        self.make_ready(successor, &mut reached);
        reached
    }

    /// Goes on with a successor that is here from before.
    fn go_on(&self, successor: &Successor, at: CheckpointId) -> Reached {
        let generation = self.deployment.generation;
        let gone_on = self.store.go_on_with_successor(generation, successor, at);
        let mut reached = Reached::default();
        reached.settle(successor.task, gone_on.map(|()| at), None);
        self.make_ready(successor, &mut reached);
        reached
    }

    /// Takes successors from one checkpoint to another, each.
    fn advance(
        &self,
        successors: &Successors,
        tasks: Vec<(TaskId, CheckpointId, CheckpointId)>,
    ) -> Reached {
        let (store, generation) = (&self.store, self.deployment.generation);
        let history = self.history();
        let mut reached = Reached::default();
        let (mut advancing, mut chunks) = (Vec::new(), Vec::new());
        for (task, from, to) in tasks {
            let successor = &*successors[&task];
            match store.advance_of_successor(generation, successor, from, to, &history) {
                Ok(Advance::By(of_task)) => {
                    let last = of_task.last().expect("it gets further by something");
                    advancing.push((successor, from, last.checkpoint));
                    chunks.extend(of_task);
                }
                Ok(Advance::Later) => drop(reached.tasks.insert(task, Some(from))),
                Ok(Advance::Gap) => drop(reached.tasks.insert(task, None)),
                Err(error) => reached.settle(task, Err(error), Some(from)),
            }
        }
        let getting: Vec<&Successor> = advancing.iter().map(|(of, _, _)| *of).collect();
        if let Err(error) = store.advance_successors(generation, &getting, &chunks) {
            reached.errors.push(error);
            let stay = advancing.iter().map(|(of, from, _)| (of.task, Some(*from)));
            reached.tasks.extend(stay);
            return reached;
        }
        for (successor, from, to) in advancing {
            let held = self.catch_up(successor.task, from).map(|()| to);
            reached.settle(successor.task, held, Some(from));
            self.view_if_cold(successor, &mut reached);
        }
        reached
    }

    /// Brings a successor's tables into memory if there is room, and else into a view: either way its task begins at once.
    fn make_ready(&self, successor: &Successor, reached: &mut Reached) {
        if reached.errors.is_empty() {
            if !self.is_hot(successor.task) {
                self.warm_up(successor.task);
            }
            self.view_if_cold(successor, reached);
        }
    }

    /// Where it is to run. Without it everything is as safe, and the job waits for longer.
    fn view_if_cold(&self, successor: &Successor, reached: &mut Reached) {
        let task = successor.task;
        let spills =
            || !assembly::spilling(self.deployment.stage_of(task), &self.custom).is_empty();
        let is_ready = self.is_hot(task) || self.store.has_view(task);
        if !is_ready && is_to_run_here(&self.deployment, self.me, task) && spills() {
            let viewed = self.store.view_successor(successor);
            reached.errors.extend(viewed.err());
        }
    }
}

impl Reached {
    /// `otherwise`: what there is if the step has failed.
    fn settle(
        &mut self,
        task: TaskId,
        held: Result<CheckpointId, StateError>,
        otherwise: Option<CheckpointId>,
    ) {
        let reached = match held {
            Ok(held) => Some(held),
            Err(error) => {
                self.errors.push(error);
                otherwise
            }
        };
        self.tasks.insert(task, reached);
    }
}
