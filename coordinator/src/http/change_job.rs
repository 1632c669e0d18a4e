//! `POST /v1/jobs/{job}/pause`, `resume`, `stop`, `cancel`: what the user wants of a job from now on.
//!
//! Each answers with the job as it is then; the job comes to what is wanted as fast as it can. Asking for
//! what is wanted already changes nothing.

use actix_web::web::{Json, Path};
use serde::Deserialize;
use utoipa::IntoParams;

use common::error::{ErrorCode, Problem};
use common::transport::server::Query;

use super::State;
use super::gate::Reigning;
use super::jobs::{describe, find};
use crate::job::describe::JobDescription;
use crate::job::wishes::{Wish, wish};
use crate::metadata::command::Command;
use crate::metadata::jobs::Desired;

#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/pause",
    tag = "jobs",
    params(("job" = String, Path)),
    responses(
        (status = 200, description = "It halts at a last checkpoint, to be resumed", body = JobDescription),
        (status = 404, body = Problem),
        (status = 409, description = "Its life is over", body = Problem),
    )
)]
pub(crate) async fn pause(
    state: Reigning,
    job: Path<String>,
) -> Result<Json<JobDescription>, Problem> {
    want(&state, &job, Desired::Paused).await
}

#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/resume",
    tag = "jobs",
    params(("job" = String, Path)),
    responses(
        (status = 200, description = "It goes on from its last checkpoint", body = JobDescription),
        (status = 404, body = Problem),
        (status = 409, description = "It is finished or cancelled", body = Problem),
    )
)]
pub(crate) async fn resume(
    state: Reigning,
    job: Path<String>,
) -> Result<Json<JobDescription>, Problem> {
    want(&state, &job, Desired::Running).await
}

#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/stop",
    tag = "jobs",
    params(("job" = String, Path), StopOptions),
    responses(
        (status = 200, description = "It ends at a last checkpoint", body = JobDescription),
        (status = 400, body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "Its life is over", body = Problem),
    )
)]
pub(crate) async fn stop(
    state: Reigning,
    job: Path<String>,
    Query(options): Query<StopOptions>,
) -> Result<Json<JobDescription>, Problem> {
    let desired = match options.drain {
        true => Desired::Drained,
        false => Desired::Stopped,
    };
    want(&state, &job, desired).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StopOptions {
    /// Sources end where they are, as if nothing were to come: every window closes and the job is `FINISHED`.
    #[serde(default)]
    drain: bool,
}

#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/cancel",
    tag = "jobs",
    params(("job" = String, Path)),
    responses(
        (status = 200, description = "It ends at once; what came after its last checkpoint is undone", body = JobDescription),
        (status = 404, body = Problem),
        (status = 409, description = "It is finished", body = Problem),
    )
)]
pub(crate) async fn cancel(
    state: Reigning,
    job: Path<String>,
) -> Result<Json<JobDescription>, Problem> {
    want(&state, &job, Desired::Cancelled).await
}

async fn want(
    state: &State,
    name: &str,
    desired: Desired,
) -> Result<Json<JobDescription>, Problem> {
    let row = find(state, name)?;
    match wish(row.state, desired) {
        Wish::Fulfilled => {}
        Wish::Granted if row.desired == desired => {}
        Wish::Granted => {
            let job = row.id;
            let command = Command::SetDesired { job, desired };
            state.controller.propose(command).await?;
        }
        Wish::Refused => {
            return Err(Problem::new(
                ErrorCode::Conflict,
                format!("job \"{name}\" is {}", row.state),
            )
            .hint("Deploy it again under another name, or delete it first."));
        }
    }
    let row = find(state, name)?;
    Ok(Json(describe(state, &row).await))
}
