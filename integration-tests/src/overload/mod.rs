//! More than a cluster takes: producers that offer it, a job that counts what is taken, and what has to hold.
//!
//! The test of overload and the benchmark of a spike share it. Each producer numbers its records. A request
//! that is refused is offered again at the producer's next turn, so what was acknowledged has no gaps.

pub mod producer;
pub mod check;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::client::Client;
use serde_json::{Value, json};

pub const TOPIC: &str = "events";
pub const PARTITIONS: u32 = 4;
const RESULTS: &str = "counts";
const JOB: &str = "counts";
const LOOK: Duration = Duration::from_millis(20);

/// What the job does.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub parallelism: u32,
    /// Texts that each record's number is compared with before it is counted: some microseconds each.
    pub comparisons: u32,
}

impl Work {
    /// Counting is all.
    pub const LIGHT: Work = Work {
        parallelism: 2,
        comparisons: 0,
    };
}

/// Topics, and an exactly-once job that counts each producer's records in windows. It runs when this returns.
pub async fn deploy(client: &Client, work: Work) -> Result<()> {
    client.create_topic(TOPIC, PARTITIONS).await?;
    client.create_topic(RESULTS, 1).await?;
    let comparison = |number| format!("levenshtein(cast(n AS VARCHAR), '{number:0>100}') > 0");
    let comparisons: Vec<String> = (0..work.comparisons).map(comparison).collect();
    let condition = match comparisons.is_empty() {
        true => String::new(),
        false => format!("WHERE {}", comparisons.join(" AND ")),
    };
    // Requests that were refused come late.
    let sql = format!(
        "CREATE TABLE events (p BIGINT, n BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '30' SECOND)
         WITH (connector = 'topic', topic = 'events');
         CREATE TABLE counts WITH (connector = 'topic', topic = 'counts');
         INSERT INTO counts
         SELECT window_start, p, count(*) AS records, min(n) AS first, max(n) AS last
         FROM TUMBLE(events, ts, INTERVAL '1' SECOND) {condition} GROUP BY window_start, window_end, p;"
    );
    let job = json!({
        "name": JOB, "sql": sql, "parallelism": work.parallelism, "checkpoint_interval_ms": 1_000,
    });
    let _: Value = client.post("/v1/jobs", &job).await?;
    wait_for(client, "RUNNING").await
}

/// Lets the job end where it is, all windows closed: every acknowledged record was counted once.
pub async fn finish(client: &Client, acknowledged: &[u64]) -> Result<()> {
    let path = format!("/v1/jobs/{JOB}/stop?drain=true");
    let _: Value = client.post(&path, &json!({})).await?;
    wait_for(client, "FINISHED").await?;
    check::counts(client, RESULTS, acknowledged).await
}

async fn wait_for(client: &Client, state: &str) -> Result<()> {
    loop {
        let job = client.job(JOB).await?;
        ensure!(job["state"] != "FAILED", "{}", job["reason"]);
        if job["state"] == state {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Records that no completed checkpoint of the job covers yet.
pub async fn lag(client: &Client) -> Result<u64> {
    let path = format!("/v1/jobs/{JOB}/offsets");
    let offsets = client.get::<Value>(&path).await.unwrap_or_default();
    let mut behind = 0;
    for partition in 0..PARTITIONS {
        let path = format!("/v1/topics/{TOPIC}/partitions/{partition}/records?offset=latest");
        let page: Value = client.get(&path).await?;
        let end = page["end_offset"].as_u64().context("end_offset")?;
        let read = offsets["sources"][TOPIC][partition.to_string()].as_u64();
        behind += end.saturating_sub(read.unwrap_or(0));
    }
    Ok(behind)
}

/// Waits until the job has counted everything.
pub async fn until_drained(client: &Client) -> Result<()> {
    while lag(client).await? > 0 {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// What changes if a worker is taken for lost, or the job begins again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub generation: u64,
    pub restarts: usize,
    /// Of each worker.
    pub epochs: Vec<u64>,
}

pub async fn standing(client: &Client) -> Result<Standing> {
    let job = client.job(JOB).await?;
    let list: Value = client.get("/v1/workers").await?;
    let workers = list["workers"].as_array().context("workers")?;
    let epochs = workers.iter().map(|w| w["epoch"].as_u64());
    Ok(Standing {
        generation: job["generation"].as_u64().context("generation")?,
        restarts: job["restarts"].as_array().map_or(0, Vec::len),
        epochs: epochs.collect::<Option<_>>().context("epochs")?,
    })
}
