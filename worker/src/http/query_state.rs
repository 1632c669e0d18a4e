//! Entries of the state of an operator whose task runs here, or whose state is on this disk.

use common::error::Problem;
use common::protocol::state::{Consistency, QueryState, QueryStateAtRest, StateEntries};

use super::Routes;

pub async fn query_state(routes: Routes, call: QueryState) -> Result<StateEntries, Problem> {
    // Others may run the task by now; what was completed stays as it was.
    if call.consistency == Consistency::Live {
        routes.lease.check()?;
    }
    routes.jobs.read_state(call).await
}

pub async fn query_state_at_rest(
    routes: Routes,
    call: QueryStateAtRest,
) -> Result<StateEntries, Problem> {
    routes.jobs.read_state_at_rest(call).await
}
