//! `POST /v1/topics/{topic}/records`: a client's records → the partitions they belong to.
//!
//! The whole request is decoded and checked before anything is written. Its records are then grouped
//! into batches per partition; partitions are written beside each other, and each answers for itself.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName};
use actix_web::web::{self, Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::{PartitionId, TopicPartition};
use common::key_group::hash_key;
use common::limits::TARGET_BATCH_BYTES;
use common::log_batch::{HEADER_BYTES, LogBatch, LogBatchBuilder};
use common::partitioner::{StickyPartitioner, murmur2, partition_of_key};
use common::protocol::metadata::TopicImage;
use common::protocol::produce::{Acks, AppendedBatch};
use common::record::Header;
use common::time::Timestamp;
use common::transport::server::Query;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::json_text::Pointer;
use super::request_records::{BodyFormat, RequestRecord, decode};
use super::throttle::client_of;
use super::{Composed, header, invalid, partition_of, parts};
use crate::log::idempotency::{MAX_KEY_BYTES, RequestPart};

/// A body that is decoded where it came in; a larger one goes to a thread that may take its time.
const SMALL_BODY_BYTES: usize = 32 << 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProduceQuery {
    acks: Option<String>,
    /// A JSON pointer into each value of an ndjson body.
    key: Option<String>,
}

/// What became of the records of each partition.
#[derive(Debug, Serialize)]
struct Produced {
    count: u64,
    partitions: Vec<PartitionResult>,
}

#[derive(Debug, Serialize)]
struct PartitionResult {
    partition: PartitionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_offset: Option<i64>,
    count: u64,
    /// The same request was here before; this is what became of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem>,
}

/// Batches for one partition, in order.
#[derive(Debug)]
struct PartitionBatches {
    partition: PartitionId,
    records: u64,
    batches: Vec<LogBatch>,
}

/// How a request's records are to be turned into batches.
#[derive(Debug)]
struct Grouping {
    partitions: u32,
    max_record_bytes: usize,
    now: Timestamp,
    idempotency: Option<Idempotency>,
    /// Where the records without a key begin.
    start: u32,
}

#[derive(Clone, Debug)]
struct Idempotency {
    key: String,
    fingerprint: u64,
}

pub async fn produce(
    composed: Data<Composed>,
    topic: Path<String>,
    Query(query): Query<ProduceQuery>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let routes = parts(&composed)?;
    let acks = parse_acks(query.acks.as_deref())?;
    let format = body_format(&request)?;
    let pointer = parse_pointer(query.key.as_deref(), format)?;
    let client = client_of(&request)?;
    // Who has to wait is told so before its body takes any room.
    routes.take_from(&client, 0)?;
    // The room is given back with the answer.
    let admitted = routes.intake.read(&request, payload).await;
    let admitted = admitted.inspect_err(|problem| {
        if problem.code == ErrorCode::Overloaded {
            routes.metrics.produce_refused();
        }
    })?;
    let body = admitted.body.clone();
    let (sent, began) = (body.len() as u64, routes.clock.tick());
    routes.take_from(&client, sent)?;
    let topic = routes.topic(&topic).await?;
    let idempotency = idempotency_key(&request, &body)?;
    let grouping = Grouping {
        partitions: u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX),
        max_record_bytes: usize::try_from(topic.config.max_message_bytes).unwrap_or(usize::MAX),
        now: routes.clock.wall(),
        start: match &idempotency {
            // A repetition must find the partitions of the first time.
            Some(idempotency) => murmur2(idempotency.key.as_bytes()),
            None => routes.turn.fetch_add(1, Ordering::Relaxed),
        },
        idempotency,
    };
    let group = {
        let topic = topic.clone();
        move || {
            let records = decode(format, &body, pointer.as_ref())?;
            grouping.group(&topic, &records, format)
        }
    };
    let small = request_bytes(&request).is_some_and(|bytes| bytes <= SMALL_BODY_BYTES);
    let groups = if small {
        group()?
    } else {
        let _turn = routes.intake.turn().await;
        web::block(group)
            .await
            .map_err(|error| Problem::new(ErrorCode::Internal, error.to_string()))??
    };
    let results = groups.into_iter().map(|group| {
        let id = TopicPartition {
            topic: topic.id,
            partition: group.partition,
        };
        let log = routes.log.clone();
        async move {
            let appended = log.append_all(id, group.batches, acks).await;
            PartitionResult::new(group.partition, group.records, appended)
        }
    });
    let results = join_all(results).await;
    let acknowledged = results.iter().map(|result| result.count).sum();
    let seconds = routes.clock.tick().since(began).as_duration().as_secs_f64();
    routes
        .metrics
        .produced(topic.name.as_str(), acknowledged, sent, seconds);
    Ok(answer(results))
}

/// 200 if all went well, the problem itself if there is but one to tell, 207 if partitions differ.
fn answer(partitions: Vec<PartitionResult>) -> HttpResponse {
    let mut problems = partitions.iter().filter_map(|result| result.error.as_ref());
    let status = match problems.next() {
        None => StatusCode::OK,
        Some(first) => {
            let alike = partitions.iter().all(|result| {
                result
                    .error
                    .as_ref()
                    .is_some_and(|problem| problem.code == first.code)
            });
            if alike {
                return actix_web::ResponseError::error_response(first);
            }
            StatusCode::MULTI_STATUS
        }
    };
    let count = partitions.iter().map(|result| result.count).sum();
    HttpResponse::build(status).json(Produced { count, partitions })
}

impl PartitionResult {
    fn new(
        partition: PartitionId,
        records: u64,
        appended: Result<Vec<AppendedBatch>, Problem>,
    ) -> PartitionResult {
        match appended {
            Ok(batches) => PartitionResult {
                partition,
                base_offset: batches.first().map(|batch| batch.base_offset.0),
                count: records,
                duplicate: batches.iter().all(|batch| batch.duplicate),
                error: None,
            },
            Err(problem) => PartitionResult {
                partition,
                base_offset: None,
                count: 0,
                duplicate: false,
                error: Some(problem),
            },
        }
    }
}

impl Grouping {
    fn group(
        &self,
        topic: &TopicImage,
        records: &[RequestRecord<'_>],
        format: BodyFormat,
    ) -> Result<Vec<PartitionBatches>, Problem> {
        if records.is_empty() {
            return Err(invalid("the request has no records")
                .hint("Send at least one; white space between lines does not count."));
        }
        let mut sticky = StickyPartitioner::starting_at(self.start);
        let mut groups: BTreeMap<PartitionId, Vec<&RequestRecord<'_>>> = BTreeMap::new();
        for (index, record) in records.iter().enumerate() {
            let place = || match format {
                BodyFormat::Ndjson => format!("record {index}"),
                BodyFormat::Json | BodyFormat::Msgpack => format!("/records/{index}"),
            };
            let bytes = record.payload_bytes();
            if bytes > self.max_record_bytes {
                return Err(Problem::new(
                    ErrorCode::RecordTooLarge,
                    format!(
                        "record {index} has {bytes} bytes, topic \"{}\" takes {}",
                        topic.name, self.max_record_bytes
                    ),
                )
                .hint("Raise the topic's max_message_bytes, or send less.")
                .at(place()));
            }
            let partition = match (record.partition, &record.key) {
                (Some(partition), _) => {
                    partition_of(topic, partition.0)
                        .map_err(|problem| problem.at(place()))?
                        .partition
                }
                (None, Some(key)) => partition_of_key(key, self.partitions),
                (None, None) => sticky.next(bytes, self.partitions),
            };
            groups.entry(partition).or_default().push(record);
        }
        Ok(groups
            .into_iter()
            .map(|(partition, records)| self.encode(partition, &records))
            .collect())
    }

    fn encode(&self, partition: PartitionId, records: &[&RequestRecord<'_>]) -> PartitionBatches {
        let runs = cut(records);
        let count = u32::try_from(runs.len()).expect("a request has few batches");
        let batches = (0..)
            .zip(&runs)
            .map(|(part, records)| {
                let request_part = self.idempotency.as_ref().map(|idempotency| RequestPart {
                    key: idempotency.key.clone(),
                    fingerprint: idempotency.fingerprint,
                    part,
                    parts: count,
                });
                self.encode_part(records, request_part.map(|part| part.to_header()))
            })
            .collect();
        PartitionBatches {
            partition,
            records: u64::try_from(records.len()).unwrap_or(u64::MAX),
            batches,
        }
    }

    /// `mark`: stored with the first record, by which a repetition of the request is known.
    fn encode_part(&self, records: &[&RequestRecord<'_>], mut mark: Option<Header>) -> LogBatch {
        let bytes: usize = records.iter().map(|record| encoded_bytes(record)).sum();
        let mut builder = LogBatchBuilder::with_capacity(bytes + MAX_KEY_BYTES * 2);
        for record in records {
            let timestamp = record.timestamp.unwrap_or(self.now);
            let (key, value) = (record.key.as_deref(), record.value.as_deref());
            match mark.take() {
                None => builder.push(timestamp, key, value, &record.headers),
                Some(mark) => {
                    let mut headers = record.headers.clone();
                    headers.push(mark);
                    builder.push(timestamp, key, value, &headers);
                }
            }
        }
        builder.build()
    }
}

/// Cuts records into runs that make a batch of about the size aimed at; a larger record has its own.
fn cut<'r, 'a>(records: &'r [&'a RequestRecord<'a>]) -> Vec<&'r [&'a RequestRecord<'a>]> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut bytes = HEADER_BYTES;
    for (index, record) in records.iter().enumerate() {
        let more = encoded_bytes(record);
        if index > start && bytes + more > TARGET_BATCH_BYTES {
            parts.push(&records[start..index]);
            start = index;
            bytes = HEADER_BYTES;
        }
        bytes += more;
    }
    parts.push(&records[start..]);
    parts
}

fn encoded_bytes(record: &RequestRecord<'_>) -> usize {
    LogBatchBuilder::bytes_of_record(record.payload_bytes(), record.headers.len())
}

fn parse_acks(acks: Option<&str>) -> Result<Acks, Problem> {
    match acks {
        None | Some("all") => Ok(Acks::All),
        Some("leader") => Ok(Acks::Leader),
        Some(other) => Err(invalid(format!(
            "acks is \"all\" or \"leader\", not \"{other}\""
        ))),
    }
}

fn body_format(request: &HttpRequest) -> Result<BodyFormat, Problem> {
    let encoding = header(request, &CONTENT_ENCODING).unwrap_or("identity");
    if !encoding.eq_ignore_ascii_case("identity") {
        let detail = format!("records are not unpacked from the Content-Encoding \"{encoding}\"");
        return Err(Problem::new(ErrorCode::UnsupportedMediaType, detail)
            .hint("Send the body as it is, without Content-Encoding."));
    }
    let given = header(request, &CONTENT_TYPE).unwrap_or_default();
    BodyFormat::of(given).ok_or_else(|| {
        let detail = match given {
            "" => "the request does not say what its body is".to_owned(),
            other => format!("records are not read from \"{other}\""),
        };
        Problem::new(ErrorCode::UnsupportedMediaType, detail).hint(
            "Send application/x-ndjson, application/json or application/msgpack as Content-Type.",
        )
    })
}

fn parse_pointer(key: Option<&str>, format: BodyFormat) -> Result<Option<Pointer>, Problem> {
    let Some(text) = key else { return Ok(None) };
    if format != BodyFormat::Ndjson {
        return Err(invalid("?key= is for application/x-ndjson only")
            .hint("Give each record its \"key\" instead."));
    }
    Pointer::parse(text).map(Some).ok_or_else(|| {
        invalid(format!("\"{text}\" is not a JSON pointer"))
            .hint("Write ?key=/user/id, for example.")
    })
}

fn idempotency_key(request: &HttpRequest, body: &Bytes) -> Result<Option<Idempotency>, Problem> {
    const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
    let Some(value) = request.headers().get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let key = value.to_str().unwrap_or_default().trim();
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(invalid(format!(
            "an Idempotency-Key has 1 to {MAX_KEY_BYTES} printable characters"
        )));
    }
    Ok(Some(Idempotency {
        key: key.to_owned(),
        fingerprint: hash_key(body),
    }))
}

fn request_bytes(request: &HttpRequest) -> Option<usize> {
    header(request, &actix_web::http::header::CONTENT_LENGTH)?
        .parse()
        .ok()
}
