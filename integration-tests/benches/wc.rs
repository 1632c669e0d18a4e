//! Windowed count and sum per key over JSON records of a topic, exactly once, against a batch query and Flink.
//!
//! `cargo build --release --bins && cargo bench -p integration-tests --bench wc [-- --flink]`
//!
//! The bids are those of `peers/gen`. Each system counts them in tumbling windows of 10 s per auction. The job
//! runs with checkpoints every second and is timed from its deployment until it is finished, when every result
//! is committed in a topic; the batch query (DataFusion, two threads) reads the same bytes from two files.
//! With `--standby`, the same job also runs on two workers, by turns without and with a standby of its state on the
//! other one. Every answer of every run is compared with what the generator counted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use common::client::Client;
use datafusion::arrow::array::{AsArray, Int64Array};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::prelude::{JsonReadOptions, SessionConfig, SessionContext};
use integration_tests::cluster::Cluster;
use integration_tests::measure::{Stopwatch, machine, millions_per_second, runtime};
use integration_tests::topics::all_values;
use serde_json::{Value, json};

#[derive(Debug, Parser)]
struct Options {
    /// How many bids.
    #[arg(long, default_value_t = 5_000_000)]
    bids: u64,
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Also measures what a standby costs.
    #[arg(long)]
    standby: bool,
    /// Installs Apache Flink and measures it, too.
    #[arg(long)]
    flink: bool,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What should come out: rows, bids and prices of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    rows: u64,
    bids: u64,
    total: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("{}", machine());
    let data = Data::make(options.bids)?;
    let runtime = runtime()?;
    let cluster = Cluster::start(1)?;
    let client = cluster.client()?;
    let loading = Stopwatch::start();
    runtime.block_on(data.load(&client))?;
    println!(
        "{} bids of {} bytes loaded over REST, one request at a time: {:.2} M records/s",
        data.bids,
        data.bytes / data.bids,
        millions_per_second(data.bids, loading.elapsed())
    );
    let (mut batch, mut job) = (Vec::new(), Vec::new());
    for run in 0..options.runs {
        batch.push(runtime.block_on(data.batch_query())?);
        job.push(runtime.block_on(data.job(&client, &format!("alone-{run}"), 0))?);
        println!(
            "run {run}: batch query {:.2} M/s, job {:.2} M/s, ratio {:.2}",
            millions_per_second(data.bids, batch[run]),
            millions_per_second(data.bids, job[run]),
            batch[run].as_secs_f64() / job[run].as_secs_f64()
        );
    }
    let (batch, job) = (best(&batch), best(&job));
    println!(
        "best: batch query {:.2} M/s, job {:.2} M/s, job / batch query {:.2}",
        millions_per_second(data.bids, batch),
        millions_per_second(data.bids, job),
        batch.as_secs_f64() / job.as_secs_f64()
    );
    drop(cluster);
    if options.standby {
        runtime.block_on(data.standby(options.runs))?;
    }
    if options.flink {
        let flink = data.flink()?;
        println!(
            "best: Flink {:.2} M/s, job / Flink {:.2}",
            flink / 1e6,
            data.bids as f64 / job.as_secs_f64() / flink
        );
    }
    Ok(())
}

fn best(runs: &[Duration]) -> Duration {
    *runs.iter().min().expect("there is at least one run")
}

/// The generated bids, two files of one line per bid.
#[derive(Debug)]
struct Data {
    peers: PathBuf,
    directory: PathBuf,
    bids: u64,
    bytes: u64,
    expected: Answer,
}

impl Data {
    fn make(bids: u64) -> Result<Data> {
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers");
        std::fs::create_dir_all(home.join("bin"))?;
        let home = home.canonicalize()?;
        let directory = home.join(format!("data/bids-{bids}"));
        if !directory.join("expected.json").is_file() {
            let generator = home.join("bin/gen");
            let mut compile = Command::new("rustc");
            compile
                .arg("-O")
                .arg(peers.join("gen/gen.rs"))
                .arg("-o")
                .arg(&generator);
            ensure!(
                compile.status()?.success(),
                "the generator does not compile"
            );
            let made = Command::new(&generator)
                .arg(&directory)
                .arg(bids.to_string())
                .status()?;
            ensure!(made.success(), "the generator failed");
        }
        let expected = std::fs::read(directory.join("expected.json"))?;
        let expected: Value = serde_json::from_slice(&expected)?;
        let number = |name: &str| expected[name].as_u64().with_context(|| name.to_owned());
        Ok(Data {
            bids: number("bids")?,
            bytes: number("bid_bytes")?,
            expected: Answer {
                rows: number("wc_rows")?,
                bids: number("wc_count")?,
                total: number("wc_sum")?,
            },
            peers,
            directory,
        })
    }

    /// In the order of event time, as one producer would send them.
    async fn load(&self, client: &Client) -> Result<()> {
        client.create_topic("bids", 2).await?;
        let files = [0, 1].map(|part| self.directory.join(format!("p/bid/part-{part}.json")));
        let [first, second] = files.map(std::fs::read);
        let (first, second) = (first?, second?);
        let mut lines = [&first, &second].map(|file| file.split_inclusive(|byte| *byte == b'\n'));
        let mut body = Vec::new();
        'reading: loop {
            for part in &mut lines {
                let Some(line) = part.next() else {
                    break 'reading;
                };
                body.extend_from_slice(line);
            }
            if body.len() > 4 << 20 {
                client
                    .produce_ndjson("bids", std::mem::take(&mut body), None)
                    .await?;
            }
        }
        if !body.is_empty() {
            client.produce_ndjson("bids", body, None).await?;
        }
        Ok(())
    }

    /// On two workers, without and with a standby.
    async fn standby(&self, runs: usize) -> Result<()> {
        let cluster = tokio::task::block_in_place(|| Cluster::start(2))?;
        let client = cluster.client()?;
        self.load(&client).await?;
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for run in 0..runs {
            without.push(self.job(&client, &format!("without-{run}"), 0).await?);
            with.push(self.job(&client, &format!("with-{run}"), 1).await?);
            println!(
                "run {run} on two workers: {:.2} M/s without a standby, {:.2} M/s with one, ratio {:.2}",
                millions_per_second(self.bids, without[run]),
                millions_per_second(self.bids, with[run]),
                without[run].as_secs_f64() / with[run].as_secs_f64()
            );
        }
        println!(
            "best: with a standby / without {:.2}",
            best(&without).as_secs_f64() / best(&with).as_secs_f64()
        );
        Ok(())
    }

    /// `name`: of this run.
    async fn job(&self, client: &Client, name: &str, standbys: u32) -> Result<Duration> {
        let output = format!("counts-{name}");
        client.create_topic(&output, 2).await?;
        let sql = format!(
            r#"CREATE TABLE bids (auction BIGINT, price BIGINT, "dateTime" TIMESTAMP(3),
                 WATERMARK FOR "dateTime" AS "dateTime" - INTERVAL '4' SECOND)
               WITH (connector = 'topic', topic = 'bids', format = 'json', 'scan.bounded.mode' = 'latest');
               CREATE TABLE counts WITH (connector = 'topic', topic = '{output}', format = 'json');
               INSERT INTO counts
               SELECT window_start, auction, count(*) AS bids, sum(price) AS total
               FROM TUMBLE(bids, "dateTime", INTERVAL '10' SECOND)
               GROUP BY window_start, window_end, auction;"#
        );
        let job = json!({
            "name": name, "sql": sql, "parallelism": 2, "checkpoint_interval_ms": 1000,
            "config": {"standbys": standbys},
        });
        let started = Stopwatch::start();
        let _: Value = client.post("/v1/jobs", &job).await?;
        loop {
            let job = client.job(name).await?;
            ensure!(job["state"] != "FAILED", "{}", job["reason"]);
            if job["state"] == "FINISHED" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let took = started.elapsed();
        let found = answer_of_topic(client, &output).await?;
        ensure!(
            found == self.expected,
            "the job gives {found:?}, not {:?}",
            self.expected
        );
        Ok(took)
    }

    async fn batch_query(&self) -> Result<Duration> {
        let context =
            SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
        let column = |name| Field::new(name, DataType::Int64, true);
        let schema = Schema::new(vec![column("auction"), column("price"), column("dateTime")]);
        let files = self.directory.join("p/bid/").display().to_string();
        let reading = JsonReadOptions::default().schema(&schema);
        let started = Stopwatch::start();
        context.register_json("bids", &files, reading).await?;
        let query = r#"SELECT "dateTime" / 10000 AS w, auction, count(*) AS n, sum(price) AS s FROM bids GROUP BY 1, 2"#;
        let batches = context.sql(query).await?.collect().await?;
        let took = started.elapsed();
        let sum = |index: usize| -> u64 {
            let columns = batches
                .iter()
                .map(|batch| batch.column(index).as_primitive::<Int64Type>());
            columns
                .map(|column: &Int64Array| column.values().iter().sum::<i64>() as u64)
                .sum()
        };
        let found = Answer {
            rows: batches.iter().map(|batch| batch.num_rows() as u64).sum(),
            bids: sum(2),
            total: sum(3),
        };
        ensure!(
            found == self.expected,
            "the batch query gives {found:?}, not {:?}",
            self.expected
        );
        Ok(took)
    }

    /// Events per second of its best run.
    fn flink(&self) -> Result<f64> {
        let home = self.directory.join("../..").canonicalize()?;
        if !home.join("flink/pyflink").is_dir() {
            let set_up = Command::new("sh")
                .arg(self.peers.join("setup.sh"))
                .arg("flink")
                .env("PEERS_HOME", &home)
                .status()?;
            ensure!(set_up.success(), "Flink cannot be installed");
        }
        let results = home.join("results.jsonl");
        let before = std::fs::read_to_string(&results)
            .unwrap_or_default()
            .lines()
            .count();
        let status = Command::new("sh")
            .arg(self.peers.join("run.sh"))
            .args(["flink", "wc"])
            .env("PEERS_HOME", &home)
            .env("PEERS_DATA", &self.directory)
            .env("PEERS_CKPT_S", "1")
            .status();
        ensure!(status?.success(), "Flink's run failed");
        let lines = std::fs::read_to_string(&results)?;
        let mut best: f64 = 0.0;
        for line in lines.lines().skip(before) {
            let run: Value = serde_json::from_str(line)?;
            ensure!(run["ok"] == true, "Flink's answer is wrong: {line}");
            best = best.max(run["eps"].as_f64().context("eps")?);
        }
        Ok(best)
    }
}

async fn answer_of_topic(client: &Client, topic: &str) -> Result<Answer> {
    let mut found = Answer {
        rows: 0,
        bids: 0,
        total: 0,
    };
    for value in all_values(client, topic).await? {
        found.rows += 1;
        found.bids += value["bids"].as_u64().context("bids")?;
        found.total += value["total"].as_u64().context("total")?;
    }
    Ok(found)
}
