//! `POST /v1/jobs/{job}/rescale`: the job is to run with another parallelism, and goes on running until it does.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix_web::web::{self, Json, Path};
use serde::Deserialize;
use utoipa::ToSchema;

use common::error::{ErrorCode, Problem};
use common::limits::MAX_REQUEST_BYTES;
use common::plan::redistribution::indivisible;
use common::plan::task_graph::TaskGraph;
use common::transport::server::{read_body, read_json};

use super::gate::Reigning;
use super::jobs::{describe, find, plan};
use crate::job::describe::{JobDescription, parallelism};
use crate::job::numbering::numbered_from;
use crate::metadata::command::Command;
use crate::metadata::division::PlannedDivision;
use crate::savepoint::fit;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RescaleJob {
    /// The slots it is to use.
    parallelism: u32,
}

#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/rescale",
    tag = "jobs",
    params(("job" = String, Path)),
    request_body = RescaleJob,
    responses(
        (status = 200, description = "It is prepared for that, and changes once everything is where it is to be; `rescaling` says how far it is. Asking for the parallelism it has ends a change that has not come about", body = JobDescription),
        (status = 400, body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "Its life is over, or it is being changed", body = Problem),
        (status = 422, description = "Its state cannot be divided", body = Problem),
    )
)]
pub(crate) async fn rescale_job(
    state: Reigning,
    job: Path<String>,
    payload: web::Payload,
) -> Result<Json<JobDescription>, Problem> {
    let body = read_body(payload, MAX_REQUEST_BYTES).await?;
    let row = find(&state, &job)?;
    let RescaleJob {
        parallelism: wanted,
    } = read_json(&body)?;
    if let Some(PlannedDivision {
        update: Some(_), ..
    }) = &row.division
    {
        return Err(Problem::new(
            ErrorCode::Conflict,
            format!("job \"{}\" is being changed", row.name),
        )
        .hint("GET /v1/jobs/{job} shows when that is done; or give the parallelism with the change: PUT /v1/jobs/{job}."));
    }
    let planned_for = match &row.division {
        Some(division) => division.parallelism,
        None => parallelism(&row.graph),
    };
    if wanted == planned_for {
        return Ok(Json(describe(&state, &row).await));
    }
    let first_stage = row.next_stage();
    let division = match wanted == parallelism(&row.graph) {
        true => None,
        false => {
            let mut spec = (*row.spec).clone();
            spec.parallelism = Some(wanted);
            let (_, _, planned) = plan(&state, spec).await?;
            check(&row.graph, &planned.tasks)?;
            Some(PlannedDivision {
                parallelism: wanted,
                graph: Arc::new(numbered_from(first_stage, planned.tasks)?),
                places: BTreeMap::new(),
                update: None,
            })
        }
    };
    let command = Command::Divide {
        job: row.id,
        first_stage,
        division,
    };
    state.controller.propose(command).await?;
    let row = find(&state, &job)?;
    Ok(Json(describe(&state, &row).await))
}

/// The same operators, whose state goes by keys.
fn check(before: &TaskGraph, planned: &TaskGraph) -> Result<(), Problem> {
    if let Some(difference) = fit::operator_differences(before, planned).first() {
        return Err(Problem::new(
            ErrorCode::Conflict,
            format!("planned now, it would be another job: compared with the one that runs, {difference}"),
        )
        .hint("The cluster has changed since the job was deployed. Deploy it anew."));
    }
    match indivisible(planned).next() {
        None => Ok(()),
        Some(operator) => Err(Problem::new(
            ErrorCode::UnsupportedFeature,
            format!("the state of \"{operator}\" cannot be divided: it is a custom operator without keys"),
        )
        .hint("Give it \"keys\", and let it keep its state by them; or deploy the job anew.")),
    }
}
