//! Base files: all tables of one task at a completed checkpoint.
//!
//! ```text
//! magic | sections of table after table, by key group | footer (MessagePack) | footer length u32
//!       | CRC-32C of the footer u32 | magic
//! ```
//!
//! A base file is written beside its place, made durable, and renamed: there is either all of it or none.
//! Together with the deltas that follow it, it is the truth about a task's state; a newer one takes its
//! place before it is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::ids::CheckpointId;
use common::key_group::KeyGroup;
use common::seglog::fs::{create_directory, sync_directory};
use serde::{Deserialize, Serialize};

use super::overlay::{Change, Overlay};
use super::section::{Section, SectionWriter, TableId, TableSections};

const MAGIC: &[u8; 8] = b"MSBASE01";
/// Footer length, its checksum, magic.
const TAIL: u64 = 16;
/// Written to the file at once.
const BUFFER: usize = 1 << 20;
/// Made durable at once: whoever else waits for the disk would wait for all that is written and not durable yet.
pub(super) const SYNC_BYTES: u64 = 8 << 20;
/// Between two questions whether it is still wanted: some tens of milliseconds.
const ASK_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum BaseFileError {
    #[error("could not {operation} \"{}\"", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("\"{}\" is damaged", path.display())]
    Damaged { path: PathBuf },
    /// Fatal, as for a log.
    #[error("\"{}\" could not be made durable", path.display())]
    SyncFailed {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A base file, open for reading.
#[derive(Debug)]
pub struct BaseFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    footer: Footer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Footer {
    checkpoint: CheckpointId,
    key_groups: u16,
    tables: Vec<TableSections>,
}

/// What changed since a base, which is read in stretches of key groups.
pub struct Since<'a, E> {
    /// The tables that changed: their namespaces that were emptied, and the stretches, in order, which are
    /// all key groups together.
    pub tables: BTreeMap<TableId, (BTreeSet<i64>, Vec<RangeInclusive<u16>>)>,
    pub read: &'a ReadStretch<'a, E>,
}

/// Reads what changed in a table in a stretch of key groups.
pub type ReadStretch<'a, E> = dyn Fn(&TableId, &RangeInclusive<u16>) -> Result<Overlay, E> + 'a;

/// A part of a task's state: of some tables the entries in some key groups.
pub struct Portion<'a, E> {
    pub base: Option<&'a BaseFile>,
    pub since: &'a Since<'a, E>,
    pub groups: RangeInclusive<u16>,
    pub tables: &'a dyn Fn(&TableId) -> bool,
}

impl<E> fmt::Debug for Portion<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Portion")
            .field("base", &self.base)
            .field("since", &self.since)
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}

impl<'a, E> Portion<'a, E> {
    pub fn whole(base: Option<&'a BaseFile>, since: &'a Since<'a, E>) -> Portion<'a, E> {
        Portion {
            base,
            since,
            groups: 0..=u16::MAX,
            tables: &|_| true,
        }
    }
}

impl<E> fmt::Debug for Since<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Since")
            .field("tables", &self.tables)
            .finish_non_exhaustive()
    }
}

/// The base files of a task's directory, the newest first. What a crash left half written is removed.
pub fn list(directory: &Path) -> Result<Vec<(CheckpointId, PathBuf)>, BaseFileError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", directory)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed("list", directory))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if let Some(checkpoint) = parse_name(name) {
            found.push((checkpoint, path));
        } else if name.ends_with(".tmp") {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// The subdirectories of a job's directory.
pub fn subdirectories(directory: &Path) -> Result<Vec<String>, BaseFileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        let is_directory = entry
            .file_type()
            .map_err(failed("look at", directory))?
            .is_dir();
        if let (true, Ok(name)) = (is_directory, entry.file_name().into_string()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes a base file that a newer one has replaced.
pub fn remove(path: &Path) -> Result<(), BaseFileError> {
    fs::remove_file(path).map_err(failed("remove", path))
}

/// Removes everything kept of a job.
pub fn remove_job(directory: &Path) -> Result<(), BaseFileError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(failed("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

/// Moves a directory beside itself, replacing what was moved there before.
pub fn set_aside(directory: &Path) -> Result<PathBuf, BaseFileError> {
    let mut aside = directory.as_os_str().to_owned();
    aside.push(".quarantine");
    let aside = PathBuf::from(aside);
    remove_job(&aside)?;
    match fs::rename(directory, &aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(failed("rename", directory)(error))
        }
        _ => Ok(aside),
    }
}

/// Writes the base file that `base` and the changes since make; the newest state of every key. `go_on`: asked now and
/// then whether it is still wanted.
pub fn write<E: From<BaseFileError>>(
    directory: &Path,
    checkpoint: CheckpointId,
    key_groups: u16,
    base: Option<&BaseFile>,
    since: &Since<'_, E>,
    go_on: &dyn Fn() -> Result<(), E>,
) -> Result<BaseFile, E> {
    let whole = [Portion::whole(base, since)];
    write_portions(directory, checkpoint, key_groups, &whole, go_on)
}

/// Writes the base file of a checkpoint from portions, those of each table in the order of their key groups; no key
/// group of a table is in two of them.
pub fn write_portions<E: From<BaseFileError>>(
    directory: &Path,
    checkpoint: CheckpointId,
    key_groups: u16,
    portions: &[Portion<'_, E>],
    go_on: &dyn Fn() -> Result<(), E>,
) -> Result<BaseFile, E> {
    create_directory(directory).map_err(failed("create", directory))?;
    let path = path_of(directory, checkpoint);
    let beside = path.with_extension("tmp");
    let written = write_beside(&beside, checkpoint, key_groups, portions, go_on);
    if let Err(error) = written {
        // Room for others, if that is what is missing; what stays is removed at the next start.
        fs::remove_file(&beside).ok();
        return Err(error);
    }
    fs::rename(&beside, &path).map_err(failed("rename", &beside))?;
    sync_directory(directory).map_err(not_synced(directory))?;
    Ok(BaseFile::open(&path)?)
}

pub(super) fn path_of(directory: &Path, checkpoint: CheckpointId) -> PathBuf {
    directory.join(format!("base-{:020}.bin", checkpoint.0))
}

fn write_beside<E: From<BaseFileError>>(
    beside: &Path,
    checkpoint: CheckpointId,
    key_groups: u16,
    portions: &[Portion<'_, E>],
    go_on: &dyn Fn() -> Result<(), E>,
) -> Result<(), E> {
    let failed = |source| failed("write", beside)(source);
    let not_synced = |source| not_synced(beside)(source);
    let file = File::create(beside).map_err(failed)?;
    let mut out = BufWriter::with_capacity(BUFFER, file);
    out.write_all(MAGIC).map_err(failed)?;
    let mut tables: Vec<TableSections> = Vec::new();
    let (mut writer, mut buffer) = (SectionWriter::default(), Vec::new());
    let (mut unsynced, mut unasked) = (0, 0);
    merge_portions(portions, key_groups, &mut |table, change| {
        if tables.last().is_none_or(|last| last.table != *table) {
            end_table(&mut tables, &mut writer);
            tables.push(TableSections {
                table: table.clone(),
                cleared: Vec::new(),
                sections: Vec::new(),
            });
        }
        buffer.clear();
        writer.push(&mut buffer, change);
        out.write_all(&buffer).map_err(failed)?;
        unasked += buffer.len();
        if unasked >= ASK_BYTES {
            unasked = 0;
            go_on()?;
        }
        unsynced += buffer.len() as u64;
        if unsynced >= SYNC_BYTES {
            unsynced = 0;
            out.get_ref().sync_data().map_err(not_synced)?;
        }
        Ok(())
    })?;
    end_table(&mut tables, &mut writer);
    let footer = Footer {
        checkpoint,
        key_groups,
        tables,
    };
    let footer = rmp_serde::to_vec_named(&footer).expect("a footer can always be written");
    let length = u32::try_from(footer.len()).expect("a footer has less than 4 GiB");
    out.write_all(&footer).map_err(failed)?;
    out.write_all(&length.to_le_bytes()).map_err(failed)?;
    out.write_all(&crc32c::crc32c(&footer).to_le_bytes())
        .map_err(failed)?;
    out.write_all(MAGIC).map_err(failed)?;
    let file = out
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(not_synced)?;
    Ok(())
}

fn end_table(tables: &mut [TableSections], writer: &mut SectionWriter) {
    if let Some(last) = tables.last_mut() {
        last.sections = writer.finish();
    }
}

impl BaseFile {
    pub fn open(path: &Path) -> Result<BaseFile, BaseFileError> {
        let damaged = || BaseFileError::Damaged {
            path: path.to_owned(),
        };
        let failed = |source| failed("read", path)(source);
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let tail_at = bytes.checked_sub(TAIL).ok_or_else(damaged)?;
        let mut tail = [0; 16];
        file.read_exact_at(&mut tail, tail_at).map_err(failed)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3, magic @ ..] = tail;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let footer_at = tail_at.checked_sub(length.into()).ok_or_else(damaged)?;
        let mut footer = vec![0; length as usize];
        file.read_exact_at(&mut footer, footer_at).map_err(failed)?;
        let crc = u32::from_le_bytes([c0, c1, c2, c3]);
        if magic != *MAGIC || crc32c::crc32c(&footer) != crc {
            return Err(damaged());
        }
        let footer: Footer = rmp_serde::from_slice(&footer).map_err(|_| damaged())?;
        let sections = footer.tables.iter().flat_map(|table| &table.sections);
        let expected = sections.map(|section| section.bytes).sum::<u64>() + MAGIC.len() as u64;
        if expected != footer_at {
            return Err(damaged());
        }
        Ok(BaseFile {
            path: path.to_owned(),
            file,
            bytes,
            footer,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn checkpoint(&self) -> CheckpointId {
        self.footer.checkpoint
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file's bytes, from an offset that is in it.
    pub fn read_raw(&self, offset: u64, most: usize) -> Result<Vec<u8>, BaseFileError> {
        let left = self.bytes.saturating_sub(offset);
        let length = usize::try_from(left).unwrap_or(most).min(most);
        let mut bytes = vec![0; length];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(failed("read", &self.path))?;
        Ok(bytes)
    }

    /// The file has been renamed.
    pub(super) fn moved_to(self, path: PathBuf) -> BaseFile {
        BaseFile { path, ..self }
    }

    pub(super) fn key_groups(&self) -> u16 {
        self.footer.key_groups
    }

    /// Makes it durable; `Damaged` if a section is not as it was written.
    pub(super) fn verify_and_sync(&self) -> Result<(), BaseFileError> {
        for table in self.tables() {
            for (at, section) in self.sections(table).into_values() {
                let bytes = self.section_bytes(at, section)?;
                // Its checksum is enough: reading the entries would take several times as long.
                drop(section.entries(&bytes).map_err(|_| self.damaged())?);
            }
        }
        self.file.sync_all().map_err(not_synced(&self.path))
    }

    fn damaged(&self) -> BaseFileError {
        BaseFileError::Damaged {
            path: self.path.clone(),
        }
    }

    /// All tables, as changes of empty ones. Every section is verified.
    pub fn read(&self) -> Result<BTreeMap<TableId, Overlay>, BaseFileError> {
        let mut tables: BTreeMap<TableId, Overlay> = BTreeMap::new();
        let mut read = |table: &TableId, change: Change<'_>| {
            if !tables.contains_key(table) {
                tables.insert(table.clone(), Overlay::default());
            }
            let overlay = tables.get_mut(table).expect("it was just put there");
            let value = change.value.expect("a base file has no deletions");
            overlay.put(change.namespace, change.key, value);
            Ok(())
        };
        self.visit(&mut read)?;
        Ok(tables)
    }

    fn visit(
        &self,
        visit: &mut dyn FnMut(&TableId, Change<'_>) -> Result<(), BaseFileError>,
    ) -> Result<(), BaseFileError> {
        let nothing = Since {
            tables: BTreeMap::new(),
            read: &|_, _| Ok(Overlay::default()),
        };
        merge(Some(self), &nothing, self.footer.key_groups, visit)
    }

    pub fn tables(&self) -> impl Iterator<Item = &TableId> {
        self.footer.tables.iter().map(|sections| &sections.table)
    }

    /// Where each section of a table begins.
    pub(super) fn sections(&self, table: &TableId) -> BTreeMap<KeyGroup, (u64, Section)> {
        let mut at = MAGIC.len() as u64;
        let mut found = BTreeMap::new();
        for sections in &self.footer.tables {
            for section in &sections.sections {
                if sections.table == *table {
                    found.insert(section.group, (at, *section));
                }
                at += section.bytes;
            }
        }
        found
    }

    fn section_bytes(&self, at: u64, section: Section) -> Result<Vec<u8>, BaseFileError> {
        let len = usize::try_from(section.bytes).expect("a section fits into memory");
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(failed("read", &self.path))?;
        Ok(bytes)
    }
}

/// Visits every entry that a base and the changes since make, by table, key group, namespace and key.
/// Holds one section of the base and one stretch of the changes at a time.
pub fn merge<E: From<BaseFileError>>(
    base: Option<&BaseFile>,
    since: &Since<'_, E>,
    key_groups: u16,
    visit: &mut dyn FnMut(&TableId, Change<'_>) -> Result<(), E>,
) -> Result<(), E> {
    merge_portions(&[Portion::whole(base, since)], key_groups, visit)
}

/// Reads what portions have together. For small tables.
pub fn read_portions<E: From<BaseFileError>>(
    portions: &[Portion<'_, E>],
    key_groups: u16,
) -> Result<BTreeMap<TableId, Overlay>, E> {
    let mut tables: BTreeMap<TableId, Overlay> = BTreeMap::new();
    merge_portions(portions, key_groups, &mut |table, change| {
        let value = change.value.expect("a merge leaves deletions out");
        let overlay = tables.entry(table.clone()).or_default();
        overlay.put(change.namespace, change.key, value);
        Ok(())
    })?;
    Ok(tables)
}

/// Visits the entries of portions, table by table and portion by portion, as `merge` does.
fn merge_portions<E: From<BaseFileError>>(
    portions: &[Portion<'_, E>],
    key_groups: u16,
    visit: &mut dyn FnMut(&TableId, Change<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let tables: BTreeSet<&TableId> = portions.iter().flat_map(Portion::tables).collect();
    for table in tables {
        for portion in portions.iter().filter(|portion| (portion.tables)(table)) {
            portion.merge(table, key_groups, visit)?;
        }
    }
    Ok(())
}

impl<E: From<BaseFileError>> Portion<'_, E> {
    /// The tables that something is known of.
    fn tables(&self) -> impl Iterator<Item = &TableId> {
        let in_base = self.base.iter().flat_map(|base| &base.footer.tables);
        let known = in_base
            .map(|sections| &sections.table)
            .chain(self.since.tables.keys());
        known.filter(|table| (self.tables)(table))
    }

    fn merge(
        &self,
        table: &TableId,
        key_groups: u16,
        visit: &mut dyn FnMut(&TableId, Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let unchanged = (BTreeSet::new(), vec![0..=u16::MAX]);
        let changed = self.since.tables.get(table);
        let (cleared, stretches) = changed.unwrap_or(&unchanged);
        let sections = self.base.map(|base| base.sections(table));
        let sections = sections.unwrap_or_default();
        for stretch in stretches {
            let first = *stretch.start().max(self.groups.start());
            let last = *stretch.end().min(self.groups.end());
            if first > last {
                continue;
            }
            let stretch = first..=last;
            let overlay = match changed {
                Some(_) => (self.since.read)(table, &stretch)?,
                None => Overlay::default(),
            };
            let newer = overlay.sorted(key_groups);
            let mut newer = newer.chunk_by(|a, b| a.group == b.group).peekable();
            for (group, (at, section)) in sections.range(KeyGroup(first)..=KeyGroup(last)) {
                while let Some(changes) = newer.next_if(|changes| changes[0].group < *group) {
                    merge_section([].into_iter(), changes, &mut |change| visit(table, change))?;
                }
                let changes = newer
                    .next_if(|changes| changes[0].group == *group)
                    .unwrap_or_default();
                let base = self.base.expect("it has a section");
                let bytes = base.section_bytes(*at, *section)?;
                let older = section
                    .entries(&bytes)
                    .map_err(|_| base.damaged())?
                    .filter(|entry| !cleared.contains(&entry.namespace))
                    .map(|entry| Change {
                        group: *group,
                        namespace: entry.namespace,
                        key: entry.key,
                        value: entry.value,
                    });
                merge_section(older, changes, &mut |change| visit(table, change))?;
            }
            for changes in newer {
                merge_section([].into_iter(), changes, &mut |change| visit(table, change))?;
            }
        }
        Ok(())
    }
}

/// Merges entries with newer changes, both by namespace and key.
fn merge_section<'a, E>(
    older: impl Iterator<Item = Change<'a>>,
    newer: &[Change<'_>],
    visit: &mut dyn FnMut(Change<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut newer = newer.iter().copied().peekable();
    let mut visit_kept = |change: Change<'_>| match change.value {
        Some(_) => visit(change),
        None => Ok(()),
    };
    for entry in older {
        let place = (entry.namespace, entry.key);
        while let Some(change) = newer.next_if(|change| (change.namespace, change.key) < place) {
            visit_kept(change)?;
        }
        match newer.next_if(|change| (change.namespace, change.key) == place) {
            Some(change) => visit_kept(change)?,
            None => visit_kept(entry)?,
        }
    }
    newer.try_for_each(visit_kept)
}

fn parse_name(name: &str) -> Option<CheckpointId> {
    let digits = name.strip_prefix("base-")?.strip_suffix(".bin")?;
    digits.parse().ok().map(CheckpointId)
}

pub(super) fn failed<'p>(
    operation: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> BaseFileError + 'p {
    move |source| BaseFileError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

pub(super) fn not_synced(path: &Path) -> impl FnOnce(io::Error) -> BaseFileError + '_ {
    move |source| BaseFileError::SyncFailed {
        path: path.to_owned(),
        source,
    }
}
