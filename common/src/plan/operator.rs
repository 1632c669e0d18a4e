//! `OperatorSpec`: one variant per operator a job may have.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::expression::{Expression, NamedExpression};
use super::window::WindowSpec;
use crate::time::Span;

/// An operator of a job. `inputs` name sources or other operators; their order numbers the inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OperatorSpec {
    Filter(Filter),
    Project(Project),
    Union(Union),
    WindowAggregate(WindowAggregate),
    Aggregate(Aggregate),
    Custom(Custom),
}

/// Keeps the rows for which `predicate` is true.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    pub id: String,
    pub inputs: Vec<String>,
    pub predicate: Expression,
}

/// Computes the columns of its output from those of its input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Project {
    pub id: String,
    pub inputs: Vec<String>,
    pub columns: Vec<NamedExpression>,
}

/// All rows of all its inputs, which have the same columns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Union {
    pub id: String,
    pub inputs: Vec<String>,
}

/// Aggregates per key and window; a window's rows come out once, when the watermark passes its end.
/// Output: the keys, `window_start`, `window_end`, the aggregates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WindowAggregate {
    pub id: String,
    pub inputs: Vec<String>,
    /// May be empty: one group over all rows.
    #[serde(default)]
    pub keys: Vec<NamedExpression>,
    pub window: WindowSpec,
    /// The column that places a row in time; default: the input's watermark column. The start of the windows that
    /// the input's rows are results of puts them into these windows again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    pub aggregates: Vec<AggregateCall>,
    /// How far behind the watermark a row may be and still be counted, if its windows are open.
    #[serde(default)]
    pub allowed_lateness: Span,
}

/// Aggregates per key over all rows so far; every change of a result comes out as a change of kind.
/// Output: the keys, the aggregates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Aggregate {
    pub id: String,
    pub inputs: Vec<String>,
    #[serde(default)]
    pub keys: Vec<NamedExpression>,
    pub aggregates: Vec<AggregateCall>,
}

/// An operator that a worker was built with; workers announce which they carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Custom {
    pub id: String,
    pub inputs: Vec<String>,
    pub name: String,
    /// Rows with equal keys go to the same task; empty: any task.
    #[serde(default)]
    pub keys: Vec<NamedExpression>,
    /// The columns it emits.
    pub schema: Vec<crate::schema::Column>,
    /// Handed to the operator as it is.
    #[serde(default)]
    pub config: serde_json::Value,
}

/// One aggregate function applied to the rows of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AggregateCall {
    /// `count`, `sum`, … as SQL names them.
    #[serde(rename = "fn")]
    pub function: String,
    /// Empty for `count(*)`.
    #[serde(default)]
    pub args: Vec<Expression>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub distinct: bool,
    /// Counts only rows for which this is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Expression>,
    #[serde(rename = "as")]
    pub name: String,
}

impl OperatorSpec {
    pub fn id(&self) -> &str {
        match self {
            OperatorSpec::Filter(filter) => &filter.id,
            OperatorSpec::Project(project) => &project.id,
            OperatorSpec::Union(union) => &union.id,
            OperatorSpec::WindowAggregate(aggregate) => &aggregate.id,
            OperatorSpec::Aggregate(aggregate) => &aggregate.id,
            OperatorSpec::Custom(custom) => &custom.id,
        }
    }

    pub fn inputs(&self) -> &[String] {
        match self {
            OperatorSpec::Filter(filter) => &filter.inputs,
            OperatorSpec::Project(project) => &project.inputs,
            OperatorSpec::Union(union) => &union.inputs,
            OperatorSpec::WindowAggregate(aggregate) => &aggregate.inputs,
            OperatorSpec::Aggregate(aggregate) => &aggregate.inputs,
            OperatorSpec::Custom(custom) => &custom.inputs,
        }
    }

    /// What `type` says in the JSON form.
    pub fn type_name(&self) -> &'static str {
        match self {
            OperatorSpec::Filter(_) => "filter",
            OperatorSpec::Project(_) => "project",
            OperatorSpec::Union(_) => "union",
            OperatorSpec::WindowAggregate(_) => "window_aggregate",
            OperatorSpec::Aggregate(_) => "aggregate",
            OperatorSpec::Custom(_) => "custom",
        }
    }

    /// Whether it remembers anything of the rows it has seen.
    pub fn has_state(&self) -> bool {
        match self {
            OperatorSpec::Filter(_) | OperatorSpec::Project(_) | OperatorSpec::Union(_) => false,
            OperatorSpec::WindowAggregate(_)
            | OperatorSpec::Aggregate(_)
            | OperatorSpec::Custom(_) => true,
        }
    }

    /// The keys by which this operator's rows must meet, if it is keyed. `Some(&[])` is one group for all.
    pub fn keys(&self) -> Option<&[NamedExpression]> {
        match self {
            OperatorSpec::Filter(_) | OperatorSpec::Project(_) | OperatorSpec::Union(_) => None,
            OperatorSpec::WindowAggregate(aggregate) => Some(&aggregate.keys),
            OperatorSpec::Aggregate(aggregate) => Some(&aggregate.keys),
            OperatorSpec::Custom(custom) if custom.keys.is_empty() => None,
            OperatorSpec::Custom(custom) => Some(&custom.keys),
        }
    }
}
