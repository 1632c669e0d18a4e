//! `GET /v1/topics/{topic}/partitions/{p}/records`: a client reads, and waits for more.

use actix_web::http::header::HeaderName;
use actix_web::web::{self, Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use common::error::{ErrorCode, Problem};
use common::ids::TopicPartition;
use common::limits::{
    DEFAULT_FETCH_BYTES, DEFAULT_FETCH_RECORDS, MAX_FETCH_BYTES, MAX_FETCH_RECORDS, MAX_WAIT,
};
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::fetch::{FetchBatches, FetchedBatches, ListOffsets, PartitionOffsets};
use common::time::{Span, Timestamp};
use common::transport::server::Query;
use serde::Deserialize;

use super::answer_records::{put_json_record, put_msgpack_record};
use super::msgpack_text::{put_array, put_i64, put_map, put_str};
use super::request_records::parse_time;
use super::throttle::client_of;
use super::{AnswerFormat, Composed, Routes, invalid, partition_of, parts};

const NEXT_OFFSET: HeaderName = HeaderName::from_static("x-next-offset");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchQuery {
    offset: Option<String>,
    max_records: Option<usize>,
    max_bytes: Option<usize>,
    wait_ms: Option<u64>,
    isolation: Option<Isolation>,
}

/// Where to begin reading, as users say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Earliest,
    Latest,
    At(Offset),
    Time(Timestamp),
}

/// Records in an answer's format, and where they end.
struct Answered {
    records: Vec<u8>,
    count: usize,
    next_offset: Offset,
}

pub async fn fetch(
    composed: Data<Composed>,
    path: Path<(String, u32)>,
    Query(query): Query<FetchQuery>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let routes = parts(&composed)?;
    let (topic, partition) = path.into_inner();
    let format = AnswerFormat::of(&request)?;
    let client = client_of(&request)?;
    routes.may_read(&client)?;
    let start = Start::parse(query.offset.as_deref().unwrap_or("earliest"))?;
    let isolation = query.isolation.unwrap_or_default();
    let max_records = query.max_records.unwrap_or(DEFAULT_FETCH_RECORDS);
    let max_bytes = query.max_bytes.unwrap_or(DEFAULT_FETCH_BYTES);
    if max_records == 0 || max_bytes == 0 {
        return Err(invalid("max_records and max_bytes are at least 1"));
    }
    let max_records = max_records.min(MAX_FETCH_RECORDS);
    let max_bytes = max_bytes.min(MAX_FETCH_BYTES);
    let topic = routes.topic(&topic).await?;
    let id = partition_of(&topic, partition)?;
    let from = resolve(&routes, id, start, isolation).await?;
    let fetched = routes
        .log
        .fetch(FetchBatches {
            partition: id,
            offset: from,
            max_bytes: u32::try_from(max_bytes).unwrap_or(u32::MAX),
            wait: Span(query.wait_ms.unwrap_or(0)).min(MAX_WAIT),
            isolation,
        })
        .await?;
    let (log_start, end) = (fetched.log_start_offset, fetched.end_offset);
    let rendered = web::block(move || render(fetched, from, max_records, max_bytes, format))
        .await
        .map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))??;
    let read = rendered.records.len() as u64;
    routes.quotas.consumers.charge(&client, read);
    routes.metrics.fetched(topic.name.as_str(), read);
    let next_offset = rendered.next_offset;
    let body = match format {
        AnswerFormat::Ndjson => rendered.records,
        AnswerFormat::Json => json_body(&rendered, log_start, end),
        AnswerFormat::Msgpack => msgpack_body(&rendered, log_start, end),
    };
    Ok(HttpResponse::Ok()
        .content_type(format.content_type())
        .insert_header((NEXT_OFFSET, next_offset.0))
        .body(body))
}

/// The offset at which to begin.
pub(super) async fn resolve(
    routes: &Routes,
    partition: TopicPartition,
    start: Start,
    isolation: Isolation,
) -> Result<Offset, Problem> {
    let at = match start {
        Start::At(offset) => return Ok(offset),
        Start::Time(time) => Some(time),
        Start::Earliest | Start::Latest => None,
    };
    let request = ListOffsets {
        partition,
        at,
        newest: start == Start::Latest,
    };
    let offsets = match routes.log.offsets(request).await {
        // Of a damaged log the beginning may be all that is left.
        Err(problem) if problem.code == ErrorCode::CorruptLog && start == Start::Earliest => {
            return Ok(Offset::ZERO);
        }
        offsets => offsets?,
    };
    let end = end_for(&offsets, isolation);
    Ok(match start {
        Start::At(offset) => offset,
        Start::Earliest => offsets.log_start_offset,
        Start::Latest => end,
        Start::Time(_) => offsets.at.unwrap_or(end),
    })
}

fn end_for(offsets: &PartitionOffsets, isolation: Isolation) -> Offset {
    match isolation {
        Isolation::ReadCommitted => offsets.last_stable_offset,
        Isolation::ReadUncommitted => offsets.committed_offset,
    }
}

impl Start {
    /// `earliest`, `latest`, an offset, or `@` and a time.
    pub(super) fn parse(text: &str) -> Result<Start, Problem> {
        let wrong = || {
            invalid(format!("\"{text}\" is not a place in a partition")).hint(
                "Write earliest, latest, an offset, or @ and a time such as @2026-01-31T12:00:00Z.",
            )
        };
        match text {
            "earliest" => Ok(Start::Earliest),
            "latest" => Ok(Start::Latest),
            _ => match text.strip_prefix('@') {
                // In a query string, an unescaped plus sign stands for a space.
                Some(time) => parse_time(&time.replace(' ', "+"))
                    .or_else(|| parse_time(time))
                    .map(Start::Time)
                    .ok_or_else(wrong),
                None => {
                    let offset: i64 = text.parse().map_err(|_| wrong())?;
                    if offset < 0 {
                        return Err(wrong());
                    }
                    Ok(Start::At(Offset(offset)))
                }
            },
        }
    }
}

/// Decodes batches and writes the records from `from` on, at most so many, and no more once there are so
/// many bytes.
fn render(
    fetched: FetchedBatches,
    from: Offset,
    max_records: usize,
    max_bytes: usize,
    format: AnswerFormat,
) -> Result<Answered, Problem> {
    let mut answered = Answered {
        records: Vec::with_capacity(fetched.batches.len() * 2),
        count: 0,
        next_offset: from,
    };
    let (batches, next_offset) = fetched.open().map_err(corrupt)?;
    for batch in batches {
        if batch.header().control {
            answered.next_offset = batch.header().end_offset();
            continue;
        }
        let records = batch.records().map_err(corrupt)?;
        for record in &records {
            let record = record.map_err(corrupt)?;
            if record.offset < from {
                continue;
            }
            if answered.count == max_records
                || (answered.count > 0 && answered.records.len() >= max_bytes)
            {
                return Ok(answered);
            }
            let out = &mut answered.records;
            match format {
                AnswerFormat::Ndjson => {
                    put_json_record(out, &record, None);
                    out.push(b'\n');
                }
                AnswerFormat::Json => {
                    if answered.count > 0 {
                        out.push(b',');
                    }
                    put_json_record(out, &record, None);
                }
                AnswerFormat::Msgpack => put_msgpack_record(out, &record),
            }
            answered.count += 1;
            answered.next_offset = record.offset.next();
        }
    }
    // What was left out behind the last record need not be looked at again.
    answered.next_offset = answered.next_offset.max(next_offset);
    Ok(answered)
}

pub(super) fn corrupt(error: common::log_batch::BatchError) -> Problem {
    Problem::new(ErrorCode::CorruptLog, error.to_string())
}

fn json_body(answered: &Answered, log_start: Offset, end: Offset) -> Vec<u8> {
    let mut body = Vec::with_capacity(answered.records.len() + 128);
    body.extend_from_slice(b"{\"records\":[");
    body.extend_from_slice(&answered.records);
    let rest = format!(
        "],\"next_offset\":{},\"log_start_offset\":{log_start},\"end_offset\":{end}}}",
        answered.next_offset
    );
    body.extend_from_slice(rest.as_bytes());
    body
}

fn msgpack_body(answered: &Answered, log_start: Offset, end: Offset) -> Vec<u8> {
    let mut body = Vec::with_capacity(answered.records.len() + 128);
    put_map(&mut body, 4);
    put_str(&mut body, "records");
    put_array(&mut body, answered.count);
    body.extend_from_slice(&answered.records);
    for (name, offset) in [
        ("next_offset", answered.next_offset),
        ("log_start_offset", log_start),
        ("end_offset", end),
    ] {
        put_str(&mut body, name);
        put_i64(&mut body, offset.0);
    }
    body
}
