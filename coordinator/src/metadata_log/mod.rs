//! How a command becomes a fact: proposed, stored, applied, and only then answered.
//!
//! Nothing is applied before it is on the disk, and nothing is answered before it is applied. A proposal
//! that gets no answer may still have become a fact; whoever must know looks at the metadata.

#[cfg(test)]
mod metadata_log_tests;

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot, watch};

use common::error::{ErrorCode, Problem};
use common::ids::MetadataVersion;

use crate::metadata::ClusterMetadata;
use crate::metadata::command::{Entry, Outcome, Rejection};

/// A handle on the log, to propose with.
#[derive(Clone, Debug)]
pub struct MetadataLog {
    proposals: mpsc::Sender<Proposal>,
    view: MetadataView,
}

/// The applied metadata, to be read from anywhere.
#[derive(Clone, Debug)]
pub struct MetadataView {
    metadata: Arc<RwLock<ClusterMetadata>>,
    version: watch::Receiver<MetadataVersion>,
}

/// A command that has become a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub index: MetadataVersion,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It was stored, and changed nothing.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// It was not stored and never will be.
    #[error("{0}")]
    NotAccepted(Problem),
    /// It may have become a fact, or still do so.
    #[error("the log failed while the command was on its way")]
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) entry: Entry,
    pub(crate) answer: oneshot::Sender<Result<Committed, ProposeError>>,
}

impl MetadataLog {
    pub(crate) fn new(proposals: mpsc::Sender<Proposal>, view: MetadataView) -> MetadataLog {
        MetadataLog { proposals, view }
    }

    pub fn view(&self) -> &MetadataView {
        &self.view
    }

    /// Returns once the command is a fact. Waits while too many are on their way.
    pub async fn propose(&self, entry: Entry) -> Result<Committed, ProposeError> {
        let (answer, answered) = oneshot::channel();
        if self
            .proposals
            .send(Proposal { entry, answer })
            .await
            .is_err()
        {
            return Err(ProposeError::NotAccepted(Problem::new(
                ErrorCode::ShuttingDown,
                "the coordinator is shutting down",
            )));
        }
        answered.await.unwrap_or(Err(ProposeError::Unknown))
    }
}

impl MetadataView {
    /// Looks at the facts. Short: commands wait meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&ClusterMetadata) -> T) -> T {
        // A panic while applying leaves the lock poisoned, and must not be looked past.
        look(&self.metadata.read().expect("no command panics"))
    }

    /// Tells of every new version, possibly of several at once.
    pub fn changes(&self) -> watch::Receiver<MetadataVersion> {
        self.version.clone()
    }

    pub fn version(&self) -> MetadataVersion {
        *self.version.borrow()
    }
}

impl From<ProposeError> for Problem {
    fn from(error: ProposeError) -> Problem {
        match error {
            ProposeError::Rejected(rejection) => rejection.into(),
            ProposeError::NotAccepted(problem) => problem,
            ProposeError::Unknown => Problem::new(ErrorCode::Unknown, error.to_string())
                .hint("Look whether it happened before you repeat it."),
        }
    }
}

/// The side that applies.
#[derive(Debug)]
pub(crate) struct Published {
    metadata: Arc<RwLock<ClusterMetadata>>,
    version: watch::Sender<MetadataVersion>,
}

impl Published {
    pub(crate) fn new(metadata: ClusterMetadata) -> (Published, MetadataView) {
        let (sender, version) = watch::channel(metadata.version());
        let metadata = Arc::new(RwLock::new(metadata));
        let view = MetadataView {
            metadata: Arc::clone(&metadata),
            version,
        };
        let published = Published {
            metadata,
            version: sender,
        };
        (published, view)
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&ClusterMetadata) -> T) -> T {
        look(&self.metadata.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the facts, and says so once they are changed.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut ClusterMetadata) -> T) -> T {
        let mut metadata = self.metadata.write().expect("no command panics");
        let result = change(&mut metadata);
        let version = metadata.version();
        drop(metadata);
        self.version.send_replace(version);
        result
    }
}
