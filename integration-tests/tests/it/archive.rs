//! Savepoints that a job makes by itself.

use std::collections::BTreeSet;
use std::path::Path;

use common::client::Client;
use common::error::ErrorCode;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{LOOK, PATIENCE, talk, wait_for};
use crate::totals::{TOTALS, send, wait_until_counted};

const PORTION: i64 = 500;
const KEEP: usize = 2;

fn job(archive: Value) -> Value {
    json!({
        "name": "totals", "sql": TOTALS, "parallelism": 2, "checkpoint_interval_ms": 200,
        "config": {"archive": archive},
    })
}

/// The locations of the complete ones, the last one first.
async fn archives(client: &Client) -> Vec<String> {
    let list: Value = client.get("/v1/jobs/totals/savepoints").await.unwrap();
    let savepoints = list["savepoints"].as_array().unwrap().iter();
    let complete = savepoints.filter(|of| of["archive"] == true && of["state"] == "complete");
    complete
        .map(|of| of["location"].as_str().unwrap().to_owned())
        .collect()
}

/// As if a worker had been slow, and the archive had come about at the next attempt. It stayed for good.
fn leave_an_attempt(archive: &str, place: &Path) {
    let (_, id) = archive.rsplit_once('-').unwrap();
    let attempt = place.join(format!("totals/g0-e0-{id}"));
    std::fs::create_dir(&attempt).unwrap();
    std::fs::write(attempt.join("state"), b"some").unwrap();
}

#[test]
fn archives_follow_one_another_only_the_latest_stay_and_a_job_begins_with_one() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    let place = tempfile::tempdir().unwrap();
    let location = format!("file://{}", place.path().display());
    talk(async {
        let topic = json!({"name": "bids", "partitions": 4, "replication_factor": 1});
        let _: Value = client.post("/v1/topics", &topic).await.unwrap();
        for (archive, at) in [
            (json!({"interval": "1s"}), "/config/archive/location"),
            (
                json!({"interval": "1ms", "location": location}),
                "/config/archive/interval",
            ),
            (
                json!({"interval": "1s", "location": location, "keep": 0}),
                "/config/archive/keep",
            ),
        ] {
            let refused = client.post::<Value>("/v1/jobs", &job(archive)).await;
            let error = refused.unwrap_err();
            assert_eq!(error.code(), Some(ErrorCode::InvalidRequest), "{error}");
            assert!(error.to_string().contains(at), "{error}");
        }

        let archive = json!({"interval": "1s", "location": location, "keep": KEEP});
        let _: Value = client.post("/v1/jobs", &job(archive)).await.unwrap();
        send(&client, 0..PORTION).await;
        wait_until_counted(&client, PORTION).await;
        let mut seen = BTreeSet::new();
        let following = async {
            while seen.len() < KEEP + 2 {
                let listed = archives(&client).await;
                // The one that is to go may not have gone yet.
                assert!(listed.len() <= KEEP + 1, "{listed:?}");
                if let (true, Some(first)) = (seen.is_empty(), listed.first()) {
                    leave_an_attempt(first, place.path());
                }
                seen.extend(listed);
                tokio::time::sleep(LOOK).await;
            }
        };
        let followed = tokio::time::timeout(PATIENCE, following).await;
        followed.expect("they do not follow one another");

        let _: Value = client
            .post("/v1/jobs/totals/stop", &json!({}))
            .await
            .unwrap();
        wait_for(&client, "totals", "STOPPED").await;
        let on_disk = || -> BTreeSet<String> {
            let entries = std::fs::read_dir(place.path().join("totals")).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names
                .map(|name| format!("{location}/totals/{name}"))
                .collect()
        };
        let removed = async {
            loop {
                let kept = archives(&client).await;
                if kept.len() == KEEP && on_disk() == kept.iter().cloned().collect() {
                    return kept;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let removed = tokio::time::timeout(PATIENCE, removed).await;
        let kept = removed.unwrap_or_else(|_| panic!("{:?} are left", on_disk()));

        // They stay when the job goes.
        client.delete("/v1/jobs/totals").await.unwrap();
        let mut again = job(Value::Null);
        again["restore"] = json!({"from": kept[0]});
        let _: Value = client.post("/v1/jobs", &again).await.unwrap();
        send(&client, PORTION..2 * PORTION).await;
        wait_until_counted(&client, 2 * PORTION).await;
    });
}
