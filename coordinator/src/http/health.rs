//! Alive, and ready for requests.

use actix_web::web::{Data, Json};
use serde::Serialize;
use utoipa::ToSchema;

use common::error::Problem;

use super::gate::Gate;

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

/// Ready: it leads, or knows who does.
#[utoipa::path(
    get,
    path = "/health/ready",
    tag = "health",
    responses((status = 200, body = Health), (status = 503, body = Problem))
)]
pub(crate) async fn ready(gate: Data<Gate>) -> Result<Json<Health>, Problem> {
    gate.is_ready()?;
    Ok(Json(Health { status: "ready" }))
}
