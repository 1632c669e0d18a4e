//! What an append engine asks of a disk: one directory of files that only grow at their end.
//!
//! A write is in the page cache when `append` returns, and on the disk once `sync` has returned. A file
//! that was created or removed is durably so once `sync_directory` has returned. Nothing else is
//! promised, and the simulated disk takes away everything that is not.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::time::Timestamp;

/// A directory of log files. Every method may block.
pub trait LogStorage: Send + Sync + fmt::Debug {
    /// The names of the directory's files, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Fails if the file exists.
    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>>;
    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>>;
    /// What was opened before stays readable.
    fn remove(&self, name: &str) -> io::Result<()>;
    fn sync_directory(&self) -> io::Result<()>;
    /// Overwrites a small file in place. After a loss of power it holds any of the notes since the last
    /// one with `durable`, or is torn: the reader checks.
    fn write_note(&self, name: &str, note: &[u8], durable: bool) -> io::Result<()>;
    fn read_note(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
}

/// One open file. Reads may run on any thread while the one writer appends.
pub trait LogFile: Send + Sync + fmt::Debug {
    /// Writes at the end of the file, as much as goes at once; says how many bytes went.
    fn append(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize>;
    /// Exactly `len` bytes from `offset` on; `UnexpectedEof` if the file ends before that.
    fn read_exact_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    fn bytes(&self) -> io::Result<u64>;
    fn created(&self) -> io::Result<Timestamp>;
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes the bytes and the length durable.
    fn sync(&self) -> io::Result<()>;
}
