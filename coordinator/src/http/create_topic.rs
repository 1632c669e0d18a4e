//! A new topic: its partitions are placed on the active workers.

use actix_web::HttpResponse;
use actix_web::http::header::LOCATION;
use actix_web::web::Payload;
use serde::Deserialize;

use common::error::Problem;
use common::ids::TopicName;
use common::limits::MAX_REQUEST_BYTES;
use common::protocol::topic::CreateTopic;
use common::transport::server::{read_body, read_json};

use super::describe_topic::{TopicDescription, described};
use super::gate::Reigning;

/// Read first: a bad name has a code of its own.
#[derive(Deserialize)]
struct Named {
    name: String,
}

#[utoipa::path(
    post,
    path = "/v1/topics",
    tag = "topics",
    request_body = CreateTopic,
    responses(
        (status = 201, body = TopicDescription),
        (status = 400, body = Problem),
        (status = 409, body = Problem, description = "The name is taken"),
        (status = 422, body = Problem, description = "Something this version does not do"),
        (status = 503, body = Problem, description = "No worker is active")
    )
)]
pub(crate) async fn create_topic(
    state: Reigning,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let body = read_body(payload, MAX_REQUEST_BYTES).await?;
    let Named { name } = read_json(&body)?;
    let name = TopicName::new(name)?;
    let request: CreateTopic = read_json(&body)?;
    state.controller.create_topic(request).await?;
    let created = described(&state, &name)?;
    Ok(HttpResponse::Created()
        .insert_header((LOCATION, format!("/v1/topics/{name}")))
        .json(created))
}
