//! The facts of the cluster, and the only way they change.
//!
//! `apply` is a function of the metadata and the command: no clock, no randomness, no IO. The same commands
//! give the same metadata on every machine, and a snapshot with the commands after it gives what all of
//! them give. A command that no longer fits the facts is rejected and changes nothing but the version.

pub mod command;
pub mod topics;
pub mod suspects;
pub mod nodes;
pub mod jobs;
pub mod checkpoints;
pub mod division;
pub mod savepoints;
pub mod changes;
pub mod snapshot;
#[cfg(test)]
mod test_history;
#[cfg(test)]
mod metadata_tests;
#[cfg(test)]
mod nodes_tests;
#[cfg(test)]
mod topics_tests;
#[cfg(test)]
mod jobs_tests;
#[cfg(test)]
mod savepoints_tests;
#[cfg(test)]
mod division_tests;
#[cfg(test)]
mod suspects_tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use common::ids::{
    ClusterId, ControlEpoch, CoordinatorId, JobId, JobName, MetadataVersion, NodeId, ProducerId,
    TopicId, TopicName,
};
use common::protocol::metadata::MetadataDelta;
use common::time::Timestamp;

use changes::{Changes, RowKey};
use command::{Command, Entry, Outcome, Rejection};
use jobs::JobRow;
use nodes::WorkerRow;
use topics::TopicRow;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterMetadata {
    cluster: Option<ClusterId>,
    version: MetadataVersion,
    control_epoch: ControlEpoch,
    next_worker: u32,
    next_job: u32,
    next_producer: i64,
    next_coordinator: u64,
    coordinators: BTreeMap<CoordinatorId, String>,
    workers: BTreeMap<NodeId, Arc<WorkerRow>>,
    topics: BTreeMap<TopicId, Arc<TopicRow>>,
    jobs: BTreeMap<JobId, Arc<JobRow>>,
    changes: Changes,
    /// By name: derived.
    #[serde(skip)]
    topic_names: BTreeMap<TopicName, TopicId>,
    #[serde(skip)]
    job_names: BTreeMap<JobName, JobId>,
}

impl Default for ClusterMetadata {
    fn default() -> ClusterMetadata {
        ClusterMetadata {
            cluster: None,
            version: MetadataVersion(0),
            control_epoch: ControlEpoch(0),
            next_worker: 1,
            next_job: 1,
            next_producer: 1,
            next_coordinator: 1,
            coordinators: BTreeMap::new(),
            workers: BTreeMap::new(),
            topics: BTreeMap::new(),
            jobs: BTreeMap::new(),
            changes: Changes::default(),
            topic_names: BTreeMap::new(),
            job_names: BTreeMap::new(),
        }
    }
}

impl ClusterMetadata {
    /// The cluster's id, once it has been named.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// The index of the last command applied.
    pub fn version(&self) -> MetadataVersion {
        self.version
    }

    pub fn control_epoch(&self) -> ControlEpoch {
        self.control_epoch
    }

    /// Applies the command at `index`, the one after the last. Total: every command is either carried
    /// out or rejected.
    pub fn apply(&mut self, index: MetadataVersion, entry: &Entry) -> Result<Outcome, Rejection> {
        assert_eq!(
            index.0,
            self.version.0 + 1,
            "commands are applied one after another"
        );
        self.version = index;
        let announces = matches!(entry.command, Command::LeaderAnnounce { .. });
        if !announces && entry.control_epoch != self.control_epoch {
            return Err(Rejection::StaleControlEpoch {
                proposed: entry.control_epoch,
                current: self.control_epoch,
            });
        }
        match &entry.command {
            Command::LeaderAnnounce { cluster } => self.leader_announce(index, *cluster),
            Command::Batch(commands) => self.batch(index, entry.at, commands),
            command => self.apply_one(index, entry.at, command),
        }
    }

    /// An entry of the log that says nothing about the cluster. Only the version moves, so that it stays the
    /// index of the last entry. (The first entry of all has index 0, which nothing comes before.)
    pub fn apply_nothing(&mut self, index: MetadataVersion) {
        assert!(index >= self.version, "entries are applied in their order");
        self.version = index;
    }

    /// The coordinators are these from here on, each with its address. A number that was given is never given
    /// again, whether its coordinator is still there or not.
    pub fn apply_members(
        &mut self,
        index: MetadataVersion,
        coordinators: BTreeMap<CoordinatorId, String>,
    ) {
        self.apply_nothing(index);
        let after = coordinators
            .last_key_value()
            .map_or(0, |(last, _)| last.0 + 1);
        self.next_coordinator = self.next_coordinator.max(after);
        self.coordinators = coordinators;
    }

    /// The coordinators, each with its address.
    pub fn coordinators(&self) -> &BTreeMap<CoordinatorId, String> {
        &self.coordinators
    }

    /// The number that the next coordinator to join is given.
    pub fn next_coordinator(&self) -> CoordinatorId {
        CoordinatorId(self.next_coordinator)
    }

    /// Every row that changed after `since`.
    pub fn delta_since(&self, since: MetadataVersion) -> MetadataDelta {
        let mut delta = MetadataDelta {
            control_epoch: self.control_epoch,
            since,
            version: self.version,
            ..MetadataDelta::default()
        };
        let changed = (since <= self.version)
            .then(|| self.changes.since(since))
            .flatten();
        match changed {
            Some(rows) => rows.for_each(|row| self.tell(row, &mut delta)),
            None => self.tell_everything(&mut delta),
        }
        delta
    }

    fn tell(&self, row: RowKey, delta: &mut MetadataDelta) {
        match row {
            RowKey::Topic(id) => match self.topics.get(&id) {
                Some(row) => delta.topics.push(row.image()),
                None => delta.removed_topics.push(id),
            },
            RowKey::Worker(id) => match self.workers.get(&id) {
                Some(row) => delta.workers.push(row.image()),
                None => delta.removed_workers.push(id),
            },
            RowKey::Job(id) => match self.jobs.get(&id) {
                Some(row) => delta.jobs.push(row.image()),
                None => delta.removed_jobs.push(id),
            },
            RowKey::Holds(id) => {
                let row = self.jobs.get(&id);
                delta.holds.extend(row.and_then(|row| row.holds.clone()));
            }
            RowKey::Deployment(id) => {
                let row = self.jobs.get(&id);
                delta
                    .deployments
                    .extend(row.and_then(|row| row.deployment.clone()));
            }
        }
    }

    fn tell_everything(&self, delta: &mut MetadataDelta) {
        delta.full = true;
        delta.topics = self.topics.values().map(|row| row.image()).collect();
        delta.workers = self.workers.values().map(|row| row.image()).collect();
        delta.jobs = self.jobs.values().map(|row| row.image()).collect();
        let holds = self.jobs.values().filter_map(|row| row.holds.clone());
        delta.holds = holds.collect();
        delta.deployments = self
            .jobs
            .values()
            .filter_map(|row| row.deployment.clone())
            .collect();
    }

    fn leader_announce(
        &mut self,
        index: MetadataVersion,
        cluster: ClusterId,
    ) -> Result<Outcome, Rejection> {
        let ours = *self.cluster.get_or_insert(cluster);
        if ours != cluster {
            return Err(Rejection::WrongCluster {
                ours,
                theirs: cluster,
            });
        }
        self.control_epoch = ControlEpoch(index.0);
        Ok(Outcome::Announced(self.control_epoch))
    }

    fn batch(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        commands: &[Command],
    ) -> Result<Outcome, Rejection> {
        // Rows are shared, so this copies pointers.
        let mut changed = self.clone();
        let outcomes: Result<Vec<Outcome>, Rejection> = commands
            .iter()
            .map(|command| changed.apply_one(index, at, command))
            .collect();
        let outcomes = outcomes?;
        *self = changed;
        Ok(Outcome::Batch(outcomes))
    }

    fn apply_one(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        command: &Command,
    ) -> Result<Outcome, Rejection> {
        match command {
            Command::LeaderAnnounce { .. } | Command::Batch(_) => Err(Rejection::NestedBatch),
            Command::RegisterWorker(request) => self.register_worker(index, at, request),
            Command::FenceWorker { worker, epoch } => self.fence_worker(index, *worker, *epoch),
            Command::UnfenceWorker { worker, epoch } => {
                self.unfence_worker(index, at, *worker, *epoch)
            }
            Command::DrainWorker { worker, draining } => {
                self.drain_worker(index, *worker, *draining)
            }
            Command::QuarantineWorker {
                worker,
                quarantined,
            } => self.quarantine_worker(index, *worker, *quarantined),
            Command::CreateTopic {
                id,
                name,
                config,
                replicas,
            } => self.create_topic(index, at, *id, name, config, replicas),
            Command::AlterTopic {
                id,
                config,
                partitions,
                added,
            } => self.alter_topic(index, at, *id, config, *partitions, added),
            Command::DeleteTopic { id } => self.delete_topic(index, *id),
            Command::Reassign { id, targets } => self.reassign(index, at, *id, targets),
            Command::MoveReplica {
                id,
                partition,
                partition_epoch,
                target,
            } => self.move_replica(index, at, *id, *partition, *partition_epoch, target),
            Command::PreferLeaders { most } => Ok(self.prefer_leaders(index, *most)),
            Command::AlterIsr {
                worker,
                epoch,
                changes,
                log_ends,
            } => {
                let altered = self.alter_isr(index, *worker, *epoch, changes)?;
                self.report_log_ends(index, at, *worker, log_ends);
                Ok(altered)
            }
            Command::RecoverPartition {
                id,
                partition,
                leader,
            } => self.recover_partition(index, at, *id, *partition, *leader),
            Command::CreateJob {
                spec,
                job_graph,
                graph,
                checkpoint_interval,
                restored,
            } => self.create_job(
                index,
                at,
                spec,
                job_graph,
                graph,
                *checkpoint_interval,
                restored.as_deref(),
            ),
            Command::SetDesired { job, desired } => self.set_desired(index, at, *job, *desired),
            Command::AssignStandbys {
                job,
                generation,
                standbys,
            } => self.assign_standbys(index, at, *job, *generation, standbys),
            Command::StartGeneration {
                job,
                generation,
                restore,
                dividing,
                tasks,
                standbys,
                state,
                reason,
                failure,
            } => self.start_generation(
                index,
                at,
                *job,
                *generation,
                *restore,
                *dividing,
                tasks,
                standbys,
                (*state, reason),
                failure.as_ref(),
            ),
            Command::Divide {
                job,
                first_stage,
                division,
            } => self.divide(index, at, *job, *first_stage, division.as_ref()),
            Command::PrepareDivision {
                job,
                generation,
                next,
                standbys,
            } => self.prepare_division(index, at, *job, *generation, next, standbys),
            Command::CutOver { job, generation } => self.cut_over(index, at, *job, *generation),
            Command::GenerationRuns { job, generation } => {
                self.generation_runs(index, at, *job, *generation)
            }
            Command::EndGeneration {
                job,
                generation,
                state,
                reason,
                failure,
            } => self.end_generation(
                index,
                at,
                *job,
                *generation,
                *state,
                reason,
                failure.as_ref(),
            ),
            Command::ReserveEpochs { job, generation } => {
                self.reserve_epochs(index, at, *job, *generation)
            }
            Command::EpochCompleted(completed) => self.epoch_completed(index, at, completed),
            Command::BeginSavepoint {
                job,
                id,
                location,
                archive,
            } => self.begin_savepoint(index, at, *job, *id, location, *archive),
            Command::ForgetSavepoint { job, id } => self.forget_savepoint(index, at, *job, *id),
            Command::EndSavepoint { job, id, outcome } => {
                self.end_savepoint(index, at, *job, *id, outcome)
            }
            Command::RestoreJob {
                job,
                generation,
                restored,
            } => self.restore_job(index, at, *job, *generation, restored),
            Command::DeleteJob { job } => self.delete_job(index, at, *job),
            Command::AllocProducerIds { count } => Ok(self.alloc_producer_ids(*count)),
        }
    }

    fn alloc_producer_ids(&mut self, count: u32) -> Outcome {
        let first = ProducerId(self.next_producer);
        self.next_producer += i64::from(count);
        Outcome::ProducerIds { first }
    }

    /// Makes what is derived again, after decoding.
    fn index(&mut self) {
        self.changes.index();
        self.topic_names = self
            .topics
            .values()
            .map(|row| (row.name.clone(), row.id))
            .collect();
        self.job_names = self
            .jobs
            .values()
            .filter(|row| !row.deleted)
            .map(|row| (row.name.clone(), row.id))
            .collect();
    }
}
