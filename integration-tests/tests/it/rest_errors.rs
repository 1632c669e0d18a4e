//! Every mistake a user of the REST interface can make, and what is said about it: by both kinds of node alike.

use std::io::{Read, Write};
use std::net::TcpStream;

use common::client::Client;
use common::error::ErrorCode;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{LOOK, PATIENCE, all_values, talk, wait_for};

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";
const MSGPACK: &str = "application/msgpack";

/// A request that is wrong, and the answer.
struct Mistake {
    method: &'static str,
    path: &'static str,
    content_type: &'static str,
    body: Vec<u8>,
    status: u16,
    code: &'static str,
    /// What the detail, the hint or the place must contain for the user to find the mistake.
    telling: &'static str,
}

fn mistake(
    (method, path): (&'static str, &'static str),
    (content_type, body): (&'static str, impl Into<Vec<u8>>),
    (status, code): (u16, &'static str),
    telling: &'static str,
) -> Mistake {
    Mistake {
        method,
        path,
        content_type,
        body: body.into(),
        status,
        code,
        telling,
    }
}

fn sql(text: &str) -> (&'static str, Vec<u8>) {
    let job = json!({"name": "fresh", "sql": text});
    (JSON, job.to_string().into_bytes())
}

fn graph(graph: &Value) -> (&'static str, Vec<u8>) {
    let job = json!({"name": "fresh", "graph": graph});
    (JSON, job.to_string().into_bytes())
}

const NOTHING: (&str, &str) = ("", "");
const RECORDS: (&str, &str) = ("POST", "/v1/topics/orders/records");
const TOPICS: (&str, &str) = ("POST", "/v1/topics");
const JOBS: (&str, &str) = ("POST", "/v1/jobs");
const SOURCE: &str = "CREATE TABLE orders (id BIGINT, amount DOUBLE, at TIMESTAMP(3))
                      WITH (connector = 'topic', topic = 'orders');";
const SINK: &str = "CREATE TABLE results WITH (connector = 'topic', topic = 'results');";

fn of_topics() -> Vec<Mistake> {
    let get = |path| ("GET", path);
    vec![
        mistake(
            TOPICS,
            (JSON, r#"{"name": "a b"}"#),
            (400, "INVALID_NAME"),
            "a b",
        ),
        mistake(
            TOPICS,
            (JSON, r#"{"name": ".."}"#),
            (400, "INVALID_NAME"),
            "..",
        ),
        mistake(
            TOPICS,
            (JSON, r#"{"name": ""}"#),
            (400, "INVALID_NAME"),
            "name",
        ),
        mistake(
            TOPICS,
            (JSON, r#"{"name": "orders"}"#),
            (409, "ALREADY_EXISTS"),
            "orders",
        ),
        mistake(
            TOPICS,
            (JSON, r#"{"name": "t", "partitions": 0}"#),
            (400, "INVALID_CONFIG"),
            "partitions",
        ),
        mistake(
            TOPICS,
            (JSON, r#"{"name": "t", "partitions": 1000000}"#),
            (400, "INVALID_CONFIG"),
            "partitions",
        ),
        mistake(
            TOPICS,
            (JSON, r#"{"name": "t", "partitons": 2}"#),
            (400, "INVALID_REQUEST"),
            "partitons",
        ),
        mistake(
            TOPICS,
            (JSON, r#"{"name": "t""#),
            (400, "INVALID_REQUEST"),
            "column",
        ),
        mistake(
            TOPICS,
            (JSON, r#"{"name": "t", "replication_factor": 9}"#),
            (422, "UNSUPPORTED_REPLICATION_FACTOR"),
            "8",
        ),
        mistake(
            TOPICS,
            (
                JSON,
                r#"{"name": "t", "config": {"cleanup_policy": "compact"}}"#,
            ),
            (422, "UNSUPPORTED_CLEANUP_POLICY"),
            "delete",
        ),
        mistake(
            TOPICS,
            (
                JSON,
                r#"{"name": "t", "config": {"durability": "replicated"}}"#,
            ),
            (422, "UNSUPPORTED_DURABILITY"),
            "fsync",
        ),
        mistake(
            TOPICS,
            (JSON, r#"{"name": "t", "config": {"retention": 5}}"#),
            (400, "INVALID_REQUEST"),
            "retention",
        ),
        mistake(
            get("/v1/topics/ordres"),
            NOTHING,
            (404, "UNKNOWN_TOPIC"),
            "ordres",
        ),
        mistake(
            ("DELETE", "/v1/topics/ordres"),
            NOTHING,
            (404, "UNKNOWN_TOPIC"),
            "ordres",
        ),
        mistake(
            ("PATCH", "/v1/topics/orders"),
            (JSON, r#"{"partitions": 1}"#),
            (400, "INVALID_CONFIG"),
            "partitions",
        ),
        mistake(
            get("/v1/nothing"),
            NOTHING,
            (404, "NOT_FOUND"),
            "/v1/nothing",
        ),
        // Neither node takes the other for the one who answers these.
        mistake(
            get("/v1/topics/orders/"),
            NOTHING,
            (404, "NOT_FOUND"),
            "/v1/topics/orders/",
        ),
        mistake(
            get("/v1/topics/orders/partitions/0"),
            NOTHING,
            (404, "NOT_FOUND"),
            "/v1/topics/orders/partitions/0",
        ),
        mistake(
            ("PUT", "/v1/topics"),
            NOTHING,
            (405, "METHOD_NOT_ALLOWED"),
            "PUT",
        ),
        mistake(
            get("/v1/topics/orders/partitions/9/records"),
            NOTHING,
            (404, "UNKNOWN_PARTITION"),
            "9",
        ),
        mistake(
            get("/v1/topics/ordres/partitions/0/records"),
            NOTHING,
            (404, "UNKNOWN_TOPIC"),
            "ordres",
        ),
        mistake(
            get("/v1/topics/orders/partitions/0/records?offset=99999"),
            NOTHING,
            (416, "OFFSET_OUT_OF_RANGE"),
            "99999",
        ),
        mistake(
            get("/v1/topics/orders/partitions/0/records?offset=soon"),
            NOTHING,
            (400, "INVALID_REQUEST"),
            "soon",
        ),
        mistake(
            get("/v1/topics/orders/partitions/0/records?max=5"),
            NOTHING,
            (400, "INVALID_REQUEST"),
            "max",
        ),
        mistake(
            get("/v1/topics/orders/partitions/0/records?wait_ms=-1"),
            NOTHING,
            (400, "INVALID_REQUEST"),
            "wait_ms",
        ),
        mistake(
            get("/v1/jobs?limit=many"),
            NOTHING,
            (400, "INVALID_REQUEST"),
            "many",
        ),
        mistake(
            TOPICS,
            (JSON, r#"{"name": "t", "partitions": "4"}"#),
            (400, "INVALID_REQUEST"),
            "/partitions",
        ),
        mistake(
            TOPICS,
            (JSON, "[]"),
            (400, "INVALID_REQUEST"),
            "an object is expected",
        ),
        mistake(
            TOPICS,
            (JSON, vec![b' '; (64 << 20) + 1]),
            (413, "REQUEST_TOO_LARGE"),
            "67108864",
        ),
        mistake(
            JOBS,
            (JSON, vec![b' '; (64 << 20) + 1]),
            (413, "REQUEST_TOO_LARGE"),
            "67108864",
        ),
        mistake(
            get("/v1/topics/orders/stream?from=soon"),
            NOTHING,
            (400, "INVALID_REQUEST"),
            "soon",
        ),
    ]
}

fn of_records() -> Vec<Mistake> {
    let deep = format!("{}1{}\n", "[".repeat(200), "]".repeat(200));
    let huge = format!("{{\"text\": \"{}\"}}\n", "x".repeat(2 << 20));
    vec![
        mistake(
            RECORDS,
            (NDJSON, "{\"id\": 1}\n{\"id\": }\n"),
            (400, "INVALID_RECORD"),
            "line 2",
        ),
        mistake(
            RECORDS,
            (NDJSON, "{\"id\": 1}\n{\"id\": 01}\n"),
            (400, "INVALID_RECORD"),
            "line 2",
        ),
        mistake(
            RECORDS,
            (NDJSON, b"{\"id\": \"\xff\"}\n".to_vec()),
            (400, "INVALID_RECORD"),
            "UTF-8",
        ),
        mistake(RECORDS, (NDJSON, deep), (400, "INVALID_RECORD"), "128"),
        mistake(
            RECORDS,
            (NDJSON, huge),
            (413, "RECORD_TOO_LARGE"),
            "max_message_bytes",
        ),
        mistake(
            RECORDS,
            (JSON, r#"{"records": [{"key": 1}]}"#),
            (400, "INVALID_RECORD"),
            "value",
        ),
        mistake(
            RECORDS,
            (JSON, r#"{"records": [{"value": 1, "partition": 7}]}"#),
            (404, "UNKNOWN_PARTITION"),
            "7",
        ),
        mistake(
            RECORDS,
            (JSON, r#"{"values": []}"#),
            (400, "INVALID_REQUEST"),
            "records",
        ),
        mistake(
            RECORDS,
            (MSGPACK, vec![0x81_u8, 0xa7, b'r']),
            (400, "INVALID_REQUEST"),
            "",
        ),
        mistake(
            RECORDS,
            ("text/plain", "hello"),
            (415, "UNSUPPORTED_MEDIA_TYPE"),
            "text/plain",
        ),
        mistake(
            ("POST", "/v1/topics/orders/records?acks=maybe"),
            (NDJSON, "1\n"),
            (400, "INVALID_REQUEST"),
            "maybe",
        ),
        mistake(
            ("POST", "/v1/topics/ordres/records"),
            (NDJSON, "1\n"),
            (404, "UNKNOWN_TOPIC"),
            "ordres",
        ),
    ]
}

fn of_jobs() -> Vec<Mistake> {
    let job = |path| ("GET", path);
    let nested = format!(
        "{SOURCE}{SINK}INSERT INTO results SELECT {}id{} FROM orders",
        "(".repeat(2_000),
        ")".repeat(2_000)
    );
    let cycle = json!({
        "sources": {"orders": {"connector": "topic", "topic": "orders", "format": "json",
                               "schema": [{"name": "id", "type": "BIGINT"}]}},
        "operators": [
            {"id": "a", "type": "union", "inputs": ["orders", "b"]},
            {"id": "b", "type": "filter", "inputs": ["a"], "predicate": "id > 1"}],
        "sinks": {"out": {"input": "a", "connector": "topic", "topic": "results", "format": "json"}}});
    let dangling = json!({
        "sources": {"orders": {"connector": "topic", "topic": "orders", "format": "json",
                               "schema": [{"name": "id", "type": "BIGINT"}]}},
        "operators": [{"id": "a", "type": "filter", "inputs": ["ordres"], "predicate": "id > 1"}],
        "sinks": {"out": {"input": "a", "connector": "topic", "topic": "results", "format": "json"}}});
    let formless = json!({
        "sources": {"orders": {"connector": "topic", "topic": "orders", "format": "json",
                               "schema": [{"name": "id", "type": "BIGINT"}]}},
        "operators": [{"id": "a", "type": "filter", "inputs": ["orders"]}],
        "sinks": {"out": {"input": "a", "connector": "topic", "topic": "results", "format": "json"}}});
    vec![
        mistake(
            JOBS,
            (JSON, r#"{"name": "fresh"}"#),
            (400, "INVALID_REQUEST"),
            "sql",
        ),
        mistake(
            JOBS,
            (JSON, r#"{"name": "a/b", "sql": "SELECT 1"}"#),
            (400, "INVALID_NAME"),
            "a/b",
        ),
        mistake(
            JOBS,
            (JSON, r#"{"name": "fresh", "sql": "", "paralelism": 2}"#),
            (400, "INVALID_REQUEST"),
            "paralelism",
        ),
        mistake(
            JOBS,
            sql(&format!(
                "{SOURCE}{SINK}INSERT INTO results SELEC id FROM orders"
            )),
            (400, "SQL_SYNTAX"),
            "SELEC",
        ),
        mistake(
            JOBS,
            sql(&format!(
                "{SOURCE}{SINK}INSERT INTO results SELECT idd FROM orders"
            )),
            (400, "SQL_PLAN"),
            "id",
        ),
        mistake(
            JOBS,
            sql(&format!(
                "{SOURCE}{SINK}INSERT INTO results SELECT id FROM ordres"
            )),
            (400, "SQL_PLAN"),
            "orders",
        ),
        mistake(
            JOBS,
            sql(&format!(
                "{SOURCE}{SINK}INSERT INTO results SELECT uper(id) FROM orders"
            )),
            (400, "SQL_PLAN"),
            "upper",
        ),
        mistake(
            JOBS,
            sql(&format!("{SOURCE}INSERT INTO result SELECT id FROM orders")),
            (400, "SQL_PLAN"),
            "result",
        ),
        mistake(JOBS, sql(&nested), (400, "SQL_SYNTAX"), "deep"),
        mistake(
            JOBS,
            sql(
                "CREATE TABLE o (id BIGINT) WITH (connector = 'topic', topic = 'missing'); CREATE TABLE r WITH (connector = 'topic', topic = 'r'); INSERT INTO r SELECT id FROM o",
            ),
            (404, "UNKNOWN_TOPIC"),
            "missing",
        ),
        mistake(
            JOBS,
            sql(
                "CREATE TABLE o (id BIGINT) WITH (connector = 'topik', topic = 'orders'); CREATE TABLE r WITH (connector = 'blackhole'); INSERT INTO r SELECT id FROM o",
            ),
            (400, "SQL_PLAN"),
            "topic",
        ),
        mistake(
            JOBS,
            sql(
                "CREATE TABLE o (id BIGINT) WITH (connector = 'topic', topic = 'orders'); CREATE TABLE r WITH (connector = 'topic', topic = 'fresh.dead-letters'); INSERT INTO r SELECT id FROM o",
            ),
            (400, "INVALID_GRAPH"),
            "line 1, column",
        ),
        mistake(
            JOBS,
            graph(&formless),
            (400, "INVALID_GRAPH"),
            "/graph/operators/0/predicate",
        ),
        mistake(
            JOBS,
            sql(&format!(
                "{SOURCE}{SINK}INSERT INTO results SELECT a.id FROM orders a JOIN orders b ON a.id = b.id"
            )),
            (422, "UNSUPPORTED_FEATURE"),
            "JOIN",
        ),
        mistake(
            JOBS,
            sql(&format!(
                "{SOURCE}{SINK}INSERT INTO results SELECT id FROM orders --{}",
                "x".repeat(2 << 20)
            )),
            (413, "REQUEST_TOO_LARGE"),
            "at most",
        ),
        mistake(JOBS, graph(&cycle), (400, "INVALID_GRAPH"), "/operators"),
        mistake(JOBS, graph(&dangling), (400, "INVALID_GRAPH"), "ordres"),
        mistake(
            ("POST", "/v1/jobs"),
            (JSON, r#"{"name": "running", "sql": "SELECT 1"}"#),
            (409, "ALREADY_EXISTS"),
            "running",
        ),
        mistake(
            job("/v1/jobs/runing"),
            NOTHING,
            (404, "UNKNOWN_JOB"),
            "runing",
        ),
        mistake(
            ("POST", "/v1/jobs/runing/pause"),
            NOTHING,
            (404, "UNKNOWN_JOB"),
            "runing",
        ),
        mistake(
            ("POST", "/v1/jobs/running/stop?drian=true"),
            NOTHING,
            (400, "INVALID_REQUEST"),
            "drian",
        ),
        mistake(
            job("/v1/jobs/running/operators/none/state"),
            NOTHING,
            (404, "UNKNOWN_OPERATOR"),
            "none",
        ),
        mistake(
            job("/v1/jobs/running/operators/results/state"),
            NOTHING,
            (404, "UNKNOWN_OPERATOR"),
            "keeps no state",
        ),
        mistake(
            ("DELETE", "/v1/jobs/running"),
            NOTHING,
            (409, "CONFLICT"),
            "job \\\"running\\\" is RUNNING",
        ),
        mistake(
            job("/v1/jobs/running/offsets?epoch=999999999"),
            NOTHING,
            (404, "UNKNOWN_CHECKPOINT"),
            "999999999",
        ),
        mistake(
            ("POST", "/v1/sql/explain"),
            (JSON, r#"{"sql": "SELEC 1"}"#),
            (400, "SQL_SYNTAX"),
            "SELEC",
        ),
    ]
}

#[test]
fn every_mistake_is_told_with_its_code_and_its_place_and_nothing_else_is_lost() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        client.create_topic("orders", 2).await.unwrap();
        client.produce("orders", &[json!({"id": 7})]).await.unwrap();
        let running = format!("{SOURCE}{SINK}INSERT INTO results SELECT id FROM orders");
        client.create_job("running", &running).await.unwrap();
        wait_for(&client, "running", "RUNNING").await;
        while client.job("running").await.unwrap()["last_checkpoint"].is_null() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let mut wrong = Vec::new();
        for node in [cluster.coordinator(), cluster.worker(0)] {
            for mistake in of_topics().into_iter().chain(of_records()).chain(of_jobs()) {
                if let Some(answer) = unexpected_answer(node, &mistake).await {
                    wrong.push(format!("{} {}: {answer}", mistake.method, mistake.path));
                }
            }
        }
        assert!(wrong.is_empty(), "{} answers: {wrong:#?}", wrong.len());
        assert_eq!(all_values(&client, "orders").await, [json!({"id": 7})]);
        assert_eq!(client.job("running").await.unwrap()["state"], "RUNNING");
    });
}

/// What is wrong with the answer to a mistake, if something is.
async fn unexpected_answer(node: &str, mistake: &Mistake) -> Option<String> {
    let method = reqwest::Method::from_bytes(mistake.method.as_bytes()).unwrap();
    let mut request = reqwest::Client::new()
        .request(method, format!("{node}{}", mistake.path))
        .body(mistake.body.clone());
    if !mistake.content_type.is_empty() {
        request = request.header("content-type", mistake.content_type);
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let content_type = response.headers().get("content-type").cloned();
    let text = response.text().await.unwrap();
    let problem: Value = serde_json::from_str(&text).unwrap_or_default();
    let said = format!(
        "{} {} {}",
        problem["detail"], problem["hint"], problem["at"]
    );
    let right = status == mistake.status
        && content_type.is_some_and(|found| found == "application/problem+json")
        && problem["status"] == mistake.status
        && problem["code"] == mistake.code
        && problem["title"].is_string()
        && problem["hint"]
            .as_str()
            .is_some_and(|hint| !hint.is_empty())
        && said.contains(mistake.telling);
    (!right).then(|| {
        format!(
            "wanted {} {} about \"{}\", got {status} {text}",
            mistake.status, mistake.code, mistake.telling
        )
    })
}

/// The code of the answer to a request, with its status.
async fn refusal(request: reqwest::RequestBuilder) -> (u16, String) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let problem: Value = serde_json::from_str(&text).unwrap_or_default();
    let code = problem["code"].as_str().unwrap_or(&text).to_owned();
    (status, code)
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

async fn wait_for_epoch_above(client: &Client, job: &str, epoch: u64) -> u64 {
    let waiting = async {
        loop {
            let description = client.job(job).await.unwrap();
            match description["last_checkpoint"]["epoch"].as_u64() {
                Some(newest) if newest > epoch => return newest,
                Some(_) | None => tokio::time::sleep(LOOK).await,
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.expect("no epoch is completed")
}

/// What is right in itself and comes at the wrong time.
#[test]
fn what_comes_too_late_or_twice_is_refused_with_its_code() {
    const COUNTS: &str = "
        CREATE TABLE orders (id BIGINT) WITH (connector = 'topic', topic = 'orders');
        CREATE TABLE counts (id BIGINT PRIMARY KEY, n BIGINT) WITH (connector = 'topic', topic = 'counts');
        INSERT INTO counts SELECT id, count(*) AS n FROM orders GROUP BY id;";
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    let http = reqwest::Client::new();
    let at = |path: &str| format!("{}{path}", cluster.coordinator());
    talk(async {
        client.create_topic("orders", 1).await.unwrap();
        // A key is for one request.
        let produce = |line: &'static str| {
            let request = http.post(at("/v1/topics/orders/records"));
            let request = request.header("content-type", NDJSON);
            request.header("idempotency-key", "k").body(line)
        };
        for _ in 0..2 {
            assert_eq!(produce("{\"id\": 1}\n").send().await.unwrap().status(), 200);
        }
        let other = refusal(produce("{\"id\": 2}\n")).await;
        assert_eq!(other, refused(409, "CONFLICT"));
        assert_eq!(all_values(&client, "orders").await.len(), 1);

        let job = json!({"name": "counts", "sql": COUNTS, "checkpoint_interval_ms": 100});
        let _: Value = client.post("/v1/jobs", &job).await.unwrap();
        let first = wait_for_epoch_above(&client, "counts", 0).await;
        wait_for_epoch_above(&client, "counts", first + 15).await;
        let job = client.job("counts").await.unwrap();
        let operators = job["graph"]["operators"].as_array().unwrap();
        let counts = operators
            .iter()
            .find(|operator| operator["type"] == "aggregate");
        let state = format!(
            "/v1/jobs/counts/operators/{}/state",
            counts.unwrap()["id"].as_str().unwrap()
        );
        for path in ["/v1/jobs/counts/offsets", &state] {
            let gone = refusal(http.get(at(&format!("{path}?epoch={first}")))).await;
            assert_eq!(gone, refused(410, "EPOCH_GONE"), "{path}");
            assert_eq!(http.get(at(path)).send().await.unwrap().status(), 200);
        }

        let _: Value = client
            .post("/v1/jobs/counts/pause", &json!({}))
            .await
            .unwrap();
        wait_for(&client, "counts", "PAUSED").await;
        let live = refusal(http.get(at(&format!("{state}?consistency=live")))).await;
        assert_eq!(live, refused(409, "CONFLICT"));
        let _: Value = client
            .post("/v1/jobs/counts/cancel", &json!({}))
            .await
            .unwrap();
        wait_for(&client, "counts", "CANCELLED").await;
        let over = refusal(http.post(at("/v1/jobs/counts/resume"))).await;
        assert_eq!(over, refused(409, "CONFLICT"));
    });
}

/// Who is away is named: the leader of a partition is not the coordinator.
#[test]
fn a_node_that_is_away_is_called_what_it_is() {
    let mut cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(async { drop(client.create_topic("orders", 2).await.unwrap()) });
    let coordinator = cluster.coordinator().to_owned();
    let worker = cluster.worker(1).to_owned();
    cluster.kill_worker(0).unwrap();
    talk(async {
        let http = reqwest::Client::new();
        let mut answers = Vec::new();
        for partition in 0..2 {
            let path = format!("{coordinator}/v1/topics/orders/partitions/{partition}/records");
            let response = http.get(path).send().await.unwrap();
            let status = response.status().as_u16();
            let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            answers.push((status, body["code"].as_str().map(str::to_owned)));
        }
        answers.sort();
        let away = (503, Some("LEADER_UNAVAILABLE".to_owned()));
        assert_eq!(answers, [(200, None), away]);
    });
    cluster.kill_coordinator().unwrap();
    talk(async {
        let code = refusal(reqwest::Client::new().get(format!("{worker}/v1/jobs"))).await;
        assert_eq!(code, refused(503, "COORDINATOR_UNAVAILABLE"));
    });
}

/// The coordinator's disk is full: jobs are refused, those there are stay, and once there is room the refused
/// one is taken.
#[test]
fn a_full_disk_of_the_coordinator_refuses_jobs_and_loses_none() {
    let mut cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    cluster.kill_coordinator().unwrap();
    cluster.limit_files_of_coordinator(Some(512 << 10));
    cluster.restart_coordinator().unwrap();
    let deploy = async |number: usize| {
        let sql = format!(
            "CREATE TABLE clicks WITH (connector = 'generator', generator = 'clickstream', rate = '1');
             CREATE TABLE nothing WITH (connector = 'blackhole');
             INSERT INTO nothing SELECT session FROM clicks -- {}",
            "x".repeat(20_000)
        );
        let job = json!({"name": format!("job{number}"), "sql": sql, "parallelism": 1});
        client.post::<Value>("/v1/jobs", &job).await
    };
    let names = async || -> Vec<String> {
        let jobs: Value = client.get("/v1/jobs").await.unwrap();
        let jobs = jobs["jobs"].as_array().unwrap().iter();
        let mut names: Vec<String> = jobs
            .map(|job| job["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let mut taken = Vec::new();
    talk(async {
        for number in 0.. {
            assert!(number < 100, "the disk is never full");
            match deploy(number).await {
                Ok(_) => taken.push(format!("job{number}")),
                Err(error) => match error.code() {
                    // The one that found the disk full; whether it is taken is not known yet.
                    Some(ErrorCode::Unknown) => {}
                    code => {
                        assert_eq!(code, Some(ErrorCode::DiskFull), "{error}");
                        break;
                    }
                },
            }
        }
        taken.sort();
        assert_eq!(names().await, taken);
    });
    cluster.kill_coordinator().unwrap();
    cluster.limit_files_of_coordinator(None);
    cluster.restart_coordinator().unwrap();
    talk(async {
        let kept = names().await;
        let lost: Vec<&String> = taken.iter().filter(|name| !kept.contains(name)).collect();
        assert!(lost.is_empty() && kept.len() <= taken.len() + 1, "{kept:?}");
        deploy(100).await.unwrap();
        assert_eq!(names().await.len(), kept.len() + 1);
    });
}

/// A request whose body is on its way takes the room that another one would need. Nothing of either is lost.
#[test]
fn what_is_more_than_there_is_memory_for_is_to_come_again() {
    // An eighth of it is for requests, which take three times their bodies.
    let cluster = Cluster::start_with(1, &["--memory", "64MiB"]).unwrap();
    let client = cluster.client().unwrap();
    let at = format!("{}/v1/topics/orders/records", cluster.worker(0));
    let lines = |count: usize| format!("{{\"note\": \"{}\"}}\n", "x".repeat(985)).repeat(count);
    let (slow, other) = (lines(2_000), lines(1_000));
    talk(async {
        client.create_topic("orders", 1).await.unwrap();
        let host = cluster.worker(0).trim_start_matches("http://");
        let mut connection = TcpStream::connect(host).unwrap();
        write!(
            connection,
            "POST /v1/topics/orders/records HTTP/1.1\r\nhost: {host}\r\ncontent-type: {NDJSON}\r\n\
             content-length: {}\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n",
            slow.len()
        )
        .unwrap();
        // Once the worker asks for the body it has room for it.
        let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
        let mut asked = vec![0; go_on.len()];
        connection.read_exact(&mut asked).unwrap();
        assert_eq!(asked, go_on);
        connection.write_all(&slow.as_bytes()[..1_000]).unwrap();
        let http = reqwest::Client::new();
        let send = || {
            let request = http.post(&at).header("content-type", NDJSON);
            request.body(other.clone()).send()
        };
        let refused = send().await.unwrap();
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.headers()["retry-after"], "1");
        let problem: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
        assert_eq!(problem["code"], "OVERLOADED");

        let before = all_values(&client, "orders").await.len();
        connection.write_all(&slow.as_bytes()[1_000..]).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(send().await.unwrap().status(), 200);
        let after = all_values(&client, "orders").await.len();
        assert_eq!(after - before, 3_000);
    });
}
