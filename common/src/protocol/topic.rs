//! Topics as users configure and see them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::TopicName;
use crate::limits::DEFAULT_MAX_MESSAGE_BYTES;

/// `POST /v1/topics`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTopic {
    #[schema(value_type = String)]
    pub name: TopicName,
    #[serde(default = "one")]
    pub partitions: u32,
    #[serde(default = "one")]
    pub replication_factor: u32,
    #[serde(default = "nothing_said")]
    pub config: TopicConfig,
}

fn one() -> u32 {
    1
}

fn unsaid() -> u32 {
    UNSAID
}

fn nothing_said() -> TopicConfig {
    TopicConfig {
        min_insync_replicas: UNSAID,
        ..TopicConfig::default()
    }
}

/// What `min_insync_replicas` is where it was left out.
const UNSAID: u32 = 0;

/// What a topic keeps and promises. Absent options have the defaults shown here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TopicConfig {
    /// Records older than this may be deleted; absent: never by age. Default 7 days.
    pub retention_ms: Option<u64>,
    /// The oldest segments of a partition go when it is larger than this; absent: never by size.
    pub retention_bytes: Option<u64>,
    pub cleanup_policy: CleanupPolicy,
    pub durability: Durability,
    /// What is done when every in-sync replica of a partition may have lost records. Only of topics whose
    /// durability is `replicated`.
    pub unclean_recovery: UncleanRecovery,
    /// So many replicas have an acknowledged record at least. Absent in a new topic: half of them, rounded up,
    /// and two where records are acknowledged in memory.
    #[serde(default = "unsaid")]
    pub min_insync_replicas: u32,
    pub max_message_bytes: u32,
    /// A segment is rolled when it is larger than this.
    pub segment_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CleanupPolicy {
    #[default]
    Delete,
    Compact,
}

/// When a record counts as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Once it is on the disk of every in-sync replica.
    #[default]
    Fsync,
    /// Once it is in the memory of every in-sync replica. It reaches their disks soon afterwards.
    Replicated,
}

/// How a partition goes on when all of its in-sync replicas have ended without order, and may have lost
/// records that were acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UncleanRecovery {
    /// When all of them are back, the one with the longest log leads.
    #[default]
    Balanced,
    /// When somebody says who leads: `POST /v1/topics/{topic}/recover`.
    Manual,
}

/// In one memory only, a record would be lost with any loss of power.
pub const FEWEST_MEMORIES: u32 = 2;

impl TopicConfig {
    /// With what was left out for a topic with so many replicas.
    pub fn complete(mut self, replication_factor: u32) -> TopicConfig {
        if self.min_insync_replicas == UNSAID {
            let half = replication_factor.div_ceil(2);
            self.min_insync_replicas = match self.durability {
                Durability::Fsync => half,
                Durability::Replicated => half.max(FEWEST_MEMORIES),
            };
        }
        self
    }
}

impl Default for TopicConfig {
    fn default() -> TopicConfig {
        TopicConfig {
            retention_ms: Some(7 * 86_400_000),
            retention_bytes: None,
            cleanup_policy: CleanupPolicy::Delete,
            durability: Durability::Fsync,
            unclean_recovery: UncleanRecovery::Balanced,
            min_insync_replicas: 1,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            segment_bytes: 256 << 20,
        }
    }
}
