//! The partitions of this node: opened, told and closed as the metadata says.
//!
//! A partition's log is in a directory of its own, `<topic id>-<partition>`. Topic ids are never given
//! again, so a directory of a topic that is gone can be removed at any time, also at the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use common::ids::{NodeId, PartitionId, TopicId, TopicPartition};
use common::protocol::metadata::{PartitionImage, TopicImage};
use common::seglog::fs::{FsStorage, create_directory, list_directories, remove_directory};
use common::seglog::storage::LogStorage;
use futures_util::future::join_all;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::actors::PartitionStarter;
use super::messages::PartitionHandle;
use crate::log::saved::SavedState;
use crate::metadata_image::MetadataImage;

/// How many writes and syncs of partitions may run at once: enough for the file system to take several
/// syncs with one write of its journal, few enough for the threads that answer reads.
pub const DISK_PARALLELISM: usize = 32;

/// Cheap to clone.
#[derive(Clone)]
pub struct Partitions {
    shared: Arc<Shared>,
}

struct Shared {
    directory: PathBuf,
    starter: PartitionStarter,
    open: RwLock<BTreeMap<TopicPartition, PartitionHandle>>,
    /// What of the metadata was acted upon. Held while acting, so that images are applied in turn.
    applied: Mutex<Applied>,
}

#[derive(Default)]
struct Applied {
    topics: BTreeMap<TopicId, Arc<TopicImage>>,
    orphans_removed: bool,
}

/// Where the logs of partitions are: for `PartitionSettings::storage`.
pub fn directories(
    directory: PathBuf,
) -> Arc<dyn Fn(TopicPartition) -> io::Result<Arc<dyn LogStorage>> + Send + Sync> {
    Arc::new(move |partition| {
        let storage = FsStorage::create(directory.join(directory_name(partition)))?;
        Ok(storage as Arc<dyn LogStorage>)
    })
}

impl Partitions {
    /// `directory` has the partitions' directories, and nothing else. May block.
    pub fn new(directory: PathBuf, starter: PartitionStarter) -> io::Result<Partitions> {
        create_directory(&directory)?;
        Ok(Partitions {
            shared: Arc::new(Shared {
                directory,
                starter,
                open: RwLock::default(),
                applied: Mutex::default(),
            }),
        })
    }

    /// The partition, if this node has it.
    pub fn get(&self, partition: TopicPartition) -> Option<PartitionHandle> {
        self.read().get(&partition).cloned()
    }

    /// Every partition this node has.
    pub fn all(&self) -> Vec<(TopicPartition, PartitionHandle)> {
        let open = self.read();
        open.iter()
            .map(|(id, handle)| (*id, handle.clone()))
            .collect()
    }

    /// Opens what this node has, closes what it has no longer, and tells the others what has changed.
    pub async fn apply(&self, me: NodeId, image: &MetadataImage) {
        // The first images may be from before this node belonged to the cluster.
        if !image.workers.contains_key(&me) {
            return;
        }
        let mut applied = self.shared.applied.lock().await;
        let gone: Vec<TopicPartition> = {
            let open = self.read();
            let mine = |id: &&TopicPartition| image.partition(**id).is_some_and(|p| has(p, me));
            open.keys().filter(|id| !mine(id)).copied().collect()
        };
        join_all(gone.into_iter().map(|id| self.remove(id))).await;
        for (id, topic) in &image.topics {
            let known = applied.topics.get(id);
            if known.is_some_and(|known| Arc::ptr_eq(known, topic)) {
                continue;
            }
            self.apply_topic(me, topic, known.map(Arc::as_ref)).await;
        }
        applied.topics = image.topics.clone();
        if !applied.orphans_removed {
            applied.orphans_removed = true;
            self.remove_orphans().await;
        }
    }

    /// Makes everything durable and ends every partition's actor.
    pub async fn close(&self) {
        let _applied = self.shared.applied.lock().await;
        let open = std::mem::take(
            &mut *self
                .shared
                .open
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
        join_all(open.values().map(PartitionHandle::close)).await;
    }

    async fn apply_topic(&self, me: NodeId, topic: &TopicImage, known: Option<&TopicImage>) {
        for (number, image) in (0..).zip(&topic.partitions) {
            if !has(image, me) {
                continue;
            }
            let id = TopicPartition {
                topic: topic.id,
                partition: PartitionId(number),
            };
            match self.get(id) {
                None => {
                    let handle =
                        self.shared
                            .starter
                            .start(id, me, image.clone(), topic.config.clone());
                    self.shared
                        .open
                        .write()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(id, handle);
                }
                Some(handle) => {
                    let index = usize::try_from(number).unwrap_or(usize::MAX);
                    let unchanged = known.is_some_and(|known| {
                        known.config == topic.config && known.partitions.get(index) == Some(image)
                    });
                    if !unchanged
                        && let Err(problem) =
                            handle.assign(image.clone(), topic.config.clone()).await
                    {
                        tracing::error!(partition = %id, %problem, "a partition is not told its role");
                    }
                }
            }
        }
    }

    async fn remove(&self, id: TopicPartition) {
        let handle = self
            .shared
            .open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
        if let Some(handle) = handle {
            handle.close().await;
        }
        self.remove_directories(vec![directory_name(id)]).await;
    }

    /// Removes what was left behind when this node went down before it heard of a deletion.
    async fn remove_orphans(&self) {
        let directory = self.shared.directory.clone();
        let found = tokio::task::spawn_blocking(move || list_directories(&directory)).await;
        let names = match found {
            Ok(Ok(names)) => names,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the directory of partitions cannot be read");
                return;
            }
            Err(error) => {
                tracing::error!(%error, "the directory of partitions cannot be read");
                return;
            }
        };
        let wanted: BTreeSet<String> = self.read().keys().copied().map(directory_name).collect();
        let orphans = names
            .into_iter()
            .filter(|name| parse_directory_name(name).is_some() && !wanted.contains(name))
            .collect();
        self.remove_directories(orphans).await;
    }

    async fn remove_directories(&self, names: Vec<String>) {
        if names.is_empty() {
            return;
        }
        let directory = self.shared.directory.clone();
        let store = self.shared.starter.settings().store.clone();
        let removal = move || {
            for name in names {
                if let (Some(store), Some(id)) = (&store, parse_directory_name(&name))
                    && let Err(error) = SavedState::new(store.clone(), id).forget()
                {
                    tracing::warn!(partition = %id, %error, "saved state is left behind");
                }
                remove_logged(&directory.join(name));
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(removal).await {
            tracing::error!(%error, "directories of deleted partitions are left behind");
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<TopicPartition, PartitionHandle>> {
        self.shared
            .open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether node `me` has a replica.
fn has(image: &PartitionImage, me: NodeId) -> bool {
    image.replicas.contains(&me)
}

fn remove_logged(directory: &Path) {
    match remove_directory(directory) {
        Ok(()) => tracing::info!(directory = %directory.display(), "removed a partition's log"),
        // It is tried again at the next start.
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "a partition's log is left behind");
        }
    }
}

fn directory_name(partition: TopicPartition) -> String {
    format!("{}-{}", partition.topic, partition.partition)
}

fn parse_directory_name(name: &str) -> Option<TopicPartition> {
    let (topic, number) = name.rsplit_once('-')?;
    let partition = TopicPartition {
        topic: TopicId(Uuid::parse_str(topic).ok()?),
        partition: PartitionId(number.parse().ok()?),
    };
    (directory_name(partition) == name).then_some(partition)
}

impl fmt::Debug for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partitions")
            .field("directory", &self.shared.directory)
            .field("open", &self.read().len())
            .finish_non_exhaustive()
    }
}
