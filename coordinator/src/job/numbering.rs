//! The ids of the stages of another division of a job: none of them was a stage of the job before.

use std::collections::BTreeMap;

use common::error::{ErrorCode, Problem};
use common::ids::StageId;
use common::plan::task_graph::TaskGraph;

/// The same stages under other ids.
pub(crate) fn numbered_from(first: StageId, mut graph: TaskGraph) -> Result<TaskGraph, Problem> {
    let mut number: BTreeMap<StageId, StageId> = BTreeMap::new();
    for (stage, place) in graph.stages.iter_mut().zip(0..) {
        let id = first.0.checked_add(place).ok_or_else(|| {
            Problem::new(
                ErrorCode::Conflict,
                "the job has been divided anew so often that it has used up the numbers of its stages",
            )
            .hint("Deploy it anew.")
        })?;
        number.insert(stage.id, StageId(id));
        stage.id = StageId(id);
    }
    for edge in &mut graph.edges {
        edge.from = number[&edge.from];
        edge.to = number[&edge.to];
    }
    Ok(graph)
}
