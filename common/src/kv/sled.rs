//! `KvStore` on sled 0.34: the only file that names it.
//!
//! What sled needs to be held right, and is here, so that nobody else has to know:
//!
//! - Its `flush` writes to the page cache only (`sync_file_range`): an `fdatasync` of its file follows.
//! - Batches and transactions take a lock across all databases of the process, `flush_async` can
//!   deadlock: neither is used.
//! - Damaged files may make it panic, on the calling thread or on one of its own, or wait for ever: every
//!   call catches panics, opening has a watchdog, and a store that has failed once answers nothing more.
//! - Its cache notices what it holds late: each of its 256 parts looks at itself once 64 of its pages have been
//!   touched, so up to 16,384 pages stay whatever the capacity says. Whenever pages of about the capacity have
//!   been touched, the store touches small pages of its own until every part has looked.
//! - Damage to its data file mostly makes it come back with fewer or older entries, and without a word:
//!   that is for the owner's `Digest` to notice.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use bytes::Bytes;

use super::{KvError, KvStore, MAX_VALUE_BYTES, Visit};
use crate::seglog::fs;
use crate::time::Span;

/// How long opening may take: far longer than it does for anything that fits into a worker.
const OPEN_TIMEOUT: Span = Span::from_secs(30);
/// The file that holds everything but a format note.
const DATA_FILE: &str = "db";

/// A tree of its own whose pages are touched to make the cache look at itself.
const SMALL_PAGES: &str = "small-pages";
/// Sled's leaves have at most 16 keys, so these are at least 256 pages, one for every part of the cache.
const SMALL_KEYS: u16 = 4_096;
/// Keys of which no two are on one page, and rounds over them until every part has been touched 64 times:
/// two pages of each part are touched per round, as pages are numbered in the order they are made.
const KEYS_PER_PAGE: usize = 8;
const ROUNDS: usize = 34;
/// What a page has besides the entry that is touched, in entries like it.
const NEIGHBOURS: usize = 12;

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
    small_pages: Option<sled::Tree>,
    capacity: u64,
    /// Bytes of pages that were touched since the cache looked at itself.
    touched: AtomicU64,
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

    /// Notes that pages of so many bytes were touched, and has the cache look at itself in time.
    fn touch(&self, bytes: usize) -> Result<(), KvError> {
        let bytes = u64::try_from(bytes).expect("a length fits into 64 bits");
        let before = self.touched.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes < self.capacity {
            return Ok(());
        }
        // Whoever else comes here meanwhile finds nothing to do.
        self.touched.store(0, Ordering::Relaxed);
        let Some(small_pages) = &self.small_pages else {
            return Ok(());
        };
        self.call(|_| {
            for _ in 0..ROUNDS {
                for key in (0..SMALL_KEYS).step_by(KEYS_PER_PAGE) {
                    small_pages.get(key.to_be_bytes())?;
                }
            }
            Ok(())
        })
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
        let value = self.call(|db| db.get(key))?.map(copied);
        self.touch(NEIGHBOURS * (key.len() + value.as_ref().map_or(0, Bytes::len)))?;
        Ok(value)
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, KvError> {
        assert!(
            value.len() <= MAX_VALUE_BYTES,
            "a value of {} bytes is too large for the store",
            value.len()
        );
        let before = self.call(|db| db.insert(key, value))?.map(copied);
        self.touch(NEIGHBOURS * (key.len() + value.len()))?;
        Ok(before)
    }

    fn delete(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let before = self.call(|db| db.remove(key))?.map(copied);
        self.touch(NEIGHBOURS * (key.len() + before.as_ref().map_or(0, Bytes::len)))?;
        Ok(before)
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
            self.touch(key.len() + value.len())?;
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
        let small_pages = self.small_pages.take();
        if !self.failed.load(Ordering::Acquire) {
            drop((small_pages, db));
            return;
        }
        // Dropping waits for threads that a failure may have ended: nobody is to wait with it. If no
        // thread can be had, what sled holds is lost, which is all that is asked for.
        let db = std::mem::ManuallyDrop::new((small_pages, db));
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
        let db = sled::Config::new()
            .path(directory)
            .cache_capacity(options.cache_capacity)
            // Nothing is promised by it; sled's garbage collection runs only there.
            .flush_every_ms(Some(1_000))
            .open()?;
        let small_pages = db.open_tree(SMALL_PAGES)?;
        let last = (SMALL_KEYS - 1).to_be_bytes();
        if small_pages.get(last)?.is_none() {
            for key in 0..SMALL_KEYS {
                small_pages.insert(key.to_be_bytes(), &[])?;
            }
        }
        Ok::<_, sled::Error>((db, small_pages))
    };
    let (db, small_pages) = match catch_unwind(AssertUnwindSafe(open)) {
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
        small_pages: Some(small_pages),
        capacity: options.cache_capacity,
        touched: AtomicU64::new(0),
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
