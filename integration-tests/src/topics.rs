//! What is in a topic, as its users read it.

use anyhow::{Context, Result};
use common::client::Client;
use serde_json::Value;

/// What is asked for at once.
const RECORDS: usize = 10_000;

/// Every committed value of a topic, partition by partition, up to where nothing more is to be read.
pub async fn all_values(cluster: &Client, topic: &str) -> Result<Vec<Value>> {
    let description: Value = cluster.get(&format!("/v1/topics/{topic}")).await?;
    let partitions = description["partitions"]
        .as_array()
        .with_context(|| format!("the description of {topic} names no partitions"))?;
    let mut values = Vec::new();
    for partition in 0..u32::try_from(partitions.len())? {
        let mut offset = 0;
        loop {
            let fetched = cluster.fetch(topic, partition, offset, RECORDS, 0).await?;
            let records = fetched.records.into_iter();
            values.extend(records.filter_map(|record| record.value));
            if fetched.next_offset == offset {
                break;
            }
            offset = fetched.next_offset;
        }
    }
    Ok(values)
}
