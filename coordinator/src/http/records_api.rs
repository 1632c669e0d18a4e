//! What is said of the calls for records in `/openapi.json`: workers answer them, any node takes them.
//!
//! Only descriptions: `forward_records` takes the requests.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use common::error::Problem;
use common::plan::connector::Isolation;

/// One value per line is sent as `application/x-ndjson`; this is `application/json` or `application/msgpack`.
#[derive(Debug, Deserialize, ToSchema)]
#[expect(dead_code, reason = "read by the description only")]
struct ProduceRequest {
    records: Vec<ProduceRecord>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[expect(dead_code, reason = "read by the description only")]
struct ProduceRecord {
    /// Any JSON value, or `{"base64": "…"}`. Records with the same key go to the same partition.
    key: Option<serde_json::Value>,
    value: serde_json::Value,
    headers: Option<std::collections::BTreeMap<String, String>>,
    /// Milliseconds since 1970 or ISO 8601; default now.
    timestamp: Option<serde_json::Value>,
    partition: Option<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Produced {
    count: u64,
    partitions: Vec<ProducedPartition>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ProducedPartition {
    partition: u32,
    base_offset: Option<i64>,
    count: u64,
    /// These records had been appended by an earlier request with the same `Idempotency-Key`; this is where.
    duplicate: Option<bool>,
    error: Option<Problem>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by the description only")]
struct ProduceOptions {
    /// `all` (default): acknowledged once it is on disk. `leader`: once the leader has it.
    acks: Option<String>,
    /// A JSON pointer into each value of an ndjson body: the record's key.
    key: Option<String>,
}

#[utoipa::path(
    post,
    path = "/v1/topics/{topic}/records",
    tag = "records",
    params(
        ("topic" = String, Path),
        ProduceOptions,
        ("X-Client-Id" = Option<String>, Header, description = "Whose quota it counts for; else that of the address it comes from"),
        ("Idempotency-Key" = Option<String>, Header, description = "A repetition within 24 hours is answered with the first result"),
    ),
    request_body = ProduceRequest,
    responses(
        (status = 200, body = Produced),
        (status = 207, description = "What became of it differs by partition", body = Produced),
        (status = 400, description = "A record is wrong, and nothing was written; `at` says which", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "The `Idempotency-Key` was used for another request", body = Problem),
        (status = 413, body = Problem),
        (status = 415, body = Problem),
        (status = 429, description = "Too much is waiting, or the client has used up its quota: nothing of it was written, and `Retry-After` says when to come again", body = Problem),
        (status = 503, description = "The partition has no live leader, or the node is stopping", body = Problem),
        (status = 504, description = "It was not acknowledged in time, and may yet be written", body = Problem),
        (status = 507, description = "The disk is full: nothing of it was written", body = Problem),
    )
)]
#[expect(dead_code, reason = "a description")]
pub(crate) fn produce() {}

#[derive(Debug, Serialize, ToSchema)]
struct Page {
    records: Vec<FetchedRecord>,
    next_offset: i64,
    log_start_offset: i64,
    /// One past the last record that may be read.
    end_offset: i64,
}

#[derive(Debug, Serialize, ToSchema)]
struct FetchedRecord {
    offset: i64,
    /// Milliseconds since 1970.
    timestamp: i64,
    /// What is not JSON comes as `{"base64": "…"}`.
    key: Option<serde_json::Value>,
    value: Option<serde_json::Value>,
    headers: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by the description only")]
struct FetchOptions {
    /// `earliest` (default), `latest`, an offset, or `@` and a time.
    offset: Option<String>,
    max_records: Option<u32>,
    max_bytes: Option<u32>,
    /// Waits so long for the first record.
    wait_ms: Option<u64>,
    #[param(inline, value_type = Option<String>)]
    isolation: Option<Isolation>,
}

#[utoipa::path(
    get,
    path = "/v1/topics/{topic}/partitions/{partition}/records",
    tag = "records",
    params(
        ("topic" = String, Path),
        ("partition" = u32, Path),
        FetchOptions,
        ("X-Client-Id" = Option<String>, Header, description = "Whose quota it counts for; else that of the address it comes from"),
    ),
    responses(
        (status = 200, description = "Also as application/x-ndjson and application/msgpack", body = Page),
        (status = 400, description = "An option is wrong", body = Problem),
        (status = 404, body = Problem),
        (status = 416, description = "The offset is outside the log", body = Problem),
        (status = 429, description = "The client has used up its quota; `Retry-After` says when to come again", body = Problem),
        (status = 500, description = "What is stored there is damaged", body = Problem),
        (status = 503, description = "The partition has no live leader", body = Problem),
    )
)]
#[expect(dead_code, reason = "a description")]
pub(crate) fn fetch() {}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by the description only")]
struct StreamOptions {
    /// `latest` (default), `earliest`, or `@` and a time.
    from: Option<String>,
    #[param(inline, value_type = Option<String>)]
    isolation: Option<Isolation>,
}

#[utoipa::path(
    get,
    path = "/v1/topics/{topic}/stream",
    tag = "records",
    params(
        ("topic" = String, Path),
        StreamOptions,
        ("X-Client-Id" = Option<String>, Header, description = "Whose quota it counts for; events come later where it is used up"),
    ),
    responses(
        (status = 200, description = "Every record of all partitions as it comes, as server-sent events", body = String, content_type = "text/event-stream"),
        (status = 400, description = "An option is wrong", body = Problem),
        (status = 404, body = Problem),
    )
)]
#[expect(dead_code, reason = "a description")]
pub(crate) fn stream() {}
