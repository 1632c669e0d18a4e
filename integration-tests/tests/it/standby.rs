//! Jobs whose state is on two workers: either is lost with its disk, and nothing of the job is.

use std::collections::BTreeMap;

use common::client::Client;
use common::error::ErrorCode;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::replication::{in_sync, partitions_when};
use crate::steps::{LOOK, PATIENCE, all_values, index_of, talk, wait_for};

const KEYS: i64 = 997;

/// Every record changes one key's row, and none is ever forgotten.
const TOTALS: &str = "
    CREATE TABLE bids (auction BIGINT, price BIGINT)
    WITH (connector = 'topic', topic = 'bids', format = 'json');
    CREATE TABLE totals WITH (connector = 'topic', topic = 'totals', format = 'json');
    INSERT INTO totals
    SELECT auction, count(*) AS bids, sum(price) AS total FROM bids GROUP BY auction;";

fn expected(bids: i64) -> BTreeMap<i64, (i64, i64)> {
    let mut totals: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for price in 0..bids {
        let (count, total) = totals.entry(price % KEYS).or_default();
        (*count, *total) = (*count + 1, *total + price);
    }
    totals
}

/// The last row of every key.
async fn found(client: &Client) -> BTreeMap<i64, (i64, i64)> {
    let rows = all_values(client, "totals").await;
    let number = |row: &Value, name: &str| row[name].as_i64().unwrap();
    let row = |row: &Value| {
        let totals = (number(row, "bids"), number(row, "total"));
        (number(row, "auction"), totals)
    };
    rows.iter().map(row).collect()
}

/// Sends until it is acknowledged, once.
async fn send(client: &Client, range: std::ops::Range<i64>) {
    let key = format!("{}-{}", range.start, range.end);
    let line = |price: i64| format!("{{\"auction\": {}, \"price\": {price}}}\n", price % KEYS);
    let lines = range.map(line).collect::<String>().into_bytes();
    let sending = async {
        while let Err(error) = client.produce_idempotent("bids", lines.clone(), &key).await {
            let may_pass = error.code().is_none_or(|code| code.is_retriable());
            assert!(may_pass, "{error}");
            tokio::time::sleep(LOOK).await;
        }
    };
    let sent = tokio::time::timeout(PATIENCE, sending).await;
    sent.expect("it is never acknowledged");
}

/// The workers that hold each task's state, once there are so many of each and none is among `gone`.
async fn holders_when(
    client: &Client,
    count: usize,
    gone: &[Value],
) -> BTreeMap<String, Vec<Value>> {
    let mut seen = Value::Null;
    let waiting = async {
        loop {
            let path = "/v1/jobs/totals/checkpoints";
            if let Ok(list) = client.get::<Value>(path).await {
                let holders = list["holders"].as_object().unwrap().clone();
                let holders: BTreeMap<String, Vec<Value>> = holders
                    .into_iter()
                    .map(|(task, workers)| (task, workers.as_array().unwrap().clone()))
                    .collect();
                let enough = |workers: &Vec<Value>| {
                    workers.len() == count && workers.iter().all(|w| !gone.contains(w))
                };
                if !holders.is_empty() && holders.values().all(enough) {
                    return holders;
                }
                seen = list["holders"].clone();
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("not {count} holders, of which none is of {gone:?}: {seen}"))
}

async fn begin(client: &Client) {
    let topic = json!({"name": "bids", "partitions": 4, "replication_factor": 3});
    let _: Value = client.post("/v1/topics", &topic).await.unwrap();
    let job = json!({
        "name": "totals", "sql": TOTALS, "parallelism": 2, "checkpoint_interval_ms": 200,
    });
    let _: Value = client.post("/v1/jobs", &job).await.unwrap();
    wait_for(client, "totals", "RUNNING").await;
}

/// The topics have three copies again.
async fn replace_replicas(client: &Client) {
    for topic in ["bids", "totals"] {
        let path = format!("/v1/topics/{topic}/reassign");
        let _: Value = client.post(&path, &json!({})).await.unwrap();
        let whole = |partition: &Value| in_sync(partition) == 3 && partition["moving_to"].is_null();
        partitions_when(client, topic, "it is not replaced", whole).await;
    }
}

async fn wait_until_counted(client: &Client, bids: i64) {
    let expected = expected(bids);
    let mut rows = BTreeMap::new();
    let waiting = async {
        while rows != expected {
            tokio::time::sleep(LOOK).await;
            rows = found(client).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    let wrong = || {
        let differs = expected
            .iter()
            .find(|(key, row)| rows.get(key) != Some(row));
        format!(
            "of {differs:?} there is {:?}",
            differs.and_then(|(key, _)| rows.get(key))
        )
    };
    waited.unwrap_or_else(|_| panic!("{}", wrong()));
}

#[test]
fn the_worker_with_a_jobs_state_is_lost_with_its_disk_and_nothing_of_the_job_is() {
    const PORTION: i64 = 5_000;
    const LOSSES: i64 = 2;
    let mut cluster = Cluster::start(3).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        begin(&client).await;
        let mut gone: Vec<Value> = Vec::new();
        for portion in 0..LOSSES {
            send(&client, portion * PORTION..portion * PORTION + PORTION / 2).await;
            let holders = holders_when(&client, 2, &gone).await;
            // The first task with state is in the last stage.
            let (_, workers) = holders.last_key_value().unwrap();
            let lost = workers[0].clone();
            let index = index_of(&cluster, &client, &lost).await;
            cluster.kill_worker(index).unwrap();
            std::fs::remove_dir_all(cluster.worker_directory(index)).unwrap();
            gone.push(lost);
            send(
                &client,
                portion * PORTION + PORTION / 2..(portion + 1) * PORTION,
            )
            .await;
            wait_until_counted(&client, (portion + 1) * PORTION).await;
            cluster.add_worker().unwrap();
            replace_replicas(&client).await;
        }
        let job = client.job("totals").await.unwrap();
        let restarts = job["restarts"].as_array().unwrap();
        assert!(restarts.len() >= LOSSES as usize, "{restarts:#?}");
    });
}

#[test]
fn a_worker_is_emptied_while_its_job_runs_and_then_stopped() {
    const PORTION: i64 = 5_000;
    let mut cluster = Cluster::start(3).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        let topic = json!({"name": "bids", "partitions": 4, "replication_factor": 2});
        let _: Value = client.post("/v1/topics", &topic).await.unwrap();
        let job = json!({
            "name": "totals", "sql": TOTALS, "parallelism": 2, "checkpoint_interval_ms": 200,
        });
        let _: Value = client.post("/v1/jobs", &job).await.unwrap();
        wait_for(&client, "totals", "RUNNING").await;
        send(&client, 0..PORTION).await;
        let holders = holders_when(&client, 2, &[]).await;
        let (_, workers) = holders.last_key_value().unwrap();
        let leaves = workers[0].clone();
        let path = format!("/v1/workers/{leaves}/drain");
        let drained: Value = client.post(&path, &json!({})).await.unwrap();
        assert_eq!(drained["draining"], true, "{drained}");
        send(&client, PORTION..2 * PORTION).await;
        wait_until_empty(&client, &leaves).await;
        let index = index_of(&cluster, &client, &leaves).await;
        cluster.kill_worker(index).unwrap();
        std::fs::remove_dir_all(cluster.worker_directory(index)).unwrap();
        send(&client, 2 * PORTION..3 * PORTION).await;
        wait_until_counted(&client, 3 * PORTION).await;
        let job = client.job("totals").await.unwrap();
        assert_eq!(job["restarts"], json!([]), "nothing has failed");

        // Two are left. Of these one may go as well, and then none.
        let answer: Value = client.get("/v1/workers").await.unwrap();
        let left = answer["workers"].as_array().unwrap().iter();
        let left: Vec<&Value> = left
            .map(|row| &row["id"])
            .filter(|id| **id != leaves)
            .collect();
        let path = |id: &Value| format!("/v1/workers/{id}/drain");
        let _: Value = client.post(&path(left[0]), &json!({})).await.unwrap();
        let refused = client.post::<Value>(&path(left[1]), &json!({})).await;
        assert_eq!(refused.unwrap_err().code(), Some(ErrorCode::Conflict));
        client.delete(&path(left[0])).await.unwrap();
        let _: Value = client.post(&path(left[1]), &json!({})).await.unwrap();
        let unknown = client
            .post::<Value>("/v1/workers/77/drain", &json!({}))
            .await;
        assert_eq!(unknown.unwrap_err().code(), Some(ErrorCode::UnknownWorker));
    });
}

async fn wait_until_empty(client: &Client, worker: &Value) {
    let mut seen = Value::Null;
    let waiting = async {
        loop {
            let answer: Value = client.get("/v1/workers").await.unwrap();
            let mut rows = answer["workers"].as_array().unwrap().iter();
            let row = rows.find(|row| row["id"] == *worker).unwrap();
            let left = ["replicas", "tasks", "standbys"].map(|what| row[what].as_u64());
            if left == [Some(0); 3] {
                return;
            }
            seen = row.clone();
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("it still has something: {seen}"));
}
