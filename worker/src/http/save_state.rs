//! The coordinator has the state of a task that runs here, or is on this disk, written into a savepoint.

use common::error::Problem;
use common::protocol::savepoint::{SaveState, StateSaved};

use super::Routes;

pub async fn save_state(routes: Routes, call: SaveState) -> Result<StateSaved, Problem> {
    routes.jobs.save_state(call).await
}
