//! Newtypes for everything that identifies: a bare number or string never crosses a function.
//!
//! The counters that fence (`WorkerEpoch`, `ControlEpoch`, `LeaderEpoch`, `PartitionEpoch`, `Generation`,
//! `CheckpointId`) only ever grow and are never reused; each has its own type so that one cannot be
//! compared with another by mistake.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::limits::{MAX_JOB_NAME_BYTES, MAX_TOPIC_NAME_BYTES};

/// Identifies a cluster; minted once, when its first coordinator starts on an empty data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub Uuid);

/// A worker's stable small number, given at its first registration and kept in its data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

/// A coordinator's number in its group, given when it joins and never given to another one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct CoordinatorId(pub u64);

/// Identifies a data directory; a worker id that comes with another one has lost its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StorageId(pub Uuid);

/// One life of a worker process: the metadata version of its registration.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WorkerEpoch(pub u64);

/// One reign of a coordinator: the metadata version of its `LeaderAnnounce`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ControlEpoch(pub u64);

/// The number of the last metadata command applied; an image is a prefix of the command log.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MetadataVersion(pub u64);

/// Identifies a topic for ever: a topic deleted and created again has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopicId(pub Uuid);

/// The number of a partition inside its topic, from 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PartitionId(pub u32);

/// One partition of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    pub topic: TopicId,
    pub partition: PartitionId,
}

/// One reign of a partition's leader. Written into every record batch (Kafka's type: i32).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct LeaderEpoch(pub i32);

/// The version of a partition's record in the metadata; the token of its compare-and-set.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PartitionEpoch(pub u32);

/// A producer's number (Kafka's type: i64). Bit 62 marks a job's own writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProducerId(pub i64);

/// One life of a producer (Kafka's type: i16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProducerEpoch(pub i16);

/// A job's number for ever; a job deleted and created again has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u32);

/// One attempt at running a job: every deployment and every recovery has a new one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u32);

/// A checkpoint of a job. Users see it as the epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct CheckpointId(pub u64);

/// A group of chained operators that run in one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StageId(pub u16);

/// One parallel instance of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    pub stage: StageId,
    pub index: u32,
}

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a {what} name must not be empty")]
    Empty { what: &'static str },
    #[error("a {what} name has at most {limit} bytes, this one has {bytes}")]
    TooLong {
        what: &'static str,
        limit: usize,
        bytes: usize,
    },
    #[error(
        "a {what} name has letters, digits, \".\", \"_\" and \"-\" only, \"{name}\" has {found:?}"
    )]
    BadCharacter {
        what: &'static str,
        name: String,
        found: char,
    },
    #[error("a {what} name must not be \"{name}\"")]
    Reserved { what: &'static str, name: String },
}

/// A topic's name, as Kafka allows it: 1 to 249 of `A-Z a-z 0-9 . _ -`, neither `.` nor `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[serde(transparent)]
pub struct TopicName(String);

/// A job's name: 1 to 200 of the characters a topic's name may have, so that `<job>.dead-letters` is one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct JobName(String);

impl TopicName {
    pub fn new(name: impl Into<String>) -> Result<TopicName, NameError> {
        check_name("topic", MAX_TOPIC_NAME_BYTES, name.into()).map(TopicName)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl JobName {
    pub fn new(name: impl Into<String>) -> Result<JobName, NameError> {
        check_name("job", MAX_JOB_NAME_BYTES, name.into()).map(JobName)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The topic that holds this job's poison and late records.
    pub fn dead_letters(&self) -> TopicName {
        TopicName(format!("{}.dead-letters", self.0))
    }
}

impl FromStr for TopicName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<TopicName, NameError> {
        TopicName::new(name)
    }
}

impl FromStr for JobName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<JobName, NameError> {
        JobName::new(name)
    }
}

impl<'de> Deserialize<'de> for TopicName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TopicName, D::Error> {
        TopicName::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for JobName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JobName, D::Error> {
        JobName::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl CheckpointId {
    pub fn next(self) -> CheckpointId {
        CheckpointId(self.0 + 1)
    }
}

impl Generation {
    pub fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

impl From<u64> for CoordinatorId {
    fn from(number: u64) -> CoordinatorId {
        CoordinatorId(number)
    }
}

impl LeaderEpoch {
    pub fn next(self) -> LeaderEpoch {
        LeaderEpoch(self.0 + 1)
    }
}

impl PartitionEpoch {
    pub fn next(self) -> PartitionEpoch {
        PartitionEpoch(self.0 + 1)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for CoordinatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for WorkerEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ControlEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for MetadataVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

impl fmt::Display for LeaderEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.stage.0, self.index)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_name(what: &'static str, limit: usize, name: String) -> Result<String, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > limit {
        return Err(NameError::TooLong {
            what,
            limit,
            bytes: name.len(),
        });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(found) = name.chars().find(|c| !allowed(*c)) {
        return Err(NameError::BadCharacter { what, name, found });
    }
    if name == "." || name == ".." {
        return Err(NameError::Reserved { what, name });
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_wherever_they_come_from() {
        assert!(TopicName::new("card-payments_2.v1").is_ok());
        for bad in ["", ".", "..", "a b", "a/b", "ü", &"x".repeat(250)] {
            assert!(TopicName::new(bad).is_err(), "{bad:?} was accepted");
            let json = serde_json::to_string(bad).unwrap();
            assert!(
                serde_json::from_str::<TopicName>(&json).is_err(),
                "{bad:?} was decoded"
            );
        }
    }

    #[test]
    fn every_job_name_gives_a_valid_dead_letter_topic() {
        let longest = JobName::new("j".repeat(MAX_JOB_NAME_BYTES)).unwrap();
        assert!(TopicName::new(longest.dead_letters().as_str()).is_ok());
    }
}
