//! Files of lines, read once or watched: one split per file.
//!
//! A split's position is a byte of the file's unpacked content, where the next record begins: reading goes
//! on there with a seek. A packed file is unpacked up to there again. A file is what it was when it was
//! found: in a watched directory files appear whole, by being renamed into it. Only a single file that is
//! watched is followed as it grows by whole lines; it must not shrink.
//!
//! A task reads the files whose names hash to it, one after another in the order of their names. The
//! file system is touched on blocking threads only, one step at a time, one step ahead.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::key_group::hash_key;
use common::limits::{MAX_MESSAGE_BYTES, MAX_ROWS_PER_MESSAGE};
use common::plan::connector::{FileSource as Spec, Format};
use common::schema::Column;
use common::time::{Clock, Span, Tick};
use flate2::read::MultiGzDecoder;
use futures_util::future::{FutureExt, LocalBoxFuture};
use tokio::task::JoinHandle;

use super::decoded::{Place, SourceDecoder};
use super::{Source, SourceContext, SourceError, SourceEvent, SplitState};
use crate::format::{is_csv_header, is_csv_open};

/// What is read of a file at once.
const CHUNK_BYTES: usize = 1 << 20;
/// A longer record is no record of any topic either.
const MAX_RECORD_BYTES: usize = MAX_MESSAGE_BYTES as usize;

/// Reads one task's files.
#[derive(Debug)]
pub(super) struct FileSource {
    decoder: SourceDecoder,
    watch: Option<Span>,
    splits: Vec<SplitState>,
    /// The step that is under way, with the reader in it.
    step: Option<JoinHandle<(Reader, Result<Step, SourceError>)>>,
    /// The reader between two looks for new files, and since when.
    resting: Option<(Reader, Tick)>,
    clock: Arc<dyn Clock>,
    current: Option<Chunk>,
    said: VecDeque<SourceEvent>,
    is_csv: bool,
}

impl FileSource {
    pub(super) fn open(
        name: &str,
        spec: &Spec,
        columns: &[Column],
        context: &SourceContext,
    ) -> Result<FileSource, Problem> {
        if spec.format == Format::Msgpack {
            return Err(Problem::new(
                ErrorCode::InvalidGraph,
                "files are read by lines, and MessagePack has none",
            )
            .hint("Use format json, csv or debezium_json."));
        }
        let reader = Reader {
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
        };
        let mut source = FileSource {
            decoder: SourceDecoder::new(
                name,
                spec.format,
                &spec.schema,
                columns,
                spec.bad_records,
            )?,
            watch: spec.watch,
            splits: reader.restored_here(),
            step: None,
            resting: None,
            clock: context.clock.clone(),
            current: None,
            said: VecDeque::new(),
            is_csv: spec.format == Format::Csv,
        };
        source.begin_step(reader);
        Ok(source)
    }

    fn begin_step(&mut self, mut reader: Reader) {
        self.step = Some(tokio::task::spawn_blocking(move || {
            let step = reader.step();
            (reader, step)
        }));
    }

    async fn next_event(&mut self) -> Result<SourceEvent, SourceError> {
        loop {
            if let Some(event) = self.said.pop_front() {
                return Ok(event);
            }
            if self.current.is_some() {
                self.decode()?;
                continue;
            }
            if let Some((_, since)) = &self.resting {
                let rested = self.clock.tick().since(*since);
                match self
                    .watch
                    .map(|interval| interval.0.saturating_sub(rested.0))
                {
                    Some(0) => {}
                    Some(left) => {
                        tokio::time::sleep(Span(left).as_duration()).await;
                        continue;
                    }
                    None => std::future::pending().await,
                }
            }
            if let Some((mut reader, _)) = self.resting.take() {
                reader.look = true;
                self.begin_step(reader);
            }
            let Some(step) = &mut self.step else {
                return Err(SourceError::Broken("reading has stopped".to_owned()));
            };
            let (reader, step) = step.await.map_err(|error| {
                SourceError::Broken(format!("a reading thread was lost: {error}"))
            })?;
            self.step = None;
            self.take(reader, step?);
        }
    }

    fn take(&mut self, reader: Reader, step: Step) {
        match step {
            Step::Found(found) => {
                for split in found {
                    self.splits.push(split.clone());
                    self.said.push_back(SourceEvent::Discovered { split });
                }
            }
            Step::Chunk(chunk) => self.current = Some(chunk),
            Step::CaughtUp(split) => {
                let at = self.clock.tick();
                self.said.push_back(SourceEvent::CaughtUp { split, at });
            }
            Step::Ended(split) => self.said.push_back(SourceEvent::Ended { split }),
            Step::Nothing => {
                if self.watch.is_none() {
                    self.said.push_back(SourceEvent::Exhausted);
                }
                self.resting = Some((reader, self.clock.tick()));
                return;
            }
        }
        self.begin_step(reader);
    }

    /// Turns the next lines of the current chunk into one batch of rows.
    fn decode(&mut self) -> Result<(), SourceError> {
        let Some(mut chunk) = self.current.take() else {
            return Ok(());
        };
        while self.decoder.len() < MAX_ROWS_PER_MESSAGE && chunk.taken < chunk.lines.len() {
            let rest = &chunk.lines[chunk.taken..];
            let length = record_length(rest, self.is_csv);
            let offset = chunk.start + signed(chunk.taken);
            let line = rest[..length].trim_ascii_end();
            // A line of nothing but space is no record; people end files with them.
            if !line.trim_ascii().is_empty() {
                self.decoder.push(&chunk.place, offset, Some(line))?;
            }
            chunk.taken += length;
        }
        let next_position = chunk.start + signed(chunk.taken);
        let bytes_left = (chunk.lines.len() - chunk.taken) as u64 + chunk.bytes_behind;
        // Nobody knows the number of records behind these; the last ones' size is a good guess.
        let record_bytes = (self.decoder.bytes() / self.decoder.len().max(1) as u64).max(1);
        let rows = self
            .decoder
            .finish(&chunk.place, next_position, bytes_left / record_bytes);
        if let Some(split) = self
            .splits
            .iter_mut()
            .find(|split| split.split == chunk.place.split)
        {
            split.position = next_position;
        }
        self.said.push_back(SourceEvent::Rows(rows));
        if chunk.taken < chunk.lines.len() {
            self.current = Some(chunk);
        }
        Ok(())
    }
}

impl Source for FileSource {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<SourceEvent, SourceError>> {
        self.next_event().boxed_local()
    }

    fn splits(&self) -> Vec<SplitState> {
        self.splits.clone()
    }
}

/// The part that touches files.
#[derive(Debug)]
struct Reader {
    path: PathBuf,
    watched: bool,
    /// The columns whose names may be the first line.
    header: Option<Vec<Column>>,
    task_index: u32,
    parallelism: u32,
    files: BTreeMap<Arc<str>, Progress>,
    open: Option<OpenFile>,
    /// Whether to look for new files before anything else.
    look: bool,
    /// The path is a single plain file that is watched.
    follow: bool,
    /// What the checkpoint says, until the first look.
    restored: Vec<SplitState>,
}

#[derive(Debug)]
struct Progress {
    position: i64,
    /// The file's length when it was found, if it is read once and plain.
    end: Option<i64>,
    /// Nothing more to read, as far as is known.
    done: bool,
}

#[derive(Debug)]
struct OpenFile {
    place: Place,
    input: Input,
    /// The beginning of a record whose end was not read yet.
    carry: Vec<u8>,
    /// Where in the content `carry` begins.
    position: i64,
    /// A last line without an end is a record: nobody is going to write the rest.
    whole: bool,
    length: i64,
}

enum Input {
    /// The file was read before.
    Nothing,
    Plain(io::Take<File>),
    Gzip(Box<MultiGzDecoder<File>>),
}

/// What one step of reading found.
#[derive(Debug)]
enum Step {
    Found(Vec<SplitState>),
    Chunk(Chunk),
    CaughtUp(Arc<str>),
    Ended(Arc<str>),
    Nothing,
}

/// Whole records of one file.
#[derive(Debug)]
struct Chunk {
    place: Place,
    /// Where in the content they begin.
    start: i64,
    lines: Bytes,
    /// How many of these bytes were decoded.
    taken: usize,
    /// Bytes of the file that could be read behind these.
    bytes_behind: u64,
}

impl Reader {
    fn restored_here(&self) -> Vec<SplitState> {
        let here = |split: &&SplitState| self.is_mine(&split.split);
        self.restored.iter().filter(here).cloned().collect()
    }

    fn is_mine(&self, name: &str) -> bool {
        hash_key(name.as_bytes()) % u64::from(self.parallelism) == u64::from(self.task_index)
    }

    fn step(&mut self) -> Result<Step, SourceError> {
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

impl OpenFile {
    fn open(place: Place, progress: &Progress, follow: bool) -> io::Result<OpenFile> {
        let position = progress.position;
        let start = u64::try_from(position).expect("a position is not negative");
        let packed = is_packed(&place.split);
        if progress.end.is_some_and(|end| position >= end) {
            // Read to its end before the restart; it may be gone by now.
            return Ok(OpenFile {
                place,
                input: Input::Nothing,
                carry: Vec::new(),
                position,
                whole: true,
                length: position,
            });
        }
        let mut file = File::open(&*place.split)?;
        let length = signed_length(file.metadata()?.len());
        let input = if packed {
            let mut unpacked = MultiGzDecoder::new(file);
            let skipped = io::copy(&mut unpacked.by_ref().take(start), &mut io::sink())?;
            if skipped < start {
                return Err(io::Error::other(format!(
                    "it unpacks to {skipped} bytes, but {start} of them were read"
                )));
            }
            Input::Gzip(Box::new(unpacked))
        } else {
            if length < progress.end.unwrap_or(position) {
                return Err(io::Error::other(format!(
                    "it has {length} bytes, fewer than when it was found"
                )));
            }
            file.seek(SeekFrom::Start(start))?;
            let left = progress
                .end
                .map_or(u64::MAX, |end| u64::try_from(end - position).unwrap_or(0));
            Input::Plain(file.take(left))
        };
        Ok(OpenFile {
            place,
            input,
            carry: Vec::new(),
            position,
            whole: !follow,
            length: progress.end.unwrap_or(length),
        })
    }

    /// The next whole records; `None` at the end.
    fn read_chunk(&mut self, is_csv: bool) -> io::Result<Option<Chunk>> {
        let mut bytes = std::mem::take(&mut self.carry);
        loop {
            let before = bytes.len();
            let wanted = CHUNK_BYTES as u64;
            let at_end = self.input.by_ref().take(wanted).read_to_end(&mut bytes)? == 0;
            let end = if at_end && self.whole {
                bytes.len()
            } else {
                last_record_end(&bytes, is_csv)
            };
            if end > 0 {
                self.carry = bytes.split_off(end);
                let start = self.position;
                self.position += signed(end);
                return Ok(Some(Chunk {
                    place: self.place.clone(),
                    start,
                    lines: Bytes::from(bytes),
                    taken: 0,
                    bytes_behind: u64::try_from(self.length - self.position).unwrap_or(0),
                }));
            }
            if at_end {
                return Ok(None);
            }
            if before > MAX_RECORD_BYTES {
                return Err(io::Error::other(format!(
                    "the record at byte {} is longer than {MAX_RECORD_BYTES} bytes",
                    self.position
                )));
            }
        }
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Input::Nothing => Ok(0),
            Input::Plain(file) => file.read(buffer),
            Input::Gzip(file) => file.read(buffer),
        }
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Input::Nothing => "Nothing",
            Input::Plain(_) => "Plain",
            Input::Gzip(_) => "Gzip",
        })
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

fn is_packed(name: &str) -> bool {
    name.ends_with(".gz")
}

/// How many bytes the first record has, its line end included.
fn record_length(bytes: &[u8], is_csv: bool) -> usize {
    let mut length = 0;
    let mut open = false;
    loop {
        let rest = &bytes[length..];
        let line = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        if is_csv {
            open ^= is_csv_open(&rest[..line]);
        }
        length += line;
        if !open || length == bytes.len() {
            return length;
        }
    }
}

/// Where the last record that has a line end ends; 0 if there is none.
fn last_record_end(bytes: &[u8], is_csv: bool) -> usize {
    if !is_csv {
        return memchr::memrchr(b'\n', bytes).map_or(0, |end| end + 1);
    }
    let (mut end, mut open) = (0, false);
    for found in memchr::memchr2_iter(b'\n', b'"', bytes) {
        match bytes[found] {
            b'"' => open = !open,
            _ if !open => end = found + 1,
            _ => {}
        }
    }
    end
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).expect("a file is below 2^63 bytes")
}

fn signed_length(length: u64) -> i64 {
    i64::try_from(length).expect("a file is below 2^63 bytes")
}

/// A device may come back; a file that is missing, closed to us or damaged will not by itself.
fn io_error(name: &dyn std::fmt::Display, error: &io::Error) -> SourceError {
    let detail = format!("{name}: {error}");
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::Other => SourceError::Fatal(detail),
        _ => SourceError::Broken(detail),
    }
}
