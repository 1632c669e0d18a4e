//! Leaders on a worker would have other replicas in sync, or logs that nobody leads end somewhere.

use common::error::{ErrorCode, Problem};
use common::protocol::replicate::{AlterIsr, IsrAltered};

use super::gate::Reigning;
use crate::metadata::command::{Command, Outcome};

pub async fn handle(reign: Reigning, call: AlterIsr) -> Result<IsrAltered, Problem> {
    let command = Command::AlterIsr {
        worker: call.worker,
        epoch: call.worker_epoch,
        changes: call.changes,
        log_ends: call.log_ends,
    };
    match reign.controller.propose(command).await?.outcome {
        Outcome::IsrAltered(verdicts) => Ok(IsrAltered { verdicts }),
        other => Err(Problem::new(
            ErrorCode::Internal,
            format!("a change of in-sync replicas had the outcome {other:?}"),
        )),
    }
}
