//! `SourceSpec` and `SinkSpec`: one variant per connector, with the options a user may give.
//!
//! The same names serve `WITH (…)` in SQL and the JSON graph.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::ids::TopicName;
use crate::schema::Column;
use crate::time::{Span, Timestamp};

/// Where rows come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "connector", rename_all = "snake_case")]
pub enum SourceSpec {
    Topic(TopicSource),
    #[serde(alias = "single_file")]
    Files(FileSource),
    Generator(GeneratorSource),
}

/// A topic of this cluster. One split per partition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TopicSource {
    pub topic: TopicName,
    #[serde(default)]
    pub format: Format,
    pub schema: Vec<Column>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<WatermarkSpec>,
    #[serde(rename = "scan.startup.mode", default)]
    pub startup: StartupMode,
    /// With mode `timestamp`: the first record at or after it, in milliseconds since 1970 or as ISO 8601.
    #[serde(
        rename = "scan.startup.timestamp",
        default,
        deserialize_with = "timestamp_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub startup_timestamp_ms: Option<i64>,
    /// With mode `offsets`: partition → offset; partitions not named start at the earliest.
    #[serde(
        rename = "scan.startup.offsets",
        default,
        deserialize_with = "offsets_by_partition",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub startup_offsets: BTreeMap<u32, i64>,
    #[serde(rename = "scan.bounded.mode", default)]
    pub bounded: BoundedMode,
    #[serde(default)]
    pub isolation: Isolation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Span>,
    #[serde(default)]
    pub bad_records: BadRecords,
}

/// A file, or the files of a directory. One split per file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// A file or directory on every worker that runs a task of this source. Names ending in `.gz` are unpacked.
    pub path: String,
    #[serde(default)]
    pub format: Format,
    pub schema: Vec<Column>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<WatermarkSpec>,
    /// Looks for new files this often; absent: reads what is there once, then ends.
    #[serde(
        rename = "scan.watch",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub watch: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Span>,
    #[serde(default)]
    pub bad_records: BadRecords,
}

/// Deterministic rows: the same seed gives the same rows, at any parallelism.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GeneratorSource {
    pub generator: GeneratorKind,
    /// The generator's own columns are known; a schema, if given, picks some of them.
    #[serde(default)]
    pub schema: Vec<Column>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watermark: Option<WatermarkSpec>,
    /// Ends after so many rows; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Rows per second of wall time over all splits; absent: as fast as it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    #[serde(default)]
    pub seed: u64,
    /// Rows are dealt over so many splits; fixed for the job's life, whatever its parallelism.
    #[serde(default = "default_splits")]
    pub splits: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Span>,
}

fn default_splits() -> u32 {
    4
}

fn timestamp_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected milliseconds since 1970, or a time in ISO 8601"
    )]
    enum Given {
        Milliseconds(i64),
        Text(String),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => None,
        Some(Given::Milliseconds(milliseconds)) => Some(milliseconds),
        Some(Given::Text(text)) => {
            let time: Timestamp = text.parse().map_err(serde::de::Error::custom)?;
            Some(time.0)
        }
    })
}

/// The keys of an object are text in JSON, also of one that was buffered; in MessagePack they are numbers.
fn offsets_by_partition<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<u32, i64>, D::Error> {
    #[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
    #[serde(untagged, expecting = "expected a partition's number")]
    enum Key {
        Number(u32),
        Text(String),
    }
    let given = BTreeMap::<Key, i64>::deserialize(deserializer)?;
    let read = given.into_iter().map(|(key, offset)| match key {
        Key::Number(partition) => Ok((partition, offset)),
        Key::Text(text) => match text.parse() {
            Ok(partition) => Ok((partition, offset)),
            Err(_) => Err(serde::de::Error::custom(format!(
                "\"{text}\" is not a partition's number"
            ))),
        },
    });
    read.collect()
}

/// The streams that can be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GeneratorKind {
    NexmarkPerson,
    NexmarkAuction,
    NexmarkBid,
    Clickstream,
    Payments,
    Sensors,
}

/// Where rows go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "connector", rename_all = "snake_case")]
pub enum SinkSpec {
    Topic(TopicSink),
    #[serde(alias = "single_file")]
    Files(FileSink),
    Webhook(WebhookSink),
    Blackhole(BlackholeSink),
    Console(ConsoleSink),
}

/// A topic of this cluster; created with the job's parallelism as partitions if it is missing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TopicSink {
    pub input: String,
    pub topic: TopicName,
    #[serde(default)]
    pub format: Format,
    /// The columns the record key is made of; default: the upsert key of the rows, else none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
    #[serde(default)]
    pub partitioner: Partitioner,
    #[serde(default)]
    pub delivery: Delivery,
}

/// Files in a directory, or one file, written by one task; rows are visible once their epoch is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSink {
    pub input: String,
    /// A directory if it ends in `/`, else a file.
    pub path: String,
    #[serde(default)]
    pub format: Format,
}

impl FileSink {
    /// Whether every task has files of its own. The path alone says so, because a plan is made where nobody can
    /// look at the workers' disks.
    pub fn is_directory(&self) -> bool {
        self.path.ends_with('/')
    }
}

/// The column that a webhook adds to its rows.
pub const IDEMPOTENCY_KEY: &str = "idempotency_key";

/// One POST per batch of rows. At least once; each row carries an `idempotency_key` that repeats are known by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookSink {
    pub input: String,
    /// `http://…`
    pub url: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    #[serde(default = "default_webhook_rows")]
    pub max_rows: u32,
}

fn default_webhook_rows() -> u32 {
    500
}

/// Counts rows and forgets them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BlackholeSink {
    pub input: String,
}

/// Prints rows on the worker's standard output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSink {
    pub input: String,
}

/// How a record's bytes are read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    #[default]
    Json,
    Csv,
    Msgpack,
    DebeziumJson,
}

/// Which column is event time, and how far behind the latest one the watermark stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WatermarkSpec {
    pub column: String,
    #[serde(default)]
    pub delay: Span,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartupMode {
    #[default]
    Earliest,
    Latest,
    Timestamp,
    Offsets,
}

/// `latest`: the end offsets are taken when the job is first deployed and kept in its checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BoundedMode {
    #[default]
    Unbounded,
    Latest,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    #[default]
    ReadCommitted,
    ReadUncommitted,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    #[default]
    ExactlyOnce,
    AtLeastOnce,
}

/// What becomes of a record that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BadRecords {
    #[default]
    DeadLetter,
    Drop,
    Fail,
}

/// Which partition a row goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Partitioner {
    /// By the record key; rows without one go to the task's own partition.
    #[default]
    Key,
    /// Task `i` writes to partition `i` modulo their number.
    Task,
}

impl SourceSpec {
    pub fn schema(&self) -> &[Column] {
        match self {
            SourceSpec::Topic(topic) => &topic.schema,
            SourceSpec::Files(files) => &files.schema,
            SourceSpec::Generator(generator) => &generator.schema,
        }
    }

    pub fn watermark(&self) -> Option<&WatermarkSpec> {
        match self {
            SourceSpec::Topic(topic) => topic.watermark.as_ref(),
            SourceSpec::Files(files) => files.watermark.as_ref(),
            SourceSpec::Generator(generator) => generator.watermark.as_ref(),
        }
    }

    pub fn idle_timeout(&self) -> Option<Span> {
        match self {
            SourceSpec::Topic(topic) => topic.idle_timeout,
            SourceSpec::Files(files) => files.idle_timeout,
            SourceSpec::Generator(generator) => generator.idle_timeout,
        }
    }

    /// Whether the source ends by itself.
    pub fn is_bounded(&self) -> bool {
        match self {
            SourceSpec::Topic(topic) => topic.bounded == BoundedMode::Latest,
            SourceSpec::Files(files) => files.watch.is_none(),
            SourceSpec::Generator(generator) => generator.rows.is_some(),
        }
    }
}

impl SinkSpec {
    pub fn input(&self) -> &str {
        match self {
            SinkSpec::Topic(topic) => &topic.input,
            SinkSpec::Files(files) => &files.input,
            SinkSpec::Webhook(webhook) => &webhook.input,
            SinkSpec::Blackhole(blackhole) => &blackhole.input,
            SinkSpec::Console(console) => &console.input,
        }
    }

    /// The format rows are written in; `None` for sinks that write none.
    pub fn format(&self) -> Option<Format> {
        match self {
            SinkSpec::Topic(topic) => Some(topic.format),
            SinkSpec::Files(files) => Some(files.format),
            SinkSpec::Webhook(_) | SinkSpec::Console(_) => Some(Format::Json),
            SinkSpec::Blackhole(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(options: &str) -> Result<TopicSource, String> {
        let json = format!(r#"{{"connector": "topic", "topic": "bids", "schema": [], {options}}}"#);
        match serde_json::from_str(&json) {
            Ok(SourceSpec::Topic(topic)) => Ok(topic),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn offsets_to_start_from_are_read_from_json_and_messagepack() {
        let read = topic(r#""scan.startup.offsets": {"0": 2, "11": 7}"#).unwrap();
        assert_eq!(read.startup_offsets, BTreeMap::from([(0, 2), (11, 7)]));
        let spec = SourceSpec::Topic(read);
        let packed = crate::transport::msgpack::encode(&spec).unwrap();
        let again: SourceSpec = crate::transport::msgpack::decode(&packed).unwrap();
        assert_eq!(again, spec);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<SourceSpec>(&json).unwrap(), spec);
        let refused = topic(r#""scan.startup.offsets": {"x": 2}"#).unwrap_err();
        assert!(refused.contains("\"x\" is not a partition"), "{refused}");
    }

    #[test]
    fn a_time_to_start_from_is_a_number_or_iso_8601() {
        for (given, expected) in [
            ("1000", 1000),
            ("\"1000\"", 1000),
            ("\"1970-01-01T00:00:01Z\"", 1000),
            ("\"1970-01-01T01:00:01+01:00\"", 1000),
            ("\"1970-01-01 00:00:01.5\"", 1500),
            ("\"1970-01-02\"", 86_400_000),
        ] {
            let read = topic(&format!(r#""scan.startup.timestamp": {given}"#)).unwrap();
            assert_eq!(read.startup_timestamp_ms, Some(expected), "{given}");
        }
        let refused = topic(r#""scan.startup.timestamp": "soon""#).unwrap_err();
        assert!(refused.contains("\"soon\" is not a time"), "{refused}");
    }
}
