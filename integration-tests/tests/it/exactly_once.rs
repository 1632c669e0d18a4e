//! Jobs from topics to topics, while processes are killed.

use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{LOOK, PATIENCE, all_values, index_of, talk, wait_for};

const COUNTS: &str = "
    CREATE TABLE bids (auction BIGINT, price BIGINT, ts TIMESTAMP(3),
                       WATERMARK FOR ts AS ts - INTERVAL '1' SECOND)
    WITH (connector = 'topic', topic = 'bids', format = 'json', 'scan.bounded.mode' = 'latest');
    CREATE TABLE counts WITH (connector = 'topic', topic = 'counts', format = 'json');
    INSERT INTO counts
    SELECT window_start, auction, count(*) AS bids, sum(price) AS total
    FROM TUMBLE(bids, ts, INTERVAL '10' SECOND)
    GROUP BY window_start, window_end, auction;";

fn bid(number: i64) -> Value {
    json!({"auction": number % 7, "price": number, "ts": number * 10})
}

/// Window and auction → bids and total, as the query should count them.
fn expected(bids: i64) -> Vec<(i64, i64, i64, i64)> {
    let mut counts = std::collections::BTreeMap::new();
    for number in 0..bids {
        let slot: &mut (i64, i64) = counts
            .entry((number * 10 / 10_000, number % 7))
            .or_default();
        *slot = (slot.0 + 1, slot.1 + number);
    }
    counts
        .into_iter()
        .map(|((window, auction), (n, total))| (window, auction, n, total))
        .collect()
}

fn found(values: &[Value]) -> Vec<(i64, i64, i64, i64)> {
    let number = |value: &Value| value.as_i64().unwrap();
    let mut rows: Vec<_> = values
        .iter()
        .map(|value| {
            let start = value["window_start"].as_str().unwrap();
            let seconds: i64 =
                start[17..19].parse::<i64>().unwrap() + 60 * start[14..16].parse::<i64>().unwrap();
            (
                seconds / 10,
                number(&value["auction"]),
                number(&value["bids"]),
                number(&value["total"]),
            )
        })
        .collect();
    rows.sort_unstable();
    rows
}

#[test]
fn a_filter_job_passes_what_it_should_from_topic_to_topic() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        client.create_topic("bids", 2).await.unwrap();
        let bids: Vec<_> = (0..1_000).map(bid).collect();
        client.produce("bids", &bids).await.unwrap();
        let sql = "
            CREATE TABLE bids (auction BIGINT, price BIGINT, ts TIMESTAMP(3))
            WITH (connector = 'topic', topic = 'bids', 'scan.bounded.mode' = 'latest');
            CREATE TABLE large WITH (connector = 'topic', topic = 'large');
            INSERT INTO large SELECT auction, price FROM bids WHERE price >= 900;";
        client.create_job("large", sql).await.unwrap();
        wait_for(&client, "large", "FINISHED").await;
        let mut prices: Vec<i64> = all_values(&client, "large")
            .await
            .iter()
            .map(|v| v["price"].as_i64().unwrap())
            .collect();
        prices.sort_unstable();
        assert_eq!(prices, (900..1_000).collect::<Vec<_>>());
    });
}

#[test]
fn windows_over_two_workers_count_every_bid_once() {
    let cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        client.create_topic("bids", 4).await.unwrap();
        let bids: Vec<_> = (0..10_000).map(bid).collect();
        client.produce("bids", &bids).await.unwrap();
        let job = json!({"name": "counts", "sql": COUNTS, "parallelism": 2});
        let _: Value = client.post("/v1/jobs", &job).await.unwrap();
        wait_for(&client, "counts", "FINISHED").await;
        assert_eq!(
            found(&all_values(&client, "counts").await),
            expected(10_000)
        );
    });
}

/// Bids in small portions while processes are killed: what is committed at the end is what a run without
/// any failure gives, and the job was restored from a completed epoch each time.
#[test]
fn killed_processes_neither_lose_nor_double_a_bid() {
    const PORTIONS: i64 = 12;
    const PORTION: i64 = 1_000;
    let mut cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    let unbounded = COUNTS.replace(", 'scan.bounded.mode' = 'latest'", "");
    talk(async {
        client.create_topic("bids", 4).await.unwrap();
        let job = json!({
            "name": "counts", "sql": unbounded, "parallelism": 2, "checkpoint_interval_ms": 200,
        });
        let _: Value = client.post("/v1/jobs", &job).await.unwrap();
        wait_for(&client, "counts", "RUNNING").await;
    });
    let mut kills: Vec<Progress> = Vec::new();
    for portion in 0..PORTIONS {
        let mut works = 0;
        talk(async {
            let bids: Vec<_> = (portion * PORTION..(portion + 1) * PORTION)
                .map(bid)
                .collect();
            produce_until_acknowledged(&client, &bids).await;
            let (progress, worker) = wait_for_progress(&client, kills.last()).await;
            works = index_of(&cluster, &client, &worker).await;
            if portion % 2 == 1 {
                kills.push(progress);
            }
        });
        match portion % 4 {
            1 | 3 => {
                cluster.kill_worker(works).unwrap();
                cluster.restart_worker(works).unwrap();
            }
            2 => {
                cluster.kill_coordinator().unwrap();
                cluster.restart_coordinator().unwrap();
            }
            _ => {}
        }
    }
    talk(async {
        // Far in the future, to every partition: closes all windows that have bids.
        let end = 100 * PORTIONS * PORTION;
        for partition in 0..4 {
            let record = json!({"value": bid(end), "partition": partition});
            let records = json!({"records": [record]});
            let _: Value = client
                .post("/v1/topics/bids/records", &records)
                .await
                .unwrap();
        }
        let expected = expected(PORTIONS * PORTION);
        let rows = wait_for_rows(&client, expected.len()).await;
        assert_eq!(rows, expected);
        let job = client.job("counts").await.unwrap();
        check_restarts(&job["restarts"], &kills);
        let stop = "/v1/jobs/counts/stop";
        let _: Value = client.post(stop, &json!({})).await.unwrap();
        wait_for(&client, "counts", "STOPPED").await;
    });
    // What was read is counted once, and is known of a job that does not run.
    cluster.kill_coordinator().unwrap();
    cluster.restart_coordinator().unwrap();
    talk(async {
        let job = client.job("counts").await.unwrap();
        assert_eq!(job["rows_in"], PORTIONS * PORTION + 4, "{job}");
        assert_eq!(
            (&job["late_rows"], &job["dead_letters"]),
            (&json!(0), &json!(0))
        );
    });
}

/// Sends each portion with a key of its own until it is acknowledged, so that a repeated one counts once.
async fn produce_until_acknowledged(client: &common::client::Client, bids: &[Value]) {
    let mut lines = Vec::new();
    for bid in bids {
        serde_json::to_writer(&mut lines, bid).unwrap();
        lines.push(b'\n');
    }
    let key = format!("portion-{}", bids[0]["price"]);
    let sending = async {
        while client
            .produce_idempotent("bids", lines.clone(), &key)
            .await
            .is_err()
        {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, sending)
        .await
        .expect("it is never acknowledged");
}

/// Every kill ended a generation, and whatever was begun since went on from an epoch that is not older than
/// what was completed before the kill.
fn check_restarts(restarts: &Value, kills: &[Progress]) {
    let restarts = restarts.as_array().unwrap();
    let generation = |restart: &Value| restart["generation"].as_u64().unwrap();
    assert_eq!(kills.len(), 6);
    for (
        number,
        Progress {
            generation: killed,
            epoch,
        },
    ) in kills.iter().enumerate()
    {
        let next = kills
            .get(number + 1)
            .map_or(u64::MAX, |next| next.generation);
        let of_kill: Vec<&Value> = restarts
            .iter()
            .filter(|restart| (*killed..next).contains(&generation(restart)))
            .collect();
        assert!(
            !of_kill.is_empty(),
            "generation {killed} was killed and did not end: {restarts:#?}"
        );
        for restart in of_kill {
            assert!(
                restart["resumed_from"].as_u64() >= Some(*epoch),
                "epoch {epoch} was completed before: {restart}"
            );
        }
    }
}

/// How far the job was when it was looked at.
struct Progress {
    generation: u64,
    /// The newest that was completed.
    epoch: u64,
}

/// Waits until a generation after this one runs and has completed an epoch; answers it, and a worker that has
/// tasks: to lose one that only stands by would not end a generation.
async fn wait_for_progress(
    client: &common::client::Client,
    since: Option<&Progress>,
) -> (Progress, Value) {
    let (ended, epoch) = since.map_or((0, 0), |since| (since.generation, since.epoch));
    let mut seen = Value::Null;
    let waiting = async {
        loop {
            if let Ok(job) = client.job("counts").await {
                let progress = Progress {
                    generation: job["generation"].as_u64().unwrap(),
                    epoch: job["last_checkpoint"]["epoch"].as_u64().unwrap_or(0),
                };
                let worker = &job["stages"][0]["tasks"][0]["worker"];
                if progress.generation > ended && progress.epoch > epoch && worker.is_u64() {
                    return (progress, worker.clone());
                }
                seen = job;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("no epoch after {epoch} of generation {ended}: {seen:#}"))
}

async fn wait_for_rows(client: &common::client::Client, count: usize) -> Vec<(i64, i64, i64, i64)> {
    let mut rows = Vec::new();
    let waiting = async {
        while rows.len() < count {
            tokio::time::sleep(LOOK).await;
            rows = found(&all_values(client, "counts").await);
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "{} of {count} rows came out", rows.len());
    rows
}
