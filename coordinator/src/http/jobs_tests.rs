//! Jobs over REST: a whole coordinator over real sockets, with workers that only say they work.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::config::coordinator::CoordinatorConfig;
use common::error::ErrorCode;
use common::ids::{CheckpointId, Generation};
use common::protocol::checkpoint::CheckpointKind;
use common::protocol::task::TaskState;
use common::time::Span;
use common::transport::client::{Forward, Transport};

use super::fake_worker::FakeWorker;
use crate::node::Node;

const DEADLINE: Span = Span::from_secs(30);

const SQL: &str = "
    CREATE TABLE sensors (sensor BIGINT, temperature DOUBLE, ts TIMESTAMP(3), WATERMARK FOR ts)
    WITH (connector = 'generator', generator = 'sensors', splits = 2);
    CREATE TABLE warm WITH (connector = 'topic', topic = 'warm', format = 'json');
    INSERT INTO warm
    SELECT window_start, sensor, count(*) AS readings
    FROM TUMBLE(sensors, ts, INTERVAL '1' MINUTE) GROUP BY window_start, window_end, sensor;";

struct Cluster {
    directory: TempDir,
    transport: Transport,
    node: Option<Node>,
    address: String,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Value,
}

impl Cluster {
    fn start() -> Cluster {
        let mut cluster = Cluster {
            directory: tempfile::tempdir().unwrap(),
            transport: Transport::start("test").unwrap(),
            node: None,
            address: "127.0.0.1:0".to_owned(),
        };
        cluster.start_node();
        cluster
    }

    fn start_node(&mut self) {
        let config = CoordinatorConfig {
            listen: self.address.trim_start_matches("http://").parse().unwrap(),
            data_dir: self.directory.path().to_owned(),
            http_threads: 2,
            ..CoordinatorConfig::defaults()
        };
        let node = Node::start(config).unwrap();
        self.address = node.address().to_owned();
        self.node = Some(node);
    }

    fn stop_node(&mut self) {
        self.node.take().unwrap().stop();
    }

    fn worker(&self, storage: u128, slots: u32) -> FakeWorker {
        FakeWorker::start(&self.address, storage, slots)
    }

    async fn ask(&self, method: &str, target: &str, body: Value) -> Answer {
        let body = match body {
            Value::Null => Bytes::new(),
            body => Bytes::from(body.to_string()),
        };
        let request = Forward {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body,
        };
        let asking = self.transport.forward(&self.address, request, DEADLINE);
        let mut answer = asking.await.unwrap();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.body.next().await {
            bytes.extend_from_slice(&chunk.unwrap());
        }
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Answer {
            status: answer.status,
            headers: answer
                .headers
                .into_iter()
                .map(|(name, value)| (name, text(value)))
                .collect(),
            body: match bytes.is_empty() {
                true => Value::Null,
                false => serde_json::from_slice(&bytes).unwrap(),
            },
        }
    }

    async fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, Value::Null).await
    }

    async fn post(&self, target: &str, body: Value) -> Answer {
        self.ask("POST", target, body).await
    }

    /// Deploys the job `warm`, of two stages with two tasks each, as soon as a worker is there for its topics.
    async fn deploy(&self) -> Value {
        let job = json!({
            "name": "warm", "sql": SQL, "parallelism": 2, "checkpoint_interval_ms": 100,
            "config": {"checkpoint_timeout": "2s"},
        });
        loop {
            let answer = self.post("/v1/jobs", job.clone()).await;
            if answer.body["code"] != "NO_WORKERS" {
                assert_eq!(answer.status, 201, "{}", answer.body);
                return answer.body;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the answer is as wanted.
    async fn until(&self, target: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let waiting = async {
            loop {
                let answer = self.get(target).await;
                if wanted(&answer.body) {
                    return answer.body;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(DEADLINE.as_duration(), waiting).await {
            Ok(body) => body,
            Err(_) => panic!("{target} is still {}", self.get(target).await.body),
        }
    }

    async fn until_state(&self, state: &str) -> Value {
        self.until("/v1/jobs/warm", |job| job["state"] == state)
            .await
    }

    async fn until_completed(&self, above: u64) -> u64 {
        let done = |list: &Value| list["completed"].as_u64() > Some(above);
        let list = self.until("/v1/jobs/warm/checkpoints", done).await;
        list["completed"].as_u64().unwrap()
    }
}

fn run(story: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(story);
}

#[test]
fn a_job_is_deployed_runs_and_takes_checkpoints() {
    let cluster = Cluster::start();
    let worker = cluster.worker(1, 8);
    run(async {
        let created = cluster.deploy().await;
        assert_eq!(created["name"], "warm");
        assert_eq!(created["parallelism"], 2);
        assert_eq!(created["graph"]["sinks"]["warm"]["topic"], "warm");

        let job = cluster.until_state("RUNNING").await;
        assert_eq!(
            (&job["generation"], &job["reason"]),
            (&json!(1), &json!(""))
        );
        assert_eq!(job["stages"].as_array().unwrap().len(), 2);
        assert_eq!(job["stages"][0]["operators"][0], "sensors");
        for task in job["stages"][1]["tasks"].as_array().unwrap() {
            assert_eq!(
                (&task["worker"], &task["state"]),
                (&json!(1), &json!("running"))
            );
        }
        let rate = |job: &Value| job["rows_in_per_second"].as_f64() > Some(0.0);
        let job = cluster.until("/v1/jobs/warm", rate).await;
        assert_eq!(job["watermark"], "2023-11-14T22:13:20.000Z");

        let epoch = cluster.until_completed(1).await;
        let job = cluster.get("/v1/jobs/warm").await.body;
        assert!(job["last_checkpoint"]["epoch"].as_u64() >= Some(epoch));
        assert_eq!(job["last_checkpoint"]["state_bytes"], 400);
        let list = cluster.get("/v1/jobs/warm/checkpoints").await.body;
        assert_eq!(
            list["holders"],
            json!({"0.0": [1], "0.1": [1], "1.0": [1], "1.1": [1]})
        );
        let latest = list["checkpoints"].as_array().unwrap();
        let completed = latest.iter().find(|entry| entry["status"] == "completed");
        assert!(completed.unwrap()["triggered_at"].is_string());

        let offsets = cluster.get("/v1/jobs/warm/offsets").await.body;
        assert_eq!(offsets["sources"], json!({"sensors": {"0": 42, "1": 42}}));
        let past = format!("/v1/jobs/warm/offsets?epoch={epoch}");
        assert_eq!(cluster.get(&past).await.body["epoch"], epoch);
        let future = cluster.get("/v1/jobs/warm/offsets?epoch=999999").await;
        assert_eq!(future.body["code"], "UNKNOWN_CHECKPOINT");

        for topic in ["warm", "warm.dead-letters"] {
            assert_eq!(
                cluster.get(&format!("/v1/topics/{topic}")).await.status,
                200
            );
        }
        let listed = cluster.get("/v1/jobs").await.body;
        assert_eq!(listed["jobs"][0]["name"], "warm");

        assert_eq!(worker.deployment().restore, None);
        let taken = cluster
            .post("/v1/jobs", json!({"name": "warm", "sql": SQL}))
            .await;
        assert_eq!(
            (taken.status, &taken.body["code"]),
            (409, &json!("ALREADY_EXISTS"))
        );
        let unknown = cluster.get("/v1/jobs/wrm").await;
        assert_eq!(
            (unknown.status, &unknown.body["code"]),
            (404, &json!("UNKNOWN_JOB"))
        );
        assert_eq!(unknown.body["hint"], "Did you mean \"warm\"?");
    });
}

#[test]
fn a_job_is_paused_at_a_last_checkpoint_resumed_from_it_stopped_and_deleted() {
    let cluster = Cluster::start();
    let worker = cluster.worker(1, 8);
    run(async {
        cluster.deploy().await;
        cluster.until_state("RUNNING").await;
        assert_eq!(
            cluster
                .post("/v1/jobs/warm/pause", Value::Null)
                .await
                .status,
            200
        );
        let paused = cluster.until_state("PAUSED").await;
        let last = CheckpointId(paused["last_checkpoint"]["epoch"].as_u64().unwrap());
        assert_eq!(paused["last_checkpoint"]["kind"], "stop");
        assert_eq!(
            worker.barriers().last(),
            Some(&(last, CheckpointKind::Stop))
        );
        assert_eq!(paused["stages"][0]["tasks"][0]["worker"], Value::Null);
        assert_eq!(
            cluster
                .post("/v1/jobs/warm/pause", Value::Null)
                .await
                .status,
            200
        );

        let deleted = cluster.ask("DELETE", "/v1/jobs/warm", Value::Null).await;
        assert_eq!(
            (deleted.status, &deleted.body["code"]),
            (409, &json!("CONFLICT"))
        );

        cluster.post("/v1/jobs/warm/resume", Value::Null).await;
        cluster.until_state("RUNNING").await;
        assert_eq!(worker.deployment().restore, Some(last));
        cluster.until_completed(last.0).await;

        for _ in 0..2 {
            assert_eq!(
                cluster.post("/v1/jobs/warm/stop", Value::Null).await.status,
                200
            );
        }
        cluster.until_state("STOPPED").await;
        assert_eq!(
            cluster
                .post("/v1/jobs/warm/cancel", Value::Null)
                .await
                .status,
            200
        );
        assert_eq!(cluster.get("/v1/jobs/warm").await.body["state"], "STOPPED");
        let deleted = cluster.ask("DELETE", "/v1/jobs/warm", Value::Null).await;
        assert_eq!(deleted.status, 204);
        assert_eq!(cluster.get("/v1/jobs/warm").await.status, 404);
    });
}

#[test]
fn a_cancelled_job_ends_at_once_and_for_good() {
    let cluster = Cluster::start();
    let worker = cluster.worker(1, 8);
    run(async {
        cluster.deploy().await;
        cluster.until_state("RUNNING").await;
        worker.acknowledge(false);
        cluster.post("/v1/jobs/warm/cancel", Value::Null).await;
        cluster.until_state("CANCELLED").await;
        let resumed = cluster.post("/v1/jobs/warm/resume", Value::Null).await;
        assert_eq!(
            (resumed.status, &resumed.body["code"]),
            (409, &json!("CONFLICT"))
        );
        assert_eq!(resumed.body["detail"], "job \"warm\" is CANCELLED");
    });
}

#[test]
fn a_job_whose_sources_have_ended_is_finished_by_a_last_checkpoint() {
    let cluster = Cluster::start();
    let worker = cluster.worker(1, 8);
    run(async {
        cluster.deploy().await;
        cluster.until_state("RUNNING").await;
        worker.exhaust_sources();
        let finished = cluster.until_state("FINISHED").await;
        assert_eq!(finished["last_checkpoint"]["kind"], "stop");
    });
}

#[test]
fn a_job_waits_for_the_worker_that_holds_its_state_and_goes_on_when_it_is_back() {
    let cluster = Cluster::start();
    let first = cluster.worker(1, 8);
    run(async {
        cluster.deploy().await;
        let epoch = cluster.until_completed(0).await;
        let second = cluster.worker(2, 8);
        first.kill();
        let waiting = cluster.until_state("WAITING").await;
        assert_eq!(
            waiting["reason"],
            "waits for worker 1, which holds the state of 4 tasks"
        );
        assert_eq!(waiting["restarts"][0]["reason"], "worker 1 is gone");
        let operator = waiting["graph"]["operators"][0]["id"].as_str().unwrap();
        let path = format!("/v1/jobs/warm/operators/{operator}/state");
        // It is on the disk of a worker that is away.
        let state = cluster.get(&path).await;
        assert_eq!(
            (state.status, &state.body["code"]),
            (503, &json!("METADATA_STALE"))
        );

        let back = cluster.worker(1, 8);
        let job = cluster.until_state("RUNNING").await;
        assert_eq!(job["restarts"].as_array().unwrap().len(), 1);
        let deployment = back.deployment();
        assert!(deployment.restore >= Some(CheckpointId(epoch)));
        assert!(deployment.generation > Generation(1));
        cluster.until_completed(epoch).await;
        drop(second);
    });
}

#[test]
fn a_job_spreads_over_two_workers_and_its_checkpoints_take_both() {
    let cluster = Cluster::start();
    let workers = [cluster.worker(1, 1), cluster.worker(2, 1)];
    run(async {
        let created = cluster.deploy().await;
        assert!(created["state"] != "FAILED");
        cluster.until_state("RUNNING").await;
        cluster.until_completed(0).await;
        let list = cluster.get("/v1/jobs/warm/checkpoints").await.body;
        let holders = &list["holders"];
        assert_eq!(holders["0.0"], holders["1.0"], "an instance stays together");
        assert!(holders["0.0"] != holders["0.1"]);
        workers[1].acknowledge(false);
        // One that was on its way may still complete.
        let epoch = cluster.until_completed(0).await;
        let stuck = |list: &Value| {
            let mut entries = list["checkpoints"].as_array().unwrap().iter();
            entries
                .any(|entry| entry["status"] == "in_progress" && entry["acknowledged_tasks"] == 2)
        };
        cluster.until("/v1/jobs/warm/checkpoints", stuck).await;
        workers[1].acknowledge(true);
        cluster.until_completed(epoch).await;
    });
}

#[test]
fn a_job_that_needs_more_slots_waits_and_says_how_many() {
    let cluster = Cluster::start();
    let _worker = cluster.worker(1, 1);
    run(async {
        cluster.deploy().await;
        let waiting = cluster.until_state("WAITING").await;
        assert_eq!(
            waiting["reason"],
            "needs 2 slots, 1 are free: 1 more must come"
        );
        let _another = cluster.worker(2, 1);
        cluster.until_state("RUNNING").await;
    });
}

#[test]
fn a_failure_that_would_come_again_fails_the_job_and_resuming_runs_it_again() {
    let cluster = Cluster::start();
    let worker = cluster.worker(1, 8);
    run(async {
        cluster.deploy().await;
        cluster.until_state("RUNNING").await;
        worker.report(TaskState::Failed {
            reason: "division by zero at offset 7".to_owned(),
            fatal: true,
        });
        let failed = cluster.until_state("FAILED").await;
        assert_eq!(
            failed["reason"],
            "task 0.0 on worker 1: division by zero at offset 7"
        );
        worker.report(TaskState::Running);
        cluster.post("/v1/jobs/warm/resume", Value::Null).await;
        cluster.until_state("RUNNING").await;
    });
}

#[test]
fn a_new_coordinator_finds_the_job_running_and_goes_on_with_its_checkpoints() {
    let mut cluster = Cluster::start();
    let worker = cluster.worker(1, 8);
    run(async {
        cluster.deploy().await;
        cluster.until_state("RUNNING").await;
        let epoch = cluster.until_completed(0).await;
        cluster.stop_node();
        cluster.start_node();
        let later = cluster.until_completed(epoch).await;
        assert!(
            later > 1_024,
            "numbers a former coordinator may have used are not used again"
        );
        let job = cluster.get("/v1/jobs/warm").await.body;
        assert_eq!(
            (&job["state"], &job["generation"]),
            (&json!("RUNNING"), &json!(1))
        );
        let mut barriers = worker.barriers();
        barriers.sort_unstable_by_key(|(checkpoint, _)| *checkpoint);
        barriers.dedup();
        assert_eq!(barriers, worker.barriers());
    });
}

#[test]
fn the_state_of_an_operator_is_read_in_pages_at_one_epoch() {
    let cluster = Cluster::start();
    let _worker = cluster.worker(1, 8);
    run(async {
        cluster.deploy().await;
        cluster.until_completed(0).await;
        let job = cluster.get("/v1/jobs/warm").await.body;
        let operator = job["stages"][1]["operators"][0]
            .as_str()
            .unwrap()
            .to_owned();
        let base = format!("/v1/jobs/warm/operators/{operator}/state");

        let first = cluster.get(&format!("{base}?limit=2")).await;
        assert_eq!(first.status, 200, "{}", first.body);
        let epoch = first.body["epoch"].as_u64().unwrap();
        let header = |name: &str| {
            let mut headers = first.headers.iter();
            let found = headers.find(|(header, _)| header.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        assert_eq!(header("X-State-Epoch"), Some(epoch.to_string()));
        assert_eq!(header("X-Generation").as_deref(), Some("1"));
        assert_eq!(header("X-Watermark").as_deref(), Some("1700000000000"));

        let mut read: Vec<Value> = Vec::new();
        let mut page = first.body;
        loop {
            assert_eq!(page["epoch"], epoch);
            read.extend(page["entries"].as_array().unwrap().iter().cloned());
            let Some(next) = page["next"].as_str() else {
                break;
            };
            let target = format!("{base}?limit=2&epoch={epoch}&after={next}");
            page = cluster.get(&target).await.body;
        }
        let keys: Vec<&str> = read
            .iter()
            .map(|e| e["key"]["sensor"].as_str().unwrap())
            .collect();
        assert_eq!(keys, ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]);

        let one = cluster.get(&format!("{base}?key=1-2")).await.body;
        assert_eq!(one["entries"].as_array().unwrap().len(), 1);
        assert_eq!(one["entries"][0]["value"]["readings"], 2);
        let live = cluster.get(&format!("{base}?consistency=live")).await.body;
        assert_eq!(live["epoch"], Value::Null);

        for (query, code) in [
            ("?limit=0", "INVALID_REQUEST"),
            ("?epoch=999999", "UNKNOWN_CHECKPOINT"),
            ("?after=x", "INVALID_REQUEST"),
            ("?consistency=perfect", "INVALID_REQUEST"),
        ] {
            let refused = cluster.get(&format!("{base}{query}")).await;
            assert_eq!(refused.body["code"], code, "{query}");
        }
        let unknown = cluster.get("/v1/jobs/warm/operators/nothing/state").await;
        assert_eq!(
            (unknown.status, &unknown.body["code"]),
            (404, &json!("UNKNOWN_OPERATOR"))
        );
        let source = cluster.get("/v1/jobs/warm/operators/sensors/state").await;
        assert_eq!(source.body["code"], "UNKNOWN_OPERATOR");
        assert_eq!(
            source.body["detail"],
            "\"sensors\" of job \"warm\" keeps no state to read"
        );
        assert_eq!(
            source.body["hint"],
            format!("State is kept by: {operator}.")
        );
    });
}

/// A task may have been replaced, or have forgotten an epoch, at every attempt.
#[test]
fn a_reader_is_told_why_a_task_does_not_give_its_state() {
    let cluster = Cluster::start();
    let worker = cluster.worker(1, 8);
    run(async {
        cluster.deploy().await;
        cluster.until_completed(0).await;
        let job = cluster.get("/v1/jobs/warm").await.body;
        let operator = job["stages"][1]["operators"][0].as_str().unwrap();
        let path = format!("/v1/jobs/warm/operators/{operator}/state");
        for (code, status, name) in [
            (ErrorCode::StaleGeneration, 409, "STALE_GENERATION"),
            (ErrorCode::EpochGone, 410, "EPOCH_GONE"),
            (ErrorCode::Timeout, 504, "TIMEOUT"),
        ] {
            worker.refuse_state(code);
            let answer = cluster.get(&path).await;
            let said = (answer.status, &answer.body["code"]);
            assert_eq!(said, (status, &json!(name)));
        }
    });
}

#[test]
fn dead_letters_are_read_from_the_leader_of_their_topic() {
    let cluster = Cluster::start();
    let _worker = cluster.worker(1, 8);
    run(async {
        cluster.deploy().await;
        let answer = cluster
            .get("/v1/jobs/warm/dead-letters?max_records=5")
            .await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(
            answer.body,
            json!({
                "path": "/v1/topics/warm.dead-letters/partitions/0/records",
                "query": "offset=earliest&max_records=5",
            })
        );
    });
}

#[test]
fn planning_changes_nothing_and_mistakes_are_told_with_their_place() {
    let cluster = Cluster::start();
    run(async {
        let job = json!({"name": "warm", "sql": SQL, "parallelism": 2});
        let planned = cluster.post("/v1/jobs?dry_run=true", job).await;
        assert_eq!(planned.status, 200, "{}", planned.body);
        assert_eq!(
            planned.body["creates_topics"],
            json!({"warm": 2, "warm.dead-letters": 1})
        );
        assert!(
            planned.body["plan"]
                .as_str()
                .unwrap()
                .contains("generator sensors")
        );
        assert_eq!(cluster.get("/v1/jobs").await.body["jobs"], json!([]));
        assert_eq!(cluster.get("/v1/topics").await.body["topics"], json!([]));

        let explained = cluster.post("/v1/sql/explain", json!({"sql": SQL})).await;
        assert_eq!(explained.status, 200);
        assert_eq!(explained.body["graph"], planned.body["graph"]);
        let graph = explained.body["graph"].clone();
        let again = json!({"name": "warm", "graph": graph, "parallelism": 2});
        let again = cluster.post("/v1/jobs?dry_run=true", again).await;
        assert_eq!(again.body["plan"], planned.body["plan"]);

        let sql =
            "CREATE TABLE t WITH (connector = 'blackhole'); INSERT INTO t SELECT a FROM nowhere";
        for (job, status, code) in [
            (json!({"name": "j", "sql": "SELEC 1"}), 400, "SQL_SYNTAX"),
            (json!({"name": "j", "sql": sql}), 400, "SQL_PLAN"),
            (json!({"name": "j"}), 400, "INVALID_REQUEST"),
            (json!({"name": "a b", "sql": SQL}), 400, "INVALID_NAME"),
            (
                json!({"name": "j", "sql": SQL, "checkpoint_interval_ms": 5}),
                400,
                "INVALID_REQUEST",
            ),
            (
                json!({"name": "j", "sql": SQL, "config": {"key_groups": 0}}),
                400,
                "INVALID_REQUEST",
            ),
            (
                json!({"name": "j", "sql": SQL, "paralelism": 5}),
                400,
                "INVALID_REQUEST",
            ),
            (json!({"name": "j", "sql": SQL}), 503, "NO_WORKERS"),
        ] {
            let answer = cluster.post("/v1/jobs", job.clone()).await;
            let (got, expected) = (&answer.body["code"], json!(code));
            assert_eq!(
                (answer.status, got),
                (status, &expected),
                "{job}: {}",
                answer.body
            );
        }
        let unknown = cluster.post("/v1/jobs/warm/migrate", json!({})).await;
        assert_eq!(
            (unknown.status, &unknown.body["code"]),
            (404, &json!("NOT_FOUND"))
        );
    });
}
