//! How long no result comes after `kill -9` of the worker that holds all state: alone, with and without room for
//! it, and among three, where another one stands by; and how long if nothing is heard of that one.
//!
//! `cargo build --release --bins && cargo bench -p integration-tests --bench recovery`
//!
//! A running aggregate over many keys fills the state; then a light load goes on while the worker is killed and
//! started again with its directory: at once if it is alone, seconds later if not; or stopped, and goes on seconds
//! later. Measured is the longest time between two newly committed results, less the interval of checkpoints.
//! Afterwards the counts of a thousand keys are read over HTTP and must be exact.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use common::client::Client;
use integration_tests::cluster::Cluster;
use integration_tests::measure::{
    Stopwatch, machine, mebibytes, percentile, resident_bytes, runtime,
};
use integration_tests::steady_job::{INTERVAL, LOOK, check, ends, fill, load, look};
use serde_json::Value;

/// After a kill, the load goes on for so long.
const RETURN_WITHIN: Duration = Duration::from_secs(25);
/// Where another worker goes on, the killed one comes back after this, when all is long over.
const AWAY: Duration = Duration::from_secs(4);
const GO_ON_WITHIN: Duration = Duration::from_secs(8);
/// And one that is stopped goes on after this.
const SILENT: Duration = Duration::from_secs(10);

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
    /// How often one of three is stopped instead.
    #[arg(long, default_value_t = 5)]
    silences_of_three: u32,
    /// After which a worker that is not heard of is taken for lost.
    #[arg(long, default_value = "3s")]
    session_timeout: String,
    /// Memory of each of three workers.
    #[arg(long, default_value = "4GiB")]
    memory: String,
    /// After others hold everything twice again: they read what they hold into memory, and kills come in hours.
    #[arg(long, default_value_t = 10)]
    settle_seconds: u64,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("{}", machine());
    let runtime = runtime()?;
    for memory in ["2GiB", "128MiB"] {
        let gaps = measure(&options, 1, Loss::Killed, options.kills, memory);
        say("killed", runtime.block_on(gaps)?);
    }
    let of_three = |loss, times| {
        let gaps = measure(&options, 3, loss, times, &options.memory);
        runtime.block_on(gaps)
    };
    let mut gaps = Vec::new();
    for kills in portions(options.kills_of_three) {
        gaps.append(&mut of_three(Loss::Killed, kills)?);
    }
    say("one of three killed", gaps);
    let gaps = of_three(Loss::Silent, options.silences_of_three)?;
    let timeout = &options.session_timeout;
    say(
        &format!("one of three silent, with --session-timeout {timeout}"),
        gaps,
    );
    Ok(())
}

/// A worker that is lost again and again within minutes is avoided, which is another story: so often in a cluster,
/// and then in a new one.
fn portions(kills: u32) -> impl Iterator<Item = u32> {
    const KILLS: u32 = 7;
    let full = std::iter::repeat_n(KILLS, (kills / KILLS) as usize);
    full.chain([kills % KILLS])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Killed,
    Silent,
}

/// Answers how long no result came each time.
async fn measure(
    options: &Options,
    workers: usize,
    loss: Loss,
    times: u32,
    memory: &str,
) -> Result<Vec<Duration>> {
    if times == 0 {
        return Ok(Vec::new());
    }
    // A worker that is back gets nothing of the others before it is killed again.
    let told = [
        "--rebalance",
        "manual",
        "--session-timeout",
        &options.session_timeout,
    ];
    let start = || Cluster::start_told(workers, &["--memory", memory], &told);
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
    for _ in 0..times {
        if workers > 1 {
            until_held_twice(&client).await?;
            tokio::time::sleep(Duration::from_secs(options.settle_seconds)).await;
        }
        let gap = longest_gap(&mut cluster, &client, loss, &mut rounds).await?;
        gaps.push(gap.saturating_sub(INTERVAL));
    }
    check(&client, rounds).await?;
    Ok(gaps)
}

fn say(lost: &str, mut gaps: Vec<Duration>) {
    if gaps.is_empty() {
        return;
    }
    let each: Vec<String> = gaps
        .iter()
        .map(|gap| format!("{:.2}", gap.as_secs_f64()))
        .collect();
    let mut seconds = |hundredths| percentile(&mut gaps, hundredths).as_secs_f64();
    println!(
        "  {lost}: no newly committed result for {:.2} s more than the interval in the middle, {:.2} s at p99 ({})",
        seconds(50),
        seconds(99),
        each.join(", ")
    );
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

/// Loses the worker under a light load; answers the longest time without a newly committed result.
async fn longest_gap(
    cluster: &mut Cluster,
    client: &Client,
    loss: Loss,
    rounds: &mut u64,
) -> Result<Duration> {
    let clock = Stopwatch::start();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let load = tokio::spawn(load(client.clone(), *rounds, stopped.clone()));
    let looking = look(client.clone(), clock, ends(client).await?, stopped);
    let looking = tokio::spawn(looking);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let victim = busiest(cluster, client).await?;
    let (away, within) = match (cluster.workers(), loss) {
        (1, _) => (Duration::ZERO, RETURN_WITHIN),
        (_, Loss::Killed) => (AWAY, GO_ON_WITHIN),
        (_, Loss::Silent) => (SILENT, GO_ON_WITHIN + SILENT),
    };
    match loss {
        Loss::Killed => cluster.kill_worker(victim)?,
        Loss::Silent => cluster.worker_process(victim)?.signal("STOP")?,
    }
    tokio::time::sleep(away).await;
    match loss {
        // Blocks until the worker is ready, as a supervisor that starts it again would not have to.
        Loss::Killed => tokio::task::block_in_place(|| cluster.restart_worker(victim))?,
        Loss::Silent => cluster.worker_process(victim)?.signal("CONT")?,
    }
    tokio::time::sleep(within.saturating_sub(away)).await;
    stop.send(true)?;
    *rounds = load.await??;
    let gap = looking.await?.lasted;
    ensure!(gap < within, "results did not come back");
    Ok(gap)
}
