//! How a running job comes to be divided into tasks in another way.
//!
//! The tasks it is to have are placed, and prepared where they are to run, beside those that run. Once a
//! completed checkpoint is there of each, the next one is the last of the old division, and the generation after it
//! begins with the new one. What goes wrong on the way costs a recovery like any other, in the old division.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{NodeId, TaskId};
use common::limits::CUT_OVER_TIMEOUT;
use common::protocol::job::JobState;
use common::protocol::task::{Standbys, TaskAssignment};
use common::time::Tick;

use super::facts::{NextTasks, Proposal, Wanted};
use super::machine::{Draining, JobMachine};
use crate::metadata::division::Dividing;
use crate::placement::standbys;
use crate::placement::tasks::{Problem, Unplaceable, place};

impl JobMachine {
    /// The next step towards the division that is wanted.
    pub(super) fn divide(&self) -> Option<Proposal> {
        let wanted = self.facts.wanted.as_ref()?;
        let running = self.facts.running.as_ref()?;
        let generation = self.facts.generation;
        if self.facts.completed.is_none() {
            // There is nothing to be taken along.
            let next = self.place_next(wanted).ok()?;
            return Some(self.begin_divided(next));
        }
        match &running.next {
            Some(next) if self.can_be_used(next) => {
                let ready = !self.facts.cutting_over && self.is_prepared(wanted, next);
                ready.then_some(Proposal::CutOver { generation })
            }
            Some(_) | None => {
                let next = self.place_next(wanted).ok()?;
                let standbys = self.with_predecessors(Standbys::new(), Some(&next));
                let standbys = merged(standbys, &running.standbys);
                Some(Proposal::Prepare {
                    generation,
                    next,
                    standbys,
                })
            }
        }
    }

    /// Why the tasks of the division that is wanted cannot be placed now.
    pub fn undividable(&self) -> Option<Unplaceable> {
        let wanted = self.facts.wanted.as_ref()?;
        let running = self.facts.running.as_ref()?;
        match &running.next {
            Some(next) if self.can_be_used(next) => None,
            Some(_) | None => self.place_next(wanted).err(),
        }
    }

    /// The last checkpoint of the old division is complete, and what belongs to it is visible: everything is where it is
    /// to run.
    pub(super) fn take_division(&self) -> Option<Proposal> {
        let next = self.facts.running.as_ref()?.next.clone()?;
        Some(self.begin_divided(next))
    }

    /// Why a cut-over that has begun will not end, if so. Whether it is worth another attempt.
    pub(super) fn failed_cut_over(&self, now: Tick) -> Option<(String, Dividing)> {
        let running = self.facts.running.as_ref()?;
        if !self.facts.cutting_over {
            return None;
        }
        let late = now >= self.cut_over_ends()?;
        let Some(next) = &running.next else {
            let reason = format!(
                "the last checkpoint before its tasks move took longer than {CUT_OVER_TIMEOUT}"
            );
            return late.then_some((reason, Dividing::AsBefore));
        };
        if let Some(gone) = next
            .tasks
            .iter()
            .find(|of| !self.workers.contains_key(&of.worker))
        {
            let TaskAssignment { task, worker } = gone;
            let reason = format!("worker {worker}, where task {task} was prepared, is gone");
            return Some((reason, Dividing::AsBefore));
        }
        late.then(|| {
            let reason =
                format!("the change to {} tasks was given up: its cut-over took longer than {CUT_OVER_TIMEOUT}", next.tasks.len());
            (reason, Dividing::GivenUp)
        })
    }

    pub(super) fn cut_over_ends(&self) -> Option<Tick> {
        Some(self.cutting_since?.plus(CUT_OVER_TIMEOUT))
    }

    /// Who stands by, and besides them those who need a task's state for the division that is prepared.
    pub(super) fn with_predecessors(
        &self,
        mut chosen: Standbys,
        next: Option<&NextTasks>,
    ) -> Standbys {
        let (Some(wanted), Some(next)) = (&self.facts.wanted, next) else {
            return chosen;
        };
        let Some(running) = &self.facts.running else {
            return chosen;
        };
        for (task, places) in next.places(&wanted.shape) {
            for of in &wanted.predecessors[&task] {
                if !self.facts.shape.has_state(*of) {
                    continue;
                }
                let standbys = chosen.entry(*of).or_default();
                for worker in &places {
                    if running.worker_of.get(of) != Some(worker) && !standbys.contains(worker) {
                        standbys.push(*worker);
                    }
                }
            }
        }
        chosen.retain(|_, standbys| !standbys.is_empty());
        chosen
    }

    fn begin_divided(&self, next: NextTasks) -> Proposal {
        let NextTasks { tasks, standbys } = next;
        let reason = match &self.facts.wanted {
            Some(wanted) if wanted.updates => "it is changed".to_owned(),
            Some(wanted) if !wanted.places.is_empty() => {
                "its tasks move to other workers".to_owned()
            }
            wanted => {
                let slots = wanted.as_ref().map(|of| of.shape.parallelism());
                format!("its parallelism changes to {}", slots.unwrap_or_default())
            }
        };
        Proposal::Start {
            generation: self.facts.generation,
            dividing: Dividing::Anew,
            tasks,
            standbys,
            state: JobState::Deploying,
            reason,
            failure: None,
        }
    }

    /// Where it is prepared everybody is there, and stays.
    fn can_be_used(&self, next: &NextTasks) -> bool {
        let run = next.tasks.iter().map(|assignment| &assignment.worker);
        let mut workers = run.chain(next.standbys.values().flatten());
        let stays = |worker: &NodeId| {
            let room = self.workers.get(worker);
            room.is_some_and(|room| !room.draining)
        };
        workers.all(stays) || self.facts.cutting_over
    }

    fn is_prepared(&self, wanted: &Wanted, next: &NextTasks) -> bool {
        let places = next.places(&wanted.shape);
        places.iter().all(|(task, workers)| {
            let holders = self.facts.holders.get(task);
            holders.is_some_and(|holders| workers.iter().all(|of| holders.contains(of)))
        })
    }

    /// Where it is said to go, and where state is already, if there is room; what comes of one task is spread.
    fn place_next(&self, wanted: &Wanted) -> Result<NextTasks, Unplaceable> {
        let running = self.facts.running.as_ref();
        let ran_on = |task: &TaskId| running.and_then(|running| running.worker_of.get(task));
        let mut taken = BTreeSet::new();
        let mut previous = BTreeMap::new();
        for (task, predecessors) in &wanted.predecessors {
            let free = |of: &&TaskId| !taken.contains(&(task.stage, **of));
            let Some(of) = predecessors.iter().find(free).copied() else {
                continue;
            };
            taken.insert((task.stage, of));
            previous.extend(ran_on(&of).map(|worker| (*task, *worker)));
        }
        previous.extend(&wanted.places);
        let tasks = place(&Problem {
            shape: wanted.shape.clone(),
            free_slots: self.free_slots(Draining::Avoided),
            carried: self.carried(),
            holders: BTreeMap::new(),
            previous,
        })?;
        let worker_of = tasks.iter().map(|of| (of.task, of.worker)).collect();
        let nobody = BTreeSet::new();
        let standbys = standbys::choose(&standbys::Problem {
            shape: &wanted.shape,
            count: self.settings.standbys,
            worker_of: &worker_of,
            free_slots: &self.free_slots(Draining::Avoided),
            draining: &self.draining(),
            carried: &self.carried(),
            racks: &self.racks(),
            previous: &Standbys::new(),
            excused: &nobody,
            holders: &BTreeMap::new(),
        });
        Ok(NextTasks { tasks, standbys })
    }
}

/// All of both.
fn merged(mut standbys: Standbys, others: &Standbys) -> Standbys {
    for (task, workers) in others {
        let of_task = standbys.entry(*task).or_default();
        let missing = of_task.clone();
        *of_task = workers.clone();
        of_task.extend(
            missing
                .into_iter()
                .filter(|worker| !workers.contains(worker)),
        );
    }
    standbys
}
