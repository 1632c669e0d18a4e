//! Entries of the state of an operator whose task runs here.

use common::error::{ErrorCode, Problem};
use common::protocol::state::{QueryState, StateEntries};

use super::Routes;
use crate::job::messages::ReadState;

pub async fn query_state(routes: Routes, call: QueryState) -> Result<StateEntries, Problem> {
    let stopping = |_| Problem::new(ErrorCode::ShuttingDown, "the worker is stopping");
    routes.jobs.send(ReadState(call)).await.map_err(stopping)?
}
