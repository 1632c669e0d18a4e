//! `PUT /v1/jobs/{job}`: the job becomes another one and keeps its state, as far as that means the same;
//! `?plan=true` only says of each operator what becomes of it.

use actix_web::HttpResponse;
use actix_web::web::{self, Path};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use common::error::{ErrorCode, Problem};
use common::ids::{StageId, TopicId};
use common::limits::MAX_REQUEST_BYTES;
use common::plan::redistribution::indivisible;
use common::plan::task_graph::TaskGraph;
use common::plan::upgrade::{NodeUpgrade, upgrade};
use common::protocol::job::CreateJob;
use common::transport::server::{Query, read_body, read_json};

use super::create_job::{Plan, read_job};
use super::gate::Reigning;
use super::jobs::{describe, find, plan};
use crate::job::creation;
use crate::job::describe::{JobDescription, parallelism};
use crate::job::numbering::numbered_from;
use crate::metadata::command::Command;
use crate::metadata::jobs::JobRow;

/// So many operators whose state is lost are named.
const TOLD: usize = 5;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// Say what would become of each operator, and change nothing.
    #[serde(default)]
    plan: bool,
    /// `state_loss`: what the plan says is dropped or rebuilt may be.
    #[serde(default)]
    #[param(inline)]
    accept: Option<Accept>,
}

/// What may become of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accept {
    StateLoss,
}

/// What a changed job would be, and what would become of the state of this one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UpgradePlan {
    /// Sources, operators and sinks of the changed job, then those it has no more.
    operators: Vec<NodeUpgrade>,
    /// Whether `accept=state_loss` has to be said.
    loses_state: bool,
    #[serde(flatten)]
    planned: Plan,
}

#[utoipa::path(
    put,
    path = "/v1/jobs/{job}",
    tag = "jobs",
    params(("job" = String, Path), Options),
    request_body = CreateJob,
    responses(
        (status = 200, description = "What would become of each operator (plan)", body = UpgradePlan),
        (status = 202, description = "It goes on as it is until what it is to be is prepared; `updating` says how far that is. Putting what the job is ends a change that has not come about", body = JobDescription),
        (status = 400, description = "The query, the graph or an option is wrong", body = Problem),
        (status = 404, description = "No such job, or a topic it reads does not exist", body = Problem),
        (status = 409, description = "Its life is over; or state would be lost, and nobody has accepted that", body = Problem),
        (status = 422, description = "It wants something that is not supported", body = Problem),
        (status = 503, description = "It needs a topic, and no worker is active", body = Problem),
    )
)]
pub(crate) async fn update_job(
    state: Reigning,
    job: Path<String>,
    Query(options): Query<Options>,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let body = read_body(payload, MAX_REQUEST_BYTES).await?;
    let row = find(&state, &job)?;
    let mut spec = read_update(&body, &row)?;
    creation::place_archives(&mut spec, state.savepoints.as_ref())?;
    let (spec, context, planned) = plan(&state, spec).await?;
    check(&row.graph, &planned.tasks)?;
    let missing = creation::missing_topics(&spec, &planned, &context);
    let operators = upgrade(&row.graph, &planned.tasks);
    if options.plan {
        return Ok(HttpResponse::Ok().json(UpgradePlan {
            loses_state: operators.iter().any(|operator| operator.loses_state),
            operators,
            planned: Plan::of(planned, missing),
        }));
    }
    if options.accept != Some(Accept::StateLoss) {
        refuse_loss(&operators)?;
    }
    if is_as_it_was(&row, &spec, &planned.tasks)? {
        // A change that has not come about is not wanted any more.
        if row.division.is_some() {
            let (job, first_stage) = (row.id, row.next_stage());
            let command = Command::Divide {
                job,
                first_stage,
                division: None,
            };
            state.controller.propose(command).await?;
        }
        let row = find(&state, &job)?;
        return Ok(HttpResponse::Accepted().json(describe(&state, &row).await));
    }
    let ids = std::iter::repeat_with(|| TopicId(Uuid::new_v4()));
    let command = state
        .controller
        .view()
        .read(|metadata| creation::update_command(metadata, &row, spec, planned, &missing, ids))?;
    state.controller.propose(command).await?;
    let row = find(&state, &job)?;
    Ok(HttpResponse::Accepted().json(describe(&state, &row).await))
}

/// The whole definition. Without a name it is the job's own, without a parallelism the one it has or is to have.
fn read_update(body: &[u8], row: &JobRow) -> Result<CreateJob, Problem> {
    let mut document: serde_json::Value = read_json(body)?;
    if let Some(fields) = document.as_object_mut() {
        let name = serde_json::Value::from(row.name.as_str());
        fields.entry("name").or_insert(name);
    }
    let mut spec = read_job(document.to_string().as_bytes())?;
    let refuse = |at: &str, detail: String| Problem::new(ErrorCode::InvalidRequest, detail).at(at);
    if spec.name != row.name {
        let detail = format!("the job is \"{}\", and keeps its name", row.name);
        return Err(refuse("/name", detail));
    }
    if spec.restore.is_some() {
        let detail = "a job that is changed keeps the state it has".to_owned();
        return Err(refuse("/restore", detail)
            .hint("POST /v1/jobs/{job}/restore brings that of a savepoint."));
    }
    let key_groups = row.graph.key_groups;
    if spec.config.key_groups != key_groups {
        let detail = format!("the job has {key_groups} key groups for its life");
        return Err(
            refuse("/config/key_groups", detail).hint("Leave it as it is, or deploy the job anew.")
        );
    }
    let now = row.division.as_ref().map(|division| division.parallelism);
    spec.parallelism = spec.parallelism.or(now).or(Some(parallelism(&row.graph)));
    Ok(spec)
}

/// Whether the job is what it is to be.
fn is_as_it_was(row: &JobRow, spec: &CreateJob, planned: &TaskGraph) -> Result<bool, Problem> {
    let graph = TaskGraph::clone(&row.graph);
    let graph = numbered_from(StageId(0), graph)?;
    let mut was = CreateJob::clone(&row.spec);
    was.restore = None;
    was.parallelism = spec.parallelism;
    Ok(graph == *planned && was == *spec)
}

fn check(before: &TaskGraph, after: &TaskGraph) -> Result<(), Problem> {
    let mut stays = indivisible(before).filter(|operator| {
        let mut operators = after.stages.iter().flat_map(|stage| stage.nodes());
        operators.any(|node| node == *operator)
    });
    match stays.next() {
        None => Ok(()),
        Some(operator) => Err(Problem::new(
            ErrorCode::UnsupportedFeature,
            format!("the state of \"{operator}\" cannot be taken along: it is a custom operator without keys"),
        )
        .hint("Give the changed operator another id, so that it begins with nothing, or deploy the job anew.")),
    }
}

fn refuse_loss(operators: &[NodeUpgrade]) -> Result<(), Problem> {
    let losing: Vec<String> = operators
        .iter()
        .filter(|operator| operator.loses_state)
        .map(
            |NodeUpgrade {
                 operator, reason, ..
             }| format!("\"{operator}\": {reason}"),
        )
        .collect();
    if losing.is_empty() {
        return Ok(());
    }
    let told = losing.len().min(TOLD);
    let mut detail = format!("state would be lost: {}", losing[..told].join("; "));
    if losing.len() > told {
        detail.push_str(&format!("; and of {} more", losing.len() - told));
    }
    Err(Problem::new(ErrorCode::StateWouldBeLost, detail).hint(
        "PUT with ?plan=true shows all of it; with ?accept=state_loss it is done all the same.",
    ))
}
