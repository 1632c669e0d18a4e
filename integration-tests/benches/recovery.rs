//! How long no result comes after `kill -9` of the worker that holds all state: alone, with and without room for
//! it, and among three, where another one stands by.
//!
//! `cargo build --release --bins && cargo bench -p integration-tests --bench recovery`
//!
//! A running aggregate over many keys fills the state; then a light load goes on while the worker is killed and
//! started again with its directory: at once if it is alone, seconds later if not. Measured is the longest time between two newly committed results, less the
//! interval of checkpoints. Afterwards the counts of a thousand keys are read over HTTP and must be exact.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use common::client::Client;
use integration_tests::cluster::Cluster;
use integration_tests::measure::{Stopwatch, machine, mebibytes, resident_bytes};
use serde_json::{Value, json};

const INTERVAL: Duration = Duration::from_millis(200);
/// After a kill, the load goes on for so long.
const RETURN_WITHIN: Duration = Duration::from_secs(25);
/// Where another worker goes on, the killed one comes back after this, when all is long over.
const AWAY: Duration = Duration::from_secs(4);
const GO_ON_WITHIN: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(5);
const REQUEST: u64 = 20_000;
const MAX_RECORDS: usize = 5_000;
/// Keys that the load after the filling is about; their counts are checked.
const BUSY_KEYS: u64 = 1_000;

#[derive(Debug, Parser)]
struct Options {
    /// Different keys; about 110 bytes of state each.
    #[arg(long, default_value_t = 2_000_000)]
    keys: u64,
    /// Of a worker alone, and of one of three.
    #[arg(long, default_value_t = 3)]
    kills: u32,
    #[arg(long, default_value_t = 20)]
    kills_of_three: u32,
    /// Memory of each of three workers.
    #[arg(long, default_value = "4GiB")]
    memory: String,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("{}", machine());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    for memory in ["2GiB", "128MiB"] {
        runtime.block_on(measure(&options, 1, options.kills, memory))?;
    }
    runtime.block_on(measure(
        &options,
        3,
        options.kills_of_three,
        &options.memory,
    ))
}

async fn measure(options: &Options, workers: usize, kills: u32, memory: &str) -> Result<()> {
    if kills == 0 {
        return Ok(());
    }
    let start = || Cluster::start_with(workers, &["--memory", memory]);
    let mut cluster = tokio::task::block_in_place(start)?;
    let client = cluster.client()?;
    fill(&client, options.keys, workers).await?;
    let job = client.job("counts").await?;
    let state = &job["last_checkpoint"]["state_bytes"];
    let state = state.as_u64().context("state_bytes")?;
    let mut peak = 0;
    for worker in 0..workers {
        let process = cluster.worker_process(worker)?.id();
        let (own, _) = resident_bytes(process).context("Linux says nothing of the worker")?;
        peak = own.max(peak);
    }
    println!(
        "{workers} workers, --memory {memory}: {:.0} MiB of state, peak of a worker's memory {:.0} MiB",
        mebibytes(state),
        mebibytes(peak)
    );
    let (mut rounds, mut gaps) = (0, Vec::new());
    for _ in 0..kills {
        if workers > 1 {
            until_held_twice(&client).await?;
        }
        let gap = longest_gap(&mut cluster, &client, &mut rounds).await?;
        gaps.push(gap.saturating_sub(INTERVAL));
    }
    let each: Vec<String> = gaps
        .iter()
        .map(|gap| format!("{:.2}", gap.as_secs_f64()))
        .collect();
    gaps.sort_unstable();
    println!(
        "  no newly committed result for {:.2} s more than the interval in the middle, {:.2} s at most ({})",
        gaps[gaps.len() / 2].as_secs_f64(),
        gaps[gaps.len() - 1].as_secs_f64(),
        each.join(", ")
    );
    check(&client, rounds).await
}

/// Another worker holds all of it, too.
async fn until_held_twice(client: &Client) -> Result<()> {
    loop {
        let list: Value = client.get("/v1/jobs/counts/checkpoints").await?;
        let holders = list["holders"].as_object().context("holders")?;
        let twice = |workers: &Value| workers.as_array().is_some_and(|w| w.len() > 1);
        if !holders.is_empty() && holders.values().all(twice) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The place of the worker that has most tasks of the job.
async fn busiest(cluster: &Cluster, client: &Client) -> Result<usize> {
    let job = client.job("counts").await?;
    let stages = job["stages"].as_array().context("stages")?;
    let tasks = stages.iter().flat_map(|stage| stage["tasks"].as_array());
    let mut counts = std::collections::BTreeMap::<u64, usize>::new();
    for task in tasks.flatten() {
        let worker = task["worker"].as_u64().context("a task's worker")?;
        *counts.entry(worker).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, tasks)| *tasks);
    let (id, _) = most.context("no task runs")?;
    let list: Value = client.get("/v1/workers").await?;
    let workers = list["workers"].as_array().context("workers")?;
    let row = workers.iter().find(|worker| worker["id"] == id);
    let address = row
        .and_then(|row| row["address"].as_str())
        .context("its address")?;
    let mut places = 0..cluster.workers();
    places
        .find(|place| cluster.worker(*place) == address)
        .context("no such worker was started")
}

fn record(key: u64) -> String {
    format!(
        "{{\"key\":\"customer-{key:075}\",\"amount\":{}}}\n",
        key % 100
    )
}

/// Deploys the job and gives it every key once. Topics have a copy on each worker.
async fn fill(client: &Client, keys: u64, workers: usize) -> Result<()> {
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
async fn until_read(client: &Client) -> Result<()> {
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

/// Kills the worker under a light load; answers the longest time without a newly committed result.
async fn longest_gap(cluster: &mut Cluster, client: &Client, rounds: &mut u64) -> Result<Duration> {
    let clock = Stopwatch::start();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let load = tokio::spawn(load(client.clone(), *rounds, stopped.clone()));
    let looking = look(client.clone(), clock, ends(client).await?, stopped);
    let looking = tokio::spawn(looking);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let victim = busiest(cluster, client).await?;
    let (away, within) = match cluster.workers() {
        1 => (Duration::ZERO, RETURN_WITHIN),
        _ => (AWAY, GO_ON_WITHIN),
    };
    cluster.kill_worker(victim)?;
    tokio::time::sleep(away).await;
    // Blocks until the worker is ready, as a supervisor that starts it again would not have to.
    tokio::task::block_in_place(|| cluster.restart_worker(victim))?;
    tokio::time::sleep(within.saturating_sub(away)).await;
    stop.send(true)?;
    *rounds = load.await??;
    let gap = looking.await?;
    ensure!(gap < within, "results did not come back");
    Ok(gap)
}

/// Every busy key once a round; each round is sent until it is acknowledged, and counts once.
async fn load(
    client: Client,
    mut round: u64,
    stopped: tokio::sync::watch::Receiver<bool>,
) -> Result<u64> {
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

/// The longest time between two moments at which readers of committed records got more. Offsets do not tell:
/// they also pass what was given up.
async fn look(
    client: Client,
    clock: Stopwatch,
    mut positions: [i64; 4],
    stopped: tokio::sync::watch::Receiver<bool>,
) -> Duration {
    let (mut longest, mut last) = (Duration::ZERO, clock.elapsed());
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
            longest = longest.max(clock.elapsed() - last);
            last = clock.elapsed();
        }
        tokio::time::sleep(LOOK).await;
    }
    longest.max(clock.elapsed() - last)
}

/// Where committed results end.
async fn ends(client: &Client) -> Result<[i64; 4]> {
    let mut ends = [0; 4];
    for (partition, end) in (0..).zip(&mut ends) {
        *end = end_of(client, "results", partition).await?;
    }
    Ok(ends)
}

async fn end_of(client: &Client, topic: &str, partition: u32) -> Result<i64> {
    let path = format!("/v1/topics/{topic}/partitions/{partition}/records?offset=latest");
    let page: Value = client.get(&path).await?;
    page["end_offset"].as_i64().context("end_offset")
}

async fn check(client: &Client, rounds: u64) -> Result<()> {
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
