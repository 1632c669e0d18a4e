//! Topics whose records are acknowledged in memory: workers end in order, without order, and all at once. (A killed
//! process leaves what it has written to the system, so nothing is lost here; nobody in the cluster knows that.)

use common::client::Client;
use common::error::ErrorCode;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::replication::{found, in_sync, leader, partitions_when, send};
use crate::steps::talk;

async fn create(client: &Client, recovery: &str) {
    let topic = json!({
        "name": "events",
        "replication_factor": 2,
        "config": {"durability": "replicated", "unclean_recovery": recovery},
    });
    let created: Value = client.post("/v1/topics", &topic).await.unwrap();
    assert_eq!(created["config"]["min_insync_replicas"], 2);
}

fn is_whole(partition: &Value) -> bool {
    in_sync(partition) == 2 && partition["leader"].is_u64() && partition["suspect"].is_null()
}

#[test]
fn a_worker_that_ended_in_order_is_trusted_and_one_that_was_killed_is_once_it_has_everything() {
    let mut cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create(&client, "balanced").await;
        send(&client, "events", 0..500).await;
        let first = leader(&cluster, &client, "events", 0).await;
        // In order: all of it is on the disk, so it may lead at once.
        let process = cluster.worker_process(first).unwrap();
        assert!(process.terminate().unwrap().success());
        cluster.restart_worker(first).unwrap();
        let partitions = partitions_when(&client, "events", "it is not trusted", is_whole).await;
        assert!(partitions[0]["data_loss"].is_null(), "{}", partitions[0]);
        send(&client, "events", 500..600).await;

        // Without order: it has to fetch first, and does.
        let leads = leader(&cluster, &client, "events", 0).await;
        cluster.kill_worker(1 - leads).unwrap();
        cluster.restart_worker(1 - leads).unwrap();
        let partitions = partitions_when(&client, "events", "it stays suspect", is_whole).await;
        assert!(partitions[0]["data_loss"].is_null(), "{}", partitions[0]);
        send(&client, "events", 600..700).await;
        assert_eq!(
            found(&client, "events").await,
            (0..700).collect::<Vec<i64>>()
        );
    });
}

#[test]
fn when_all_were_killed_the_longest_log_leads_and_loss_is_said_to_be_possible() {
    let mut cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create(&client, "balanced").await;
        send(&client, "events", 0..500).await;
        cluster.kill_worker(0).unwrap();
        cluster.kill_worker(1).unwrap();
        cluster.restart_worker(0).unwrap();
        let waits = |partition: &Value| {
            let reason = partition["reason"].as_str().unwrap_or_default();
            partition["leader"].is_null() && reason.contains("worker")
        };
        let partitions = partitions_when(&client, "events", "it does not wait", waits).await;
        let hint = partitions[0]["hint"].as_str().unwrap();
        assert!(hint.contains("/recover"), "{hint}");
        cluster.restart_worker(1).unwrap();
        let partitions = partitions_when(&client, "events", "nobody leads", is_whole).await;
        let loss = &partitions[0]["data_loss"];
        assert_eq!(loss["code"], "DATA_LOSS_POSSIBLE", "{}", partitions[0]);
        send(&client, "events", 500..600).await;
        assert_eq!(
            found(&client, "events").await,
            (0..600).collect::<Vec<i64>>()
        );
    });
}

#[test]
fn where_somebody_is_to_say_who_leads_a_partition_waits_for_that_and_goes_on() {
    let mut cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create(&client, "manual").await;
        send(&client, "events", 0..500).await;
        cluster.kill_worker(0).unwrap();
        cluster.kill_worker(1).unwrap();
        cluster.restart_worker(0).unwrap();
        cluster.restart_worker(1).unwrap();
        let both_said = |partition: &Value| {
            let ends = partition["log_ends"].as_array();
            partition["leader"].is_null() && ends.is_some_and(|ends| ends.len() == 2)
        };
        let partitions = partitions_when(&client, "events", "they say nothing", both_said).await;
        assert_eq!(partitions[0]["log_ends"][0]["log_end"], 500);
        let path = "/v1/topics/events/recover";
        for (request, code) in [
            (json!({"partition": 0}), ErrorCode::InvalidRequest),
            (
                json!({"partition": 7, "accept": "data_loss"}),
                ErrorCode::UnknownPartition,
            ),
            (
                json!({"partition": 0, "leader": 99, "accept": "data_loss"}),
                ErrorCode::Conflict,
            ),
        ] {
            let refused = client.post::<Value>(path, &request).await.unwrap_err();
            assert_eq!(refused.code(), Some(code), "{request}");
        }
        let recover = json!({"partition": 0, "accept": "data_loss"});
        let recovered: Value = client.post(path, &recover).await.unwrap();
        let partition = &recovered["partitions"][0];
        assert_eq!(partition["data_loss"]["code"], "DATA_LOSS_POSSIBLE");
        partitions_when(&client, "events", "the other does not follow", is_whole).await;
        let again = client.post::<Value>(path, &recover).await.unwrap_err();
        assert_eq!(again.code(), Some(ErrorCode::Conflict));
        send(&client, "events", 500..600).await;
        assert_eq!(
            found(&client, "events").await,
            (0..600).collect::<Vec<i64>>()
        );
    });
}
