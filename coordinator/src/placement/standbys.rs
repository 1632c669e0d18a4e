//! Which workers stand by for each task of a job: keep its state, to be promoted when its worker is lost.
//!
//! Goals, in this order:
//! 1. Never the task's own worker: it would be lost with it. And only who could run the task.
//! 2. Who stands by already stays, as long as it is there: another one has to fetch everything. One that is to
//!    be emptied, or is one too many, goes when the others have it all; of too many the first ones stay. For a task
//!    whose own worker is to be emptied, one more stands by at least.
//! 3. Who holds the state already, as a worker that ran the task before does: also if it is gone just now, since it
//!    is back with all of it long before another one has fetched it.
//! 4. In another rack than the task's worker and its other standbys.
//! 5. Tasks of one instance have the same standby, so that they run side by side after a promotion, too.
//! 6. The fewest tasks stood by for, then the most free slots, then the next after its own worker, so that
//!    they go round.
//!
//! The same problem always has the same solution.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{NodeId, TaskId};
use common::protocol::task::Standbys;

use super::racks::Racks;
use super::tasks::{JobShape, carries};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem<'a> {
    pub shape: &'a JobShape,
    /// Standbys of each task, if there are so many workers.
    pub count: usize,
    pub worker_of: &'a BTreeMap<TaskId, NodeId>,
    /// The workers that may be given work, and the slots this job may use on each.
    pub free_slots: &'a BTreeMap<NodeId, u32>,
    /// Active workers that are to be emptied.
    pub draining: &'a BTreeSet<NodeId>,
    /// The custom operators that workers carry; one that is not named carries none.
    pub carried: &'a BTreeMap<NodeId, BTreeSet<String>>,
    pub racks: &'a Racks,
    /// Who stands by now.
    pub previous: &'a Standbys,
    /// Workers that have gone just now and may come back at once, with what they have.
    pub excused: &'a BTreeSet<NodeId>,
    /// Who has the state of the last completed checkpoint.
    pub holders: &'a BTreeMap<TaskId, Vec<NodeId>>,
}

/// Chooses the standbys of every task with state.
pub fn choose(problem: &Problem<'_>) -> Standbys {
    let mut chosen = Standbys::new();
    let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
    // Those that stay count before any other is chosen.
    for (task, _) in problem.tasks() {
        let previous = problem.previous.get(&task).into_iter().flatten();
        let stays = previous.filter(|worker| problem.may_stay(task, **worker));
        let stays: Vec<NodeId> = stays.take(problem.count_of(task)).copied().collect();
        for worker in &stays {
            *load.entry(*worker).or_default() += 1;
        }
        chosen.insert(task, stays);
    }
    let mut tasks: Vec<(TaskId, &BTreeSet<String>)> = problem.tasks().collect();
    tasks.sort_by_key(|(task, _)| (task.index, task.stage));
    let mut beside: (u32, BTreeSet<NodeId>) = (0, BTreeSet::new());
    for (task, custom) in tasks {
        if beside.0 != task.index {
            beside = (task.index, BTreeSet::new());
        }
        let own = problem.worker_of.get(&task);
        let mut of_task = chosen.remove(&task).unwrap_or_default();
        beside.1.extend(of_task.iter().copied());
        let count = problem.count_of(task);
        let holders = problem.holders.get(&task);
        let holds = |worker: &NodeId| holders.is_some_and(|holders| holders.contains(worker));
        while of_task.len() < count {
            let back_soon = problem.excused.iter().filter(|worker| holds(worker));
            let back_soon = back_soon.map(|worker| (worker, &0));
            let candidates = problem.free_slots.iter().chain(back_soon);
            let candidates = candidates.filter(|(worker, _)| {
                Some(*worker) != own
                    && !of_task.contains(worker)
                    && carries(problem.carried, **worker, custom)
            });
            let team: Vec<NodeId> = own.into_iter().chain(&of_task).copied().collect();
            let best = candidates.min_by_key(|(worker, free)| {
                let shared = problem.racks.shared(**worker, &team);
                let load = load.get(worker).copied().unwrap_or(0);
                let together = beside.1.contains(worker);
                let most_free = std::cmp::Reverse(**free);
                let distance = worker.0.wrapping_sub(own.map_or(0, |own| own.0));
                (!holds(worker), shared, !together, load, most_free, distance)
            });
            let Some((worker, _)) = best else { break };
            *load.entry(*worker).or_default() += 1;
            beside.1.insert(*worker);
            of_task.push(*worker);
        }
        let all_have_it = of_task.len() >= count && of_task.iter().all(holds);
        if !all_have_it {
            let previous = problem.previous.get(&task).into_iter().flatten();
            let here = |worker: &&NodeId| {
                problem.draining.contains(worker) || problem.free_slots.contains_key(worker)
            };
            let leaving = previous.filter(here).filter(|worker| Some(*worker) != own);
            for worker in leaving {
                if !of_task.contains(worker) {
                    of_task.push(*worker);
                }
            }
        }
        if !of_task.is_empty() {
            chosen.insert(task, of_task);
        }
    }
    chosen
}

impl Problem<'_> {
    /// The tasks with state, and the custom operators of each.
    fn tasks(&self) -> impl Iterator<Item = (TaskId, &BTreeSet<String>)> {
        let stages = self.shape.stages.iter().filter(|stage| stage.has_state);
        stages.flat_map(|stage| stage.tasks().map(move |task| (task, &stage.custom)))
    }

    fn count_of(&self, task: TaskId) -> usize {
        let own = self.worker_of.get(&task);
        let leaves = own.is_some_and(|own| self.draining.contains(own));
        self.count.max(usize::from(leaves))
    }

    fn may_stay(&self, task: TaskId, worker: NodeId) -> bool {
        let here = self.free_slots.contains_key(&worker) || self.excused.contains(&worker);
        here && self.worker_of.get(&task) != Some(&worker)
    }
}

#[cfg(test)]
mod tests {
    use common::ids::StageId;
    use proptest::prelude::*;

    use super::*;
    use crate::placement::tasks::StageShape;

    fn task(stage: u16, index: u32) -> TaskId {
        TaskId {
            stage: StageId(stage),
            index,
        }
    }

    /// A stage without state, then two with it.
    fn shape(parallelism: u32) -> JobShape {
        let stage = |id, has_state| StageShape {
            id: StageId(id),
            parallelism,
            has_state,
            has_source: id == 0,
            custom: BTreeSet::new(),
        };
        JobShape {
            stages: vec![stage(0, false), stage(1, true), stage(2, true)],
        }
    }

    struct Given {
        shape: JobShape,
        count: usize,
        worker_of: BTreeMap<TaskId, NodeId>,
        free_slots: BTreeMap<NodeId, u32>,
        draining: BTreeSet<NodeId>,
        racks: Racks,
        previous: Standbys,
        excused: BTreeSet<NodeId>,
        holders: BTreeMap<TaskId, Vec<NodeId>>,
    }

    impl Given {
        /// Instance `i` runs on worker `i + 1`.
        fn new(parallelism: u32, workers: u32) -> Given {
            let shape = shape(parallelism);
            let worker_of = shape.tasks().map(|task| (task, NodeId(task.index + 1)));
            Given {
                worker_of: worker_of.collect(),
                shape,
                count: 1,
                free_slots: (1..=workers).map(|worker| (NodeId(worker), 4)).collect(),
                draining: BTreeSet::new(),
                racks: Racks::default(),
                previous: Standbys::new(),
                excused: BTreeSet::new(),
                holders: BTreeMap::new(),
            }
        }

        fn choose(&self) -> Standbys {
            choose(&Problem {
                shape: &self.shape,
                count: self.count,
                worker_of: &self.worker_of,
                free_slots: &self.free_slots,
                draining: &self.draining,
                carried: &BTreeMap::new(),
                racks: &self.racks,
                previous: &self.previous,
                excused: &self.excused,
                holders: &self.holders,
            })
        }
    }

    #[test]
    fn a_standby_is_in_another_rack_if_there_is_one() {
        let mut given = Given::new(1, 4);
        let label = |worker: u32, rack| (NodeId(worker), Some(rack));
        let labels = [label(1, "a"), label(2, "a"), label(3, "a"), label(4, "b")];
        given.racks = Racks::of(labels.into_iter());
        given.count = 2;
        assert_eq!(given.choose()[&task(1, 0)], [NodeId(4), NodeId(2)]);
        // Who has the state already is not given up for it.
        given.holders = [(task(1, 0), vec![NodeId(1), NodeId(3)])].into();
        assert_eq!(given.choose()[&task(1, 0)], [NodeId(3), NodeId(4)]);
    }

    #[test]
    fn an_instance_has_one_standby_and_they_are_spread() {
        let chosen = Given::new(3, 3).choose();
        for index in 0..3 {
            assert_eq!(chosen[&task(1, index)], chosen[&task(2, index)]);
            assert!(!chosen.contains_key(&task(0, index)), "it has no state");
        }
        let all: BTreeSet<_> = chosen.values().flatten().collect();
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn a_worker_alone_has_no_standby() {
        assert!(Given::new(1, 1).choose().is_empty());
    }

    #[test]
    fn who_has_the_state_comes_before_who_has_room() {
        let mut given = Given::new(1, 3);
        given.free_slots.insert(NodeId(2), 9);
        assert_eq!(given.choose()[&task(1, 0)], [NodeId(2)]);
        given.holders.insert(task(1, 0), vec![NodeId(1), NodeId(3)]);
        assert_eq!(given.choose()[&task(1, 0)], [NodeId(3)]);
    }

    #[test]
    fn one_that_has_gone_just_now_is_waited_for() {
        let mut given = Given::new(1, 3);
        given.previous = given.choose();
        let standby = given.previous[&task(1, 0)][0];
        given.free_slots.remove(&standby);
        given.excused.insert(standby);
        assert_eq!(given.choose(), given.previous);
        given.excused.clear();
        assert_ne!(given.choose(), given.previous);
    }

    #[test]
    fn one_that_is_to_be_emptied_goes_when_another_one_has_it_all() {
        let mut given = Given::new(1, 3);
        given.previous = given.choose();
        let (of, leaves) = (task(1, 0), given.previous[&task(1, 0)][0]);
        given.free_slots.remove(&leaves);
        given.draining.insert(leaves);
        let both = given.choose();
        assert_eq!((both[&of].len(), both[&of].last()), (2, Some(&leaves)));
        given.previous = both.clone();
        assert_eq!(given.choose(), both, "until then nothing changes");
        let comes = both[&of][0];
        for of in [task(1, 0), task(2, 0)] {
            given.holders.insert(of, vec![NodeId(1), leaves, comes]);
        }
        assert_eq!(given.choose()[&of], [comes]);
    }

    #[test]
    fn one_that_is_one_too_many_goes_when_the_first_one_has_it_all() {
        let mut given = Given::new(1, 3);
        for of in [task(1, 0), task(2, 0)] {
            given.previous.insert(of, vec![NodeId(3), NodeId(2)]);
            given.holders.insert(of, vec![NodeId(1), NodeId(2)]);
        }
        assert_eq!(given.choose(), given.previous, "only the other one has it");
        for of in [task(1, 0), task(2, 0)] {
            given
                .holders
                .insert(of, vec![NodeId(1), NodeId(2), NodeId(3)]);
        }
        assert_eq!(given.choose()[&task(1, 0)], [NodeId(3)]);
        given.free_slots.remove(&NodeId(3));
        assert_eq!(
            given.choose()[&task(1, 0)],
            [NodeId(2)],
            "the new one is gone"
        );
    }

    #[test]
    fn a_task_whose_worker_is_to_be_emptied_is_stood_by_for_also_if_nobody_asked() {
        let mut given = Given::new(1, 2);
        given.count = 0;
        assert!(given.choose().is_empty());
        given.free_slots.remove(&NodeId(1));
        given.draining.insert(NodeId(1));
        assert_eq!(given.choose()[&task(1, 0)], [NodeId(2)]);
    }

    /// Its process was killed: what it has is worth waiting for, and then it is not.
    #[test]
    fn one_that_ran_the_task_and_is_gone_just_now_stands_by() {
        let mut given = Given::new(1, 3);
        let of = task(1, 0);
        given.worker_of.insert(of, NodeId(2));
        given.holders.insert(of, vec![NodeId(1), NodeId(2)]);
        given.free_slots.remove(&NodeId(1));
        given.excused.insert(NodeId(1));
        assert_eq!(given.choose()[&of], [NodeId(1)]);
        given.excused.clear();
        assert_eq!(given.choose()[&of], [NodeId(3)]);
    }

    proptest! {
        #[test]
        fn sound_complete_and_stable(
            parallelism in 1..5_u32,
            workers in 1..7_u32,
            count in 0..4_usize,
            moves in prop::collection::vec((0..5_u32, 1..7_u32), 0..5),
            gone in prop::collection::btree_set(1..7_u32, 0..3),
        ) {
            let mut given = Given::new(parallelism, workers.max(parallelism));
            given.count = count;
            for (index, worker) in moves {
                for stage in 0..3 {
                    if given.free_slots.contains_key(&NodeId(worker)) && index < parallelism {
                        given.worker_of.insert(task(stage, index), NodeId(worker));
                    }
                }
            }
            let check = |given: &Given, chosen: &Standbys| {
                for of in given.shape.stages.iter().filter(|stage| stage.has_state).flat_map(StageShape::tasks) {
                    let own = given.worker_of[&of];
                    let others = given.free_slots.keys().filter(|worker| **worker != own).count();
                    let standbys = chosen.get(&of).cloned().unwrap_or_default();
                    assert_eq!(standbys.len(), count.min(others));
                    assert!(!standbys.contains(&own));
                    assert_eq!(standbys.iter().collect::<BTreeSet<_>>().len(), standbys.len());
                }
            };
            given.previous = given.choose();
            check(&given, &given.previous);
            assert_eq!(given.choose(), given.previous, "nothing has changed");
            for worker in gone {
                given.free_slots.remove(&NodeId(worker));
            }
            let chosen = given.choose();
            check(&given, &chosen);
            for (of, workers) in &given.previous {
                let stay = workers.iter().filter(|worker| given.free_slots.contains_key(worker));
                for worker in stay {
                    assert!(chosen[of].contains(worker), "who is there stays");
                }
            }
        }
    }
}
