//! When a worker's share of a checkpoint may be persisted.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{CheckpointId, StageId, TaskId};
use proptest::prelude::*;

use super::participant::Participant;

fn task(index: u32) -> TaskId {
    TaskId {
        stage: StageId(0),
        index,
    }
}

fn participant(tasks: u32) -> Participant<u64> {
    Participant::new((0..tasks).map(task).collect())
}

#[test]
fn nothing_is_persisted_before_every_task_has_sealed() {
    let mut participant = participant(2);
    participant.sealed(task(0), CheckpointId(1), 0);
    assert_eq!(participant.take_ready(), None);
    participant.sealed(task(1), CheckpointId(1), 0);
    assert_eq!(
        participant.take_ready().unwrap().checkpoint,
        CheckpointId(1)
    );
}

#[test]
fn one_sync_at_a_time_and_the_next_takes_all_that_gathered() {
    let mut participant = participant(1);
    participant.sealed(task(0), CheckpointId(1), 0);
    participant.take_ready().unwrap();
    participant.sealed(task(0), CheckpointId(2), 0);
    participant.sealed(task(0), CheckpointId(3), 0);
    assert_eq!(participant.take_ready(), None);
    participant.persisted(CheckpointId(1));
    let persist = participant.take_ready().unwrap();
    assert_eq!(persist.checkpoint, CheckpointId(3));
    assert_eq!(persist.chunks.len(), 2);
}

#[test]
fn what_one_task_sealed_and_another_abandoned_is_persisted_with_the_next_checkpoint() {
    let mut participant = participant(2);
    participant.sealed(task(0), CheckpointId(1), 0);
    participant.sealed(task(0), CheckpointId(5), 0);
    participant.sealed(task(1), CheckpointId(5), 0);
    let persist = participant.take_ready().unwrap();
    let sealed: Vec<_> = persist
        .chunks
        .iter()
        .map(|(c, t, _)| (c.0, t.index))
        .collect();
    assert_eq!(sealed, [(1, 0), (5, 0), (5, 1)]);
}

proptest! {
    /// Tasks seal increasing checkpoints, skipping some, at their own pace.
    #[test]
    fn every_snapshot_is_persisted_once_and_before_the_checkpoint_that_needs_it(
        skips in prop::collection::vec(prop::collection::vec(any::<bool>(), 12), 1..4),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..100),
    ) {
        let tasks = u32::try_from(skips.len()).unwrap();
        let mut participant = participant(tasks);
        // The last checkpoint is sealed by all.
        let plans: Vec<Vec<u64>> = skips
            .iter()
            .map(|skips| (1..=13).filter(|c| *c == 13 || !skips[*c as usize - 1]).collect())
            .collect();
        let mut at = vec![0; plans.len()];
        let mut held: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        let mut picks = order.into_iter();
        loop {
            let ready: Vec<usize> = (0..plans.len()).filter(|i| at[*i] < plans[*i].len()).collect();
            let Some(last) = ready.last() else { break };
            let i = picks.next().map_or(*last, |pick| ready[pick.index(ready.len())]);
            let index = u32::try_from(i).unwrap();
            participant.sealed(task(index), CheckpointId(plans[i][at[i]]), 0);
            at[i] += 1;
            while let Some(persist) = participant.take_ready() {
                for (checkpoint, task, _) in &persist.chunks {
                    prop_assert!(held.entry(task.index).or_default().insert(checkpoint.0));
                }
                for (i, plan) in plans.iter().enumerate() {
                    let index = u32::try_from(i).unwrap();
                    let needed = plan.iter().filter(|c| **c <= persist.checkpoint.0).copied();
                    prop_assert_eq!(held.get(&index).unwrap(), &needed.collect());
                }
                participant.persisted(persist.checkpoint);
            }
        }
        prop_assert_eq!(held.values().map(BTreeSet::len).sum::<usize>(), plans.iter().map(Vec::len).sum::<usize>());
    }
}
