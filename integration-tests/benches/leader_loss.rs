//! How long a group of three coordinators decides nothing once its leader is gone, while records and results go on.
//!
//! `cargo build --release --bins && cargo bench -p integration-tests --bench leader_loss`
//!
//! A worker takes records, and a filter job passes them on; its results are read uncommitted. The coordinator that
//! leads is lost again and again: killed, so that connections to it are refused, or stopped, so that nothing is heard
//! of it. Measured are the time until a topic is created through one of the others, and the longest times between
//! two acknowledged requests, and between two moments at which results came, beside those of an undisturbed stretch.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use common::client::{Client, ClientError};
use common::error::ErrorCode;
use integration_tests::cluster::Cluster;
use integration_tests::measure::{Stopwatch, machine, percentile, runtime};
use serde_json::Value;
use tokio::sync::watch;

const COPY: &str =
    "CREATE TABLE events (number BIGINT) WITH (connector = 'topic', topic = 'events');
                    CREATE TABLE results WITH (connector = 'topic', topic = 'results');
                    INSERT INTO results SELECT number FROM events WHERE number >= 0;";
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(5);
const RECORDS_OF_A_REQUEST: u64 = 100;
/// A group that is whole again is left alone for so long.
const AROUND: Duration = Duration::from_secs(1);
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
struct Options {
    /// How often the leader is killed, and how often it is stopped.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Killed,
    Silent,
}

/// The longest times between two acknowledged requests, and between two moments at which results came.
#[derive(Debug)]
struct Gaps {
    appends: Duration,
    results: Duration,
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("{}", machine());
    let runtime = runtime()?;
    runtime.block_on(measure(&options))
}

async fn measure(options: &Options) -> Result<()> {
    let mut cluster = tokio::task::block_in_place(|| Cluster::start_group(3, 1))?;
    let worker = Client::connect(cluster.worker(0))?;
    worker.create_topic("events", 1).await?;
    worker.create_topic("results", 1).await?;
    worker.create_job("copy", COPY).await?;
    until("the job runs", async || {
        Ok(worker.job("copy").await?["state"] == "RUNNING")
    })
    .await?;
    let calm = beside(&worker, async {
        tokio::time::sleep(AROUND * options.rounds).await;
        Ok(())
    });
    let ((), gaps) = calm.await?;
    println!("nobody is lost for {:?}: {gaps}", AROUND * options.rounds);
    for (loss, named) in [
        (Loss::Killed, "killed"),
        (Loss::Silent, "stopped, and silent,"),
    ] {
        let lost = beside(&worker, lose_often(&mut cluster, loss, options.rounds));
        let (mut waits, gaps) = lost.await?;
        println!(
            "the leader is {named} {} times: topics can be created again after {:.2} s in the middle, {:.2} s at p99; {gaps}",
            options.rounds,
            percentile(&mut waits, 50).as_secs_f64(),
            percentile(&mut waits, 99).as_secs_f64(),
        );
    }
    Ok(())
}

/// How long each time nobody could create a topic.
async fn lose_often(cluster: &mut Cluster, loss: Loss, rounds: u32) -> Result<Vec<Duration>> {
    let addresses = cluster.coordinator_addresses();
    let mut waits = Vec::new();
    for round in 0..rounds {
        let leader = leader_of_whole(&addresses).await?;
        tokio::time::sleep(AROUND).await;
        let clock = Stopwatch::start();
        match loss {
            Loss::Killed => cluster.kill_coordinator_at(leader)?,
            Loss::Silent => cluster.coordinator_process(leader)?.signal("STOP")?,
        }
        let other = Client::connect(&addresses[(leader + 1) % addresses.len()])?;
        let topic = format!("{loss:?}-{round}").to_lowercase();
        until("a topic is created", async || {
            match other.create_topic(&topic, 1).await {
                // By a request whose answer was lost.
                Err(error) if error.code() == Some(ErrorCode::AlreadyExists) => Ok(true),
                created => created.map(|_| true),
            }
        })
        .await?;
        waits.push(clock.elapsed());
        match loss {
            Loss::Killed => tokio::task::block_in_place(|| cluster.restart_coordinator_at(leader))?,
            Loss::Silent => cluster.coordinator_process(leader)?.signal("CONT")?,
        }
    }
    Ok(waits)
}

/// The place of the leader, once all say the same of it.
async fn leader_of_whole(addresses: &[String]) -> Result<usize> {
    let mut leader = None;
    until("all know one leader", async || {
        let mut named = BTreeSet::new();
        for address in addresses {
            let cluster: Value = Client::connect(address)?.get("/v1/cluster").await?;
            let members = cluster["coordinators"].as_array().into_iter().flatten();
            let leads = members.filter(|member| member["leads"] == true);
            named.extend(leads.filter_map(|member| member["address"].as_str().map(str::to_owned)));
        }
        leader = named.pop_first();
        Ok(leader.is_some() && named.is_empty())
    })
    .await?;
    let leader = leader.context("it was just found")?;
    let place = addresses.iter().position(|address| *address == leader);
    place.context("no such coordinator was started")
}

/// What is refused or unreachable meanwhile is asked again.
async fn until(
    what: &str,
    mut is_so: impl AsyncFnMut() -> std::result::Result<bool, ClientError>,
) -> Result<()> {
    let clock = Stopwatch::start();
    let mut last = Ok(false);
    while clock.elapsed() < PATIENCE {
        last = is_so().await;
        if let Ok(true) = last {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    last?;
    anyhow::bail!("after {PATIENCE:?} it is not so: {what}")
}

/// Records go in and results come out while something else is done.
async fn beside<T>(
    worker: &Client,
    something: impl Future<Output = Result<T>>,
) -> Result<(T, Gaps)> {
    let (stop, stopped) = watch::channel(false);
    let appending = tokio::spawn(append(worker.clone(), stopped.clone()));
    let reading = tokio::spawn(read(worker.clone(), stopped));
    let done = something.await?;
    stop.send(true)?;
    let gaps = Gaps {
        appends: appending.await??,
        results: reading.await??,
    };
    Ok((done, gaps))
}

async fn append(worker: Client, stopped: watch::Receiver<bool>) -> Result<Duration> {
    let lines: String = (0..RECORDS_OF_A_REQUEST)
        .map(|number| format!("{{\"number\":{number}}}\n"))
        .collect();
    let mut longest = Longest::start();
    while !*stopped.borrow() {
        // Every request: one that is refused is what this would find.
        worker
            .produce_ndjson("events", lines.clone().into_bytes(), None)
            .await?;
        longest.note();
        tokio::time::sleep(LOOK).await;
    }
    Ok(longest.longest)
}

async fn read(worker: Client, stopped: watch::Receiver<bool>) -> Result<Duration> {
    let path = "/v1/topics/results/partitions/0/records?isolation=read_uncommitted";
    let newest: Value = worker.get(&format!("{path}&offset=latest")).await?;
    let mut next = newest["end_offset"].as_i64().context("end_offset")?;
    let mut longest = Longest::start();
    while !*stopped.borrow() {
        let page: Value = worker
            .get(&format!("{path}&offset={next}&wait_ms=100"))
            .await?;
        next = page["next_offset"].as_i64().context("next_offset")?;
        if page["records"].as_array().is_some_and(|r| !r.is_empty()) {
            longest.note();
        }
    }
    longest.note();
    ensure!(next > 0, "nothing came");
    Ok(longest.longest)
}

struct Longest {
    clock: Stopwatch,
    last: Duration,
    longest: Duration,
}

impl Longest {
    fn start() -> Longest {
        Longest {
            clock: Stopwatch::start(),
            last: Duration::ZERO,
            longest: Duration::ZERO,
        }
    }

    fn note(&mut self) {
        let now = self.clock.elapsed();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }
}

impl fmt::Display for Gaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "at most {} ms between two acknowledged requests, {} ms between two moments with results",
            self.appends.as_millis(),
            self.results.as_millis()
        )
    }
}
