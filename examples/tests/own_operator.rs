//! The worker with an operator of its own runs a job that names it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::client::Client;
use common::config::coordinator::CoordinatorConfig;
use serde_json::{Value, json};

#[test]
fn a_job_runs_an_operator_that_its_worker_was_built_with() {
    let directory = tempfile::tempdir().unwrap();
    let config = CoordinatorConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        data_dir: directory.path().join("coordinator"),
        ..CoordinatorConfig::defaults()
    };
    let coordinator = coordinator::node::Node::start(config).unwrap();
    let data = directory.path().join("worker");
    let mut worker = Command::new(env!("CARGO_BIN_EXE_own_operator"))
        .args([
            "--listen",
            "127.0.0.1:0",
            "--coordinator",
            coordinator.address(),
        ])
        .args(["--data-dir", data.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    let mut said = BufReader::new(worker.stdout.take().unwrap());
    said.read_line(&mut ready).unwrap();
    assert!(ready.contains("ready at"), "{ready}");

    let column = |name: &str, kind: &str| json!({"name": name, "type": kind, "nullable": false});
    let columns = json!([column("id", "BIGINT"), column("credit_card", "VARCHAR")]);
    let job = json!({"name": "people", "graph": {
        "sources": {"made": {"connector": "generator", "generator": "nexmark_person", "rows": 100,
                             "schema": columns}},
        "operators": [{"id": "masked", "type": "custom", "name": "mask", "inputs": ["made"],
                       "config": {"column": "credit_card"}, "schema": columns}],
        "sinks": {"out": {"input": "masked", "connector": "topic", "topic": "people"}}}});
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let people = runtime.block_on(async {
        let cluster = Client::connect(coordinator.address()).unwrap();
        let mut unknown = job.clone();
        unknown["graph"]["operators"][0]["name"] = json!("blot");
        let refused = cluster
            .post::<Value>("/v1/jobs", &unknown)
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("There are: mask."),
            "{refused}"
        );

        let _: Value = cluster.post("/v1/jobs", &job).await.unwrap();
        let finished = async {
            loop {
                let job = cluster.job("people").await.unwrap();
                assert_ne!(job["state"], "FAILED", "{}", job["reason"]);
                if job["state"] == "FINISHED" {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), finished)
            .await
            .unwrap();
        let topic: Value = cluster.get("/v1/topics/people").await.unwrap();
        let mut people = Vec::new();
        for partition in 0..u32::try_from(topic["partitions"].as_array().unwrap().len()).unwrap() {
            let fetched = cluster
                .fetch("people", partition, 0, 1_000, 0)
                .await
                .unwrap();
            people.extend(
                fetched
                    .records
                    .into_iter()
                    .filter_map(|record| record.value),
            );
        }
        people
    });
    worker.kill().unwrap();
    worker.wait().unwrap();
    coordinator.stop();
    assert_eq!(people.len(), 100);
    for person in people {
        let card = person["credit_card"].as_str().unwrap();
        let (hidden, shown) = card.split_at(card.len() - 4);
        let is_masked =
            hidden.len() > 4 && hidden.chars().all(|c| c == '*') && !shown.contains('*');
        assert!(is_masked, "{person}");
    }
}
