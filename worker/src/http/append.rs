//! Record batches for partitions this worker leads.
//!
//! Batches of one partition stay in order and together; partitions are written beside each other.

use common::error::{ErrorCode, Problem};
use common::ids::TopicPartition;
use common::log_batch::{BatchError, LogBatch};
use common::protocol::produce::{Acks, Append, Appended, AppendedBatch, PartitionAppend};
use futures_util::future::join_all;

use super::{Routes, led};

pub async fn append(routes: Routes, call: Append) -> Result<Appended, Problem> {
    let acks = call.acks;
    let mut runs: Vec<Vec<PartitionAppend>> = Vec::new();
    for batch in call.batches {
        match runs.last_mut() {
            Some(run) if run[0].partition == batch.partition => run.push(batch),
            Some(_) | None => runs.push(vec![batch]),
        }
    }
    let appended = join_all(runs.into_iter().map(|run| append_run(&routes, run, acks))).await;
    Ok(Appended {
        results: appended.into_iter().flatten().collect(),
    })
}

async fn append_run(
    routes: &Routes,
    run: Vec<PartitionAppend>,
    acks: Acks,
) -> Vec<Result<AppendedBatch, Problem>> {
    let count = run.len();
    match try_append_run(routes, run, acks).await {
        Ok(batches) => batches.into_iter().map(Ok).collect(),
        Err(problem) => vec![Err(problem); count],
    }
}

async fn try_append_run(
    routes: &Routes,
    run: Vec<PartitionAppend>,
    acks: Acks,
) -> Result<Vec<AppendedBatch>, Problem> {
    let partition = run[0].partition;
    let leader_epoch = run[0].leader_epoch;
    let handle = led(routes, partition)?;
    let limit = max_message_bytes(routes, partition);
    // What is stored must be readable by everyone: every record is decoded once.
    let validate = move || -> Result<Vec<LogBatch>, BatchError> {
        run.into_iter()
            .map(|append| {
                let batch = LogBatch::parse(append.batch)?;
                batch.validate_records(limit)?;
                Ok(batch)
            })
            .collect()
    };
    let batches = actix_web::web::block(validate)
        .await
        .map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))??;
    handle.append_all(batches, acks, leader_epoch).await
}

fn max_message_bytes(routes: &Routes, partition: TopicPartition) -> usize {
    let image = routes.image.borrow();
    let topic = image.topics.get(&partition.topic);
    topic.map_or(usize::MAX, |topic| {
        usize::try_from(topic.config.max_message_bytes).unwrap_or(usize::MAX)
    })
}
