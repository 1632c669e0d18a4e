//! What goes wrong and how it is said: one table of codes, one shape of answer.
//!
//! Every error a user or another node sees is a `Problem`: an RFC 9457 problem document with a stable
//! `code`, the facts in `detail`, and the next step in `hint`.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time::Span;

/// The stable name of an error. Codes are added, never renamed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    // The caller's mistake.
    InvalidRequest,
    InvalidName,
    InvalidConfig,
    InvalidRecord,
    RecordTooLarge,
    RequestTooLarge,
    UnsupportedMediaType,
    NotFound,
    MethodNotAllowed,
    UnknownTopic,
    UnknownPartition,
    UnknownJob,
    UnknownOperator,
    UnknownWorker,
    UnknownCoordinator,
    UnknownCheckpoint,
    UnknownSavepoint,
    CorruptSavepoint,
    SavepointMismatch,
    /// A change would drop state, and nobody has accepted that.
    StateWouldBeLost,
    OffsetOutOfRange,
    AlreadyExists,
    Conflict,
    UnsupportedReplicationFactor,
    UnsupportedDurability,
    UnsupportedCleanupPolicy,
    UnsupportedFeature,
    SqlSyntax,
    SqlPlan,
    InvalidGraph,
    DuplicateSequence,
    OutOfOrderSequence,
    // Fences: the sender is of the past, or the receiver has yet to hear of it.
    WrongCluster,
    StaleControlEpoch,
    FencedWorkerEpoch,
    FencedLeaderEpoch,
    FencedGeneration,
    FencedProducer,
    MetadataStale,
    NotLeader,
    EpochGone,
    StaleGeneration,
    // The world's failure: the same request may succeed later.
    NoWorkers,
    NotEnoughReplicas,
    LeaderUnavailable,
    CoordinatorUnavailable,
    ObjectStoreUnavailable,
    Timeout,
    Unknown,
    DiskFull,
    Overloaded,
    QuotaExceeded,
    ShuttingDown,
    // Ours.
    CorruptLog,
    Internal,
}

/// What is known of a code apart from its name.
struct CodeInfo {
    status: u16,
    title: &'static str,
    retriable: bool,
    /// What to do next, unless who refuses knows better.
    hint: &'static str,
}

impl ErrorCode {
    const fn info(self) -> CodeInfo {
        let (status, title, retriable, hint) = match self {
            ErrorCode::InvalidRequest => (
                400,
                "The request is malformed",
                false,
                "See /docs for what this call takes.",
            ),
            ErrorCode::InvalidName => (
                400,
                "The name is not allowed",
                false,
                "Choose a name of letters, digits, \".\", \"_\" and \"-\".",
            ),
            ErrorCode::InvalidConfig => (
                400,
                "The configuration is not valid",
                false,
                "See /docs for the options and what they may be.",
            ),
            ErrorCode::InvalidRecord => (
                400,
                "A record is not valid",
                false,
                "Correct the record and send the request again: nothing of it was written.",
            ),
            ErrorCode::RecordTooLarge => (
                413,
                "A record is too large",
                false,
                "Send smaller records, or raise max_message_bytes of the topic.",
            ),
            ErrorCode::RequestTooLarge => (
                413,
                "The request is too large",
                false,
                "Send less at a time.",
            ),
            ErrorCode::UnsupportedMediaType => (
                415,
                "The content type is not supported",
                false,
                "See /docs for the content types this call takes.",
            ),
            ErrorCode::NotFound => (
                404,
                "There is nothing at this address",
                false,
                "See /docs for everything there is.",
            ),
            ErrorCode::MethodNotAllowed => (
                405,
                "The method is not allowed here",
                false,
                "See /docs for the methods it has.",
            ),
            ErrorCode::UnknownTopic => (
                404,
                "The topic does not exist",
                false,
                "GET /v1/topics lists the topics; POST /v1/topics creates one.",
            ),
            ErrorCode::UnknownPartition => (
                404,
                "The partition does not exist",
                false,
                "GET /v1/topics/{topic} shows its partitions.",
            ),
            ErrorCode::UnknownJob => (
                404,
                "The job does not exist",
                false,
                "GET /v1/jobs lists the jobs.",
            ),
            ErrorCode::UnknownOperator => (
                404,
                "The operator does not exist",
                false,
                "GET /v1/jobs/{job} shows its operators.",
            ),
            ErrorCode::UnknownWorker => (
                404,
                "The worker does not exist",
                false,
                "GET /v1/workers lists the workers.",
            ),
            ErrorCode::UnknownCoordinator => (
                404,
                "The coordinator does not exist",
                false,
                "GET /v1/cluster lists the coordinators.",
            ),
            ErrorCode::UnknownCheckpoint => (
                404,
                "The checkpoint does not exist",
                false,
                "GET /v1/jobs/{job}/checkpoints lists the epochs.",
            ),
            ErrorCode::UnknownSavepoint => (
                404,
                "The savepoint does not exist",
                false,
                "GET /v1/jobs/{job}/savepoints lists a job's savepoints with their locations.",
            ),
            ErrorCode::CorruptSavepoint => (
                422,
                "The savepoint is damaged",
                false,
                "Put back what is damaged from a copy, or use another savepoint.",
            ),
            ErrorCode::SavepointMismatch => (
                422,
                "The savepoint is of another job",
                false,
                "Deploy the job as it was when the savepoint was made.",
            ),
            ErrorCode::StateWouldBeLost => (
                409,
                "State would be lost",
                false,
                "PUT with ?plan=true shows what becomes of each operator.",
            ),
            ErrorCode::OffsetOutOfRange => (
                416,
                "The offset is outside the log",
                false,
                "Read from offset=earliest or offset=latest.",
            ),
            ErrorCode::AlreadyExists => (
                409,
                "The name is taken",
                false,
                "Choose another name, or delete the old one first.",
            ),
            ErrorCode::Conflict => (
                409,
                "The request conflicts with the current state",
                false,
                "Look at its state and repeat the request if it still applies.",
            ),
            ErrorCode::UnsupportedReplicationFactor => (
                422,
                "The replication factor is not supported",
                false,
                "Use a replication factor of 1 to 8.",
            ),
            ErrorCode::UnsupportedDurability => (
                422,
                "The durability is not supported",
                false,
                "Use durability fsync.",
            ),
            ErrorCode::UnsupportedCleanupPolicy => (
                422,
                "The cleanup policy is not supported",
                false,
                "Use the cleanup policy delete.",
            ),
            ErrorCode::UnsupportedFeature => (
                422,
                "The feature is not supported",
                false,
                "The README says what there is.",
            ),
            ErrorCode::SqlSyntax => (
                400,
                "The SQL does not parse",
                false,
                "POST /v1/sql/explain tries a query without deploying it.",
            ),
            ErrorCode::SqlPlan => (
                400,
                "The SQL cannot be planned",
                false,
                "POST /v1/sql/explain tries a query without deploying it.",
            ),
            ErrorCode::InvalidGraph => (
                400,
                "The job graph is not valid",
                false,
                "POST /v1/sql/explain shows the graph of a query.",
            ),
            ErrorCode::DuplicateSequence => (
                409,
                "The batch was appended before",
                false,
                "Nothing is to be done: the batch is there.",
            ),
            ErrorCode::OutOfOrderSequence => (
                409,
                "The producer's batch is out of order",
                false,
                "Send the producer's batches in their order, each once the one before is acknowledged.",
            ),
            ErrorCode::WrongCluster => (
                409,
                "The node belongs to another cluster",
                false,
                "Check the coordinator's address, or start with an empty data directory.",
            ),
            ErrorCode::StaleControlEpoch => (
                409,
                "The coordinator has been replaced",
                false,
                "Look up the coordinator again.",
            ),
            ErrorCode::FencedWorkerEpoch => (
                409,
                "The worker has been fenced",
                false,
                "The worker registers again by itself.",
            ),
            ErrorCode::FencedLeaderEpoch => (
                409,
                "The partition has a newer leader",
                true,
                "Look up the partition's leader again and repeat.",
            ),
            ErrorCode::FencedGeneration => (
                409,
                "The job has a newer generation",
                false,
                "Read the job again: a newer generation of it runs.",
            ),
            ErrorCode::FencedProducer => (
                409,
                "The producer has been fenced",
                false,
                "Another producer has taken over; begin with a new producer id.",
            ),
            ErrorCode::MetadataStale => (
                503,
                "The node has yet to hear of this",
                true,
                "Repeat the request in a moment.",
            ),
            ErrorCode::NotLeader => (
                421,
                "The node does not lead the partition",
                true,
                "Look up the partition's leader again and repeat.",
            ),
            ErrorCode::EpochGone => (
                410,
                "The epoch is no longer kept",
                false,
                "Leave the epoch out to read the newest one.",
            ),
            ErrorCode::StaleGeneration => (
                409,
                "The job has a newer generation",
                true,
                "Repeat the request in a moment.",
            ),
            ErrorCode::NoWorkers => (
                503,
                "No worker is active",
                true,
                "Start a worker; GET /v1/workers shows those the cluster knows.",
            ),
            ErrorCode::NotEnoughReplicas => (
                503,
                "Too few replicas are in sync",
                true,
                "Repeat the request once the replicas are back.",
            ),
            ErrorCode::LeaderUnavailable => (
                503,
                "The partition has no live leader",
                true,
                "Repeat the request in a moment; GET /v1/workers shows which workers are active.",
            ),
            ErrorCode::CoordinatorUnavailable => (
                503,
                "The coordinator is not reachable",
                true,
                "Repeat the request in a moment; check that the coordinator runs.",
            ),
            ErrorCode::ObjectStoreUnavailable => (
                503,
                "The object store cannot be used",
                true,
                "Check the location, and that every node reaches it and may use it (S3: AWS_* in its environment); then repeat the request.",
            ),
            ErrorCode::Timeout => (
                504,
                "The outcome is unknown after the time allowed",
                true,
                "Look whether it was done, or repeat it with the same Idempotency-Key.",
            ),
            ErrorCode::Unknown => (
                503,
                "The outcome is unknown",
                true,
                "Look whether it was done, or repeat it with the same Idempotency-Key.",
            ),
            ErrorCode::DiskFull => (
                507,
                "The disk is full",
                true,
                "Free space on the worker's disk, or shorten the retention of topics.",
            ),
            ErrorCode::Overloaded => (
                429,
                "Too much is waiting",
                true,
                "Repeat the request in a moment, with less at a time.",
            ),
            ErrorCode::QuotaExceeded => (
                429,
                "The client's quota is used up",
                true,
                "Repeat the request after the seconds that Retry-After says, or have the quota raised (--producer-byte-rate, --consumer-byte-rate).",
            ),
            ErrorCode::ShuttingDown => (
                503,
                "The node is shutting down",
                true,
                "Repeat the request in a moment, at another node.",
            ),
            ErrorCode::CorruptLog => (
                500,
                "Stored bytes are corrupt",
                false,
                "The worker's log says which file; what can still be read is served.",
            ),
            ErrorCode::Internal => (
                500,
                "Something went wrong inside",
                false,
                "Please report it with what the node logged.",
            ),
        };
        CodeInfo {
            status,
            title,
            retriable,
            hint,
        }
    }

    /// The HTTP status an answer with this code has.
    pub const fn status(self) -> u16 {
        self.info().status
    }

    pub const fn title(self) -> &'static str {
        self.info().title
    }

    /// Whether the same request may succeed later, unchanged.
    pub const fn is_retriable(self) -> bool {
        self.info().retriable
    }

    /// What to do next about an error of this code, where nothing more is known.
    pub const fn hint(self) -> &'static str {
        self.info().hint
    }
}

/// An RFC 9457 problem document, `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: the code says which problem it is, the status which class.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub code: ErrorCode,
    /// What happened, where, with the values concerned.
    pub detail: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Where in the request: a JSON pointer, `line 3, column 7`, or `record 12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The request is worth repeating after so many seconds, as the header Retry-After says too; where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

impl Problem {
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Problem {
        Problem {
            kind: "about:blank".to_owned(),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
            hint: code.hint().to_owned(),
            at: None,
            retry_after: None,
        }
    }

    /// A next step that fits better than that of the code.
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = hint.into();
        self
    }

    /// Rounded up to seconds: who comes earlier is refused again.
    pub fn retry_after(mut self, span: Span) -> Problem {
        self.retry_after = Some(span.0.div_ceil(1_000).max(1));
        self
    }

    pub fn at(mut self, place: impl Into<String>) -> Problem {
        self.at = Some(place.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        if let Some(place) = &self.at {
            write!(f, " (at {place})")?;
        }
        if !self.hint.is_empty() {
            write!(f, ". {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

impl From<crate::ids::NameError> for Problem {
    fn from(error: crate::ids::NameError) -> Problem {
        Problem::new(ErrorCode::InvalidName, error.to_string())
            .hint("Choose a name of letters, digits, \".\", \"_\" and \"-\".")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: &[ErrorCode] = &[
        ErrorCode::InvalidRequest,
        ErrorCode::InvalidName,
        ErrorCode::InvalidConfig,
        ErrorCode::InvalidRecord,
        ErrorCode::RecordTooLarge,
        ErrorCode::RequestTooLarge,
        ErrorCode::UnsupportedMediaType,
        ErrorCode::NotFound,
        ErrorCode::MethodNotAllowed,
        ErrorCode::UnknownTopic,
        ErrorCode::UnknownPartition,
        ErrorCode::UnknownJob,
        ErrorCode::UnknownOperator,
        ErrorCode::UnknownWorker,
        ErrorCode::UnknownCoordinator,
        ErrorCode::UnknownCheckpoint,
        ErrorCode::UnknownSavepoint,
        ErrorCode::CorruptSavepoint,
        ErrorCode::SavepointMismatch,
        ErrorCode::StateWouldBeLost,
        ErrorCode::OffsetOutOfRange,
        ErrorCode::AlreadyExists,
        ErrorCode::Conflict,
        ErrorCode::UnsupportedReplicationFactor,
        ErrorCode::UnsupportedDurability,
        ErrorCode::UnsupportedCleanupPolicy,
        ErrorCode::UnsupportedFeature,
        ErrorCode::SqlSyntax,
        ErrorCode::SqlPlan,
        ErrorCode::InvalidGraph,
        ErrorCode::DuplicateSequence,
        ErrorCode::OutOfOrderSequence,
        ErrorCode::WrongCluster,
        ErrorCode::StaleControlEpoch,
        ErrorCode::FencedWorkerEpoch,
        ErrorCode::FencedLeaderEpoch,
        ErrorCode::FencedGeneration,
        ErrorCode::FencedProducer,
        ErrorCode::MetadataStale,
        ErrorCode::NotLeader,
        ErrorCode::EpochGone,
        ErrorCode::StaleGeneration,
        ErrorCode::NoWorkers,
        ErrorCode::NotEnoughReplicas,
        ErrorCode::LeaderUnavailable,
        ErrorCode::CoordinatorUnavailable,
        ErrorCode::ObjectStoreUnavailable,
        ErrorCode::Timeout,
        ErrorCode::Unknown,
        ErrorCode::DiskFull,
        ErrorCode::Overloaded,
        ErrorCode::QuotaExceeded,
        ErrorCode::ShuttingDown,
        ErrorCode::CorruptLog,
        ErrorCode::Internal,
    ];

    #[test]
    fn every_error_says_what_happened_and_what_to_do_next() {
        for code in CODES {
            let problem = Problem::new(*code, "something");
            assert!((400..600).contains(&problem.status), "{code:?}");
            assert!(problem.title.starts_with(char::is_uppercase), "{code:?}");
            assert!(problem.hint.ends_with('.'), "{code:?} has no hint");
        }
        // One more of them must be added above as well.
        let last = CODES.last().copied();
        assert_eq!(
            (CODES.len(), last),
            (ErrorCode::Internal as usize + 1, last)
        );
    }
}
