//! Who leads what, where nodes live, which jobs run: the cluster's facts as workers hold them.
//!
//! An image is rows; a delta is every row that changed after a version. Fetching is a long poll: it
//! answers as soon as there is something new, so a fact reaches every worker within a round trip, and a
//! lost answer is asked for again. Rows are facts, never orders: a worker compares them with what it runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Call;
use super::task::Deployment;
use super::topic::TopicConfig;
use crate::ids::{
    CheckpointId, ClusterId, ControlEpoch, Generation, JobId, JobName, LeaderEpoch,
    MetadataVersion, NodeId, PartitionEpoch, PartitionId, TopicId, TopicName, WorkerEpoch,
};
use crate::offset::Offset;
use crate::time::{Span, Timestamp};

/// Everything that changed after `since`; waits up to `wait` if nothing did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FetchMetadata {
    pub cluster: ClusterId,
    pub worker: Option<NodeId>,
    pub since: MetadataVersion,
    pub wait: Span,
}

impl Call for FetchMetadata {
    const PATH: &'static str = "/internal/v1/metadata";
    type Reply = MetadataDelta;
}

/// The rows that changed after `since`, up to `version`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetadataDelta {
    pub control_epoch: ControlEpoch,
    /// What the receiver had; it ignores a delta that does not start at its own version.
    pub since: MetadataVersion,
    pub version: MetadataVersion,
    /// Replaces everything: the coordinator no longer knows what was removed since then.
    pub full: bool,
    pub topics: Vec<TopicImage>,
    pub removed_topics: Vec<TopicId>,
    pub workers: Vec<WorkerImage>,
    pub removed_workers: Vec<NodeId>,
    pub jobs: Vec<JobImage>,
    pub removed_jobs: Vec<JobId>,
    /// The tasks of jobs that should run; a job that is in `jobs` and runs nothing has `running: false`.
    pub deployments: Vec<Arc<Deployment>>,
    /// What jobs still need of topics.
    #[serde(default)]
    pub holds: Vec<Arc<TopicHolds>>,
    /// Where the coordinators are, the one that leads first.
    #[serde(default)]
    pub coordinators: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopicImage {
    pub id: TopicId,
    pub name: TopicName,
    pub config: TopicConfig,
    /// In the order of their numbers.
    pub partitions: Vec<PartitionImage>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartitionImage {
    pub replicas: Vec<NodeId>,
    /// The replicas that have every committed record, but for those that are suspect.
    pub isr: Vec<NodeId>,
    pub leader: Option<NodeId>,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// Those in sync that may have lost records since: they do not lead before they have fetched them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspect: Vec<NodeId>,
    /// Where the logs of suspects end, as they have said while nobody leads.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub log_ends: BTreeMap<NodeId, LogEnd>,
    /// The last time that a leader began which may lack committed records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclean: Option<UncleanElection>,
}

/// Where a log ends. Of two logs, the greater one has everything that is committed in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogEnd {
    /// Of its last batch.
    pub last_epoch: Option<LeaderEpoch>,
    pub log_end: Offset,
}

/// A leader was elected although records may be lost with that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UncleanElection {
    /// The reign that began with it.
    pub since: LeaderEpoch,
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerImage {
    pub id: NodeId,
    pub epoch: WorkerEpoch,
    pub address: String,
    pub active: bool,
}

/// What partition leaders need to decide a job's transactions, and what workers need to know of its life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobImage {
    pub id: JobId,
    pub name: JobName,
    pub generation: Generation,
    /// The last completed checkpoint, of whichever generation.
    pub completed: Option<CheckpointId>,
    /// For every generation that was superseded: the last checkpoint completed up to then.
    pub finals: BTreeMap<Generation, Option<CheckpointId>>,
    /// Whether `generation` has tasks that should run.
    pub running: bool,
    /// Deleted, and kept only until no transaction of it is open.
    pub deleted: bool,
}

/// From where on a job may read topics again: the positions of a completed checkpoint of not long ago.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopicHolds {
    pub job: JobId,
    /// When that checkpoint was completed.
    pub at: Timestamp,
    /// Empty: the job needs nothing any more.
    pub positions: BTreeMap<TopicName, BTreeMap<PartitionId, Offset>>,
}

impl JobImage {
    /// The history rule: whether what was sealed under this generation and checkpoint
    /// belongs to the job's past. `None`: it is not decided yet.
    pub fn counts(&self, generation: Generation, checkpoint: CheckpointId) -> Option<bool> {
        let last_of = |completed: &Option<CheckpointId>| completed.is_some_and(|c| checkpoint <= c);
        match generation.cmp(&self.generation) {
            std::cmp::Ordering::Greater => None,
            std::cmp::Ordering::Less => Some(self.finals.get(&generation).is_some_and(last_of)),
            std::cmp::Ordering::Equal if last_of(&self.completed) => Some(true),
            // The current generation may still complete it, unless nothing of it can run again.
            std::cmp::Ordering::Equal if self.deleted => Some(false),
            std::cmp::Ordering::Equal => None,
        }
    }
}
