//! What workers run: a job cut into stages, each a chain of operators that share a task.
//!
//! The coordinator's planner makes it from a `JobGraph`; nothing in it is left to be guessed: every
//! edge has its columns, every operator its input and output columns.

use serde::{Deserialize, Serialize};

use super::connector::{SinkSpec, SourceSpec};
use super::edge::{ChangelogMode, Route};
use super::operator::OperatorSpec;
use crate::ids::{StageId, TaskId};
use crate::schema::Column;

/// A job's stages in an order in which every edge leads forward.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskGraph {
    pub stages: Vec<Stage>,
    pub edges: Vec<Edge>,
    /// Fixed for the job's life.
    pub key_groups: u16,
}

/// A chain: at most one source, then operators, then at most one sink. A stage without a source has
/// incoming edges; a stage without a sink has outgoing ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    pub id: StageId,
    pub parallelism: u32,
    pub source: Option<PlannedSource>,
    pub operators: Vec<PlannedOperator>,
    pub sink: Option<PlannedSink>,
}

/// Rows from every task of `from` to tasks of `to`, where they arrive at the numbered `input` of its
/// first operator (0 for a sink).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Edge {
    pub from: StageId,
    pub to: StageId,
    pub input: u16,
    pub route: Route,
    pub columns: Vec<Column>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedSource {
    /// Its name in the job graph; also the operator id its state is kept under.
    pub name: String,
    pub spec: SourceSpec,
    /// The columns the job needs of it, in the schema's order.
    pub columns: Vec<Column>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedOperator {
    pub spec: OperatorSpec,
    /// One entry per numbered input.
    pub inputs: Vec<Vec<Column>>,
    pub output: Vec<Column>,
    /// The event-time column of its first input, if there is one.
    pub time_column: Option<String>,
    pub input_mode: ChangelogMode,
    pub output_mode: ChangelogMode,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedSink {
    /// Its name in the job graph; also the operator id its state is kept under.
    pub name: String,
    pub spec: SinkSpec,
    pub columns: Vec<Column>,
    pub mode: ChangelogMode,
}

impl TaskGraph {
    pub fn stage(&self, id: StageId) -> &Stage {
        self.find(id).expect("an edge names a stage of its graph")
    }

    pub fn find(&self, id: StageId) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.id == id)
    }

    pub fn inputs_of(&self, stage: StageId) -> impl Iterator<Item = (usize, &Edge)> {
        self.edges
            .iter()
            .enumerate()
            .filter(move |(_, edge)| edge.to == stage)
    }

    pub fn outputs_of(&self, stage: StageId) -> impl Iterator<Item = (usize, &Edge)> {
        self.edges
            .iter()
            .enumerate()
            .filter(move |(_, edge)| edge.from == stage)
    }

    /// Every task, in the order of stages and indices: the position is the task's ordinal in its job.
    pub fn tasks(&self) -> impl Iterator<Item = TaskId> {
        self.stages.iter().flat_map(Stage::tasks)
    }
}

impl Stage {
    pub fn tasks(&self) -> impl Iterator<Item = TaskId> + use<> {
        let stage = self.id;
        (0..self.parallelism).map(move |index| TaskId { stage, index })
    }

    /// What it is made of, by name: the source, the operators and the sink.
    pub fn nodes(&self) -> Vec<&str> {
        let source = self.source.iter().map(|source| source.name.as_str());
        let operators = self.operators.iter().map(|operator| operator.spec.id());
        let sink = self.sink.iter().map(|sink| sink.name.as_str());
        source.chain(operators).chain(sink).collect()
    }

    /// Whether its tasks keep state that a restore must bring back on the worker that has it.
    pub fn has_state(&self) -> bool {
        self.source.is_some()
            || self.sink.is_some()
            || self
                .operators
                .iter()
                .any(|operator| operator.spec.has_state())
    }
}
