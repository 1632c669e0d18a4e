//! Rows as JSON to somebody's HTTP endpoint, one POST per batch. At least once.
//!
//! Every row has an `idempotency_key`: repetitions of a request, after an answer that was lost, carry the
//! same ones. After a failure of the job the rows since its last checkpoint come again, under new keys.
//! An endpoint that is busy or away is tried again for as long as it takes, which holds the job back;
//! one that refuses a request needs a person.

use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::CheckpointId;
use common::plan::connector::{IDEMPOTENCY_KEY, WebhookSink as Spec};
use common::plan::task_graph::PlannedSink;
use common::time::Span;
use common::transport::client::{Forward, Transport};
use common::transport::retry::Backoff;
use futures_util::future::{FutureExt, LocalBoxFuture, ready};
use futures_util::stream::StreamExt;
use tracing::warn;

use super::{Committable, Sink, SinkContext, SinkError, json_or_changes};
use crate::format::{EncodedRecords, Encoder};
use crate::task::message::Rows;

/// An endpoint that takes longer to answer is asked again.
const DEADLINE: Span = Span::from_secs(30);
const BACKOFF: Backoff = Backoff {
    first: Span::from_millis(100),
    most: Span::from_secs(30),
};
/// After so many attempts without success it is worth telling a person, once.
const ATTEMPTS_UNTIL_WARNING: u32 = 5;
/// What is read of an answer; nobody looks at it, but an unread one costs the connection.
const MAX_ANSWER_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct WebhookSink {
    transport: Transport,
    /// `http://host:port`, and the path and query.
    address: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    max_rows: usize,
    encoder: Encoder,
    records: EncodedRecords,
    /// What every key of this task and generation starts with.
    key_prefix: String,
    rows_sent: u64,
}

impl WebhookSink {
    pub(super) fn open(
        spec: &Spec,
        planned: &PlannedSink,
        context: &SinkContext,
    ) -> Result<WebhookSink, Problem> {
        let (address, target) = split_url(&spec.url)?;
        if let Some(column) = planned.columns.iter().find(|c| c.name == IDEMPOTENCY_KEY) {
            return Err(Problem::new(
                ErrorCode::InvalidGraph,
                format!(
                    "the rows have a column \"{}\", which the sink adds",
                    column.name
                ),
            )
            .hint("Give the column another name."));
        }
        let given = spec.headers.iter();
        let mut headers: Vec<(String, Vec<u8>)> = given
            .map(|(name, value)| (name.to_ascii_lowercase(), value.clone().into_bytes()))
            .collect();
        if headers.iter().all(|(name, _)| name != "content-type") {
            headers.push(("content-type".to_owned(), b"application/json".to_vec()));
        }
        Ok(WebhookSink {
            transport: context.transport.clone(),
            address,
            target,
            headers,
            max_rows: usize::try_from(spec.max_rows).unwrap_or(usize::MAX).max(1),
            encoder: Encoder::new(json_or_changes(&planned.mode), &planned.columns, &[])?,
            records: EncodedRecords::default(),
            key_prefix: format!(
                "{}-{}-{}-{}",
                context.job_name, context.generation, planned.name, context.task_index
            ),
            rows_sent: 0,
        })
    }

    async fn send(&mut self, rows: Rows) -> Result<(), SinkError> {
        self.records.clear();
        self.encoder.encode(&rows, &mut self.records)?;
        let mut bodies = Vec::new();
        let values: Vec<&[u8]> = self
            .records
            .iter()
            .filter_map(|record| record.value)
            .collect();
        for rows in values.chunks(self.max_rows) {
            let mut body = Vec::with_capacity(rows.iter().map(|row| row.len() + 80).sum());
            for row in rows {
                body.push(if body.is_empty() { b'[' } else { b',' });
                let key = format!("{}-{}", self.key_prefix, self.rows_sent);
                self.rows_sent += 1;
                write_with_key(&mut body, row, &key);
            }
            body.push(b']');
            bodies.push(Bytes::from(body));
        }
        for body in bodies {
            self.post(body).await?;
        }
        Ok(())
    }

    async fn post(&self, body: Bytes) -> Result<(), SinkError> {
        let mut attempt = 0;
        loop {
            let request = Forward {
                method: "POST".to_owned(),
                target: self.target.clone(),
                headers: self.headers.clone(),
                body: body.clone(),
            };
            let answer = self
                .transport
                .forward(&self.address, request, DEADLINE)
                .await;
            let failure = match answer {
                Ok(answer) => {
                    let status = answer.status;
                    let mut left = MAX_ANSWER_BYTES;
                    let mut chunks = answer.body;
                    while let Some(Ok(chunk)) = chunks.next().await {
                        match left.checked_sub(chunk.len()) {
                            Some(rest) => left = rest,
                            None => break,
                        }
                    }
                    match status {
                        200..=299 => return Ok(()),
                        408 | 425 | 429 | 500..=599 => format!("it answered {status}"),
                        _ => {
                            return Err(SinkError::Fatal(format!(
                                "{}{} refused a request with status {status}",
                                self.address, self.target
                            )));
                        }
                    }
                }
                Err(error) => error.to_string(),
            };
            if attempt == ATTEMPTS_UNTIL_WARNING {
                warn!(url = %self.address, %failure, "a webhook does not take rows; trying on");
            }
            tokio::time::sleep(BACKOFF.delay(attempt, self.rows_sent).as_duration()).await;
            attempt = attempt.saturating_add(1);
        }
    }
}

/// Writes a row, which is a JSON object, with one more field.
fn write_with_key(out: &mut Vec<u8>, row: &[u8], key: &str) {
    let open = row.strip_suffix(b"}").expect("a row is a JSON object");
    out.extend_from_slice(open);
    if open.len() > 1 {
        out.push(b',');
    }
    out.extend_from_slice(b"\"idempotency_key\":");
    crate::format::write_json_string(out, key);
    out.push(b'}');
}

/// Address, and path with query.
fn split_url(url: &str) -> Result<(String, String), Problem> {
    let refused = |why: &str| {
        Problem::new(ErrorCode::InvalidGraph, format!("the URL \"{url}\" {why}"))
            .hint("Write it as http://host:port/path.")
    };
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| refused("does not start with http://"))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, target) = rest.split_at(end);
    if host.is_empty() || host.contains(['@', '#', ' ']) {
        return Err(refused("has no host"));
    }
    let target = match target.starts_with('/') {
        true => target.to_owned(),
        false => format!("/{target}"),
    };
    Ok((format!("http://{host}"), target))
}

impl Sink for WebhookSink {
    fn write(&mut self, rows: Rows) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        self.send(rows).boxed_local()
    }

    fn flush(&mut self) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        ready(Ok(())).boxed_local()
    }

    fn prepare(
        &mut self,
        _checkpoint: CheckpointId,
    ) -> LocalBoxFuture<'_, Result<Option<Committable>, SinkError>> {
        ready(Ok(None)).boxed_local()
    }

    fn commit(
        &mut self,
        _checkpoint: CheckpointId,
        _prepared: Vec<Committable>,
    ) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        ready(Ok(())).boxed_local()
    }
}
