//! How long no result comes while a job with much state is divided into more or fewer tasks.
//!
//! `cargo build --release --bins && cargo bench -p integration-tests --bench rescale`
//!
//! A running aggregate over many keys fills the state; then a light load goes on while the job goes from two tasks a
//! stage to four and back. Measured is the longest time between two newly committed results, less the
//! interval of checkpoints, and how long the whole change took, which is mostly preparing the state. Afterwards the
//! counts of a thousand keys are read over HTTP and must be exact.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use common::client::Client;
use integration_tests::cluster::Cluster;
use integration_tests::measure::{Stopwatch, machine, mebibytes, runtime};
use integration_tests::steady_job::{INTERVAL, LOOK, check, ends, fill, load, look};
use serde_json::{Value, json};

/// Before and after the change the load goes on for so long.
const AROUND: Duration = Duration::from_secs(2);

#[derive(Debug, Parser)]
struct Options {
    /// Different keys; about 110 bytes of state each.
    #[arg(long, default_value_t = 2_000_000)]
    keys: u64,
    /// From two tasks a stage to four and back.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Of each worker.
    #[arg(long, default_value = "4GiB")]
    memory: String,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("{}", machine());
    let runtime = runtime()?;
    runtime.block_on(measure(&options))
}

async fn measure(options: &Options) -> Result<()> {
    let start = || {
        Cluster::start_with(
            options.workers,
            &["--memory", &options.memory, "--slots", "4"],
        )
    };
    let cluster = tokio::task::block_in_place(start)?;
    let client = cluster.client()?;
    fill(&client, options.keys, options.workers).await?;
    let job = client.job("counts").await?;
    let state = &job["last_checkpoint"]["state_bytes"];
    let state = state.as_u64().context("state_bytes")?;
    println!(
        "{} workers, --memory {}: {:.0} MiB of state",
        options.workers,
        options.memory,
        mebibytes(state)
    );
    let (mut sent, mut pauses) = (0, Vec::new());
    for _ in 0..options.rounds {
        for parallelism in [4, 2] {
            let Change { pause, ended, took } = rescale(&client, parallelism, &mut sent).await?;
            println!(
                "  to {parallelism}: after {:.1} s; {:.2} s without a newly committed result beyond the interval, until {:.1} s",
                took.as_secs_f64(),
                pause.as_secs_f64(),
                ended.as_secs_f64()
            );
            pauses.push(pause);
        }
    }
    pauses.sort_unstable();
    println!(
        "  {:.2} s in the middle, {:.2} s at most",
        pauses[pauses.len() / 2].as_secs_f64(),
        pauses[pauses.len() - 1].as_secs_f64()
    );
    check(&client, sent).await
}

struct Change {
    /// The longest time without a result, beyond the interval.
    pause: Duration,
    /// Since it was asked for: when that was over, and when the change was made.
    ended: Duration,
    took: Duration,
}

async fn rescale(client: &Client, parallelism: u32, sent: &mut u64) -> Result<Change> {
    let clock = Stopwatch::start();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let load = tokio::spawn(load(client.clone(), *sent, stopped.clone()));
    let looking = look(client.clone(), clock, ends(client).await?, stopped);
    let looking = tokio::spawn(looking);
    tokio::time::sleep(AROUND).await;
    let began = clock.elapsed();
    let wish = json!({ "parallelism": parallelism });
    let _: Value = client.post("/v1/jobs/counts/rescale", &wish).await?;
    loop {
        let job = client.job("counts").await?;
        let there = job["parallelism"] == parallelism && job["state"] == "RUNNING";
        if there && job.get("rescaling").is_none() {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    let took = clock.elapsed() - began;
    tokio::time::sleep(AROUND).await;
    stop.send(true)?;
    *sent = load.await??;
    let silence = looking.await?;
    Ok(Change {
        pause: silence.lasted.saturating_sub(INTERVAL),
        ended: silence.ended.saturating_sub(began),
        took,
    })
}
