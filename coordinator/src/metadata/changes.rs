//! Which row changed last at which version, so that a delta costs what it tells and not what there is.
//!
//! Removed rows are remembered up to a bound; whoever asks from before the oldest one remembered is told
//! everything.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use common::ids::{JobId, MetadataVersion, NodeId, TopicId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RowKey {
    Topic(TopicId),
    Worker(NodeId),
    Job(JobId),
    /// The tasks of a job. Apart from its job, because they change a thousand times less often.
    Deployment(JobId),
    /// What a job still needs of topics, likewise.
    Holds(JobId),
}

/// How many removed rows are remembered.
const REMOVED_ROWS: usize = 1_024;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    changed: BTreeMap<RowKey, MetadataVersion>,
    removed: BTreeMap<RowKey, MetadataVersion>,
    /// A delta from before this cannot be told.
    complete_since: MetadataVersion,
    /// The other way round: derived.
    #[serde(skip)]
    by_version: BTreeSet<(MetadataVersion, RowKey)>,
}

impl Changes {
    pub(super) fn touch(&mut self, version: MetadataVersion, row: RowKey) {
        if let Some(earlier) = self.changed.insert(row, version) {
            self.by_version.remove(&(earlier, row));
        }
        if let Some(earlier) = self.removed.remove(&row) {
            self.by_version.remove(&(earlier, row));
        }
        self.by_version.insert((version, row));
    }

    pub(super) fn remove(&mut self, version: MetadataVersion, row: RowKey) {
        if let Some(earlier) = self.changed.remove(&row) {
            self.by_version.remove(&(earlier, row));
        }
        self.removed.insert(row, version);
        self.by_version.insert((version, row));
        while self.removed.len() > REMOVED_ROWS {
            let oldest = self.removed.iter().min_by_key(|(row, at)| (**at, **row));
            let (row, at) = oldest
                .map(|(row, at)| (*row, *at))
                .expect("it is not empty");
            self.removed.remove(&row);
            self.by_version.remove(&(at, row));
            self.complete_since = at;
        }
    }

    /// Rows that changed or went after `since`, in the order of their last change; `None`: unknown.
    pub(super) fn since(&self, since: MetadataVersion) -> Option<impl Iterator<Item = RowKey>> {
        if since < self.complete_since {
            return None;
        }
        let after = (
            std::ops::Bound::Excluded((since, RowKey::LAST)),
            std::ops::Bound::Unbounded,
        );
        Some(self.by_version.range(after).map(|(_, row)| *row))
    }

    /// Makes what is derived again, after decoding.
    pub(super) fn index(&mut self) {
        self.by_version = self
            .changed
            .iter()
            .chain(&self.removed)
            .map(|(row, version)| (*version, *row))
            .collect();
    }
}

impl RowKey {
    /// After every other row.
    const LAST: RowKey = RowKey::Holds(JobId(u32::MAX));
}
