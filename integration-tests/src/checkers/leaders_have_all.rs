//! Whoever begins to lead a partition has everything that was committed before its reign.
//!
//! It may come to know late that it leads, when others have led, and committed more, after it.

use std::collections::BTreeMap;

use common::ids::{LeaderEpoch, NodeId, TopicPartition};
use common::offset::Offset;

use super::Verdict;

/// Up to where each partition is committed, as its leaders have known in each reign.
#[derive(Debug, Default)]
pub struct LeadersHaveAll {
    committed: BTreeMap<(TopicPartition, LeaderEpoch), Offset>,
}

impl LeadersHaveAll {
    /// The leader of this reign knows everything to be committed up to here.
    pub fn committed(&mut self, partition: TopicPartition, reign: LeaderEpoch, end: Offset) {
        let known = self.committed.entry((partition, reign)).or_default();
        *known = end.max(*known);
    }

    /// This reign begins with a log that ends here.
    pub fn leads(
        &self,
        partition: TopicPartition,
        reign: LeaderEpoch,
        node: NodeId,
        log_end: Offset,
    ) -> Verdict {
        let first = (partition, LeaderEpoch(i32::MIN));
        let earlier = self.committed.range(first..(partition, reign));
        match earlier.map(|(_, end)| *end).max() {
            Some(committed) if log_end < committed => Err(format!(
                "node {node} leads partition {partition} in {reign} with a log up to {log_end}, and up to {committed} it was committed"
            )),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{PartitionId, TopicId};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_leader_without_a_committed_record_is_noticed() {
        let partition = TopicPartition {
            topic: TopicId(Uuid::from_u128(1)),
            partition: PartitionId(0),
        };
        let mut checker = LeadersHaveAll::default();
        let leads = |checker: &LeadersHaveAll, reign, end| {
            checker.leads(partition, LeaderEpoch(reign), NodeId(1), Offset(end))
        };
        leads(&checker, 1, 0).unwrap();
        checker.committed(partition, LeaderEpoch(1), Offset(7));
        checker.committed(partition, LeaderEpoch(1), Offset(5));
        checker.committed(partition, LeaderEpoch(3), Offset(9));
        leads(&checker, 2, 7).unwrap();
        assert!(leads(&checker, 2, 6).is_err());
        assert!(leads(&checker, 4, 8).is_err());
    }
}
