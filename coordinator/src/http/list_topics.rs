//! The topics there are, in pages.

use actix_web::web::Json;
use serde::Serialize;
use utoipa::ToSchema;

use common::error::Problem;
use common::transport::server::Query;

use super::gate::Reigning;
use super::paging::Page;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct TopicList {
    pub topics: Vec<TopicSummary>,
    /// Give it as `after` to read on; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct TopicSummary {
    pub name: String,
    pub partitions: usize,
    pub replication_factor: usize,
    /// Partitions that nobody leads at the moment.
    pub without_leader: usize,
}

#[utoipa::path(
    get,
    path = "/v1/topics",
    tag = "topics",
    params(Page),
    responses((status = 200, body = TopicList), (status = 400, body = Problem))
)]
pub(crate) async fn list_topics(
    state: Reigning,
    Query(page): Query<Page>,
) -> Result<Json<TopicList>, Problem> {
    let (rows, next) = state.controller.view().read(|metadata| {
        page.of(metadata.topics_by_name().cloned(), |row| {
            row.name.to_string()
        })
    })?;
    let topics = rows
        .iter()
        .map(|row| TopicSummary {
            name: row.name.to_string(),
            partitions: row.partitions.len(),
            replication_factor: row.replication_factor(),
            without_leader: row.partitions.iter().filter(|p| p.leader.is_none()).count(),
        })
        .collect();
    Ok(Json(TopicList { topics, next }))
}
