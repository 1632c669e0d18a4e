//! Jobs that are divided into more or fewer tasks while they run.

use std::cell::Cell;

use common::client::Client;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{LOOK, PATIENCE, talk};
use crate::totals::{TOTALS, send, wait_until_counted};

const PORTION: i64 = 500;

async fn begin(client: &Client, parallelism: u32) {
    let topic = json!({"name": "bids", "partitions": 4, "replication_factor": 1});
    let _: Value = client.post("/v1/topics", &topic).await.unwrap();
    let job = json!({
        "name": "totals", "sql": TOTALS, "parallelism": parallelism, "checkpoint_interval_ms": 200,
    });
    let _: Value = client.post("/v1/jobs", &job).await.unwrap();
    // With state that is to be taken along.
    send(client, 0..PORTION).await;
    wait_until_counted(client, PORTION).await;
}

async fn rescale(client: &Client, parallelism: u32) -> Value {
    let wish = json!({"parallelism": parallelism});
    client.post("/v1/jobs/totals/rescale", &wish).await.unwrap()
}

/// Waits until it runs with so many tasks and nothing else is wanted.
async fn rescaled(client: &Client, parallelism: u32) {
    let mut seen = Value::Null;
    let waiting = async {
        loop {
            if let Ok(job) = client.job("totals").await {
                let there = job["parallelism"] == parallelism && job["state"] == "RUNNING";
                if there && job.get("rescaling").is_none() {
                    return;
                }
                seen = job;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("it has not come to {parallelism} tasks: {seen:#}"));
}

/// Sends bids until it is told to stop; says how many.
async fn keep_sending(client: &Client, from: i64, stop: &Cell<bool>) -> i64 {
    let mut sent = from;
    while !stop.get() {
        send(client, sent..sent + PORTION).await;
        sent += PORTION;
    }
    sent
}

#[test]
fn a_job_is_divided_into_more_and_fewer_tasks_while_it_runs() {
    let cluster = Cluster::start(3).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        begin(&client, 2).await;
        let stop = Cell::new(false);
        let changing = async {
            for parallelism in [4, 3, 1, 2] {
                rescale(&client, parallelism).await;
                rescaled(&client, parallelism).await;
            }
            stop.set(true);
        };
        let (sent, ()) = tokio::join!(keep_sending(&client, PORTION, &stop), changing);
        wait_until_counted(&client, sent).await;
        let job = client.job("totals").await.unwrap();
        assert_eq!(job["restarts"], json!([]), "nothing has failed");
        assert_eq!(job["rows_in"], sent, "{job:#}");
    });
}
