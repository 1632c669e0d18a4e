//! Event time never goes back: not while a task lives, and not when it is restored.

use std::collections::BTreeMap;

use common::ids::{CheckpointId, Generation, TaskId};
use common::time::Timestamp;

use super::Verdict;

#[derive(Debug, Default)]
pub struct WatermarksRise {
    said: BTreeMap<(Generation, TaskId), Timestamp>,
    /// What each task was restored with, by the checkpoint.
    restored: BTreeMap<(TaskId, Option<CheckpointId>), Timestamp>,
}

impl WatermarksRise {
    /// A task is where it was at this checkpoint.
    pub fn restored(
        &mut self,
        generation: Generation,
        task: TaskId,
        at: Option<CheckpointId>,
        watermark: Timestamp,
    ) -> Verdict {
        let earlier = self.restored.range(..=(task, at)).next_back();
        if let Some(((before, _), said)) = earlier
            && *before == task
            && watermark < *said
        {
            return Err(format!(
                "task {task} was restored at {at:?} with watermark {watermark:?}, earlier with {said:?}"
            ));
        }
        self.restored.insert((task, at), watermark);
        self.said(generation, task, watermark)
    }

    pub fn said(&mut self, generation: Generation, task: TaskId, watermark: Timestamp) -> Verdict {
        let before = self.said.insert((generation, task), watermark);
        match before {
            Some(before) if watermark < before => Err(format!(
                "the watermark of task {task} fell from {before:?} to {watermark:?}"
            )),
            Some(_) | None => Ok(()),
        }
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

    #[test]
    fn a_watermark_that_falls_is_noticed_and_one_that_is_rolled_back_is_not() {
        let mut checker = WatermarksRise::default();
        let first = Generation(1);
        let second = Generation(2);
        checker.restored(first, TASK, None, Timestamp::MIN).unwrap();
        checker.said(first, TASK, Timestamp(20)).unwrap();
        let at = Some(CheckpointId(3));
        checker.restored(second, TASK, at, Timestamp(10)).unwrap();
        assert!(checker.said(second, TASK, Timestamp(9)).is_err());
        let later = Some(CheckpointId(4));
        let third = Generation(3);
        assert!(checker.restored(third, TASK, later, Timestamp(9)).is_err());
    }
}
