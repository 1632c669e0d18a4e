//! `POST /v1/jobs`: deploy a job from SQL or a graph; `?dry_run=true` only plans it.

use std::collections::BTreeMap;

use actix_web::HttpResponse;
use actix_web::http::header::LOCATION;
use actix_web::web;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use common::error::{ErrorCode, Problem};
use common::ids::{JobName, TopicId, TopicName};
use common::limits::MAX_REQUEST_BYTES;
use common::plan::JobGraph;
use common::plan::form;
use common::protocol::job::{CreateJob, Restore};
use common::transport::server::{Query, read_body, read_json};

use super::gate::Reigning;
use super::jobs::{describe, find, plan};
use crate::job::creation::{self, point_into};
use crate::job::describe::JobDescription;
use crate::planner::{PlannedJob, explain};
use crate::savepoint::reading;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// Plan the job and change nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Read first: a bad name has a code of its own.
#[derive(Deserialize)]
struct Named {
    name: String,
}

/// What a job would be.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Plan {
    parallelism: u32,
    /// The job as a graph: posting it deploys the same job.
    graph: JobGraph,
    /// The stages it runs as, as text.
    plan: String,
    /// Topics that would be created, and their partitions.
    #[schema(value_type = BTreeMap<String, u32>)]
    creates_topics: BTreeMap<TopicName, u32>,
    warnings: Vec<String>,
}

impl Plan {
    pub(crate) fn of(planned: PlannedJob, creates_topics: BTreeMap<TopicName, u32>) -> Plan {
        Plan {
            plan: explain(&planned),
            parallelism: planned.parallelism,
            creates_topics,
            warnings: planned.warnings,
            graph: planned.graph,
        }
    }
}

#[utoipa::path(
    post,
    path = "/v1/jobs",
    tag = "jobs",
    params(Options),
    request_body = CreateJob,
    responses(
        (status = 201, description = "The job is deployed", body = JobDescription),
        (status = 200, description = "What it would be (dry_run)", body = Plan),
        (status = 400, description = "The query, the graph or an option is wrong", body = Problem),
        (status = 404, description = "A topic it reads, or the savepoint, does not exist", body = Problem),
        (status = 409, description = "The name is taken", body = Problem),
        (status = 413, description = "The query is too long", body = Problem),
        (status = 422, description = "It wants something that is not supported, or the savepoint is damaged or of another job", body = Problem),
        (status = 503, description = "It needs a topic, and no worker is active; or the savepoint's store cannot be used", body = Problem),
        (status = 507, description = "The coordinator's disk is full", body = Problem),
    )
)]
pub(crate) async fn create_job(
    state: Reigning,
    Query(options): Query<Options>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let body = read_body(payload, MAX_REQUEST_BYTES).await?;
    let Named { name } = read_json(&body)?;
    JobName::new(name)?;
    let mut spec = read_job(&body)?;
    creation::place_archives(&mut spec, state.savepoints.as_ref())?;
    let view = state.controller.view();
    let taken = view.read(|metadata| metadata.job_named(&spec.name).is_some());
    if taken && !options.dry_run {
        return Err(name_taken(&spec.name));
    }
    let (spec, context, planned) = plan(&state, spec).await?;
    let missing = creation::missing_topics(&spec, &planned, &context);
    if options.dry_run {
        return Ok(HttpResponse::Ok().json(Plan::of(planned, missing)));
    }
    let restored = match &spec.restore {
        Some(Restore { from }) => {
            let found = reading::find(&state.objects, from).await;
            let restored = found.and_then(|found| found.for_job(&planned.tasks));
            Some(restored.map_err(|problem| problem.at("/restore/from"))?)
        }
        None => None,
    };
    let name = spec.name.clone();
    let ids = std::iter::repeat_with(|| TopicId(Uuid::new_v4()));
    let command = state
        .controller
        .view()
        .read(|metadata| creation::command(metadata, spec, planned, &missing, ids, restored))?;
    state.controller.propose(command).await?;
    let row = find(&state, name.as_str())?;
    Ok(HttpResponse::Created()
        .insert_header((LOCATION, format!("/v1/jobs/{name}")))
        .json(describe(&state, &row).await))
}

/// Of a graph that is none, the place says what of it is not as it should be.
pub(super) fn read_job(body: &[u8]) -> Result<CreateJob, Problem> {
    read_json(body).map_err(|problem| {
        let document: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        let graph = document.as_ref().and_then(|document| document.get("graph"));
        match graph.and_then(form::problem) {
            Some(problem) => point_into(problem, "/graph"),
            None => problem,
        }
    })
}

fn name_taken(name: &JobName) -> Problem {
    Problem::new(
        ErrorCode::AlreadyExists,
        format!("there is a job \"{name}\" already"),
    )
    .hint("Choose another name, or delete the old job first.")
}
