//! Disks that lie: files flipped, cut off, deleted and full while a worker is down, and what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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

    /// Everything that came out since the job began, compared with what had to: a shop sells once before
    /// the job is waited for, so each of its totals comes out by itself, in order, and once.
    fn check(&self, context: &str) {
        type Totals = BTreeMap<i64, Vec<(i64, i64)>>;
        let of_shop = |shop: i64| {
            let total = move |sales: i64| shop * sales + sales * (sales - 1) / 2;
            (1..=self.sold).map(|sales| (sales, total(sales))).collect()
        };
        let expected: Totals = (0..self.shops).map(|shop| (shop, of_shop(shop))).collect();
        let rows: usize = expected.values().map(Vec::len).sum();
        let mut found = Totals::new();
        talk(async {
            // What is completed is committed a moment later.
            let waiting = async {
                while found.values().map(Vec::len).sum::<usize>() < rows {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    found.clear();
                    for value in all_values(&self.client, "totals").await {
                        let number = |name: &str| value[name].as_i64().unwrap();
                        let of_shop = found.entry(number("shop")).or_default();
                        of_shop.push((number("sales"), number("total")));
                    }
                }
            };
            let waited = tokio::time::timeout(crate::steps::PATIENCE, waiting).await;
            assert!(waited.is_ok(), "{context}: {found:?}");
        });
        assert_eq!(found, expected, "{context}");
    }

    /// The generation that runs, and the newest completed epoch.
    fn progress(&self) -> (u64, u64) {
        let job = self.job();
        let epoch = &job["last_checkpoint"]["epoch"];
        (job["generation"].as_u64().unwrap(), epoch.as_u64().unwrap())
    }

    /// The job went on in new generations, and each of them began at a completed epoch that is not older
    /// than this one.
    fn check_resumed(&self, (generation, epoch): (u64, u64), context: &str) {
        let job = self.job();
        assert_eq!(job["state"], "RUNNING", "{context}: {job:#}");
        let restarts = job["restarts"].as_array().unwrap().iter();
        let since: Vec<&Value> = restarts
            .filter(|restart| restart["generation"].as_u64() >= Some(generation))
            .collect();
        assert!(!since.is_empty(), "{context}: it was not restarted");
        for restart in since {
            let resumed = restart["resumed_from"].as_u64();
            assert!(
                resumed >= Some(epoch),
                "{context}: after epoch {epoch}: {restart}"
            );
        }
        let (_, newest) = self.progress();
        assert!(newest > epoch, "{context}: {newest} is not after {epoch}");
    }

    fn job(&self) -> Value {
        let mut job = Value::Null;
        talk(async { job = self.client.job("totals").await.unwrap() });
        job
    }
}

/// What a file of sled is for: its path without what sled numbers it by. A snapshot gets another number with
/// every start.
fn role(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap().to_string_lossy();
    let is_number = |part: &str| part.len() == 16 && u64::from_str_radix(part, 16).is_ok();
    let kept: Vec<&str> = name.split('.').filter(|part| !is_number(part)).collect();
    path.with_file_name(kept.join("."))
}

/// The views a worker keeps in sled can all be rebuilt: whichever file is damaged, the job goes on from
/// the epoch it had completed, and what comes out in all is what a job that was never disturbed gives.
#[test]
fn no_file_of_sled_is_missed() {
    let mut shops = Shops::open(50);
    // More checkpoints with changes than are folded together, so that the view has something.
    for _ in 0..12 {
        shops.sell();
    }
    // What it reads at a start, and writes then, is there from the second one on.
    shops.cluster.kill_worker(0).unwrap();
    shops.cluster.restart_worker(0).unwrap();
    shops.sell();
    let directory = shops.directory();
    let of_sled = || -> Vec<PathBuf> {
        let in_sled = |path: &PathBuf| is_in(path, "log.sled") || is_in(path, "state.sled");
        files_below(&directory)
            .into_iter()
            .filter(in_sled)
            .collect()
    };
    let roles: BTreeSet<PathBuf> = of_sled().iter().map(|path| role(path)).collect();
    for sled in ["log.sled", "state.sled"] {
        let files = roles.iter().filter(|path| is_in(path, sled));
        assert!(files.count() >= 3, "{sled}: {roles:?}");
    }
    for wanted in roles {
        for damage in DAMAGES {
            let context = format!("{damage:?} {}", wanted.display());
            let mut starts = 0;
            let (before, files) = loop {
                let before = shops.progress();
                shops.cluster.kill_worker(0).unwrap();
                // Named by what is there while nobody runs: it may have been renamed since the last time.
                let files = of_sled().into_iter().filter(|path| role(path) == wanted);
                let files: Vec<PathBuf> = files.collect();
                if !files.is_empty() {
                    break (before, files);
                }
                // What was built anew, after other damage, has all of its files from the start on that finds
                // something flushed.
                assert!(starts < 2, "{context}: {:?}", of_sled());
                starts += 1;
                let sled = wanted.parent().unwrap();
                let written = last_written(sled);
                shops.cluster.restart_worker(0).unwrap();
                shops.sell();
                wait_until_flushed(sled, written);
            };
            files.iter().for_each(|path| damage.inflict(path));
            shops.cluster.restart_worker(0).unwrap();
            shops.sell();
            shops.check_resumed(before, &context);
            shops.check(&context);
        }
    }
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

/// When sled last wrote to this database.
fn last_written(sled: &Path) -> Option<SystemTime> {
    let file = std::fs::metadata(sled.join("db")).ok()?;
    file.modified().ok()
}

/// Waits until sled has written to this database since then: it does so once a second, and a worker that is
/// killed before that leaves nothing new.
fn wait_until_flushed(sled: &Path, since: Option<SystemTime>) {
    let is_new = |path: &PathBuf| path.ends_with("db") && last_written(sled) > since;
    wait_for_some(&|| files_below(sled).into_iter().filter(is_new).collect());
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
