//! Where a job begins to read, and that one which can never run says so at once.

use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{all_values, talk, wait_for};

/// Deploys a graph, which the client has no call for.
async fn deploy(cluster: &Cluster, name: &str, graph: Value) {
    let job = json!({"name": name, "graph": graph});
    let response = reqwest::Client::new()
        .post(format!("{}/v1/jobs", cluster.coordinator()))
        .body(job.to_string())
        .send()
        .await
        .unwrap();
    let status = response.status().as_u16();
    assert_eq!(status, 201, "{}", response.text().await.unwrap());
}

#[test]
fn a_source_starts_at_the_offsets_it_was_given() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        client.create_topic("numbers", 1).await.unwrap();
        let values: Vec<_> = (0..10).map(|n| json!({"n": n})).collect();
        client.produce("numbers", &values).await.unwrap();
        let sql = "CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'topic', 'topic' = 'numbers',
                     'scan.startup.mode' = 'offsets', 'scan.startup.offsets' = 'partition:0,offset:4',
                     'scan.bounded.mode' = 'latest');
                   CREATE TABLE by_sql WITH (connector = 'topic', topic = 'by-sql');
                   INSERT INTO by_sql SELECT n FROM numbers";
        client.create_job("by-sql", sql).await.unwrap();
        let graph = json!({
            "sources": {"numbers": {
                "connector": "topic", "topic": "numbers", "schema": [{"name": "n", "type": "BIGINT"}],
                "scan.startup.mode": "offsets", "scan.startup.offsets": {"0": 7},
                "scan.bounded.mode": "latest"}},
            "sinks": {"out": {"connector": "topic", "topic": "by-graph", "input": "numbers"}}});
        deploy(&cluster, "by-graph", graph).await;
        for (job, first) in [("by-sql", 4), ("by-graph", 7)] {
            wait_for(&client, job, "FINISHED").await;
            let expected: Vec<Value> = (first..10).map(|n| json!({"n": n})).collect();
            assert_eq!(all_values(&client, job).await, expected, "{job}");
        }
    });
}

#[test]
fn a_job_whose_files_can_never_be_opened_fails_at_once_with_the_reason() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let below = format!("{}/deeper", file.path().display());
    talk(async {
        for (job, source, sink) in [
            (
                "nowhere",
                "connector = 'generator', generator = 'sensors', rows = 10".to_owned(),
                format!("connector = 'files', path = '{below}/'"),
            ),
            (
                "not-there",
                "connector = 'generator', generator = 'sensors', rows = 10".to_owned(),
                "connector = 'files', path = '/proc/deeper/'".to_owned(),
            ),
            (
                "from-nowhere",
                format!("connector = 'files', path = '{below}/in.json'"),
                "connector = 'blackhole'".to_owned(),
            ),
        ] {
            let sql = format!(
                "CREATE TABLE a (sensor BIGINT) WITH ({source}); CREATE TABLE b WITH ({sink});
                 INSERT INTO b SELECT sensor FROM a"
            );
            client.create_job(job, &sql).await.unwrap();
            let failed = wait_for(&client, job, "FAILED").await;
            let reason = failed["reason"].as_str().unwrap();
            assert!(reason.contains("deeper"), "{job}: {reason}");
            let restarts = failed["restarts"].as_array().unwrap();
            assert_eq!(restarts.len(), 1, "{job}: {restarts:#?}");
        }
    });
}
