//! Partition replicas → workers.
//!
//! Goals, the first one first: the replicas of a partition are on different workers; they are in different
//! racks, as far as there are so many; every worker has about as many replicas as every other; every worker is the preferred leader of about as many
//! partitions. What is placed stays where it is: only what is new is placed, and the same question has
//! the same answer.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use common::ids::NodeId;

use super::racks::Racks;

/// What a worker holds already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    pub replicas: u32,
    /// Of these, how many it is the preferred leader of.
    pub preferred: u32,
}

/// Places new partitions on these workers; `None` if there are fewer workers than replicas.
/// Each partition's first replica is its preferred leader.
pub fn place(
    partitions: u32,
    replication_factor: u32,
    workers: &BTreeMap<NodeId, Held>,
    racks: &Racks,
) -> Option<Vec<Vec<NodeId>>> {
    let factor = usize::try_from(replication_factor).ok()?;
    if factor == 0 || workers.len() < factor {
        return None;
    }
    let mut held = workers.clone();
    let placed = (0..partitions).map(|_| {
        let least = held.iter().min_by_key(|(node, held)| (**held, **node));
        let leader = *least.expect("there are workers").0;
        let mut nodes = vec![leader];
        while nodes.len() < factor {
            let others = held.iter().filter(|(node, _)| !nodes.contains(node));
            // Among those with as few replicas, the others are the ones that lead most already: who leads
            // little is kept free to lead the next partition.
            let next = others.min_by_key(|(node, held)| {
                let shared = racks.shared(**node, &nodes);
                (shared, held.replicas, Reverse(held.preferred), **node)
            });
            nodes.push(*next.expect("there are as many workers as replicas").0);
        }
        for node in &nodes {
            held.entry(*node).or_default().replicas += 1;
        }
        held.entry(leader).or_default().preferred += 1;
        nodes
    });
    Some(placed.collect())
}

/// Replicas for a partition that has these: of them, those that are among the workers stay, in their order, as
/// far as they are wanted, and workers in other racks, of those the ones with the fewest replicas, make up for the
/// others. Counts what it adds. `None` if there are fewer workers than replicas.
pub fn fill(
    previous: &[NodeId],
    replication_factor: u32,
    workers: &mut BTreeMap<NodeId, Held>,
    racks: &Racks,
) -> Option<Vec<NodeId>> {
    let factor = usize::try_from(replication_factor).ok()?;
    let staying = previous.iter().filter(|node| workers.contains_key(node));
    let mut nodes: Vec<NodeId> = staying.copied().take(factor).collect();
    while nodes.len() < factor {
        let others = workers.iter_mut().filter(|(node, _)| !nodes.contains(node));
        let (node, held) = others.min_by_key(|(node, held)| {
            let shared = racks.shared(**node, &nodes);
            (shared, held.replicas, **node)
        })?;
        held.replicas += 1;
        nodes.push(*node);
    }
    Some(nodes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn workers(count: u32) -> BTreeMap<NodeId, Held> {
        (1..=count).map(|n| (NodeId(n), Held::default())).collect()
    }

    #[test]
    fn new_partitions_go_to_the_workers_that_have_the_fewest() {
        let mut uneven = workers(2);
        uneven.insert(
            NodeId(1),
            Held {
                replicas: 2,
                preferred: 2,
            },
        );
        let placed = place(4, 1, &uneven, &Racks::default()).unwrap();
        let on = |node| placed.iter().filter(|r| r[..] == [NodeId(node)]).count();
        assert_eq!((on(1), on(2)), (1, 3));
        assert_eq!(place(1, 3, &workers(2), &Racks::default()), None);
        assert_eq!(place(1, 1, &workers(0), &Racks::default()), None);
    }

    #[test]
    fn what_is_lost_is_made_up_for_and_nothing_else_moves() {
        let mut held = workers(4);
        for (node, replicas) in [(1, 5), (2, 5), (3, 1), (4, 3)] {
            held.get_mut(&NodeId(node)).unwrap().replicas = replicas;
        }
        let nodes = |ids: &[u32]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        // 9 is gone.
        let mut filled =
            |previous: &[u32], factor| fill(&nodes(previous), factor, &mut held, &Racks::default());
        assert_eq!(filled(&[2, 9, 1], 3), Some(nodes(&[2, 1, 3])));
        assert_eq!(filled(&[9], 1), Some(nodes(&[3])));
        assert_eq!(filled(&[9], 1), Some(nodes(&[3])));
        assert_eq!(filled(&[9], 1), Some(nodes(&[4])), "it has as few by now");
        assert_eq!(filled(&[1, 2, 3], 3), Some(nodes(&[1, 2, 3])));
        assert_eq!(filled(&[1, 2, 3], 2), Some(nodes(&[1, 2])));
        assert_eq!(filled(&[1, 2, 3], 5), None);
    }

    #[test]
    fn leaders_stay_even_where_pairs_of_workers_would_lead_by_turns() {
        let mut leads = BTreeMap::new();
        for replicas in place(148, 2, &workers(8), &Racks::default()).unwrap() {
            *leads.entry(replicas[0]).or_insert(0) += 1;
        }
        let (least, most) = (leads.values().min().unwrap(), leads.values().max().unwrap());
        assert!(most - least <= 1, "{leads:?}");
    }

    /// Worker `i` is in rack `i % racks`.
    fn in_racks(workers: u32, racks: u32) -> Racks {
        let names: Vec<String> = (0..racks).map(|rack| format!("rack-{rack}")).collect();
        let rack_of = |worker: u32| {
            (
                NodeId(worker),
                Some(names[(worker % racks) as usize].as_str()),
            )
        };
        Racks::of((1..=workers).map(rack_of))
    }

    #[test]
    fn a_lost_replica_is_made_up_for_in_another_rack() {
        let mut held = workers(6);
        // The only other one of the third rack has the most already.
        held.get_mut(&NodeId(5)).unwrap().replicas = 9;
        let filled = fill(&[NodeId(3), NodeId(1)], 3, &mut held, &in_racks(6, 3));
        assert_eq!(filled, Some(vec![NodeId(3), NodeId(1), NodeId(2)]));
        let mut without: BTreeMap<NodeId, Held> = held.clone();
        without.remove(&NodeId(2));
        let filled = fill(&[NodeId(3), NodeId(1)], 3, &mut without, &in_racks(6, 3));
        assert_eq!(filled, Some(vec![NodeId(3), NodeId(1), NodeId(5)]));
    }

    proptest! {
        #[test]
        fn replicas_are_in_as_many_racks_as_there_are(
            nodes in 1..9_u32, racks in 1..5_u32, factor in 1..5_u32, partitions in 0..50_u32,
        ) {
            let Some(placed) = place(partitions, factor, &workers(nodes), &in_racks(nodes, racks)) else {
                return Ok(());
            };
            for replicas in placed {
                let apart: BTreeSet<u32> = replicas.iter().map(|node| node.0 % racks).collect();
                prop_assert_eq!(apart.len(), racks.min(factor).min(nodes) as usize, "{:?}", replicas);
                let nodes: BTreeSet<NodeId> = replicas.iter().copied().collect();
                prop_assert_eq!(nodes.len(), factor as usize);
            }
        }

        #[test]
        fn replicas_are_apart_and_evenly_spread(
            nodes in 1..9_u32, factor in 1..4_u32, partitions in 0..200_u32,
        ) {
            let placed = place(partitions, factor, &workers(nodes), &Racks::default());
            prop_assert_eq!(placed.is_none(), nodes < factor);
            let Some(placed) = placed else { return Ok(()) };
            prop_assert_eq!(placed.len(), partitions as usize);
            let mut held = workers(nodes);
            for replicas in &placed {
                let apart: BTreeSet<NodeId> = replicas.iter().copied().collect();
                prop_assert_eq!(apart.len(), factor as usize);
                for node in replicas {
                    held.get_mut(node).unwrap().replicas += 1;
                }
                held.get_mut(&replicas[0]).unwrap().preferred += 1;
            }
            let spread = |count: fn(&Held) -> u32| {
                let counts = held.values().map(count);
                counts.clone().max().unwrap() - counts.min().unwrap()
            };
            prop_assert!(spread(|h| h.replicas) <= 1);
            prop_assert!(spread(|h| h.preferred) <= 1);
        }
    }
}
