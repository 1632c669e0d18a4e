//! `GET /v1/jobs/{job}`: state, graph with tasks and workers, rates, lag, last checkpoint, restarts.

use actix_web::web::{Json, Path};

use common::error::Problem;

use super::gate::Reigning;
use super::jobs::{describe, find};
use crate::job::describe::JobDescription;

#[utoipa::path(
    get,
    path = "/v1/jobs/{job}",
    tag = "jobs",
    params(("job" = String, Path)),
    responses((status = 200, body = JobDescription), (status = 404, body = Problem))
)]
pub(crate) async fn describe_job(
    state: Reigning,
    job: Path<String>,
) -> Result<Json<JobDescription>, Problem> {
    let row = find(&state, &job)?;
    Ok(Json(describe(&state, &row).await))
}
