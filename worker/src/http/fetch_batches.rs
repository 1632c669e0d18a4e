//! Record batches of a partition this worker leads, for other nodes.

use common::error::Problem;
use common::protocol::fetch::{FetchBatches, FetchedBatches};

use super::{Routes, led};

pub async fn fetch_batches(routes: Routes, call: FetchBatches) -> Result<FetchedBatches, Problem> {
    led(&routes, call.partition)?.fetch(&call).await
}
