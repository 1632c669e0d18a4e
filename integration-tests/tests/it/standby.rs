//! Jobs whose state is on two workers: either is lost with its disk, and nothing of the job is.

use std::collections::BTreeMap;

use common::client::Client;
use common::error::ErrorCode;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::replication::{in_sync, partitions_when};
use crate::steps::{LOOK, PATIENCE, index_of, talk, wait_for};
use crate::totals::{TOTALS, send, wait_until_counted};

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
