//! What preparing the tasks of a job's next division does on the disk and in memory, step by step. All steps block.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::ids::{CheckpointId, TaskId};
use common::plan::redistribution;
use common::protocol::task::Deployment;

use super::copies::Copies;
use crate::checkpoint::state_error::StateError;
use crate::checkpoint::succession::{Advance, Successor};
use crate::source;
use crate::task::task_state;

/// What a step came to: how far its tasks are now, and what went wrong.
#[derive(Debug, Default)]
pub struct Step {
    pub reached: BTreeMap<TaskId, Option<CheckpointId>>,
    pub errors: Vec<StateError>,
}

/// A task of the next division, and what it is made of.
pub fn successor(deployment: &Deployment, task: TaskId) -> Successor {
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
    /// Makes all of a successor at a completed checkpoint, on the disk and, if there is room, in memory.
    pub fn begin(&self, successor: &Successor, at: CheckpointId) -> Step {
        let (generation, history) = (self.deployment.generation, self.history());
        let begun = self
            .store
            .begin_successor(generation, successor, at, &history);
        let mut step = Step::default();
        step.settle(successor.task, begun.map(|()| at), None);
        if step.errors.is_empty() {
            self.heat_successor(successor.task);
        }
        step
    }

    /// Goes on with a successor that is here from before.
    pub fn go_on(&self, successor: &Successor, at: CheckpointId) -> Step {
        let generation = self.deployment.generation;
        self.store.go_on_with_successor(generation, successor, at);
        self.heat_successor(successor.task);
        Step {
            reached: [(successor.task, Some(at))].into(),
            errors: Vec::new(),
        }
    }

    /// Takes successors from one checkpoint to another, each.
    pub fn advance(
        &self,
        successors: &BTreeMap<TaskId, Arc<Successor>>,
        tasks: Vec<(TaskId, CheckpointId, CheckpointId)>,
    ) -> Step {
        let (store, generation) = (&self.store, self.deployment.generation);
        let history = self.history();
        let mut step = Step::default();
        let (mut advancing, mut chunks) = (Vec::new(), Vec::new());
        for (task, from, to) in tasks {
            let successor = &*successors[&task];
            match store.advance_of_successor(generation, successor, from, to, &history) {
                Ok(Advance::By(chunk)) => {
                    advancing.push((successor, from));
                    chunks.push(chunk);
                }
                Ok(Advance::Later) => drop(step.reached.insert(task, Some(from))),
                Ok(Advance::Gap) => drop(step.reached.insert(task, None)),
                Err(error) => step.settle(task, Err(error), Some(from)),
            }
        }
        let getting: Vec<&Successor> = advancing.iter().map(|(successor, _)| *successor).collect();
        if let Err(error) = store.advance_successors(generation, &getting, &chunks) {
            step.errors.push(error);
            let stay = advancing.iter().map(|(of, from)| (of.task, Some(*from)));
            step.reached.extend(stay);
            return step;
        }
        for ((successor, from), chunk) in advancing.iter().zip(&chunks) {
            let caught_up = self.catch_up(successor.task, *from);
            let held = caught_up.map(|()| chunk.checkpoint);
            step.settle(successor.task, held, Some(*from));
        }
        step
    }

    fn heat_successor(&self, task: TaskId) {
        if !self.is_hot(task) {
            self.warm_up(task);
        }
    }
}

impl Step {
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
        self.reached.insert(task, reached);
    }
}
