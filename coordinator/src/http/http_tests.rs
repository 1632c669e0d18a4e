//! A whole coordinator over real sockets, with workers that say what the test tells them to.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use actix_web::web::ServiceConfig;
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use common::config::coordinator::CoordinatorConfig;
use common::error::ErrorCode;
use common::ids::{ClusterId, MetadataVersion, NodeId, StorageId, WorkerEpoch};
use common::protocol::Call;
use common::protocol::metadata::{FetchMetadata, MetadataDelta};
use common::protocol::node::{Heartbeat, NodeLoad, RegisterWorker, Registered};
use common::time::{ManualClock, Span, Timestamp};
use common::transport::client::{CallError, Forward, Transport};
use common::transport::server::{HttpServer, resource};

use crate::node::{Node, StartError};

const DEADLINE: Span = Span::from_secs(30);

struct Cluster {
    directory: TempDir,
    clock: Arc<ManualClock>,
    transport: Transport,
    node: Option<Node>,
}

impl Cluster {
    fn start() -> Cluster {
        let mut cluster = Cluster {
            directory: tempfile::tempdir().unwrap(),
            clock: Arc::new(ManualClock::at(Timestamp(1_700_000_000_000))),
            transport: Transport::start("test").unwrap(),
            node: None,
        };
        cluster.node = Some(cluster.try_start().unwrap());
        cluster
    }

    fn try_start(&self) -> Result<Node, StartError> {
        let config = CoordinatorConfig {
            listen: any_port(),
            data_dir: self.directory.path().to_owned(),
            http_threads: 2,
            ..CoordinatorConfig::defaults()
        };
        Node::start_with(config, self.clock.clone(), || ())
    }

    fn restart(&mut self) {
        self.node.take().unwrap().stop();
        self.node = Some(self.try_start().unwrap());
    }

    fn address(&self) -> &str {
        self.node.as_ref().unwrap().address()
    }

    async fn call<C: Call>(&self, request: &C) -> Result<C::Reply, CallError> {
        self.transport.call(self.address(), request, DEADLINE).await
    }

    /// Status and body of a user's request.
    async fn request(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        let request = Forward {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Bytes::from(body.to_owned()),
        };
        let mut answer = self
            .transport
            .forward(self.address(), request, DEADLINE)
            .await
            .unwrap();
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.body.next().await {
            bytes.extend_from_slice(&chunk.unwrap());
        }
        (answer.status, String::from_utf8(bytes).unwrap())
    }

    async fn json(&self, method: &str, target: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (status, text) = self.request(method, target, &body).await;
        let value = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap()
        };
        (status, value)
    }

    async fn register(&self, storage: u128, address: &str) -> Result<Registered, CallError> {
        self.call(&introduction(storage, address)).await
    }

    async fn beat(&self, worker: &Registered, sequence: u64, ready: bool) -> Result<(), CallError> {
        self.call(&Heartbeat {
            cluster: worker.cluster,
            worker: worker.worker,
            epoch: worker.epoch,
            sequence,
            metadata_version: MetadataVersion(0),
            ready,
            tasks: Vec::new(),
            load: NodeLoad {
                partitions_led: 3,
                ..NodeLoad::default()
            },
        })
        .await
        .map(|_| ())
    }

    async fn fetch(&self, cluster: ClusterId, since: MetadataVersion) -> MetadataDelta {
        self.call(&FetchMetadata {
            cluster,
            worker: None,
            since,
            wait: DEADLINE,
        })
        .await
        .unwrap()
    }

    /// Follows the facts until the worker is active, or is not.
    async fn until_active(&self, worker: &Registered, active: bool) -> MetadataDelta {
        let mut since = MetadataVersion(0);
        loop {
            let delta = self.fetch(worker.cluster, since).await;
            if delta
                .workers
                .iter()
                .any(|w| w.id == worker.worker && w.active == active)
            {
                return delta;
            }
            since = delta.version;
        }
    }

    /// A worker at this address that may be given work, and that follows the facts as one does.
    async fn active_worker(&self, storage: u128, address: &str) -> Registered {
        let worker = self.register(storage, address).await.unwrap();
        self.beat(&worker, 1, true).await.unwrap();
        let delta = self.until_active(&worker, true).await;
        let (transport, coordinator) = (self.transport.clone(), self.address().to_owned());
        let mut request = FetchMetadata {
            cluster: worker.cluster,
            worker: Some(worker.worker),
            since: delta.version,
            wait: DEADLINE,
        };
        tokio::spawn(async move {
            while let Ok(delta) = transport.call(&coordinator, &request, DEADLINE).await {
                request.since = delta.version;
            }
        });
        worker
    }
}

fn introduction(storage: u128, address: &str) -> RegisterWorker {
    RegisterWorker {
        cluster: None,
        worker: None,
        storage: StorageId(Uuid::from_u128(storage)),
        incarnation: Uuid::from_u128(storage),
        address: address.to_owned(),
        clean_shutdown: true,
        version: "1".to_owned(),
        cores: 2,
        slots: 32,
        memory_bytes: 1 << 30,
        operators: Vec::new(),
        rack: None,
    }
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// An address at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind(any_port()).unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn run(story: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(story);
}

#[test]
fn a_topic_is_created_described_changed_listed_and_deleted() {
    let cluster = Cluster::start();
    run(async {
        let order = json!({"name": "orders", "partitions": 3});
        let (status, problem) = cluster.json("POST", "/v1/topics", order.clone()).await;
        assert_eq!((status, &problem["code"]), (503, &json!("NO_WORKERS")));

        let worker = cluster.active_worker(1, &nobody()).await;
        let (status, created) = cluster.json("POST", "/v1/topics", order.clone()).await;
        assert_eq!(status, 201, "{created}");
        assert_eq!(created["partitions"].as_array().unwrap().len(), 3);
        assert_eq!(created["partitions"][2]["leader"], worker.worker.0);
        assert_eq!(created["config"]["retention_ms"], 604_800_000);
        assert_eq!(created["created_at"], "2023-11-14T22:13:20.000Z");
        let (status, again) = cluster.json("GET", "/v1/topics/orders", Value::Null).await;
        assert_eq!((status, &again), (200, &created));

        let (status, problem) = cluster.json("POST", "/v1/topics", order).await;
        assert_eq!((status, &problem["code"]), (409, &json!("ALREADY_EXISTS")));

        let change = json!({"partitions": 5, "config": {"retention_ms": null}});
        let (status, changed) = cluster.json("PATCH", "/v1/topics/orders", change).await;
        assert_eq!(status, 200, "{changed}");
        assert_eq!(changed["partitions"].as_array().unwrap().len(), 5);
        assert_eq!(changed["config"]["retention_ms"], Value::Null);
        let fewer = json!({"partitions": 2});
        let (status, problem) = cluster.json("PATCH", "/v1/topics/orders", fewer).await;
        assert_eq!((status, &problem["at"]), (400, &json!("/partitions")));

        cluster
            .json("POST", "/v1/topics", json!({"name": "clicks"}))
            .await;
        let (_, first) = cluster.json("GET", "/v1/topics?limit=1", Value::Null).await;
        assert_eq!(first["topics"][0]["name"], "clicks");
        let next = format!(
            "/v1/topics?limit=1&after={}",
            first["next"].as_str().unwrap()
        );
        let (_, second) = cluster.json("GET", &next, Value::Null).await;
        assert_eq!(second["topics"][0]["partitions"], 5);
        assert_eq!(second["next"], Value::Null);

        let (status, problem) = cluster.json("GET", "/v1/topics/order", Value::Null).await;
        assert_eq!((status, &problem["code"]), (404, &json!("UNKNOWN_TOPIC")));
        assert_eq!(problem["hint"], "Did you mean \"orders\"?");

        let (status, _) = cluster
            .json("DELETE", "/v1/topics/orders", Value::Null)
            .await;
        assert_eq!(status, 204);
        let (status, _) = cluster
            .json("DELETE", "/v1/topics/orders", Value::Null)
            .await;
        assert_eq!(status, 404);
    });
}

#[test]
fn requests_that_make_no_sense_are_answered_with_the_code_and_the_place() {
    let cluster = Cluster::start();
    run(async {
        for (method, target, body, status, code, place) in [
            (
                "POST",
                "/v1/topics",
                r#"{"name": "a b"}"#,
                400,
                "INVALID_NAME",
                "",
            ),
            (
                "POST",
                "/v1/topics",
                r#"{"partitions": 1}"#,
                400,
                "INVALID_REQUEST",
                "/name",
            ),
            (
                "POST",
                "/v1/topics",
                r#"{"name": "a", "x": 1}"#,
                400,
                "INVALID_REQUEST",
                "/x",
            ),
            (
                "POST",
                "/v1/topics",
                r#"{"name": "a", "replication_factor": 9}"#,
                422,
                "UNSUPPORTED_REPLICATION_FACTOR",
                "/replication_factor",
            ),
            (
                "POST",
                "/v1/topics",
                "{",
                400,
                "INVALID_REQUEST",
                "line 1, column 1",
            ),
            (
                "PATCH",
                "/v1/topics/a",
                r#"{"partition": 2}"#,
                400,
                "INVALID_REQUEST",
                "/partition",
            ),
            ("GET", "/v1/topics/a%20b", "", 400, "INVALID_NAME", ""),
            (
                "GET",
                "/v1/topics?limit=0",
                "",
                400,
                "INVALID_REQUEST",
                "limit",
            ),
            ("GET", "/v1/topics?page=2", "", 400, "INVALID_REQUEST", ""),
            ("PUT", "/v1/topics", "", 405, "METHOD_NOT_ALLOWED", ""),
            ("GET", "/v1/topic", "", 404, "NOT_FOUND", ""),
            (
                "POST",
                "/v1/topics/a/records",
                "1",
                404,
                "UNKNOWN_TOPIC",
                "",
            ),
        ] {
            let (answered, text) = cluster.request(method, target, body).await;
            let problem: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(answered, status, "{method} {target} {body}: {problem}");
            assert_eq!(problem["code"], code, "{method} {target} {body}");
            assert_eq!(
                problem["at"].as_str().unwrap_or_default(),
                place,
                "{problem}"
            );
        }
    });
}

#[test]
fn a_worker_registers_becomes_active_and_is_fenced_when_its_port_refuses_connections() {
    let cluster = Cluster::start();
    run(async {
        let worker = cluster.register(1, &nobody()).await.unwrap();
        assert_eq!(worker.worker, NodeId(1));
        cluster.beat(&worker, 1, false).await.unwrap();
        cluster.beat(&worker, 2, true).await.unwrap();
        cluster.until_active(&worker, true).await;
        let (_, listed) = cluster.json("GET", "/v1/workers", Value::Null).await;
        assert_eq!(listed["workers"][0]["status"], "active");
        assert_eq!(listed["workers"][0]["load"]["partitions_led"], 3);

        // More than a heartbeat is missing, far less than a session.
        cluster.clock.advance(Span(700));
        cluster.until_active(&worker, false).await;
        let refused = cluster.beat(&worker, 3, true).await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::FencedWorkerEpoch));
        let again = cluster.register(1, &nobody()).await.unwrap();
        assert_eq!(again.worker, worker.worker);
        assert!(again.epoch > worker.epoch);
    });
}

/// It was noticed when its next heartbeat was missing.
#[test]
fn a_worker_that_hangs_up_while_it_waits_for_news_is_asked_at_once_whether_it_is_there() {
    let cluster = Cluster::start();
    run(async {
        let worker = cluster.register(1, &nobody()).await.unwrap();
        cluster.beat(&worker, 1, true).await.unwrap();
        let delta = cluster.until_active(&worker, true).await;
        let waits = FetchMetadata {
            cluster: worker.cluster,
            worker: Some(worker.worker),
            since: delta.version,
            wait: DEADLINE,
        };
        let hangs_up = async {
            loop {
                // The first may be given up before it has come to the coordinator.
                let patience = std::time::Duration::from_millis(50);
                tokio::time::timeout(patience, cluster.call(&waits))
                    .await
                    .ok();
            }
        };
        // The clock stands still: no heartbeat is missing.
        tokio::select! {
            _ = cluster.until_active(&worker, false) => {}
            () = hangs_up => {}
        }
    });
}

#[test]
fn a_worker_that_hangs_keeps_its_epoch_until_its_session_ends() {
    let cluster = Cluster::start();
    run(async {
        // It accepts connections and answers nothing.
        let listener = TcpListener::bind(any_port()).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let worker = cluster.active_worker(1, &address).await;
        cluster.clock.advance(Span(2_900));
        cluster.beat(&worker, 2, true).await.unwrap();
        cluster.clock.advance(Span(3_000));
        cluster.until_active(&worker, false).await;
    });
}

#[test]
fn a_coordinator_that_comes_back_knows_everything_and_takes_nobody_for_dead() {
    let mut cluster = Cluster::start();
    run(async {
        let worker = cluster.active_worker(1, &nobody()).await;
        cluster
            .json("POST", "/v1/topics", json!({"name": "kept"}))
            .await;
        cluster.clock.advance(Span(500));
        cluster.restart();
        let (_, about) = cluster.json("GET", "/v1/cluster", Value::Null).await;
        assert_eq!(
            (&about["topics"], &about["workers"]["active"]),
            (&json!(1), &json!(1))
        );
        assert!(about["control_epoch"].as_u64().unwrap() > worker.control_epoch.0);
        cluster.beat(&worker, 2, true).await.unwrap();
    });
}

#[test]
fn nodes_of_another_cluster_are_refused_by_every_call() {
    let cluster = Cluster::start();
    run(async {
        let worker = cluster.register(1, &nobody()).await.unwrap();
        let stranger = Registered {
            cluster: ClusterId(Uuid::from_u128(9)),
            ..worker
        };
        let refused = cluster.beat(&stranger, 1, true).await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::WrongCluster));
        let fetch = FetchMetadata {
            cluster: stranger.cluster,
            worker: None,
            since: MetadataVersion(0),
            wait: DEADLINE,
        };
        let refused = cluster.call(&fetch).await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::WrongCluster));
        let unknown = RegisterWorker {
            cluster: Some(worker.cluster),
            worker: Some(NodeId(99)),
            ..introduction(9, &nobody())
        };
        let refused = cluster.call(&unknown).await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::UnknownWorker));
        let wrong_epoch = Registered {
            epoch: WorkerEpoch(worker.epoch.0 + 1),
            ..worker
        };
        let refused = cluster.beat(&wrong_epoch, 1, true).await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::FencedWorkerEpoch));
    });
}

#[test]
fn requests_for_records_go_on_to_the_leader() {
    let cluster = Cluster::start();
    run(async {
        let echo = |config: &mut ServiceConfig| {
            let answer = |request: HttpRequest, body: Bytes| async move {
                let said = format!("{} {}", request.uri(), String::from_utf8_lossy(&body));
                HttpResponse::MultiStatus().body(said)
            };
            config.service(resource("/{path:.*}").to(answer));
        };
        let server = HttpServer::start("w", any_port(), 1, Span::from_secs(5), echo).unwrap();
        let leader = format!("http://{}", server.address());
        cluster.active_worker(1, &leader).await;
        cluster
            .json("POST", "/v1/topics", json!({"name": "t"}))
            .await;
        let produce = cluster
            .request("POST", "/v1/topics/t/records?key=/k", "{}")
            .await;
        assert_eq!(produce, (207, "/v1/topics/t/records?key=/k {}".to_owned()));
        let (status, _) = cluster
            .request("GET", "/v1/topics/t/partitions/0/records", "")
            .await;
        assert_eq!(status, 207);
        let (status, problem) = cluster
            .json("GET", "/v1/topics/t/partitions/7/records", Value::Null)
            .await;
        assert_eq!(
            (status, &problem["code"]),
            (404, &json!("UNKNOWN_PARTITION"))
        );
    });
}

#[test]
fn a_stop_answers_whoever_waits_for_news() {
    let mut cluster = Cluster::start();
    run(async {
        let worker = cluster.register(1, &nobody()).await.unwrap();
        let version = cluster
            .fetch(worker.cluster, MetadataVersion(0))
            .await
            .version;
        let (transport, address) = (cluster.transport.clone(), cluster.address().to_owned());
        let (asked, asking) = tokio::sync::oneshot::channel();
        let parked = tokio::spawn(async move {
            let request = FetchMetadata {
                cluster: worker.cluster,
                worker: None,
                since: version,
                wait: Span::from_secs(30),
            };
            asked.send(()).unwrap();
            transport.call(&address, &request, DEADLINE).await
        });
        asking.await.unwrap();
        let node = cluster.node.take().unwrap();
        let stopping = tokio::task::spawn_blocking(move || node.stop());
        // It was answered, or came too late to be taken; it was not left to time out.
        match parked.await.unwrap() {
            Ok(delta) => assert_eq!(delta.version, version),
            Err(error) => assert!(matches!(error, CallError::Unreachable { .. }), "{error}"),
        }
        stopping.await.unwrap();
    });
}

#[test]
fn everything_there_is_is_described_and_shown_without_a_network() {
    let cluster = Cluster::start();
    run(async {
        let (status, api) = cluster.json("GET", "/openapi.json", Value::Null).await;
        assert_eq!(status, 200);
        for path in [
            "/v1/topics",
            "/v1/topics/{topic}",
            "/v1/cluster",
            "/v1/workers",
            "/v1/coordinators",
            "/v1/coordinators/{coordinator}",
            "/metrics",
        ] {
            assert!(api["paths"][path].is_object(), "{path} is not described");
        }
        assert!(api["components"]["schemas"]["TopicConfig"].is_object());
        let (status, page) = cluster.request("GET", "/docs", "").await;
        assert_eq!(status, 200);
        assert!(page.contains("/openapi.json"));
        assert!(
            !page.contains("http://") && !page.contains("https://"),
            "it would need a network"
        );
        let (_, metrics) = cluster.request("GET", "/metrics", "").await;
        assert!(
            metrics.contains("millstream_coordinator_metadata_version 2"),
            "{metrics}"
        );
        assert_eq!(cluster.request("GET", "/health/live", "").await.0, 200);
        assert_eq!(cluster.request("GET", "/health/ready", "").await.0, 200);
    });
}

#[test]
fn several_coordinators_live_in_one_process_but_never_on_one_directory() {
    let first = Cluster::start();
    let second = Cluster::start();
    assert_ne!(first.address(), second.address());
    let refused = first.try_start().map(|_| ()).unwrap_err();
    assert!(matches!(refused, StartError::DataDir(_)), "{refused}");
}
