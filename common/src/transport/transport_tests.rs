//! Calls and forwarded requests over real sockets, from several runtimes at once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::web::{self, Payload, ServiceConfig};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::client::{CallError, Forward, Transport};
use super::server::{self, HttpServer};
use crate::error::{ErrorCode, Problem};
use crate::ids::{PartitionId, TopicId, TopicPartition};
use crate::offset::Offset;
use crate::plan::connector::Isolation;
use crate::protocol::Call;
use crate::protocol::fetch::{FetchBatches, FetchedBatches};
use crate::time::Span;

const DEADLINE: Span = Span::from_secs(20);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Add {
    terms: Vec<i64>,
    padding: Bytes,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sum {
    total: i64,
    padding: Bytes,
}

impl Call for Add {
    const PATH: &'static str = "/internal/v1/add";
    type Reply = Sum;
}

/// Waits at the receiver until it is released.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Park {}

impl Call for Park {
    const PATH: &'static str = "/internal/v1/park";
    type Reply = Sum;
}

#[derive(Clone, Default)]
struct Gate {
    arrived: Arc<Notify>,
    released: Arc<Notify>,
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn start(gate: &Gate) -> HttpServer {
    let gate = gate.clone();
    HttpServer::start("test", any_port(), 2, Span::from_secs(20), move |config| {
        routes(config, gate.clone());
    })
    .unwrap()
}

fn routes(config: &mut ServiceConfig, gate: Gate) {
    server::register(config, |request: Add| async move {
        if request.terms.is_empty() {
            return Err(Problem::new(ErrorCode::InvalidRequest, "nothing to add").hint("Add."));
        }
        Ok(Sum {
            total: request.terms.iter().sum(),
            padding: request.padding,
        })
    });
    server::register(config, move |_: Park| {
        let gate = gate.clone();
        async move {
            gate.arrived.notify_one();
            gate.released.notified().await;
            Ok(Sum {
                total: 0,
                padding: Bytes::new(),
            })
        }
    });
    config.service(server::resource("/v1/echo").route(web::post().to(
        |payload: Payload| async move {
            let body = server::read_body(payload, 100).await?;
            Ok::<_, Problem>(
                HttpResponse::Created()
                    .insert_header(("x-echo", "1"))
                    .body(body),
            )
        },
    )));
    config.service(server::resource("/v1/typed").route(web::put().to(
        |server::JsonBody(add): server::JsonBody<Add>| async move {
            HttpResponse::Ok().json(add.terms.len())
        },
    )));
}

#[test]
fn a_reply_of_many_batches_arrives_as_it_was_sent() {
    let batches: Vec<u8> = (0..(3_u32 << 20))
        .map(|n| n.to_le_bytes()[(n % 4) as usize])
        .collect();
    let batches = Bytes::from(batches);
    let sent = batches.clone();
    let server = HttpServer::start("test", any_port(), 1, Span::from_secs(20), move |config| {
        let sent = sent.clone();
        server::register(config, move |call: FetchBatches| {
            let length = usize::try_from(call.max_bytes).unwrap();
            let batches = sent.slice(..length);
            async move {
                Ok(FetchedBatches {
                    next_offset: call.offset.next(),
                    log_start_offset: Offset(0),
                    end_offset: Offset(i64::MAX),
                    batches,
                })
            }
        });
    })
    .unwrap();
    let transport = Transport::start("test").unwrap();
    block_on(async {
        // None, less than a piece, whole pieces, and one byte more or less than that.
        for length in [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20] {
            let call = FetchBatches {
                partition: TopicPartition {
                    topic: TopicId(uuid::Uuid::from_u128(1)),
                    partition: PartitionId(0),
                },
                offset: Offset(4),
                max_bytes: length,
                wait: Span(0),
                isolation: Isolation::ReadCommitted,
            };
            let reply = transport
                .call(&url(&server), &call, DEADLINE)
                .await
                .unwrap();
            assert_eq!(reply.next_offset, Offset(5));
            assert!(reply.batches == batches[..usize::try_from(length).unwrap()]);
        }
    });
    server.stop();
}

fn url(server: &HttpServer) -> String {
    format!("http://{}", server.address())
}

fn add(terms: &[i64]) -> Add {
    Add {
        terms: terms.to_vec(),
        padding: Bytes::new(),
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn a_call_is_answered_by_its_reply_from_any_thread_and_runtime() {
    let server = start(&Gate::default());
    let transport = Transport::start("test").unwrap();
    let threads: Vec<_> = (0..4_i64)
        .map(|n| {
            let transport = transport.clone();
            let address = url(&server);
            std::thread::spawn(move || {
                block_on(async {
                    for term in 0..20 {
                        let reply = transport.call(&address, &add(&[n, term]), DEADLINE).await;
                        assert_eq!(reply.unwrap().total, n + term);
                    }
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_reply_of_many_chunks_arrives_whole() {
    let server = start(&Gate::default());
    let transport = Transport::start("test").unwrap();
    let padding: Bytes = (0..3_000_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    let request = Add {
        terms: vec![1],
        padding: padding.clone(),
    };
    let reply = block_on(transport.call(&url(&server), &request, DEADLINE)).unwrap();
    assert_eq!(reply.padding, padding);
}

#[test]
fn a_refusal_arrives_as_the_problem_it_is() {
    let server = start(&Gate::default());
    let transport = Transport::start("test").unwrap();
    let error = block_on(transport.call(&url(&server), &add(&[]), DEADLINE)).unwrap_err();
    let CallError::Problem(problem) = error else {
        panic!("not a problem: {error}");
    };
    assert_eq!(
        *problem,
        Problem::new(ErrorCode::InvalidRequest, "nothing to add").hint("Add.")
    );
}

#[test]
fn nobody_listening_is_told_apart_from_nobody_answering() {
    let transport = Transport::start("test").unwrap();
    let closed = {
        let listener = TcpListener::bind(any_port()).unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let error = block_on(transport.call(&closed, &add(&[1]), DEADLINE)).unwrap_err();
    assert!(
        matches!(error, CallError::Unreachable { refused: true, .. }),
        "{error:?}"
    );

    let gate = Gate::default();
    let server = start(&gate);
    let error = block_on(transport.call(&url(&server), &Park {}, Span(50))).unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error:?}");
    assert!(error.is_retriable() && error.code().is_none());
    gate.released.notify_one();
}

#[test]
fn a_connection_that_is_cut_leaves_the_outcome_open() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let cutter = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let transport = Transport::start("test").unwrap();
    let error = block_on(transport.call(&address, &add(&[1]), DEADLINE)).unwrap_err();
    assert!(
        matches!(error, CallError::Unreachable { refused: false, .. }),
        "{error:?}"
    );
    cutter.join().unwrap();
}

#[test]
fn an_address_of_another_service_is_not_mistaken_for_a_reply() {
    #[derive(Serialize, Deserialize)]
    struct Unknown {}
    impl Call for Unknown {
        const PATH: &'static str = "/internal/v1/unknown";
        type Reply = Sum;
    }
    let server = start(&Gate::default());
    let transport = Transport::start("test").unwrap();
    let error = block_on(transport.call(&url(&server), &Unknown {}, DEADLINE)).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
}

#[test]
fn a_forwarded_request_is_answered_as_if_it_had_been_sent_there() {
    let server = start(&Gate::default());
    let transport = Transport::start("test").unwrap();
    block_on(async {
        let request = Forward {
            method: "POST".to_owned(),
            target: "/v1/echo?x=1".to_owned(),
            headers: vec![("content-type".to_owned(), b"text/plain".to_vec())],
            body: Bytes::from_static(b"hello"),
        };
        let answer = transport.forward(&url(&server), request, DEADLINE).await;
        let mut answer = answer.unwrap();
        assert_eq!(answer.status, 201);
        assert!(
            answer
                .headers
                .contains(&("x-echo".to_owned(), b"1".to_vec()))
        );
        let mut body = Vec::new();
        while let Some(chunk) = answer.body.next().await {
            body.extend_from_slice(&chunk.unwrap());
        }
        assert_eq!(body, b"hello");
    });
}

#[test]
fn every_mistake_in_a_request_is_answered_with_a_problem_document() {
    let server = start(&Gate::default());
    let transport = Transport::start("test").unwrap();
    for (method, target, body, status, code) in [
        ("GET", "/nowhere", String::new(), 404, "NOT_FOUND"),
        ("GET", "/v1/echo", String::new(), 405, "METHOD_NOT_ALLOWED"),
        (
            "POST",
            "/v1/echo",
            "x".repeat(101),
            413,
            "REQUEST_TOO_LARGE",
        ),
        (
            "PUT",
            "/v1/typed",
            "{\"terms\":".to_owned(),
            400,
            "INVALID_REQUEST",
        ),
        (
            "GET",
            "/internal/v1/add",
            String::new(),
            405,
            "METHOD_NOT_ALLOWED",
        ),
    ] {
        let problem = block_on(async {
            let request = Forward {
                method: method.to_owned(),
                target: target.to_owned(),
                headers: Vec::new(),
                body: Bytes::from(body),
            };
            let answer = transport.forward(&url(&server), request, DEADLINE).await;
            let mut answer = answer.unwrap();
            assert_eq!(answer.status, status, "{method} {target}");
            let content_type = (
                "content-type".to_owned(),
                b"application/problem+json".to_vec(),
            );
            assert!(answer.headers.contains(&content_type), "{method} {target}");
            let mut body = Vec::new();
            while let Some(chunk) = answer.body.next().await {
                body.extend_from_slice(&chunk.unwrap());
            }
            serde_json::from_slice::<serde_json::Value>(&body).unwrap()
        });
        assert_eq!(problem["code"], code, "{method} {target}");
        assert_eq!(problem["status"], status, "{method} {target}");
        assert_eq!(problem["type"], "about:blank");
    }
}

/// After five seconds it was answered with a 408, which its client took for the answer to its first request.
#[test]
fn a_connection_that_was_opened_ahead_of_its_first_request_is_served() {
    let server = start(&Gate::default());
    let mut connection = TcpStream::connect(server.address()).unwrap();
    let read_timeout = |connection: &TcpStream, seconds| {
        let timeout = std::time::Duration::from_secs(seconds);
        connection.set_read_timeout(Some(timeout)).unwrap();
    };
    read_timeout(&connection, 6);
    let mut answer = [0; 12];
    connection.read(&mut answer).unwrap_err();
    read_timeout(&connection, DEADLINE.0);
    let request = b"POST /v1/echo HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\nhi";
    connection.write_all(request).unwrap();
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
}

#[test]
fn stopping_lets_a_request_that_is_under_way_end_and_takes_no_other() {
    let gate = Gate::default();
    let server = start(&gate);
    let address = url(&server);
    let transport = Transport::start("test").unwrap();
    block_on(async {
        // An idle connection must not hold the stop up either.
        transport
            .call(&address, &add(&[1]), DEADLINE)
            .await
            .unwrap();
        let parked = tokio::spawn({
            let transport = transport.clone();
            let address = address.clone();
            async move { transport.call(&address, &Park {}, DEADLINE).await }
        });
        gate.arrived.notified().await;
        let stopping = tokio::task::spawn_blocking(move || server.stop());
        gate.released.notify_one();
        stopping.await.unwrap();
        assert!(parked.await.unwrap().is_ok());
        let refused = transport.call(&address, &add(&[1]), DEADLINE).await;
        assert!(refused.is_err());
    });
}
