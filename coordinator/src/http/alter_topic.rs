//! More partitions, or other options.

use actix_web::web::{Json, Path};

use common::error::Problem;
use common::ids::TopicName;
use common::transport::server::JsonBody;

use super::describe_topic::{TopicDescription, described};
use super::gate::Reigning;
use crate::controller::topics::AlterTopic;

#[utoipa::path(
    patch,
    path = "/v1/topics/{topic}",
    tag = "topics",
    params(("topic" = String, Path, description = "Its name")),
    request_body = AlterTopic,
    responses(
        (status = 200, body = TopicDescription),
        (status = 400, body = Problem),
        (status = 404, body = Problem),
        (status = 409, body = Problem, description = "It was changed at the same time"),
        (status = 422, body = Problem, description = "Something this version does not do")
    )
)]
pub(crate) async fn alter_topic(
    state: Reigning,
    name: Path<String>,
    JsonBody(change): JsonBody<AlterTopic>,
) -> Result<Json<TopicDescription>, Problem> {
    let name = TopicName::new(name.into_inner())?;
    state.controller.alter_topic(name.clone(), change).await?;
    described(&state, &name).map(Json)
}
