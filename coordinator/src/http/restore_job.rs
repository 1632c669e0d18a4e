//! `POST /v1/jobs/{job}/restore`: a job whose state is lost, or not wanted, goes on with that of a savepoint.
//!
//! Output that was committed after the savepoint stays, and is written again: who restores has to say that this is
//! accepted, unless the savepoint is of the job's last checkpoint.

use std::sync::Arc;

use actix_web::web::{self, Json, Path};
use serde::Deserialize;
use utoipa::ToSchema;

use common::error::{ErrorCode, Problem};
use common::limits::MAX_REQUEST_BYTES;
use common::savepoint::Manifest;
use common::transport::server::{read_body, read_json};

use super::State;
use super::gate::Reigning;
use super::jobs::{describe, find};
use crate::job::describe::JobDescription;
use crate::metadata::command::{Command, Rejection};
use crate::metadata::jobs::JobRow;
use crate::metadata::savepoints::may_be_restored;
use crate::savepoint::reading;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreJob {
    /// The savepoint's location, as `GET /v1/jobs/{job}/savepoints` has it.
    from: String,
    #[serde(default)]
    #[schema(inline)]
    accept: Option<Accept>,
}

/// What may become of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accept {
    /// What was committed after the savepoint stays, and comes again.
    AtLeastOnce,
}

#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/restore",
    tag = "jobs",
    params(("job" = String, Path)),
    request_body = RestoreJob,
    responses(
        (status = 200, description = "It goes on with the savepoint's state", body = JobDescription),
        (status = 400, body = Problem),
        (status = 404, description = "No such job or savepoint", body = Problem),
        (status = 409, description = "It runs or is over; or output would be written twice, and nobody has accepted that", body = Problem),
        (status = 422, description = "The savepoint is damaged, or of another job", body = Problem),
        (status = 503, description = "The savepoint's store cannot be used", body = Problem),
    )
)]
pub(crate) async fn restore_job(
    state: Reigning,
    job: Path<String>,
    payload: web::Payload,
) -> Result<Json<JobDescription>, Problem> {
    let body = read_body(payload, MAX_REQUEST_BYTES).await?;
    let row = find(&state, &job)?;
    let RestoreJob { from, accept } = read_json(&body)?;
    let from = from.parse().map_err(Problem::from);
    let from = from.map_err(|problem: Problem| problem.at("/from"))?;
    // Told before anything is fetched; the metadata checks it again.
    if row.deployment.is_some() || !may_be_restored(row.state) {
        let job = row.name.clone();
        return Err(Rejection::NotAtRest {
            job,
            state: row.state,
        }
        .into());
    }
    let found = reading::find(&state.objects, &from).await?;
    if accept.is_none() && !is_last(&state, &row, &found.manifest) {
        return Err(Problem::new(
            ErrorCode::Conflict,
            format!(
                "what job \"{}\" has committed after this savepoint, of epoch {}, stays and would be written again: \
                 its output would be at least once, no longer exactly once",
                row.name, found.manifest.checkpoint
            ),
        )
        .at("/accept")
        .hint("Send \"accept\": \"at_least_once\" if readers of its output can live with that; or deploy a new job with \"restore\" that writes elsewhere."));
    }
    let restored = found.for_job(&row.graph)?;
    let command = Command::RestoreJob {
        job: row.id,
        generation: row.generation,
        restored: Arc::new(restored),
    };
    state.controller.propose(command).await?;
    let row = find(&state, &job)?;
    Ok(Json(describe(&state, &row).await))
}

/// Nothing was committed after it.
fn is_last(state: &State, row: &JobRow, manifest: &Manifest) -> bool {
    let cluster = state.controller.view().read(|metadata| metadata.cluster());
    cluster == Some(manifest.cluster)
        && row.id == manifest.job
        && row.completed == Some(manifest.checkpoint)
}
