//! `KvStore` in memory, which loses on demand what sled may lose: any suffix of the writes since the last
//! flush, or everything.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{KvError, KvStore, MAX_VALUE_BYTES, Visit};
use crate::random::{Random, below};

/// Clones are the same store.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<Bytes, Bytes>,
    flushed: BTreeMap<Bytes, Bytes>,
    /// Writes since the last flush, `None` for a deletion.
    unflushed: Vec<(Bytes, Option<Bytes>)>,
    damaged: bool,
    /// After so many more writes, every write fails: the process "dies" there.
    writes_left: Option<u64>,
}

impl MemoryStore {
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// A crash: of the writes since the last flush, a random number, the newest, is gone.
    pub fn lose_unflushed(&self, random: &mut Random) {
        let mut inner = self.inner();
        let count = inner.unflushed.len();
        let kept = usize::try_from(below(random, count as u64 + 1)).expect("it is a length");
        let mut entries = std::mem::take(&mut inner.flushed);
        for (key, value) in inner.unflushed.drain(..).take(kept) {
            apply(&mut entries, key, value);
        }
        inner.flushed = entries.clone();
        inner.entries = entries;
        inner.writes_left = None;
    }

    /// Everything is gone, damage too.
    pub fn wipe(&self) {
        *self.inner() = Inner::default();
    }

    /// Changes or removes an entry behind everyone's back.
    pub fn forge(&self, key: &[u8], value: Option<&[u8]>) {
        let mut inner = self.inner();
        let key = Bytes::copy_from_slice(key);
        let value = value.map(Bytes::copy_from_slice);
        apply(&mut inner.flushed, key.clone(), value.clone());
        apply(&mut inner.entries, key, value);
    }

    pub fn entries(&self) -> Vec<(Bytes, Bytes)> {
        let inner = self.inner();
        let entries = inner.entries.iter();
        entries
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// From now on everything fails with `Damaged`.
    pub fn damage(&self) {
        self.inner().damaged = true;
    }

    /// After this many further writes and flushes, each fails, until the next crash.
    pub fn fail_after(&self, writes: u64) {
        self.inner().writes_left = Some(writes);
    }

    /// How many writes and flushes are left of those; `None`: no limit.
    pub fn writes_left(&self) -> Option<u64> {
        self.inner().writes_left
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn readable(&self) -> Result<MutexGuard<'_, Inner>, KvError> {
        let inner = self.inner();
        if inner.damaged {
            return Err(KvError::Damaged {
                directory: PathBuf::from("memory"),
                reason: "a test said so".to_owned(),
            });
        }
        Ok(inner)
    }

    fn writable(&self) -> Result<MutexGuard<'_, Inner>, KvError> {
        let mut inner = self.readable()?;
        match &mut inner.writes_left {
            Some(0) => Err(KvError::Io {
                directory: PathBuf::from("memory"),
                source: std::io::Error::other("a test said so"),
            }),
            Some(left) => {
                *left -= 1;
                Ok(inner)
            }
            None => Ok(inner),
        }
    }

    fn write(&self, key: &[u8], value: Option<&[u8]>) -> Result<Option<Bytes>, KvError> {
        let mut inner = self.writable()?;
        let key = Bytes::copy_from_slice(key);
        let value = value.map(Bytes::copy_from_slice);
        inner.unflushed.push((key.clone(), value.clone()));
        Ok(apply(&mut inner.entries, key, value))
    }
}

impl KvStore for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.readable()?.entries.get(key).cloned())
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, KvError> {
        assert!(value.len() <= MAX_VALUE_BYTES, "a value is too large");
        self.write(key, Some(value))
    }

    fn delete(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.write(key, None)
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<(), KvError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let inner = self.readable()?;
        let bounds = (
            Bound::Included(start),
            end.map_or(Bound::Unbounded, Bound::Excluded),
        );
        // The visitor may write.
        let entries: Vec<(Bytes, Bytes)> = inner
            .entries
            .range::<[u8], _>(bounds)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        drop(inner);
        for (key, value) in entries {
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), KvError> {
        let mut inner = self.writable()?;
        inner.flushed = inner.entries.clone();
        inner.unflushed.clear();
        Ok(())
    }
}

fn apply(entries: &mut BTreeMap<Bytes, Bytes>, key: Bytes, value: Option<Bytes>) -> Option<Bytes> {
    match value {
        Some(value) => entries.insert(key, value),
        None => entries.remove(&key),
    }
}
