//! The coordinators' group grows, shrinks, or replaces a member.

use actix_web::HttpResponse;
use actix_web::http::header::LOCATION;
use actix_web::web::{Bytes, Path};
use serde::Deserialize;
use utoipa::ToSchema;

use common::config::url;
use common::error::{ErrorCode, Problem};
use common::ids::CoordinatorId;
use common::transport::server::read_json;

use super::describe_cluster::{CoordinatorDescription, coordinators};
use super::gate::Reigning;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddCoordinator {
    /// Where it runs, as `http://host:port`: with an empty data directory, and `--peers` with the address of a
    /// coordinator of this cluster.
    address: String,
}

/// With an even number of coordinators the newest one only listens: two become three at once, and a fourth one
/// takes the place of the next that is removed.
#[utoipa::path(
    post,
    path = "/v1/coordinators",
    tag = "cluster",
    request_body = AddCoordinator,
    responses(
        (status = 201, description = "It has everything the group knows", body = CoordinatorDescription),
        (status = 400, body = Problem),
        (status = 409, body = Problem, description = "It belongs to a cluster already"),
        (status = 503, body = Problem, description = "It cannot be reached, or nobody leads"),
        (status = 504, body = Problem, description = "It is in the group, and is still catching up")
    )
)]
pub(crate) async fn add_coordinator(state: Reigning, body: Bytes) -> Result<HttpResponse, Problem> {
    let AddCoordinator { address } = read_json(&body)?;
    let address = url(&address)
        .map_err(|detail| Problem::new(ErrorCode::InvalidRequest, detail).at("/address"))?;
    let added = state.group.add(address).await?;
    let all = coordinators(&state.group.status());
    let described = all.into_iter().find(|described| described.id == added.0);
    let described = described.ok_or_else(|| {
        let detail = format!("coordinator {added} was removed at the same time");
        Problem::new(ErrorCode::Conflict, detail)
    })?;
    Ok(HttpResponse::Created()
        .insert_header((LOCATION, format!("/v1/coordinators/{added}")))
        .json(described))
}

/// A coordinator that listens takes the place of one that votes. Without one, only those that listen can be
/// removed: a group of two needs both of them, and one of none is lost.
#[utoipa::path(
    delete,
    path = "/v1/coordinators/{coordinator}",
    tag = "cluster",
    params(("coordinator" = u64, Path)),
    responses(
        (status = 204, description = "It is no member any more; its process can be stopped"),
        (status = 404, body = Problem),
        (status = 409, body = Problem, description = "Nobody takes its place"),
        (status = 503, body = Problem)
    )
)]
pub(crate) async fn remove_coordinator(
    state: Reigning,
    coordinator: Path<u64>,
) -> Result<HttpResponse, Problem> {
    state
        .group
        .remove(CoordinatorId(coordinator.into_inner()))
        .await?;
    Ok(HttpResponse::NoContent().finish())
}
