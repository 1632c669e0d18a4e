//! `GET /v1/jobs/{job}/operators/{operator}/state`: what an operator keeps, by key.
//!
//! All operators can be read at one epoch, so that what is read is one moment of the whole job.

use std::sync::Arc;

use actix_web::http::header::ACCEPT;
use actix_web::web;
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use common::error::{ErrorCode, Problem};
use common::ids::CheckpointId;
use common::limits::{DEFAULT_STATE_ENTRIES, MAX_STATE_ENTRIES, STATE_QUERY_DEADLINE};
use common::protocol::Call;
use common::protocol::state::{
    Consistency, QueryState, QueryStateAtRest, StateEntries, StateEntry,
};
use common::protocol::task::Deployment;
use common::transport::server::Query;
use common::transport::{MSGPACK, msgpack};

use super::State;
use super::gate::Reigning;
use super::jobs::find;
use crate::job::state_query::{self, Ask, Question, Reading};
use crate::metadata::jobs::JobRow;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// One key: JSON, or text as it is. Several key columns are an array.
    key: Option<String>,
    /// Only keys whose first column, as text, starts with this.
    prefix: Option<String>,
    #[param(inline)]
    consistency: Option<Consistency>,
    /// Read at this completed epoch; default the last one.
    epoch: Option<u64>,
    limit: Option<u32>,
    /// Where to go on: what `next` said in the page before. Give its `epoch` as well, to stay at it.
    after: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StatePage {
    operator: String,
    generation: u32,
    /// Absent for live reads.
    epoch: Option<u64>,
    /// Milliseconds since 1970.
    watermark: Option<i64>,
    entries: Vec<StateEntry>,
    /// Where the next page goes on; absent on the last.
    next: Option<String>,
}

/// A job may complete a checkpoint, and its tasks forget an old one, between two of our questions.
const ATTEMPTS: usize = 3;

#[utoipa::path(
    get,
    path = "/v1/jobs/{job}/operators/{operator}/state",
    tag = "jobs",
    params(("job" = String, Path), ("operator" = String, Path), Options),
    responses(
        (status = 200, body = StatePage, headers(
            ("X-State-Epoch" = u64, description = "The completed epoch it was read at"),
            ("X-Generation" = u32),
            ("X-Watermark" = i64, description = "Milliseconds since 1970"),
        )),
        (status = 400, description = "An option is wrong", body = Problem),
        (status = 404, description = "No such job, operator or epoch", body = Problem),
        (status = 409, description = "Nothing of the job runs, so there is no live state", body = Problem),
        (status = 410, description = "The epoch is no longer kept", body = Problem),
        (status = 503, description = "The job is recovering", body = Problem),
    )
)]
pub(crate) async fn query_state(
    state: Reigning,
    request: HttpRequest,
    path: web::Path<(String, String)>,
    Query(options): Query<Options>,
) -> Result<HttpResponse, Problem> {
    let (job, operator) = path.into_inner();
    let question = question(operator, options)?;
    let pinned = question.epoch.is_some();
    for attempt in 1.. {
        match read(&state, &job, question.clone()).await {
            Err(problem) if attempt < ATTEMPTS && is_of_the_past(&problem, pinned) => {}
            Err(problem) => return Err(problem),
            Ok(reading) => return Ok(respond(&request, reading)),
        }
    }
    unreachable!("the last attempt is answered")
}

async fn read(state: &State, job: &str, question: Question) -> Result<Reading, Problem> {
    let row = find(state, job)?;
    let mut reading = Reading::begin(&row, question)?;
    let running = row.deployment.clone();
    let at_rest = running.is_none();
    let is_active = |worker| {
        state
            .controller
            .view()
            .read(|metadata| metadata.is_active(worker))
    };
    let deployment = running.unwrap_or_else(|| Arc::new(state_query::at_rest(&row, is_active)));
    while let Some(ask) = reading.next() {
        let worker = deployment.worker_of(ask.task);
        let address = state.controller.view().read(|metadata| {
            let active = metadata.is_active(worker);
            let row = metadata.worker(worker).filter(|_| active);
            row.map(|row| row.address.clone())
        });
        let address = address.ok_or_else(|| {
            Problem::new(
                ErrorCode::MetadataStale,
                format!("worker {worker}, which has task {}, is gone", ask.task),
            )
            .hint("Ask again; the job is recovering.")
        })?;
        let query = query_of(&row, &reading, &ask);
        let answer = match at_rest {
            false => ask_task(state, &query, &address).await?,
            true => {
                let deployment = Deployment::clone(&deployment);
                ask_task(state, &QueryStateAtRest { deployment, query }, &address).await?
            }
        };
        reading.answered(answer);
    }
    Ok(reading)
}

fn query_of(row: &JobRow, reading: &Reading, ask: &Ask) -> QueryState {
    let question = reading.question();
    QueryState {
        job: row.id,
        generation: reading.generation,
        task: ask.task,
        operator: question.operator.clone(),
        consistency: question.consistency,
        checkpoint: reading.checkpoint,
        key: question.key.clone(),
        prefix: question.prefix.clone(),
        after: ask.after.clone(),
        limit: ask.limit,
    }
}

async fn ask_task<C: Call<Reply = StateEntries>>(
    state: &State,
    call: &C,
    address: &str,
) -> Result<StateEntries, Problem> {
    let answered = state
        .transport
        .call(address, call, STATE_QUERY_DEADLINE)
        .await;
    answered.map_err(|error| error.into_problem(ErrorCode::MetadataStale))
}

/// Whether a fresh look at the job may give an answer.
fn is_of_the_past(problem: &Problem, pinned: bool) -> bool {
    match problem.code {
        ErrorCode::EpochGone => !pinned,
        ErrorCode::StaleGeneration | ErrorCode::FencedGeneration => true,
        _ => false,
    }
}

fn question(operator: String, options: Options) -> Result<Question, Problem> {
    let limit = options.limit.unwrap_or(DEFAULT_STATE_ENTRIES);
    if limit == 0 || limit > MAX_STATE_ENTRIES {
        return Err(Problem::new(
            ErrorCode::InvalidRequest,
            format!("\"limit\" is 1 to {MAX_STATE_ENTRIES}, not {limit}"),
        ));
    }
    Ok(Question {
        operator,
        // Text that is no JSON is a key of its own: nobody quotes names in an address.
        key: options
            .key
            .map(|key| serde_json::from_str(&key).unwrap_or(serde_json::Value::String(key))),
        prefix: options.prefix,
        consistency: options.consistency.unwrap_or_default(),
        epoch: options.epoch.map(CheckpointId),
        after: options.after.map(|after| after.parse()).transpose()?,
        limit,
    })
}

fn respond(request: &HttpRequest, reading: Reading) -> HttpResponse {
    let operator = reading.question().operator.clone();
    let (generation, checkpoint) = (reading.generation, reading.checkpoint);
    let page = reading.into_page();
    let mut response = HttpResponse::Ok();
    response.insert_header(("X-Generation", generation.to_string()));
    if let Some(checkpoint) = checkpoint {
        response.insert_header(("X-State-Epoch", checkpoint.to_string()));
    }
    if let Some(watermark) = page.watermark {
        response.insert_header(("X-Watermark", watermark.0.to_string()));
    }
    let body = StatePage {
        operator,
        generation: generation.0,
        epoch: checkpoint.map(|checkpoint| checkpoint.0),
        watermark: page.watermark.map(|watermark| watermark.0),
        entries: page.entries,
        next: page.next.map(|cursor| cursor.to_string()),
    };
    let accept = request.headers().get(ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    if accept.is_some_and(|accept| accept.contains(MSGPACK)) {
        return match msgpack::encode(&body) {
            Ok(bytes) => response.content_type(MSGPACK).body(bytes),
            Err(error) => actix_web::ResponseError::error_response(&Problem::new(
                ErrorCode::Internal,
                format!("the state {error}"),
            )),
        };
    }
    response.json(body)
}
