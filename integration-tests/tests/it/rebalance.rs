//! Workers that join a cluster that has work, and get their part of it without being asked.

use std::cell::Cell;

use common::client::Client;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{LOOK, PATIENCE, talk, wait_for};
use crate::totals::{TOTALS, send, wait_until_counted};

const PORTION: i64 = 500;

/// Topics with one copy and with two, and a job with state, on two workers.
async fn begin(client: &Client) {
    for (name, partitions, copies) in [("bids", 4, 1), ("orders", 6, 2)] {
        let topic = json!({
            "name": name, "partitions": partitions, "replication_factor": copies,
        });
        let _: Value = client.post("/v1/topics", &topic).await.unwrap();
    }
    for start in (0..1_000).step_by(100) {
        let orders: Vec<Value> = (start..start + 100).map(|n| json!({"n": n})).collect();
        client.produce("orders", &orders).await.unwrap();
    }
    let job = json!({
        "name": "totals", "sql": TOTALS, "parallelism": 4, "checkpoint_interval_ms": 200,
    });
    let _: Value = client.post("/v1/jobs", &job).await.unwrap();
    send(client, 0..PORTION).await;
    wait_until_counted(client, PORTION).await;
}

async fn workers(client: &Client) -> Vec<Value> {
    let answer: Value = client.get("/v1/workers").await.unwrap();
    answer["workers"].as_array().unwrap().clone()
}

fn has(worker: &Value, what: &str) -> u64 {
    worker[what].as_u64().unwrap()
}

/// Waits until this holds of the workers and of what is said of the cluster.
async fn until(client: &Client, holds: impl Fn(&[Value], &Value) -> bool) {
    let mut seen = (Vec::new(), Value::Null);
    let waiting = async {
        loop {
            let cluster: Value = client.get("/v1/cluster").await.unwrap();
            seen = (workers(client).await, cluster["rebalance"].clone());
            if holds(&seen.0, &seen.1) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("it stays as it is: {seen:#?}"));
}

/// Sends bids until it is told to stop; says how many.
async fn keep_sending(client: &Client, stop: &Cell<bool>) -> i64 {
    let mut sent = PORTION;
    while !stop.get() {
        send(client, sent..sent + PORTION).await;
        sent += PORTION;
    }
    sent
}

/// The job counts every bid once, and nothing of it has failed.
async fn check(client: &Client, sent: i64) {
    wait_until_counted(client, sent).await;
    let job = wait_for(client, "totals", "RUNNING").await;
    assert_eq!(job["restarts"], json!([]), "nothing has failed");
    assert_eq!(job["rows_in"], sent, "{job:#}");
    assert_eq!(job["parallelism"], 4);
    let orders = crate::steps::all_values(client, "orders").await;
    let mut orders: Vec<u64> = orders
        .iter()
        .map(|row| row["n"].as_u64().unwrap())
        .collect();
    orders.sort_unstable();
    assert_eq!(orders, (0..1_000).collect::<Vec<u64>>());
}

#[test]
fn a_worker_that_joins_under_load_gets_its_part_without_being_asked() {
    let mut cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(begin(&client));
    cluster.add_worker().unwrap();
    talk(async {
        let stop = Cell::new(false);
        let joining = async {
            until(&client, |workers, rebalance| {
                let joined = &workers[2];
                let even = |what| {
                    let counts = || workers.iter().map(|worker| has(worker, what));
                    counts().max().unwrap() - counts().min().unwrap() <= 1
                };
                let has_some = ["replicas", "tasks", "standbys"].map(|what| has(joined, what) > 0);
                has_some == [true; 3] && even("replicas") && rebalance["state"] == "balanced"
            })
            .await;
            stop.set(true);
        };
        let (sent, ()) = tokio::join!(keep_sending(&client, &stop), joining);
        check(&client, sent).await;
        let path = format!("{}/metrics", cluster.coordinator());
        let metrics = reqwest::get(path).await.unwrap().text().await.unwrap();
        let mut lines = metrics.lines();
        let begun = lines
            .find_map(|line| line.strip_prefix("millstream_coordinator_rebalance_moves_begun "));
        let begun: u64 = begun.unwrap().parse().unwrap();
        assert!(begun >= 2, "{metrics}");
        // Everything is even: nothing goes to and fro.
        let before = counts(&client).await;
        send(&client, sent..sent + PORTION).await;
        wait_until_counted(&client, sent + PORTION).await;
        assert_eq!(counts(&client).await, before);
    });
}

async fn counts(client: &Client) -> Vec<[u64; 3]> {
    let workers = workers(client).await;
    let of_worker =
        |worker: &Value| ["replicas", "tasks", "standbys"].map(|what| has(worker, what));
    workers.iter().map(of_worker).collect()
}

/// Once while replicas are on their way to it, and once while tasks are, or just there.
#[test]
fn one_that_joins_and_is_lost_in_the_middle_takes_nothing_with_it() {
    let mut cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(begin(&client));
    cluster.add_worker().unwrap();
    talk(until(&client, |workers, _| {
        has(&workers[2], "replicas") > 0
    }));
    let mut sent = PORTION;
    for round in 0..2 {
        if round == 1 {
            talk(async {
                let moves = async {
                    loop {
                        let job = client.job("totals").await.unwrap();
                        let there = has(&workers(&client).await[2], "tasks") > 0;
                        if job.get("moving").is_some() || there {
                            return;
                        }
                        tokio::time::sleep(LOOK).await;
                    }
                };
                let moved = tokio::time::timeout(PATIENCE, moves).await;
                moved.expect("no task goes to it");
            });
        }
        cluster.kill_worker(2).unwrap();
        cluster.restart_worker(2).unwrap();
        talk(async {
            send(&client, sent..sent + PORTION).await;
            wait_until_counted(&client, sent + PORTION).await;
        });
        sent += PORTION;
    }
    talk(async {
        until(&client, |workers, _| {
            let counts = || workers.iter().map(|worker| has(worker, "replicas"));
            counts().max().unwrap() - counts().min().unwrap() <= 1
        })
        .await;
        send(&client, sent..sent + PORTION).await;
        wait_until_counted(&client, sent + PORTION).await;
    });
}

#[test]
fn with_rebalance_manual_nothing_moves_without_being_asked() {
    let mut cluster = Cluster::start_told(2, &[], &["--rebalance", "manual"]).unwrap();
    let client = cluster.client().unwrap();
    talk(begin(&client));
    cluster.add_worker().unwrap();
    talk(async {
        let epoch = async || {
            let job = client.job("totals").await.unwrap();
            job["last_checkpoint"]["epoch"].as_u64().unwrap()
        };
        // Longer than a worker that joins is waited for.
        let last = epoch().await + 40;
        let looking = async {
            while epoch().await < last {
                assert_eq!(counts(&client).await[2], [0; 3]);
                tokio::time::sleep(LOOK).await;
            }
        };
        let looked = tokio::time::timeout(PATIENCE, looking).await;
        looked.expect("it completes checkpoints");
        let cluster: Value = client.get("/v1/cluster").await.unwrap();
        assert_eq!(cluster["rebalance"]["state"], "manual", "{cluster}");
        assert_eq!(cluster["rebalance"]["moves"], json!([]), "{cluster}");
        // What is asked for moves all the same.
        let joined = workers(&client).await[2]["id"].clone();
        let one = [joined.clone()];
        let wish = json!({"replicas": [one, one, one, one]});
        let path = "/v1/topics/bids/reassign";
        let _: Value = client.post(path, &wish).await.unwrap();
        until(&client, |workers, _| has(&workers[2], "replicas") == 4).await;
    });
}
