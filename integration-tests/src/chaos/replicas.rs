//! At the end all replicas of every partition have the same bytes.
//!
//! Nothing is written any more, so that each has everything that was committed, and what was not is gone from all.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::random::{Random, seeded};
use serde_json::Value;

use super::losses::topics;
use super::nodes::{Nodes, PATIENCE};
use crate::cluster::Cluster;
use crate::replica_logs::log_of;

const PAUSE: Duration = Duration::from_millis(100);

/// The replicas of a partition: the directories of their workers.
struct Replicated {
    topic: String,
    topic_id: String,
    partition: u64,
    directories: Vec<PathBuf>,
}

/// Waits until all are in sync and alike. Answers how many replicas were compared.
pub(super) async fn compare(seed: u64, addresses: &[String], cluster: &Cluster) -> Result<usize> {
    let nodes = Nodes::new(addresses)?;
    let mut random = seeded(seed, 7_000);
    let mut why = String::new();
    let comparing = async {
        loop {
            match all_in_sync(&nodes, &mut random, cluster).await? {
                Ok(replicated) => match differing(&replicated)? {
                    None => return anyhow::Ok(replicated),
                    Some(which) => why = which,
                },
                Err(which) => why = which,
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let Ok(compared) = tokio::time::timeout(PATIENCE, comparing).await else {
        bail!("replicas stay different: {why}");
    };
    let compared = compared?;
    ensure!(!compared.is_empty(), "no partition was compared");
    Ok(compared.iter().map(|r| r.directories.len()).sum())
}

/// `Err`: a partition whose replicas are not all in sync, or not all there.
async fn all_in_sync(
    nodes: &Nodes,
    random: &mut Random,
    cluster: &Cluster,
) -> Result<Result<Vec<Replicated>, String>> {
    let what = "asking where replicas are";
    let (workers, described) = nodes
        .ask(random, what, async |client| {
            let workers: Value = client.get("/v1/workers").await?;
            let mut described: Vec<Value> = Vec::new();
            for topic in topics(client).await? {
                described.push(client.get(&format!("/v1/topics/{topic}")).await?);
            }
            Ok((workers, described))
        })
        .await?;
    let directories = directories(&workers, cluster);
    let mut replicated = Vec::new();
    for topic in described {
        let text = |name: &str| topic[name].as_str().unwrap_or_default().to_owned();
        for partition in topic["partitions"].as_array().into_iter().flatten() {
            let workers = |name: &str| partition[name].as_array().cloned().unwrap_or_default();
            let (replicas, in_sync) = (workers("replicas"), workers("in_sync"));
            if replicas.len() != in_sync.len() || !partition["moving_to"].is_null() {
                return Ok(Err(format!("{}: {partition}", text("name"))));
            }
            let known = replicas
                .iter()
                .map(|worker| directories.get(&worker.as_u64()?).cloned());
            let Some(directories) = known.collect::<Option<Vec<_>>>() else {
                return Ok(Err(format!(
                    "{}: {partition}, and not all of them run",
                    text("name")
                )));
            };
            replicated.push(Replicated {
                topic: text("name"),
                topic_id: text("id"),
                partition: partition["partition"]
                    .as_u64()
                    .context("a partition has a number")?,
                directories,
            });
        }
    }
    Ok(Ok(replicated))
}

/// Where each worker that runs now has its data.
fn directories(workers: &Value, cluster: &Cluster) -> BTreeMap<u64, PathBuf> {
    let mut directories = BTreeMap::new();
    for row in workers["workers"].as_array().into_iter().flatten() {
        let index = (0..cluster.workers()).find(|index| row["address"] == cluster.worker(*index));
        // Those that lost their disks are listed, too: they are what another one is at the same address now.
        if let (Some(index), Some(id), true) =
            (index, row["id"].as_u64(), row["status"] == "active")
        {
            directories.insert(id, cluster.worker_directory(index));
        }
    }
    directories
}

/// A partition of which not all replicas have the same bytes.
fn differing(replicated: &[Replicated]) -> Result<Option<String>> {
    for of in replicated {
        let log = |directory: &PathBuf| log_of(directory, &of.topic_id, of.partition);
        let mut directories = of.directories.iter();
        let first = directories.next().map(log).transpose()?.unwrap_or_default();
        for other in directories {
            let other = log(other)?;
            if other != first {
                let same = first.iter().zip(&other).take_while(|(a, b)| a == b).count();
                return Ok(Some(format!(
                    "{}, partition {}: {} and {} bytes, alike up to {same}",
                    of.topic,
                    of.partition,
                    first.len(),
                    other.len()
                )));
            }
        }
    }
    Ok(None)
}
