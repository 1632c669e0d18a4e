//! Whether what was acknowledged is there once and in order, and was counted once.

use anyhow::{Context, Result, ensure};
use common::client::Client;
use common::ids::{PartitionId, TopicId, TopicPartition};
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::fetch::FetchBatches;
use common::time::Span;
use common::transport::client::Transport;
use serde_json::Value;
use uuid::Uuid;

use super::producer::{producer_and_number, producer_of};
use super::{PARTITIONS, TOPIC};
use crate::topics::all_values;

const FETCH_BYTES: u32 = 16 << 20;

/// Reads the whole topic, as it lies at the worker that leads all of it. `acknowledged`: of each producer.
pub async fn records(client: &Client, worker: &str, acknowledged: &[u64]) -> Result<()> {
    let description: Value = client.get(&format!("/v1/topics/{TOPIC}")).await?;
    let id = description["id"].as_str().context("the topic's id")?;
    let topic = TopicId(Uuid::parse_str(id)?);
    let transport = Transport::start("check")?;
    let mut next = vec![0; acknowledged.len()];
    for partition in 0..PARTITIONS {
        let mut offset = Offset::ZERO;
        loop {
            let request = FetchBatches {
                partition: TopicPartition {
                    topic,
                    partition: PartitionId(partition),
                },
                offset,
                max_bytes: FETCH_BYTES,
                wait: Span(0),
                isolation: Isolation::ReadCommitted,
            };
            let fetched = transport
                .call(worker, &request, Span::from_secs(60))
                .await?;
            let (batches, end) = fetched.open()?;
            for batch in &batches {
                for record in &batch.records()? {
                    let record = record?;
                    let value = record.value.and_then(producer_and_number);
                    let (producer, number) = value.context("a record of somebody else")?;
                    let expected = next
                        .get_mut(usize::try_from(producer)?)
                        .context("a record of nobody")?;
                    ensure!(
                        number == *expected,
                        "after {expected} records of producer {producer} comes number {number}"
                    );
                    *expected += 1;
                }
            }
            if end == offset {
                break;
            }
            offset = end;
        }
    }
    ensure!(
        next == acknowledged,
        "acknowledged were {acknowledged:?}, there are {next:?}"
    );
    Ok(())
}

/// Whether the job's windows have so many records of each producer.
pub async fn counts(client: &Client, topic: &str, acknowledged: &[u64]) -> Result<()> {
    let mut counted = vec![0; acknowledged.len()];
    for window in all_values(client, topic).await? {
        let p = window["p"].as_u64().and_then(producer_of);
        let p = p.context("a window of nobody")?;
        let counts = counted.get_mut(usize::try_from(p)?);
        *counts.context("a window of nobody")? += window["records"].as_u64().context("records")?;
    }
    ensure!(
        counted == acknowledged,
        "acknowledged were {acknowledged:?}, counted {counted:?}"
    );
    Ok(())
}
