//! Every replica that is in sync, as the metadata says, has everything that is committed: whichever of them is
//! elected, nothing is lost.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{LeaderEpoch, NodeId, TopicPartition};
use common::offset::Offset;
use worker::log::leader_epochs::LeaderEpochs;

use super::Verdict;

#[derive(Debug, Default)]
pub struct InSyncHaveAll {
    partitions: BTreeMap<TopicPartition, Known>,
}

#[derive(Debug, Default)]
struct Known {
    in_sync: BTreeSet<NodeId>,
    /// Up to where everything is committed, and the epoch of the last batch of that.
    committed: Option<(Offset, LeaderEpoch)>,
    /// Up to where each replica has what counts for being committed, and whose it is.
    replicas: BTreeMap<NodeId, (Offset, LeaderEpochs)>,
}

impl InSyncHaveAll {
    /// The metadata says that these are in sync, and not suspect.
    pub fn in_sync(&mut self, partition: TopicPartition, nodes: BTreeSet<NodeId>) -> Verdict {
        let known = self.partitions.entry(partition).or_default();
        known.in_sync = nodes;
        known.check(partition)
    }

    /// A replica has so much, in these epochs.
    pub fn has(
        &mut self,
        partition: TopicPartition,
        node: NodeId,
        end: Offset,
        epochs: &LeaderEpochs,
    ) -> Verdict {
        let known = self.partitions.entry(partition).or_default();
        known.replicas.insert(node, (end, epochs.clone()));
        known.check(partition)
    }

    /// Everything up to here is committed; its last batch is of this epoch.
    pub fn committed(
        &mut self,
        partition: TopicPartition,
        end: Offset,
        epoch: LeaderEpoch,
    ) -> Verdict {
        let known = self.partitions.entry(partition).or_default();
        if known.committed.is_some_and(|(before, _)| end <= before) {
            return Ok(());
        }
        known.committed = Some((end, epoch));
        known.check(partition)
    }
}

impl Known {
    fn check(&self, partition: TopicPartition) -> Verdict {
        let Some((committed, epoch)) = self.committed else {
            return Ok(());
        };
        let lacking = self.in_sync.iter().find(|node| {
            let replica = self.replicas.get(node);
            !replica.is_some_and(|(end, epochs)| {
                *end >= committed && is_of(epochs, committed.0 - 1, epoch)
            })
        });
        match lacking {
            None => Ok(()),
            Some(node) => Err(format!(
                "node {node} is in sync in partition {partition}, which is committed up to {committed} in epoch {epoch}, and has {:?}",
                self.replicas.get(node)
            )),
        }
    }
}

/// Whether the record at this offset is of this epoch. Then everything before it is the same, too.
fn is_of(epochs: &LeaderEpochs, offset: i64, epoch: LeaderEpoch) -> bool {
    let end_of = |epoch| epochs.end_of(epoch, Offset(i64::MAX));
    let begins_before =
        end_of(LeaderEpoch(epoch.0 - 1)).is_none_or(|before| before.end.0 <= offset);
    let ends_after = end_of(epoch).is_some_and(|own| own.epoch == epoch && own.end.0 > offset);
    begins_before && ends_after
}

#[cfg(test)]
mod tests {
    use common::ids::{PartitionId, TopicId};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_replica_in_sync_that_lacks_a_committed_record_or_has_another_one_is_noticed() {
        let partition = TopicPartition {
            topic: TopicId(Uuid::from_u128(1)),
            partition: PartitionId(0),
        };
        let epochs = |starts: &[(i32, i64)]| {
            let mut epochs = LeaderEpochs::default();
            for (epoch, start) in starts {
                epochs.append(LeaderEpoch(*epoch), Offset(*start)).unwrap();
            }
            epochs
        };
        let (one, two, three) = (NodeId(1), NodeId(2), NodeId(3));
        let ours = epochs(&[(2, 0), (4, 5)]);
        let mut checker = InSyncHaveAll::default();
        checker.in_sync(partition, [one, two].into()).unwrap();
        checker.has(partition, one, Offset(9), &ours).unwrap();
        checker.has(partition, two, Offset(7), &ours).unwrap();
        let other = epochs(&[(2, 0), (3, 5)]);
        checker.has(partition, three, Offset(9), &other).unwrap();
        checker
            .committed(partition, Offset(7), LeaderEpoch(4))
            .unwrap();
        assert!(checker.in_sync(partition, [one, three].into()).is_err());
        checker.in_sync(partition, [one, two].into()).unwrap();
        assert!(checker.has(partition, two, Offset(6), &ours).is_err());
        checker.has(partition, two, Offset(7), &ours).unwrap();
        assert!(
            checker
                .committed(partition, Offset(8), LeaderEpoch(4))
                .is_err()
        );
    }
}
