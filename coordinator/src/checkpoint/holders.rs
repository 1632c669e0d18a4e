//! Who besides the worker that runs it has a task's state, and for whom a checkpoint waits.
//!
//! A standby that has everything up to the last completed checkpoint keeps up, and the next one waits for it.
//! One that does not is not waited for until it does, so that a slow or new one holds up nobody. Tasks of the next
//! division are waited for only once all of them keep up: before that it would come no nearer. What
//! a completed checkpoint names as holders is exactly who has said so.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{CheckpointId, NodeId, TaskId};
use common::protocol::task::Standbys;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Holders {
    assigned: BTreeSet<(TaskId, NodeId)>,
    /// Of these, those that prepare tasks of the next division.
    preparing: BTreeSet<(TaskId, NodeId)>,
    /// What each has said, or the metadata: everything up to this checkpoint is on its disk.
    held: BTreeMap<(TaskId, NodeId), CheckpointId>,
}

impl Holders {
    /// `holders`: who has the state of `completed`.
    pub(super) fn new(
        completed: Option<CheckpointId>,
        holders: &BTreeMap<TaskId, Vec<NodeId>>,
    ) -> Holders {
        let each = |(task, workers): (&TaskId, &Vec<NodeId>)| {
            let task = *task;
            let each = workers.clone().into_iter();
            each.filter_map(move |worker| Some(((task, worker), completed?)))
        };
        Holders {
            assigned: BTreeSet::new(),
            preparing: BTreeSet::new(),
            held: holders.iter().flat_map(each).collect(),
        }
    }

    /// These stand by from now on, and these prepare tasks of the next division.
    pub(super) fn assign(&mut self, standbys: &Standbys, next: &Standbys) {
        let each = |of: &Standbys| -> BTreeSet<(TaskId, NodeId)> {
            let each = of.iter().flat_map(|(task, workers)| {
                let workers = workers.iter();
                workers.map(|worker| (*task, *worker))
            });
            each.collect()
        };
        self.preparing = each(next);
        self.assigned = &each(standbys) | &self.preparing;
    }

    pub(super) fn hold(&mut self, worker: NodeId, task: TaskId, checkpoint: CheckpointId) {
        let held = self.held.entry((task, worker)).or_insert(checkpoint);
        *held = checkpoint.max(*held);
    }

    pub(super) fn holds(&self, worker: NodeId, task: TaskId, checkpoint: CheckpointId) -> bool {
        self.held.get(&(task, worker)) >= Some(&checkpoint)
    }

    /// A new generation begins from the last completed checkpoint: what was held beyond it counts no more.
    pub(super) fn restart(&mut self, completed: Option<CheckpointId>) {
        self.held.retain(|_, _| completed.is_some());
        for held in self.held.values_mut() {
            *held = completed.map_or(*held, |completed| completed.min(*held));
        }
    }

    /// The standbys that have a task's state at a checkpoint.
    pub(super) fn of(
        &self,
        task: TaskId,
        checkpoint: CheckpointId,
    ) -> impl Iterator<Item = NodeId> + '_ {
        let assigned = self.assigned.range((task, NodeId(0))..);
        assigned
            .take_while(move |(of, _)| *of == task)
            .filter(move |(task, worker)| self.holds(*worker, *task, checkpoint))
            .map(|(_, worker)| *worker)
    }

    /// Whom this checkpoint waits for: who keeps up, and has not said yet that it has it.
    pub(super) fn awaited(
        &self,
        checkpoint: CheckpointId,
        completed: Option<CheckpointId>,
    ) -> impl Iterator<Item = (TaskId, NodeId)> + '_ {
        // Before the first one there is nothing to catch up with.
        let keeps_up =
            move |standby: &(TaskId, NodeId)| self.held.get(standby).copied() >= completed;
        let all_prepared = self.preparing.iter().all(keeps_up);
        let assigned = self.assigned.iter().copied();
        assigned.filter(move |standby| {
            let held = self.held.get(standby).copied();
            let counts = all_prepared || !self.preparing.contains(standby);
            counts && keeps_up(standby) && held < Some(checkpoint)
        })
    }

    /// Whether a worker prepares a task of the next division, and does not stand by for one that runs.
    pub(super) fn prepares(&self, standby: &(TaskId, NodeId)) -> bool {
        self.preparing.contains(standby)
    }
}

#[cfg(test)]
mod tests {
    use common::ids::StageId;

    use super::*;

    const TASK: TaskId = TaskId {
        stage: StageId(0),
        index: 0,
    };

    fn assigned(holders: &mut Holders, workers: &[u32]) {
        let workers = workers.iter().copied().map(NodeId).collect();
        holders.assign(&[(TASK, workers)].into(), &Standbys::new());
    }

    fn awaited(holders: &Holders, checkpoint: u64, completed: Option<u64>) -> Vec<u32> {
        let completed = completed.map(CheckpointId);
        let awaited = holders.awaited(CheckpointId(checkpoint), completed);
        awaited.map(|(_, worker)| worker.0).collect()
    }

    #[test]
    fn who_keeps_up_is_waited_for_and_who_does_not_is_not_until_it_does() {
        let mut holders = Holders::default();
        assigned(&mut holders, &[2, 3]);
        assert_eq!(awaited(&holders, 1, None), [2, 3]);
        holders.hold(NodeId(2), TASK, CheckpointId(1));
        assert_eq!(awaited(&holders, 1, None), [3]);
        assert_eq!(
            holders.of(TASK, CheckpointId(1)).collect::<Vec<_>>(),
            [NodeId(2)]
        );
        // It was completed without 3, which is late.
        assert_eq!(awaited(&holders, 2, Some(1)), [2]);
        holders.hold(NodeId(3), TASK, CheckpointId(1));
        assert_eq!(awaited(&holders, 2, Some(1)), [2, 3]);
    }

    /// While a large one began on a worker, the others there waited for it, and a checkpoint for them.
    #[test]
    fn tasks_of_the_next_division_are_waited_for_once_all_of_them_keep_up() {
        let next = |index: u32| TaskId {
            stage: StageId(7),
            index,
        };
        let mut holders = Holders::default();
        let standbys = [(TASK, vec![NodeId(2)])].into();
        let prepared = [(next(0), vec![NodeId(2)]), (next(1), vec![NodeId(3)])];
        holders.assign(&standbys, &prepared.into());
        holders.hold(NodeId(2), TASK, CheckpointId(1));
        holders.hold(NodeId(2), next(0), CheckpointId(1));
        assert_eq!(awaited(&holders, 2, Some(1)), [2]);
        holders.hold(NodeId(2), TASK, CheckpointId(2));
        assert!(awaited(&holders, 2, Some(1)).is_empty());
        holders.hold(NodeId(3), next(1), CheckpointId(1));
        assert_eq!(awaited(&holders, 2, Some(1)), [2, 3]);
    }

    #[test]
    fn a_new_coordinator_waits_for_those_that_the_metadata_names() {
        let known = [(TASK, vec![NodeId(1), NodeId(2)])].into();
        let mut holders = Holders::new(Some(CheckpointId(7)), &known);
        assigned(&mut holders, &[2, 3]);
        assert_eq!(awaited(&holders, 8, Some(7)), [2]);
    }

    #[test]
    fn what_was_held_of_a_generation_that_is_over_counts_no_more() {
        let mut holders = Holders::default();
        assigned(&mut holders, &[2]);
        holders.hold(NodeId(2), TASK, CheckpointId(9));
        holders.restart(Some(CheckpointId(8)));
        assert_eq!(holders.of(TASK, CheckpointId(9)).count(), 0);
        assert_eq!(awaited(&holders, 9, Some(8)), [2]);
        holders.restart(None);
        assert_eq!(holders.of(TASK, CheckpointId(1)).count(), 0);
    }
}
