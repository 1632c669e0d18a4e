//! What three copies cost: the same records to a topic with one replica and to one with three.
//!
//! `cargo build --release --bins && cargo bench -p integration-tests --bench replication`
//!
//! Three workers on one machine share its disk and its cores, so three copies cannot be as fast as one. At
//! saturation: requests of 10,000 records of 100 bytes from four clients, by turns to the one topic and the
//! other, each acknowledged after fsync on every in-sync replica; and what went over loopback and to the disk for a
//! record, requests and all. Then how long each request takes to be acknowledged: at half of what the topic itself
//! sustains, in requests of the same size; both at half of what three replicas sustain; and at 10,000 records/s in
//! requests of 100. What was stored is counted.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use common::client::Client;
use integration_tests::cluster::Cluster;
use integration_tests::load::{RECORDS_AT_ONCE, check_stored, records, saturate};
use integration_tests::measure::{
    Stopwatch, bytes_over_loopback, bytes_written, machine, percentile, runtime,
};
use serde_json::{Value, json};

const PARTITIONS: u32 = 3;
const ROUNDS: usize = 3;
const TOPICS: [(&str, u32); 2] = [("one", 1), ("three", 3)];

#[derive(Debug, Parser)]
struct Options {
    /// Requests of each client to each topic in a round.
    #[arg(long, default_value_t = 25)]
    requests: usize,
    /// How long each topic is sent to at each fixed rate.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("{}", machine());
    let runtime = runtime()?;
    let mut cluster = Cluster::start(3)?;
    runtime.block_on(measure(&mut cluster, &options))
}

async fn measure(cluster: &mut Cluster, options: &Options) -> Result<()> {
    let client = Client::connect(cluster.worker(0))?;
    for (name, replicas) in TOPICS {
        let topic = json!({
            "name": name,
            "partitions": PARTITIONS,
            "replication_factor": replicas,
            "config": {"min_insync_replicas": replicas.div_ceil(2)},
        });
        let _: Value = client.post("/v1/topics", &topic).await?;
    }
    let (mut rates, mut moved) = ([Vec::new(), Vec::new()], [Moved::default(); 2]);
    for _ in 0..ROUNDS {
        for (index, (topic, _)) in TOPICS.iter().enumerate() {
            let before = Moved::until_now(cluster)?;
            rates[index].push(saturate(&client, topic, options.requests).await?);
            moved[index].add(before, Moved::until_now(cluster)?);
        }
    }
    let [one, three] = rates.map(|rates| rates.iter().sum::<f64>() / rates.len() as f64);
    println!(
        "at saturation: one replica {one:.2} M records/s, three {three:.2} M records/s, ratio {:.2}",
        three / one
    );
    let at_once = (ROUNDS * options.requests * RECORDS_AT_ONCE) as u64;
    for ((_, replicas), moved) in TOPICS.iter().zip(moved) {
        println!(
            "a record with {replicas} replicas: {} bytes over loopback, {} to disk",
            moved.over_loopback / at_once,
            moved.to_disk / at_once
        );
    }
    let half = |sustained: f64| Pace {
        records: RECORDS_AT_ONCE,
        every: Duration::from_secs_f64(RECORDS_AT_ONCE as f64 / (sustained / 2.0 * 1e6)),
    };
    let few = Pace {
        records: 100,
        every: Duration::from_millis(10),
    };
    let mut sent = [at_once; 2];
    for paces in [[half(one), half(three)], [half(three); 2], [few; 2]] {
        let each = TOPICS.into_iter().zip(paces).zip(&mut sent);
        let mut largest = Vec::new();
        for (((topic, replicas), pace), sent) in each {
            let requests = pace.requests_in(Duration::from_secs(options.seconds));
            *sent += requests * pace.records as u64;
            let mut took = at_a_fixed_rate(&client, topic, pace, requests).await?;
            let mut milliseconds =
                |hundredths| percentile(&mut took, hundredths).as_secs_f64() * 1e3;
            let (middle, p99) = (milliseconds(50), milliseconds(99));
            println!(
                "at {:.0} records/s with {replicas} replicas: acknowledged p50 {middle:.1} ms, p99 {p99:.1} ms",
                pace.records as f64 / pace.every.as_secs_f64(),
            );
            largest.push(p99);
        }
        println!("  ratio of the p99: {:.1}", largest[1] / largest[0]);
    }
    for ((topic, _), sent) in TOPICS.iter().zip(sent) {
        check_stored(&client, topic, sent).await?;
    }
    Ok(())
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    over_loopback: u64,
    to_disk: u64,
}

impl Moved {
    fn until_now(cluster: &mut Cluster) -> Result<Moved> {
        let mut to_disk = 0;
        for worker in 0..cluster.workers() {
            let process = cluster.worker_process(worker)?.id();
            to_disk += bytes_written(process).context("Linux says nothing of the worker")?;
        }
        let over_loopback = bytes_over_loopback().context("Linux says nothing of loopback")?;
        Ok(Moved {
            over_loopback,
            to_disk,
        })
    }

    fn add(&mut self, before: Moved, after: Moved) {
        self.over_loopback += after.over_loopback - before.over_loopback;
        self.to_disk += after.to_disk - before.to_disk;
    }
}

/// Requests of so many records, so often.
#[derive(Clone, Copy, Debug)]
struct Pace {
    records: usize,
    every: Duration,
}

impl Pace {
    fn requests_in(self, time: Duration) -> u64 {
        (time.as_secs_f64() / self.every.as_secs_f64()) as u64
    }
}

/// How long each request took.
async fn at_a_fixed_rate(
    client: &Client,
    topic: &'static str,
    pace: Pace,
    requests: u64,
) -> Result<Vec<Duration>> {
    let body = records(pace.records);
    let mut ticks = tokio::time::interval(pace.every);
    let mut under_way = Vec::new();
    for _ in 0..requests {
        ticks.tick().await;
        let (client, body) = (client.clone(), body.clone());
        under_way.push(tokio::spawn(async move {
            let sent = Stopwatch::start();
            client.produce_ndjson(topic, body, None).await?;
            Ok::<_, common::client::ClientError>(sent.elapsed())
        }));
    }
    let mut took = Vec::new();
    for request in under_way {
        took.push(request.await??);
    }
    Ok(took)
}
