//! A worker without a coordinator, over real sockets: records in and out as a user's program sees them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use actix_rt::System;
use common::config::worker::WorkerConfig;
use common::error::ErrorCode;
use common::ids::{
    CheckpointId, ClusterId, ControlEpoch, Generation, JobId, LeaderEpoch, MetadataVersion, NodeId,
    PartitionEpoch, PartitionId, TopicId, TopicName, TopicPartition, WorkerEpoch,
};
use common::limits::{HEARTBEAT_INTERVAL, TARGET_BATCH_BYTES};
use common::log_batch::LogBatchBuilder;
use common::offset::Offset;
use common::partitioner::partition_of_key;
use common::plan::connector::Isolation;
use common::protocol::checkpoint::{CheckpointKind, InjectBarrier};
use common::protocol::fetch::{FetchBatches, ListOffsets};
use common::protocol::metadata::{MetadataDelta, PartitionImage, TopicImage, WorkerImage};
use common::protocol::node::Registered;
use common::protocol::produce::Acks;
use common::protocol::topic::TopicConfig;
use common::seglog::memory::MemoryStorage;
use common::time::{Span, SystemClock, Tick, Timestamp};
use common::transport::client::{Forward, Forwarded, Transport};
use common::transport::server::HttpServer;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use super::intake::Intake;
use super::{Composed, Routes, routes};
use crate::exchange::Exchange;
use crate::job::jobs_actor::Jobs;
use crate::job::services::Services;
use crate::link::Session;
use crate::link::coordinators::Coordinators;
use crate::link::lease::Lease;
use crate::log_client::LogClient;
use crate::metadata_image::MetadataImage;
use crate::operator::custom::CustomOperators;
use crate::partition::actors::PartitionStarter;
use crate::partition::age_clock::AgeClock;
use crate::partition::registry::Partitions;
use crate::partition::settings::PartitionSettings;
use crate::quota::Quotas;
use crate::replication::isr_proposals::isr_proposals;
use crate::replication::sessions::Sessions;
use crate::slots::Threads;
use crate::task::memory::{MemoryPlan, StateMemory};

const ME: NodeId = NodeId(1);
const PARTITIONS: u32 = 3;
const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

/// A user's program, and the worker it speaks to.
pub(super) struct Worker {
    pub(super) address: String,
    transport: Transport,
    log: LogClient,
    home: tempfile::TempDir,
    /// A coordinator answers a heartbeat.
    hears: Box<dyn Fn() + Send + Sync>,
}

pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map_or("", |(_, value)| std::str::from_utf8(value).unwrap())
    }
}

impl Worker {
    /// The answer, while a coordinator answers heartbeats.
    async fn heard_while<T>(&self, answer: impl Future<Output = T>) -> T {
        let heartbeats = async {
            loop {
                (self.hears)();
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            answer = answer => answer,
            never = heartbeats => never,
        }
    }

    pub(super) async fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Forwarded {
        let request = Forward {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
                .collect(),
            body: body.to_vec().into(),
        };
        let sent = self
            .transport
            .forward(&self.address, request, Span::from_secs(60));
        sent.await.unwrap()
    }

    pub(super) async fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        let mut answer = self.send(method, target, headers, body).await;
        let mut whole = Vec::new();
        while let Some(chunk) = answer.body.next().await {
            whole.extend_from_slice(&chunk.unwrap());
        }
        Answer {
            status: answer.status,
            headers: answer.headers,
            body: whole,
        }
    }

    async fn post(&self, content_type: &str, query: &str, body: &[u8]) -> Answer {
        let target = format!("/v1/topics/clicks/records{query}");
        self.request("POST", &target, &[("content-type", content_type)], body)
            .await
    }

    async fn get(&self, partition: u32, query: &str) -> Answer {
        let target = format!("/v1/topics/clicks/partitions/{partition}/records{query}");
        self.request("GET", &target, &[], b"").await
    }

    async fn values(&self, partition: u32) -> Vec<Value> {
        let answer = self
            .get(partition, "?max_records=100000&max_bytes=16777216")
            .await;
        assert_eq!(answer.status, 200);
        let records = answer.json()["records"].take();
        records
            .as_array()
            .unwrap()
            .iter()
            .map(|record| record["value"].clone())
            .collect()
    }
}

fn image() -> MetadataImage {
    let partition = PartitionImage {
        replicas: vec![ME],
        isr: vec![ME],
        leader: Some(ME),
        leader_epoch: LeaderEpoch(1),
        partition_epoch: PartitionEpoch(1),
        ..PartitionImage::default()
    };
    let topic = |id, name| TopicImage {
        id: TopicId(Uuid::from_u128(id)),
        name: TopicName::new(name).unwrap(),
        config: TopicConfig {
            max_message_bytes: 2_000,
            ..TopicConfig::default()
        },
        partitions: vec![partition.clone(); PARTITIONS as usize],
    };
    let delta = MetadataDelta {
        version: MetadataVersion(1),
        control_epoch: ControlEpoch(1),
        topics: vec![topic(1, "clicks")],
        ..MetadataDelta::default()
    };
    MetadataImage::default().after(delta, Tick(0)).unwrap()
}

fn with_address(image: &MetadataImage, address: &str) -> MetadataImage {
    let worker = WorkerImage {
        id: ME,
        epoch: WorkerEpoch(1),
        address: address.to_owned(),
        active: true,
    };
    let delta = MetadataDelta {
        since: image.version,
        version: MetadataVersion(image.version.0 + 1),
        control_epoch: image.control_epoch,
        workers: vec![worker],
        ..MetadataDelta::default()
    };
    image.after(delta, Tick(0)).unwrap()
}

/// Runs a test against a worker of its own. Nobody sends heartbeats for it: its session is longer than any test.
fn with_worker<F: Future<Output = ()>>(test: impl FnOnce(Arc<Worker>) -> F) {
    with_worker_that_is_heard_for(Span::from_secs(3_600), test);
}

fn with_worker_that_is_heard_for<F: Future<Output = ()>>(
    session_timeout: Span,
    test: impl FnOnce(Arc<Worker>) -> F,
) {
    let quotas = Quotas::of(&WorkerConfig::defaults(), &SystemClock::shared());
    with_worker_and(session_timeout, quotas, test);
}

pub(super) fn with_worker_and<F: Future<Output = ()>>(
    session_timeout: Span,
    quotas: Quotas,
    test: impl FnOnce(Arc<Worker>) -> F,
) {
    System::new().block_on(async {
        let composed: Composed = Arc::new(OnceLock::new());
        let serving = composed.clone();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let http = HttpServer::start("test", listen, 1, Span::from_secs(1), move |server| {
            routes(server, &serving, Uuid::from_u128(1));
        })
        .unwrap();
        let address = format!("http://{}", http.address());
        let home = tempfile::tempdir().unwrap();
        let clock = SystemClock::shared();
        let transport = Transport::start("test").unwrap();
        let (_facts, image) = watch::channel(Arc::new(with_address(&image(), &address)));
        let threads = Arc::new(Threads::start(1).unwrap());
        let disk = clock.clone();
        let settings = PartitionSettings {
            isr: isr_proposals().0,
            clock: clock.clone(),
            ages: Arc::new(AgeClock::open(clock.clone(), None)),
            image: image.clone(),
            store: None,
            storage: Arc::new(move |_| Ok(MemoryStorage::new(disk.clone()).shared())),
            disk: Arc::new(Semaphore::new(4)),
            on_disk_failure: Arc::new(|failure| panic!("{failure}")),
        };
        let starter = PartitionStarter::new(vec![threads.log()], settings);
        let partitions = Partitions::new(home.path().join("partitions"), starter).unwrap();
        let newest = image.borrow().clone();
        partitions.apply(ME, &newest).await;
        let log = LogClient::new(image.clone(), transport.clone());
        let exchange = Exchange::new(
            ME,
            WorkerEpoch(1),
            1,
            image.clone(),
            transport.clone(),
            threads.control(),
        );
        let registered = Registered {
            cluster: ClusterId(Uuid::from_u128(1)),
            worker: ME,
            epoch: WorkerEpoch(1),
            control_epoch: ControlEpoch(1),
            heartbeat_interval: HEARTBEAT_INTERVAL,
            session_timeout,
        };
        let session = Session::of(&registered);
        session.hears(clock.tick(), image.borrow().version);
        let lease = Lease::new(session.clone(), image.clone(), clock.clone());
        let (heard, now, known) = (session.clone(), clock.clone(), image.clone());
        let hears = move || heard.hears(now.tick(), known.borrow().version);
        let services = Services {
            session: session.clone(),
            coordinators: Coordinators::new(vec![address.clone()]),
            transport: transport.clone(),
            image: image.clone(),
            log: log.clone(),
            exchange: exchange.clone(),
            clock: clock.clone(),
            reports: Arc::default(),
            urgent: Arc::default(),
            threads: threads.clone(),
            custom: Arc::new(CustomOperators::default()),
            memory: MemoryPlan::of(64 << 20),
            state_memory: StateMemory::new(16 << 20),
            jobs_directory: home.path().join("jobs"),
        };
        let (_stop, stopping) = watch::channel(false);
        let parts = Routes {
            partitions: partitions.clone(),
            log: log
                .clone()
                .with_local(ME, partitions.clone(), lease.clone()),
            replication: Sessions::new(clock.clone(), partitions.clone()),
            turn: Arc::default(),
            intake: Intake::new(256 << 20),
            quotas,
            jobs: Jobs::start(services, BTreeSet::new()),
            exchange,
            image,
            transport: transport.clone(),
            coordinators: Coordinators::new(vec![address.clone()]),
            session,
            lease,
            clock,
            reports: Arc::default(),
            load: Arc::default(),
            metrics: Arc::default(),
            stopping,
        };
        assert!(composed.set(parts).is_ok());
        let worker = Worker {
            address,
            transport,
            log,
            home,
            hears: Box::new(hears),
        };
        let worker = Arc::new(worker);
        test(worker.clone()).await;
        assert!(worker.home.path().exists());
        partitions.close().await;
        tokio::task::spawn_blocking(move || http.stop())
            .await
            .unwrap();
    });
}

#[test]
fn a_worker_that_hears_no_coordinator_gives_what_is_committed_and_does_not_say_what_is_newest() {
    with_worker_that_is_heard_for(Span(0), |worker| async move {
        worker.post(NDJSON, "?acks=leader", b"1\n2\n").await;
        for (place, status) in [("earliest", 200), ("0", 200), ("latest", 503)] {
            for partition in 0..PARTITIONS {
                let answer = worker.get(partition, &format!("?offset={place}")).await;
                assert_eq!(answer.status, status, "{place}");
                if status == 503 {
                    assert_eq!(answer.json()["code"], "METADATA_STALE");
                }
            }
        }
        // Somebody else may lead, and have it.
        let beyond = worker.get(0, "?offset=1000").await;
        assert_eq!(beyond.json()["code"], "METADATA_STALE");
        let mut request = ListOffsets {
            partition: TopicPartition {
                topic: TopicId(Uuid::from_u128(1)),
                partition: PartitionId(0),
            },
            at: None,
            newest: true,
        };
        let ask = |request: ListOffsets| {
            let (transport, address) = (worker.transport.clone(), worker.address.clone());
            async move {
                transport
                    .call(&address, &request, Span::from_secs(60))
                    .await
            }
        };
        let refused = ask(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::MetadataStale));
        request.newest = false;
        ask(request).await.unwrap();
    });
}

#[test]
fn lines_go_in_and_come_out_as_they_were() {
    with_worker(|worker| async move {
        let lines = b"{\"user\": \"ann\", \"n\": 1e2}\n\n  [1, 2]\r\n\"text\"\nnull\n";
        let produced = worker.post(NDJSON, "?acks=leader", lines).await;
        assert_eq!(produced.status, 200);
        let produced = produced.json();
        assert_eq!(produced["count"], 4);
        let first = &produced["partitions"][0];
        assert_eq!(
            (&first["base_offset"], &first["count"]),
            (&json!(0), &json!(4))
        );
        let partition = u32::try_from(first["partition"].as_u64().unwrap()).unwrap();

        // Acknowledged by the leader, it may be on its way to the disk.
        let answer = worker.get(partition, "?wait_ms=10000").await;
        let text = String::from_utf8(answer.body.clone()).unwrap();
        assert!(
            text.contains(r#""value":{"user": "ann", "n": 1e2}"#),
            "{text}"
        );
        let records = answer.json();
        assert_eq!(records["next_offset"], 4);
        assert_eq!(records["records"][3]["value"], Value::Null);
        assert_eq!(answer.header("x-next-offset"), "4");

        let target =
            format!("/v1/topics/clicks/partitions/{partition}/records?offset=1&max_records=2");
        let accept = [(
            "accept",
            "text/html, application/x-ndjson;q=0.9, application/json;q=0.1",
        )];
        let lines = worker.request("GET", &target, &accept, b"").await;
        assert_eq!(lines.header("content-type"), NDJSON);
        assert_eq!(lines.header("x-next-offset"), "3");
        let text = String::from_utf8(lines.body).unwrap();
        let values: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["value"].take())
            .collect();
        assert_eq!(values, [json!([1, 2]), json!("text")]);
    });
}

#[test]
fn records_with_a_key_meet_in_the_partition_kafka_would_choose() {
    with_worker(|worker| async move {
        let lines: String = (0..30)
            .map(|n| format!("{{\"id\":\"k{}\",\"n\":{n}}}\n", n % 7))
            .collect();
        let produced = worker
            .post(NDJSON, "?key=/id", lines.as_bytes())
            .await
            .json();
        assert_eq!(produced["count"], 30);
        for n in 0..7 {
            let key = format!("\"k{n}\"");
            let partition = partition_of_key(key.as_bytes(), PARTITIONS);
            let answer = worker.get(partition.0, "").await.json();
            let of_key: Vec<&Value> = answer["records"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|record| record["key"] == format!("k{n}"))
                .collect();
            let expected = if n < 2 { 5 } else { 4 };
            assert_eq!(of_key.len(), expected, "key {key}");
            assert!(of_key.is_sorted_by_key(|record| record["value"]["n"].as_u64()));
        }
    });
}

#[test]
fn everything_a_record_can_have_survives_in_json_and_in_messagepack() {
    with_worker(|worker| async move {
        let body = json!({"records": [
            {"key": {"a": 1}, "value": {"base64": "/wA="}, "partition": 1, "timestamp": 5,
             "headers": {"trace": "abc", "twice": ["1", "2"], "raw": {"base64": "/w=="}, "none": null}},
            {"key": "gone", "value": null, "partition": 1, "timestamp": "1970-01-01T00:00:00.007Z"},
        ]});
        let produced = worker.post(JSON, "", body.to_string().as_bytes()).await;
        assert_eq!(produced.status, 200);
        let answer = worker.get(1, "").await.json();
        assert_eq!(
            answer["records"],
            json!([
                {"offset": 0, "timestamp": 5, "key": {"a": 1}, "value": {"base64": "/wA="},
                 "headers": {"trace": "abc", "twice": ["1", "2"], "raw": {"base64": "/w=="}, "none": null}},
                {"offset": 1, "timestamp": 7, "key": "gone", "value": null},
            ])
        );
        let target = "/v1/topics/clicks/partitions/1/records";
        let packed = worker
            .request("GET", target, &[("accept", "application/msgpack")], b"")
            .await;
        assert_eq!(packed.header("content-type"), "application/msgpack");
        // What was read can be written again, byte for byte.
        let mut reader = super::msgpack_text::Reader::new(&packed.body);
        let mut text = Vec::new();
        reader.json(0, &mut text).unwrap();
        assert!(reader.is_at_end());
        let unpacked: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(unpacked, answer);
    });
}

#[test]
fn a_request_with_one_bad_record_writes_nothing_and_says_which() {
    with_worker(|worker| async move {
        let long = format!("\"{}\"", "x".repeat(3_000));
        let table = [
            (
                NDJSON,
                "{\"a\":1}\n{\"a\":}\n".to_owned(),
                400,
                ErrorCode::InvalidRecord,
                "line 2, column 6",
            ),
            (
                NDJSON,
                format!("1\n{long}\n"),
                413,
                ErrorCode::RecordTooLarge,
                "record 1",
            ),
            (
                JSON,
                r#"{"records":[{"value":1},{"value":1,"partition":3}]}"#.to_owned(),
                404,
                ErrorCode::UnknownPartition,
                "/records/1",
            ),
            (
                JSON,
                r#"{"records":[{"value":1},{"valeu":1}]}"#.to_owned(),
                400,
                ErrorCode::InvalidRecord,
                "/records/1",
            ),
        ];
        for (content_type, body, status, code, place) in table {
            let answer = worker.post(content_type, "", body.as_bytes()).await;
            assert_eq!(answer.status, status, "{body}");
            assert_eq!(answer.header("content-type"), "application/problem+json");
            let problem = answer.json();
            assert_eq!(problem["code"], serde_json::to_value(code).unwrap());
            assert_eq!(problem["at"], place, "{problem}");
        }
        for partition in 0..PARTITIONS {
            assert!(worker.values(partition).await.is_empty());
        }
        for (content_type, query, body, code) in [
            ("text/plain", "", "1", ErrorCode::UnsupportedMediaType),
            (NDJSON, "", "\n \n", ErrorCode::InvalidRequest),
            (NDJSON, "?acks=some", "1", ErrorCode::InvalidRequest),
            (NDJSON, "?key=id", "1", ErrorCode::InvalidRequest),
            (NDJSON, "?ack=all", "1", ErrorCode::InvalidRequest),
            (
                JSON,
                "?key=/id",
                "{\"records\":[]}",
                ErrorCode::InvalidRequest,
            ),
            (JSON, "", "[1]", ErrorCode::InvalidRequest),
        ] {
            let answer = worker.post(content_type, query, body.as_bytes()).await;
            assert_eq!(
                answer.json()["code"],
                serde_json::to_value(code).unwrap(),
                "{query} {body}"
            );
        }
        let packed = [("content-type", NDJSON), ("content-encoding", "gzip")];
        let target = "/v1/topics/clicks/records";
        let answer = worker.request("POST", target, &packed, b"1").await;
        let problem = answer.json();
        assert_eq!(problem["code"], "UNSUPPORTED_MEDIA_TYPE");
        assert!(problem["detail"].as_str().unwrap().contains("gzip"));
        assert!(
            problem["hint"]
                .as_str()
                .unwrap()
                .contains("Content-Encoding")
        );
        let answer = worker.get(0, "?wait_ms=-1").await;
        let detail = answer.json()["detail"].take();
        assert!(
            detail.as_str().unwrap().contains("\"wait_ms\" is \"-1\""),
            "{detail}"
        );
    });
}

#[test]
fn a_repeated_request_is_answered_with_the_first_result() {
    with_worker(|worker| async move {
        let headers = [("content-type", NDJSON), ("idempotency-key", "order-17")];
        let target = "/v1/topics/clicks/records";
        // Large enough to be cut into several batches, with and without a key.
        let line = format!("{{\"pad\":\"{}\"}}\n", "x".repeat(1_000));
        let body = line.repeat(TARGET_BATCH_BYTES / 1_000 * 4);
        let first = worker
            .request("POST", target, &headers, body.as_bytes())
            .await
            .json();
        let again = worker
            .request("POST", target, &headers, body.as_bytes())
            .await
            .json();
        assert_eq!(first["count"], again["count"]);
        let placed = |answer: &Value| -> Vec<(u64, u64)> {
            let partitions = answer["partitions"].as_array().unwrap();
            partitions
                .iter()
                .map(|p| {
                    (
                        p["partition"].as_u64().unwrap(),
                        p["base_offset"].as_u64().unwrap(),
                    )
                })
                .collect()
        };
        assert_eq!(placed(&first), placed(&again));
        assert_eq!(again["partitions"][0]["duplicate"], true);
        let mut stored = 0;
        for partition in 0..PARTITIONS {
            let offsets = ListOffsets {
                partition: TopicPartition {
                    topic: TopicId(Uuid::from_u128(1)),
                    partition: PartitionId(partition),
                },
                at: None,
                newest: false,
            };
            stored += worker.log.offsets(offsets).await.unwrap().log_end_offset.0;
        }
        assert_eq!(Some(stored), first["count"].as_i64());

        let other = worker.request("POST", target, &headers, b"1\n").await;
        assert_eq!(
            (other.status, &other.json()["code"]),
            (409, &json!("CONFLICT"))
        );
        // What makes a repetition known is not a user's business.
        let record = worker
            .get(placed(&first)[0].0 as u32, "?max_records=1")
            .await
            .json();
        assert_eq!(record["records"][0].get("headers"), None);
    });
}

#[test]
fn reading_begins_where_it_is_told_to() {
    with_worker(|worker| async move {
        for time in [
            "2026-01-01T00:00:00Z",
            "2026-01-02T00:00:00Z",
            "2026-01-03T00:00:00Z",
        ] {
            let body = json!({"records": [{"value": time, "timestamp": time, "partition": 0}]});
            assert_eq!(
                worker
                    .post(JSON, "", body.to_string().as_bytes())
                    .await
                    .status,
                200
            );
        }
        let table = [
            ("?offset=earliest", 3, 3),
            ("?offset=latest", 0, 3),
            ("?offset=2", 1, 3),
            ("?offset=3&wait_ms=1", 0, 3),
            ("?offset=@2026-01-01T12:00:00Z", 2, 3),
            ("?offset=@2026-01-02", 2, 3),
            ("?offset=@2027-01-01T00:00:00%2B02:00", 0, 3),
            ("?max_bytes=1", 1, 1),
            ("?isolation=read_uncommitted&max_records=2", 2, 2),
        ];
        for (query, count, next) in table {
            let answer = worker.get(0, query).await.json();
            assert_eq!(
                answer["records"].as_array().unwrap().len(),
                count,
                "{query}"
            );
            assert_eq!(answer["next_offset"], next, "{query}");
            assert_eq!(answer["end_offset"], 3);
        }
        let wrong = [
            ("?offset=4", 416),
            ("?offset=-1", 400),
            ("?offset=@noon", 400),
            ("?isolation=dirty", 400),
            ("?max_records=0", 400),
            ("?ofset=1", 400),
        ];
        for (query, status) in wrong {
            let answer = worker.heard_while(worker.get(0, query)).await;
            assert_eq!(answer.status, status, "{query}");
        }
        assert_eq!(worker.get(PARTITIONS, "").await.status, 404);
        let unknown = worker
            .request("GET", "/v1/topics/nope/partitions/0/records", &[], b"")
            .await;
        assert_eq!(unknown.json()["code"], "UNKNOWN_TOPIC");
    });
}

#[test]
fn a_long_poll_answers_when_something_comes() {
    with_worker(|worker| async move {
        let body = json!({"records": [{"value": "now", "partition": 2}]}).to_string();
        let (answer, produced) = futures_util::join!(
            worker.get(2, "?wait_ms=30000"),
            worker.post(JSON, "", body.as_bytes())
        );
        assert_eq!(produced.status, 200);
        let records = answer.json()["records"].take();
        // Whichever came first, the reader did not wait in vain.
        assert_eq!(records[0]["value"], "now");
    });
}

#[test]
fn a_live_tail_shows_all_partitions_and_goes_on_where_it_was() {
    with_worker(|worker| async move {
        let line = |partition: u32, n: u32| {
            let body = json!({"records": [{"value": n, "partition": partition}]}).to_string();
            let worker = worker.clone();
            async move { worker.post(JSON, "", body.as_bytes()).await }
        };
        for partition in 0..PARTITIONS {
            assert_eq!(line(partition, partition).await.status, 200);
        }
        let tail = "/v1/topics/clicks/stream?from=earliest";
        let (seen, last_id) = events(worker.send("GET", tail, &[], b"").await, 3).await;
        let mut partitions: Vec<u64> = seen
            .iter()
            .map(|e| e["partition"].as_u64().unwrap())
            .collect();
        partitions.sort_unstable();
        assert_eq!(partitions, [0, 1, 2]);
        assert_eq!(last_id, "0:1,1:1,2:1");

        assert_eq!(line(1, 77).await.status, 200);
        let resume = [("last-event-id", last_id.as_str())];
        let (seen, last_id) = events(worker.send("GET", tail, &resume, b"").await, 1).await;
        assert_eq!(
            (&seen[0]["value"], &seen[0]["offset"]),
            (&json!(77), &json!(1))
        );
        assert_eq!(last_id, "0:1,1:2,2:1");

        let one = worker
            .request("GET", "/v1/topics/clicks/stream?from=7", &[], b"")
            .await;
        assert_eq!(one.status, 400);
    });
}

/// So many events of a stream, and the id of the last one.
async fn events(mut stream: Forwarded, count: usize) -> (Vec<Value>, String) {
    assert_eq!(stream.status, 200);
    let mut text = String::new();
    loop {
        let seen: Vec<Value> = text
            .split("\n\n")
            .filter_map(|event| event.split_once("data: "))
            .filter_map(|(_, data)| serde_json::from_str(data).ok())
            .collect();
        if seen.len() >= count {
            let mut ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
            return (seen, ids.next_back().unwrap_or_default().to_owned());
        }
        let chunk = stream
            .body
            .next()
            .await
            .expect("the stream goes on")
            .unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

#[test]
fn other_nodes_append_fetch_and_ask_over_calls() {
    with_worker(|worker| async move {
        let partition = TopicPartition {
            topic: TopicId(Uuid::from_u128(1)),
            partition: PartitionId(0),
        };
        let batch = |value: &[u8]| {
            let mut builder = LogBatchBuilder::new();
            builder.push(Timestamp(9), None, Some(value), &[]);
            builder.build()
        };
        // This client knows of no partition of its own: everything goes over the wire.
        let batches = vec![batch(b"1"), batch(b"2"), batch(b"3")];
        let appended = worker
            .log
            .append_all(partition, batches, Acks::All)
            .await
            .unwrap();
        let offsets: Vec<i64> = appended.iter().map(|batch| batch.base_offset.0).collect();
        assert_eq!(offsets, [0, 1, 2]);
        let fetched = worker
            .log
            .fetch(FetchBatches {
                partition,
                offset: Offset(1),
                max_bytes: 1 << 20,
                wait: Span(0),
                isolation: Isolation::ReadCommitted,
            })
            .await
            .unwrap();
        assert_eq!(fetched.next_offset, Offset(3));
        let found = ListOffsets {
            partition,
            at: Some(Timestamp(9)),
            newest: true,
        };
        let found = worker.log.offsets(found).await.unwrap();
        assert_eq!(
            (found.at, found.log_end_offset),
            (Some(Offset(0)), Offset(3))
        );

        let former = InjectBarrier {
            control_epoch: ControlEpoch(0),
            worker: ME,
            job: JobId(1),
            generation: Generation(1),
            checkpoint: CheckpointId(1),
            kind: CheckpointKind::Periodic,
        };
        let asking = worker
            .transport
            .call(&worker.address, &former, Span::from_secs(60));
        let refused = asking.await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::StaleControlEpoch));

        let too_large = batch(&[b'x'; 3_000]);
        let refused = worker
            .log
            .append_all(partition, vec![too_large], Acks::All)
            .await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::InvalidRecord);
        let mut broken = batch(b"4").into_bytes().to_vec();
        *broken.last_mut().unwrap() ^= 1;
        let refused = worker.log.append(partition, broken.into()).await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::InvalidRecord);
    });
}
