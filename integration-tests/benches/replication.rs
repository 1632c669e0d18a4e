//! What three copies cost: the same records to a topic with one replica and to one with three.
//!
//! `cargo build --release --bins && cargo bench -p integration-tests --bench replication`
//!
//! Three workers on one machine share its disk and its cores, so three copies cannot be as fast as one. At
//! saturation: requests of 10,000 records of 100 bytes from four clients, by turns to the one topic and the
//! other, each acknowledged after fsync on every in-sync replica. Then at a fixed rate, requests of 100
//! records, how long each takes to be acknowledged. What was stored is counted each time.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use common::client::Client;
use integration_tests::cluster::Cluster;
use integration_tests::load::{RECORDS_AT_ONCE, check_stored, records, saturate};
use integration_tests::measure::{Stopwatch, machine, percentile};
use serde_json::{Value, json};

const PER_SMALL_REQUEST: usize = 100;
const EVERY: Duration = Duration::from_millis(10);
const PARTITIONS: u32 = 3;
const ROUNDS: usize = 3;
const TOPICS: [(&str, u32); 2] = [("one", 1), ("three", 3)];

#[derive(Debug, Parser)]
struct Options {
    /// Requests of each client to each topic in a round.
    #[arg(long, default_value_t = 25)]
    requests: usize,
    /// How long each topic is sent to at a fixed rate.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
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
    let cluster = Cluster::start(3)?;
    runtime.block_on(measure(&cluster, &options))
}

async fn measure(cluster: &Cluster, options: &Options) -> Result<()> {
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
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for ((topic, _), rates) in TOPICS.iter().zip(&mut rates) {
            rates.push(saturate(&client, topic, options.requests).await?);
        }
    }
    let [one, three] = rates.map(|rates| rates.iter().sum::<f64>() / rates.len() as f64);
    println!(
        "at saturation: one replica {one:.2} M records/s, three {three:.2} M records/s, ratio {:.2}",
        three / one
    );
    let requests = options.seconds * 1_000 / u64::try_from(EVERY.as_millis())?;
    for (topic, replicas) in TOPICS {
        let mut took = at_a_fixed_rate(&client, topic, requests).await?;
        let mut milliseconds = |hundredths| percentile(&mut took, hundredths).as_secs_f64() * 1e3;
        println!(
            "at 10,000 records/s with {replicas} replicas: acknowledged p50 {:.1} ms, p99 {:.1} ms",
            milliseconds(50),
            milliseconds(99)
        );
    }
    let at_once = (ROUNDS * options.requests * RECORDS_AT_ONCE) as u64;
    let sent = at_once + requests * PER_SMALL_REQUEST as u64;
    for (topic, _) in TOPICS {
        check_stored(&client, topic, sent).await?;
    }
    Ok(())
}

/// How long each request took.
async fn at_a_fixed_rate(
    client: &Client,
    topic: &'static str,
    requests: u64,
) -> Result<Vec<Duration>> {
    let body = records(PER_SMALL_REQUEST);
    let mut ticks = tokio::time::interval(EVERY);
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
