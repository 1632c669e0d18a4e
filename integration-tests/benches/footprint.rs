//! What it takes to have a cluster: time to be ready, time to a first result, memory when idle, sizes of binaries.
//!
//! `cargo build --release --bins && cargo bench -p integration-tests --bench footprint`

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use integration_tests::cluster::Cluster;
use integration_tests::measure::{Stopwatch, machine, mebibytes, resident_bytes};
use integration_tests::process::binary;
use serde_json::{Value, json};

#[derive(Debug, Parser)]
struct Options {
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("{}", machine());
    for name in ["coordinator", "worker"] {
        let size = binary(name)?.metadata()?.len();
        println!("{name}: {:.0} MiB", mebibytes(size));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for run in 0..options.runs {
        let started = Stopwatch::start();
        let mut cluster = Cluster::start(1)?;
        let ready = started.elapsed();
        runtime.block_on(first_result(&cluster))?;
        let result = started.elapsed();
        drop(cluster);
        cluster = Cluster::start(1)?;
        let process = cluster.worker_process(0)?.id();
        let coordinator = cluster.coordinator_process(0)?.id();
        let resident = |process| {
            let (_, now) = resident_bytes(process).context("Linux says nothing of the process")?;
            Ok::<_, anyhow::Error>(mebibytes(now))
        };
        println!(
            "run {run}: both ready after {:.0} ms, first result of a windowed job after {:.0} ms; idle: coordinator {:.0} MiB, worker {:.0} MiB",
            ready.as_secs_f64() * 1e3,
            result.as_secs_f64() * 1e3,
            resident(coordinator)?,
            resident(process)?,
        );
    }
    Ok(())
}

/// From nothing to the first committed result of a window.
async fn first_result(cluster: &Cluster) -> Result<()> {
    let client = cluster.client()?;
    client.create_topic("bids", 1).await?;
    let bids: Vec<Value> = (0..100)
        .map(|number| json!({"auction": number % 3, "price": number, "ts": number * 100}))
        .collect();
    client.produce("bids", &bids).await?;
    let sql = "CREATE TABLE bids (auction BIGINT, price BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts)
               WITH (connector = 'topic', topic = 'bids', 'scan.bounded.mode' = 'latest');
               CREATE TABLE counts WITH (connector = 'topic', topic = 'counts');
               INSERT INTO counts SELECT window_start, auction, count(*) AS bids
               FROM TUMBLE(bids, ts, INTERVAL '10' SECOND) GROUP BY window_start, window_end, auction;";
    client.create_job("counts", sql).await?;
    for _ in 0..1_000 {
        if let Ok(fetched) = client.fetch("counts", 0, 0, 10, 1_000).await
            && !fetched.records.is_empty()
        {
            ensure!(fetched.records.len() == 3, "there are three auctions");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    anyhow::bail!("no result came out")
}
