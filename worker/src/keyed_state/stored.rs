//! What a table asks the store for: keys, or a range of keys, that it does not have in memory (pure).

use std::collections::BTreeMap;

/// A store does not keep larger values; they stay in memory.
pub const LARGEST_STORED_VALUE: usize = 1 << 20;

/// A question to the store about one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Namespace and key of entries.
    Keys(Vec<(i64, Vec<u8>)>),
    Range(AskRange),
}

/// The entries of some namespaces, in the order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskRange {
    pub namespaces: Vec<i64>,
    /// Only keys after this one; `None`: from the first.
    pub after: Option<Vec<u8>>,
    /// About so many bytes.
    pub bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// In the order they were asked for.
    Keys(Vec<(i64, Vec<u8>, Option<Vec<u8>>)>),
    Range(StoredRange),
}

/// A stretch of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredRange {
    /// Namespace and key → value.
    pub entries: BTreeMap<(i64, Vec<u8>), Vec<u8>>,
    pub until: Until,
}

/// How far a stretch of keys goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// There are none after it.
    #[default]
    End,
    /// Up to this key, and including it.
    Key(Vec<u8>),
}

impl Until {
    pub fn includes(&self, key: &[u8]) -> bool {
        match self {
            Until::End => true,
            Until::Key(last) => key <= last.as_slice(),
        }
    }
}
