//! Disks that lie: files flipped, cut off, deleted and full while a worker is down, and what is left.

use std::path::{Path, PathBuf};

use common::client::Client;
use common::error::ErrorCode;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::steps::{all_values, talk, wait_for};

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    Flip,
    Truncate,
    Delete,
}

pub(crate) const DAMAGES: [Damage; 3] = [Damage::Flip, Damage::Truncate, Damage::Delete];

impl Damage {
    /// In the middle of the file.
    pub(crate) fn inflict(self, path: &Path) {
        match self {
            Damage::Delete => std::fs::remove_file(path).unwrap(),
            Damage::Truncate => {
                let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(file.metadata().unwrap().len() / 2).unwrap();
            }
            Damage::Flip => {
                let mut bytes = std::fs::read(path).unwrap();
                let middle = bytes.len() / 2;
                if let Some(byte) = bytes.get_mut(middle) {
                    *byte ^= 0x10;
                }
                std::fs::write(path, bytes).unwrap();
            }
        }
    }
}

/// The files below a directory, in the order of their paths.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files.sort();
    files
}

fn is_in(path: &Path, directory: &str) -> bool {
    path.iter().any(|part| part == directory)
}

async fn produce_to(client: &Client, topic: &str, partition: u32, values: std::ops::Range<i64>) {
    let records: Vec<Value> = values
        .map(|n| json!({"value": {"n": n}, "partition": partition}))
        .collect();
    let body = json!({"records": records});
    let _: Value = client
        .post(&format!("/v1/topics/{topic}/records"), &body)
        .await
        .unwrap();
}

/// The numbers a partition still gives, from its beginning, and how that ends.
async fn numbers(client: &Client, topic: &str, partition: u32) -> (Vec<i64>, Option<ErrorCode>) {
    let mut numbers = Vec::new();
    let mut offset = 0;
    loop {
        let fetched = match client.fetch(topic, partition, offset, 10_000, 0).await {
            Ok(fetched) => fetched,
            Err(error) => return (numbers, Some(error.code().expect("a refusal with a code"))),
        };
        let values = fetched.records.into_iter().filter_map(|r| r.value);
        numbers.extend(values.map(|value| value["n"].as_i64().unwrap()));
        if fetched.next_offset == offset {
            return (numbers, None);
        }
        offset = fetched.next_offset;
    }
}

/// Whatever happens to a partition's file: what is read is what was written there, the rest is refused
/// with a code, and other partitions know nothing of it.
#[test]
fn a_damaged_segment_gives_what_is_sound_and_an_error_for_the_rest() {
    let mut cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    let directory = cluster.worker_directory(0).join("partitions");
    for (number, damage) in DAMAGES.into_iter().enumerate() {
        let topic = format!("clicks{number}");
        let known = files_below(&directory);
        talk(async {
            client.create_topic(&topic, 2).await.unwrap();
            for start in (0..5_000).step_by(100) {
                for partition in 0..2 {
                    produce_to(&client, &topic, partition, start..start + 100).await;
                }
            }
        });
        let log = files_below(&directory).into_iter().find(|path| {
            let of_partition_0 = path
                .parent()
                .is_some_and(|p| p.to_string_lossy().ends_with("-0"));
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            is_log && of_partition_0 && !known.contains(path)
        });
        let log = log.expect("partition 0 has a file");
        cluster.kill_worker(0).unwrap();
        damage.inflict(&log);
        cluster.restart_worker(0).unwrap();
        talk(async {
            wait_until_led(&client, &topic, 1).await;
            let all: Vec<i64> = (0..5_000).collect();
            assert_eq!(
                numbers(&client, &topic, 1).await,
                (all.clone(), None),
                "{damage:?}"
            );
            let (read, refusal) = numbers(&client, &topic, 0).await;
            assert!(
                all.starts_with(&read),
                "{damage:?}: what is read was never written"
            );
            match damage {
                Damage::Flip | Damage::Truncate => {
                    assert!(
                        (2_000..3_000).contains(&read.len()),
                        "{damage:?}: {}",
                        read.len()
                    );
                }
                Damage::Delete => assert!(read.is_empty()),
            }
            assert_eq!(refusal, Some(ErrorCode::CorruptLog), "{damage:?}");
            // The sound one takes more.
            produce_to(&client, &topic, 1, 5_000..5_010).await;
            assert_eq!(numbers(&client, &topic, 1).await.0.len(), 5_010);
        });
    }
}

/// The partition answers again.
async fn wait_until_led(client: &Client, topic: &str, partition: u32) {
    let waiting = async {
        while let Err(error) = client.fetch(topic, partition, 0, 1, 0).await {
            assert!(
                error.code().is_none_or(ErrorCode::is_retriable),
                "{topic}, partition {partition}: {error}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(crate::steps::PATIENCE, waiting)
        .await
        .expect("nobody leads");
}

const TOTALS: &str = "
    CREATE TABLE sales (shop BIGINT, amount BIGINT)
    WITH (connector = 'topic', topic = 'sales', format = 'json');
    CREATE TABLE totals (shop BIGINT PRIMARY KEY, sales BIGINT, total BIGINT)
    WITH (connector = 'topic', topic = 'totals', format = 'json');
    INSERT INTO totals SELECT shop, count(*) AS sales, sum(amount) AS total FROM sales GROUP BY shop;";

/// A job that counts sales per shop, on one worker, and what it should have counted.
struct Shops {
    cluster: Cluster,
    client: Client,
    shops: i64,
    sold: i64,
}

impl Shops {
    fn open(shops: i64) -> Shops {
        let cluster = Cluster::start(1).unwrap();
        let client = cluster.client().unwrap();
        talk(async {
            client.create_topic("sales", 2).await.unwrap();
            client.create_topic("totals", 1).await.unwrap();
            let job = json!({
                "name": "totals", "sql": TOTALS, "parallelism": 1, "checkpoint_interval_ms": 100,
            });
            let _: Value = client.post("/v1/jobs", &job).await.unwrap();
            wait_for(&client, "totals", "RUNNING").await;
        });
        Shops {
            cluster,
            client,
            shops,
            sold: 0,
        }
    }

    fn directory(&self) -> PathBuf {
        self.cluster.worker_directory(0)
    }

    /// Sells once more in every shop, and waits until that is in a completed epoch.
    fn sell(&mut self) {
        let lines: Vec<Value> = (0..self.shops)
            .map(|shop| json!({"shop": shop, "amount": shop + self.sold}))
            .collect();
        self.sold += 1;
        talk(async {
            for chunk in lines.chunks(10_000) {
                self.client.produce("sales", chunk).await.unwrap();
            }
            self.wait_until_read().await;
        });
    }

    /// Waits for a completed epoch that has everything that was sold.
    async fn wait_until_read(&self) {
        let all = self.shops * self.sold;
        let mut seen = Value::Null;
        let waiting = async {
            loop {
                if let Ok(offsets) = self.client.get::<Value>("/v1/jobs/totals/offsets").await {
                    let sales = offsets["sources"]["sales"].as_object();
                    let read = sales.into_iter().flat_map(|sales| sales.values());
                    if read.filter_map(Value::as_i64).sum::<i64>() == all {
                        return;
                    }
                    seen = offsets;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(crate::steps::PATIENCE, waiting).await;
        assert!(waited.is_ok(), "{all} sales are not read: {seen}");
    }

    fn completed(&self) -> u64 {
        let mut epoch = 0;
        talk(async {
            let job = self.client.job("totals").await.unwrap();
            epoch = job["last_checkpoint"]["epoch"].as_u64().unwrap();
        });
        epoch
    }

    /// The totals that came out last, compared with what they have to be.
    fn check(&self, context: &str) {
        talk(async {
            // What is completed is committed a moment later.
            let mut last = std::collections::BTreeMap::new();
            let complete = |last: &std::collections::BTreeMap<i64, (i64, i64)>| {
                last.len() as i64 == self.shops && last.values().all(|(n, _)| *n == self.sold)
            };
            let waiting = async {
                while !complete(&last) {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    for value in all_values(&self.client, "totals").await {
                        let number = |name: &str| value[name].as_i64().unwrap();
                        last.insert(number("shop"), (number("sales"), number("total")));
                    }
                }
            };
            let waited = tokio::time::timeout(crate::steps::PATIENCE, waiting).await;
            let rounds = self.sold * (self.sold - 1) / 2;
            let expected: std::collections::BTreeMap<i64, (i64, i64)> = (0..self.shops)
                .map(|shop| (shop, (self.sold, shop * self.sold + rounds)))
                .collect();
            assert_eq!(last, expected, "{context}");
            waited.unwrap_or_else(|_| panic!("{context}: the totals do not come out"));
        });
    }
}

/// The views a worker keeps in sled can all be rebuilt: whichever file is damaged, the job goes on from
/// the epoch it had completed, and counts right.
#[test]
fn no_file_of_sled_is_missed() {
    let mut shops = Shops::open(50);
    // More checkpoints with changes than are folded together, so that the view has something.
    for _ in 0..12 {
        shops.sell();
    }
    let of_sled = |path: &PathBuf| is_in(path, "log.sled") || is_in(path, "state.sled");
    let names: Vec<PathBuf> = files_below(&shops.directory())
        .into_iter()
        .filter(of_sled)
        .map(|path| path.strip_prefix(shops.directory()).unwrap().to_owned())
        .collect();
    assert!(
        names.iter().any(|path| is_in(path, "log.sled")),
        "{names:?}"
    );
    assert!(
        names.iter().any(|path| is_in(path, "state.sled")),
        "{names:?}"
    );
    for name in names {
        for damage in DAMAGES {
            let path = shops.directory().join(&name);
            // A snapshot gets another name with every start.
            if !path.exists() {
                continue;
            }
            let context = format!("{damage:?} {}", name.display());
            let before = shops.completed();
            shops.cluster.kill_worker(0).unwrap();
            damage.inflict(&path);
            shops.cluster.restart_worker(0).unwrap();
            shops.sell();
            assert!(shops.completed() > before, "{context}");
            shops.check(&context);
        }
    }
    // Not from nothing: each generation went on where the one before had come.
    let state = talk_job(&shops.client);
    assert_ne!(state["state"], "FAILED", "{state:#}");
}

fn talk_job(client: &Client) -> Value {
    let mut job = Value::Null;
    talk(async { job = client.job("totals").await.unwrap() });
    job
}

/// What cannot be rebuilt: the deltas and base files of a job. Whatever is done to one of them, the job
/// either counts right or says what it lacks; and it never counts wrong.
#[test]
fn damaged_state_that_cannot_be_rebuilt_fails_the_job_with_a_reason() {
    for (kind, shops) in [("deltas", 200), ("base", 60_000)] {
        for damage in DAMAGES {
            let mut shops = Shops::open(shops);
            shops.sell();
            shops.sell();
            let context = format!("{damage:?} {kind}");
            let jobs = shops.directory().join("jobs");
            let files = || -> Vec<PathBuf> {
                let wanted = |path: &PathBuf| match kind {
                    "deltas" => path.extension().is_some_and(|e| e == "log"),
                    _ => path
                        .file_name()
                        .is_some_and(|n| n.to_string_lossy().starts_with("base-")),
                };
                files_below(&jobs).into_iter().filter(wanted).collect()
            };
            wait_for_some(&files);
            // What is there may be replaced until the worker is down.
            shops.cluster.kill_worker(0).unwrap();
            damage.inflict(files().last().unwrap());
            shops.cluster.restart_worker(0).unwrap();
            talk(async {
                let sale = [json!({"shop": 0, "amount": 0})];
                wait_until_led(&shops.client, "sales", 0).await;
                wait_until_led(&shops.client, "sales", 1).await;
                shops.client.produce("sales", &sale).await.unwrap();
                let (read, reason) = wait_for_outcome(&shops.client, shops.shops * 2 + 1).await;
                if read {
                    let values = all_values(&shops.client, "totals").await;
                    let last = values.iter().rfind(|value| value["shop"] == 0).unwrap();
                    assert_eq!(last["sales"], 3, "{context}: {last}");
                } else {
                    assert!(reason.contains("state"), "{context}: {reason}");
                    let values = all_values(&shops.client, "totals").await;
                    assert!(
                        values
                            .iter()
                            .all(|value| value["sales"].as_i64() <= Some(2))
                    );
                }
            });
        }
    }
}

fn wait_for_some(files: &impl Fn() -> Vec<PathBuf>) {
    talk(async {
        let waiting = async {
            while files().is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(crate::steps::PATIENCE, waiting)
            .await
            .expect("there is no such file");
    });
}

/// Whether so many records come to be read in a completed epoch, or the job fails, and why.
async fn wait_for_outcome(client: &Client, records: i64) -> (bool, String) {
    let mut seen = Value::Null;
    let waiting = async {
        loop {
            if let Ok(job) = client.job("totals").await {
                if job["state"] == "FAILED" {
                    return (false, job["reason"].as_str().unwrap_or_default().to_owned());
                }
                seen = job;
            }
            if let Ok(offsets) = client.get::<Value>("/v1/jobs/totals/offsets").await {
                let sales = offsets["sources"]["sales"].as_object();
                let read = sales.into_iter().flat_map(|sales| sales.values());
                if read.filter_map(Value::as_i64).sum::<i64>() == records {
                    return (true, String::new());
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(crate::steps::PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("it neither goes on nor fails: {seen:#}"))
}

/// A full disk: an append is refused with a code of its own, what was acknowledged is there, and once
/// there is room everything goes on.
#[test]
fn a_full_disk_refuses_appends_and_loses_nothing() {
    const LIMIT: u64 = 4 << 20;
    let mut cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async { drop(client.create_topic("clicks", 1).await.unwrap()) });
    cluster.kill_worker(0).unwrap();
    cluster.limit_files_of_worker(0, Some(LIMIT));
    cluster.restart_worker(0).unwrap();
    let padding = "x".repeat(1_000);
    let lines = |from: i64| -> Vec<Value> {
        (from..from + 100)
            .map(|n| json!({"n": n, "padding": padding}))
            .collect()
    };
    let mut acknowledged = 0;
    talk(async {
        wait_until_led(&client, "clicks", 0).await;
        let refusal = loop {
            match client.produce("clicks", &lines(acknowledged)).await {
                Ok(_) => acknowledged += 100,
                Err(error) => break error,
            }
            assert!(acknowledged < 100_000, "the disk is never full");
        };
        assert_eq!(refusal.code(), Some(ErrorCode::DiskFull), "{refusal}");
        // Nothing else is affected: what is there is read, and what fits is taken.
        let (read, end) = numbers(&client, "clicks", 0).await;
        assert_eq!((read, end), ((0..acknowledged).collect(), None));
    });
    cluster.kill_worker(0).unwrap();
    cluster.limit_files_of_worker(0, None);
    cluster.restart_worker(0).unwrap();
    talk(async {
        wait_until_led(&client, "clicks", 0).await;
        client
            .produce("clicks", &lines(acknowledged))
            .await
            .unwrap();
        let (read, end) = numbers(&client, "clicks", 0).await;
        assert_eq!((read, end), ((0..acknowledged + 100).collect(), None));
    });
}
