//! `LogStorage` on a directory of the file system.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread};

use super::as_u64;
use super::storage::{LogFile, LogStorage};
use crate::time::{Span, Timestamp};

#[derive(Debug)]
pub struct FsStorage {
    directory: PathBuf,
    /// The note that was written last: there is one per log, and it is written at every sync.
    note: Mutex<Option<(String, File)>>,
}

#[derive(Debug)]
struct FsFile {
    file: File,
}

impl FsStorage {
    /// The directory, which is created, durably, if it does not exist.
    pub fn create(directory: impl Into<PathBuf>) -> io::Result<Arc<FsStorage>> {
        let directory = directory.into();
        create_directory(&directory)?;
        Ok(Arc::new(FsStorage {
            directory,
            note: Mutex::new(None),
        }))
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl LogStorage for FsStorage {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        // Appending lets one system call write several slices at the file's end, wherever a
        // truncation has put it.
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create_new(true)
            .open(self.directory.join(name))?;
        Ok(Arc::new(FsFile { file }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(self.directory.join(name))?;
        Ok(Arc::new(FsFile { file }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.directory.join(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        sync_directory(&self.directory)
    }

    fn write_note(&self, name: &str, note: &[u8], durable: bool) -> io::Result<()> {
        let mut open = self.note.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(&*open, Some((opened, _)) if opened == name) {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(self.directory.join(name))?;
            *open = Some((name.to_owned(), file));
        }
        let (_, file) = open.as_ref().expect("it was opened above");
        file.write_all_at(note, 0)?;
        if durable {
            file.sync_all()?;
        }
        Ok(())
    }

    fn read_note(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.directory.join(name)) {
            Ok(note) => Ok(Some(note)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl LogFile for FsFile {
    fn append(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.file).write_vectored(slices)
    }

    /// Reads into memory that was never written to: filling it with zeros first would cost as much again
    /// as the copy out of the page cache does.
    fn read_exact_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + as_u64(bytes.len());
            match pread(&self.file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The allocator may have given more room than was asked for.
        bytes.truncate(len);
        Ok(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn created(&self) -> io::Result<Timestamp> {
        let metadata = self.file.metadata()?;
        // Not every file system knows when a file was created; its last write is the next best.
        let created = metadata.created().or_else(|_| metadata.modified())?;
        Ok(timestamp(created))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The names of the directories in a directory, in no order.
pub fn list_directories(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Removes a directory of log files and everything in it. Readers that have a file open keep it.
pub fn remove_directory(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Creates the directory and those above it that are missing; each is durable in the one above.
pub fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let above = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_directory(above)?;
    match std::fs::create_dir(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists && directory.is_dir() => {}
        Err(error) => return Err(error),
    }
    sync_directory(above)
}

/// Makes the creation, renaming and removal of files in this directory durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes a file that is complete durable, in the place where it is.
pub fn make_durable(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// A file that someone else writes, to be made durable.
#[derive(Debug)]
pub struct DataFile {
    file: File,
}

impl DataFile {
    /// Opens the file, which is created if need be, once nobody holds its lock. Blocks until then.
    pub fn open_when_unlocked(path: &Path) -> io::Result<DataFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.lock()?;
        file.unlock()?;
        Ok(DataFile { file })
    }

    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// The right to a directory that only one at a time may use; given back when it is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Waits until nobody else has it, within this process or another. `None`: that took too long.
    pub fn acquire(directory: &Path, wait: Span) -> io::Result<Option<DirectoryLock>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("LOCK"))?;
        let (sender, acquired) = mpsc::sync_channel(1);
        // Waiting for a lock has no time limit of its own. A lock that comes too late is dropped.
        std::thread::Builder::new()
            .name("directory-lock".to_owned())
            .spawn(move || {
                let locked = file.lock().map(|()| DirectoryLock { _file: file });
                sender.send(locked).ok();
            })?;
        match acquired.recv_timeout(wait.as_duration()) {
            Ok(locked) => locked.map(Some),
            Err(_) => Ok(None),
        }
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let milliseconds = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    };
    Timestamp(milliseconds)
}
