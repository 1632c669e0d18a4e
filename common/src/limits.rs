//! Every bound in the system, and compile-time assertions on how they relate.
//!
//! A bound that a user can change is an option with its default here; one that protects a format or a
//! protocol is a constant. Each says where its number comes from.

use crate::time::Span;

/// Kafka's own bound: a topic's name is a folder's name.
pub const MAX_TOPIC_NAME_BYTES: usize = 249;
/// Leaves room for `.dead-letters` in a topic's name.
pub const MAX_JOB_NAME_BYTES: usize = 200;
/// A topic's partitions are placed and described in one command; 10,000 of them are about 1 MiB.
pub const MAX_PARTITIONS_PER_TOPIC: u32 = 10_000;

/// Each replica is a copy on another worker: more than a handful help nobody.
pub const MAX_REPLICATION_FACTOR: u32 = 8;

/// One record's key, value and headers (the default of `max_message_bytes`).
pub const DEFAULT_MAX_MESSAGE_BYTES: u32 = 1 << 20;
/// The most `max_message_bytes` may be set to.
pub const MAX_MESSAGE_BYTES: u32 = 16 << 20;
/// One record batch: the largest record and its framing.
pub const MAX_BATCH_BYTES: usize = (MAX_MESSAGE_BYTES as usize) + (64 << 10);
/// What the records of one compressed batch may unpack to: what a reader must be ready to hold.
pub const MAX_UNCOMPRESSED_BATCH_BYTES: usize = 64 << 20;
/// What one record batch aims at when many small records wait.
pub const TARGET_BATCH_BYTES: usize = 1 << 20;
/// Record headers are metadata, not payload.
pub const MAX_HEADERS_PER_RECORD: usize = 64;

/// One request's body on the public REST interface.
pub const MAX_REQUEST_BYTES: usize = 64 << 20;
/// One answer's records on the public REST interface.
pub const MAX_FETCH_BYTES: usize = 16 << 20;
pub const DEFAULT_FETCH_BYTES: usize = 1 << 20;
pub const MAX_FETCH_RECORDS: usize = 100_000;
pub const DEFAULT_FETCH_RECORDS: usize = 1_000;
/// Kafka's `client.id` is a short string; a name is kept for as long as its client owes something.
pub const MAX_CLIENT_ID_BYTES: usize = 255;
/// Clients whose quotas are kept apart: about 4 MiB if all have the longest names.
pub const MAX_QUOTA_CLIENTS: usize = 10_000;
/// What a client may have at once: as much as its rate gives it in this time.
pub const QUOTA_BURST: Span = Span::from_secs(1);
/// A rate below this would make one request of the largest size wait for most of a day.
pub const LEAST_BYTE_RATE: u64 = 1 << 10;
/// Items on one page of a list.
pub const DEFAULT_PAGE: usize = 100;
pub const MAX_PAGE: usize = 1_000;
/// One page of an operator's state, and how long its tasks may take for it.
pub const DEFAULT_STATE_ENTRIES: u32 = 100;
pub const MAX_STATE_ENTRIES: u32 = 10_000;
pub const STATE_QUERY_DEADLINE: Span = Span::from_secs(10);
/// A long poll answers with nothing after this.
pub const MAX_WAIT: Span = Span::from_secs(30);
/// One message between nodes: a bundle of frames, or a metadata image.
pub const MAX_CALL_BYTES: usize = 64 << 20;
/// Requests of one node that are under way: a worker that reads a thousand partitions of others holds a
/// long poll for each, and its other calls must still get through.
pub const MAX_CALLS_IN_FLIGHT: usize = 4_096;

/// One command of the metadata log: a job with its text and its plan, with room to spare.
pub const MAX_COMMAND_BYTES: usize = 32 << 20;

/// One SQL text or job graph.
pub const MAX_JOB_TEXT_BYTES: usize = 1 << 20;
/// Operators, sources and sinks of one job together: what 500 SELECTs become, with room to spare.
pub const MAX_JOB_NODES: usize = 5_000;
/// A writer's number in a job is 12 bits of its producer id (protocols §8.1).
pub const MAX_TASKS_PER_JOB: u32 = 1 << 12;
/// Expressions nest at most this deep, so that no recursion over them can exhaust a stack. A chain of operators
/// is as deep as it is long.
pub const MAX_EXPRESSION_DEPTH: usize = 128;
/// What the SQL parser counts as depth is up to a few levels per level of an expression. The same for whoever
/// reads an expression, so that what was planned can be run.
pub const MAX_PARSER_DEPTH: usize = MAX_EXPRESSION_DEPTH * 4;
/// Forms of expressions that the SQL parser reads in two ways, one inside the other: where the innermost does
/// not parse, it tries 2 to this power.
pub const MAX_AMBIGUOUS_DEPTH: usize = 16;
/// Names and operators of one SQL statement: a chain of them becomes a tree as deep as the chain is long.
pub const MAX_STATEMENT_TOKENS: usize = 20_000;
/// SELECTs of one SQL text.
pub const MAX_SELECTS: usize = 500;
/// Tables that the queries of one SQL text read, each as often as it is read: a view counts with all that it
/// reads, so a few views that read each other twice are millions.
pub const MAX_RELATIONS: usize = 5_000;
/// Columns of one table.
pub const MAX_COLUMNS: usize = 1_000;
/// JSON records nest at most this deep.
pub const MAX_JSON_DEPTH: usize = 128;

/// The different values that one aggregate call over rows that change keeps for one group, as bytes: about
/// 190,000 numbers. They are one entry of a table, which is written anew with every change.
pub const MAX_RETRACTABLE_BYTES: usize = 4 << 20;

/// What the aggregate calls of one operator keep for one group over rows that are only added, as bytes: the
/// largest record there may be. It is one entry of a table as well.
pub const MAX_GROUP_BYTES: usize = MAX_MESSAGE_BYTES as usize;

/// What one rows message between tasks may hold; larger batches are cut.
pub const MAX_ROWS_PER_MESSAGE: usize = 8_192;
pub const MAX_ROWS_BYTES: usize = 1 << 20;
/// What waits in one input channel of a task, in messages and in bytes.
pub const CHANNEL_MESSAGES: usize = 64;
pub const CHANNEL_BYTES: usize = 4 << 20;
/// One bundle of frames to one peer.
pub const MAX_BUNDLE_BYTES: usize = 4 << 20;

pub const DEFAULT_KEY_GROUPS: u16 = 256;
pub const MAX_KEY_GROUPS: u16 = 32_768;

/// A slot runs one parallel instance of a whole job.
pub const SLOTS_PER_CORE: u32 = 16;
pub const MAX_SLOTS: u32 = 4_096;
/// Threads that run partitions and tasks, and threads that answer HTTP, of one process.
pub const MAX_DATA_THREADS: u32 = 256;
pub const MAX_HTTP_THREADS: u32 = 64;

pub const HEARTBEAT_INTERVAL: Span = Span::from_millis(500);
pub const DEFAULT_SESSION_TIMEOUT: Span = Span::from_secs(3);
pub const DEFAULT_CHECKPOINT_INTERVAL: Span = Span::from_secs(1);
pub const MIN_CHECKPOINT_INTERVAL: Span = Span::from_millis(100);
pub const CHECKPOINT_TIMEOUT: Span = Span::from_secs(60);
/// Epochs are reserved in blocks, so that a new coordinator never gives one out again.
pub const CHECKPOINT_RESERVATION: u64 = 1_024;
/// How far jobs had read topics is told to those who remove records no more often than this.
pub const HOLD_EVERY: Span = Span::from_secs(60);
/// What a job still needs is kept beyond a topic's retention for so long after it was said last.
pub const HOLD_FOR: Span = Span::from_secs(24 * 3_600);
/// Copies of a job's state on other workers.
pub const DEFAULT_STANDBYS: u32 = 1;
pub const MAX_STANDBYS: u32 = 4;
/// Completed checkpoints a job's history shows.
pub const CHECKPOINT_HISTORY: usize = 100;
/// How far sources were read is one number per partition: it is kept for so many completed checkpoints.
pub const POSITIONS_HISTORY: usize = 10;
/// What may wait for one of the coordinator's actors of a job; whoever sends more waits itself.
pub const JOB_MAILBOX: usize = 64;
/// What one object of a savepoint aims at; one record of a delta log may come beyond.
pub const SAVED_OBJECT_BYTES: usize = 16 << 20;
/// One part for S3, and what a worker must be ready to hold.
pub const MAX_SAVED_OBJECT_BYTES: u64 = 64 << 20;
/// A manifest has about 150 bytes per object: this is one of 6 TB of state.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// Savepoints that a job's list shows.
pub const SAVEPOINT_HISTORY: usize = 20;
/// Archives of a job that may be kept, and how close one may follow the other.
pub const MAX_ARCHIVES: u32 = 10;
pub const MIN_ARCHIVE_INTERVAL: Span = Span::from_secs(1);
/// A job that is restored from a savepoint may take so long to begin: its state comes from far.
pub const RESTORE_TIMEOUT: Span = Span::from_secs(3_600);
/// The last checkpoint before a job is divided into tasks in another way may take so long; then the job goes on as it
/// was.
pub const CUT_OVER_TIMEOUT: Span = Span::from_secs(60);
pub const DEPLOY_TIMEOUT: Span = Span::from_secs(30);
/// A job that fails more often within `RESTART_WINDOW` without completing a checkpoint is FAILED.
pub const RESTART_BUDGET: usize = 10;
pub const RESTART_WINDOW: Span = Span::from_secs(600);

/// Transactions of one sink task that may be undecided at once (protocols §8.1).
pub const TRANSACTION_SLOTS: u8 = 16;

const _: () = assert!(DEFAULT_MAX_MESSAGE_BYTES <= MAX_MESSAGE_BYTES);
const _: () = assert!(MAX_BATCH_BYTES <= MAX_CALL_BYTES);
const _: () = assert!(MAX_ROWS_BYTES <= CHANNEL_BYTES);
const _: () = assert!(MAX_ROWS_BYTES < MAX_BUNDLE_BYTES);
const _: () = assert!(MIN_CHECKPOINT_INTERVAL.0 < CHECKPOINT_TIMEOUT.0);
const _: () = assert!((SAVED_OBJECT_BYTES as u64) * 4 <= MAX_SAVED_OBJECT_BYTES);
const _: () = assert!(POSITIONS_HISTORY <= CHECKPOINT_HISTORY);
const _: () = assert!(HEARTBEAT_INTERVAL.0 * 3 <= DEFAULT_SESSION_TIMEOUT.0);
