//! Records in and out of topics, over crashes of the only worker.

use integration_tests::cluster::Cluster;
use serde_json::json;

use crate::steps::{all_values, talk};

#[test]
fn what_was_acknowledged_is_there_after_every_process_was_killed() {
    let mut cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        client.create_topic("clicks", 2).await.unwrap();
        let values: Vec<_> = (0..500).map(|n| json!({"n": n})).collect();
        for chunk in values.chunks(100) {
            client.produce("clicks", chunk).await.unwrap();
        }
    });
    cluster.kill_worker(0).unwrap();
    cluster.kill_coordinator().unwrap();
    cluster.restart_coordinator().unwrap();
    cluster.restart_worker(0).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        let mut numbers: Vec<i64> = all_values(&client, "clicks")
            .await
            .iter()
            .map(|v| v["n"].as_i64().unwrap())
            .collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..500).collect::<Vec<_>>());
    });
}

#[test]
fn both_kinds_of_node_answer_for_the_whole_cluster() {
    let cluster = Cluster::start(2).unwrap();
    talk(async {
        let through_worker = common::client::Client::connect(cluster.worker(1)).unwrap();
        through_worker.create_topic("orders", 4).await.unwrap();
        let values: Vec<_> = (0..40).map(|n| json!({"n": n})).collect();
        through_worker.produce("orders", &values).await.unwrap();
        assert_eq!(
            all_values(&cluster.client().unwrap(), "orders").await.len(),
            40
        );
    });
}
