//! Whoever the metadata names a holder of the completed checkpoint can restore exactly that state.

use std::collections::BTreeMap;

use common::ids::{CheckpointId, NodeId, TaskId};

use super::Verdict;

/// Operator and table, namespace and key → value.
pub type Contents = BTreeMap<(String, i64, Vec<u8>), Vec<u8>>;

#[derive(Debug, Default)]
pub struct HoldersCanGoOn {
    at: Option<CheckpointId>,
    /// What whoever was asked first has of each task.
    states: BTreeMap<TaskId, (NodeId, Contents)>,
}

impl HoldersCanGoOn {
    /// What a holder's disk has of a task at the last completed checkpoint, or why it cannot be had.
    pub fn has(
        &mut self,
        at: CheckpointId,
        task: TaskId,
        holder: NodeId,
        contents: Result<Contents, String>,
    ) -> Verdict {
        if self.at != Some(at) {
            self.at = Some(at);
            self.states.clear();
        }
        let contents = contents.map_err(|error| {
            format!("worker {holder} is named a holder of {at} and has lost task {task}: {error}")
        })?;
        let (first, known) = self
            .states
            .entry(task)
            .or_insert((holder, contents.clone()));
        match *known == contents {
            true => Ok(()),
            false => Err(format!(
                "workers {first} and {holder} have different states of task {task} at {at}"
            )),
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

    fn contents(value: u8) -> Contents {
        [(("counts".to_owned(), 0, vec![1]), vec![value])].into()
    }

    #[test]
    fn a_holder_without_the_state_or_with_another_one_is_noticed() {
        let mut checker = HoldersCanGoOn::default();
        let mut has =
            |at, worker, contents| checker.has(CheckpointId(at), TASK, NodeId(worker), contents);
        has(7, 1, Ok(contents(1))).unwrap();
        has(7, 2, Ok(contents(1))).unwrap();
        assert!(has(7, 3, Ok(contents(2))).is_err());
        assert!(has(7, 3, Err("it is gone".to_owned())).is_err());
        // A later checkpoint has another state.
        has(8, 3, Ok(contents(2))).unwrap();
    }
}
