//! `GET /v1/jobs/{job}/savepoints`: the latest savepoints of a job, and what became of each.

use actix_web::web::{Json, Path};
use serde::Serialize;
use utoipa::ToSchema;

use common::error::{ErrorCode, Problem};

use super::gate::Reigning;
use super::jobs::find;
use crate::metadata::savepoints::{SavepointOutcome, SavepointRow};

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SavepointList {
    /// The last one first.
    savepoints: Vec<SavepointEntry>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SavepointEntry {
    id: String,
    /// `in_progress`, `complete` or `failed`.
    state: &'static str,
    /// Of a complete one: its own location, which `restore` takes. Else below which it is made.
    location: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Whether it was made by itself.
    archive: bool,
    /// When it was asked for.
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    code: Option<ErrorCode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[utoipa::path(
    get,
    path = "/v1/jobs/{job}/savepoints",
    tag = "jobs",
    params(("job" = String, Path)),
    responses(
        (status = 200, body = SavepointList),
        (status = 404, body = Problem),
    )
)]
pub(crate) async fn list_savepoints(
    state: Reigning,
    job: Path<String>,
) -> Result<Json<SavepointList>, Problem> {
    let row = find(&state, &job)?;
    let savepoints = row.savepoints.iter().rev();
    Ok(Json(SavepointList {
        savepoints: savepoints.map(SavepointEntry::of).collect(),
    }))
}

impl SavepointEntry {
    pub(super) fn of(row: &SavepointRow) -> SavepointEntry {
        let asked = SavepointEntry {
            id: row.id.to_string(),
            state: "in_progress",
            location: row.location.to_string(),
            epoch: None,
            generation: None,
            bytes: None,
            archive: row.archive,
            created_at: row.created_at.to_string(),
            completed_at: None,
            code: None,
            reason: None,
        };
        let Some(ended) = &row.ended else {
            return asked;
        };
        match &ended.outcome {
            SavepointOutcome::Complete {
                place,
                generation,
                checkpoint,
                bytes,
            } => SavepointEntry {
                state: "complete",
                location: place.to_string(),
                epoch: Some(checkpoint.0),
                generation: Some(generation.0),
                bytes: Some(*bytes),
                completed_at: Some(ended.at.to_string()),
                ..asked
            },
            SavepointOutcome::Failed { code, reason } => SavepointEntry {
                state: "failed",
                code: Some(*code),
                reason: Some(reason.clone()),
                ..asked
            },
        }
    }
}
