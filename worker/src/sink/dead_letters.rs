//! Records and rows that were given up, into the job's own topic, in the transaction of the output.
//!
//! Each is one JSON object: why, where it came from, and its value, as JSON if it is JSON and as base64
//! otherwise. A letter always fits into a record: a value that is too long is cut off.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::ids::{CheckpointId, PartitionId, TopicName, TopicPartition};
use common::time::Timestamp;

use super::transactional_writer::TransactionalWriter;
use super::{SinkContext, SinkError, topic};
use crate::format::{is_json, write_json_string};
use crate::log_client::LogClient;
use crate::task::dead_letter::{DeadLetter, Reason};

/// What is kept of a text such as `detail`.
const MAX_TEXT_BYTES: usize = 4 << 10;
/// What everything but the value may need.
const MAX_FRAME_BYTES: usize = 64 << 10;

/// One task's way into the dead-letter topic.
#[derive(Debug)]
pub struct DeadLetterSink {
    topic: TopicName,
    log: LogClient,
    writer: TransactionalWriter,
    clock: std::sync::Arc<dyn common::time::Clock>,
    task_index: u32,
    record: Vec<u8>,
}

impl DeadLetterSink {
    /// Nothing is looked up before there is a first letter.
    pub fn new(context: SinkContext) -> DeadLetterSink {
        DeadLetterSink {
            topic: context.job_name.dead_letters(),
            writer: context.exactly_once_writer(),
            log: context.log,
            clock: context.clock,
            task_index: context.task_index,
            record: Vec::new(),
        }
    }

    pub async fn write(&mut self, letters: Vec<DeadLetter>) -> Result<(), SinkError> {
        let topic = topic::topic(&self.log, &self.topic).await?;
        let partition = TopicPartition {
            topic: topic.id,
            partition: PartitionId(self.task_index % topic::partitions_of(&topic)),
        };
        let limit = usize::try_from(topic.config.max_message_bytes).unwrap_or(usize::MAX);
        let room = limit.saturating_sub(MAX_FRAME_BYTES);
        for letter in letters {
            self.record.clear();
            write_letter(&mut self.record, &letter, self.clock.wall(), room);
            self.writer.push(partition, None, Some(&self.record))?;
        }
        self.writer.send().await
    }

    pub async fn flush(&mut self) -> Result<(), SinkError> {
        self.writer.drain().await
    }

    pub async fn prepare(&mut self, checkpoint: CheckpointId) -> Result<(), SinkError> {
        self.writer.prepare(checkpoint).await
    }

    pub fn commit(&mut self, checkpoint: CheckpointId) {
        self.writer.completed(checkpoint);
    }

    pub async fn shown(&mut self) {
        self.writer.shown().await;
    }
}

/// Writes the letter with at most `room` bytes of value.
fn write_letter(out: &mut Vec<u8>, letter: &DeadLetter, time: Timestamp, room: usize) {
    let reason = match letter.reason {
        Reason::BadRecord => "bad_record",
        Reason::Late => "late",
        Reason::Expression => "expression",
    };
    field(out, b'{', "reason");
    write_json_string(out, reason);
    field(out, b',', "detail");
    write_json_string(out, cut(&letter.detail));
    field(out, b',', "operator");
    write_json_string(out, cut(&letter.operator));
    field(out, b',', "time");
    write_json_string(out, &time.to_string());
    if let Some(origin) = &letter.origin {
        field(out, b',', "topic");
        write_json_string(out, cut(&origin.topic));
        field(out, b',', "partition");
        out.extend_from_slice(origin.partition.to_string().as_bytes());
        field(out, b',', "offset");
        out.extend_from_slice(origin.offset.to_string().as_bytes());
    }
    field(out, b',', "value");
    let value = &letter.value[..];
    let base64_room = room / 4 * 3;
    if value.len() <= room && is_json(value) {
        // White space between values may hold line ends; a record is one line.
        out.extend(value.iter().filter(|byte| !matches!(byte, b'\n' | b'\r')));
    } else {
        let kept = &value[..value.len().min(base64_room)];
        field(out, b'{', "base64");
        write_json_string(out, &BASE64_STANDARD.encode(kept));
        out.push(b'}');
        if kept.len() < value.len() {
            field(out, b',', "value_bytes");
            out.extend_from_slice(value.len().to_string().as_bytes());
        }
    }
    out.push(b'}');
}

fn field(out: &mut Vec<u8>, before: u8, name: &str) {
    out.push(before);
    write_json_string(out, name);
    out.push(b':');
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::task::dead_letter::LetterOrigin;

    fn letter(value: &[u8]) -> DeadLetter {
        DeadLetter {
            reason: Reason::BadRecord,
            detail: "column \"v\" is BIGINT".to_owned(),
            operator: "in".to_owned(),
            origin: Some(LetterOrigin {
                topic: "t".to_owned(),
                partition: 2,
                offset: 17,
            }),
            value: Bytes::copy_from_slice(value),
        }
    }

    fn written(letter: &DeadLetter, room: usize) -> Value {
        let mut out = Vec::new();
        write_letter(&mut out, letter, Timestamp(1_700_000_000_000), room);
        assert!(out.len() < room * 3 / 2 + MAX_FRAME_BYTES);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_letter_says_why_and_whence_and_keeps_the_value() {
        let expected = json!({
            "reason": "bad_record",
            "detail": "column \"v\" is BIGINT",
            "operator": "in",
            "time": "2023-11-14T22:13:20.000Z",
            "topic": "t",
            "partition": 2,
            "offset": 17,
            "value": {"v": "x"},
        });
        assert_eq!(written(&letter(b"{\"v\":\n \"x\"}"), 1_000), expected);
        for (value, kept) in [
            (&b"nonsense"[..], json!({"base64": "bm9uc2Vuc2U="})),
            (b"\xff", json!({"base64": "/w=="})),
            (b"1 2", json!({"base64": "MSAy"})),
            (b"", json!({"base64": ""})),
            (b"12", json!(12)),
        ] {
            assert_eq!(written(&letter(value), 1_000)["value"], kept);
        }
    }

    #[test]
    fn a_value_of_any_size_makes_a_letter_that_fits() {
        let long = format!("\"{}\"", "x".repeat(10_000));
        let cut = written(&letter(long.as_bytes()), 1_000);
        assert_eq!(cut["value_bytes"], 10_002);
        assert_eq!(cut["value"]["base64"].as_str().unwrap().len(), 1_000);
        let mut wordy = letter(b"1");
        wordy.detail = "ü".repeat(100_000);
        assert_eq!(
            written(&wordy, 1_000)["detail"].as_str().unwrap().len(),
            MAX_TEXT_BYTES
        );
    }
}
