//! A follower asks a leader for what comes after its logs, and thereby says what it has.
//!
//! Two workers share many partitions, so one call speaks of all of them. The calls of a follower make up a
//! *session*: the leader's worker remembers the positions it was told, and a call adds those that are new.
//! It is answered when there is news of any replica of the session, when a later call of the session comes,
//! or when its time is over. Of a position there is news once; then the follower says its next one. Whoever
//! misses an answer begins another session, and says everything again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Call;
use super::metadata::LogEnd;
use crate::error::Problem;
use crate::ids::{LeaderEpoch, NodeId, PartitionEpoch, TopicPartition, WorkerEpoch};
use crate::offset::Offset;
use crate::time::Span;
use crate::transport::msgpack::{self, Encoded, MsgpackError};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replicate {
    pub from: NodeId,
    pub from_epoch: WorkerEpoch,
    /// Given by the follower, another one each time.
    pub session: u64,
    /// Counted from zero, which begins the session. Calls may overtake each other, and each counts once.
    pub number: u64,
    /// The positions that are new since the call before.
    pub positions: Vec<ReplicaPosition>,
    pub wait: Span,
}

/// Where a replica's log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReplicaPosition {
    pub partition: TopicPartition,
    /// The reign it follows.
    pub leader_epoch: LeaderEpoch,
    pub log_end: Offset,
    /// Of its last batch.
    pub last_epoch: Option<LeaderEpoch>,
    /// Up to where it survives a loss of power.
    pub durable: Offset,
    /// Up to where it knows that everything is committed.
    pub committed: Offset,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replicated {
    pub news: Vec<ReplicaNews>,
    /// The record batches of all of them, one replica's after the other's.
    pub batches: Bytes,
}

/// What the leader says to one position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaNews {
    /// The position it is the answer to.
    pub at: ReplicaPosition,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The log is a prefix of the leader's, and so many bytes of batches come next; there may be none.
    Continues { bytes: u32, committed: Offset },
    /// The log went another way: it is to be cut off where this epoch ends in it, or here if that is earlier.
    Diverges { epoch: LeaderEpoch, end: Offset },
    /// What would come next has been removed: the log is to begin anew here.
    Removed { log_start: Offset },
    /// The leader has nothing to say to this position now.
    Refused { problem: Problem },
}

/// As it is read: the batches are part of the message.
#[derive(Deserialize)]
struct Lent<'a> {
    news: Vec<ReplicaNews>,
    batches: &'a [u8],
}

impl Replicated {
    /// Each with its batches.
    pub fn into_each(self) -> impl Iterator<Item = (ReplicaPosition, Verdict, Bytes)> {
        let mut rest = self.batches;
        self.news
            .into_iter()
            .map(move |ReplicaNews { at, verdict }| {
                let bytes = match verdict {
                    Verdict::Continues { bytes, .. } => bytes as usize,
                    _ => 0,
                };
                // Less than was said is found out by whoever opens them.
                let own = rest.split_to(bytes.min(rest.len()));
                (at, verdict, own)
            })
    }
}

impl Call for Replicate {
    const PATH: &'static str = "/internal/v1/replicate";
    type Reply = Replicated;

    fn write_reply(mut reply: Replicated) -> Result<Encoded, MsgpackError> {
        let batches = std::mem::take(&mut reply.batches);
        msgpack::encode_before(&reply, batches)
    }

    fn read_reply(body: Bytes) -> Result<Replicated, MsgpackError> {
        let lent: Lent<'_> = msgpack::decode(&body)?;
        Ok(Replicated {
            news: lent.news,
            batches: body.slice_ref(lent.batches),
        })
    }
}

/// A leader would have others in sync with its partitions. Each change is made by itself, or refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlterIsr {
    pub worker: NodeId,
    pub worker_epoch: WorkerEpoch,
    pub changes: Vec<IsrChange>,
    /// Where logs of this worker end that are suspect, of partitions that nobody leads.
    #[serde(default)]
    pub log_ends: Vec<LogEndReport>,
}

/// It counts for the record of this epoch only: while that is the last one the log stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogEndReport {
    pub partition: TopicPartition,
    pub partition_epoch: PartitionEpoch,
    pub log_end: LogEnd,
}

/// As a compare-and-set on the partition's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsrChange {
    pub partition: TopicPartition,
    pub leader_epoch: LeaderEpoch,
    pub partition_epoch: PartitionEpoch,
    /// Each with the life that this is about; the leader's own says nothing.
    pub isr: BTreeMap<NodeId, WorkerEpoch>,
    /// Of these, who was suspect and has fetched everything again.
    #[serde(default)]
    pub recovered: BTreeSet<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsrAltered {
    /// In the order of the changes.
    pub verdicts: Vec<IsrVerdict>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IsrVerdict {
    /// The metadata says it from now on.
    Accepted,
    /// Nothing was changed. The record's epoch, if there is such a partition.
    Refused {
        partition_epoch: Option<PartitionEpoch>,
        reason: String,
    },
}

impl Call for AlterIsr {
    const PATH: &'static str = "/internal/v1/alter-isr";
    type Reply = IsrAltered;
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::ids::{PartitionId, TopicId};

    #[test]
    fn each_replica_is_given_its_own_batches() {
        let at = |partition| ReplicaPosition {
            partition: TopicPartition {
                topic: TopicId(Uuid::nil()),
                partition: PartitionId(partition),
            },
            leader_epoch: LeaderEpoch(3),
            log_end: Offset(7),
            last_epoch: None,
            durable: Offset(5),
            committed: Offset(2),
        };
        let continues = |bytes| Verdict::Continues {
            bytes,
            committed: Offset(4),
        };
        let diverges = Verdict::Diverges {
            epoch: LeaderEpoch(2),
            end: Offset(6),
        };
        let verdicts = [continues(3), diverges, continues(0), continues(2)];
        let news = verdicts.into_iter().zip(0..);
        let reply = Replicated {
            news: news
                .map(|(verdict, partition)| ReplicaNews {
                    at: at(partition),
                    verdict,
                })
                .collect(),
            batches: Bytes::from_static(b"abcde"),
        };
        let written = Replicate::write_reply(reply.clone()).unwrap();
        let body = Bytes::from([&written.head[..], &written.tail].concat());
        assert_eq!(
            msgpack::decode::<Replicated>(&body).unwrap(),
            reply,
            "it is the message that serde would have written"
        );
        let read = Replicate::read_reply(body).unwrap();
        assert_eq!(read, reply);
        let each: Vec<(ReplicaPosition, Bytes)> =
            read.into_each().map(|(at, _, bytes)| (at, bytes)).collect();
        let bytes: Vec<&[u8]> = each.iter().map(|(_, bytes)| &bytes[..]).collect();
        assert_eq!(bytes, [&b"abc"[..], b"", b"", b"de"]);
        assert_eq!(each[3].0, at(3));
    }
}
