//! The cluster at a glance.

use actix_web::web::Json;
use serde::Serialize;
use utoipa::ToSchema;

use super::gate::Reigning;
use crate::metadata::nodes::WorkerStatus;
use crate::raft::membership::GroupStatus;
use crate::rebalance::status::{State, Status, UnderWay};

const MOVES_SHOWN: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ClusterDescription {
    pub id: Option<String>,
    /// Of this coordinator.
    pub version: String,
    /// Which reign of a coordinator this is.
    pub control_epoch: u64,
    /// How many commands made the cluster what it is.
    pub metadata_version: u64,
    /// Grows with every election among the coordinators.
    pub term: u64,
    /// Those that agree on the metadata, and those that are about to.
    pub coordinators: Vec<CoordinatorDescription>,
    pub workers: WorkerCounts,
    pub topics: usize,
    pub partitions: usize,
    pub partitions_without_leader: usize,
    pub jobs: usize,
    pub jobs_running: usize,
    pub rebalance: RebalanceDescription,
}

/// What is made even without being asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RebalanceDescription {
    #[schema(value_type = String)]
    pub state: State,
    /// Why nothing, or no more, moves now.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What moves, by whomever it was asked: the first hundred.
    #[schema(value_type = Vec<Object>)]
    pub moves: Vec<UnderWay>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CoordinatorDescription {
    pub id: u64,
    pub address: String,
    /// It decides, and whoever asks another one asks it.
    pub leads: bool,
    /// It counts for a majority; one that does not only listens.
    pub votes: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct WorkerCounts {
    pub active: usize,
    /// Recovering what is on their disks.
    pub registered: usize,
    /// Gone.
    pub fenced: usize,
}

#[utoipa::path(
    get,
    path = "/v1/cluster",
    tag = "cluster",
    responses((status = 200, body = ClusterDescription))
)]
pub(crate) async fn describe_cluster(state: Reigning) -> Json<ClusterDescription> {
    let group = state.group.status();
    let coordinators = coordinators(&group);
    let rebalance = RebalanceDescription::of(state.rebalance.status());
    Json(state.controller.view().read(|metadata| {
        let workers = |status| metadata.workers().filter(|w| w.status == status).count();
        let partitions = || metadata.topics_by_name().flat_map(|row| &row.partitions);
        let running = metadata.jobs_by_name().filter(|j| j.deployment.is_some());
        ClusterDescription {
            id: metadata.cluster().map(|id| id.to_string()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            control_epoch: metadata.control_epoch().0,
            metadata_version: metadata.version().0,
            term: group.term,
            coordinators,
            workers: WorkerCounts {
                active: workers(WorkerStatus::Active),
                registered: workers(WorkerStatus::Registered),
                fenced: workers(WorkerStatus::Fenced),
            },
            topics: metadata.topics_by_name().count(),
            partitions: partitions().count(),
            partitions_without_leader: partitions().filter(|p| p.leader.is_none()).count(),
            jobs: metadata.jobs_by_name().count(),
            jobs_running: running.count(),
            rebalance,
        }
    }))
}

impl RebalanceDescription {
    fn of(status: Status) -> RebalanceDescription {
        RebalanceDescription {
            state: status.state,
            reason: status.reason,
            moves: status.moves.into_iter().take(MOVES_SHOWN).collect(),
        }
    }
}

pub(super) fn coordinators(group: &GroupStatus) -> Vec<CoordinatorDescription> {
    let described = group.members.iter().map(|member| CoordinatorDescription {
        id: member.coordinator.0,
        address: member.address.clone(),
        leads: member.leads,
        votes: member.votes,
    });
    described.collect()
}
