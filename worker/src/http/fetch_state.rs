//! A standby asks for what tasks here have sealed.

use common::error::Problem;
use common::protocol::standby::{FetchState, StateFetched};

use super::Routes;

pub async fn fetch_state(routes: Routes, call: FetchState) -> Result<StateFetched, Problem> {
    routes.jobs.fetch_state(call).await
}
