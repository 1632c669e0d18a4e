//! Where a partition this worker leads starts and ends, for other nodes.

use common::error::Problem;
use common::protocol::fetch::{ListOffsets, PartitionOffsets};

use super::{Routes, led};

pub async fn list_offsets(routes: Routes, call: ListOffsets) -> Result<PartitionOffsets, Problem> {
    if call.newest {
        routes.lease.check()?;
    }
    led(&routes, call.partition)?.offsets(call.at).await
}
