//! A job with much keyed state under a light load, and how steadily its results come out: what benchmarks of
//! recovery and rescaling share.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::client::Client;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::measure::Stopwatch;

/// Of the job's checkpoints: results are committed so often.
pub const INTERVAL: Duration = Duration::from_millis(200);
/// Between two looks at something that is waited for.
pub const LOOK: Duration = Duration::from_millis(5);
const REQUEST: u64 = 20_000;
const MAX_RECORDS: usize = 5_000;
/// Keys that the load after the filling is about; their counts are checked.
const BUSY_KEYS: u64 = 1_000;

/// Deploys the job and gives it every key once. Topics have a copy on each worker.
pub async fn fill(client: &Client, keys: u64, workers: usize) -> Result<()> {
    for topic in ["events", "results"] {
        let topic = json!({"name": topic, "partitions": 4, "replication_factor": workers});
        let _: Value = client.post("/v1/topics", &topic).await?;
    }
    let sql = "CREATE TABLE events (key VARCHAR, amount BIGINT) WITH (connector = 'topic', topic = 'events');
               CREATE TABLE results WITH (connector = 'topic', topic = 'results');
               INSERT INTO results SELECT key, count(*) AS events, sum(amount) AS total, max(amount) AS largest
               FROM events GROUP BY key;";
    let job = json!({
        "name": "counts", "sql": sql, "parallelism": 2,
        "checkpoint_interval_ms": INTERVAL.as_millis() as u64,
    });
    let _: Value = client.post("/v1/jobs", &job).await?;
    for first in (0..keys).step_by(usize::try_from(REQUEST)?) {
        let lines: String = (first..(first + REQUEST).min(keys)).map(record).collect();
        client
            .produce_ndjson("events", lines.into_bytes(), None)
            .await?;
    }
    until_read(client).await
}

/// Waits until a completed epoch covers everything.
pub async fn until_read(client: &Client) -> Result<()> {
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(offsets) = client.get::<Value>("/v1/jobs/counts/offsets").await else {
            continue;
        };
        let mut behind = 0;
        for partition in 0..4 {
            let end = end_of(client, "events", partition).await?;
            let read = offsets["sources"]["events"][partition.to_string()].as_i64();
            behind += end - read.unwrap_or(0);
        }
        if behind == 0 {
            return Ok(());
        }
    }
}

/// Every busy key once a round; each round is sent until it is acknowledged, and counts once.
pub async fn load(client: Client, mut round: u64, stopped: watch::Receiver<bool>) -> Result<u64> {
    while !*stopped.borrow() {
        let lines: String = (0..BUSY_KEYS).map(record).collect();
        let key = format!("round-{round}");
        while client
            .produce_idempotent("events", lines.clone().into_bytes(), &key)
            .await
            .is_err()
        {
            tokio::time::sleep(LOOK).await;
        }
        round += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(round)
}

/// A time without news, and when it was over.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    pub lasted: Duration,
    pub ended: Duration,
}

/// The longest time between two moments at which readers of committed records got more. Offsets do not tell:
/// they also pass what was given up.
pub async fn look(
    client: Client,
    clock: Stopwatch,
    mut positions: [i64; 4],
    stopped: watch::Receiver<bool>,
) -> Silence {
    let mut last = clock.elapsed();
    let mut longest = Silence {
        lasted: Duration::ZERO,
        ended: last,
    };
    let since = |last: Duration| {
        let ended = clock.elapsed();
        let lasted = ended - last;
        Silence { lasted, ended }
    };
    let longer = |one: Silence, other: Silence| match one.lasted < other.lasted {
        true => other,
        false => one,
    };
    while !*stopped.borrow() {
        let mut news = false;
        for (partition, position) in (0..).zip(&mut positions) {
            let fetched = client
                .fetch("results", partition, *position, MAX_RECORDS, 0)
                .await;
            if let Ok(fetched) = fetched {
                news |= !fetched.records.is_empty();
                *position = fetched.next_offset;
            }
        }
        if news {
            longest = longer(longest, since(last));
            last = clock.elapsed();
        }
        tokio::time::sleep(LOOK).await;
    }
    longer(longest, since(last))
}

/// Where committed results end.
pub async fn ends(client: &Client) -> Result<[i64; 4]> {
    let mut ends = [0; 4];
    for (partition, end) in (0..).zip(&mut ends) {
        *end = end_of(client, "results", partition).await?;
    }
    Ok(ends)
}

pub async fn check(client: &Client, rounds: u64) -> Result<()> {
    until_read(client).await?;
    let job = client.job("counts").await?;
    let operators = job["graph"]["operators"].as_array().context("operators")?;
    let aggregate = operators
        .iter()
        .find(|operator| operator["type"] == "aggregate");
    let id = aggregate
        .and_then(|o| o["id"].as_str())
        .context("the aggregate")?;
    for key in 0..BUSY_KEYS {
        let name = format!("customer-{key:075}");
        let state = client.state("counts", id, &json!(name)).await?;
        let events = &state["entries"][0]["value"]["events"];
        ensure!(
            *events == rounds + 1,
            "{name} has {state}, not {} events",
            rounds + 1
        );
    }
    println!("  every count is exact");
    Ok(())
}

fn record(key: u64) -> String {
    format!(
        "{{\"key\":\"customer-{key:075}\",\"amount\":{}}}\n",
        key % 100
    )
}

async fn end_of(client: &Client, topic: &str, partition: u32) -> Result<i64> {
    let path = format!("/v1/topics/{topic}/partitions/{partition}/records?offset=latest");
    let page: Value = client.get(&path).await?;
    page["end_offset"].as_i64().context("end_offset")
}
