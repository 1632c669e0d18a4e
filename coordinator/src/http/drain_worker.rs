//! A worker is emptied before its maintenance: its partitions, standbys and tasks go elsewhere.

use actix_web::web::{Json, Path};

use common::error::{ErrorCode, Problem};
use common::ids::NodeId;

use super::gate::Reigning;
use super::list_workers::{WorkerDescription, described};
use crate::metadata::command::Command;

#[utoipa::path(
    post,
    path = "/v1/workers/{id}/drain",
    tag = "cluster",
    params(("id" = u32, Path, description = "As GET /v1/workers lists it")),
    responses(
        (status = 200, body = WorkerDescription, description = "It is being emptied: it has nothing left when it has no replicas, tasks and standbys"),
        (status = 404, body = Problem),
        (status = 409, body = Problem, description = "No other worker may be given work")
    )
)]
pub(crate) async fn drain_worker(
    state: Reigning,
    id: Path<String>,
) -> Result<Json<WorkerDescription>, Problem> {
    set(&state, &id, true).await
}

#[utoipa::path(
    delete,
    path = "/v1/workers/{id}/drain",
    tag = "cluster",
    params(("id" = u32, Path, description = "As GET /v1/workers lists it")),
    responses(
        (status = 200, body = WorkerDescription, description = "It may be given work again"),
        (status = 404, body = Problem)
    )
)]
pub(crate) async fn end_drain(
    state: Reigning,
    id: Path<String>,
) -> Result<Json<WorkerDescription>, Problem> {
    set(&state, &id, false).await
}

async fn set(
    state: &Reigning,
    id: &str,
    draining: bool,
) -> Result<Json<WorkerDescription>, Problem> {
    let unknown = || {
        Problem::new(ErrorCode::UnknownWorker, format!("there is no worker {id}"))
            .hint("GET /v1/workers lists those there are.")
    };
    let worker = id.parse().map(NodeId).map_err(|_| unknown())?;
    let command = Command::DrainWorker { worker, draining };
    state.controller.propose(command).await?;
    described(state, worker).await.map(Json).ok_or_else(unknown)
}
