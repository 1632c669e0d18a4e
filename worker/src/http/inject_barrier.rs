//! The coordinator begins a checkpoint: sources of a job shall emit a barrier.

use common::error::{ErrorCode, Problem};
use common::protocol::checkpoint::{InjectBarrier, Injected};

use super::Routes;

pub async fn inject_barrier(routes: Routes, call: InjectBarrier) -> Result<Injected, Problem> {
    // A coordinator that has been replaced must not cut a job's rows any more.
    let known = routes.image.borrow().control_epoch;
    if call.control_epoch < known {
        let detail = format!("coordinator {} was followed by {known}", call.control_epoch);
        return Err(Problem::new(ErrorCode::StaleControlEpoch, detail));
    }
    routes.jobs.inject(call).await?;
    Ok(Injected {})
}
