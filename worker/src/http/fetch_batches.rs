//! Record batches of a partition this worker leads, for other nodes.

use common::error::Problem;
use common::limits::{MAX_BATCH_BYTES, MAX_CALL_BYTES};
use common::protocol::fetch::{FetchBatches, FetchedBatches};

use super::{Routes, led};

const MOST_BYTES: u32 = 32 << 20;
const _: () = assert!(MOST_BYTES as usize + MAX_BATCH_BYTES < MAX_CALL_BYTES);

pub async fn fetch_batches(routes: Routes, call: FetchBatches) -> Result<FetchedBatches, Problem> {
    let partition = led(&routes, call.partition)?;
    // One batch may come beyond what was asked for, and all of it must fit into the reply.
    let bounded = FetchBatches {
        max_bytes: call.max_bytes.min(MOST_BYTES),
        ..call
    };
    routes.lease.fetch(&partition, &bounded).await
}
