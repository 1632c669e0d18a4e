//! `POST /v1/sql/explain`: what a query would run as.

use actix_web::web::{Json, block};
use serde::Deserialize;
use utoipa::ToSchema;

use common::error::{ErrorCode, Problem};
use common::limits::DEFAULT_KEY_GROUPS;
use common::transport::server::JsonBody;

use super::create_job::Plan;
use super::gate::Reigning;
use crate::job::creation;
use crate::planner::plan_sql;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Explain {
    sql: String,
    parallelism: Option<u32>,
}

#[utoipa::path(
    post,
    path = "/v1/sql/explain",
    tag = "sql",
    request_body = Explain,
    responses(
        (status = 200, body = Plan),
        (status = 400, description = "The query is wrong; `at` says where", body = Problem),
        (status = 404, description = "A topic it reads does not exist", body = Problem),
        (status = 413, description = "The query is too long", body = Problem),
        (status = 422, description = "It wants something that is not supported", body = Problem),
    )
)]
pub(crate) async fn explain_query(
    state: Reigning,
    JsonBody(request): JsonBody<Explain>,
) -> Result<Json<Plan>, Problem> {
    let Explain { sql, parallelism } = request;
    let context = state
        .controller
        .view()
        .read(|metadata| creation::plan_context(metadata, None));
    let planned = block(move || plan_sql(&sql, parallelism, DEFAULT_KEY_GROUPS, &context))
        .await
        .map_err(|_| Problem::new(ErrorCode::ShuttingDown, "the coordinator is stopping"))??;
    let creates = planned.sink_topics.iter().cloned().collect();
    Ok(Json(Plan::of(planned, creates)))
}
