//! A topic's partitions on other workers, or more or fewer copies of them.

use actix_web::web::{Json, Path};

use common::error::Problem;
use common::ids::TopicName;
use common::transport::server::JsonBody;

use super::describe_topic::{TopicDescription, described};
use super::gate::Reigning;
use crate::controller::topics::ReassignTopic;

#[utoipa::path(
    post,
    path = "/v1/topics/{topic}/reassign",
    tag = "topics",
    params(("topic" = String, Path, description = "Its name")),
    request_body = ReassignTopic,
    responses(
        (status = 200, body = TopicDescription, description = "New replicas are joining; once they are in sync the others go"),
        (status = 400, body = Problem),
        (status = 404, body = Problem),
        (status = 409, body = Problem, description = "It was changed at the same time"),
        (status = 503, body = Problem, description = "There are fewer active workers than replicas")
    )
)]
pub(crate) async fn reassign_topic(
    state: Reigning,
    name: Path<String>,
    JsonBody(request): JsonBody<ReassignTopic>,
) -> Result<Json<TopicDescription>, Problem> {
    let name = TopicName::new(name.into_inner())?;
    state
        .controller
        .reassign_topic(name.clone(), request)
        .await?;
    described(&state, &name).map(Json)
}
