//! A topic with its partitions, their leaders and their in-sync replicas.

use actix_web::web::{Json, Path};
use serde::Serialize;
use utoipa::ToSchema;

use common::error::Problem;
use common::ids::TopicName;
use common::protocol::topic::TopicConfig;

use super::State;
use super::gate::Reigning;
use crate::controller::topics::find;
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
    /// The workers it is moving to; absent if it stays where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<Vec<u32>>,
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
    let row = state
        .controller
        .view()
        .read(|metadata| find(metadata, name).cloned())?;
    Ok(TopicDescription::of(&row))
}

impl TopicDescription {
    fn of(row: &TopicRow) -> TopicDescription {
        let partitions = row.partitions.iter().enumerate();
        TopicDescription {
            name: row.name.to_string(),
            id: row.id.to_string(),
            replication_factor: row.replication_factor(),
            partitions: partitions
                .map(|(number, partition)| PartitionDescription {
                    partition: number,
                    leader: partition.leader.map(|node| node.0),
                    leader_epoch: partition.leader_epoch.0,
                    replicas: partition.replicas.iter().map(|node| node.0).collect(),
                    in_sync: partition.isr.iter().map(|node| node.0).collect(),
                    moving_to: u32::try_from(number)
                        .ok()
                        .and_then(|number| row.moving.get(&number))
                        .map(|nodes| nodes.iter().map(|node| node.0).collect()),
                })
                .collect(),
            config: row.config.clone(),
            created_at: row.created_at.to_string(),
            updated_at: row.updated_at.to_string(),
        }
    }
}
