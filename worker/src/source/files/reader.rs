//! One task's share of the files: which there are, how far each is read, which is next.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::key_group::hash_key;
use common::plan::connector::{FileSource as Spec, Format};
use common::schema::Column;

use super::lines::record_length;
use super::open_file::{Chunk, OpenFile, signed_length};
use super::{Place, SourceContext, SourceError, SplitState};
use crate::format::is_csv_header;

/// The part that touches files.
#[derive(Debug)]
pub(super) struct Reader {
    path: PathBuf,
    watched: bool,
    /// The columns whose names may be the first line.
    header: Option<Vec<Column>>,
    task_index: u32,
    parallelism: u32,
    files: BTreeMap<Arc<str>, Progress>,
    open: Option<OpenFile>,
    /// Whether to look for new files before anything else.
    pub(super) look: bool,
    /// The path is a single plain file that is watched.
    follow: bool,
    /// What the checkpoint says, until the first look.
    restored: Vec<SplitState>,
}

#[derive(Debug)]
pub(super) struct Progress {
    pub(super) position: i64,
    /// The file's length when it was found, if it is read once and plain.
    pub(super) end: Option<i64>,
    /// Nothing more to read, as far as is known.
    done: bool,
}

/// What one step of reading found.
#[derive(Debug)]
pub(super) enum Step {
    Found(Vec<SplitState>),
    Chunk(Chunk),
    CaughtUp(Arc<str>),
    Ended(Arc<str>),
    Nothing,
}

impl Reader {
    pub(super) fn new(spec: &Spec, context: &SourceContext) -> Reader {
        Reader {
            path: PathBuf::from(&spec.path),
            watched: spec.watch.is_some(),
            header: (spec.format == Format::Csv).then(|| spec.schema.clone()),
            task_index: context.task_index,
            parallelism: context.parallelism,
            files: BTreeMap::new(),
            open: None,
            look: true,
            follow: false,
            restored: context.restored.clone().unwrap_or_default(),
        }
    }

    pub(super) fn restored_here(&self) -> Vec<SplitState> {
        let here = |split: &&SplitState| self.is_mine(&split.split);
        self.restored.iter().filter(here).cloned().collect()
    }

    fn is_mine(&self, name: &str) -> bool {
        hash_key(name.as_bytes()) % u64::from(self.parallelism) == u64::from(self.task_index)
    }

    pub(super) fn step(&mut self) -> Result<Step, SourceError> {
        if std::mem::take(&mut self.look) {
            let found = self.look()?;
            if !found.is_empty() {
                return Ok(Step::Found(found));
            }
        }
        if self.open.is_none() && !self.open_next()? {
            return Ok(Step::Nothing);
        }
        let Some(mut file) = self.open.take() else {
            return Ok(Step::Nothing);
        };
        let name = file.place.split.clone();
        let failure = |error| io_error(&name, &error);
        let chunk = file.read_chunk(self.header.is_some()).map_err(failure)?;
        let progress = self.files.get_mut(&name).expect("an open file is known");
        let Some(mut chunk) = chunk else {
            progress.done = true;
            return Ok(match self.follow {
                true => Step::CaughtUp(name),
                false => Step::Ended(name),
            });
        };
        if let Some(columns) = self.header.as_ref().filter(|_| chunk.start == 0) {
            let first = record_length(&chunk.lines, true);
            if is_csv_header(&chunk.lines[..first], columns) {
                chunk.taken = first;
            }
        }
        progress.position = file.position;
        self.open = Some(file);
        Ok(Step::Chunk(chunk))
    }

    /// Finds new files, and old ones that have grown. Returns the new ones.
    fn look(&mut self) -> Result<Vec<SplitState>, SourceError> {
        let listed = list(&self.path).map_err(|error| io_error(&self.path.display(), &error))?;
        let only = self.path.to_str().filter(|path| listed.contains_key(*path));
        self.follow = self.watched && only.is_some_and(|path| !is_packed(path));
        let first_look = self.files.is_empty();
        if first_look {
            for split in self.restored_here() {
                self.restore(split, &listed)?;
            }
            self.restored = Vec::new();
        }
        let mut found = Vec::new();
        for (name, length) in listed {
            if !self.is_mine(&name) {
                continue;
            }
            let packed = is_packed(&name);
            if let Some(progress) = self.files.get_mut(&name) {
                if self.follow {
                    if length < progress.position {
                        return Err(SourceError::Fatal(format!(
                            "{name} has {length} bytes, but {} of them were read",
                            progress.position
                        )));
                    }
                    // Also if nothing was added: it is opened again to say so.
                    progress.done = false;
                }
                continue;
            }
            let split = SplitState {
                split: name.clone(),
                position: 0,
                end: (!self.follow && !packed).then_some(length),
                of: None,
            };
            self.files.insert(name, Progress::of(&split));
            found.push(split);
        }
        Ok(found)
    }

    fn restore(
        &mut self,
        split: SplitState,
        listed: &BTreeMap<Arc<str>, i64>,
    ) -> Result<(), SourceError> {
        let mut progress = Progress::of(&split);
        if !listed.contains_key(&split.split) {
            let was_read = split.end.is_some_and(|end| split.position >= end);
            if !was_read && !self.watched {
                return Err(SourceError::Fatal(format!(
                    "{} is gone, and was read only up to byte {}",
                    split.split, split.position
                )));
            }
            if !was_read {
                // Whoever clears a watched directory has decided; whether the rest was read is not known.
                tracing::warn!(file = %split.split, position = split.position, "a watched file is gone");
            }
            // What is there of it was read: it ends where it was.
            progress.end = Some(split.position);
        }
        self.files.insert(split.split, progress);
        Ok(())
    }

    /// Opens the first file that has something to read.
    fn open_next(&mut self) -> Result<bool, SourceError> {
        let next = self.files.iter().find(|(_, progress)| !progress.done);
        let Some((name, progress)) = next else {
            return Ok(false);
        };
        let place = Place {
            split: name.clone(),
            source: name.clone(),
            partition: 0,
        };
        let opened = OpenFile::open(place, progress, self.follow);
        self.open = Some(opened.map_err(|error| io_error(name, &error))?);
        Ok(true)
    }
}

impl Progress {
    fn of(split: &SplitState) -> Progress {
        Progress {
            position: split.position,
            end: split.end,
            done: false,
        }
    }
}

/// The file, or the files of the directory with their lengths. Hidden ones are being written.
fn list(path: &Path) -> io::Result<BTreeMap<Arc<str>, i64>> {
    let name_of = |path: &Path| -> io::Result<Arc<str>> {
        let name = path.to_str();
        name.map(Arc::from)
            .ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())))
    };
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_dir() {
        return Ok([(name_of(path)?, signed_length(metadata.len()))].into());
    }
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // A file may go between being listed and being asked.
        let Ok(metadata) = std::fs::metadata(entry.path()) else {
            continue;
        };
        if !hidden && metadata.is_file() {
            files.insert(name_of(&entry.path())?, signed_length(metadata.len()));
        }
    }
    Ok(files)
}

/// A device may come back; a file that is missing, closed to us or damaged will not by itself.
fn io_error(name: &dyn std::fmt::Display, error: &io::Error) -> SourceError {
    let detail = format!("{name}: {error}");
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::InvalidFilename
        | io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::Other => SourceError::Fatal(detail),
        _ => SourceError::Broken(detail),
    }
}

pub(super) fn is_packed(name: &str) -> bool {
    name.ends_with(".gz")
}
