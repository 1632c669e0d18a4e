//! Jobs from topics to topics, while processes are killed.

use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{all_values, talk, wait_for};

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
