//! What an operator does to a cluster that runs: pausing, looking, configuring, and running out of room.

use std::process::Command;
use std::time::Duration;

use common::client::Client;
use common::error::ErrorCode;
use integration_tests::cluster::Cluster;
use integration_tests::process::{Process, binary};
use serde_json::{Value, json};

use crate::steps::{LOOK, PATIENCE, all_values, talk, wait_for};

const COUNTS: &str = "
    CREATE TABLE orders (shop BIGINT) WITH (connector = 'topic', topic = 'orders');
    CREATE TABLE counts (shop BIGINT PRIMARY KEY, n BIGINT) WITH (connector = 'topic', topic = 'counts');
    INSERT INTO counts SELECT shop, count(*) AS n FROM orders GROUP BY shop;";

async fn order(client: &Client, count: usize) {
    let orders = vec![json!({"shop": 7}); count];
    client.produce("orders", &orders).await.unwrap();
}

/// Waits until a question has this answer.
async fn until<T: PartialEq + std::fmt::Debug>(wanted: T, look: impl AsyncFn() -> T) {
    let mut seen = None;
    let waiting = async {
        loop {
            let now = look().await;
            if now == wanted {
                return;
            }
            seen = Some(now);
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("wanted {wanted:?}, it is still {seen:?}"));
}

/// The count that came out last; it may only grow.
async fn counted(client: &Client) -> i64 {
    let values = all_values(client, "counts").await;
    let counts: Vec<i64> = values.iter().map(|v| v["n"].as_i64().unwrap()).collect();
    assert!(counts.is_sorted_by(|a, b| a < b), "{counts:?}");
    counts.last().copied().unwrap_or(0)
}

async fn tell(client: &Client, job: &str, what: &str) -> Value {
    let path = format!("/v1/jobs/{job}/{what}");
    client.post(&path, &json!({})).await.unwrap()
}

/// A job that is paused reads nothing, also over a restart of its worker; resumed, it counts on; cancelled, it
/// is over.
#[test]
fn a_job_is_paused_resumed_and_cancelled() {
    let mut cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        client.create_topic("orders", 1).await.unwrap();
        client.create_job("counts", COUNTS).await.unwrap();
        order(&client, 10).await;
        until(10, async || counted(&client).await).await;
        tell(&client, "counts", "pause").await;
        let paused = wait_for(&client, "counts", "PAUSED").await;
        assert_eq!(paused["desired"], "paused");
    });
    cluster.kill_worker(0).unwrap();
    cluster.restart_worker(0).unwrap();
    talk(async {
        let produced = async || {
            client
                .produce("orders", &[json!({"shop": 7})])
                .await
                .is_ok()
        };
        until(true, produced).await;
        let description = client.job("counts").await.unwrap();
        assert_eq!(description["state"], "PAUSED");
        assert_eq!(counted(&client).await, 10);
        tell(&client, "counts", "resume").await;
        until(11, async || counted(&client).await).await;
        tell(&client, "counts", "cancel").await;
        wait_for(&client, "counts", "CANCELLED").await;
        order(&client, 5).await;
        assert_eq!(counted(&client).await, 11);
        let path = "/v1/jobs/counts";
        client.delete(path).await.unwrap();
        let gone = client.get::<Value>(path).await.unwrap_err();
        assert_eq!(gone.code(), Some(ErrorCode::UnknownJob));
    });
}

/// `consistency=live` shows what no completed epoch has yet, and says of no epoch that it is of it.
#[test]
fn live_state_is_ahead_of_every_completed_epoch() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        client.create_topic("orders", 1).await.unwrap();
        // No checkpoint while the test looks.
        let job = json!({
            "name": "counts", "sql": COUNTS, "checkpoint_interval_ms": 3_600_000,
            "config": {"checkpoint_timeout": "2h"},
        });
        let job: Value = client.post("/v1/jobs", &job).await.unwrap();
        let operators = job["graph"]["operators"].as_array().unwrap();
        let counts = operators
            .iter()
            .find(|operator| operator["type"] == "aggregate");
        let id = counts.unwrap()["id"].as_str().unwrap();
        let state = format!("/v1/jobs/counts/operators/{id}/state?key=7");
        wait_for(&client, "counts", "RUNNING").await;
        order(&client, 10).await;
        let live = async || {
            let path = format!("{state}&consistency=live");
            let state = client.get::<Value>(&path).await.unwrap_or_default();
            (
                state["entries"][0]["value"]["n"].clone(),
                state["epoch"].clone(),
            )
        };
        until((json!(10), Value::Null), live).await;
        // Not in an epoch, and so committed nowhere.
        let job = client.job("counts").await.unwrap();
        assert_eq!(job["last_checkpoint"], Value::Null);
        assert_eq!(counted(&client).await, 0);
        let completed = client.get::<Value>(&state).await.unwrap_err();
        assert_eq!(completed.code(), Some(ErrorCode::UnknownCheckpoint));
    });
}

/// The oldest records go when a topic is larger than it may be; the others keep their offsets.
#[test]
fn a_topic_keeps_so_many_bytes() {
    const BYTES: u64 = 1 << 20;
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        // What is too much is looked for four times within the time that records are kept: every ten seconds.
        let config = json!({"retention_bytes": BYTES, "retention_ms": 40_000});
        let topic = json!({"name": "clicks", "config": config});
        let _: Value = client.post("/v1/topics", &topic).await.unwrap();
        let padding = "x".repeat(1_000);
        for start in (0..5_000).step_by(100) {
            let lines: Vec<Value> = (start..start + 100)
                .map(|n| json!({"n": n, "padding": padding}))
                .collect();
            client.produce("clicks", &lines).await.unwrap();
        }
        let path = "/v1/topics/clicks/partitions/0/records?offset=earliest&max_records=10000";
        let mut page = Value::Null;
        let waiting = async {
            // Five megabytes came, one is kept, and a quarter of that goes at a time.
            while page["log_start_offset"].as_i64() < Some(3_500) {
                tokio::time::sleep(LOOK).await;
                page = client.get(path).await.unwrap();
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "it starts at {}", page["log_start_offset"]);
        let start = page["log_start_offset"].as_i64().unwrap();
        assert!(start < 4_200, "too much is gone: {start}");
        for record in page["records"].as_array().unwrap() {
            assert_eq!(record["offset"], record["value"]["n"]);
        }
        assert_eq!(page["records"][0]["offset"], start);
        let gone = client.fetch("clicks", 0, 0, 1, 0).await.unwrap_err();
        assert_eq!(gone.code(), Some(ErrorCode::OffsetOutOfRange));
        client
            .produce("clicks", &[json!({"n": 5_000})])
            .await
            .unwrap();
        let last = client.fetch("clicks", 0, 5_000, 1, 0).await.unwrap();
        assert_eq!(last.records[0].value, Some(json!({"n": 5_000})));
    });
}

/// A paused job will read on where it was: until it is cancelled, what comes after that is not too old.
#[test]
fn what_a_job_has_yet_to_read_is_kept_however_old_it_is() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        // Looked at every second.
        let config = json!({"retention_bytes": 256 << 10, "retention_ms": 4_000});
        let topic = json!({"name": "clicks", "config": config});
        let _: Value = client.post("/v1/topics", &topic).await.unwrap();
        let padding = "x".repeat(1_000);
        let send = async |range: std::ops::Range<i64>| {
            let lines: Vec<Value> = range.map(|n| json!({"n": n, "padding": padding})).collect();
            client.produce("clicks", &lines).await.unwrap();
        };
        let sql = "CREATE TABLE clicks (n BIGINT) WITH (connector = 'topic', topic = 'clicks');
            CREATE TABLE seen WITH (connector = 'topic', topic = 'seen');
            INSERT INTO seen SELECT n FROM clicks;";
        client.create_job("reader", sql).await.unwrap();
        wait_for(&client, "reader", "RUNNING").await;
        send(0..500).await;
        let _: Value = client
            .post("/v1/jobs/reader/pause", &json!({}))
            .await
            .unwrap();
        wait_for(&client, "reader", "PAUSED").await;
        let read = all_values(&client, "seen").await.len() as i64;
        for start in (500..2_000).step_by(100) {
            send(start..start + 100).await;
        }
        tokio::time::sleep(Duration::from_secs(8)).await;
        let start = || async {
            let path = "/v1/topics/clicks/partitions/0/records?offset=latest";
            let page: Value = client.get(path).await.unwrap();
            page["log_start_offset"].as_i64().unwrap()
        };
        assert!(
            start().await <= read,
            "of what comes after {read} some is gone"
        );
        let _: Value = client
            .post("/v1/jobs/reader/resume", &json!({}))
            .await
            .unwrap();
        let waiting = async {
            while all_values(&client, "seen").await.len() < 2_000 {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .expect("it reads on");
        let _: Value = client
            .post("/v1/jobs/reader/cancel", &json!({}))
            .await
            .unwrap();
        let waiting = async {
            while start().await < 1_500 {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .expect("nothing is needed any more");
    });
}

/// What a file says holds, unless a flag says otherwise.
#[test]
fn a_flag_overrides_the_configuration_file() {
    let cluster = Cluster::start(0).unwrap();
    let client = cluster.client().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("worker.toml");
    let text = format!(
        "[worker]\ncoordinator = \"{}\"\nlisten = \"127.0.0.1:0\"\ndata-dir = \"{}\"\nslots = 5\nmemory = \"100MiB\"\n",
        cluster.coordinator(),
        directory.path().join("data").display()
    );
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let arguments = ["--config", &file, "--slots", "3"].map(str::to_owned);
    let mut worker = Process::start("worker", &binary("worker").unwrap(), &arguments).unwrap();
    worker.ready().unwrap();
    talk(async {
        let known = async || {
            let answer: Value = client.get("/v1/workers").await.unwrap();
            let worker = &answer["workers"][0];
            (worker["slots"].clone(), worker["memory_bytes"].clone())
        };
        until((json!(3), json!(100 << 20)), known).await;
    });
    assert!(directory.path().join("data").is_dir());
}

/// A disk that is full while a job runs: its checkpoints fail, the job stays, nothing that was completed is lost,
/// and once there is room it goes on by itself and has counted everything once.
#[test]
fn a_job_whose_disk_is_full_goes_on_when_there_is_room() {
    const LIMIT: u64 = 4 << 20;
    const SHOPS: usize = 100_000;
    let mut cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    // Small enough for the log of each partition, and too large for the state of all shops.
    talk(async { drop(client.create_topic("orders", 8).await.unwrap()) });
    cluster.kill_worker(0).unwrap();
    cluster.limit_files_of_worker(0, Some(LIMIT));
    cluster.restart_worker(0).unwrap();
    let sql = "
        CREATE TABLE orders (shop BIGINT, note VARCHAR) WITH (connector = 'topic', topic = 'orders');
        CREATE TABLE nothing WITH (connector = 'blackhole');
        INSERT INTO nothing SELECT shop, note, count(*) AS n FROM orders GROUP BY shop, note;";
    let mut completed = 0;
    talk(async {
        let job = json!({
            "name": "counts", "sql": sql, "parallelism": 1, "checkpoint_interval_ms": 100,
            "config": {"checkpoint_timeout": "1s"},
        });
        let _: Value = client.post("/v1/jobs", &job).await.unwrap();
        let job = async || client.job("counts").await.unwrap();
        until(true, async || {
            job().await["last_checkpoint"]["epoch"].as_u64() > Some(0)
        })
        .await;
        for start in (0..SHOPS).step_by(5_000) {
            let lines: Vec<Value> = (start..start + 5_000)
                .map(|shop| json!({"shop": shop, "note": format!("{shop:0>120}")}))
                .collect();
            client.produce("orders", &lines).await.unwrap();
        }
        let failed = async || {
            let list: Value = client.get("/v1/jobs/counts/checkpoints").await.unwrap();
            let all = list["checkpoints"].as_array().unwrap();
            let newest = all.iter().take(5);
            newest
                .filter(|checkpoint| checkpoint["status"] == "aborted")
                .count()
                >= 3
        };
        until(true, failed).await;
        let job = job().await;
        assert_ne!(job["state"], "FAILED", "{}", job["reason"]);
        completed = job["last_checkpoint"]["epoch"].as_u64().unwrap();
    });
    cluster.make_room_for_worker(0).unwrap();
    talk(async {
        let read = async || {
            let offsets: Value = client.get("/v1/jobs/counts/offsets").await.unwrap();
            let offsets = offsets["sources"]["orders"].as_object().unwrap();
            offsets.values().filter_map(Value::as_u64).sum::<u64>()
        };
        until(SHOPS as u64, read).await;
        let job = wait_for(&client, "counts", "RUNNING").await;
        assert!(job["last_checkpoint"]["epoch"].as_u64() > Some(completed));
        assert_eq!(job["rows_in"], SHOPS);
        for restart in job["restarts"].as_array().unwrap() {
            assert!(restart["resumed_from"].as_u64() > Some(0), "{restart}");
        }
    });
}

/// The lock on a data directory is not copied with it: the two had one number, fenced each other for ever, and took
/// records of the same offsets each.
#[test]
fn a_copy_of_a_data_directory_is_refused_while_its_worker_runs() {
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        client.create_topic("orders", 1).await.unwrap();
        order(&client, 10).await;
    });
    let place = tempfile::tempdir().unwrap();
    let copy = place.path().join("copy");
    let copied = Command::new("cp")
        .arg("-r")
        .args([&cluster.worker_directory(0), &copy])
        .status()
        .unwrap();
    assert!(copied.success());
    talk(order(&client, 10));

    let log = place.path().join("log");
    let args = [
        "--data-dir".to_owned(),
        copy.display().to_string(),
        "--listen".to_owned(),
        "127.0.0.1:0".to_owned(),
        "--coordinator".to_owned(),
        cluster.coordinator().to_owned(),
    ];
    let program = binary("worker").unwrap();
    let second = Process::start_logging("copy", &program, &args, &[], Some(&log));
    let ended = second.unwrap().ready().unwrap_err();
    let said = std::fs::read_to_string(&log).unwrap();
    let reason = format!("worker 1 runs at {} already", cluster.worker(0));
    assert!(said.contains(&reason), "{ended}: {said}");

    talk(async {
        order(&client, 10).await;
        assert_eq!(all_values(&client, "orders").await.len(), 30);
    });
}
