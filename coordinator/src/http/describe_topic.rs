//! A topic with its partitions, their leaders and their in-sync replicas, and what keeps a partition from going on.

use actix_web::web::{Json, Path};
use serde::Serialize;
use utoipa::ToSchema;

use common::error::Problem;
use common::ids::{NodeId, TopicName};
use common::protocol::metadata::PartitionImage;
use common::protocol::topic::TopicConfig;

use super::State;
use super::gate::Reigning;
use crate::controller::topics::find;
use crate::election::waiting::why_nobody_leads;
use crate::metadata::ClusterMetadata;
use crate::metadata::topics::TopicRow;

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TopicDescription {
    pub name: String,
    /// Another one if the topic is deleted and created again.
    pub id: String,
    pub replication_factor: usize,
    pub partitions: Vec<PartitionDescription>,
    pub config: TopicConfig,
    pub created_at: String,
    pub updated_at: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PartitionDescription {
    pub partition: usize,
    /// The worker that takes and gives records; absent while none of the in-sync replicas is active.
    pub leader: Option<u32>,
    pub leader_epoch: i32,
    pub replicas: Vec<u32>,
    pub in_sync: Vec<u32>,
    /// Those in sync that may have lost records when they ended without order: they do not lead before they have
    /// fetched everything again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub suspect: Vec<u32>,
    /// Why nobody leads, and what can be done; absent if somebody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Where the logs of suspects end, while nobody leads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log_ends: Vec<LogEndDescription>,
    /// Absent: no acknowledged record was ever given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_loss: Option<DataLossDescription>,
    /// The workers it is moving to; absent if it stays where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<Vec<u32>>,
}

/// How much of a partition a worker has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct LogEndDescription {
    pub worker: u32,
    /// The reign in which its last records were written; of two logs the one with the later reign has more.
    pub last_epoch: Option<i32>,
    pub log_end: i64,
}

/// Acknowledged records may have been lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DataLossDescription {
    /// `DATA_LOSS_POSSIBLE`.
    pub code: &'static str,
    pub detail: String,
    /// The reign that began with it, and when.
    pub leader_epoch: i32,
    pub at: String,
}

#[utoipa::path(
    get,
    path = "/v1/topics/{topic}",
    tag = "topics",
    params(("topic" = String, Path, description = "Its name")),
    responses((status = 200, body = TopicDescription), (status = 404, body = Problem))
)]
pub(crate) async fn describe_topic(
    state: Reigning,
    name: Path<String>,
) -> Result<Json<TopicDescription>, Problem> {
    let name = TopicName::new(name.into_inner())?;
    described(&state, &name).map(Json)
}

pub(super) fn described(state: &State, name: &TopicName) -> Result<TopicDescription, Problem> {
    state.controller.view().read(|metadata| {
        let row = find(metadata, name)?;
        Ok::<_, Problem>(TopicDescription::of(metadata, row))
    })
}

impl TopicDescription {
    fn of(metadata: &ClusterMetadata, row: &TopicRow) -> TopicDescription {
        let partitions = row.partitions.iter().enumerate();
        TopicDescription {
            name: row.name.to_string(),
            id: row.id.to_string(),
            replication_factor: row.replication_factor(),
            partitions: partitions
                .map(|(number, partition)| PartitionDescription {
                    moving_to: u32::try_from(number)
                        .ok()
                        .and_then(|number| row.moving.get(&number))
                        .map(|nodes| numbers(nodes)),
                    ..PartitionDescription::of(metadata, row, number, partition)
                })
                .collect(),
            config: row.config.clone(),
            created_at: row.created_at.to_string(),
            updated_at: row.updated_at.to_string(),
        }
    }
}

impl PartitionDescription {
    fn of(
        metadata: &ClusterMetadata,
        row: &TopicRow,
        number: usize,
        partition: &PartitionImage,
    ) -> PartitionDescription {
        let is_active = |node| metadata.is_active(node);
        let waiting = why_nobody_leads(partition, row.config.unclean_recovery, is_active);
        let (reason, hint) = waiting
            .map(|waiting| (waiting.reason, waiting.hint))
            .unzip();
        let log_ends = partition.log_ends.iter();
        PartitionDescription {
            partition: number,
            leader: partition.leader.map(|node| node.0),
            leader_epoch: partition.leader_epoch.0,
            replicas: numbers(&partition.replicas),
            in_sync: numbers(&partition.isr),
            suspect: numbers(&partition.suspect),
            reason,
            hint,
            log_ends: log_ends
                .map(|(node, end)| LogEndDescription {
                    worker: node.0,
                    last_epoch: end.last_epoch.map(|epoch| epoch.0),
                    log_end: end.log_end.0,
                })
                .collect(),
            data_loss: partition.unclean.map(|unclean| DataLossDescription {
                code: "DATA_LOSS_POSSIBLE",
                detail: "a replica began to lead that may have lacked acknowledged records, because none was left that had all of them".to_owned(),
                leader_epoch: unclean.since.0,
                at: unclean.at.to_string(),
            }),
            moving_to: None,
        }
    }
}

fn numbers(nodes: &[NodeId]) -> Vec<u32> {
    nodes.iter().map(|node| node.0).collect()
}
