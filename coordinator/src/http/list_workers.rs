//! The workers the cluster knows, how they stand, and what they use.

use actix_web::web::Json;
use serde::Serialize;
use utoipa::ToSchema;

use common::error::Problem;
use common::ids::NodeId;
use common::transport::server::Query;

use super::gate::Reigning;
use super::paging::Page;
use crate::liveness::messages::Described;
use crate::metadata::ClusterMetadata;
use crate::metadata::nodes::{WorkerRow, WorkerStatus};

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
    /// It is being emptied: nothing new is given to it.
    pub draining: bool,
    /// Its sessions ended too often lately: it is given nothing new while others can take it.
    pub quarantined: bool,
    /// For how long yet, if its sessions go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantined_ms: Option<u64>,
    /// Replicas of partitions, tasks, and tasks it stands by for, as they are to be. One that is being emptied
    /// may be stopped when there are none.
    pub replicas: usize,
    pub tasks: usize,
    pub standbys: usize,
    /// Another one for every life of its process.
    pub epoch: u64,
    /// What it was started with as `--rack`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
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
    let known = state.liveness.describe().await;
    let (workers, next) = state.controller.view().read(|metadata| {
        // Ten digits sort as the numbers do.
        let (rows, next) = page.of(metadata.workers().cloned(), |row| {
            format!("{:010}", row.id.0)
        })?;
        let workers = rows.iter().map(|row| describe(metadata, row, &known));
        Ok::<_, Problem>((workers.collect(), next))
    })?;
    Ok(Json(WorkerList { workers, next }))
}

/// One of them, if there is such a worker.
pub(crate) async fn described(state: &Reigning, worker: NodeId) -> Option<WorkerDescription> {
    let known = state.liveness.describe().await;
    state.controller.view().read(|metadata| {
        let row = metadata.worker(worker)?;
        Some(describe(metadata, row, &known))
    })
}

fn describe(metadata: &ClusterMetadata, row: &WorkerRow, known: &Described) -> WorkerDescription {
    let last = known
        .heard
        .get(&row.id)
        .filter(|last| last.epoch == row.epoch);
    let partitions = metadata
        .topics_by_name()
        .flat_map(|topic| &topic.partitions);
    let deployments = || {
        metadata
            .jobs_by_name()
            .filter_map(|job| job.deployment.as_ref())
    };
    let tasks = deployments().flat_map(|deployment| &deployment.tasks);
    let standbys = deployments().flat_map(|deployment| deployment.standbys.values());
    WorkerDescription {
        id: row.id.0,
        address: row.address.clone(),
        status: row.status,
        draining: row.draining,
        quarantined: row.quarantined,
        quarantined_ms: known.quarantined.get(&row.id).map(|left| left.0),
        replicas: partitions.filter(|p| p.replicas.contains(&row.id)).count(),
        tasks: tasks.filter(|task| task.worker == row.id).count(),
        standbys: standbys.filter(|workers| workers.contains(&row.id)).count(),
        epoch: row.epoch.0,
        version: row.version.clone(),
        cores: row.cores,
        slots: row.slots,
        memory_bytes: row.memory_bytes,
        rack: row.rack.clone(),
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
}
