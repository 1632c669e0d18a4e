//! What is committed is the same batch, byte for byte, on every replica that knows it to be committed.

use std::collections::BTreeMap;

use bytes::Bytes;
use common::ids::{NodeId, TopicPartition};
use common::offset::Offset;

use super::Verdict;

/// Every committed batch, by where it begins, and whose it was first.
#[derive(Debug, Default)]
pub struct ReplicasAgree {
    batches: BTreeMap<(TopicPartition, Offset), (NodeId, Bytes)>,
}

impl ReplicasAgree {
    /// A replica has this batch, and knows that it is committed.
    pub fn committed(
        &mut self,
        partition: TopicPartition,
        node: NodeId,
        base: Offset,
        batch: &Bytes,
    ) -> Verdict {
        let known = self.batches.entry((partition, base));
        let (first, theirs) = known.or_insert_with(|| (node, batch.clone()));
        if theirs == batch {
            return Ok(());
        }
        Err(format!(
            "at {base} of partition {partition} nodes {first} and {node} have different batches committed"
        ))
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{PartitionId, TopicId};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn replicas_that_went_different_ways_are_noticed() {
        let partition = TopicPartition {
            topic: TopicId(Uuid::from_u128(1)),
            partition: PartitionId(0),
        };
        let mut checker = ReplicasAgree::default();
        let mut says = |node, base, batch: &'static [u8]| {
            let batch = Bytes::from_static(batch);
            checker.committed(partition, NodeId(node), Offset(base), &batch)
        };
        says(1, 0, b"a").unwrap();
        says(1, 4, b"b").unwrap();
        says(2, 0, b"a").unwrap();
        assert!(says(2, 4, b"c").is_err());
    }
}
