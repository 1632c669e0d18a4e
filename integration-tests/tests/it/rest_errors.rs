//! Every mistake a user of the REST interface can make, and what is said about it: by both kinds of node alike.

use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{all_values, talk, wait_for};

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
            (JSON, r#"{"name": "t", "replication_factor": 2}"#),
            (422, "UNSUPPORTED_REPLICATION_FACTOR"),
            "1",
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
