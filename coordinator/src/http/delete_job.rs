//! `DELETE /v1/jobs/{job}`: forget a job of which nothing runs. Its topics stay.

use actix_web::HttpResponse;
use actix_web::web;

use common::error::Problem;

use super::gate::Reigning;
use super::jobs::find;
use crate::metadata::command::Command;

#[utoipa::path(
    delete,
    path = "/v1/jobs/{job}",
    tag = "jobs",
    params(("job" = String, Path)),
    responses(
        (status = 204, description = "It is deleted"),
        (status = 404, body = Problem),
        (status = 409, description = "It has not been stopped or cancelled", body = Problem),
    )
)]
pub(crate) async fn delete_job(
    state: Reigning,
    job: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let row = find(&state, &job)?;
    let command = Command::DeleteJob { job: row.id };
    state.controller.propose(command).await?;
    Ok(HttpResponse::NoContent().finish())
}
