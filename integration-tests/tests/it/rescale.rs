//! Jobs that are divided into more or fewer tasks while they run.

use std::cell::Cell;

use common::client::Client;
use common::error::ErrorCode;
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

/// Copies of everything are on two workers; each of the three is killed while a division is prepared or taken.
#[test]
fn whoever_is_lost_while_a_job_is_divided_nothing_of_it_is() {
    let mut cluster = Cluster::start(3).unwrap();
    let client = cluster.client().unwrap();
    let mut sent = PORTION;
    talk(begin(&client, 2));
    for (round, parallelism) in [(0, 4), (1, 1), (2, 3), (0, 2)] {
        talk(async {
            send(&client, sent..sent + PORTION).await;
            rescale(&client, parallelism).await;
            // Each time a little later.
            tokio::time::sleep(LOOK * (2 * round + 1)).await;
        });
        cluster.kill_worker(round as usize).unwrap();
        cluster.restart_worker(round as usize).unwrap();
        talk(async {
            send(&client, sent + PORTION..sent + 2 * PORTION).await;
            rescaled(&client, parallelism).await;
        });
        sent += 2 * PORTION;
        talk(wait_until_counted(&client, sent));
    }
}

#[test]
fn a_wish_that_cannot_be_granted_says_why_and_one_that_is_withdrawn_is_forgotten() {
    let cluster = Cluster::start_with(1, &["--slots", "2"]).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        begin(&client, 2).await;
        let refused = async |body: Value| {
            let refused = client.post::<Value>("/v1/jobs/totals/rescale", &body).await;
            let error = refused.unwrap_err();
            (error.code(), error.to_string())
        };
        let (code, detail) = refused(json!({"parallelism": 0})).await;
        assert_eq!(code, Some(ErrorCode::InvalidRequest), "{detail}");
        let (code, detail) = refused(json!({"tasks": 3})).await;
        assert_eq!(code, Some(ErrorCode::InvalidRequest), "{detail}");
        let unknown = client
            .post::<Value>("/v1/jobs/others/rescale", &json!({"parallelism": 3}))
            .await;
        assert_eq!(unknown.unwrap_err().code(), Some(ErrorCode::UnknownJob));

        rescale(&client, 3).await;
        let mut job = client.job("totals").await.unwrap();
        let waiting = async {
            while job["rescaling"]["reason"].is_null() {
                tokio::time::sleep(LOOK).await;
                job = client.job("totals").await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
        let rescaling = &job["rescaling"];
        assert_eq!(rescaling["state"], "waiting", "{rescaling}");
        let reason = "needs 3 slots, 2 are free: 1 more must come";
        assert_eq!(rescaling["reason"], reason);
        let withdrawn = rescale(&client, 2).await;
        assert!(withdrawn.get("rescaling").is_none(), "{withdrawn:#}");
        rescale(&client, 1).await;
        rescaled(&client, 1).await;
        send(&client, PORTION..2 * PORTION).await;
        wait_until_counted(&client, 2 * PORTION).await;
    });
}
