//! How far each worker's image has come: who asks for what came after a version has that version.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use common::ids::{MetadataVersion, NodeId};
use common::time::Span;

use crate::metadata::nodes::WorkerStatus;
use crate::metadata_log::MetadataView;

#[derive(Clone, Debug)]
pub struct Seen {
    versions: Arc<watch::Sender<BTreeMap<NodeId, MetadataVersion>>>,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen {
            versions: Arc::new(watch::Sender::new(BTreeMap::new())),
        }
    }
}

impl Seen {
    /// A worker has shown that its image has reached this version. A worker that begins a new life
    /// begins anew.
    pub fn note(&self, worker: NodeId, version: MetadataVersion) {
        self.versions
            .send_if_modified(|versions| versions.insert(worker, version) != Some(version));
    }

    /// Waits until every active worker's image has reached the version, at most for `patience`: a
    /// worker that hangs must not hold up those who ask for something else.
    pub async fn everywhere(&self, view: &MetadataView, version: MetadataVersion, patience: Span) {
        let active: Vec<NodeId> = view.read(|metadata| {
            let workers = metadata.workers();
            let active = workers.filter(|worker| worker.status == WorkerStatus::Active);
            active.map(|worker| worker.id).collect()
        });
        let mut versions = self.versions.subscribe();
        let everywhere = versions.wait_for(|seen| {
            let has = |worker| seen.get(worker).is_some_and(|has| *has >= version);
            active.iter().all(has)
        });
        // Whether they all have it or time is up, the command is a fact.
        drop(tokio::time::timeout(patience.as_duration(), everywhere).await);
    }
}
