//! What goes wrong and how it is said: one table of codes, one shape of answer.
//!
//! Every error a user or another node sees is a `Problem`: an RFC 9457 problem document with a stable
//! `code`, the facts in `detail`, and the next step in `hint`.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    UnknownCheckpoint,
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
    Timeout,
    Unknown,
    DiskFull,
    Overloaded,
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
}

impl ErrorCode {
    const fn info(self) -> CodeInfo {
        let (status, title, retriable) = match self {
            ErrorCode::InvalidRequest => (400, "The request is malformed", false),
            ErrorCode::InvalidName => (400, "The name is not allowed", false),
            ErrorCode::InvalidConfig => (400, "The configuration is not valid", false),
            ErrorCode::InvalidRecord => (400, "A record is not valid", false),
            ErrorCode::RecordTooLarge => (413, "A record is too large", false),
            ErrorCode::RequestTooLarge => (413, "The request is too large", false),
            ErrorCode::UnsupportedMediaType => (415, "The content type is not supported", false),
            ErrorCode::NotFound => (404, "There is nothing at this address", false),
            ErrorCode::MethodNotAllowed => (405, "The method is not allowed here", false),
            ErrorCode::UnknownTopic => (404, "The topic does not exist", false),
            ErrorCode::UnknownPartition => (404, "The partition does not exist", false),
            ErrorCode::UnknownJob => (404, "The job does not exist", false),
            ErrorCode::UnknownOperator => (404, "The operator does not exist", false),
            ErrorCode::UnknownWorker => (404, "The worker does not exist", false),
            ErrorCode::UnknownCheckpoint => (404, "The checkpoint does not exist", false),
            ErrorCode::OffsetOutOfRange => (416, "The offset is outside the log", false),
            ErrorCode::AlreadyExists => (409, "The name is taken", false),
            ErrorCode::Conflict => (409, "The request conflicts with the current state", false),
            ErrorCode::UnsupportedReplicationFactor => {
                (422, "The replication factor is not supported", false)
            }
            ErrorCode::UnsupportedDurability => (422, "The durability is not supported", false),
            ErrorCode::UnsupportedCleanupPolicy => {
                (422, "The cleanup policy is not supported", false)
            }
            ErrorCode::UnsupportedFeature => (422, "The feature is not supported", false),
            ErrorCode::SqlSyntax => (400, "The SQL does not parse", false),
            ErrorCode::SqlPlan => (400, "The SQL cannot be planned", false),
            ErrorCode::InvalidGraph => (400, "The job graph is not valid", false),
            ErrorCode::DuplicateSequence => (409, "The batch was appended before", false),
            ErrorCode::OutOfOrderSequence => (409, "The producer's batch is out of order", false),
            ErrorCode::WrongCluster => (409, "The node belongs to another cluster", false),
            ErrorCode::StaleControlEpoch => (409, "The coordinator has been replaced", false),
            ErrorCode::FencedWorkerEpoch => (409, "The worker has been fenced", false),
            ErrorCode::FencedLeaderEpoch => (409, "The partition has a newer leader", true),
            ErrorCode::FencedGeneration => (409, "The job has a newer generation", false),
            ErrorCode::FencedProducer => (409, "The producer has been fenced", false),
            ErrorCode::MetadataStale => (503, "The node has yet to hear of this", true),
            ErrorCode::NotLeader => (421, "The node does not lead the partition", true),
            ErrorCode::EpochGone => (410, "The epoch is no longer kept", false),
            ErrorCode::StaleGeneration => (409, "The job has a newer generation", true),
            ErrorCode::NoWorkers => (503, "No worker is active", true),
            ErrorCode::NotEnoughReplicas => (503, "Too few replicas are in sync", true),
            ErrorCode::LeaderUnavailable => (503, "The partition has no live leader", true),
            ErrorCode::CoordinatorUnavailable => (503, "The coordinator is not reachable", true),
            ErrorCode::Timeout => (504, "The outcome is unknown after the time allowed", true),
            ErrorCode::Unknown => (503, "The outcome is unknown", true),
            ErrorCode::DiskFull => (507, "The disk is full", true),
            ErrorCode::Overloaded => (429, "Too much is waiting", true),
            ErrorCode::ShuttingDown => (503, "The node is shutting down", true),
            ErrorCode::CorruptLog => (500, "Stored bytes are corrupt", false),
            ErrorCode::Internal => (500, "Something went wrong inside", false),
        };
        CodeInfo {
            status,
            title,
            retriable,
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
    /// What to do next; empty if there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Where in the request: a JSON pointer, `line 3, column 7`, or `record 12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

impl Problem {
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Problem {
        Problem {
            kind: "about:blank".to_owned(),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
            hint: String::new(),
            at: None,
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = hint.into();
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
