//! `GET /v1/topics/{topic}/stream`: a live tail of all partitions, as server-sent events.
//!
//! Each event is one record. Its id names the next offset of every partition, so that a browser that
//! reconnects with `Last-Event-ID` goes on where it was. A client that reads more than its quota gets its events later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, HeaderName};
use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::{PartitionId, TopicId, TopicPartition};
use common::limits::DEFAULT_FETCH_BYTES;
use common::log_batch::LogBatch;
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::fetch::FetchBatches;
use common::time::Span;
use common::transport::server::Query;
use futures_util::{Stream, StreamExt};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::answer_records::put_json_record;
use super::fetch::{Start, corrupt, resolve};
use super::throttle::client_of;
use super::{Composed, header, invalid, partition_of, parts};
use crate::log_client::LogClient;
use crate::metadata_image::ImageWatch;
use crate::metrics::{Metrics, Throttled};
use crate::quota::Quota;
use crate::quota::client::ClientId;
use crate::quota::machine::Answer;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// One poll of a partition. A client that has gone is noticed at the latest then.
const POLL: Span = Span::from_secs(10);
/// A comment is sent when nothing else was, so that nobody in between takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// After a failure that may pass.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// Fetches of all partitions that may wait for a slow reader.
const FETCHES_AHEAD: usize = 4;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamQuery {
    from: Option<String>,
    isolation: Option<Isolation>,
}

/// What a partition's reader gives.
enum Given {
    /// Each record's JSON, and the offset after it.
    Records {
        partition: PartitionId,
        records: Vec<(Vec<u8>, Offset)>,
    },
    Failed(Problem),
}

pub async fn stream(
    composed: Data<Composed>,
    topic: Path<String>,
    Query(query): Query<StreamQuery>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let routes = parts(&composed)?;
    let client = client_of(&request)?;
    let start = Start::parse(query.from.as_deref().unwrap_or("latest"))?;
    if let Start::At(_) = start {
        return Err(
            invalid("a stream of all partitions does not begin at one offset")
                .hint("Write ?from=earliest, ?from=latest, or ?from=@ and a time."),
        );
    }
    let isolation = query.isolation.unwrap_or_default();
    let topic = routes.topic(&topic).await?;
    let resumed = match header(&request, &LAST_EVENT_ID) {
        Some(id) if !id.is_empty() => Some(parse_positions(id)?),
        Some(_) | None => None,
    };
    let mut positions = BTreeMap::new();
    for (number, _) in (0..).zip(&topic.partitions) {
        let id = partition_of(&topic, number)?;
        let from = match &resumed {
            None => resolve(&routes, id, start, isolation).await?,
            Some(resumed) => match resumed.get(&id.partition) {
                Some(from) => *from,
                // It was added since.
                None => resolve(&routes, id, Start::Earliest, isolation).await?,
            },
        };
        positions.insert(id.partition, from);
    }
    let (sender, given) = mpsc::channel(FETCHES_AHEAD);
    let mut readers = JoinSet::new();
    let tail = Tail {
        log: routes.log.clone(),
        topic: topic.id,
        isolation,
        client,
        quota: routes.quotas.consumers.clone(),
        metrics: routes.metrics.clone(),
        sender,
    };
    readers.spawn_local(tail.follow(routes.image.clone(), positions.clone()));
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-store"))
        .streaming(events(given, positions, readers, routes.stopping.clone())))
}

/// What the readers of a stream have in common.
#[derive(Clone)]
struct Tail {
    log: LogClient,
    topic: TopicId,
    isolation: Isolation,
    client: ClientId,
    quota: Quota,
    metrics: Arc<Metrics>,
    sender: mpsc::Sender<Given>,
}

impl Tail {
    /// Reads all partitions, also those that are added, for as long as somebody listens.
    async fn follow(self, mut image: ImageWatch, positions: BTreeMap<PartitionId, Offset>) {
        let mut readers = JoinSet::new();
        let mut read = 0;
        loop {
            let partitions = {
                let newest = image.borrow_and_update();
                newest.topics.get(&self.topic).map(|t| t.partitions.len())
            };
            let Some(partitions) = partitions else {
                let gone = Problem::new(ErrorCode::UnknownTopic, "the topic was deleted");
                // Nobody may listen any more.
                drop(self.sender.send(Given::Failed(gone)).await);
                return;
            };
            let partitions = u32::try_from(partitions).unwrap_or(u32::MAX);
            while read < partitions {
                let partition = PartitionId(read);
                // All of a partition that was added is news.
                let from = positions.get(&partition).copied().unwrap_or(Offset::ZERO);
                readers.spawn_local(self.clone().read(partition, from));
                read += 1;
            }
            tokio::select! {
                changed = image.changed() => if changed.is_err() { return },
                () = self.sender.closed() => return,
            }
        }
    }

    /// Follows one partition.
    async fn read(self, partition: PartitionId, mut from: Offset) {
        loop {
            tokio::select! {
                () = self.wait_for_quota() => {}
                () = self.sender.closed() => return,
            }
            let fetch = self.log.fetch(FetchBatches {
                partition: TopicPartition {
                    topic: self.topic,
                    partition,
                },
                offset: from,
                max_bytes: u32::try_from(DEFAULT_FETCH_BYTES).unwrap_or(u32::MAX),
                wait: POLL,
                isolation: self.isolation,
            });
            let fetched = tokio::select! {
                fetched = fetch => fetched,
                () = self.sender.closed() => return,
            };
            let rendered = fetched.and_then(|fetched| {
                let (batches, next_offset) = fetched.open().map_err(corrupt)?;
                let records = render(&batches, partition, from)?;
                Ok((records, next_offset))
            });
            let given = match rendered {
                Ok((records, next_offset)) => {
                    from = next_offset;
                    if records.is_empty() {
                        continue;
                    }
                    let bytes: usize = records.iter().map(|(json, _)| json.len()).sum();
                    self.quota.charge(&self.client, bytes as u64);
                    Given::Records { partition, records }
                }
                Err(problem) if problem.code.is_retriable() => {
                    tokio::time::sleep(TRY_AGAIN).await;
                    continue;
                }
                Err(problem) => Given::Failed(problem),
            };
            let last = matches!(given, Given::Failed(_));
            if self.sender.send(given).await.is_err() || last {
                return;
            }
        }
    }

    /// Until the client may read on.
    async fn wait_for_quota(&self) {
        while let Answer::Wait(span) = self.quota.ask(&self.client, 0) {
            self.metrics.throttled(Throttled::Stream);
            tokio::time::sleep(span.as_duration()).await;
        }
    }
}

fn render(
    batches: &[LogBatch],
    partition: PartitionId,
    from: Offset,
) -> Result<Vec<(Vec<u8>, Offset)>, Problem> {
    let mut rendered = Vec::new();
    for batch in batches {
        if batch.header().control {
            continue;
        }
        for record in &batch.records().map_err(corrupt)? {
            let record = record.map_err(corrupt)?;
            if record.offset >= from {
                let mut json = Vec::new();
                put_json_record(&mut json, &record, Some(partition.0));
                rendered.push((json, record.offset.next()));
            }
        }
    }
    Ok(rendered)
}

/// What the readers give, as events; ends after a failure, and when the worker stops. The readers end when it
/// is dropped.
fn events(
    mut given: mpsc::Receiver<Given>,
    mut positions: BTreeMap<PartitionId, Offset>,
    readers: JoinSet<()>,
    mut stopping: watch::Receiver<bool>,
) -> impl Stream<Item = Result<Bytes, Problem>> {
    let mut keep_alive = tokio::time::interval(KEEP_ALIVE);
    let mut failed = false;
    let stopped = async move { stopping.wait_for(|stopping| *stopping).await.map(drop) };
    let events = futures_util::stream::poll_fn(move |context| {
        let _running = &readers;
        if failed {
            return std::task::Poll::Ready(None);
        }
        if let std::task::Poll::Ready(next) = given.poll_recv(context) {
            keep_alive.reset();
            return std::task::Poll::Ready(match next {
                Some(Given::Records { partition, records }) => {
                    let mut events = Vec::new();
                    for (json, next_offset) in records {
                        positions.insert(partition, next_offset);
                        put_event(&mut events, &positions, &json);
                    }
                    Some(Ok(Bytes::from(events)))
                }
                Some(Given::Failed(problem)) => {
                    failed = true;
                    let json = serde_json::to_string(&problem).unwrap_or_default();
                    Some(Ok(Bytes::from(format!("event: error\ndata: {json}\n\n"))))
                }
                None => None,
            });
        }
        // The first tick comes at once: it shows the client that the stream has begun.
        keep_alive
            .poll_tick(context)
            .map(|_| Some(Ok(Bytes::from_static(b":\n\n"))))
    });
    events.take_until(Box::pin(stopped))
}

fn put_event(out: &mut Vec<u8>, positions: &BTreeMap<PartitionId, Offset>, json: &[u8]) {
    out.extend_from_slice(b"id: ");
    for (index, (partition, offset)) in positions.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(format!("{partition}:{offset}").as_bytes());
    }
    out.extend_from_slice(b"\ndata: ");
    out.extend_from_slice(json);
    out.extend_from_slice(b"\n\n");
}

/// The positions in an event's id.
fn parse_positions(id: &str) -> Result<BTreeMap<PartitionId, Offset>, Problem> {
    id.split(',')
        .map(|position| {
            let (partition, offset) = position.split_once(':')?;
            let offset: i64 = offset.parse().ok().filter(|offset| *offset >= 0)?;
            Some((PartitionId(partition.parse().ok()?), Offset(offset)))
        })
        .collect::<Option<BTreeMap<PartitionId, Offset>>>()
        .ok_or_else(|| invalid(format!("\"{id}\" is not the id of an event of this stream")))
}
