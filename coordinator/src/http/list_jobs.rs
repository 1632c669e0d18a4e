//! `GET /v1/jobs`: names and states, in pages.

use actix_web::web::Json;
use serde::Serialize;
use utoipa::ToSchema;

use common::error::Problem;
use common::transport::server::Query;

use super::gate::Reigning;
use super::paging::Page;
use crate::job::describe::JobSummary;

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobList {
    jobs: Vec<JobSummary>,
    /// Give it as `after` to read on; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[utoipa::path(
    get,
    path = "/v1/jobs",
    tag = "jobs",
    params(Page),
    responses((status = 200, body = JobList), (status = 400, body = Problem))
)]
pub(crate) async fn list_jobs(
    state: Reigning,
    Query(page): Query<Page>,
) -> Result<Json<JobList>, Problem> {
    let (rows, next) = state
        .controller
        .view()
        .read(|metadata| page.of(metadata.jobs_by_name().cloned(), |row| row.name.to_string()))?;
    let jobs = rows.iter().map(|row| JobSummary::of(row)).collect();
    Ok(Json(JobList { jobs, next }))
}
