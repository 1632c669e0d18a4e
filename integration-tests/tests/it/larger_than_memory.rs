//! Jobs whose state is far larger than what their worker may keep of it in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use common::client::Client;
use common::error::ErrorCode;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{PATIENCE, talk, wait_for};

const KEYS: i64 = 20_000;
/// Bytes of text that the state keeps per key.
const NOTE: usize = 3_000;
const STATE_BYTES: u64 = KEYS as u64 * NOTE as u64;
/// A quarter of the worker's memory is for the tables of its tasks.
const TABLE_BYTES: u64 = (64 << 20) / 4;
/// Keys sent at once.
const PORTION: i64 = 500;

const TOTALS: &str = "
    CREATE TABLE events (k BIGINT, n BIGINT, note VARCHAR)
    WITH (connector = 'topic', topic = 'events', format = 'json');
    CREATE TABLE totals (k BIGINT PRIMARY KEY, events BIGINT, total BIGINT, length BIGINT)
    WITH (connector = 'topic', topic = 'totals', format = 'json');
    INSERT INTO totals
    SELECT k, count(*), sum(n), CAST(character_length(max(note)) AS BIGINT) FROM events GROUP BY k;";

const WINDOWS: &str = "
    CREATE TABLE events (k BIGINT, n BIGINT, note VARCHAR, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND)
    WITH (connector = 'topic', topic = 'events', format = 'json');
    CREATE TABLE totals WITH (connector = 'topic', topic = 'totals', format = 'json');
    INSERT INTO totals
    SELECT k, count(*) AS events, sum(n) AS total,
           CAST(character_length(max(note)) AS BIGINT) AS length
    FROM TUMBLE(events, ts, INTERVAL '10' SECOND)
    GROUP BY window_start, window_end, k;";

/// Per key: events, total, length of the note.
type Totals = BTreeMap<i64, (i64, i64, i64)>;

/// One worker with as little memory as it takes, and a job on it.
struct Job {
    cluster: Cluster,
    client: Client,
    expected: Totals,
    /// What came out until now, and how far it was read.
    found: Totals,
    offset: i64,
}

impl Job {
    fn start(sql: &str) -> Job {
        let cluster = Cluster::start_with(1, &["--memory", "64MiB"]).unwrap();
        let client = cluster.client().unwrap();
        talk(async {
            client.create_topic("events", 1).await.unwrap();
            let job = json!({"name": "totals", "sql": sql, "checkpoint_interval_ms": 200});
            let _: Value = client.post("/v1/jobs", &job).await.unwrap();
            wait_for(&client, "totals", "RUNNING").await;
        });
        Job {
            cluster,
            client,
            expected: Totals::new(),
            found: Totals::new(),
            offset: 0,
        }
    }

    /// One event per key.
    async fn send(&mut self, keys: impl Iterator<Item = i64>, note: usize) {
        let note = "x".repeat(note);
        let keys: Vec<i64> = keys.collect();
        for portion in keys.chunks(PORTION as usize) {
            let events: Vec<Value> = portion
                .iter()
                .map(|k| json!({"k": k, "n": k * 3 + 1, "note": note, "ts": k % 10_000}))
                .collect();
            self.client.produce("events", &events).await.unwrap();
            for k in portion {
                let total = self.expected.entry(*k).or_default();
                let length = total.2.max(i64::try_from(note.len()).unwrap());
                *total = (total.0 + 1, total.1 + k * 3 + 1, length);
            }
        }
    }

    /// Waits until a completed checkpoint has so much state, of which at no time much is in memory.
    async fn wait_for_state(&self, bytes: u64) {
        let waiting = async {
            loop {
                let job = self.client.job("totals").await;
                let in_memory = job.as_ref().map_or(0, memory_of_tasks);
                assert!(in_memory < 2 * TABLE_BYTES, "{in_memory} bytes: {job:?}");
                let state = job.map(|job| job["last_checkpoint"]["state_bytes"].as_u64());
                if state.ok().flatten().is_some_and(|state| state >= bytes) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(2 * PATIENCE, waiting).await;
        waited.expect("the state is never completed");
    }

    /// Waits until what is committed is what should have come out.
    async fn wait_for_output(&mut self) {
        let reading = async {
            while self.found != self.expected {
                let fetched = self
                    .client
                    .fetch("totals", 0, self.offset, 5_000, 1_000)
                    .await;
                // The worker may not be back yet.
                let Ok(fetched) = fetched else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                self.offset = fetched.next_offset;
                for value in fetched
                    .records
                    .into_iter()
                    .filter_map(|record| record.value)
                {
                    let number = |name: &str| value[name].as_i64().unwrap();
                    let total = (number("events"), number("total"), number("length"));
                    self.found.insert(number("k"), total);
                }
            }
        };
        let read = tokio::time::timeout(2 * PATIENCE, reading).await;
        if read.is_err() {
            let wrong = self
                .expected
                .iter()
                .find(|(k, total)| self.found.get(k) != Some(total));
            panic!("{} keys came out, first wrong: {wrong:?}", self.found.len());
        }
    }

    fn kill_and_restart(&mut self) {
        self.cluster.kill_worker(0).unwrap();
        self.cluster.restart_worker(0).unwrap();
    }

    async fn operator(&self) -> String {
        let job = self.client.job("totals").await.unwrap();
        let operators = job["graph"]["operators"].as_array().unwrap();
        let aggregate = operators
            .iter()
            .find(|operator| operator["type"].as_str().unwrap().contains("aggregate"))
            .unwrap();
        aggregate["id"].as_str().unwrap().to_owned()
    }
}

fn memory_of_tasks(job: &Value) -> u64 {
    let stages = job["stages"].as_array().into_iter().flatten();
    let tasks = stages.flat_map(|stage| stage["tasks"].as_array().into_iter().flatten());
    tasks
        .filter_map(|task| task["state_memory_bytes"].as_u64())
        .sum()
}

const _: () = assert!(STATE_BYTES > 3 * TABLE_BYTES);

#[test]
fn totals_of_more_keys_than_fit_into_memory_survive_a_kill() {
    let mut job = Job::start(TOTALS);
    talk(async {
        job.send(0..KEYS, NOTE).await;
        job.wait_for_state(STATE_BYTES).await;
    });
    job.kill_and_restart();
    talk(async {
        // Every key is read back, in another order, and some are new.
        job.send((0..KEYS).rev().filter(|k| k % 4 != 0), 0).await;
        job.send(KEYS..KEYS + 1_000, 10).await;
        job.wait_for_output().await;

        let operator = job.operator().await;
        for k in [0, 7, KEYS - 1, KEYS + 999] {
            let answer = job.client.state("totals", &operator, &json!(k)).await;
            let answer = answer.unwrap();
            let entry = &answer["entries"][0];
            assert_eq!(entry["key"]["k"], json!(k), "{answer}");
            assert!(entry["value"].to_string().contains("xxxxx"));
        }
        let path = format!("/v1/jobs/totals/operators/{operator}/state?prefix=1234&limit=100");
        let answer: Value = job.client.get(&path).await.unwrap();
        let found = answer["entries"].as_array().unwrap().iter();
        let keys: Vec<i64> = found
            .map(|entry| entry["key"]["k"].as_i64().unwrap())
            .collect();
        let expected: Vec<i64> = std::iter::once(1_234).chain(12_340..12_350).collect();
        assert_eq!(keys, expected);

        // Pages go on where the last one ended, whichever checkpoints completed meanwhile.
        let mut keys = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/v1/jobs/totals/operators/{operator}/state?limit=5000{after}");
            let page: Value = job.client.get(&path).await.unwrap();
            let entries = page["entries"].as_array().unwrap().iter();
            keys.extend(entries.map(|entry| entry["key"]["k"].as_i64().unwrap()));
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        keys.sort_unstable();
        let expected: Vec<i64> = (0..KEYS + 1_000).collect();
        assert!(
            keys == expected,
            "{} keys of {}",
            keys.len(),
            expected.len()
        );

        // A job that does not run is read from the disk.
        let key = json!(KEYS - 1);
        let running = job.client.state("totals", &operator, &key).await.unwrap();
        let path = "/v1/jobs/totals/pause";
        let _: Value = job.client.post(path, &json!({})).await.unwrap();
        loop {
            let described = job.client.job("totals").await.unwrap();
            if described["state"] == "PAUSED" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let paused = job.client.state("totals", &operator, &key).await.unwrap();
        assert_eq!(paused["entries"], running["entries"]);
        assert!(paused["epoch"].as_u64() >= running["epoch"].as_u64());
        let path = format!("/v1/jobs/totals/operators/{operator}/state?consistency=live");
        let refused = job.client.get::<Value>(&path).await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::Conflict));
    });
}

#[test]
fn a_window_larger_than_memory_comes_out_whole_after_a_kill() {
    let mut job = Job::start(WINDOWS);
    talk(async {
        job.send(0..KEYS, NOTE).await;
        job.wait_for_state(STATE_BYTES).await;
    });
    job.kill_and_restart();
    talk(async {
        job.send((0..KEYS).filter(|k| k % 5 == 0), 0).await;
        // Closes the window, and stays in one that does not.
        let end = json!({"k": -1, "n": 0, "note": "", "ts": 60_000});
        job.client.produce("events", &[end]).await.unwrap();
        job.wait_for_output().await;
    });
}
