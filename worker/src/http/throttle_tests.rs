//! Clients with quotas at a worker without a coordinator: who has to wait, how long, and who has not.

use std::sync::Arc;

use common::time::{ManualClock, Span, Timestamp};
use futures_util::StreamExt;
use serde_json::json;

use super::http_tests::{Worker, with_worker_and};
use crate::quota::{Quota, Quotas};

const RECORDS: &str = "/v1/topics/clicks/records";
const READ: &str = "/v1/topics/clicks/partitions/0/records?max_bytes=1000000";
const RATE: u64 = 1_000;

fn with_quotas<F: Future<Output = ()>>(
    (producers, consumers): (Option<u64>, Option<u64>),
    test: impl FnOnce(Arc<Worker>, Arc<ManualClock>) -> F,
) {
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let quotas = Quotas {
        producers: Quota::new(producers, clock.clone()),
        consumers: Quota::new(consumers, clock.clone()),
    };
    with_worker_and(Span::from_secs(3_600), quotas, |worker| test(worker, clock));
}

/// One record for partition 0, in a request of so many bytes.
fn body(bytes: usize) -> Vec<u8> {
    let frame = json!({"records": [{"partition": 0, "value": ""}]}).to_string();
    frame
        .replace("\"\"", &format!("\"{}\"", "x".repeat(bytes - frame.len())))
        .into_bytes()
}

#[test]
fn a_producer_over_its_quota_is_told_when_to_come_again_and_nothing_is_written() {
    with_quotas((Some(RATE), None), |worker, clock| async move {
        let post = async |client: &str, bytes: usize| {
            let headers = [
                ("content-type", "application/json"),
                ("x-client-id", client),
            ];
            worker
                .request("POST", RECORDS, &headers, &body(bytes))
                .await
        };
        let read = async || worker.request("GET", READ, &[], b"").await.json();
        assert_eq!(post("reports", 1_500).await.status, 200);
        let refused = post("reports", 100).await;
        assert_eq!(refused.status, 429);
        assert_eq!(refused.header("retry-after"), "1");
        let problem = refused.json();
        assert_eq!(problem["code"], "QUOTA_EXCEEDED");
        assert_eq!(problem["retry_after"], 1);
        assert!(problem["hint"].as_str().unwrap().contains("Retry-After"));
        assert_eq!(read().await["end_offset"], 1);
        // Another client is not concerned, whoever it takes itself for; nor is one without a name.
        assert_eq!(post("billing", 100).await.status, 200);
        assert_eq!(post("127.0.0.1", 1_500).await.status, 200);
        let headers = [("content-type", "application/json")];
        let unnamed = worker
            .request("POST", RECORDS, &headers, &body(1_900))
            .await;
        assert_eq!(unnamed.status, 200);
        let unnamed = worker.request("POST", RECORDS, &headers, &body(100)).await;
        assert_eq!(unnamed.header("retry-after"), "1");
        assert_eq!(read().await["end_offset"], 4);

        clock.advance(Span::from_millis(501));
        assert_eq!(post("reports", 1_900).await.status, 200);
        // What it has had beyond its burst it pays for with time.
        let refused = post("reports", 100).await;
        assert_eq!(refused.header("retry-after"), "2");
        clock.advance(Span::from_secs(2));
        assert_eq!(post("reports", 100).await.status, 200);

        let metrics = worker.request("GET", "/metrics", &[], b"").await;
        let metrics = String::from_utf8(metrics.body).unwrap();
        let line = "millstream_worker_throttled_requests_total{kind=\"produce\"} 3";
        assert!(metrics.contains(line), "{metrics}");
        let wrong = post(&"x".repeat(256), 100).await;
        assert_eq!(wrong.json()["code"], "INVALID_REQUEST");
    });
}

#[test]
fn a_request_that_was_passed_on_counts_for_who_sent_it_first() {
    with_quotas((Some(RATE), None), |worker, _| async move {
        let post = async |peer: &str| {
            let headers = [
                ("content-type", "application/json"),
                ("millstream-hops", "1"),
                ("millstream-peer", peer),
            ];
            let body = body(1_500);
            let answer = worker.request("POST", RECORDS, &headers, &body);
            answer.await.status
        };
        assert_eq!(post("10.0.0.1").await, 200);
        assert_eq!(post("10.0.0.2").await, 200);
        assert_eq!(post("10.0.0.1").await, 429);
        // One that was not passed on comes from where it comes from.
        let headers = [
            ("content-type", "application/json"),
            ("millstream-peer", "10.0.0.1"),
        ];
        let direct = worker
            .request("POST", RECORDS, &headers, &body(1_500))
            .await;
        assert_eq!(direct.status, 200);
    });
}

#[test]
fn a_consumer_over_its_quota_is_told_when_to_come_again() {
    with_quotas((None, Some(RATE)), |worker, clock| async move {
        let headers = [("content-type", "application/json")];
        worker
            .request("POST", RECORDS, &headers, &body(1_900))
            .await;
        let read = async |client: &str| {
            let headers = [("x-client-id", client)];
            worker.request("GET", READ, &headers, b"").await
        };
        assert_eq!(read("reports").await.status, 200);
        let refused = read("reports").await;
        assert_eq!(refused.json()["code"], "QUOTA_EXCEEDED");
        assert_eq!(refused.header("retry-after"), "1");
        assert_eq!(read("billing").await.status, 200);
        clock.advance(Span::from_secs(1));
        assert_eq!(read("reports").await.status, 200);
    });
}

#[test]
fn a_stream_over_its_quota_goes_on_later() {
    with_quotas((None, Some(RATE)), |worker, clock| async move {
        let headers = [("content-type", "application/json")];
        worker
            .request("POST", RECORDS, &headers, &body(1_900))
            .await;
        let target = "/v1/topics/clicks/stream?from=earliest";
        let mut stream = worker.send("GET", target, &[], b"").await.body;
        let mut text = String::new();
        while !text.contains("\"offset\":0") {
            text += str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap();
        }
        // Of the same client, so it waits for the same.
        let refused = worker.request("GET", READ, &[], b"").await;
        assert_eq!(refused.status, 429);
        worker.request("POST", RECORDS, &headers, &body(100)).await;
        clock.advance(Span::from_secs(1));
        while !text.contains("\"offset\":1") {
            text += str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap();
        }
    });
}
