//! How rows travel from one stage to the next, and what kinds of change they carry.

use serde::{Deserialize, Serialize};

use super::expression::Expression;

/// Which task of the next stage a row goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Task `i` to task `i`: both stages have the same parallelism.
    Forward,
    /// Rows with equal keys to the same task, by key group. No keys: everything to task 0.
    Hash { keys: Vec<Expression> },
    /// Whole batches, in turn: the stages differ in parallelism and nothing is keyed.
    Rebalance,
}

/// The kinds of change the rows of an edge may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangelogMode {
    /// Inserts only.
    #[default]
    Append,
    /// The latest row per key; `update_before` is absent.
    Upsert { key: Vec<String> },
    /// Every change with the row it replaces. `key`: the columns that identify a row, if known.
    Retract { key: Vec<String> },
}
