//! A committed record is never lost or changed, and the end of what may be read never goes back: not at a
//! leader, nor from one leader to the next.

use std::collections::BTreeMap;

use bytes::Bytes;
use common::ids::{LeaderEpoch, TopicId, TopicPartition};
use common::offset::Offset;

use super::Verdict;

/// Every record that somebody was told of.
#[derive(Debug, Default)]
pub struct CommittedStays {
    acknowledged: BTreeMap<(TopicPartition, Offset), Bytes>,
    read: BTreeMap<(TopicPartition, Offset), Bytes>,
    ends: BTreeMap<(TopicPartition, LeaderEpoch), Offset>,
}

impl CommittedStays {
    /// A producer was told that its records are stored, the first of them at this offset.
    pub fn acknowledged(
        &mut self,
        partition: TopicPartition,
        base: Offset,
        values: &[Bytes],
    ) -> Verdict {
        for (index, value) in (0..).zip(values) {
            let offset = base.plus(index);
            self.acknowledged.insert((partition, offset), value.clone());
            if let Some(read) = self.read.get(&(partition, offset)) {
                same(partition, offset, value, read)?;
            }
        }
        Ok(())
    }

    /// Somebody read this record as committed.
    pub fn read(&mut self, partition: TopicPartition, offset: Offset, value: &Bytes) -> Verdict {
        let place = (partition, offset);
        if let Some(acknowledged) = self.acknowledged.get(&place) {
            same(partition, offset, acknowledged, value)?;
        }
        if let Some(before) = self.read.insert(place, value.clone()) {
            same(partition, offset, &before, value)?;
        }
        Ok(())
    }

    /// The leader of this reign let committed records be read up to here. It may not know yet that there is
    /// another.
    pub fn readable(
        &mut self,
        partition: TopicPartition,
        reign: LeaderEpoch,
        end: Offset,
    ) -> Verdict {
        let reigns = |from, to| self.ends.range((partition, from)..=(partition, to));
        let before = reigns(LeaderEpoch(i32::MIN), reign).next_back();
        let after = reigns(reign, LeaderEpoch(i32::MAX)).find(|((_, other), _)| *other > reign);
        if let Some((_, before)) = before
            && end < *before
        {
            return Err(format!(
                "partition {partition} could be read up to {before}, and now up to {end} only"
            ));
        }
        if let Some(((_, next), after)) = after
            && end > *after
        {
            return Err(format!(
                "partition {partition} can be read up to {end} in {reign}, and up to {after} only in {next}"
            ));
        }
        self.ends.insert((partition, reign), end);
        Ok(())
    }

    /// What was read of a topic: partition, offset and value.
    pub fn of_topic(&self, topic: TopicId) -> impl Iterator<Item = (u32, Offset, &Bytes)> {
        let read = self.read.iter();
        let of_topic = read.filter(move |((read, _), _)| read.topic == topic);
        of_topic.map(|((read, offset), value)| (read.partition.0, *offset, value))
    }

    /// Everything there is has been read: what was acknowledged must have been among it.
    pub fn finished(&self) -> Verdict {
        let lost = self
            .acknowledged
            .keys()
            .find(|place| !self.read.contains_key(place));
        match lost {
            Some((partition, offset)) => Err(format!(
                "the record at {offset} of partition {partition} was acknowledged and is not there"
            )),
            None => Ok(()),
        }
    }
}

fn same(partition: TopicPartition, offset: Offset, before: &Bytes, now: &Bytes) -> Verdict {
    if before == now {
        return Ok(());
    }
    Err(format!(
        "the record at {offset} of partition {partition} was {before:?} and is {now:?} now"
    ))
}

#[cfg(test)]
mod tests {
    use common::ids::PartitionId;
    use uuid::Uuid;

    use super::*;

    const PARTITION: TopicPartition = TopicPartition {
        topic: TopicId(Uuid::from_u128(1)),
        partition: PartitionId(0),
    };

    #[test]
    fn a_record_that_is_lost_changed_or_taken_back_is_noticed() {
        let mut checker = CommittedStays::default();
        let value = Bytes::from_static(b"a");
        let values = [value.clone(), value.clone()];
        checker.acknowledged(PARTITION, Offset(3), &values).unwrap();
        checker.read(PARTITION, Offset(3), &value).unwrap();
        assert!(checker.finished().is_err(), "offset 4 was never read");
        checker.read(PARTITION, Offset(4), &value).unwrap();
        checker.finished().unwrap();
        let other = Bytes::from_static(b"b");
        assert!(checker.read(PARTITION, Offset(3), &other).is_err());
        let mut readable =
            |reign, end| checker.readable(PARTITION, LeaderEpoch(reign), Offset(end));
        readable(3, 5).unwrap();
        assert!(readable(3, 4).is_err());
        assert!(readable(4, 4).is_err());
        readable(4, 7).unwrap();
        readable(3, 6).unwrap();
        assert!(readable(3, 8).is_err());
    }
}
