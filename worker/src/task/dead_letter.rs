//! Records that could not be used: what they were, where they came from, why.

use bytes::Bytes;
use serde::Serialize;

/// A poison record or a late row, on its way to the job's dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub reason: Reason,
    /// In words, with the values concerned.
    pub detail: String,
    /// The operator that gave up on it: a source's name or an operator's id.
    pub operator: String,
    pub origin: Option<LetterOrigin>,
    /// The record's value as it was read; for a late row, its columns as JSON.
    pub value: Bytes,
}

/// The record a dead letter was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LetterOrigin {
    pub topic: String,
    pub partition: u32,
    pub offset: i64,
}

/// Why a record became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Not in the source's format, or a value does not fit its column.
    BadRecord,
    /// All its windows had closed.
    Late,
    /// An expression failed on it.
    Expression,
}
