//! Whoever begins to lead a partition has everything that was committed.

use std::collections::BTreeMap;

use common::ids::{NodeId, TopicPartition};
use common::offset::Offset;

use super::Verdict;

/// Up to where each partition is committed, as any of its leaders has known.
#[derive(Debug, Default)]
pub struct LeadersHaveAll {
    committed: BTreeMap<TopicPartition, Offset>,
}

impl LeadersHaveAll {
    /// A leader knows everything to be committed up to here.
    pub fn committed(&mut self, partition: TopicPartition, end: Offset) {
        let known = self.committed.entry(partition).or_default();
        *known = end.max(*known);
    }

    /// A reign begins with a log that ends here.
    pub fn leads(&self, partition: TopicPartition, node: NodeId, log_end: Offset) -> Verdict {
        match self.committed.get(&partition) {
            Some(committed) if log_end < *committed => Err(format!(
                "node {node} leads partition {partition} with a log up to {log_end}, and up to {committed} it is committed"
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
        checker.leads(partition, NodeId(1), Offset(0)).unwrap();
        checker.committed(partition, Offset(7));
        checker.committed(partition, Offset(5));
        checker.leads(partition, NodeId(2), Offset(7)).unwrap();
        assert!(checker.leads(partition, NodeId(3), Offset(6)).is_err());
    }
}
