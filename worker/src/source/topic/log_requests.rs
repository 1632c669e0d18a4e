//! What a source asks the leaders of its partitions: records, and where they begin and end.

use common::error::Problem;
use common::ids::TopicPartition;
use common::limits::DEPLOY_TIMEOUT;
use common::offset::Offset;
use common::plan::connector::{BoundedMode, Isolation, StartupMode, TopicSource as Spec};
use common::protocol::fetch::{FetchBatches, FetchedBatches, ListOffsets, PartitionOffsets};
use common::time::{Clock, Tick, Timestamp};
use common::transport::retry::Backoff;

use super::SourceContext;
use crate::log_client::LogClient;

/// What a fetch brought.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) offset: Offset,
    pub(super) reply: FetchedBatches,
    /// Asked for when there was nothing to read, and when that was.
    pub(super) nothing: Option<(PartitionOffsets, Tick)>,
}

/// Fetches; if there is nothing, also asks where the log really ends.
pub(super) async fn fetch(
    log: &LogClient,
    clock: &dyn Clock,
    request: FetchBatches,
) -> Result<Fetched, Problem> {
    let (partition, offset) = (request.partition, request.offset);
    let reply = log.fetch(request).await?;
    let is_empty = reply.batches.is_empty() && reply.next_offset <= offset;
    let nothing = match is_empty {
        true => {
            let at = clock.tick();
            let offsets = log
                .offsets(ListOffsets {
                    partition,
                    at: None,
                    // A source goes on without a coordinator.
                    newest: false,
                })
                .await?;
            Some((offsets, at))
        }
        false => None,
    };
    Ok(Fetched {
        offset,
        reply,
        nothing,
    })
}

/// Where a partition is read from, and up to where: as the checkpoint says, else as the options say.
pub(super) async fn start(
    spec: &Spec,
    context: &SourceContext,
    partition: TopicPartition,
    split: &str,
) -> Result<(Offset, Option<Offset>), Problem> {
    if let Some(restored) = context.restored_split(split) {
        return Ok((Offset(restored.position), restored.end.map(Offset)));
    }
    let at = spec
        .startup_timestamp_ms
        .filter(|_| spec.startup == StartupMode::Timestamp);
    let request = ListOffsets {
        partition,
        at: at.map(Timestamp),
        newest: spec.bounded == BoundedMode::Latest || spec.startup == StartupMode::Latest,
    };
    let offsets = list_offsets(&context.log, &*context.clock, request).await?;
    let readable_end = match spec.isolation {
        Isolation::ReadCommitted => offsets.last_stable_offset,
        Isolation::ReadUncommitted => offsets.committed_offset,
    };
    // A partition that was added while the job was down: nothing of it was ever read.
    let added_later = context.restored.is_some();
    let position = match spec.startup {
        _ if added_later => offsets.log_start_offset,
        StartupMode::Earliest => offsets.log_start_offset,
        StartupMode::Latest => readable_end,
        StartupMode::Timestamp => offsets.at.unwrap_or(readable_end),
        StartupMode::Offsets => spec
            .startup_offsets
            .get(&partition.partition.0)
            .map_or(offsets.log_start_offset, |offset| Offset(*offset)),
    };
    let end = match spec.bounded {
        BoundedMode::Unbounded => None,
        // The ends were taken when the job first started, and this partition had none.
        BoundedMode::Latest if added_later => Some(position),
        BoundedMode::Latest => Some(readable_end.max(position)),
    };
    Ok((position, end))
}

/// Asks until a leader answers, as long as a deployment may take.
async fn list_offsets(
    log: &LogClient,
    clock: &dyn Clock,
    request: ListOffsets,
) -> Result<PartitionOffsets, Problem> {
    let started = clock.tick();
    let mut attempt = 0;
    loop {
        let problem = match log.offsets(request.clone()).await {
            Ok(offsets) => return Ok(offsets),
            Err(problem) => problem,
        };
        let waited = clock.tick().since(started);
        if !problem.code.is_retriable() || waited >= DEPLOY_TIMEOUT {
            return Err(problem);
        }
        let seed = u64::from(request.partition.partition.0);
        tokio::time::sleep(Backoff::CALLS.delay(attempt, seed).as_duration()).await;
        attempt += 1;
    }
}
