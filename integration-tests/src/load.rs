//! What benchmarks send over REST, and how many records of it are there in the end.

use anyhow::{Context, Result, ensure};
use common::client::{Client, ClientError};
use serde_json::Value;

use crate::measure::{Stopwatch, millions_per_second};

/// Of one record.
pub const RECORD_BYTES: usize = 100;
const PER_REQUEST: usize = 10_000;
const CLIENTS: usize = 4;
/// Records of one request of every client.
pub const RECORDS_AT_ONCE: usize = CLIENTS * PER_REQUEST;

/// A request's records, each a line.
pub fn records(count: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(count * (RECORD_BYTES + 1));
    for number in 0..count {
        let mut line = format!(r#"{{"number":{number},"text":""#);
        while line.len() < RECORD_BYTES - 2 {
            line.push('x');
        }
        line.push_str("\"}\n");
        body.extend_from_slice(line.as_bytes());
    }
    body
}

/// Four clients send so many requests of 10,000 records each, the next when one is acknowledged. Answers in
/// millions of records a second.
pub async fn saturate(client: &Client, topic: &'static str, requests: usize) -> Result<f64> {
    let body = records(PER_REQUEST);
    let started = Stopwatch::start();
    let clients = (0..CLIENTS).map(|_| {
        let (client, body) = (client.clone(), body.clone());
        tokio::spawn(async move {
            for _ in 0..requests {
                client.produce_ndjson(topic, body.clone(), None).await?;
            }
            Ok::<(), ClientError>(())
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await??;
    }
    let sent = (requests * RECORDS_AT_ONCE) as u64;
    Ok(millions_per_second(sent, started.elapsed()))
}

/// Whether so many records are in a topic as were acknowledged.
pub async fn check_stored(client: &Client, topic: &str, acknowledged: u64) -> Result<()> {
    let description: Value = client.get(&format!("/v1/topics/{topic}")).await?;
    let mut stored = 0;
    for partition in description["partitions"].as_array().context("partitions")? {
        let number = &partition["partition"];
        let path = format!("/v1/topics/{topic}/partitions/{number}/records?offset=latest");
        let page: Value = client.get(&path).await?;
        stored += page["end_offset"].as_u64().context("end_offset")?;
    }
    ensure!(
        stored == acknowledged,
        "{acknowledged} were acknowledged, {stored} are there"
    );
    Ok(())
}
