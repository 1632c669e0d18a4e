//! `KvStore`: small keys and values in order, on disk, for what can be rebuilt.
//!
//! A store is a view of something else (a base file and its deltas, the segments of a log): losing it
//! costs time, never data. That is why there is no batch and no transaction: who writes several keys
//! writes them in an order in which any prefix is harmless, flushes, writes a marker, and flushes again.
//! The marker includes a [`Digest`], because a damaged store may come back with less and say nothing.

mod digest;
mod sled;
mod memory;
#[cfg(test)]
mod conformance_tests;
#[cfg(test)]
mod damage_tests;

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;

use bytes::Bytes;

pub use digest::Digest;
pub use memory::MemoryStore;
pub use sled::{SledOptions, SledStore};

/// Larger values are stored by sled outside of its log, without any sync: cut them.
pub const MAX_VALUE_BYTES: usize = 4 << 10;

/// Keys in order, each with a value. Every method may block.
pub trait KvStore: Send + Sync + fmt::Debug {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError>;

    /// Answers what was there before. A value has at most [`MAX_VALUE_BYTES`].
    fn put(&self, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, KvError>;

    /// Answers what was there before.
    fn delete(&self, key: &[u8]) -> Result<Option<Bytes>, KvError>;

    /// Visits the keys from `start` to before `end` (`None`: to the last) in order, until told to stop.
    /// What is written meanwhile may be seen or not.
    fn scan(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<(), KvError>;

    /// Returns when everything written before is on the disk.
    fn flush(&self) -> Result<(), KvError>;
}

/// Sees a key and its value, and says whether it wants more.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Visits the keys that begin with `prefix`.
pub fn scan_prefix(
    store: &dyn KvStore,
    prefix: &[u8],
    visit: &mut Visit<'_>,
) -> Result<(), KvError> {
    store.scan(prefix, after_prefix(prefix).as_deref(), visit)
}

/// The smallest key above all that begin with `prefix`; `None` if there is none.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after)
}

#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// Move the directory aside and build the store anew. It answers nothing any more.
    #[error("the store in \"{}\" is damaged: {reason}", directory.display())]
    Damaged { directory: PathBuf, reason: String },
    /// Someone else has it open.
    #[error("the store in \"{}\" is in use", directory.display())]
    InUse { directory: PathBuf },
    /// Fatal, as for a log: what was written may be lost, and the kernel will not say so again.
    #[error("the store in \"{}\" could not be made durable", directory.display())]
    SyncFailed {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Nothing is known to be wrong with what is stored, but the store must be opened again.
    #[error("could not use the store in \"{}\"", directory.display())]
    Io {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_after_a_prefix_is_above_everything_that_begins_with_it() {
        for (prefix, after) in [
            (&b"a"[..], Some(&b"b"[..])),
            (b"a\xff", Some(b"b")),
            (b"a\xff\x00\xff", Some(b"a\xff\x01")),
            (b"\xff\xff", None),
            (b"", None),
        ] {
            assert_eq!(after_prefix(prefix).as_deref(), after);
        }
    }
}
