//! What a job is: sources, operators and sinks as data.
//!
//! A user writes a [`JobGraph`], as JSON or as the SQL that compiles to it. The coordinator checks it
//! (`form`, `validate`), types it and cuts it into stages (`task_graph`): that is what workers run.
//! Expressions stay SQL text from end to end: what a user reads in `explain` is what a worker evaluates.

pub mod expression;
pub mod window;
pub mod aggregate_function;
pub mod operator;
pub mod connector;
pub mod generator;
pub mod edge;
pub mod form;
pub mod validate;
pub mod task_graph;
pub mod upgrade;
pub mod redistribution;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use connector::{SinkSpec, SourceSpec};
use operator::OperatorSpec;

/// A job as its user sees it: what `POST /v1/jobs` takes and `explain` answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobGraph {
    pub sources: BTreeMap<String, SourceSpec>,
    #[serde(default)]
    pub operators: Vec<OperatorSpec>,
    pub sinks: BTreeMap<String, SinkSpec>,
}
