//! Answers questions about the state of a task's operators.

use common::error::{ErrorCode, Problem};
use common::protocol::state::{Consistency, QueryState, StateEntries};
use common::time::Timestamp;

use super::chain::Chain;
use crate::keyed_state::table::At;

/// The entries a query asks for, in the order of their keys.
pub fn answer(
    query: &QueryState,
    chain: &Chain,
    watermark: Option<Timestamp>,
) -> Result<StateEntries, Problem> {
    let (_, operator, state) = chain
        .operators()
        .find(|(id, _, _)| *id == query.operator)
        .ok_or_else(|| {
            let detail = format!("task {} has no operator \"{}\"", query.task, query.operator);
            Problem::new(ErrorCode::UnknownOperator, detail)
        })?;
    let at = match (query.consistency, query.checkpoint) {
        (Consistency::Live, _) => At::Live,
        (Consistency::Completed, Some(checkpoint)) => At::Completed(checkpoint),
        (Consistency::Completed, None) => {
            return Err(Problem::new(
                ErrorCode::InvalidRequest,
                "no checkpoint to read at is named",
            ));
        }
    };
    let wanted_key = match &query.key {
        Some(key) => Some(operator.encode_key(key).ok_or_else(|| {
            let detail = format!("{key} is not a key of \"{}\"", query.operator);
            Problem::new(ErrorCode::InvalidRequest, detail)
                .hint("Write a single key column as a JSON value, several as an array.")
        })?),
        None => None,
    };
    let limit = usize::try_from(query.limit).expect("a limit fits in memory");
    let mut after = query.after;
    let mut answer = StateEntries {
        entries: Vec::new(),
        more: false,
        watermark,
    };
    for (name, table) in &state.tables {
        let entries = table.entries(at).ok_or_else(|| gone(query))?;
        for (namespace, key, value) in entries {
            if wanted_key.as_ref().is_some_and(|wanted| wanted != key) {
                continue;
            }
            let Some(entry) = operator.describe(name, namespace, key, value) else {
                continue;
            };
            let first = entry.key.values().next();
            if query
                .prefix
                .as_ref()
                .is_some_and(|prefix| !starts_with(first, prefix))
            {
                continue;
            }
            if after > 0 {
                after -= 1;
                continue;
            }
            if answer.entries.len() == limit {
                answer.more = true;
                return Ok(answer);
            }
            answer.entries.push(entry);
        }
    }
    Ok(answer)
}

fn starts_with(value: Option<&serde_json::Value>, prefix: &str) -> bool {
    match value {
        Some(serde_json::Value::String(text)) => text.starts_with(prefix),
        Some(other) => other.to_string().starts_with(prefix),
        None => prefix.is_empty(),
    }
}

fn gone(query: &QueryState) -> Problem {
    let detail = match query.checkpoint {
        Some(checkpoint) => format!("the state at epoch {checkpoint} is no longer kept"),
        None => "that state is no longer kept".to_owned(),
    };
    Problem::new(ErrorCode::EpochGone, detail).hint("Leave `epoch` out to read the newest one.")
}
