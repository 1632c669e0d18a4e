//! Takes a worker's disk away for good, where the cluster says that it can do without.
//!
//! It can when every partition has all of its copies in sync, and a job's last checkpoint is held by another
//! worker as well wherever the job keeps state. Afterwards the lost replicas are replaced by hand, as somebody
//! who runs the cluster does; jobs find other standbys by themselves.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use common::client::{Client, ClientError};
use common::random::Random;
use serde_json::{Value, json};

use super::jobs::JOBS;
use super::nodes::Nodes;

/// A cluster is not whole again at once; it is asked so often.
const LOOK: Duration = Duration::from_millis(100);
/// One that is not whole by then goes on with the next kill.
const WHOLE_WITHIN: Duration = Duration::from_secs(15);

/// Waits until any one worker could be lost with its disk. `false`: not now.
pub(super) async fn wait_until_whole(nodes: &Nodes, random: &mut Random) -> bool {
    let waiting = async {
        loop {
            match is_whole(nodes.any(random)).await {
                Ok(true) => return,
                // A node that is not asked a moment later is no worse than one that says no.
                Ok(false) | Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    };
    tokio::time::timeout(WHOLE_WITHIN, waiting).await.is_ok()
}

/// Other workers get the replicas of those that are gone, once these are known to be gone: the one that came in its
/// place may be there before that.
pub(super) async fn replace_replicas(nodes: &Nodes, random: &mut Random) -> Result<()> {
    let what = "waiting for the end of a lost worker";
    while !nodes.ask(random, what, is_missed).await? {
        tokio::time::sleep(LOOK).await;
    }
    let what = "replacing lost replicas";
    let question = async |client: &Client| {
        for topic in topics(client).await? {
            let path = format!("/v1/topics/{topic}/reassign");
            let _: Value = client.post(&path, &json!({})).await?;
        }
        Ok(())
    };
    nodes.ask(random, what, question).await.context(what)
}

/// Whether no two active workers are at the same place.
async fn is_missed(client: &Client) -> Result<bool, ClientError> {
    let list: Value = client.get("/v1/workers").await?;
    let workers = list["workers"].as_array().into_iter().flatten();
    let active = workers.filter(|worker| worker["status"] == "active");
    let places: Vec<&str> = active
        .filter_map(|worker| worker["address"].as_str())
        .collect();
    let distinct: BTreeSet<&str> = places.iter().copied().collect();
    Ok(distinct.len() == places.len())
}

/// All there are: those that jobs have made for themselves, too.
pub(super) async fn topics(client: &Client) -> Result<Vec<String>, ClientError> {
    let list: Value = client.get("/v1/topics?limit=1000").await?;
    let topics = list["topics"].as_array().into_iter().flatten();
    let names = topics.filter_map(|topic| topic["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

async fn is_whole(client: &Client) -> Result<bool, ClientError> {
    for topic in topics(client).await? {
        let described: Value = client.get(&format!("/v1/topics/{topic}")).await?;
        let partitions = described["partitions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let in_sync = |partition: &Value| {
            let count = |name: &str| partition[name].as_array().map_or(0, Vec::len);
            let copies = count("replicas");
            partition["moving_to"].is_null() && copies > 1 && count("in_sync") == copies
        };
        if partitions.is_empty() || !partitions.iter().all(in_sync) {
            return Ok(false);
        }
    }
    for job in JOBS {
        let described: Value = client.get(&format!("/v1/jobs/{job}")).await?;
        let checkpoints: Value = client.get(&format!("/v1/jobs/{job}/checkpoints")).await?;
        let stages = described["stages"].as_array().into_iter().flatten();
        let mut tasks = stages.flat_map(|stage| stage["tasks"].as_array().into_iter().flatten());
        // All of these jobs' tasks keep state.
        let held = |task: &Value| {
            let holders = &checkpoints["holders"][task["id"].as_str().unwrap_or_default()];
            holders.as_array().is_some_and(|holders| holders.len() > 1)
        };
        if described["state"] != "RUNNING" || !tasks.all(held) {
            return Ok(false);
        }
    }
    Ok(true)
}
