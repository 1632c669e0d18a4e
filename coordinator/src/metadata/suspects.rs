//! Replicas that may have lost what they had acknowledged, and how a partition goes on if all of them may have.
//!
//! Where records are acknowledged in memory (`durability=replicated`), a worker that ended without order may
//! come back without some of them. It is then no longer in sync. Where too few would stay, it stays as a
//! suspect: it never leads before its leader has said that it has fetched everything again. With only suspects left
//! the one with the longest log leads, once all of them have said where theirs end, or whom somebody names;
//! the record says since when committed records may be missing. A replica that was taken for lost, and for out of
//! sync, before the others were found to have lost their memory may be the one that has everything: if it is there
//! and has the longest log, it leads.

use std::sync::Arc;

use common::ids::{MetadataVersion, NodeId, PartitionId, TopicId};
use common::protocol::metadata::{PartitionImage, UncleanElection};
use common::protocol::replicate::LogEndReport;
use common::protocol::topic::{Durability, UncleanRecovery};
use common::time::Timestamp;

use super::ClusterMetadata;
use super::changes::RowKey;
use super::command::{Outcome, Rejection};
use super::topics::TopicRow;
use crate::election::{longest_of, longest_of_all};

impl ClusterMetadata {
    /// The worker's last life has ended without order, and it leads nothing.
    pub(super) fn suspect(&mut self, index: MetadataVersion, worker: NodeId) {
        self.change_partitions(index, |_, row, partition| {
            let in_memory = row.config.durability == Durability::Replicated;
            let lacks = in_memory
                && partition.isr.contains(&worker)
                && !partition.suspect.contains(&worker);
            lacks.then(|| {
                let mut next = partition.clone();
                next.suspect.push(worker);
                next
            })
        });
    }

    /// A worker says where logs end that nobody leads. What is of another time than the record is ignored: the
    /// worker will say it again, or need not.
    pub(super) fn report_log_ends(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        worker: NodeId,
        reports: &[LogEndReport],
    ) {
        if reports.is_empty() {
            return;
        }
        for report in reports {
            let (topic, number) = (report.partition.topic, report.partition.partition.0);
            let partitions = self.topics.get(&topic).map(|row| &row.partitions);
            let partition = partitions.and_then(|partitions| partitions.get(number as usize));
            let counts = partition.is_some_and(|partition| {
                partition.partition_epoch == report.partition_epoch
                    && partition.leader.is_none()
                    && partition.replicas.contains(&worker)
            });
            let Some(row) = self.topics.get_mut(&topic).filter(|_| counts) else {
                continue;
            };
            // The record's epoch stays: others are saying theirs for the same one.
            let partition = &mut Arc::make_mut(row).partitions[number as usize];
            partition.log_ends.insert(worker, report.log_end);
            self.changes.touch(index, RowKey::Topic(topic));
        }
        self.recover_balanced(index, at);
    }

    /// Where all that are in sync are suspect and have said where their logs end, the longest leads.
    pub(super) fn recover_balanced(&mut self, index: MetadataVersion, at: Timestamp) {
        self.change_partitions(index, |metadata, row, partition| {
            let balanced = row.config.unclean_recovery == UncleanRecovery::Balanced;
            let longest = longest_of_all(partition).filter(|_| balanced)?;
            metadata
                .is_active(longest)
                .then(|| led_uncleanly(partition, longest, at))
        });
    }

    /// Somebody has a partition go on, and takes into account that records may be lost.
    pub(super) fn recover_partition(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        id: TopicId,
        partition: PartitionId,
        leader: Option<NodeId>,
    ) -> Result<Outcome, Rejection> {
        let row = self.topics.get(&id).ok_or(Rejection::UnknownTopic(id))?;
        let number = partition.0 as usize;
        let known = row.partitions.get(number);
        let known = known.ok_or(Rejection::UnknownPartition { partition })?;
        if let Some(leader) = known.leader {
            return Err(Rejection::HasLeader { partition, leader });
        }
        let chosen = match leader {
            Some(worker) if known.replicas.contains(&worker) && self.is_active(worker) => worker,
            Some(worker) => return Err(Rejection::CannotLead { partition, worker }),
            None => longest_of(known, |node| self.is_active(node))
                .ok_or(Rejection::NoLogEnd { partition })?,
        };
        let mut next = TopicRow::clone(row);
        let record = &mut next.partitions[number];
        *record = led_uncleanly(record, chosen, at);
        record.leader_epoch = record.leader_epoch.next();
        record.partition_epoch = record.partition_epoch.next();
        self.topics.insert(id, Arc::new(next));
        self.changes.touch(index, RowKey::Topic(id));
        Ok(Outcome::Done)
    }
}

/// The partition with a leader that may lack committed records. What it has counts from now on: all others have to
/// follow it before they may lead.
fn led_uncleanly(partition: &PartitionImage, leader: NodeId, at: Timestamp) -> PartitionImage {
    let mut next = partition.clone();
    if !next.isr.contains(&leader) {
        let replicas = next.replicas.iter().copied();
        let isr = replicas.filter(|node| *node == leader || next.isr.contains(node));
        next.isr = isr.collect();
    }
    let others = next.isr.iter().copied().filter(|node| *node != leader);
    next.suspect = others.collect();
    next.log_ends.clear();
    next.leader = Some(leader);
    next.unclean = Some(UncleanElection {
        since: partition.leader_epoch.next(),
        at,
    });
    next
}
