//! Alive, and ready for requests.

use actix_web::web::{Data, Json};
use serde::Serialize;
use utoipa::ToSchema;

use common::error::{ErrorCode, Problem};

use super::State;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Health {
    pub status: &'static str,
}

#[utoipa::path(
    get,
    path = "/health/live",
    tag = "health",
    responses((status = 200, body = Health))
)]
pub(crate) async fn live() -> Json<Health> {
    Json(Health { status: "alive" })
}

#[utoipa::path(
    get,
    path = "/health/ready",
    tag = "health",
    responses((status = 200, body = Health), (status = 503, body = Problem))
)]
pub(crate) async fn ready(state: Data<State>) -> Result<Json<Health>, Problem> {
    if *state.stopping.borrow() {
        let detail = "the coordinator is shutting down";
        return Err(Problem::new(ErrorCode::ShuttingDown, detail));
    }
    Ok(Json(Health { status: "ready" }))
}
