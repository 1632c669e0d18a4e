//! A topic and all its records go.

use actix_web::HttpResponse;
use actix_web::web::Path;

use common::error::Problem;
use common::ids::TopicName;

use super::gate::Reigning;

#[utoipa::path(
    delete,
    path = "/v1/topics/{topic}",
    tag = "topics",
    params(("topic" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone"), (status = 404, body = Problem))
)]
pub(crate) async fn delete_topic(
    state: Reigning,
    name: Path<String>,
) -> Result<HttpResponse, Problem> {
    let name = TopicName::new(name.into_inner())?;
    state.controller.delete_topic(name).await?;
    Ok(HttpResponse::NoContent().finish())
}
