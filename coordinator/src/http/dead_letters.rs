//! `GET /v1/jobs/{job}/dead-letters`: records the job could not use, with reason and origin.
//!
//! They are records of the topic `<job>.dead-letters`; its leader answers as it answers any reader.

use actix_web::http::StatusCode;
use actix_web::web;
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use serde::Deserialize;
use utoipa::IntoParams;

use common::error::{ErrorCode, Problem};
use common::limits::MAX_WAIT;
use common::time::Span;
use common::transport::client::Forward;

use super::gate::Reigning;
use super::jobs::find;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(
    dead_code,
    reason = "they are passed on as they came; this says which there are"
)]
pub(crate) struct Options {
    /// `earliest` (default), `latest`, a number, or `@` and an ISO 8601 time.
    offset: Option<String>,
    max_records: Option<u32>,
    max_bytes: Option<u32>,
    wait_ms: Option<u64>,
}

#[utoipa::path(
    get,
    path = "/v1/jobs/{job}/dead-letters",
    tag = "jobs",
    params(("job" = String, Path), Options),
    responses(
        (status = 200, description = "Records, as reading the topic gives them"),
        (status = 404, body = Problem),
        (status = 503, description = "The topic has no live leader", body = Problem),
    )
)]
pub(crate) async fn dead_letters(
    state: Reigning,
    request: HttpRequest,
    job: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let row = find(&state, &job)?;
    let topic = row.name.dead_letters();
    let address = state.controller.view().read(|metadata| {
        let found = metadata.topic_named(&topic).ok_or_else(|| {
            Problem::new(
                ErrorCode::UnknownTopic,
                format!("the topic \"{topic}\" has been deleted"),
            )
        })?;
        let leader = found.partitions.first().and_then(|first| first.leader);
        let worker = leader.and_then(|leader| metadata.worker(leader));
        worker.map(|row| row.address.clone()).ok_or_else(|| {
            Problem::new(
                ErrorCode::LeaderUnavailable,
                format!("the topic \"{topic}\" has no live leader"),
            )
        })
    })?;
    let query = match request.query_string() {
        query if query.contains("offset=") => query.to_owned(),
        "" => "offset=earliest".to_owned(),
        query => format!("offset=earliest&{query}"),
    };
    let accept = request.headers().get("accept");
    let forward = Forward {
        method: "GET".to_owned(),
        target: format!("/v1/topics/{topic}/partitions/0/records?{query}"),
        headers: accept
            .map(|accept| ("accept".to_owned(), accept.as_bytes().to_vec()))
            .into_iter()
            .collect(),
        body: Bytes::new(),
    };
    let deadline = Span(MAX_WAIT.0 + 5_000);
    let answer = state
        .transport
        .forward(&address, forward, deadline)
        .await
        .map_err(|error| error.into_problem(ErrorCode::LeaderUnavailable))?;
    let status = StatusCode::from_u16(answer.status).map_err(|error| {
        Problem::new(ErrorCode::Internal, format!("{address} answered {error}"))
    })?;
    let mut response = HttpResponse::build(status);
    for (name, value) in answer.headers {
        response.append_header((name, value));
    }
    Ok(response.streaming(answer.body))
}
