//! Topics, their partitions, and who leads each.
//!
//! A partition is led by one of its in-sync replicas, or by nobody while none of them is active and has every
//! record (`suspects.rs`). Every
//! change of leader is a new leader epoch, which the old leader's appends do not carry; every change of
//! the record is a new partition epoch. The in-sync replicas never become fewer than the topic demands:
//! who is the last to have every record stays in the set while it is away.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use common::ids::{
    LeaderEpoch, MetadataVersion, NodeId, PartitionEpoch, PartitionId, TopicId, TopicName,
    TopicPartition, WorkerEpoch,
};
use common::protocol::metadata::{PartitionImage, TopicImage};
use common::protocol::replicate::{IsrChange, IsrVerdict};
use common::protocol::topic::TopicConfig;
use common::time::Timestamp;

use super::ClusterMetadata;
use super::changes::RowKey;
use super::command::{Outcome, Rejection};
use super::nodes::WorkerStatus;
use crate::election::{Standing, leader_of, may_leave};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopicRow {
    pub id: TopicId,
    pub name: TopicName,
    pub config: TopicConfig,
    pub partitions: Vec<PartitionImage>,
    /// Partitions that are on their way to other replicas, by their number, and to which. Until all of those are
    /// in sync, the old ones are replicas as well.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub moving: BTreeMap<u32, Vec<NodeId>>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl TopicRow {
    pub fn image(&self) -> TopicImage {
        TopicImage {
            id: self.id,
            name: self.name.clone(),
            config: self.config.clone(),
            partitions: self.partitions.clone(),
        }
    }

    pub fn replication_factor(&self) -> usize {
        self.partitions.first().map_or(0, |p| p.replicas.len())
    }
}

impl ClusterMetadata {
    pub fn topic(&self, id: TopicId) -> Option<&Arc<TopicRow>> {
        self.topics.get(&id)
    }

    pub fn topic_named(&self, name: &TopicName) -> Option<&Arc<TopicRow>> {
        self.topics.get(self.topic_names.get(name)?)
    }

    /// In the order of their names.
    pub fn topics_by_name(&self) -> impl Iterator<Item = &Arc<TopicRow>> {
        self.topic_names.values().map(|id| &self.topics[id])
    }

    pub(super) fn create_topic(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        id: TopicId,
        name: &TopicName,
        config: &TopicConfig,
        replicas: &[Vec<NodeId>],
    ) -> Result<Outcome, Rejection> {
        if self.topic_names.contains_key(name) || self.topics.contains_key(&id) {
            return Err(Rejection::TopicExists(name.clone()));
        }
        let partitions = self.new_partitions(0, replicas)?;
        self.topic_names.insert(name.clone(), id);
        self.topics.insert(
            id,
            Arc::new(TopicRow {
                id,
                name: name.clone(),
                config: config.clone(),
                partitions,
                moving: BTreeMap::new(),
                created_at: at,
                updated_at: at,
            }),
        );
        self.changes.touch(index, RowKey::Topic(id));
        Ok(Outcome::TopicCreated(id))
    }

    pub(super) fn alter_topic(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        id: TopicId,
        config: &TopicConfig,
        partitions: u32,
        added: &[Vec<NodeId>],
    ) -> Result<Outcome, Rejection> {
        let row = self.topics.get(&id).ok_or(Rejection::UnknownTopic(id))?;
        if row.partitions.len() != partitions as usize {
            return Err(Rejection::TopicChanged(row.name.clone()));
        }
        let added = self.new_partitions(row.partitions.len(), added)?;
        let row = self
            .topics
            .get_mut(&id)
            .ok_or(Rejection::UnknownTopic(id))?;
        let row = Arc::make_mut(row);
        row.config = config.clone();
        row.partitions.extend(added);
        row.updated_at = at;
        self.changes.touch(index, RowKey::Topic(id));
        // What waited for somebody may not have to any more.
        self.recover_balanced(index, at);
        Ok(Outcome::Done)
    }

    pub(super) fn delete_topic(
        &mut self,
        index: MetadataVersion,
        id: TopicId,
    ) -> Result<Outcome, Rejection> {
        let row = self.topics.remove(&id).ok_or(Rejection::UnknownTopic(id))?;
        self.topic_names.remove(&row.name);
        self.changes.remove(index, RowKey::Topic(id));
        Ok(Outcome::Done)
    }

    /// Partitions are to have other replicas. Those join first, and once all of them are in sync the others go.
    pub(super) fn reassign(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        id: TopicId,
        targets: &[Vec<NodeId>],
    ) -> Result<Outcome, Rejection> {
        let row = self.topics.get(&id).ok_or(Rejection::UnknownTopic(id))?;
        if row.partitions.len() != targets.len() {
            return Err(Rejection::TopicChanged(row.name.clone()));
        }
        for (partition, target) in targets.iter().enumerate() {
            let known = |node| self.workers.contains_key(node);
            let fewest = row.config.min_insync_replicas as usize;
            if target.len() < fewest.max(1) || !target.iter().all(known) {
                return Err(Rejection::NoReplica { partition });
            }
        }
        let mut next = TopicRow::clone(row);
        next.updated_at = at;
        for ((number, partition), target) in (0..).zip(&mut next.partitions).zip(targets) {
            if partition.replicas == *target && !next.moving.contains_key(&number) {
                continue;
            }
            self.redirect(&mut next.moving, number, partition, target);
        }
        self.changes.touch(index, RowKey::Topic(id));
        self.topics.insert(id, Arc::new(next));
        Ok(Outcome::Done)
    }

    /// The same for one partition, if its record is still the one that it was decided on.
    pub(super) fn move_replica(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        id: TopicId,
        number: PartitionId,
        epoch: PartitionEpoch,
        target: &[NodeId],
    ) -> Result<Outcome, Rejection> {
        let row = self.topics.get(&id).ok_or(Rejection::UnknownTopic(id))?;
        let place = number.0 as usize;
        let known = |node| self.workers.contains_key(node);
        let fewest = row.config.min_insync_replicas as usize;
        if target.len() < fewest.max(1) || !target.iter().all(known) {
            return Err(Rejection::NoReplica { partition: place });
        }
        let mut next = TopicRow::clone(row);
        next.updated_at = at;
        match next.partitions.get_mut(place) {
            Some(partition) if partition.partition_epoch == epoch => {
                self.redirect(&mut next.moving, number.0, partition, target);
            }
            Some(_) | None => return Err(Rejection::TopicChanged(row.name.clone())),
        }
        self.changes.touch(index, RowKey::Topic(id));
        self.topics.insert(id, Arc::new(next));
        Ok(Outcome::Done)
    }

    /// Those that join are replicas from now on, those that leave are until the others have everything.
    fn redirect(
        &self,
        moving: &mut BTreeMap<u32, Vec<NodeId>>,
        number: u32,
        partition: &mut PartitionImage,
        target: &[NodeId],
    ) {
        let leaving = partition.replicas.iter();
        let leaving = leaving.filter(|node| !target.contains(node));
        partition.replicas = target.iter().chain(leaving).copied().collect();
        partition.partition_epoch = partition.partition_epoch.next();
        moving.insert(number, target.to_vec());
        self.arrive(moving, number, partition);
    }

    /// A partition that is on its way to other replicas is there once all of them have everything. That is a new reign
    /// in any case: what the leader knew of replicas that are gone does not count if they come back.
    fn arrive(
        &self,
        moving: &mut BTreeMap<u32, Vec<NodeId>>,
        number: u32,
        partition: &mut PartitionImage,
    ) {
        let Some(target) = moving.get(&number) else {
            return;
        };
        let has_all = |node| partition.isr.contains(node) && !partition.suspect.contains(node);
        if !target.iter().all(has_all) {
            return;
        }
        partition.replicas.clone_from(target);
        partition.isr.clone_from(target);
        partition.suspect.clear();
        partition.log_ends.retain(|node, _| target.contains(node));
        partition.leader = leader_of(partition, |node| self.standing(node));
        partition.leader_epoch = partition.leader_epoch.next();
        partition.partition_epoch = partition.partition_epoch.next();
        moving.remove(&number);
    }

    /// Partitions that are led by another replica than the preferred one, which could.
    pub fn leaders_elsewhere(&self) -> impl Iterator<Item = &PartitionImage> {
        let partitions = self.topics.values().flat_map(|row| &row.partitions);
        partitions.filter(|partition| self.could_prefer(partition).is_some())
    }

    /// The preferred leader, if another one leads and it could.
    fn could_prefer(&self, partition: &PartitionImage) -> Option<NodeId> {
        let preferred = *partition.replicas.first()?;
        let could = partition.leader.is_some_and(|leader| leader != preferred)
            && partition.isr.contains(&preferred)
            && !partition.suspect.contains(&preferred)
            && self.standing(preferred) == Standing::Active;
        could.then_some(preferred)
    }

    pub(super) fn prefer_leaders(&mut self, index: MetadataVersion, most: u32) -> Outcome {
        let left = Cell::new(most);
        self.change_partitions(index, |metadata, _, partition| {
            let preferred = metadata.could_prefer(partition)?;
            left.set(left.get().checked_sub(1)?);
            Some(PartitionImage {
                leader: Some(preferred),
                ..partition.clone()
            })
        });
        Outcome::Done
    }

    /// Leaders on this worker would have others in sync.
    pub(super) fn alter_isr(
        &mut self,
        index: MetadataVersion,
        worker: NodeId,
        epoch: WorkerEpoch,
        changes: &[IsrChange],
    ) -> Result<Outcome, Rejection> {
        self.current_worker(worker, epoch)?;
        let verdicts = changes.iter().map(|change| {
            match self.check_isr(worker, change) {
                Ok(()) => {}
                Err((partition_epoch, reason)) => {
                    return IsrVerdict::Refused {
                        partition_epoch,
                        reason,
                    };
                }
            }
            let TopicPartition {
                topic,
                partition: number,
            } = change.partition;
            let mut row = TopicRow::clone(&self.topics[&topic]);
            let partition = &mut row.partitions[number.0 as usize];
            let replicas = partition.replicas.iter().copied();
            partition.isr = replicas
                .filter(|node| change.isr.contains_key(node))
                .collect();
            let isr = &partition.isr;
            partition
                .suspect
                .retain(|node| isr.contains(node) && !change.recovered.contains(node));
            partition.partition_epoch = partition.partition_epoch.next();
            self.arrive(&mut row.moving, number.0, partition);
            self.topics.insert(topic, Arc::new(row));
            self.changes.touch(index, RowKey::Topic(topic));
            IsrVerdict::Accepted
        });
        Ok(Outcome::IsrAltered(verdicts.collect()))
    }

    /// Why a leader's wish is not granted, with the epoch of the record there is.
    fn check_isr(
        &self,
        worker: NodeId,
        change: &IsrChange,
    ) -> Result<(), (Option<PartitionEpoch>, String)> {
        let TopicPartition { topic, partition } = change.partition;
        let row = self.topics.get(&topic);
        let number = partition.0 as usize;
        let Some((row, known)) = row.and_then(|row| Some((row, row.partitions.get(number)?)))
        else {
            return Err((None, format!("there is no partition {}", change.partition)));
        };
        let refuse = |reason: String| Err((Some(known.partition_epoch), reason));
        let reign = (known.leader, known.leader_epoch, known.partition_epoch);
        if reign != (Some(worker), change.leader_epoch, change.partition_epoch) {
            return refuse("the partition's record has changed".to_owned());
        }
        let vouched = |node: &NodeId| {
            let newly = !known.isr.contains(node) || change.recovered.contains(node);
            *node != worker && newly
        };
        for (node, life) in change.isr.iter().filter(|(node, _)| vouched(node)) {
            let lives = self
                .worker(*node)
                .is_some_and(|row| row.epoch == *life && row.status == WorkerStatus::Active);
            if !known.replicas.contains(node) || !lives {
                return refuse(format!("worker {node} is not active, or has no replica"));
            }
        }
        let fewest = (row.config.min_insync_replicas as usize).min(known.replicas.len());
        if !change.isr.contains_key(&worker) || change.isr.len() < fewest {
            return refuse(format!("of {fewest} in-sync replicas none may leave"));
        }
        let leaves = known.isr.iter().any(|node| !change.isr.contains_key(node));
        let trusted = change
            .isr
            .keys()
            .filter(|node| !known.suspect.contains(node) || change.recovered.contains(node));
        if leaves && trusted.count() < fewest {
            return refuse(format!(
                "fewer than {fewest} would stay that have everything"
            ));
        }
        Ok(())
    }

    /// A worker's epoch has ended: what it led is led by another in-sync replica, or by nobody.
    pub(super) fn elect_without(&mut self, index: MetadataVersion, lost: NodeId) {
        self.change_partitions(index, |metadata, row, partition| {
            partition.replicas.contains(&lost).then(|| {
                let mut next = partition.clone();
                if may_leave(partition, lost, row.config.min_insync_replicas as usize) {
                    next.isr.retain(|node| *node != lost);
                    next.suspect.retain(|node| *node != lost);
                }
                // It is to say so again, in the life that it has next.
                next.log_ends.remove(&lost);
                if next.leader == Some(lost) {
                    next.leader = leader_of(&next, |node| metadata.standing(node));
                }
                next
            })
        });
    }

    /// A worker has become active: it leads what nobody leads and it has every record of.
    pub(super) fn elect_with(&mut self, index: MetadataVersion, back: NodeId) {
        self.change_partitions(index, |metadata, _, partition| {
            (partition.leader.is_none() && partition.isr.contains(&back)).then(|| PartitionImage {
                leader: leader_of(partition, |node| metadata.standing(node)),
                ..partition.clone()
            })
        });
    }

    /// Makes of partitions what `decide` gives, and counts the epochs on.
    pub(super) fn change_partitions(
        &mut self,
        index: MetadataVersion,
        decide: impl Fn(&ClusterMetadata, &TopicRow, &PartitionImage) -> Option<PartitionImage>,
    ) {
        let mut changed: Vec<Arc<TopicRow>> = Vec::new();
        for row in self.topics.values() {
            let mut next: Option<TopicRow> = None;
            for (number, partition) in row.partitions.iter().enumerate() {
                let decided = decide(self, row, partition);
                let Some(mut decided) = decided.filter(|decided| decided != partition) else {
                    continue;
                };
                if decided.leader != partition.leader {
                    decided.leader_epoch = partition.leader_epoch.next();
                }
                if decided.leader.is_some() {
                    decided.log_ends.clear();
                }
                decided.partition_epoch = partition.partition_epoch.next();
                let row = next.get_or_insert_with(|| TopicRow::clone(row));
                row.partitions[number] = decided;
            }
            changed.extend(next.map(Arc::new));
        }
        for row in changed {
            self.changes.touch(index, RowKey::Topic(row.id));
            self.topics.insert(row.id, row);
        }
    }

    fn new_partitions(
        &self,
        first: usize,
        replicas: &[Vec<NodeId>],
    ) -> Result<Vec<PartitionImage>, Rejection> {
        replicas
            .iter()
            .enumerate()
            .map(|(number, replicas)| {
                let known = |node| self.workers.contains_key(node);
                if replicas.is_empty() || !replicas.iter().all(known) {
                    return Err(Rejection::NoReplica {
                        partition: first + number,
                    });
                }
                let mut partition = PartitionImage {
                    replicas: replicas.clone(),
                    isr: replicas.clone(),
                    leader_epoch: LeaderEpoch(0),
                    partition_epoch: PartitionEpoch(0),
                    ..PartitionImage::default()
                };
                partition.leader = leader_of(&partition, |node| self.standing(node));
                Ok(partition)
            })
            .collect()
    }
}
