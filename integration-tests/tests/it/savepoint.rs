//! Savepoints: the state of a job goes to an object store, and comes back in another job or in the same one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::http::Method;
use actix_web::web::{self, Bytes};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use common::client::{Client, ClientError};
use common::error::{ErrorCode, Problem};
use common::savepoint::Manifest;
use integration_tests::cluster::Cluster;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::steps::{LOOK, PATIENCE, all_values, index_of, talk, wait_for};

const KEYS: i64 = 97;

/// Every record changes one key's row, and none is ever forgotten.
fn totals(sink: &str) -> String {
    format!(
        "CREATE TABLE bids (auction BIGINT, price BIGINT)
         WITH (connector = 'topic', topic = 'bids', format = 'json');
         CREATE TABLE totals WITH (connector = 'topic', topic = '{sink}', format = 'json');
         INSERT INTO totals
         SELECT auction, count(*) AS bids, sum(price) AS total FROM bids GROUP BY auction;"
    )
}

fn job(name: &str, sink: &str) -> Value {
    json!({
        "name": name, "sql": totals(sink), "parallelism": 2, "checkpoint_interval_ms": 200,
        "config": {"standbys": 0},
    })
}

fn job_with_standbys(name: &str, sink: &str) -> Value {
    let mut job = job(name, sink);
    job["config"] = json!({"standbys": 1});
    job
}

type Totals = BTreeMap<i64, (i64, i64)>;

fn expected(bids: i64) -> Totals {
    let mut totals = Totals::new();
    for price in 0..bids {
        let (count, total) = totals.entry(price % KEYS).or_default();
        (*count, *total) = (*count + 1, *total + price);
    }
    totals
}

fn rows(values: &[Value]) -> impl Iterator<Item = (i64, (i64, i64))> {
    let number = |row: &Value, name: &str| row[name].as_i64().unwrap();
    values.iter().map(move |row| {
        let totals = (number(row, "bids"), number(row, "total"));
        (number(row, "auction"), totals)
    })
}

async fn send(client: &Client, range: std::ops::Range<i64>) {
    let key = format!("{}-{}", range.start, range.end);
    let line = |price: i64| format!("{{\"auction\": {}, \"price\": {price}}}\n", price % KEYS);
    let lines = range.map(line).collect::<String>().into_bytes();
    let sending = async {
        while let Err(error) = client.produce_idempotent("bids", lines.clone(), &key).await {
            let may_pass = error.code().is_none_or(|code| code.is_retriable());
            assert!(may_pass, "{error}");
            tokio::time::sleep(LOOK).await;
        }
    };
    let sent = tokio::time::timeout(PATIENCE, sending).await;
    sent.expect("it is never acknowledged");
}

async fn wait_until_counted(client: &Client, topic: &str, bids: i64) {
    let expected = expected(bids);
    let mut found = Totals::new();
    let waiting = async {
        while found != expected {
            tokio::time::sleep(LOOK).await;
            found = rows(&all_values(client, topic).await).collect();
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    let differs = || {
        expected
            .iter()
            .find(|(key, row)| found.get(key) != Some(row))
    };
    waited.unwrap_or_else(|_| panic!("of {:?} there is something else", differs()));
}

async fn create_topics(client: &Client, names: &[&str], copies: u32) {
    for name in names {
        let config = json!({"min_insync_replicas": 1});
        let topic = json!({
            "name": name, "partitions": 2, "replication_factor": copies, "config": config,
        });
        let _: Value = client.post("/v1/topics", &topic).await.unwrap();
    }
}

/// Makes a savepoint and waits until it is complete.
async fn save(client: &Client, job: &str, location: &str) -> Value {
    let path = format!("/v1/jobs/{job}/savepoints");
    let asked: Value = client
        .post(&path, &json!({"location": location}))
        .await
        .unwrap();
    let mut seen = asked.clone();
    let waiting = async {
        while seen["state"] != "complete" {
            assert_eq!(seen["state"], "in_progress", "{seen}");
            tokio::time::sleep(LOOK).await;
            let list: Value = client.get(&path).await.unwrap();
            let mut savepoints = list["savepoints"].as_array().unwrap().iter();
            seen = savepoints.find(|s| s["id"] == asked["id"]).unwrap().clone();
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.expect("it is never complete");
    seen
}

/// Until so many workers have each task's state.
async fn wait_for_holders(client: &Client, job: &str, count: usize) {
    let mut seen = Value::Null;
    let waiting = async {
        loop {
            let path = format!("/v1/jobs/{job}/checkpoints");
            seen = client.get::<Value>(&path).await.unwrap()["holders"].clone();
            let mut holders = seen.as_object().unwrap().values();
            let all = holders.all(|workers| workers.as_array().unwrap().len() == count);
            if all && seen != json!({}) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("not {count} holders: {seen}"));
}

fn location(directory: &TempDir) -> String {
    format!("file://{}", directory.path().display())
}

/// Where a savepoint's files are.
fn directory_of(savepoint: &Value) -> PathBuf {
    let location = savepoint["location"].as_str().unwrap();
    PathBuf::from(location.strip_prefix("file://").unwrap())
}

async fn refused(client: &Client, path: &str, body: &Value) -> Problem {
    match client.post::<Value>(path, body).await {
        Err(ClientError::Refused(problem)) => *problem,
        other => panic!("{path} with {body} is not refused: {other:?}"),
    }
}

#[test]
fn a_new_job_goes_on_from_a_savepoint_of_a_job_that_runs() {
    const HALF: i64 = 4_000;
    let directory = TempDir::new().unwrap();
    let mut cluster = Cluster::start(2).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create_topics(&client, &["bids", "totals", "copies"], 2).await;
        let _: Value = client
            .post("/v1/jobs", &job("totals", "totals"))
            .await
            .unwrap();
        wait_for(&client, "totals", "RUNNING").await;
        send(&client, 0..HALF).await;
        wait_until_counted(&client, "totals", HALF).await;
        let savepoint = save(&client, "totals", &location(&directory)).await;
        assert!(savepoint["bytes"].as_u64().unwrap() > 0, "{savepoint}");
        assert!(directory_of(&savepoint).join("manifest.json").exists());
        // What comes after it is not in it.
        send(&client, HALF..2 * HALF).await;
        wait_until_counted(&client, "totals", 2 * HALF).await;
        let _: Value = client
            .post("/v1/jobs/totals/stop", &json!({}))
            .await
            .unwrap();
        wait_for(&client, "totals", "STOPPED").await;

        let mut copy = job_with_standbys("copies", "copies");
        copy["restore"] = json!({"from": savepoint["location"]});
        let _: Value = client.post("/v1/jobs", &copy).await.unwrap();
        wait_for(&client, "copies", "RUNNING").await;
        wait_until_counted(&client, "copies", 2 * HALF).await;
        // It began with what was counted before, so no row says less.
        let before = expected(HALF);
        for (key, (bids, _)) in rows(&all_values(&client, "copies").await) {
            assert!(bids > before[&key].0, "key {key}: {bids}");
        }
        send(&client, 2 * HALF..3 * HALF).await;
        wait_until_counted(&client, "copies", 3 * HALF).await;
        // Its epochs go on from the savepoint's.
        let list: Value = client.get("/v1/jobs/copies/checkpoints").await.unwrap();
        assert!(list["completed"].as_u64() > savepoint["epoch"].as_u64());

        // At rest there is one to be made, once.
        let first = save(&client, "totals", &location(&directory)).await;
        assert!(first["epoch"].as_u64() > savepoint["epoch"].as_u64());
        let again = save(&client, "totals", &location(&directory)).await;
        assert_eq!(first, again);
        // Nothing was committed after it, so nothing comes twice.
        let from = json!({"from": first["location"]});
        let _: Value = client.post("/v1/jobs/totals/restore", &from).await.unwrap();
        wait_for(&client, "totals", "RUNNING").await;
        wait_until_counted(&client, "totals", 3 * HALF).await;

        // What was restored has standbys as everything has: a worker is lost with its disk, and nothing else.
        wait_for_holders(&client, "copies", 2).await;
        cluster.kill_worker(0).unwrap();
        std::fs::remove_dir_all(cluster.worker_directory(0)).unwrap();
        send(&client, 3 * HALF..4 * HALF).await;
        wait_until_counted(&client, "copies", 4 * HALF).await;
    });
}

#[test]
fn a_job_whose_state_is_lost_with_all_disks_is_restored_by_its_operator() {
    const THIRD: i64 = 3_000;
    let directory = TempDir::new().unwrap();
    let mut cluster = Cluster::start(3).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create_topics(&client, &["bids", "totals", "totals.dead-letters"], 3).await;
        let _: Value = client
            .post("/v1/jobs", &job("totals", "totals"))
            .await
            .unwrap();
        wait_for(&client, "totals", "RUNNING").await;
        send(&client, 0..THIRD).await;
        let savepoint = save(&client, "totals", &location(&directory)).await;
        send(&client, THIRD..2 * THIRD).await;
        wait_until_counted(&client, "totals", 2 * THIRD).await;
        let list: Value = client.get("/v1/jobs/totals/checkpoints").await.unwrap();
        let holders = list["holders"].as_object().unwrap();
        let holders = holders
            .values()
            .flat_map(|workers| workers.as_array().unwrap());
        let mut lost: Vec<Value> = holders.cloned().collect();
        lost.sort_by_key(Value::as_u64);
        lost.dedup();
        assert!(lost.len() < 3, "one worker has the topics still: {lost:?}");
        for worker in &lost {
            let index = index_of(&cluster, &client, worker).await;
            cluster.kill_worker(index).unwrap();
            std::fs::remove_dir_all(cluster.worker_directory(index)).unwrap();
        }
        let waiting = wait_for(&client, "totals", "WAITING").await;
        let reason = waiting["reason"].as_str().unwrap();
        assert!(reason.contains("waits for"), "{reason}");

        let path = "/v1/jobs/totals/restore";
        let from = &savepoint["location"];
        let problem = refused(&client, path, &json!({"from": from})).await;
        assert_eq!(problem.code, ErrorCode::Conflict);
        assert!(problem.detail.contains("at least once"), "{problem}");
        assert!(problem.hint.contains("at_least_once"), "{problem}");
        let accepted = json!({"from": from, "accept": "at_least_once"});
        let _: Value = client.post(path, &accepted).await.unwrap();
        wait_for(&client, "totals", "RUNNING").await;
        send(&client, 2 * THIRD..3 * THIRD).await;
        wait_until_counted(&client, "totals", 3 * THIRD).await;
        // What is read again counts once.
        let mut seen = Value::Null;
        let waiting = async {
            while seen != json!(3 * THIRD) {
                tokio::time::sleep(LOOK).await;
                seen = client.job("totals").await.unwrap()["rows_in"].clone();
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("{seen} rows were counted"));
    });
}

#[test]
fn what_cannot_be_saved_or_restored_is_refused_with_what_to_do() {
    let directory = TempDir::new().unwrap();
    let cluster = Cluster::start(1).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create_topics(&client, &["bids", "totals", "others"], 1).await;
        let _: Value = client
            .post("/v1/jobs", &job("totals", "totals"))
            .await
            .unwrap();
        wait_for(&client, "totals", "RUNNING").await;
        send(&client, 0..1_000).await;
        wait_until_counted(&client, "totals", 1_000).await;

        let saves = "/v1/jobs/totals/savepoints";
        let problem = refused(&client, saves, &json!({})).await;
        assert_eq!(problem.code, ErrorCode::InvalidRequest);
        assert!(problem.hint.contains("--savepoints"), "{problem}");
        for bad in ["/tmp/x", "s3://", "ftp://host/x", "file:///a/../b"] {
            let problem = refused(&client, saves, &json!({"location": bad})).await;
            assert_eq!(problem.code, ErrorCode::InvalidRequest, "{bad}");
            assert_eq!(problem.at.as_deref(), Some("/location"), "{bad}");
        }
        let nowhere = json!({"location": "file:///proc/self/savepoints"});
        let problem = refused(&client, saves, &nowhere).await;
        assert_eq!(problem.code, ErrorCode::ObjectStoreUnavailable, "{problem}");
        assert!(
            problem.detail.contains("file:///proc/self/savepoints"),
            "{problem}"
        );
        let list: Value = client.get(saves).await.unwrap();
        assert_eq!(list["savepoints"][0]["state"], "failed", "{list}");
        let unknown = refused(&client, "/v1/jobs/nobody/savepoints", &json!({})).await;
        assert_eq!(unknown.code, ErrorCode::UnknownJob);

        let savepoint = save(&client, "totals", &location(&directory)).await;
        let restores = "/v1/jobs/totals/restore";
        let accepted = |from: &Value| json!({"from": from, "accept": "at_least_once"});
        let running = refused(&client, restores, &accepted(&savepoint["location"])).await;
        assert_eq!(running.code, ErrorCode::Conflict);
        assert!(running.hint.contains("stop it first"), "{running}");
        let _: Value = client
            .post("/v1/jobs/totals/stop", &json!({}))
            .await
            .unwrap();
        wait_for(&client, "totals", "STOPPED").await;

        let missing = json!(format!("{}/none", location(&directory)));
        let problem = refused(&client, restores, &accepted(&missing)).await;
        assert_eq!(problem.code, ErrorCode::UnknownSavepoint, "{problem}");
        let unknown = json!({"from": savepoint["location"], "accept": "nothing"});
        let problem = refused(&client, restores, &unknown).await;
        assert_eq!(problem.code, ErrorCode::InvalidRequest, "{problem}");

        refuses_other_jobs(&client, &savepoint).await;
        refuses_what_is_damaged(&client, &savepoint, restores).await;
        survives_damaged_state(&client, &savepoint).await;
    });
}

async fn refuses_other_jobs(client: &Client, savepoint: &Value) {
    let mut other = job("others", "others");
    other["restore"] = json!({"from": savepoint["location"]});
    let mut wider = other.clone();
    wider["parallelism"] = json!(1);
    let problem = refused(client, "/v1/jobs", &wider).await;
    assert_eq!(problem.code, ErrorCode::SavepointMismatch);
    assert!(
        problem.detail.contains("parallelism is 2, the job's is 1"),
        "{problem}"
    );
    let mut different = other.clone();
    let sql = totals("others").replace("sum(price) AS total", "max(price) AS total");
    different["sql"] = json!(sql);
    let problem = refused(client, "/v1/jobs", &different).await;
    assert_eq!(problem.code, ErrorCode::SavepointMismatch);
    assert!(problem.detail.contains("is defined otherwise"), "{problem}");
    assert_eq!(problem.at.as_deref(), Some("/restore/from"));
    let jobs: Value = client.get("/v1/jobs").await.unwrap();
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1, "{jobs}");
}

async fn refuses_what_is_damaged(client: &Client, savepoint: &Value, restores: &str) {
    let directory = directory_of(savepoint);
    let body = json!({"from": savepoint["location"], "accept": "at_least_once"});
    let manifest = directory.join("manifest.json");
    let sound = std::fs::read(&manifest).unwrap();
    let mut damaged = sound.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&manifest, &damaged).unwrap();
    let problem = refused(client, restores, &body).await;
    assert_eq!(problem.code, ErrorCode::CorruptSavepoint, "{problem}");
    assert!(problem.detail.contains("manifest.json"), "{problem}");

    let mut newer = Manifest::decode(&sound).unwrap();
    newer.version += 1;
    std::fs::write(&manifest, newer.encode()).unwrap();
    let problem = refused(client, restores, &body).await;
    assert_eq!(problem.code, ErrorCode::UnsupportedFeature, "{problem}");
    assert!(problem.detail.contains("format version 2"), "{problem}");
    std::fs::write(&manifest, &sound).unwrap();

    let object = first_object(&sound, &directory);
    let bytes = std::fs::read(&object).unwrap();
    std::fs::remove_file(&object).unwrap();
    let problem = refused(client, restores, &body).await;
    assert_eq!(problem.code, ErrorCode::CorruptSavepoint, "{problem}");
    assert!(problem.detail.contains("is missing"), "{problem}");
    std::fs::write(&object, &bytes[..bytes.len() - 1]).unwrap();
    let problem = refused(client, restores, &body).await;
    assert_eq!(problem.code, ErrorCode::CorruptSavepoint, "{problem}");
    std::fs::write(&object, &bytes).unwrap();
    let job = client.job("totals").await.unwrap();
    assert_eq!(job["state"], "STOPPED", "nothing has been changed");
}

fn first_object(manifest: &[u8], directory: &Path) -> PathBuf {
    let manifest = Manifest::decode(manifest).unwrap();
    let mut objects = manifest.tasks.iter().flat_map(|task| &task.objects);
    directory.join(&objects.next().unwrap().name)
}

/// Of its right length it is only found out by who fetches it: the job says so, and begins once it is repaired.
async fn survives_damaged_state(client: &Client, savepoint: &Value) {
    let directory = directory_of(savepoint);
    let manifest = std::fs::read(directory.join("manifest.json")).unwrap();
    let object = first_object(&manifest, &directory);
    let sound = std::fs::read(&object).unwrap();
    let mut damaged = sound.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&object, &damaged).unwrap();
    let mut other = job("others", "others");
    other["restore"] = json!({"from": savepoint["location"]});
    let _: Value = client.post("/v1/jobs", &other).await.unwrap();
    let failed = wait_for(client, "others", "FAILED").await;
    let reason = failed["reason"].as_str().unwrap();
    assert!(reason.contains(object.to_str().unwrap()), "{reason}");
    assert!(reason.contains("checksum"), "{reason}");
    // Nothing of it has come out.
    assert_eq!(all_values(client, "others").await, Vec::<Value>::new());
    let body = json!({"location": "file:///tmp/unused"});
    let nothing = refused(client, "/v1/jobs/others/savepoints", &body).await;
    assert_eq!(nothing.code, ErrorCode::Conflict);

    std::fs::write(&object, &sound).unwrap();
    let body = json!({"from": savepoint["location"], "accept": "at_least_once"});
    let _: Value = client.post("/v1/jobs/others/restore", &body).await.unwrap();
    wait_for(client, "others", "RUNNING").await;
    send(client, 1_000..2_000).await;
    wait_until_counted(client, "others", 2_000).await;
}

/// As much of S3 as savepoints need.
#[derive(Debug, Default)]
struct S3 {
    /// Path → bytes.
    objects: Mutex<BTreeMap<String, Bytes>>,
    /// Objects of state come after `SLOW`.
    is_slow: AtomicBool,
}

const SLOW: Duration = Duration::from_secs(2);

async fn answer(request: HttpRequest, body: Bytes, s3: web::Data<S3>) -> HttpResponse {
    let signed = request.headers().get("authorization");
    let signed = signed.and_then(|header| header.to_str().ok());
    if !signed.is_some_and(|header| header.contains("Credential=the-key/")) {
        return HttpResponse::Forbidden().body("<Error><Code>AccessDenied</Code></Error>");
    }
    let path = request.path().to_owned();
    if request.method() == Method::PUT {
        s3.objects.lock().unwrap().insert(path, body);
        return HttpResponse::Ok().insert_header(("ETag", "\"1\"")).finish();
    }
    let is_state = !path.ends_with("manifest.json");
    if request.method() == Method::GET && is_state && s3.is_slow.load(Ordering::Relaxed) {
        actix_web::rt::time::sleep(SLOW).await;
    }
    let object = s3.objects.lock().unwrap().get(&path).cloned();
    match object {
        None => HttpResponse::NotFound().body("<Error><Code>NoSuchKey</Code></Error>"),
        // A HEAD is answered with the length of what a GET would give.
        Some(object) => HttpResponse::Ok()
            .insert_header(("ETag", "\"1\""))
            .insert_header(("Last-Modified", "Sat, 28 Nov 2026 00:00:00 GMT"))
            .body(object),
    }
}

/// Starts it on a thread of its own, which ends with the test; answers its address.
fn start_s3() -> (String, Arc<S3>) {
    let s3 = Arc::new(S3::default());
    let data = web::Data::from(s3.clone());
    let (sender, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let serving = async move {
            let server = HttpServer::new(move || {
                let limit = web::PayloadConfig::new(128 << 20);
                let app = App::new().app_data(data.clone()).app_data(limit);
                app.default_service(web::to(answer))
            });
            let server = server.workers(1).disable_signals();
            let server = server.bind(("127.0.0.1", 0)).unwrap();
            sender.send(server.addrs()[0]).unwrap();
            server.run().await.unwrap();
        };
        actix_web::rt::System::new().block_on(serving);
    });
    (format!("http://{}", address.recv().unwrap()), s3)
}

#[test]
fn a_savepoint_goes_to_s3_and_comes_back_to_a_worker_that_dies_meanwhile() {
    let (endpoint, s3) = start_s3();
    let environment = [
        ("AWS_ACCESS_KEY_ID", "the-key"),
        ("AWS_SECRET_ACCESS_KEY", "the-secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("MILLSTREAM_SAVEPOINTS", "s3://saved/here"),
    ];
    let mut cluster = Cluster::start_in_environment(1, &environment).unwrap();
    let client = cluster.client().unwrap();
    talk(async {
        create_topics(&client, &["bids", "totals", "copies"], 1).await;
        let _: Value = client
            .post("/v1/jobs", &job("totals", "totals"))
            .await
            .unwrap();
        wait_for(&client, "totals", "RUNNING").await;
        send(&client, 0..1_000).await;
        wait_until_counted(&client, "totals", 1_000).await;
        // Where the coordinator's option says.
        let path = "/v1/jobs/totals/savepoints";
        let savepoint: Value = client.post(path, &json!({})).await.unwrap();
        assert_eq!(savepoint["state"], "complete", "{savepoint}");
        let place = savepoint["location"].as_str().unwrap();
        assert!(place.starts_with("s3://saved/here/totals/"), "{place}");
        let stored: Vec<String> = s3.objects.lock().unwrap().keys().cloned().collect();
        let of_it = |path: &&String| path.starts_with("/saved/here/totals/");
        assert!(stored.iter().filter(of_it).count() > 2, "{stored:?}");
        let mut copy = job("copies", "copies");
        copy["restore"] = json!({"from": place});
        s3.is_slow.store(true, Ordering::Relaxed);
        let _: Value = client.post("/v1/jobs", &copy).await.unwrap();
        // In the middle of it the worker is killed; whatever it has, it gets the rest.
        wait_for(&client, "copies", "DEPLOYING").await;
        tokio::time::sleep(SLOW + SLOW / 2).await;
        cluster.kill_worker(0).unwrap();
        s3.is_slow.store(false, Ordering::Relaxed);
        cluster.restart_worker(0).unwrap();
        let job = wait_for(&client, "copies", "RUNNING").await;
        assert_ne!(job["restarts"], json!([]), "it was killed too late");
        send(&client, 1_000..2_000).await;
        wait_until_counted(&client, "copies", 2_000).await;
        let missing = json!({"from": "s3://saved/here/none"});
        copy["name"] = json!("more");
        copy["restore"] = missing;
        let problem = refused(&client, "/v1/jobs", &copy).await;
        assert_eq!(problem.code, ErrorCode::UnknownSavepoint, "{problem}");
    });
}
