//! Which parallel instances of a job go elsewhere, so that workers have about as many slots in use.
//!
//! An instance moves as a whole, from a worker to one with fewer slots in use, if that makes the sum of the squares
//! of what is in use smaller, and does not make the job itself less even; or, where it leaves that sum as it is, if
//! it makes the job itself more even. So it ends. It goes only where there is a free slot, and where its custom operators
//! are.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{NodeId, StageId, TaskId};

use crate::placement::tasks::{JobShape, StageShape};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem<'a> {
    pub shape: &'a JobShape,
    pub worker_of: &'a BTreeMap<TaskId, NodeId>,
    /// The workers that instances may leave and come to.
    pub workers: &'a BTreeMap<NodeId, Slots>,
    /// The custom operators that workers carry.
    pub carried: &'a BTreeMap<NodeId, BTreeSet<String>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slots {
    pub all: u32,
    /// By any job.
    pub used: u32,
}

/// Where tasks go: those of so many instances at the most.
pub fn moves(problem: &Problem<'_>, most: usize) -> BTreeMap<TaskId, NodeId> {
    let mut job = Job::new(problem);
    let mut moves = BTreeMap::new();
    for _ in 0..most {
        let Some((instance, to)) = job.next() else {
            break;
        };
        moves.extend(job.put(instance, to));
    }
    moves
}

/// The job as it is placed so far.
struct Job<'a> {
    problem: &'a Problem<'a>,
    /// The worker of each instance that is as a whole on one of those.
    home_of: BTreeMap<u32, NodeId>,
    tasks_on: BTreeMap<(NodeId, StageId), u32>,
    others: BTreeMap<NodeId, u32>,
}

impl<'a> Job<'a> {
    fn new(problem: &'a Problem<'a>) -> Job<'a> {
        let mut job = Job {
            problem,
            home_of: BTreeMap::new(),
            tasks_on: BTreeMap::new(),
            others: BTreeMap::new(),
        };
        let mut homes: BTreeMap<u32, BTreeSet<NodeId>> = BTreeMap::new();
        for (task, worker) in problem.worker_of {
            *job.tasks_on.entry((*worker, task.stage)).or_default() += 1;
            homes.entry(task.index).or_default().insert(*worker);
        }
        for (instance, homes) in homes {
            if let (1, Some(home)) = (homes.len(), homes.first())
                && problem.workers.contains_key(home)
            {
                job.home_of.insert(instance, *home);
            }
        }
        for (worker, slots) in problem.workers {
            let others = slots.used.saturating_sub(job.slots(*worker, None));
            job.others.insert(*worker, others);
        }
        job
    }

    /// The next instance to go, and where to.
    fn next(&self) -> Option<(u32, NodeId)> {
        let used = |worker: &NodeId| (self.others[worker] + self.slots(*worker, None), *worker);
        let mut workers: Vec<(u32, NodeId)> = self.problem.workers.keys().map(used).collect();
        workers.sort_unstable();
        let mut pairs = workers.iter().rev().flat_map(|(more, from)| {
            let less = workers.iter().filter(move |(less, _)| less < more);
            less.map(move |(_, to)| (*from, *to))
        });
        pairs.find_map(|(from, to)| {
            let here = self.home_of.iter().rev();
            let here = here.filter(|(_, home)| **home == from);
            let mut here = here.map(|(instance, _)| *instance);
            let instance = here.find(|instance| self.improves(*instance, from, to))?;
            Some((instance, to))
        })
    }

    fn improves(&self, instance: u32, from: NodeId, to: NodeId) -> bool {
        let stages = self.stages_of(instance);
        let mut custom = stages.iter().map(|stage| &stage.custom);
        let carried = self.problem.carried.get(&to);
        let carries = custom.all(|custom| {
            custom.is_empty() || carried.is_some_and(|carried| custom.is_subset(carried))
        });
        let before = [self.slots(from, None), self.slots(to, None)];
        let after = [
            self.slots(from, Some((instance, -1))),
            self.slots(to, Some((instance, 1))),
        ];
        let others = [self.others[&from], self.others[&to]];
        let has_room = after[1] + others[1] <= self.problem.workers[&to].all;
        let squares = |own: [u32; 2], others: [u32; 2]| -> u64 {
            let sums = own.into_iter().zip(others);
            sums.map(|(own, others)| u64::from(own + others).pow(2))
                .sum()
        };
        let all = (squares(before, others), squares(after, others));
        let own = (squares(before, [0; 2]), squares(after, [0; 2]));
        let better = all.1 < all.0 && own.1 <= own.0 || all.1 == all.0 && own.1 < own.0;
        carries && has_room && better
    }

    /// The slots that the job uses on a worker, with one instance more there or fewer.
    fn slots(&self, worker: NodeId, change: Option<(u32, i32)>) -> u32 {
        let stages = self.problem.shape.stages.iter();
        let tasks = stages.map(|stage| {
            let tasks = self.tasks_on.get(&(worker, stage.id)).copied().unwrap_or(0);
            match change {
                Some((instance, by)) if instance < stage.parallelism => {
                    tasks.saturating_add_signed(by)
                }
                Some(_) | None => tasks,
            }
        });
        tasks.max().unwrap_or(0)
    }

    fn stages_of(&self, instance: u32) -> Vec<&'a StageShape> {
        let stages = self.problem.shape.stages.iter();
        stages
            .filter(|stage| instance < stage.parallelism)
            .collect()
    }

    fn put(&mut self, instance: u32, to: NodeId) -> BTreeMap<TaskId, NodeId> {
        let from = self.home_of.insert(instance, to).expect("it was there");
        let mut moved = BTreeMap::new();
        for stage in self.stages_of(instance) {
            let task = TaskId {
                stage: stage.id,
                index: instance,
            };
            *self.tasks_on.entry((from, stage.id)).or_default() -= 1;
            *self.tasks_on.entry((to, stage.id)).or_default() += 1;
            moved.insert(task, to);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::placement::tasks::slots_used;

    fn shape(parallelism: &[u32]) -> JobShape {
        let stages = (0..).zip(parallelism).map(|(id, parallelism)| StageShape {
            id: StageId(id),
            parallelism: *parallelism,
            has_state: id > 0,
            has_source: id == 0,
            custom: BTreeSet::new(),
        });
        JobShape {
            stages: stages.collect(),
        }
    }

    fn placed(shape: &JobShape, homes: &[u32]) -> BTreeMap<TaskId, NodeId> {
        let places = shape
            .tasks()
            .map(|task| (task, NodeId(homes[task.index as usize])));
        places.collect()
    }

    /// Workers with what they use of so many slots.
    fn workers(used: &[u32], all: u32) -> BTreeMap<NodeId, Slots> {
        let slots = (1..).zip(used);
        slots
            .map(|(id, used)| (NodeId(id), Slots { all, used: *used }))
            .collect()
    }

    fn moved(
        shape: &JobShape,
        homes: &[u32],
        workers: &BTreeMap<NodeId, Slots>,
    ) -> Vec<(u32, u32)> {
        let moves = moves(
            &Problem {
                shape,
                worker_of: &placed(shape, homes),
                workers,
                carried: &BTreeMap::new(),
            },
            16,
        );
        let instances: BTreeSet<(u32, u32)> =
            moves.iter().map(|(task, to)| (task.index, to.0)).collect();
        for (instance, to) in &instances {
            let stages = shape
                .stages
                .iter()
                .filter(|stage| *instance < stage.parallelism);
            let tasks = moves
                .iter()
                .filter(|(task, at)| (task.index, at.0) == (*instance, *to));
            assert_eq!(
                tasks.count(),
                stages.count(),
                "an instance moves as a whole"
            );
        }
        instances.into_iter().collect()
    }

    #[test]
    fn a_worker_that_joins_gets_instances_of_a_job_that_has_two_more_elsewhere() {
        let shape = shape(&[4, 4]);
        let even = [1, 2, 1, 2];
        assert_eq!(moved(&shape, &even, &workers(&[2, 2, 0], 4)), [(3, 3)]);
        assert_eq!(moved(&shape, &even, &workers(&[2, 2, 2], 4)), []);
        assert_eq!(moved(&shape, &even, &workers(&[2, 2], 4)), []);
        assert_eq!(
            moved(&shape, &even, &workers(&[2, 2, 0], 0)),
            [],
            "there is no room"
        );
        assert_eq!(
            moved(&shape, &[1, 1, 1, 1], &workers(&[4, 0], 4)),
            [(2, 2), (3, 2)]
        );
    }

    #[test]
    fn what_others_use_counts_but_a_job_does_not_crowd_for_it() {
        let shape = shape(&[2, 2]);
        // Both of its instances would be on worker 2.
        assert_eq!(moved(&shape, &[1, 2], &workers(&[9, 1], 20)), []);
        assert_eq!(moved(&shape, &[1, 2], &workers(&[9, 1, 1], 20)), [(0, 3)]);
        // With as much in use afterwards, the job itself is spread.
        assert_eq!(moved(&shape, &[1, 1], &workers(&[2, 1], 20)), [(1, 2)]);
    }

    #[test]
    fn custom_operators_go_only_where_they_are() {
        let mut shape = shape(&[4, 4]);
        shape.stages[1].custom.insert("score".to_owned());
        assert_eq!(moved(&shape, &[1, 1, 1, 1], &workers(&[4, 0], 4)), []);
    }

    #[test]
    fn an_instance_that_is_on_several_workers_stays() {
        let shape = shape(&[2, 2]);
        let mut worker_of = placed(&shape, &[1, 1]);
        for index in 0..2 {
            let stage = StageId(1);
            worker_of.insert(TaskId { stage, index }, NodeId(2));
        }
        let problem = Problem {
            shape: &shape,
            worker_of: &worker_of,
            workers: &workers(&[2, 2, 0], 4),
            carried: &BTreeMap::new(),
        };
        assert!(moves(&problem, 16).is_empty());
    }

    proptest! {
        #[test]
        fn it_becomes_more_even_until_it_is_and_then_nothing_moves(
            parallelism in prop::collection::vec(1..7_u32, 1..4),
            homes in prop::collection::vec(1..6_u32, 7),
            others in prop::collection::vec(0..5_u32, 1..6),
            all in 0..12_u32,
        ) {
            let shape = shape(&parallelism);
            let mut worker_of = placed(&shape, &homes);
            let used = |worker_of: &BTreeMap<TaskId, NodeId>| -> BTreeMap<NodeId, Slots> {
                let own: BTreeMap<NodeId, u32> =
                    slots_used(worker_of.iter().map(|(task, node)| (*task, *node))).collect();
                let with = (1..).map(NodeId).zip(&others).map(|(node, others)| {
                    let used = others + own.get(&node).copied().unwrap_or(0);
                    (node, Slots { all: all.max(used), used })
                });
                with.collect()
            };
            let unevenness = |worker_of: &BTreeMap<TaskId, NodeId>| {
                let own = slots_used(worker_of.iter().map(|(task, node)| (*task, *node)));
                let own: u32 = own
                    .filter(|(node, _)| node.0 as usize <= others.len())
                    .map(|(_, used)| used.pow(2))
                    .sum();
                (used(worker_of).values().map(|slots| slots.used.pow(2)).sum::<u32>(), own)
            };
            let mut steps = 0;
            loop {
                let workers = used(&worker_of);
                let problem = Problem {
                    shape: &shape, worker_of: &worker_of, workers: &workers, carried: &BTreeMap::new(),
                };
                let next = moves(&problem, 1);
                if next.is_empty() {
                    break;
                }
                let before = unevenness(&worker_of);
                worker_of.extend(next);
                prop_assert!(unevenness(&worker_of) < before);
                steps += 1;
                prop_assert!(steps < 1_000, "it does not end");
            }
        }
    }
}
