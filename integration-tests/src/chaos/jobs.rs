//! The jobs of a run, and what the cluster says of them.
//!
//! `large` passes the events whose amount is not negative, and needs no state. `sums` counts and adds up
//! per account, once in windows that overlap and once over everything, with its tasks on all workers.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use common::client::{Client, ClientError};
use common::error::ErrorCode;
use common::random::{Random, seeded};
use serde_json::{Value, json};

use super::nodes::Nodes;
use super::stream::DISORDER_MS;

pub const EVENTS: &str = "events";
pub const LARGE: &str = "large";
pub const SUMS: &str = "sums";
pub const WINDOWS: &str = "windows";
pub const TOTALS: &str = "totals";
pub const JOBS: [&str; 2] = [LARGE, SUMS];
/// The output topics.
pub const OUTPUTS: [&str; 3] = [LARGE, WINDOWS, TOTALS];

pub const EVENT_PARTITIONS: u32 = 6;
pub const OUTPUT_PARTITIONS: u32 = 4;
/// Of every partition.
const COPIES: u32 = 3;
/// Windows begin every slide and last a size.
pub const SLIDE_MS: i64 = 5_000;
pub const SIZE_MS: i64 = 10_000;
/// How far the watermark stays behind the latest event: no event is late, also if producers drift apart
/// further than they should by as much again as a slow start may let them.
pub const DELAY_MS: i64 = DISORDER_MS.cast_signed() + 2_000;

const CHECKPOINT_INTERVAL_MS: u64 = 200;
/// At first, and at most.
pub const PARALLELISM: u32 = 3;

/// Creates the topics and deploys the jobs. On a busy machine the coordinators may be electing another leader.
pub async fn deploy(seed: u64, addresses: &[String]) -> Result<()> {
    let nodes = Nodes::new(addresses)?;
    let mut random = seeded(seed, 8_000);
    create_topic(&nodes, &mut random, EVENTS, EVENT_PARTITIONS).await?;
    for topic in OUTPUTS {
        create_topic(&nodes, &mut random, topic, OUTPUT_PARTITIONS).await?;
    }
    let events = format!(
        "CREATE TABLE events (producer BIGINT, serial BIGINT, account BIGINT, amount BIGINT,
             ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '{}' SECOND)
         WITH (connector = 'topic', topic = '{EVENTS}', format = 'json');",
        DELAY_MS / 1_000
    );
    let large = format!(
        "{events}
         CREATE TABLE large WITH (connector = 'topic', topic = '{LARGE}', format = 'json');
         INSERT INTO large
         SELECT producer, serial, account * 2 + 1 AS twice, amount FROM events WHERE amount >= 0;"
    );
    let sums = format!(
        "{events}
         CREATE TABLE windows WITH (connector = 'topic', topic = '{WINDOWS}', format = 'json');
         CREATE TABLE totals (account BIGINT PRIMARY KEY, events BIGINT, total BIGINT, highest BIGINT)
         WITH (connector = 'topic', topic = '{TOTALS}', format = 'json');
         INSERT INTO windows
         SELECT window_start, window_end, account, count(*) AS events, sum(amount) AS total,
                max(serial) AS highest
         FROM HOP(events, ts, INTERVAL '{}' SECOND, INTERVAL '{}' SECOND)
         GROUP BY window_start, window_end, account;
         INSERT INTO totals
         SELECT account, count(*) AS events, sum(amount) AS total, max(serial) AS highest
         FROM events GROUP BY account;",
        SLIDE_MS / 1_000,
        SIZE_MS / 1_000
    );
    for (name, sql) in [(LARGE, large), (SUMS, sums)] {
        let job = json!({
            "name": name, "sql": sql, "parallelism": PARALLELISM,
            "checkpoint_interval_ms": CHECKPOINT_INTERVAL_MS,
        });
        create(&nodes, &mut random, "/v1/jobs", &job).await?;
    }
    Ok(())
}

/// What is there when it is asked for again was created by an attempt whose answer was lost.
async fn create(nodes: &Nodes, random: &mut Random, path: &str, what: &Value) -> Result<()> {
    let asked = format!("creating {}", what["name"]);
    let is_asked_again = Cell::new(false);
    let create = async |client: &Client| match client.post::<Value>(path, what).await {
        Err(error) if error.code() == Some(ErrorCode::AlreadyExists) && is_asked_again.get() => {
            Ok(())
        }
        created => {
            is_asked_again.set(true);
            created.map(drop)
        }
    };
    nodes.ask(random, &asked, create).await
}

/// The names of the operators whose state is read.
#[derive(Clone, Debug)]
pub struct Operators {
    pub windows: String,
    pub totals: String,
}

impl Operators {
    pub fn of(sums: &Value) -> Result<Operators> {
        let named = |kind: &str| -> Result<String> {
            let operators = sums["graph"]["operators"].as_array();
            let found = operators
                .into_iter()
                .flatten()
                .find(|operator| operator["type"] == kind);
            let id = found.and_then(|operator| operator["id"].as_str());
            Ok(id
                .with_context(|| format!("the job has no {kind}: {}", sums["graph"]))?
                .to_owned())
        };
        Ok(Operators {
            windows: named("window_aggregate")?,
            totals: named("aggregate")?,
        })
    }
}

/// How far the source of a job had been read at a completed epoch, by partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets {
    pub epoch: u64,
    pub read: Vec<i64>,
}

/// `None`: no epoch is complete yet.
pub async fn offsets(client: &Client, job: &str) -> Result<Option<Offsets>, ClientError> {
    let answered: Value = match client.get(&format!("/v1/jobs/{job}/offsets")).await {
        Err(error) if error.code() == Some(ErrorCode::UnknownCheckpoint) => return Ok(None),
        answered => answered?,
    };
    let of_partition = |partition: u32| {
        let position = &answered["sources"]["events"][partition.to_string()];
        position.as_i64().unwrap_or(0)
    };
    Ok(Some(Offsets {
        epoch: answered["epoch"].as_u64().unwrap_or(0),
        read: (0..EVENT_PARTITIONS).map(of_partition).collect(),
    }))
}

/// The completed epochs of a job that were seen, and the generations that completed them.
#[derive(Clone, Debug, Default)]
pub struct Epochs {
    pub completed: BTreeSet<u64>,
    /// Generation → its first and its last completed epoch that were seen.
    pub generations: BTreeMap<u64, (u64, u64)>,
}

impl Epochs {
    /// Adds what `GET /v1/jobs/{job}/checkpoints` lists. Epochs of later generations are later.
    pub fn note(&mut self, listed: &Value) -> Result<()> {
        let checkpoints = listed["checkpoints"].as_array();
        for checkpoint in checkpoints.into_iter().flatten() {
            let number = |name: &str| checkpoint[name].as_u64();
            let (Some(epoch), Some(generation)) = (number("epoch"), number("generation")) else {
                continue;
            };
            if checkpoint["status"] != "completed" {
                continue;
            }
            self.completed.insert(epoch);
            let (first, last) = self.generations.entry(generation).or_insert((epoch, epoch));
            (*first, *last) = ((*first).min(epoch), (*last).max(epoch));
        }
        for (earlier, later) in self
            .generations
            .values()
            .zip(self.generations.values().skip(1))
        {
            ensure!(
                earlier.1 < later.0,
                "an epoch of a former generation is not before those of a later one: {:?}",
                self.generations
            );
        }
        Ok(())
    }

    /// Generations that began from a completed epoch, and went on to complete one of their own.
    pub fn restores(&self) -> usize {
        self.generations.len().saturating_sub(1)
    }
}

/// Every worker has a copy, and two of them must have what is acknowledged.
async fn create_topic(
    nodes: &Nodes,
    random: &mut Random,
    name: &str,
    partitions: u32,
) -> Result<()> {
    let topic = json!({
        "name": name,
        "partitions": partitions,
        "replication_factor": COPIES,
        "config": {"min_insync_replicas": 2},
    });
    create(nodes, random, "/v1/topics", &topic).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(checkpoints: &[(u64, u64, &str)]) -> Value {
        let entries = checkpoints.iter().map(|(epoch, generation, status)| {
            json!({"epoch": epoch, "generation": generation, "status": status})
        });
        json!({"checkpoints": entries.collect::<Vec<_>>()})
    }

    #[test]
    fn only_completed_epochs_count_and_only_generations_that_completed_one_were_restored() {
        let mut epochs = Epochs::default();
        let first = listed(&[
            (3, 1, "completed"),
            (4, 1, "aborted"),
            (9, 2, "in_progress"),
        ]);
        epochs.note(&first).unwrap();
        assert_eq!((epochs.completed.len(), epochs.restores()), (1, 0));
        epochs
            .note(&listed(&[(9, 2, "completed"), (3, 1, "completed")]))
            .unwrap();
        assert_eq!((epochs.completed.len(), epochs.restores()), (2, 1));
        assert!(epochs.note(&listed(&[(10, 1, "completed")])).is_err());
    }
}
