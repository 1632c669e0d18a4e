//! The disk of a process: what survives when it is killed, and what when the power goes.
//!
//! A kill takes what sled had in memory and nothing else. A loss of power also takes, of every file,
//! any part of what was not synced.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::kv::MemoryStore;
use common::random::Random;
use common::seglog::memory::MemoryStorage;
use common::time::Clock;

#[derive(Debug)]
pub struct Disk {
    clock: Arc<dyn Clock>,
    /// Base files of state are files: each is written beside its place and renamed into it.
    directory: PathBuf,
    logs: BTreeMap<String, MemoryStorage>,
    stores: BTreeMap<String, MemoryStore>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    Kill,
    PowerLoss,
}

impl Disk {
    pub fn new(clock: Arc<dyn Clock>, directory: &Path) -> Disk {
        Disk {
            clock,
            directory: directory.to_owned(),
            logs: BTreeMap::new(),
            stores: BTreeMap::new(),
        }
    }

    /// The log files of this name.
    pub fn log(&mut self, name: &str) -> MemoryStorage {
        let clock = &self.clock;
        let log = self
            .logs
            .entry(name.to_owned())
            .or_insert_with(|| MemoryStorage::new(clock.clone()));
        log.clone()
    }

    pub fn remove_log(&mut self, name: &str) {
        self.logs.remove(name);
    }

    pub fn store(&mut self, name: &str) -> MemoryStore {
        self.stores.entry(name.to_owned()).or_default().clone()
    }

    pub fn directory(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Another disk with the same log of this name and the same files, but for locks.
    pub fn copy(&self, name: &str, to: &Path) -> io::Result<Disk> {
        let mut copy = Disk::new(self.clock.clone(), to);
        if let Some(log) = self.logs.get(name) {
            copy.logs.insert(name.to_owned(), log.copy());
        }
        copy_files(&self.directory(name), &copy.directory(name))?;
        Ok(copy)
    }

    /// Another one takes its place, with nothing on it.
    pub fn lose(&mut self) {
        self.logs.clear();
        self.stores.clear();
        self.directory.set_extension("next");
    }

    pub fn crash(&mut self, crash: Crash, random: &mut Random) {
        for store in self.stores.values() {
            store.lose_unflushed(random);
        }
        if crash == Crash::PowerLoss {
            for log in self.logs.values() {
                log.lose_power(random);
            }
        }
    }
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    if !from.exists() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_files(&entry.path(), &place)?,
            false => drop(fs::copy(entry.path(), place)?),
        }
    }
    Ok(())
}
