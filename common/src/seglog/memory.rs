//! `LogStorage` on a simulated disk that does what disks do: it forgets what was not synced, tears
//! writes, runs full, fails an fsync, and flips bits. The same seed gives the same disasters.
//!
//! A file has two images: what programs see (the page cache) and what the platter holds. A killed
//! process loses neither. A loss of power keeps of every write since the last sync any subset of its
//! 512-byte sectors, and any subset of the files created and removed since the directory was synced.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::storage::{LogFile, LogStorage};
use crate::random::{Random, below, coin};
use crate::time::{Clock, Timestamp};

/// What a disk writes at once or not at all.
const SECTOR_BYTES: usize = 512;
const SECTOR: u64 = 512;

/// One directory of a simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct MemoryStorage {
    disk: Arc<Mutex<Disk>>,
    clock: Arc<dyn Clock>,
}

#[derive(Clone)]
struct Disk {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// The directory as programs see it and as the platter holds it.
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    unsynced_names: Vec<NameChange>,
    /// Grows with every loss of power: files opened before are gone.
    life: u64,
    quota: Option<u64>,
    failing_syncs: u32,
    bytes_read: u64,
}

#[derive(Clone)]
struct Inode {
    created: Timestamp,
    cache: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone)]
enum NameChange {
    Created(String, u64),
    Removed(String),
}

#[derive(Clone)]
enum Change {
    /// The sectors a write touched, whole, as they were after it, and the file's length then.
    Write {
        first_sector: u64,
        sectors: Vec<[u8; SECTOR_BYTES]>,
        len: u64,
    },
    Truncate {
        len: u64,
    },
}

struct MemoryFile {
    storage: MemoryStorage,
    inode: u64,
    life: u64,
}

impl MemoryStorage {
    /// An empty disk; files are created at the clock's time.
    pub fn new(clock: Arc<dyn Clock>) -> MemoryStorage {
        MemoryStorage {
            disk: Arc::new(Mutex::new(Disk {
                inodes: BTreeMap::new(),
                next_inode: 0,
                names: BTreeMap::new(),
                durable_names: BTreeMap::new(),
                unsynced_names: Vec::new(),
                life: 0,
                quota: None,
                failing_syncs: 0,
                bytes_read: 0,
            })),
            clock,
        }
    }

    pub fn shared(&self) -> Arc<dyn LogStorage> {
        Arc::new(self.clone())
    }

    /// Another disk with the same on it, synced or not.
    pub fn copy(&self) -> MemoryStorage {
        let disk = self.disk().clone();
        MemoryStorage {
            disk: Arc::new(Mutex::new(disk)),
            clock: self.clock.clone(),
        }
    }

    /// The power fails: of what was not synced, a random part survives.
    pub fn lose_power(&self, random: &mut Random) {
        let mut disk = self.disk();
        disk.life += 1;
        disk.failing_syncs = 0;
        for change in std::mem::take(&mut disk.unsynced_names) {
            if coin(random) {
                disk.apply_durably(change);
            }
        }
        disk.names = disk.durable_names.clone();
        for inode in disk.inodes.values_mut() {
            for change in std::mem::take(&mut inode.unsynced) {
                inode.apply_torn(change, random);
            }
            inode.cache = inode.durable.clone();
        }
        disk.forget_unnamed();
    }

    /// The next so many calls of `sync` fail, and what they should have made durable never will be.
    pub fn fail_syncs(&self, times: u32) {
        self.disk().failing_syncs = times;
    }

    /// Bytes the files of this disk may have together; `None`: no limit.
    pub fn set_quota(&self, quota: Option<u64>) {
        self.disk().quota = quota;
    }

    pub fn used(&self) -> u64 {
        self.disk().used()
    }

    /// How much was read of the files of this disk so far.
    pub fn bytes_read(&self) -> u64 {
        self.disk().bytes_read
    }

    /// Inverts one bit, everywhere the file's bytes are.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) {
        let mut disk = self.disk();
        let inode = disk.inode_of(name).expect("the file exists");
        let at = index(offset);
        inode.cache[at] ^= 1 << bit;
        if let Some(byte) = inode.durable.get_mut(at) {
            *byte ^= 1 << bit;
        }
    }

    /// What the file holds, as programs see it.
    pub fn contents(&self, name: &str) -> Vec<u8> {
        let mut disk = self.disk();
        disk.inode_of(name).expect("the file exists").cache.clone()
    }

    /// Replaces what the file holds, durably: how a test lays out a damaged disk.
    pub fn set_contents(&self, name: &str, contents: &[u8]) {
        let mut disk = self.disk();
        let inode = disk.inode_of(name).expect("the file exists");
        inode.cache = contents.to_vec();
        inode.durable = contents.to_vec();
        inode.unsynced.clear();
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: u64, life: u64) -> Arc<dyn LogFile> {
        Arc::new(MemoryFile {
            storage: self.clone(),
            inode,
            life,
        })
    }
}

impl LogStorage for MemoryStorage {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.disk().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let created = self.clock.wall();
        let mut disk = self.disk();
        if disk.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = disk.create(name, created);
        Ok(self.file(inode, disk.life))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let disk = self.disk();
        let inode = *disk.names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(self.file(inode, disk.life))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk();
        disk.names.remove(name).ok_or(ErrorKind::NotFound)?;
        disk.unsynced_names
            .push(NameChange::Removed(name.to_owned()));
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut disk = self.disk();
        disk.sync_may_fail()?;
        for change in std::mem::take(&mut disk.unsynced_names) {
            disk.apply_durably(change);
        }
        Ok(())
    }

    fn write_note(&self, name: &str, note: &[u8], durable: bool) -> io::Result<()> {
        let created = self.clock.wall();
        let mut disk = self.disk();
        if !disk.names.contains_key(name) {
            disk.create(name, created);
        }
        let inode = disk.inode_of(name).expect("it exists now");
        inode.write(0, note);
        if durable {
            disk.sync_may_fail()?;
            disk.inode_of(name).expect("it exists").sync();
        }
        Ok(())
    }

    fn read_note(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut disk = self.disk();
        Ok(disk.inode_of(name).map(|inode| inode.cache.clone()))
    }
}

impl LogFile for MemoryFile {
    fn append(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.with(|disk, inode| {
            let room = disk
                .quota
                .map_or(u64::MAX, |quota| quota.saturating_sub(disk.used()));
            let mut bytes: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
            if room == 0 && !bytes.is_empty() {
                return Err(ErrorKind::StorageFull.into());
            }
            bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
            let inode = disk.inodes.get_mut(&inode).expect("an open file exists");
            inode.write(length(&inode.cache), &bytes);
            Ok(bytes.len())
        })
    }

    fn read_exact_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.with(|disk, inode| {
            let cache = &disk.inodes[&inode].cache;
            let start = index(offset);
            let stored = cache
                .get(start..start.saturating_add(len))
                .ok_or(ErrorKind::UnexpectedEof)?
                .to_vec();
            disk.bytes_read += length(&stored);
            Ok(stored)
        })
    }

    fn bytes(&self) -> io::Result<u64> {
        self.with(|disk, inode| Ok(length(&disk.inodes[&inode].cache)))
    }

    fn created(&self) -> io::Result<Timestamp> {
        self.with(|disk, inode| Ok(disk.inodes[&inode].created))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.with(|disk, inode| {
            let inode = disk.inodes.get_mut(&inode).expect("an open file exists");
            inode.cache.resize(index(len), 0);
            inode.unsynced.push(Change::Truncate { len });
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|disk, inode| {
            let failed = disk.sync_may_fail();
            let inode = disk.inodes.get_mut(&inode).expect("an open file exists");
            match failed {
                Ok(()) => {
                    inode.sync();
                    Ok(())
                }
                Err(error) => {
                    // As Linux does it: the pages are clean now, and will never be written.
                    inode.unsynced.clear();
                    Err(error)
                }
            }
        })
    }
}

impl MemoryFile {
    fn with<T>(&self, act: impl FnOnce(&mut Disk, u64) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.storage.disk();
        if disk.life != self.life {
            return Err(io::Error::other("this file was open when the power failed"));
        }
        act(&mut disk, self.inode)
    }
}

impl Disk {
    fn create(&mut self, name: &str, created: Timestamp) -> u64 {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(
            inode,
            Inode {
                created,
                cache: Vec::new(),
                durable: Vec::new(),
                unsynced: Vec::new(),
            },
        );
        self.names.insert(name.to_owned(), inode);
        self.unsynced_names
            .push(NameChange::Created(name.to_owned(), inode));
        inode
    }

    fn inode_of(&mut self, name: &str) -> Option<&mut Inode> {
        let inode = self.names.get(name)?;
        self.inodes.get_mut(inode)
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .map(|inode| length(&self.inodes[inode].cache))
            .sum()
    }

    fn sync_may_fail(&mut self) -> io::Result<()> {
        if self.failing_syncs == 0 {
            return Ok(());
        }
        self.failing_syncs -= 1;
        Err(io::Error::other("simulated input/output error"))
    }

    fn apply_durably(&mut self, change: NameChange) {
        match change {
            NameChange::Created(name, inode) => {
                self.durable_names.insert(name, inode);
            }
            NameChange::Removed(name) => {
                self.durable_names.remove(&name);
            }
        }
    }

    fn forget_unnamed(&mut self) {
        let Disk { inodes, names, .. } = self;
        inodes.retain(|inode, _| names.values().any(|named| named == inode));
    }
}

impl Inode {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        put(&mut self.cache, offset, bytes);
        let first_sector = offset / SECTOR;
        let touched = first_sector..(offset + length(bytes)).div_ceil(SECTOR);
        self.unsynced.push(Change::Write {
            first_sector,
            sectors: touched.map(|sector| self.sector(sector)).collect(),
            len: length(&self.cache),
        });
    }

    /// A sector of the cache; zeros beyond the file's end.
    fn sector(&self, sector: u64) -> [u8; SECTOR_BYTES] {
        let mut image = [0; SECTOR_BYTES];
        let stored = &self.cache[index(sector * SECTOR)..];
        let stored = &stored[..stored.len().min(SECTOR_BYTES)];
        image[..stored.len()].copy_from_slice(stored);
        image
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.cache);
        self.unsynced.clear();
    }

    /// Lets a random part of an unsynced change reach the platter. Sectors that do not, but lie before
    /// ones that do, hold zeros: the file's length was written, its bytes were not.
    fn apply_torn(&mut self, change: Change, random: &mut Random) {
        match change {
            Change::Truncate { len } => {
                if coin(random) && len < length(&self.durable) {
                    self.durable.truncate(index(len));
                }
            }
            Change::Write {
                first_sector,
                sectors,
                len,
            } => {
                // Often all or nothing: a subset of sectors would almost never keep a large write whole.
                let fate = below(random, 4);
                for (sector, image) in (first_sector..).zip(&sectors) {
                    let kept = match fate {
                        0 => false,
                        1 => true,
                        _ => coin(random),
                    };
                    if kept {
                        let start = sector * SECTOR;
                        let grown = length(&self.durable).max(len.min(start + SECTOR));
                        put(&mut self.durable, start, image);
                        self.durable.truncate(index(grown));
                    }
                }
                if fate == 3 && length(&self.durable) < len {
                    self.durable.resize(index(len), 0);
                }
            }
        }
    }
}

fn put(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = index(offset);
    let end = start + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[start..end].copy_from_slice(bytes);
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a simulated file fits into memory")
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("a length fits into 64 bits")
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.disk();
        f.debug_struct("MemoryStorage")
            .field("files", &disk.names.keys().collect::<Vec<_>>())
            .field("used", &disk.used())
            .finish()
    }
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFile")
            .field("inode", &self.inode)
            .finish()
    }
}
