//! `POST /v1/topics/{topic}/recover`: a partition that nobody may lead goes on with what is left of it.
//!
//! Acknowledged records may be lost with that: who asks for it has to say that this is accepted.

use actix_web::web::{Json, Path};
use serde::Deserialize;
use utoipa::ToSchema;

use common::error::Problem;
use common::ids::{NodeId, PartitionId, TopicName};
use common::transport::server::JsonBody;

use super::describe_topic::{TopicDescription, described};
use super::gate::Reigning;
use crate::controller::topics::find;
use crate::metadata::command::Command;

#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecoverTopic {
    partition: u32,
    /// The worker whose replica leads from now on; absent: the longest log of those that are known.
    #[serde(default)]
    leader: Option<u32>,
    /// Records that this replica lacks are lost, acknowledged or not.
    #[schema(inline)]
    accept: Accept,
}

/// What may become of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accept {
    DataLoss,
}

#[utoipa::path(
    post,
    path = "/v1/topics/{topic}/recover",
    tag = "topics",
    params(("topic" = String, Path, description = "Its name")),
    request_body = RecoverTopic,
    responses(
        (status = 200, body = TopicDescription, description = "It is led again"),
        (status = 400, body = Problem, description = "Nobody has accepted that records may be lost"),
        (status = 404, body = Problem),
        (status = 409, body = Problem, description = "It has a leader, or that worker cannot be it")
    )
)]
pub(crate) async fn recover_topic(
    state: Reigning,
    name: Path<String>,
    JsonBody(request): JsonBody<RecoverTopic>,
) -> Result<Json<TopicDescription>, Problem> {
    let name = TopicName::new(name.into_inner())?;
    let id = state
        .controller
        .view()
        .read(|metadata| find(metadata, &name).map(|row| row.id))?;
    let RecoverTopic {
        partition,
        leader,
        accept: Accept::DataLoss,
    } = request;
    let command = Command::RecoverPartition {
        id,
        partition: PartitionId(partition),
        leader: leader.map(NodeId),
    };
    state.controller.propose(command).await?;
    tracing::warn!(
        topic = %name, partition, leader,
        "DATA_LOSS_POSSIBLE: a partition was recovered by hand"
    );
    described(&state, &name).map(Json)
}
