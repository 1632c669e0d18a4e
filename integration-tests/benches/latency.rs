//! How long a record takes at 10,000 records a second: to be acknowledged, and from there through a filter job.
//!
//! `cargo build --release --bins && cargo bench -p integration-tests --bench latency`
//!
//! A producer sends a request of 100 records every 10 ms whatever became of the ones before. Each record carries
//! the time it was sent; a consumer's long poll sees the result of the job come out. Percentiles are over all
//! records after the first two seconds; every record must come out once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use common::client::Client;
use integration_tests::cluster::Cluster;
use integration_tests::measure::{Stopwatch, machine, percentile, runtime};
use serde_json::{Value, json};

const PER_REQUEST: u64 = 100;
const EVERY: Duration = Duration::from_millis(10);
const WARM_UP: Duration = Duration::from_secs(2);

#[derive(Debug, Parser)]
struct Options {
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("{}", machine());
    let runtime = runtime()?;
    for isolation in ["read_uncommitted", "read_committed"] {
        let cluster = Cluster::start(1)?;
        runtime.block_on(measure(&cluster, isolation, options.seconds))?;
    }
    Ok(())
}

async fn measure(cluster: &Cluster, isolation: &'static str, seconds: u64) -> Result<()> {
    let client = Client::connect(cluster.worker(0))?;
    client.create_topic("events", 1).await?;
    client.create_topic("results", 1).await?;
    let sql = "CREATE TABLE events (sent BIGINT, number BIGINT) WITH (connector = 'topic', topic = 'events');
               CREATE TABLE results WITH (connector = 'topic', topic = 'results');
               INSERT INTO results SELECT sent, number FROM events WHERE number >= 0;";
    let job = json!({"name": "filter", "sql": sql, "checkpoint_interval_ms": 100});
    let _: Value = client.post("/v1/jobs", &job).await?;
    while client.job("filter").await?["state"] != "RUNNING" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let clock = Stopwatch::start();
    let requests = seconds * 1_000 / u64::try_from(EVERY.as_millis())?;
    let records = requests * PER_REQUEST;
    let producer = tokio::spawn(send(client.clone(), clock, requests));
    let results = tokio::spawn(receive(client, clock, isolation, records));
    let mut acknowledged = producer.await??;
    let mut came_out = results.await??;
    let milliseconds =
        |values: &mut [Duration], hundredths| percentile(values, hundredths).as_secs_f64() * 1e3;
    println!(
        "{isolation}: acknowledged after fsync p50 {:.1} ms, p99 {:.1} ms; in to out p50 {:.1} ms, p99 {:.1} ms ({} records)",
        milliseconds(&mut acknowledged, 50),
        milliseconds(&mut acknowledged, 99),
        milliseconds(&mut came_out, 50),
        milliseconds(&mut came_out, 99),
        came_out.len()
    );
    Ok(())
}

/// Answers how long each request after the warm-up took.
async fn send(client: Client, clock: Stopwatch, requests: u64) -> Result<Vec<Duration>> {
    let mut ticks = tokio::time::interval(EVERY);
    let mut under_way = Vec::new();
    for request in 0..requests {
        ticks.tick().await;
        let client = client.clone();
        under_way.push(tokio::spawn(async move {
            let sent = clock.elapsed();
            let mut body = Vec::new();
            for number in 0..PER_REQUEST {
                let number = request * PER_REQUEST + number;
                let record = json!({"sent": sent.as_micros() as u64, "number": number});
                serde_json::to_writer(&mut body, &record)?;
                body.push(b'\n');
            }
            client.produce_ndjson("events", body, None).await?;
            Ok::<_, anyhow::Error>((sent, clock.elapsed() - sent))
        }));
    }
    let mut took = Vec::new();
    for request in under_way {
        let (sent, span) = request.await??;
        if sent > WARM_UP {
            took.push(span);
        }
    }
    Ok(took)
}

/// Answers how long each record after the warm-up took to come out.
async fn receive(
    client: Client,
    clock: Stopwatch,
    isolation: &str,
    records: u64,
) -> Result<Vec<Duration>> {
    let mut seen = vec![false; usize::try_from(records)?];
    let (mut offset, mut left, mut took) = (0_i64, records, Vec::new());
    while left > 0 {
        let path = format!(
            "/v1/topics/results/partitions/0/records?offset={offset}&max_records=10000&wait_ms=1000&isolation={isolation}"
        );
        let page: Value = client.get(&path).await?;
        let now = clock.elapsed();
        offset = page["next_offset"].as_i64().context("next_offset")?;
        for record in page["records"].as_array().context("records")? {
            let number = record["value"]["number"].as_u64().context("number")?;
            let sent = record["value"]["sent"].as_u64().context("sent")?;
            let first = !std::mem::replace(&mut seen[usize::try_from(number)?], true);
            ensure!(first, "record {number} came out twice");
            left -= 1;
            let sent = Duration::from_micros(sent);
            if sent > WARM_UP {
                took.push(now - sent);
            }
        }
    }
    Ok(took)
}
