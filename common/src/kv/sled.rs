//! `KvStore` on sled 0.34: the only file that names it.
//!
//! What sled needs to be held right, and is here, so that nobody else has to know:
//!
//! - Its `flush` writes to the page cache only (`sync_file_range`): an `fdatasync` of its file follows.
//! - Batches and transactions take a lock across all databases of the process, `flush_async` can
//!   deadlock: neither is used.
//! - Damaged files may make it panic, on the calling thread or on one of its own, or wait for ever: every
//!   call catches panics, opening has a watchdog, and a store that has failed once answers nothing more.
//! - Damage to its data file mostly makes it come back with fewer or older entries, and without a word:
//!   that is for the owner's `Digest` to notice.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use bytes::Bytes;

use super::{KvError, KvStore, MAX_VALUE_BYTES, Visit};
use crate::seglog::fs;
use crate::time::Span;

/// How long opening may take: far longer than it does for anything that fits into a worker.
const OPEN_TIMEOUT: Span = Span::from_secs(30);
/// The file that holds everything but a format note.
const DATA_FILE: &str = "db";

/// How a store is opened.
#[derive(Clone, Copy, Debug)]
pub struct SledOptions {
    /// Memory for pages; sled's own default is 1 GiB per store.
    pub cache_capacity: u64,
}

/// A store in a directory of its own.
pub struct SledStore {
    directory: PathBuf,
    /// Empty only while it is being dropped.
    db: Option<sled::Db>,
    data: fs::DataFile,
    /// Why it is not to be used any more.
    failed: AtomicBool,
}

impl SledStore {
    /// Opens the store in this directory, or makes one. Waits for a store of the same directory that is
    /// being closed.
    pub fn open(directory: &Path, options: SledOptions) -> Result<SledStore, KvError> {
        fs::create_directory(directory).map_err(|source| KvError::Io {
            directory: directory.to_owned(),
            source,
        })?;
        let (result, opened) = mpsc::sync_channel(1);
        let locked = Arc::new(AtomicBool::new(false));
        let job = {
            let (directory, locked) = (directory.to_owned(), Arc::clone(&locked));
            move || {
                let store = open_here(&directory, options, &locked);
                // If nobody waits any more the store is dropped here.
                result.send(store).ok();
            }
        };
        std::thread::Builder::new()
            .name("kv-open".to_owned())
            .spawn(job)
            .map_err(|source| KvError::Io {
                directory: directory.to_owned(),
                source,
            })?;
        match opened.recv_timeout(OPEN_TIMEOUT.as_duration()) {
            Ok(store) => store,
            Err(_) if !locked.load(Ordering::Acquire) => Err(KvError::InUse {
                directory: directory.to_owned(),
            }),
            Err(_) => Err(KvError::Damaged {
                directory: directory.to_owned(),
                reason: format!("opening it takes longer than {OPEN_TIMEOUT}"),
            }),
        }
    }

    /// Runs one call into sled. A panic or an error ends the use of the store.
    fn call<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, KvError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(self.damaged("it failed before"));
        }
        let db = self.db.as_ref().expect("it is being used, not dropped");
        let outcome = catch_unwind(AssertUnwindSafe(|| call(db)));
        let error = match outcome {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => classify(&self.directory, error),
            Err(panic) => self.damaged(&panic_text(&*panic)),
        };
        self.failed.store(true, Ordering::Release);
        Err(error)
    }

    fn damaged(&self, reason: &str) -> KvError {
        KvError::Damaged {
            directory: self.directory.clone(),
            reason: reason.to_owned(),
        }
    }
}

impl KvStore for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.call(|db| db.get(key))?.map(copied))
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, KvError> {
        assert!(
            value.len() <= MAX_VALUE_BYTES,
            "a value of {} bytes is too large for the store",
            value.len()
        );
        Ok(self.call(|db| db.insert(key, value))?.map(copied))
    }

    fn delete(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.call(|db| db.remove(key))?.map(copied))
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<(), KvError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(());
        }
        let mut entries = self.call(|db| {
            Ok(match end {
                Some(end) => db.range(start..end),
                None => db.range(start..),
            })
        })?;
        // The visitor runs outside of `call`: its panics are its own.
        while let Some((key, value)) = self.call(|_| entries.next().transpose())? {
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), KvError> {
        self.call(|db| db.flush().map(drop))?;
        self.data.sync().map_err(|source| {
            self.failed.store(true, Ordering::Release);
            KvError::SyncFailed {
                directory: self.directory.clone(),
                source,
            }
        })
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        let Some(db) = self.db.take() else { return };
        if !self.failed.load(Ordering::Acquire) {
            drop(db);
            return;
        }
        // Dropping waits for threads that a failure may have ended: nobody is to wait with it. If no
        // thread can be had, what sled holds is lost, which is all that is asked for.
        let db = std::mem::ManuallyDrop::new(db);
        std::thread::Builder::new()
            .name("kv-drop".to_owned())
            .spawn(move || {
                let db = std::mem::ManuallyDrop::into_inner(db);
                catch_unwind(AssertUnwindSafe(|| drop(db))).ok();
            })
            .ok();
    }
}

/// Opens on the thread that the watchdog watches.
fn open_here(
    directory: &Path,
    options: SledOptions,
    locked: &AtomicBool,
) -> Result<SledStore, KvError> {
    let io = |source| KvError::Io {
        directory: directory.to_owned(),
        source,
    };
    // sled does not wait for its lock, and gives it back some time after a store has been dropped.
    let data = fs::DataFile::open_when_unlocked(&directory.join(DATA_FILE)).map_err(io)?;
    locked.store(true, Ordering::Release);
    let open = || {
        sled::Config::new()
            .path(directory)
            .cache_capacity(options.cache_capacity)
            // Nothing is promised by it; sled's garbage collection runs only there.
            .flush_every_ms(Some(1_000))
            .open()
    };
    let db = match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(db)) => db,
        Ok(Err(error)) => return Err(classify(directory, error)),
        Err(panic) => {
            return Err(KvError::Damaged {
                directory: directory.to_owned(),
                reason: panic_text(&*panic),
            });
        }
    };
    Ok(SledStore {
        directory: directory.to_owned(),
        db: Some(db),
        data,
        failed: AtomicBool::new(false),
    })
}

fn copied(value: sled::IVec) -> Bytes {
    Bytes::copy_from_slice(&value)
}

fn classify(directory: &Path, error: sled::Error) -> KvError {
    let directory = directory.to_owned();
    match error {
        sled::Error::Io(source)
            if !matches!(
                source.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
            ) =>
        {
            KvError::Io { directory, source }
        }
        sled::Error::Io(_)
        | sled::Error::Corruption { .. }
        | sled::Error::CollectionNotFound(_)
        | sled::Error::Unsupported(_)
        | sled::Error::ReportableBug(_) => KvError::Damaged {
            directory,
            reason: error.to_string(),
        },
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("sled panicked: {}", text.unwrap_or_default())
}

impl fmt::Debug for SledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledStore")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}
