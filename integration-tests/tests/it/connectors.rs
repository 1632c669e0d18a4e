//! Every way into a job and out of it, through real processes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use common::client::Client;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{LOOK, PATIENCE, all_values, talk, wait_for};

/// An endpoint that rows are posted to. It takes the first request and loses its answer, refuses the second for
/// now, and takes all that follow.
struct Endpoint {
    url: String,
    received: Arc<Mutex<Bodies>>,
}

/// Every body that came, in order, and whether the sender was told that it had arrived.
type Bodies = Vec<(Vec<u8>, bool)>;

impl Endpoint {
    fn open() -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/rows?from=test", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Bodies::new()));
        let taken = Arc::clone(&received);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                Endpoint::serve(connection, &taken);
            }
        });
        Endpoint { url, received }
    }

    fn serve(mut connection: TcpStream, received: &Mutex<Bodies>) {
        // Who is killed while it sends has sent nothing.
        let Some(body) = Endpoint::read(&connection) else {
            return;
        };
        let mut received = received.lock().unwrap();
        let answer = match received.len() {
            0 => "",
            1 => "HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            _ => "HTTP/1.1 204 Taken\r\nConnection: close\r\n\r\n",
        };
        received.push((body, answer.contains("204")));
        connection.write_all(answer.as_bytes()).unwrap_or_default();
    }

    fn read(connection: &TcpStream) -> Option<Vec<u8>> {
        let mut reader = BufReader::new(connection);
        let mut length = 0;
        let mut line = String::new();
        while reader.read_line(&mut line).ok()? > 0 && line.trim() != "" {
            let header = line.to_ascii_lowercase();
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some(body)
    }

    /// The rows that came, request by request, and whether they were accepted.
    fn requests(&self) -> Vec<(Vec<Value>, bool)> {
        let received = self.received.lock().unwrap();
        let rows = |body: &[u8]| serde_json::from_slice::<Vec<Value>>(body).unwrap();
        let requests = received.iter();
        requests.map(|(body, taken)| (rows(body), *taken)).collect()
    }

    /// Idempotency key → the order it came with, of all requests; a key never stands for two rows.
    fn orders(&self) -> BTreeMap<String, i64> {
        let mut orders = BTreeMap::new();
        for (rows, _) in self.requests() {
            for row in rows {
                let key = row["idempotency_key"].as_str().unwrap().to_owned();
                let order = row["id"].as_i64().unwrap();
                let known = *orders.entry(key).or_insert(order);
                assert_eq!(known, order, "{row}");
            }
        }
        orders
    }

    /// Waits until each of so many orders was accepted.
    async fn wait_for_orders(&self, orders: i64) {
        let wanted: BTreeSet<i64> = (0..orders).collect();
        let mut taken = BTreeSet::new();
        let waiting = async {
            while taken != wanted {
                tokio::time::sleep(LOOK).await;
                let accepted = self.requests().into_iter().filter(|(_, taken)| *taken);
                let rows = accepted.flat_map(|(rows, _)| rows);
                taken = rows.map(|row| row["id"].as_i64().unwrap()).collect();
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("{} of {orders} orders came", taken.len()));
    }
}

async fn order(client: &Client, ids: std::ops::Range<i64>) {
    let orders: Vec<Value> = ids.map(|id| json!({"id": id, "amount": id * 2})).collect();
    client.produce("orders", &orders).await.unwrap();
}

/// At least once: what is not acknowledged comes again, as it was and under the same keys; what came after the
/// last checkpoint of a worker that was killed comes again under others.
#[test]
fn a_webhook_gets_every_row_and_repetitions_of_a_request_have_its_keys() {
    let mut cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    let endpoint = Endpoint::open();
    talk(async {
        client.create_topic("orders", 1).await.unwrap();
        let sql = format!(
            "CREATE TABLE orders (id BIGINT, amount BIGINT) WITH (connector = 'topic', topic = 'orders');
             CREATE TABLE told WITH (connector = 'webhook', url = '{}', max_rows = '10');
             INSERT INTO told SELECT id, amount FROM orders WHERE amount >= 0;",
            endpoint.url
        );
        client.create_job("told", &sql).await.unwrap();
        order(&client, 0..100).await;
        endpoint.wait_for_orders(100).await;
    });
    let requests = endpoint.requests();
    assert_eq!(requests[0].0.len(), 10);
    assert_eq!(requests[0].0, requests[1].0, "its answer was lost");
    assert_eq!(requests[1].0, requests[2].0, "it was refused for now");
    assert_eq!(endpoint.orders().len(), 100, "as many keys as rows");

    cluster.kill_worker(0).unwrap();
    cluster.restart_worker(0).unwrap();
    talk(async {
        wait_for(&client, "told", "RUNNING").await;
        order(&client, 100..120).await;
        endpoint.wait_for_orders(120).await;
    });
    assert!(endpoint.orders().len() >= 120);
}

/// Files that are packed are read as if they were not, one by one and as a directory.
#[test]
fn packed_files_are_unpacked() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let lines = |numbers: std::ops::Range<i64>| -> String {
        numbers.map(|n| format!("{{\"n\": {n}}}\n")).collect()
    };
    pack(&path.join("a.ndjson.gz"), lines(0..10_000).as_bytes());
    std::fs::write(path.join("b.ndjson"), lines(10_000..10_010)).unwrap();
    talk(async {
        let job = |from: &str, to: &str| {
            format!(
                "CREATE TABLE numbers (n BIGINT) WITH (connector = 'files', path = '{}/{from}');
                 CREATE TABLE found WITH (connector = 'topic', topic = '{to}');
                 INSERT INTO found SELECT n FROM numbers;",
                path.display()
            )
        };
        for (name, from, count) in [("one", "a.ndjson.gz", 10_000), ("all", "", 10_010)] {
            client.create_job(name, &job(from, name)).await.unwrap();
            wait_for(&client, name, "FINISHED").await;
            let found = all_values(&client, name).await;
            let mut found: Vec<i64> = found.iter().map(|v| v["n"].as_i64().unwrap()).collect();
            found.sort_unstable();
            assert_eq!(found, (0..count).collect::<Vec<i64>>(), "{name}");
        }
    });
}

fn pack(path: &std::path::Path, bytes: &[u8]) {
    let file = std::fs::File::create(path).unwrap();
    let mut packer = std::process::Command::new("gzip")
        .stdin(std::process::Stdio::piped())
        .stdout(file)
        .spawn()
        .unwrap();
    packer.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(packer.wait().unwrap().success());
}

/// The rows of a topic, in an order of their own.
async fn sorted(client: &Client, topic: &str) -> Vec<String> {
    let values = all_values(client, topic).await;
    let mut rows: Vec<String> = values.iter().map(Value::to_string).collect();
    rows.sort();
    rows
}

/// What is written as records of a format and read from them is what it was.
#[test]
fn records_of_every_format_go_through_a_topic() {
    const PAYMENTS: &str =
        "payment BIGINT, merchant VARCHAR, amount DOUBLE, is_fraud BOOLEAN, ts TIMESTAMP(3)";
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        for format in ["json", "csv", "msgpack"] {
            let written = format!(
                "CREATE TABLE made WITH (connector = 'generator', generator = 'payments', rows = '2000');
                 CREATE TABLE written WITH (connector = 'topic', topic = '{format}', format = '{format}');
                 INSERT INTO written SELECT payment, merchant, amount, is_fraud, ts FROM made;"
            );
            let read = format!(
                "CREATE TABLE written ({PAYMENTS})
                 WITH (connector = 'topic', topic = '{format}', format = '{format}', 'scan.bounded.mode' = 'latest');
                 CREATE TABLE found WITH (connector = 'topic', topic = 'found-{format}');
                 INSERT INTO found SELECT * FROM written;"
            );
            for (name, sql) in [("write", written), ("read", read)] {
                let name = format!("{name}-{format}");
                client.create_job(&name, &sql).await.unwrap();
                let job = wait_for(&client, &name, "FINISHED").await;
                assert_eq!(job["dead_letters"], 0, "{name}");
            }
        }
        let as_json = sorted(&client, "json").await;
        assert_eq!(as_json.len(), 2_000);
        for format in ["json", "csv", "msgpack"] {
            assert_eq!(
                sorted(&client, &format!("found-{format}")).await,
                as_json,
                "{format}"
            );
        }
        // A record that is no JSON comes as its bytes to who reads it as it is.
        for format in ["csv", "msgpack"] {
            let raw = all_values(&client, format).await;
            let is_bytes = |value: &Value| value["base64"].is_string();
            assert!(raw.iter().all(is_bytes), "{format}: {}", raw[0]);
        }
    });
}

/// Every stream that can be generated, through a job that lets some of it pass: exactly the rows for which it is
/// true.
#[test]
fn every_generator_feeds_a_filter() {
    type Passes = fn(&Value) -> bool;
    let streams: [(&str, &str, Passes); 6] = [
        ("nexmark_person", "state = 'OR'", |row| row["state"] == "OR"),
        ("nexmark_auction", "category > 12", |row| {
            row["category"].as_i64() > Some(12)
        }),
        ("nexmark_bid", "price < 1000", |row| {
            row["price"].as_i64() < Some(1_000)
        }),
        ("clickstream", "action = 'purchase'", |row| {
            row["action"] == "purchase"
        }),
        ("payments", "amount > 50.0", |row| {
            row["amount"].as_f64() > Some(50.0)
        }),
        ("sensors", "NOT is_anomaly AND sensor % 2 = 0", |row| {
            row["is_anomaly"] == false
                && row["sensor"].as_i64().is_some_and(|sensor| sensor % 2 == 0)
        }),
    ];
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        for (stream, predicate, passes) in streams {
            let job = |name: &str, filter: &str| {
                format!(
                    "CREATE TABLE made WITH (connector = 'generator', generator = '{stream}', rows = '1000', seed = '3');
                     CREATE TABLE kept WITH (connector = 'topic', topic = '{name}');
                     INSERT INTO kept SELECT * FROM made {filter};"
                )
            };
            let (all, some) = (format!("{stream}-all"), format!("{stream}-some"));
            client.create_job(&all, &job(&all, "")).await.unwrap();
            let filter = format!("WHERE {predicate}");
            client
                .create_job(&some, &job(&some, &filter))
                .await
                .unwrap();
            for name in [&all, &some] {
                wait_for(&client, name, "FINISHED").await;
            }
            let rows = all_values(&client, &all).await;
            assert_eq!(rows.len(), 1_000, "{stream}");
            let mut expected: Vec<String> = rows
                .iter()
                .filter(|row| passes(row))
                .map(Value::to_string)
                .collect();
            expected.sort();
            assert!(
                (1..1_000).contains(&expected.len()),
                "{stream}: {}",
                rows[0]
            );
            assert_eq!(sorted(&client, &some).await, expected, "{stream}");
        }
    });
}

/// What cannot be read is kept with its reason, dropped, or the end of the job, as the table says.
#[test]
fn a_bad_record_is_a_dead_letter_or_dropped_or_fails_the_job() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        client.create_topic("orders", 1).await.unwrap();
        let lines = [
            json!({"id": 1}),
            json!({"id": "x"}),
            json!([]),
            json!({"id": 2}),
        ];
        client.produce("orders", &lines).await.unwrap();
        let sql = |option: &str| {
            format!(
                "CREATE TABLE orders (id BIGINT)
                 WITH (connector = 'topic', topic = 'orders', 'scan.bounded.mode' = 'latest', bad_records = '{option}');
                 CREATE TABLE kept WITH (connector = 'topic', topic = 'kept-{option}');
                 INSERT INTO kept SELECT id FROM orders;"
            )
        };
        for (option, letters) in [("dead_letter", 2), ("drop", 0)] {
            client.create_job(option, &sql(option)).await.unwrap();
            wait_for(&client, option, "FINISHED").await;
            let kept = all_values(&client, &format!("kept-{option}")).await;
            assert_eq!(kept, [json!({"id": 1}), json!({"id": 2})], "{option}");
            let letter = all_values(&client, &format!("{option}.dead-letters")).await;
            assert_eq!(letter.len(), letters, "{option}: {letter:?}");
        }
        client.create_job("fail", &sql("fail")).await.unwrap();
        let reason = wait_for_failure(&client, "fail").await;
        assert!(reason.contains("orders"), "{reason}");
        assert!(all_values(&client, "kept-fail").await.is_empty());
    });
}

async fn wait_for_failure(client: &Client, job: &str) -> String {
    let waiting = async {
        loop {
            let description = client.job(job).await.unwrap();
            if description["state"] == "FAILED" {
                return description["reason"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.expect("the job does not fail")
}

/// A job reads from where it is told to begin.
#[test]
fn a_job_begins_where_it_is_told_to() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        client.create_topic("numbers", 2).await.unwrap();
        let records: Vec<Value> = (0..20)
            .map(|n| json!({"value": {"n": n}, "partition": n / 10, "timestamp": 1_000 * n}))
            .collect();
        let body = json!({"records": records});
        let _: Value = client
            .post("/v1/topics/numbers/records", &body)
            .await
            .unwrap();
        for (name, begin, wanted) in [
            ("earliest", "", (0..20).collect::<Vec<i64>>()),
            (
                "offsets",
                "'scan.startup.mode' = 'offsets', 'scan.startup.offsets' = 'partition:1,offset:7',",
                (0..10).chain(17..20).collect(),
            ),
            (
                "timestamp",
                "'scan.startup.mode' = 'timestamp', 'scan.startup.timestamp' = '8000',",
                (8..20).collect(),
            ),
            ("latest", "'scan.startup.mode' = 'latest',", Vec::new()),
        ] {
            let sql = format!(
                "CREATE TABLE numbers (n BIGINT)
                 WITH (connector = 'topic', topic = 'numbers', {begin} 'scan.bounded.mode' = 'latest');
                 CREATE TABLE found WITH (connector = 'topic', topic = 'from-{name}');
                 INSERT INTO found SELECT n FROM numbers;"
            );
            client.create_job(name, &sql).await.unwrap();
            wait_for(&client, name, "FINISHED").await;
            let found = all_values(&client, &format!("from-{name}")).await;
            let mut found: Vec<i64> = found.iter().map(|v| v["n"].as_i64().unwrap()).collect();
            found.sort_unstable();
            assert_eq!(found, wanted, "{name}");
        }
    });
}
