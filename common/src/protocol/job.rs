//! Jobs as users deploy and see them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::JobName;
use crate::objects::location::Location;
use crate::plan::JobGraph;
use crate::time::Span;

/// `POST /v1/jobs`: exactly one of `sql` and `graph`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateJob {
    #[schema(value_type = String)]
    pub name: JobName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph: Option<JobGraph>,
    /// Default: the partitions of the largest source, at most the cores of the active workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<u32>,
    /// Default 1000, at least 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval_ms: Option<u64>,
    #[serde(default)]
    pub config: JobConfig,
    /// Begin with the state of a savepoint of the same job: the same operators, the same parallelism.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<Restore>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// The savepoint's location, as `GET /v1/jobs/{job}/savepoints` has it.
    #[schema(value_type = String)]
    pub from: Location,
}

/// A job's further settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JobConfig {
    /// Fixed for the job's life: how finely its keys can be divided over tasks.
    pub key_groups: u16,
    /// A checkpoint that takes longer is given up; the job goes on.
    #[schema(value_type = String)]
    pub checkpoint_timeout: Span,
    /// Failures within ten minutes after which the job is FAILED.
    pub restart_budget: u32,
    /// Workers besides its own that keep the state of each task, as far as there are so many: a checkpoint is
    /// complete when they have it, too, and so many may be lost with their disks.
    pub standbys: u32,
    /// Savepoints that are made by themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveConfig>,
}

/// Savepoints of a job that runs, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArchiveConfig {
    /// From one to the next, at least a second.
    #[schema(value_type = String)]
    pub interval: Span,
    /// So many of the latest stay, 1 to 10.
    #[serde(default = "default_archives")]
    pub keep: u32,
    /// Below which they are; default: where the coordinator puts savepoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub location: Option<Location>,
}

fn default_archives() -> u32 {
    2
}

impl Default for JobConfig {
    fn default() -> JobConfig {
        JobConfig {
            key_groups: crate::limits::DEFAULT_KEY_GROUPS,
            checkpoint_timeout: crate::limits::CHECKPOINT_TIMEOUT,
            restart_budget: u32::try_from(crate::limits::RESTART_BUDGET)
                .expect("the budget is small"),
            standbys: crate::limits::DEFAULT_STANDBYS,
            archive: None,
        }
    }
}

/// Where a job stands, as its user sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobState {
    Created,
    /// For slots, or for the workers that hold its state; `reason` says which.
    Waiting,
    Deploying,
    Running,
    Recovering,
    Paused,
    Stopped,
    /// All sources are finite and done, and everything they gave is committed.
    Finished,
    Failed,
    Cancelled,
}

impl std::fmt::Display for JobState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            JobState::Created => "CREATED",
            JobState::Waiting => "WAITING",
            JobState::Deploying => "DEPLOYING",
            JobState::Running => "RUNNING",
            JobState::Recovering => "RECOVERING",
            JobState::Paused => "PAUSED",
            JobState::Stopped => "STOPPED",
            JobState::Finished => "FINISHED",
            JobState::Failed => "FAILED",
            JobState::Cancelled => "CANCELLED",
        })
    }
}

impl JobState {
    /// Nothing of the job runs or will run unless its user says so.
    pub fn is_terminal(self) -> bool {
        match self {
            JobState::Stopped | JobState::Finished | JobState::Failed | JobState::Cancelled => true,
            JobState::Created
            | JobState::Waiting
            | JobState::Deploying
            | JobState::Running
            | JobState::Recovering
            | JobState::Paused => false,
        }
    }
}
