//! `POST /v1/jobs/{job}/savepoints`: the state of a job, as of now, goes to an object store.
//!
//! It is made whether who asked for it waits or not, and by whichever coordinator leads. While one is being made,
//! asking for one at the same location is asking for that one.

use actix_web::HttpResponse;
use actix_web::web;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use common::error::{ErrorCode, Problem};
use common::limits::MAX_REQUEST_BYTES;
use common::objects::location::Location;
use common::time::Span;
use common::transport::server::{read_body, read_json};

use super::State;
use super::gate::Reigning;
use super::jobs::find;
use super::list_savepoints::SavepointEntry;
use crate::metadata::command::Command;
use crate::metadata::jobs::JobRow;
use crate::metadata::savepoints::{SavepointOutcome, SavepointRow};

/// One that takes longer is answered with as much as is known.
const WAIT: Span = Span::from_secs(15);

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateSavepoint {
    /// `file:///directory` or `s3://bucket/prefix`; default: the coordinator's option `savepoints`.
    #[serde(default)]
    location: Option<String>,
}

#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/savepoints",
    tag = "jobs",
    params(("job" = String, Path)),
    request_body(content = CreateSavepoint, description = "May be empty"),
    responses(
        (status = 201, description = "All of the job's state is there", body = SavepointEntry),
        (status = 202, description = "It is being made: `GET` says when it is complete", body = SavepointEntry),
        (status = 400, description = "The location is none, or there is no default", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "Another one is being made, or the job has no state yet", body = Problem),
        (status = 503, description = "The store cannot be used", body = Problem),
        (status = 504, description = "No checkpoint was complete in time", body = Problem),
    )
)]
pub(crate) async fn create_savepoint(
    state: Reigning,
    job: web::Path<String>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let body = read_body(payload, MAX_REQUEST_BYTES).await?;
    let row = find(&state, &job)?;
    let location = location(&state, &body)?;
    let id = match under_way(&row, &location) {
        Some(id) => id,
        None => {
            check(&row)?;
            if let Some(made) = made_at_rest(&row, &location) {
                return Ok(HttpResponse::Created().json(SavepointEntry::of(made)));
            }
            let id = Uuid::new_v4();
            let command = Command::BeginSavepoint {
                job: row.id,
                id,
                location,
                archive: false,
            };
            state.controller.propose(command).await?;
            id
        }
    };
    let savepoint = wait_for(&state, &job, id).await?;
    let entry = SavepointEntry::of(&savepoint);
    match savepoint.ended.map(|ended| ended.outcome) {
        None => Ok(HttpResponse::Accepted().json(entry)),
        Some(SavepointOutcome::Complete { .. }) => Ok(HttpResponse::Created().json(entry)),
        Some(SavepointOutcome::Failed { code, reason }) => {
            let detail = format!("the savepoint of job \"{job}\" failed: {reason}");
            Err(Problem::new(code, detail))
        }
    }
}

fn location(state: &State, body: &[u8]) -> Result<Location, Problem> {
    let asked = match body.is_empty() {
        true => CreateSavepoint::default(),
        false => read_json(body)?,
    };
    match (asked.location, &state.savepoints) {
        (Some(text), _) => {
            let location = text.parse().map_err(Problem::from);
            location.map_err(|problem: Problem| problem.at("/location"))
        }
        (None, Some(default)) => Ok(default.clone()),
        (None, None) => Err(Problem::new(
            ErrorCode::InvalidRequest,
            "neither the request nor the coordinator says where savepoints go",
        )
        .hint("Send {\"location\": \"file:///directory\"} or {\"location\": \"s3://bucket/prefix\"}, or start the coordinator with --savepoints.")),
    }
}

fn under_way(row: &JobRow, location: &Location) -> Option<Uuid> {
    let under_way = row.savepoint_under_way()?;
    (under_way.location == *location).then_some(under_way.id)
}

/// Of a job that has no state nothing can be saved, and nothing will be by waiting.
fn check(row: &JobRow) -> Result<(), Problem> {
    let at_rest = row.deployment.is_none() && row.state.is_terminal();
    if at_rest && row.completed.is_none() {
        let detail = format!(
            "job \"{}\" is {} and has not completed a checkpoint",
            row.name, row.state
        );
        return Err(Problem::new(ErrorCode::Conflict, detail)
            .hint("A savepoint is of a job that runs, or that has run up to a checkpoint."));
    }
    Ok(())
}

/// Of a job at rest a second one would be the same.
fn made_at_rest<'a>(row: &'a JobRow, location: &Location) -> Option<&'a SavepointRow> {
    let is_same = |savepoint: &&SavepointRow| {
        let outcome = savepoint.ended.as_ref().map(|ended| &ended.outcome);
        let of = match outcome {
            Some(SavepointOutcome::Complete { checkpoint, .. }) => Some(*checkpoint),
            Some(SavepointOutcome::Failed { .. }) | None => None,
        };
        savepoint.location == *location && of.is_some() && of == row.completed
    };
    row.savepoints
        .iter()
        .rev()
        .filter(|_| row.deployment.is_none())
        .find(is_same)
}

/// The savepoint once it has ended, or as it is after a while.
async fn wait_for(state: &State, job: &str, id: Uuid) -> Result<SavepointRow, Problem> {
    let mut changes = state.controller.view().changes();
    let mut stopping = state.stopping.clone();
    let timeout = tokio::time::sleep(WAIT.as_duration());
    tokio::pin!(timeout);
    let mut waits = true;
    loop {
        let row = find(state, job)?;
        let mut savepoints = row.savepoints.iter();
        let savepoint = savepoints.find(|savepoint| savepoint.id == id);
        let Some(savepoint) = savepoint else {
            let detail = format!("savepoint {id} of job \"{job}\" is no longer known");
            return Err(Problem::new(ErrorCode::UnknownSavepoint, detail));
        };
        if savepoint.ended.is_some() || !waits {
            return Ok(savepoint.clone());
        }
        tokio::select! {
            changed = changes.changed() => waits = changed.is_ok(),
            () = &mut timeout => waits = false,
            _ = stopping.wait_for(|stopping| *stopping) => waits = false,
        }
    }
}
