//! `GET /v1/jobs/{job}/checkpoints`: the latest checkpoints, and where the state of the last one is.

use std::collections::BTreeMap;

use actix_web::web::{Json, Path};
use serde::Serialize;
use utoipa::ToSchema;

use common::error::Problem;

use super::gate::Reigning;
use super::jobs::find;
use crate::checkpoint::actor::DatedRecord;
use crate::checkpoint::history::Outcome;
use crate::job::describe::Kind;
use crate::metadata::checkpoints::CompletedCheckpoint;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CheckpointList {
    /// The last completed epoch; absent before the first.
    completed: Option<u64>,
    /// Task → the workers that have its state at the last completed epoch, the one it runs on first.
    holders: BTreeMap<String, Vec<u32>>,
    /// The last one first.
    checkpoints: Vec<CheckpointEntry>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CheckpointEntry {
    epoch: u64,
    generation: u32,
    #[schema(inline)]
    kind: Kind,
    /// `completed`, `in_progress`, `aborted`, or `subsumed` by a later one.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    triggered_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    /// What it added, and what the state holds in all, as far as tasks have acknowledged it.
    delta_bytes: u64,
    state_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledged_tasks: Option<usize>,
}

#[utoipa::path(
    get,
    path = "/v1/jobs/{job}/checkpoints",
    tag = "jobs",
    params(("job" = String, Path)),
    responses(
        (status = 200, body = CheckpointList),
        (status = 404, body = Problem),
    )
)]
pub(crate) async fn list_checkpoints(
    state: Reigning,
    job: Path<String>,
) -> Result<Json<CheckpointList>, Problem> {
    let row = find(&state, &job)?;
    // What completed is a fact of the metadata; what did not is known to the job's actor only.
    let seen = state.jobs.checkpoints(row.id).await.unwrap_or_default();
    let mut entries: BTreeMap<u64, CheckpointEntry> = seen
        .iter()
        .map(|record| (record.record.checkpoint.0, CheckpointEntry::seen(record)))
        .collect();
    for checkpoint in &row.checkpoints {
        let entry = CheckpointEntry::completed(checkpoint);
        let triggered_at = entries
            .remove(&entry.epoch)
            .and_then(|seen| seen.triggered_at);
        entries.insert(
            entry.epoch,
            CheckpointEntry {
                triggered_at,
                ..entry
            },
        );
    }
    Ok(Json(CheckpointList {
        completed: row.completed.map(|checkpoint| checkpoint.0),
        holders: row
            .holders
            .iter()
            .map(|(task, workers)| (task.to_string(), workers.iter().map(|w| w.0).collect()))
            .collect(),
        checkpoints: entries.into_values().rev().collect(),
    }))
}

impl CheckpointEntry {
    fn completed(checkpoint: &CompletedCheckpoint) -> CheckpointEntry {
        CheckpointEntry {
            epoch: checkpoint.checkpoint.0,
            generation: checkpoint.generation.0,
            kind: Kind::from(checkpoint.kind),
            status: "completed",
            reason: None,
            triggered_at: None,
            completed_at: Some(checkpoint.completed_at.to_string()),
            duration_ms: Some(checkpoint.duration.0),
            delta_bytes: checkpoint.delta_bytes,
            state_bytes: checkpoint.state_bytes,
            acknowledged_tasks: None,
        }
    }

    fn seen(
        DatedRecord {
            record,
            triggered_at,
        }: &DatedRecord,
    ) -> CheckpointEntry {
        let (status, reason) = match &record.outcome {
            Outcome::InProgress => ("in_progress", None),
            Outcome::Completed => ("completed", None),
            Outcome::Subsumed => ("subsumed", None),
            Outcome::Aborted { reason } => ("aborted", Some(reason.clone())),
        };
        CheckpointEntry {
            epoch: record.checkpoint.0,
            generation: record.generation.0,
            kind: Kind::from(record.kind),
            status,
            reason,
            triggered_at: Some(triggered_at.to_string()),
            completed_at: None,
            duration_ms: record.ended.map(|ended| ended.since(record.triggered).0),
            delta_bytes: record.delta_bytes,
            state_bytes: record.state_bytes,
            acknowledged_tasks: Some(record.acknowledged),
        }
    }
}
