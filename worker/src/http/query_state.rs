//! Entries of the state of an operator whose task runs here.

use common::error::Problem;
use common::protocol::state::{QueryState, StateEntries};

use super::Routes;

pub async fn query_state(routes: Routes, call: QueryState) -> Result<StateEntries, Problem> {
    routes.jobs.read_state(call).await
}
