//! Which replica moves next, so that workers have about as many replicas and lead about as many partitions.
//!
//! Constraints: a partition keeps as many replicas, no two of them on one worker, and none comes into a rack with
//! more of the others than before. A replica goes from a worker to one that has two fewer at least, which makes the sum
//! of the squares of what workers have smaller; once there is none of those, two replicas of a partition change
//! ranks if the one preferred leads two partitions more at least. Both sums cannot fall for ever: so it ends, and
//! nothing goes back where it came from.
//!
//! Of the replicas that could go, the first one is of the topic that the worker has the most of, and so that leaders
//! become even along with it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use common::ids::{NodeId, PartitionEpoch, PartitionId, TopicId};

use crate::placement::racks::Racks;
use crate::placement::replicas::Held;

/// What workers have, and are to have once everything on the move has arrived.
#[derive(Clone, Debug)]
pub struct Replicas<'a> {
    racks: &'a Racks,
    /// The workers that replicas may leave and come to.
    held: BTreeMap<NodeId, Held>,
    of_topic: BTreeMap<(TopicId, NodeId), i64>,
    partitions: Vec<Partition>,
    /// The partitions of each worker that may move, by their places.
    on: BTreeMap<NodeId, BTreeSet<usize>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Partition {
    pub topic: TopicId,
    pub number: PartitionId,
    pub epoch: PartitionEpoch,
    /// The preferred leader first.
    pub replicas: Vec<NodeId>,
    /// Nothing of it is on the move, and all of its replicas are well.
    pub settled: bool,
}

/// One partition's next replicas.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Move {
    pub topic: TopicId,
    pub partition: PartitionId,
    pub epoch: PartitionEpoch,
    pub from: NodeId,
    pub to: NodeId,
    pub target: Vec<NodeId>,
}

impl<'a> Replicas<'a> {
    pub fn new(
        workers: &BTreeSet<NodeId>,
        racks: &'a Racks,
        partitions: Vec<Partition>,
    ) -> Replicas<'a> {
        let held = workers.iter().map(|worker| (*worker, Held::default()));
        let mut replicas = Replicas {
            racks,
            held: held.collect(),
            of_topic: BTreeMap::new(),
            partitions: Vec::new(),
            on: BTreeMap::new(),
        };
        for (place, partition) in partitions.into_iter().enumerate() {
            for (rank, worker) in partition.replicas.iter().enumerate() {
                replicas.count(partition.topic, *worker, rank, 1);
                if partition.settled && workers.contains(worker) {
                    replicas.on.entry(*worker).or_default().insert(place);
                }
            }
            replicas.partitions.push(partition);
        }
        replicas
    }

    /// The next move that makes them more even, which counts as made. `full`: workers that are given no more now.
    pub fn improve(&mut self, full: &BTreeSet<NodeId>) -> Option<Move> {
        let (place, from, to, target) = self.elsewhere(full).or_else(|| self.other_rank())?;
        let partition = self.partitions[place].clone();
        for (rank, worker) in partition.replicas.iter().enumerate() {
            self.count(partition.topic, *worker, rank, -1);
        }
        for (rank, worker) in target.iter().enumerate() {
            self.count(partition.topic, *worker, rank, 1);
        }
        for worker in &partition.replicas {
            // On the move, it is no candidate any more.
            self.on.entry(*worker).or_default().remove(&place);
        }
        let moved = &mut self.partitions[place];
        moved.replicas.clone_from(&target);
        moved.settled = false;
        Some(Move {
            topic: partition.topic,
            partition: partition.number,
            epoch: partition.epoch,
            from,
            to,
            target,
        })
    }

    pub fn held(&self) -> &BTreeMap<NodeId, Held> {
        &self.held
    }

    pub fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    /// A replica that goes to another worker.
    fn elsewhere(&self, full: &BTreeSet<NodeId>) -> Option<(usize, NodeId, NodeId, Vec<NodeId>)> {
        self.pairs(|held| held.replicas)
            .into_iter()
            .filter(|(_, to)| !full.contains(to))
            .find_map(|(from, to)| {
                let here = self.on.get(&from).into_iter().flatten();
                let movable = here.filter(|place| self.may_go(**place, from, to));
                let place = movable.min_by_key(|place| self.order(**place, from, to))?;
                let replaced = |node: &NodeId| if *node == from { to } else { *node };
                let replicas = self.partitions[*place].replicas.iter();
                Some((*place, from, to, replicas.map(replaced).collect()))
            })
    }

    /// Two replicas that change ranks, so that the other one leads.
    fn other_rank(&self) -> Option<(usize, NodeId, NodeId, Vec<NodeId>)> {
        self.pairs(|held| held.preferred)
            .into_iter()
            .find_map(|(from, to)| {
                let mut here = self.on.get(&from).into_iter().flatten();
                let place = here.find(|place| {
                    let replicas = &self.partitions[**place].replicas;
                    replicas.first() == Some(&from) && replicas.contains(&to)
                })?;
                let mut target = self.partitions[*place].replicas.clone();
                let rank = target.iter().position(|node| *node == to)?;
                target.swap(0, rank);
                Some((*place, from, to, target))
            })
    }

    /// Workers of which the first has two more at least, those furthest apart first.
    fn pairs(&self, count: fn(&Held) -> u32) -> Vec<(NodeId, NodeId)> {
        let all = || {
            self.held
                .iter()
                .map(|(worker, held)| (*worker, count(held)))
        };
        let apart = all().flat_map(|(from, more)| {
            let less = all().filter(move |(_, less)| more >= less + 2);
            less.map(move |(to, less)| (Reverse(more - less), from, to))
        });
        let mut apart: Vec<(Reverse<u32>, NodeId, NodeId)> = apart.collect();
        apart.sort_unstable();
        apart.into_iter().map(|(_, from, to)| (from, to)).collect()
    }

    fn may_go(&self, place: usize, from: NodeId, to: NodeId) -> bool {
        let replicas = &self.partitions[place].replicas;
        let others = replicas.iter().copied().filter(|node| *node != from);
        let others: Vec<NodeId> = others.collect();
        !others.contains(&to) && self.racks.shared(to, &others) <= self.racks.shared(from, &others)
    }

    /// Orders what may go from the one that should to the one that should not.
    fn order(&self, place: usize, from: NodeId, to: NodeId) -> (i64, i64, usize) {
        let partition = &self.partitions[place];
        let of_topic = |worker| self.of_topic.get(&(partition.topic, worker)).copied();
        let spread = of_topic(from).unwrap_or(0) - of_topic(to).unwrap_or(0);
        let leads = |worker| i64::from(self.held[&worker].preferred);
        let leading = match partition.replicas.first() == Some(&from) {
            true => (leads(from) - leads(to) - 1).signum(),
            false => 0,
        };
        (-spread, -leading, place)
    }

    fn count(&mut self, topic: TopicId, worker: NodeId, rank: usize, change: i32) {
        if let Some(held) = self.held.get_mut(&worker) {
            held.replicas = held.replicas.saturating_add_signed(change);
            if rank == 0 {
                held.preferred = held.preferred.saturating_add_signed(change);
            }
            *self.of_topic.entry((topic, worker)).or_default() += i64::from(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::placement::replicas::place;

    fn partition(number: u32, replicas: &[u32]) -> Partition {
        Partition {
            topic: TopicId(Uuid::from_u128(u128::from(number % 3))),
            number: PartitionId(number),
            epoch: PartitionEpoch(0),
            replicas: replicas.iter().copied().map(NodeId).collect(),
            settled: true,
        }
    }

    fn workers(count: u32) -> BTreeSet<NodeId> {
        (1..=count).map(NodeId).collect()
    }

    /// Worker `i` is in rack `i % racks`.
    fn in_racks(workers: u32, racks: u32) -> Racks {
        let names: Vec<String> = (0..racks).map(|rack| rack.to_string()).collect();
        let name = |worker: u32| names.get((worker % racks.max(1)) as usize);
        Racks::of((1..=workers).map(|worker| (NodeId(worker), name(worker).map(String::as_str))))
    }

    /// Everything that moves, one after the other has arrived.
    fn moves(replicas: &mut Replicas<'_>) -> Vec<Move> {
        let mut moves = Vec::new();
        loop {
            let Some(next) = replicas.improve(&BTreeSet::new()) else {
                return moves;
            };
            moves.push(next);
            let arrived: Vec<Partition> = replicas.partitions().to_vec();
            let arrived = arrived.into_iter().map(|partition| Partition {
                settled: true,
                ..partition
            });
            let workers = replicas.held().keys().copied().collect();
            *replicas = Replicas::new(&workers, replicas.racks, arrived.collect());
        }
    }

    #[test]
    fn a_worker_that_joins_gets_its_part_of_every_topic_and_of_the_leaders() {
        let racks = Racks::default();
        let pairs = [[1, 2], [2, 1]];
        let partitions = (0..12).map(|number| partition(number, &pairs[number as usize % 2]));
        let mut replicas = Replicas::new(&workers(3), &racks, partitions.collect());
        let moves = moves(&mut replicas);
        assert_eq!(moves.len(), 8, "no more than it takes: {moves:?}");
        assert!(moves.iter().all(|next| next.to == NodeId(3)));
        for held in replicas.held().values() {
            assert_eq!((held.replicas, held.preferred), (8, 4));
        }
        for topic in 0..3 {
            let topic = TopicId(Uuid::from_u128(topic));
            for worker in 1..=3 {
                let of_topic = replicas.of_topic[&(topic, NodeId(worker))];
                assert!((2..=3).contains(&of_topic), "{of_topic}");
            }
        }
    }

    #[test]
    fn one_more_is_no_reason_to_move_anything() {
        let racks = Racks::default();
        let partitions = vec![partition(0, &[1]), partition(1, &[2]), partition(2, &[2])];
        assert_eq!(
            moves(&mut Replicas::new(&workers(2), &racks, partitions)),
            []
        );
    }

    #[test]
    fn what_is_on_the_move_counts_where_it_goes_and_stays() {
        let racks = Racks::default();
        let mut partitions: Vec<Partition> = (0..4).map(|n| partition(n, &[1])).collect();
        for partition in &mut partitions[..2] {
            partition.replicas = vec![NodeId(2)];
            partition.settled = false;
        }
        assert_eq!(
            moves(&mut Replicas::new(&workers(2), &racks, partitions)),
            []
        );
    }

    #[test]
    fn a_worker_that_is_none_of_those_keeps_what_it_has_and_gets_nothing() {
        let racks = Racks::default();
        let partitions = (0..9).map(|number| partition(number, &[1 + number % 2]));
        let mut replicas = Replicas::new(&[1, 3].map(NodeId).into(), &racks, partitions.collect());
        let moves = moves(&mut replicas);
        assert_eq!(moves.len(), 2);
        assert!(
            moves
                .iter()
                .all(|next| next.from == NodeId(1) && next.to == NodeId(3))
        );
        let full = BTreeSet::from([NodeId(3)]);
        let partitions = (0..9).map(|number| partition(number, &[1]));
        let mut replicas = Replicas::new(&workers(3), &racks, partitions.collect());
        assert_eq!(replicas.improve(&full).unwrap().to, NodeId(2));
    }

    #[test]
    fn leaders_become_even_without_any_copy() {
        let racks = Racks::default();
        let partitions = (0..4).map(|number| partition(number, &[1, 2]));
        let mut replicas = Replicas::new(&workers(2), &racks, partitions.collect());
        let moves = moves(&mut replicas);
        assert_eq!(moves.len(), 2);
        assert_eq!(moves[0].target, [NodeId(2), NodeId(1)]);
    }

    #[test]
    fn a_replica_does_not_join_others_in_their_rack() {
        // 1 and 3 are in one rack, 2 alone in the other: it has a copy of everything.
        let racks = in_racks(3, 2);
        let partitions = (0..8).map(|number| partition(number, &[1 + number % 2 * 2, 2]));
        let mut replicas = Replicas::new(&workers(3), &racks, partitions.collect());
        for next in moves(&mut replicas) {
            assert!(next.target.contains(&NodeId(2)), "{next:?}");
        }
    }

    /// The sums of squares of what workers have and prefer to lead.
    fn unevenness(replicas: &Replicas<'_>) -> (u64, u64) {
        let sum = |count: fn(&Held) -> u32| {
            let counts = replicas.held().values().map(count);
            counts.map(|count| u64::from(count).pow(2)).sum()
        };
        (sum(|held| held.replicas), sum(|held| held.preferred))
    }

    proptest! {
        #[test]
        fn every_move_makes_it_more_even_and_breaks_nothing(
            count in 1..8_u32, racks in 0..4_u32,
            drawn in prop::collection::vec(prop::collection::btree_set(1..8_u32, 1..4), 0..40),
            away in prop::collection::btree_set(1..8_u32, 0..3),
        ) {
            let racks = in_racks(7, racks);
            let partitions = (0..).zip(&drawn).map(|(number, replicas)| {
                partition(number, &replicas.iter().copied().collect::<Vec<_>>())
            });
            let partitions: Vec<Partition> = partitions.collect();
            let even: BTreeSet<NodeId> =
                workers(count).into_iter().filter(|node| !away.contains(&node.0)).collect();
            let mut replicas = Replicas::new(&even, &racks, partitions.clone());
            let most = unevenness(&replicas).0 + partitions.len() as u64;
            let mut steps = 0;
            loop {
                let before = (unevenness(&replicas), replicas.partitions().to_vec());
                let Some(next) = replicas.improve(&BTreeSet::new()) else { break };
                steps += 1;
                prop_assert!(steps <= most, "it does not end");
                prop_assert!(unevenness(&replicas) < before.0, "{next:?}");
                prop_assert!(even.contains(&next.from) && even.contains(&next.to));
                let was = before.1.iter().find(|p| p.number == next.partition).unwrap();
                let together = |nodes: &[NodeId]| -> usize {
                    nodes.iter().map(|node| racks.shared(*node, nodes)).sum()
                };
                prop_assert!(together(&next.target) <= together(&was.replicas));
                prop_assert_eq!(next.target.len(), was.replicas.len());
                let apart: BTreeSet<&NodeId> = next.target.iter().collect();
                prop_assert_eq!(apart.len(), next.target.len());
                let arrived = replicas.partitions().to_vec();
                let arrived = arrived.into_iter().map(|p| Partition { settled: true, ..p });
                replicas = Replicas::new(&even, &racks, arrived.collect());
            }
            let counts = || replicas.held().values().map(|held| held.replicas);
            if racks == Racks::default() && !even.is_empty() {
                prop_assert!(counts().max().unwrap() - counts().min().unwrap() <= 1);
            }
        }

        #[test]
        fn what_was_just_placed_stays(
            count in 1..9_u32, factor in 1..4_u32, partitions in 0..100_u32,
        ) {
            let racks = Racks::default();
            let nodes = workers(count);
            let empty = nodes.iter().map(|node| (*node, Held::default())).collect();
            let Some(placed) = place(partitions, factor, &empty, &racks) else { return Ok(()) };
            let placed = (0..).zip(placed).map(|(number, nodes)| Partition {
                replicas: nodes,
                ..partition(number, &[])
            });
            let mut replicas = Replicas::new(&nodes, &racks, placed.collect());
            prop_assert_eq!(replicas.improve(&BTreeSet::new()), None);
        }
    }
}
