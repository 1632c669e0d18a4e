//! One at a time: a partition's leader per epoch, a reign per control epoch, a life of a worker per
//! task of a generation.

use std::collections::BTreeMap;

use common::ids::{ControlEpoch, Generation, LeaderEpoch, NodeId, TaskId, TopicPartition};

use super::Verdict;

/// One life of one process.
pub type Life = u64;

#[derive(Debug, Default)]
pub struct OneLeader {
    leaders: BTreeMap<(TopicPartition, LeaderEpoch), (NodeId, Life)>,
    reigns: BTreeMap<ControlEpoch, Life>,
    tasks: BTreeMap<(Generation, TaskId), (NodeId, Life)>,
}

impl OneLeader {
    /// A node wrote to a partition as its leader.
    pub fn leads(
        &mut self,
        partition: TopicPartition,
        epoch: LeaderEpoch,
        node: NodeId,
        life: Life,
    ) -> Verdict {
        let leader = *self
            .leaders
            .entry((partition, epoch))
            .or_insert((node, life));
        alone(leader == (node, life), || {
            format!(
                "partition {partition} is led in epoch {epoch} by {leader:?} and by {:?}",
                (node, life)
            )
        })
    }

    pub fn reigns(&mut self, epoch: ControlEpoch, life: Life) -> Verdict {
        let reigning = *self.reigns.entry(epoch).or_insert(life);
        alone(reigning == life, || {
            format!("lives {reigning} and {life} of the coordinator both reign in {epoch}")
        })
    }

    pub fn runs(
        &mut self,
        generation: Generation,
        task: TaskId,
        node: NodeId,
        life: Life,
    ) -> Verdict {
        let running = *self.tasks.entry((generation, task)).or_insert((node, life));
        alone(running == (node, life), || {
            format!(
                "task {task} of generation {generation} runs at {running:?} and at {:?}",
                (node, life)
            )
        })
    }
}

fn alone(alone: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if alone { Ok(()) } else { Err(otherwise()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_reign_in_the_same_epoch_is_noticed() {
        let mut checker = OneLeader::default();
        checker.reigns(ControlEpoch(3), 1).unwrap();
        checker.reigns(ControlEpoch(3), 1).unwrap();
        checker.reigns(ControlEpoch(4), 2).unwrap();
        assert!(checker.reigns(ControlEpoch(3), 2).is_err());
    }
}
