//! What the group has agreed on becomes facts: committed entries → `ClusterMetadata::apply`.
//!
//! The metadata is in memory; what makes it survive is the log and the snapshot, which is always on the
//! disk. The index of an entry is the version of the metadata after it, whatever kind of entry it is.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use tokio::sync::watch;

use common::data_dir::DataDir;
use common::ids::MetadataVersion;

use super::OpenError;
use super::log_store::{LogStore, any};
use super::snapshot_file::{SnapshotFile, SnapshotFileError, Stored};
use super::types::{
    Applied, Entry, LogId, Member, SnapshotMeta, StorageError, StorageIOError, StoredMembership,
    TypeConfig,
};
use crate::metadata::ClusterMetadata;
use crate::metadata_log::{MetadataView, Published};

#[derive(Debug)]
pub(crate) struct StateMachine {
    published: Published,
    applied: Option<LogId>,
    membership: StoredMembership,
    log: LogStore,
    kept: Snapshots,
}

/// The snapshot file, and how large it was last.
#[derive(Clone, Debug)]
struct Snapshots {
    file: SnapshotFile,
    bytes: Arc<watch::Sender<u64>>,
}

/// A moment of the metadata, to be written.
#[derive(Debug)]
pub(crate) struct Moment {
    metadata: ClusterMetadata,
    applied: Option<LogId>,
    membership: StoredMembership,
    kept: Snapshots,
}

impl StateMachine {
    /// The metadata as the snapshot says it. Blocks.
    pub(crate) fn open(
        data_dir: Arc<DataDir>,
        log: LogStore,
    ) -> Result<(StateMachine, MetadataView), OpenError> {
        let file = SnapshotFile::new(data_dir);
        let stored = file.read()?;
        let mut metadata = ClusterMetadata::default();
        let mut meta = SnapshotMeta::default();
        let mut bytes = 0;
        if let Some((stored, size)) = stored {
            metadata = stored.decoded().map_err(SnapshotFileError::from)?;
            meta = stored.meta;
            bytes = size;
        }
        log.fits(meta.last_log_id)?;
        let (published, view) = Published::new(metadata);
        let machine = StateMachine {
            published,
            applied: meta.last_log_id,
            membership: meta.last_membership,
            log,
            kept: Snapshots {
                file,
                bytes: Arc::new(watch::Sender::new(bytes)),
            },
        };
        Ok((machine, view))
    }

    /// How large the last snapshot is.
    pub(crate) fn snapshot_bytes(&self) -> watch::Receiver<u64> {
        self.kept.bytes.subscribe()
    }
}

impl Snapshots {
    async fn replace(&self, stored: Stored) -> Result<Stored, StorageError> {
        let file = self.file.clone();
        let signature = stored.meta.signature();
        let bytes = stored.metadata.len() as u64;
        let replacing = move || file.replace(&stored).map(|()| stored);
        let replaced = tokio::task::spawn_blocking(replacing).await;
        let stored = match replaced {
            Ok(Ok(stored)) => stored,
            Ok(Err(error)) => {
                return Err(StorageIOError::write_snapshot(Some(signature), any(&error)).into());
            }
            Err(error) => {
                return Err(StorageIOError::write_snapshot(Some(signature), any(&error)).into());
            }
        };
        self.bytes.send_replace(bytes);
        Ok(stored)
    }
}

/// For Raft, which sends it on.
fn snapshot_of(stored: Stored) -> Snapshot<TypeConfig> {
    Snapshot {
        meta: stored.meta,
        snapshot: Box::new(Cursor::new(stored.metadata.into())),
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Moment {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let stored = Stored {
            meta: SnapshotMeta {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
                snapshot_id: self.metadata.version().to_string(),
            },
            metadata: self.metadata.to_snapshot().into(),
        };
        self.kept.replace(stored).await.map(snapshot_of)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Moment;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (applied, membership) = (&mut self.applied, &mut self.membership);
        Ok(self.published.change(|metadata| {
            let results = entries.into_iter().map(|entry| {
                let index = MetadataVersion(entry.log_id.index);
                *applied = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => {
                        metadata.apply_nothing(index);
                        Applied::default()
                    }
                    EntryPayload::Normal(command) => {
                        let outcome = Some(metadata.apply(index, &command));
                        Applied { outcome }
                    }
                    EntryPayload::Membership(members) => {
                        let addresses = members
                            .nodes()
                            .map(|(id, Member { address })| (*id, address.clone()));
                        metadata.apply_members(index, addresses.collect());
                        *membership = StoredMembership::new(Some(entry.log_id), members);
                        Applied::default()
                    }
                }
            });
            results.collect()
        }))
    }

    /// The builder runs beside what is applied from now on, so it has a copy. Rows are shared, which makes it
    /// one of pointers.
    async fn get_snapshot_builder(&mut self) -> Moment {
        Moment {
            metadata: self.published.read(ClusterMetadata::clone),
            applied: self.applied,
            membership: self.membership.clone(),
            kept: self.kept.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let stored = Stored {
            meta: meta.clone(),
            metadata: snapshot.into_inner().into(),
        };
        let metadata = stored
            .decoded()
            .map_err(|error| StorageIOError::read_snapshot(Some(meta.signature()), any(&error)))?;
        // First the word that it comes: without it, a snapshot beyond the log's end looks like lost entries.
        if let Some(up_to) = meta.last_log_id {
            let told = self.log.install(up_to).await;
            told.map_err(|error| {
                StorageIOError::write_snapshot(Some(meta.signature()), any(&error))
            })?;
        }
        self.kept.replace(stored).await?;
        self.published.change(|current| *current = metadata);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let file = self.kept.file.clone();
        let read = tokio::task::spawn_blocking(move || file.read()).await;
        let failed = |error: AnyError| StorageIOError::read_snapshot(None, error);
        match read {
            Ok(Ok(stored)) => Ok(stored.map(|(stored, _)| snapshot_of(stored))),
            Ok(Err(error)) => Err(failed(any(&error)).into()),
            Err(error) => Err(failed(any(&error)).into()),
        }
    }
}
