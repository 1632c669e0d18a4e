//! Which standbys of a job's instance go to another worker, so that all stand by for about as many tasks.
//!
//! What an instance's tasks have on one worker goes together, to one that runs none of them, stands by for none,
//! carries what they need, and is in no rack with more of their others than before. It goes if the sum of the squares
//! of what workers stand by for becomes smaller, so it ends.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use common::ids::{NodeId, TaskId};
use common::protocol::task::Standbys;

use crate::placement::racks::Racks;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem<'a> {
    pub worker_of: &'a BTreeMap<TaskId, NodeId>,
    pub standbys: &'a Standbys,
    /// The custom operators of tasks that have some.
    pub custom: &'a BTreeMap<TaskId, BTreeSet<String>>,
    /// The workers that standbys may leave and come to, and for how many tasks of any job they stand by.
    pub workers: &'a BTreeMap<NodeId, usize>,
    pub carried: &'a BTreeMap<NodeId, BTreeSet<String>>,
    pub racks: &'a Racks,
}

/// The standbys as they are to be next: who comes is in the place of who goes, who stays until that one has everything.
pub fn next(problem: &Problem<'_>) -> Option<Standbys> {
    let mut groups: BTreeMap<(u32, NodeId), Vec<TaskId>> = BTreeMap::new();
    for (task, standbys) in problem.standbys {
        for worker in standbys {
            let group = groups.entry((task.index, *worker)).or_default();
            group.push(*task);
        }
    }
    let all = || problem.workers.iter();
    let pairs = all().flat_map(|(from, more)| {
        let less = all().filter(move |(_, less)| more > *less);
        less.map(move |(to, less)| (more - less, *from, *to))
    });
    let mut pairs: Vec<(usize, NodeId, NodeId)> = pairs.collect();
    pairs.sort_unstable_by_key(|(apart, from, to)| (Reverse(*apart), *from, *to));
    let found = pairs.into_iter().find_map(|(apart, from, to)| {
        let here = groups.iter().filter(|((_, worker), _)| *worker == from);
        let mut here = here.map(|(_, tasks)| tasks);
        let tasks = here.find(|tasks| {
            tasks.len() < apart && tasks.iter().all(|task| problem.may_go(*task, from, to))
        })?;
        Some((tasks, from, to))
    });
    let (tasks, from, to) = found?;
    let mut next = problem.standbys.clone();
    for task in tasks {
        let of_task = next.entry(*task).or_default();
        for worker in of_task.iter_mut().filter(|worker| **worker == from) {
            *worker = to;
        }
        of_task.push(from);
    }
    Some(next)
}

impl Problem<'_> {
    fn may_go(&self, task: TaskId, from: NodeId, to: NodeId) -> bool {
        let own = self.worker_of.get(&task);
        let standbys = self.standbys.get(&task).into_iter().flatten();
        let others = own.into_iter().chain(standbys).copied();
        let others: Vec<NodeId> = others.filter(|worker| *worker != from).collect();
        let carries = match self.custom.get(&task) {
            Some(custom) => {
                let carried = self.carried.get(&to);
                carried.is_some_and(|carried| custom.is_subset(carried))
            }
            None => true,
        };
        let (before, after) = (
            self.racks.shared(from, &others),
            self.racks.shared(to, &others),
        );
        carries && !others.contains(&to) && after <= before
    }
}

#[cfg(test)]
mod tests {
    use common::ids::StageId;
    use proptest::prelude::*;

    use super::*;

    fn task(stage: u16, index: u32) -> TaskId {
        TaskId {
            stage: StageId(stage),
            index,
        }
    }

    /// Instances of two tasks each: where each runs, and who stands by for it.
    fn instances(places: &[(u32, &[u32])]) -> (BTreeMap<TaskId, NodeId>, Standbys) {
        let each = (0..).zip(places);
        let tasks = each.flat_map(|(index, place)| [0, 1].map(|stage| (task(stage, index), place)));
        let run = tasks.clone().map(|(task, place)| (task, NodeId(place.0)));
        let nodes = |ids: &[u32]| ids.iter().copied().map(NodeId).collect();
        let standbys = tasks.clone().map(|(task, place)| (task, nodes(place.1)));
        (run.collect(), standbys.collect())
    }

    fn counts(standbys: &Standbys, workers: u32) -> BTreeMap<NodeId, usize> {
        let count = |id| {
            standbys
                .values()
                .flatten()
                .filter(|worker| **worker == id)
                .count()
        };
        (1..=workers)
            .map(NodeId)
            .map(|id| (id, count(id)))
            .collect()
    }

    fn found(places: &[(u32, &[u32])], workers: u32, racks: &Racks) -> Option<Standbys> {
        let (worker_of, standbys) = instances(places);
        next(&Problem {
            worker_of: &worker_of,
            standbys: &standbys,
            custom: &BTreeMap::new(),
            workers: &counts(&standbys, workers),
            carried: &BTreeMap::new(),
            racks,
        })
    }

    #[test]
    fn one_that_joins_stands_by_in_the_place_of_one_that_does_for_more() {
        let nowhere = Racks::default();
        let found = |places: &[(u32, &[u32])], workers| found(places, workers, &nowhere);
        let pairs: [(u32, &[u32]); 4] = [(1, &[2]), (2, &[1]), (1, &[2]), (2, &[1])];
        let next = found(&pairs, 3).unwrap();
        assert_eq!(
            next[&task(0, 1)],
            [NodeId(3), NodeId(1)],
            "both until it has it"
        );
        assert_eq!(next[&task(1, 1)], [NodeId(3), NodeId(1)]);
        assert_eq!(
            next.values().filter(|all| all.contains(&NodeId(3))).count(),
            2
        );
        assert_eq!(found(&pairs[..2], 3), None, "it would only change sides");
        assert_eq!(found(&pairs, 2), None);
    }

    #[test]
    fn a_standby_does_not_join_its_task_in_its_rack() {
        let label = |worker: u32, rack| (NodeId(worker), Some(rack));
        let racks = Racks::of([label(1, "a"), label(2, "b"), label(3, "a")].into_iter());
        let pairs: [(u32, &[u32]); 2] = [(1, &[2]), (1, &[2])];
        assert_eq!(found(&pairs, 3, &racks), None);
        assert!(found(&pairs, 3, &Racks::default()).is_some());
    }

    proptest! {
        #[test]
        fn every_step_makes_it_more_even_and_it_ends(
            drawn in prop::collection::vec((1..6_u32, prop::collection::btree_set(1..6_u32, 0..3)), 0..9),
        ) {
            let places = drawn.iter().map(|(own, standbys)| {
                let standbys: Vec<u32> = standbys.iter().copied().filter(|id| id != own).collect();
                (*own, standbys)
            });
            let places: Vec<(u32, Vec<u32>)> = places.collect();
            let places: Vec<(u32, &[u32])> = places.iter().map(|(own, all)| (*own, &all[..])).collect();
            let (worker_of, mut standbys) = instances(&places);
            let counted: BTreeMap<TaskId, usize> =
                standbys.iter().map(|(task, all)| (*task, all.len())).collect();
            let square = |all: &Standbys| counts(all, 5).values().map(|n| n * n).sum::<usize>();
            for _ in 0..1_000 {
                let problem = Problem {
                    worker_of: &worker_of,
                    standbys: &standbys,
                    custom: &BTreeMap::new(),
                    workers: &counts(&standbys, 5),
                    carried: &BTreeMap::new(),
                    racks: &Racks::default(),
                };
                let Some(mut moved) = next(&problem) else { return Ok(()) };
                for (task, all) in &mut moved {
                    all.truncate(counted[task]);
                    let apart: BTreeSet<&NodeId> = all.iter().collect();
                    prop_assert!(apart.len() == all.len() && !all.contains(&worker_of[task]));
                }
                prop_assert!(square(&moved) < square(&standbys));
                standbys = moved;
            }
            prop_assert!(false, "it does not end");
        }
    }
}
