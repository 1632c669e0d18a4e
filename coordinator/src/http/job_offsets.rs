//! `GET /v1/jobs/{job}/offsets?epoch=`: how far every source had been read at a completed checkpoint.

use std::collections::BTreeMap;

use actix_web::web::{Json, Path};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use common::error::{ErrorCode, Problem};
use common::ids::CheckpointId;
use common::transport::server::Query;

use super::gate::Reigning;
use super::jobs::find;
use crate::metadata::checkpoints::Positions;
use crate::metadata::jobs::JobRow;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// Default: the last completed one.
    epoch: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Offsets {
    epoch: u64,
    /// Source → split → the position after the last row read. A topic's splits are its partitions.
    sources: BTreeMap<String, BTreeMap<String, i64>>,
}

#[utoipa::path(
    get,
    path = "/v1/jobs/{job}/offsets",
    tag = "jobs",
    params(("job" = String, Path), Options),
    responses(
        (status = 200, body = Offsets),
        (status = 404, description = "No such job, or the epoch was never completed", body = Problem),
        (status = 410, description = "The epoch's offsets are no longer kept", body = Problem),
    )
)]
pub(crate) async fn job_offsets(
    state: Reigning,
    job: Path<String>,
    Query(options): Query<Options>,
) -> Result<Json<Offsets>, Problem> {
    let row = find(&state, &job)?;
    let Some(completed) = row.completed else {
        return Err(Problem::new(
            ErrorCode::UnknownCheckpoint,
            format!("job \"{}\" has not completed a checkpoint yet", row.name),
        )
        .hint("Ask again in a moment."));
    };
    let epoch = options.epoch.map_or(completed, CheckpointId);
    let checkpoints = row.checkpoints.iter();
    let known = checkpoints.rev().find(|known| known.checkpoint == epoch);
    match known.map(|known| &known.positions) {
        Some(Some(positions)) => Ok(Json(offsets(&row, epoch, positions))),
        Some(None) => Err(gone(&row, epoch)),
        None => Err(never_completed(&row, epoch, completed)),
    }
}

fn offsets(row: &JobRow, epoch: CheckpointId, positions: &Positions) -> Offsets {
    let mut sources: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
    for (task, splits) in positions {
        if let Some(source) = &row.graph.stage(task.stage).source {
            let of_source = sources.entry(source.name.clone()).or_default();
            of_source.extend(splits.clone());
        }
    }
    Offsets {
        epoch: epoch.0,
        sources,
    }
}

fn gone(row: &JobRow, epoch: CheckpointId) -> Problem {
    Problem::new(
        ErrorCode::EpochGone,
        format!(
            "the offsets of job \"{}\" at epoch {epoch} are no longer kept",
            row.name
        ),
    )
    .hint("Ask without an epoch for those of the last one.")
}

fn never_completed(row: &JobRow, epoch: CheckpointId, completed: CheckpointId) -> Problem {
    Problem::new(
        ErrorCode::UnknownCheckpoint,
        format!("epoch {epoch} of job \"{}\" is not complete", row.name),
    )
    .hint(format!("The last completed one is {completed}."))
}
