//! `GET /v1/topics/{topic}/stream`: a live tail of all partitions, as server-sent events.
//!
//! Each event is one record. Its id names the next offset of every partition, so that a browser that
//! reconnects with `Last-Event-ID` goes on where it was.

use std::collections::BTreeMap;
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, HeaderName};
use actix_web::web::{Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use common::error::Problem;
use common::ids::{PartitionId, TopicPartition};
use common::limits::DEFAULT_FETCH_BYTES;
use common::log_batch::LogBatch;
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::protocol::fetch::FetchBatches;
use common::time::Span;
use futures_util::Stream;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::answer_records::put_json_record;
use super::fetch::{Start, corrupt, resolve};
use super::{Composed, header, invalid, partition_of, parts};
use crate::log_client::LogClient;

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
    query: Query<StreamQuery>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let routes = parts(&composed)?;
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
        Some(id) if !id.is_empty() => parse_positions(id)?,
        Some(_) | None => BTreeMap::new(),
    };
    let mut positions = BTreeMap::new();
    for (number, _) in (0..).zip(&topic.partitions) {
        let id = partition_of(&topic, number)?;
        let from = match resumed.get(&id.partition) {
            Some(from) => *from,
            None => resolve(&routes, id, start, isolation).await?,
        };
        positions.insert(id.partition, from);
    }
    let (sender, given) = mpsc::channel(FETCHES_AHEAD);
    let mut readers = JoinSet::new();
    for (partition, from) in &positions {
        let id = TopicPartition {
            topic: topic.id,
            partition: *partition,
        };
        readers.spawn_local(read(
            routes.log.clone(),
            id,
            *from,
            isolation,
            sender.clone(),
        ));
    }
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-store"))
        .streaming(events(given, positions, readers)))
}

/// Follows one partition for as long as somebody listens.
async fn read(
    log: LogClient,
    partition: TopicPartition,
    mut from: Offset,
    isolation: Isolation,
    sender: mpsc::Sender<Given>,
) {
    loop {
        let fetch = log.fetch(FetchBatches {
            partition,
            offset: from,
            max_bytes: u32::try_from(DEFAULT_FETCH_BYTES).unwrap_or(u32::MAX),
            wait: POLL,
            isolation,
        });
        let fetched = tokio::select! {
            fetched = fetch => fetched,
            () = sender.closed() => return,
        };
        let rendered = fetched.and_then(|fetched| {
            let (batches, next_offset) = fetched.open().map_err(corrupt)?;
            let records = render(&batches, partition.partition, from)?;
            Ok((records, next_offset))
        });
        let given = match rendered {
            Ok((records, next_offset)) => {
                from = next_offset;
                if records.is_empty() {
                    continue;
                }
                Given::Records {
                    partition: partition.partition,
                    records,
                }
            }
            Err(problem) if problem.code.is_retriable() => {
                tokio::time::sleep(TRY_AGAIN).await;
                continue;
            }
            Err(problem) => Given::Failed(problem),
        };
        let last = matches!(given, Given::Failed(_));
        if sender.send(given).await.is_err() || last {
            return;
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

/// What the readers give, as events; ends after a failure. The readers end when it is dropped.
fn events(
    mut given: mpsc::Receiver<Given>,
    mut positions: BTreeMap<PartitionId, Offset>,
    readers: JoinSet<()>,
) -> impl Stream<Item = Result<Bytes, Problem>> {
    let mut keep_alive = tokio::time::interval(KEEP_ALIVE);
    let mut failed = false;
    futures_util::stream::poll_fn(move |context| {
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
    })
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
