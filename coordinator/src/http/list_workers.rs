//! The workers the cluster knows, how they stand, and what they use.

use actix_web::web::Json;
use serde::Serialize;
use utoipa::ToSchema;

use common::error::Problem;
use common::transport::server::Query;

use super::gate::Reigning;
use super::paging::Page;
use crate::metadata::nodes::WorkerStatus;

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct WorkerList {
    pub workers: Vec<WorkerDescription>,
    /// Give it as `after` to read on; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct WorkerDescription {
    pub id: u32,
    pub address: String,
    /// `registered`: recovering what is on its disk; `active`; `fenced`: gone.
    #[schema(value_type = String)]
    pub status: WorkerStatus,
    /// Another one for every life of its process.
    pub epoch: u64,
    pub version: String,
    pub cores: u32,
    pub slots: u32,
    pub memory_bytes: u64,
    pub registered_at: String,
    /// Since its last heartbeat; absent if none has come since this coordinator started.
    pub silent_ms: Option<u64>,
    pub load: Option<LoadDescription>,
}

/// What a worker said of itself in its last heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct LoadDescription {
    pub resident_bytes: u64,
    pub state_bytes: u64,
    pub disk_used_bytes: u64,
    pub disk_free_bytes: u64,
    pub partitions_led: u32,
    pub tasks: u32,
}

#[utoipa::path(
    get,
    path = "/v1/workers",
    tag = "cluster",
    params(Page),
    responses((status = 200, body = WorkerList), (status = 400, body = Problem))
)]
pub(crate) async fn list_workers(
    state: Reigning,
    Query(page): Query<Page>,
) -> Result<Json<WorkerList>, Problem> {
    let heard = state.liveness.describe().await;
    let (rows, next) = state.controller.view().read(|metadata| {
        // Ten digits sort as the numbers do.
        page.of(metadata.workers().cloned(), |row| {
            format!("{:010}", row.id.0)
        })
    })?;
    let workers = rows
        .iter()
        .map(|row| {
            let last = heard.get(&row.id).filter(|last| last.epoch == row.epoch);
            WorkerDescription {
                id: row.id.0,
                address: row.address.clone(),
                status: row.status,
                epoch: row.epoch.0,
                version: row.version.clone(),
                cores: row.cores,
                slots: row.slots,
                memory_bytes: row.memory_bytes,
                registered_at: row.registered_at.to_string(),
                silent_ms: last.map(|last| last.ago.0),
                load: last.map(|last| LoadDescription {
                    resident_bytes: last.load.resident_bytes,
                    state_bytes: last.load.state_bytes,
                    disk_used_bytes: last.load.disk_used_bytes,
                    disk_free_bytes: last.load.disk_free_bytes,
                    partitions_led: last.load.partitions_led,
                    tasks: last.load.tasks,
                }),
            }
        })
        .collect();
    Ok(Json(WorkerList { workers, next }))
}
