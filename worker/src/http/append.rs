//! Record batches for partitions this worker leads.

use common::error::Problem;
use common::log_batch::LogBatch;
use common::protocol::produce::{Append, Appended, AppendedBatch, PartitionAppend};
use futures_util::future::join_all;

use super::{Routes, led};

pub async fn append(routes: Routes, call: Append) -> Result<Appended, Problem> {
    let acks = call.acks;
    let append = |append: PartitionAppend| {
        let partition = led(&routes, append.partition);
        async move {
            let batch = LogBatch::parse(append.batch)?;
            partition?.append(batch, acks, append.leader_epoch).await
        }
    };
    let results: Vec<Result<AppendedBatch, Problem>> =
        join_all(call.batches.into_iter().map(append)).await;
    Ok(Appended { results })
}
