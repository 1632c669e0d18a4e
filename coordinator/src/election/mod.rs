//! Chooses who leads a partition, and who still counts as in sync when a worker is lost.
//!
//! Every in-sync replica has every committed record, so any of them may lead. A set of in-sync replicas
//! never becomes smaller than the topic demands: the last to have every record stay in it while they
//! are away, or a replica that lacks records could be elected.

use common::ids::NodeId;

/// The first replica, in the order of preference, that is in sync and active.
pub fn leader_of(
    replicas: &[NodeId],
    in_sync: &[NodeId],
    is_active: impl Fn(NodeId) -> bool,
) -> Option<NodeId> {
    replicas
        .iter()
        .copied()
        .find(|node| in_sync.contains(node) && is_active(*node))
}

/// The in-sync replicas without a lost one, unless they would become too few.
pub fn without(in_sync: &[NodeId], lost: NodeId, min_in_sync: usize) -> Vec<NodeId> {
    let rest: Vec<NodeId> = in_sync.iter().copied().filter(|n| *n != lost).collect();
    if rest.len() >= min_in_sync.max(1) {
        rest
    } else {
        in_sync.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u32]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn the_first_preferred_replica_that_is_in_sync_and_active_leads() {
        for (replicas, in_sync, active, leader) in [
            (&[1, 2, 3][..], &[1, 2, 3][..], &[1, 2, 3][..], Some(1)),
            (&[2, 1, 3], &[1, 2, 3], &[1, 2, 3], Some(2)),
            (&[1, 2, 3], &[2, 3], &[1, 2, 3], Some(2)),
            (&[1, 2, 3], &[1, 2, 3], &[3], Some(3)),
            (&[1, 2, 3], &[1], &[2, 3], None),
            (&[1], &[1], &[], None),
        ] {
            let active = nodes(active);
            let chosen = leader_of(&nodes(replicas), &nodes(in_sync), |n| active.contains(&n));
            assert_eq!(
                chosen,
                leader.map(NodeId),
                "{replicas:?} {in_sync:?} {active:?}"
            );
        }
    }

    #[test]
    fn the_in_sync_replicas_never_become_fewer_than_demanded() {
        for (in_sync, lost, min, rest) in [
            (&[1, 2, 3][..], 2, 2, &[1, 3][..]),
            (&[1, 3], 1, 2, &[1, 3]),
            (&[1], 1, 1, &[1]),
            (&[1], 1, 0, &[1]),
            (&[1, 2], 3, 1, &[1, 2]),
        ] {
            assert_eq!(without(&nodes(in_sync), NodeId(lost), min), nodes(rest));
        }
    }
}
