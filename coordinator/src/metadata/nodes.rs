//! Registered workers: their ids, their epochs, and whether they may be given work.
//!
//! A worker's id belongs to its data directory for ever. Every registration is a new epoch, and whatever
//! carries an older one is of the past. A data directory is locked by the process that uses it, so a
//! registration with the storage of an active worker proves that its process is gone: the old epoch ends
//! in the same command, without waiting for its session to time out.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use common::ids::{MetadataVersion, NodeId, StorageId, WorkerEpoch};
use common::protocol::metadata::WorkerImage;
use common::time::Timestamp;

use super::ClusterMetadata;
use super::changes::RowKey;
use super::command::{Outcome, Registration, Rejection};
use crate::election::Standing;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerRow {
    pub id: NodeId,
    pub storage: StorageId,
    pub incarnation: Uuid,
    pub epoch: WorkerEpoch,
    pub status: WorkerStatus,
    /// Its user wants it empty: nothing new is given to it, and what it has goes elsewhere.
    #[serde(default)]
    pub draining: bool,
    /// Its sessions end too often: others are preferred to it.
    #[serde(default)]
    pub quarantined: bool,
    pub address: String,
    pub version: String,
    pub cores: u32,
    pub slots: u32,
    pub memory_bytes: u64,
    pub operators: Vec<String>,
    /// What it is in that fails as a whole.
    #[serde(default)]
    pub rack: Option<String>,
    pub registered_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerStatus {
    /// It has an epoch, and is recovering its logs.
    Registered,
    Active,
    /// Its epoch has ended.
    Fenced,
}

impl WorkerRow {
    pub fn image(&self) -> WorkerImage {
        WorkerImage {
            id: self.id,
            epoch: self.epoch,
            address: self.address.clone(),
            active: self.status == WorkerStatus::Active,
        }
    }
}

impl ClusterMetadata {
    pub fn worker(&self, worker: NodeId) -> Option<&Arc<WorkerRow>> {
        self.workers.get(&worker)
    }

    pub fn workers(&self) -> impl Iterator<Item = &Arc<WorkerRow>> {
        self.workers.values()
    }

    pub fn active_workers(&self) -> impl Iterator<Item = &Arc<WorkerRow>> {
        self.workers()
            .filter(|worker| worker.status == WorkerStatus::Active)
    }

    /// Active, and to be given work.
    pub fn open_workers(&self) -> impl Iterator<Item = &Arc<WorkerRow>> {
        self.active_workers().filter(|worker| !worker.draining)
    }

    pub fn is_active(&self, worker: NodeId) -> bool {
        self.workers
            .get(&worker)
            .is_some_and(|row| row.status == WorkerStatus::Active)
    }

    /// How well a worker leads, if it may: the others are taken where one of the first kind can be had.
    pub(super) fn standing(&self, worker: NodeId) -> Standing {
        match self.workers.get(&worker) {
            Some(row) if row.status != WorkerStatus::Active => Standing::Away,
            Some(row) if row.quarantined => Standing::Avoided,
            Some(_) => Standing::Active,
            None => Standing::Away,
        }
    }

    /// Who has to be gone before such a process is registered: the one before it with the same storage. The lock on a
    /// data directory says so, but a copy has a lock of its own, and two processes of one number would fence each
    /// other again and again. Two of them cannot listen at one address.
    pub fn predecessor(
        &self,
        storage: StorageId,
        incarnation: Uuid,
        address: &str,
    ) -> Option<&Arc<WorkerRow>> {
        let known = self.workers().find(|row| row.storage == storage);
        known.filter(|row| row.incarnation != incarnation && row.address != address)
    }

    pub(super) fn register_worker(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        request: &Registration,
    ) -> Result<Outcome, Rejection> {
        if let (Some(ours), Some(theirs)) = (self.cluster, request.cluster)
            && ours != theirs
        {
            return Err(Rejection::WrongCluster { ours, theirs });
        }
        // The reply to a first registration may have been lost before the id was kept.
        let known = request.worker.or_else(|| {
            let same = self.workers().find(|row| row.storage == request.storage);
            same.map(|row| row.id)
        });
        if let Some(worker) = known {
            let Some(row) = self.workers.get(&worker) else {
                return Err(Rejection::UnknownWorker { worker });
            };
            if row.storage != request.storage {
                return Err(Rejection::OtherStorage { worker });
            }
            if row.incarnation == request.incarnation && row.status != WorkerStatus::Fenced {
                let epoch = row.epoch;
                return Ok(Outcome::Registered { worker, epoch });
            }
        }
        let worker = known.unwrap_or(NodeId(self.next_worker));
        let before = self.workers.get(&worker);
        let draining = before.is_some_and(|row| row.draining);
        let quarantined = before.is_some_and(|row| row.quarantined);
        // A process that was only not heard of has everything in its memory still.
        let same_process = before.is_some_and(|row| row.incarnation == request.incarnation);
        let epoch = WorkerEpoch(index.0);
        self.next_worker = self.next_worker.max(worker.0 + 1);
        self.workers.insert(
            worker,
            Arc::new(WorkerRow {
                id: worker,
                storage: request.storage,
                incarnation: request.incarnation,
                epoch,
                status: WorkerStatus::Registered,
                draining,
                quarantined,
                address: request.address.clone(),
                version: request.version.clone(),
                cores: request.cores,
                slots: request.slots,
                memory_bytes: request.memory_bytes,
                operators: request.operators.clone(),
                rack: request.rack.clone(),
                registered_at: at,
            }),
        );
        self.changes.touch(index, RowKey::Worker(worker));
        self.elect_without(index, worker);
        if !request.clean && !same_process {
            self.suspect(index, worker);
        }
        Ok(Outcome::Registered { worker, epoch })
    }

    pub(super) fn drain_worker(
        &mut self,
        index: MetadataVersion,
        worker: NodeId,
        draining: bool,
    ) -> Result<Outcome, Rejection> {
        let left = self.open_workers().any(|row| row.id != worker);
        let row = self.workers.get_mut(&worker);
        let row = row.ok_or(Rejection::UnknownWorker { worker })?;
        if draining && !left {
            return Err(Rejection::LastWorker { worker });
        }
        Arc::make_mut(row).draining = draining;
        self.changes.touch(index, RowKey::Worker(worker));
        Ok(Outcome::Done)
    }

    pub(super) fn quarantine_worker(
        &mut self,
        index: MetadataVersion,
        worker: NodeId,
        quarantined: bool,
    ) -> Result<Outcome, Rejection> {
        let row = self.workers.get_mut(&worker);
        let row = row.ok_or(Rejection::UnknownWorker { worker })?;
        Arc::make_mut(row).quarantined = quarantined;
        self.changes.touch(index, RowKey::Worker(worker));
        Ok(Outcome::Done)
    }

    pub(super) fn fence_worker(
        &mut self,
        index: MetadataVersion,
        worker: NodeId,
        epoch: WorkerEpoch,
    ) -> Result<Outcome, Rejection> {
        let row = self.current_worker(worker, epoch)?;
        Arc::make_mut(row).status = WorkerStatus::Fenced;
        self.changes.touch(index, RowKey::Worker(worker));
        self.elect_without(index, worker);
        Ok(Outcome::Done)
    }

    pub(super) fn unfence_worker(
        &mut self,
        index: MetadataVersion,
        at: Timestamp,
        worker: NodeId,
        epoch: WorkerEpoch,
    ) -> Result<Outcome, Rejection> {
        let row = self.current_worker(worker, epoch)?;
        if row.status == WorkerStatus::Registered {
            Arc::make_mut(row).status = WorkerStatus::Active;
            self.changes.touch(index, RowKey::Worker(worker));
            self.elect_with(index, worker);
            self.recover_balanced(index, at);
        }
        Ok(Outcome::Done)
    }

    /// The worker, if this epoch of it has not ended.
    pub(super) fn current_worker(
        &mut self,
        worker: NodeId,
        epoch: WorkerEpoch,
    ) -> Result<&mut Arc<WorkerRow>, Rejection> {
        let row = self
            .workers
            .get_mut(&worker)
            .ok_or(Rejection::UnknownWorker { worker })?;
        if row.epoch != epoch || row.status == WorkerStatus::Fenced {
            return Err(Rejection::FencedWorkerEpoch { worker, epoch });
        }
        Ok(row)
    }
}
