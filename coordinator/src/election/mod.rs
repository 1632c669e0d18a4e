//! Chooses who leads a partition, and who still counts as in sync when a worker is lost.
//!
//! Every in-sync replica that is not suspect has every committed record, so any of them may lead. Those
//! never become fewer than the topic demands by somebody's leaving: the last to have every record stay in
//! the set while they are away, or a replica that lacks records could be elected.

pub mod waiting;

use std::cmp::Reverse;

use common::ids::NodeId;
use common::protocol::metadata::PartitionImage;

/// Whether a worker may be given something to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    Active,
    /// Where there is nobody else.
    Avoided,
    Away,
}

/// The first replica, in the order of preference, that is in sync, not suspect, and active; one that is avoided only
/// if there is no other.
pub fn leader_of(
    partition: &PartitionImage,
    standing: impl Fn(NodeId) -> Standing,
) -> Option<NodeId> {
    let has_all = |node: &NodeId| partition.isr.contains(node) && !partition.suspect.contains(node);
    let could = partition.replicas.iter().copied().filter(has_all);
    let could = could.filter(|node| standing(*node) != Standing::Away);
    could.min_by_key(|node| standing(*node))
}

/// Whether a replica may leave those in sync: enough stay that have every committed record.
pub fn may_leave(partition: &PartitionImage, lost: NodeId, min_in_sync: usize) -> bool {
    let rest = partition.isr.iter().filter(|node| **node != lost);
    let trusted = rest.filter(|node| !partition.suspect.contains(node));
    trusted.count() >= min_in_sync.max(1)
}

/// Who has the longest log, once all in-sync replicas are suspect and have said where theirs end. If the memory of any
/// of them was not lost, it has every committed record, and so has whose log is longer, in sync or not.
pub fn longest_of_all(partition: &PartitionImage) -> Option<NodeId> {
    let all_have_said = |node| partition.log_ends.contains_key(node);
    let all_are_suspect = partition.isr.iter().all(|n| partition.suspect.contains(n));
    if partition.leader.is_some() || !all_are_suspect || !partition.isr.iter().all(all_have_said) {
        return None;
    }
    longest_of(partition, |_| true)
}

/// Who has the longest log of those that have said where it ends; of equals, the one that is preferred.
pub fn longest_of(partition: &PartitionImage, counts: impl Fn(NodeId) -> bool) -> Option<NodeId> {
    let said = partition.log_ends.iter().filter(|(node, _)| counts(**node));
    let place = |node| {
        partition
            .replicas
            .iter()
            .position(|replica| *replica == node)
    };
    said.max_by_key(|(node, end)| (**end, Reverse(place(**node))))
        .map(|(node, _)| *node)
}

#[cfg(test)]
mod tests {
    use common::ids::LeaderEpoch;
    use common::offset::Offset;
    use common::protocol::metadata::LogEnd;

    use super::*;

    fn nodes(ids: &[u32]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn partition(replicas: &[u32], in_sync: &[u32], suspect: &[u32]) -> PartitionImage {
        PartitionImage {
            replicas: nodes(replicas),
            isr: nodes(in_sync),
            suspect: nodes(suspect),
            ..PartitionImage::default()
        }
    }

    #[test]
    fn the_first_preferred_replica_that_is_in_sync_not_suspect_and_active_leads() {
        for (replicas, in_sync, suspect, active, leader) in [
            (
                &[1, 2, 3][..],
                &[1, 2, 3][..],
                &[][..],
                &[1, 2, 3][..],
                Some(1),
            ),
            (&[2, 1, 3], &[1, 2, 3], &[], &[1, 2, 3], Some(2)),
            (&[1, 2, 3], &[2, 3], &[], &[1, 2, 3], Some(2)),
            (&[1, 2, 3], &[1, 2, 3], &[], &[3], Some(3)),
            (&[1, 2, 3], &[1, 2, 3], &[1], &[1, 2, 3], Some(2)),
            (&[1, 2, 3], &[1, 2], &[1], &[1, 3], None),
            (&[1, 2, 3], &[1], &[], &[2, 3], None),
            (&[1], &[1], &[], &[], None),
        ] {
            let active = nodes(active);
            let partition = partition(replicas, in_sync, suspect);
            let chosen = leader_of(&partition, |node| match active.contains(&node) {
                true => Standing::Active,
                false => Standing::Away,
            });
            assert_eq!(chosen, leader.map(NodeId), "{partition:?} {active:?}");
        }
    }

    #[test]
    fn one_that_is_avoided_leads_only_where_nobody_else_could() {
        let partition = partition(&[1, 2, 3], &[1, 2], &[]);
        for (standings, leader) in [
            (
                [Standing::Avoided, Standing::Active, Standing::Active],
                Some(2),
            ),
            (
                [Standing::Avoided, Standing::Avoided, Standing::Active],
                Some(1),
            ),
            (
                [Standing::Avoided, Standing::Away, Standing::Active],
                Some(1),
            ),
            ([Standing::Away, Standing::Away, Standing::Active], None),
        ] {
            let chosen = leader_of(&partition, |node| standings[node.0 as usize - 1]);
            assert_eq!(chosen, leader.map(NodeId), "{standings:?}");
        }
    }

    #[test]
    fn those_that_have_every_record_never_become_fewer_than_demanded() {
        for (in_sync, suspect, lost, min, leaves) in [
            (&[1, 2, 3][..], &[][..], 2, 2, true),
            (&[1, 3], &[], 1, 2, false),
            (&[1], &[], 1, 1, false),
            (&[1], &[], 1, 0, false),
            (&[1, 2, 3], &[2], 3, 2, false),
            (&[1, 2, 3], &[2], 2, 2, true),
            (&[1, 2, 3], &[1, 2, 3], 3, 1, false),
        ] {
            let partition = partition(&[1, 2, 3], in_sync, suspect);
            let may = may_leave(&partition, NodeId(lost), min);
            assert_eq!(may, leaves, "{partition:?} {lost} {min}");
        }
    }

    #[test]
    fn the_longest_log_leads_when_all_are_suspect_and_have_said_where_theirs_end() {
        let end = |epoch: i32, end| LogEnd {
            last_epoch: Some(LeaderEpoch(epoch)),
            log_end: Offset(end),
        };
        let mut partition = partition(&[3, 2, 1, 4], &[1, 2, 3], &[1, 2, 3]);
        partition.log_ends.insert(NodeId(1), end(4, 9));
        partition.log_ends.insert(NodeId(2), end(5, 7));
        assert_eq!(longest_of_all(&partition), None, "one has said nothing");
        partition.log_ends.insert(NodeId(3), end(5, 7));
        assert_eq!(longest_of_all(&partition), Some(NodeId(3)));
        partition.log_ends.insert(NodeId(2), end(5, 8));
        assert_eq!(longest_of_all(&partition), Some(NodeId(2)));
        let others = longest_of(&partition, |node| node != NodeId(2));
        assert_eq!(others, Some(NodeId(3)));
        partition.suspect = nodes(&[1, 2]);
        assert_eq!(
            longest_of_all(&partition),
            None,
            "one of them has everything"
        );
        partition.suspect = nodes(&[1, 2, 3]);
        partition.leader = Some(NodeId(1));
        assert_eq!(longest_of_all(&partition), None);
    }
}
