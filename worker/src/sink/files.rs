//! Rows into files, each visible once its checkpoint is complete: exactly once.
//!
//! Rows are written to a hidden file. `prepare` makes it durable and gives it a hidden name that says its
//! checkpoint; `commit` gives it its final name. A directory gets one file per task and checkpoint that
//! had rows; a path that does not end in `/` is a file that everything is appended to, at a place that was fixed
//! when it was prepared, so that appending again changes nothing. What a crash left behind is removed by the task
//! that comes after.
//!
//! ```text
//! .out-00003-7.tmp                            being written by task 3 of generation 7
//! .out-00003-00000000000000000042.prepared    complete, of checkpoint 42
//! out-00003-00000000000000000042.json         committed
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use common::error::{ErrorCode, Problem};
use common::ids::CheckpointId;
use common::plan::connector::{FileSink as Spec, Format};
use common::plan::edge::ChangelogMode;
use common::plan::task_graph::PlannedSink;
use futures_util::future::{FutureExt, LocalBoxFuture};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Committable, Sink, SinkContext, SinkError};
use crate::format::{EncodedRecords, Encoder, write_csv_header};
use crate::task::message::Rows;

/// What is gathered before it is written.
const BUFFER_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct FileSink {
    encoder: Encoder,
    records: EncodedRecords,
    buffer: Vec<u8>,
    /// Lent to a blocking thread while files are touched; lost with it.
    files: Option<Files>,
}

impl FileSink {
    pub(super) async fn open(
        spec: &Spec,
        planned: &PlannedSink,
        context: &SinkContext,
    ) -> Result<FileSink, Problem> {
        let extension = match spec.format {
            Format::Json | Format::DebeziumJson => "json",
            Format::Csv => "csv",
            Format::Msgpack => {
                return Err(Problem::new(
                    ErrorCode::InvalidGraph,
                    "files have one record per line, and MessagePack has no lines",
                )
                .hint("Use format json, csv or debezium_json."));
            }
        };
        if planned.mode != ChangelogMode::Append && spec.format != Format::DebeziumJson {
            return Err(Problem::new(
                ErrorCode::InvalidGraph,
                "the rows change and disappear, which lines of a file cannot say",
            )
            .hint("Use format debezium_json."));
        }
        let mut header = Vec::new();
        if spec.format == Format::Csv {
            write_csv_header(&mut header, &planned.columns);
            header.push(b'\n');
        }
        let path = PathBuf::from(&spec.path);
        let single = !spec.is_directory();
        let asked = path.clone();
        let is_there = tokio::task::spawn_blocking(move || asked.is_dir()).await;
        if single && is_there.unwrap_or(false) {
            return Err(Problem::new(
                ErrorCode::InvalidGraph,
                format!("{} is a directory, and named as a file", spec.path),
            )
            .hint(format!("Name it \"{}/\".", spec.path)));
        }
        if single && context.parallelism > 1 {
            return Err(Problem::new(
                ErrorCode::InvalidGraph,
                format!(
                    "{} tasks cannot write the one file {}",
                    context.parallelism, spec.path
                ),
            )
            .hint("Name a directory, with a / at its end."));
        }
        let files = Files {
            directory: match single {
                true => path.parent().map(Path::to_path_buf).unwrap_or_default(),
                false => path.clone(),
            },
            single: single.then_some(Single {
                path,
                prepared_up_to: None,
            }),
            header,
            extension,
            stem: format!("{}-{:05}", planned.name, context.task_index),
            generation: context.generation.0,
            open: None,
        };
        let mut sink = FileSink {
            encoder: Encoder::new(spec.format, &planned.columns, &[])?,
            records: EncodedRecords::default(),
            buffer: Vec::new(),
            files: Some(files),
        };
        let restored = context.restored.unwrap_or_default();
        let tidied = sink.on_files(move |files| files.tidy(restored)).await;
        tidied.map_err(|error| match error {
            SinkError::Fatal(why) => Problem::new(ErrorCode::InvalidGraph, why)
                .hint("Name a directory that the worker may make and write to."),
            SinkError::Broken(why) => Problem::new(ErrorCode::Internal, why),
        })?;
        Ok(sink)
    }

    async fn write_rows(&mut self, rows: Rows) -> Result<(), SinkError> {
        self.records.clear();
        self.encoder.encode(&rows, &mut self.records)?;
        for value in self.records.iter().filter_map(|record| record.value) {
            self.buffer.extend_from_slice(value);
            self.buffer.push(b'\n');
        }
        if self.buffer.len() >= BUFFER_BYTES {
            self.write_buffer().await?;
        }
        Ok(())
    }

    async fn write_buffer(&mut self) -> Result<(), SinkError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let buffer = std::mem::take(&mut self.buffer);
        self.on_files(move |files| files.write(&buffer)).await
    }

    async fn prepare_files(
        &mut self,
        checkpoint: CheckpointId,
    ) -> Result<Option<Committable>, SinkError> {
        self.write_buffer().await?;
        let prepared = self
            .on_files(move |files| files.prepare(checkpoint))
            .await?;
        Ok(prepared.map(|prepared| {
            let encoded = serde_json::to_vec(&prepared);
            Committable(encoded.expect("paths and numbers have a JSON form"))
        }))
    }

    async fn commit_files(&mut self, prepared: Vec<Committable>) -> Result<(), SinkError> {
        let decoded = prepared
            .iter()
            .map(|Committable(bytes)| serde_json::from_slice(bytes))
            .collect::<Result<Vec<Prepared>, _>>()
            .map_err(|error| {
                SinkError::Fatal(format!("what was prepared is not readable: {error}"))
            })?;
        self.on_files(move |files| {
            decoded
                .iter()
                .try_for_each(|prepared| files.commit(prepared))
        })
        .await
    }

    /// Does something with files where blocking does no harm.
    async fn on_files<T: Send + 'static>(
        &mut self,
        action: impl FnOnce(&mut Files) -> io::Result<T> + Send + 'static,
    ) -> Result<T, SinkError> {
        let Some(mut files) = self.files.take() else {
            return Err(SinkError::Broken(
                "writing was given up half way".to_owned(),
            ));
        };
        let done = tokio::task::spawn_blocking(move || {
            let result = action(&mut files);
            (files, result)
        });
        let (files, result) = done
            .await
            .map_err(|error| SinkError::Broken(format!("a writing thread was lost: {error}")))?;
        let place = files.directory.display().to_string();
        self.files = Some(files);
        result.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::NotADirectory => SinkError::Fatal(format!("{place}: {error}")),
            _ => SinkError::Broken(format!("{place}: {error}")),
        })
    }
}

impl Sink for FileSink {
    fn write(&mut self, rows: Rows) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        self.write_rows(rows).boxed_local()
    }

    fn flush(&mut self) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        self.write_buffer().boxed_local()
    }

    fn prepare(
        &mut self,
        checkpoint: CheckpointId,
    ) -> LocalBoxFuture<'_, Result<Option<Committable>, SinkError>> {
        self.prepare_files(checkpoint).boxed_local()
    }

    fn commit(
        &mut self,
        _checkpoint: CheckpointId,
        prepared: Vec<Committable>,
    ) -> LocalBoxFuture<'_, Result<(), SinkError>> {
        self.commit_files(prepared).boxed_local()
    }
}

/// A file that is complete and durable, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Prepared {
    Rename {
        prepared: PathBuf,
        file: PathBuf,
    },
    /// Everything of `prepared`, so many bytes, belongs at this place of `file`.
    Append {
        prepared: PathBuf,
        file: PathBuf,
        at: u64,
        bytes: u64,
    },
}

/// The part that touches files.
#[derive(Debug)]
struct Files {
    directory: PathBuf,
    single: Option<Single>,
    /// What every file begins with.
    header: Vec<u8>,
    extension: &'static str,
    /// The sink's name and the task's number: what the names of this task's files start with.
    stem: String,
    generation: u32,
    open: Option<Open>,
}

/// The one file everything is appended to.
#[derive(Debug)]
struct Single {
    path: PathBuf,
    /// Its length once everything prepared is committed; `None` until it is needed.
    prepared_up_to: Option<u64>,
}

#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Files {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.open.is_none() {
            let path = self
                .directory
                .join(format!(".{}-{}.tmp", self.stem, self.generation));
            let mut open = Open {
                file: File::create(&path)?,
                path,
                bytes: 0,
            };
            let begins_file = match &mut self.single {
                Some(single) => single.length()? == 0,
                None => true,
            };
            if begins_file {
                open.write(&self.header)?;
            }
            self.open = Some(open);
        }
        match &mut self.open {
            Some(open) => open.write(bytes),
            None => Ok(()),
        }
    }

    fn prepare(&mut self, checkpoint: CheckpointId) -> io::Result<Option<Prepared>> {
        let Some(open) = self.open.take() else {
            return Ok(None);
        };
        open.file.sync_all()?;
        let name = format!("{}-{:020}", self.stem, checkpoint.0);
        let prepared = self.directory.join(format!(".{name}.prepared"));
        fs::rename(&open.path, &prepared)?;
        sync_directory(&self.directory)?;
        Ok(Some(match &mut self.single {
            None => Prepared::Rename {
                prepared,
                file: self.directory.join(format!("{name}.{}", self.extension)),
            },
            Some(single) => {
                let at = single.length()?;
                single.prepared_up_to = Some(at + open.bytes);
                Prepared::Append {
                    prepared,
                    file: single.path.clone(),
                    at,
                    bytes: open.bytes,
                }
            }
        }))
    }

    fn commit(&mut self, prepared: &Prepared) -> io::Result<()> {
        match prepared {
            Prepared::Rename { prepared, file } => match fs::rename(prepared, file) {
                Ok(()) => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // It was committed before, and whoever reads these files may have taken it away since.
                Err(_) if file.exists() => {}
                Err(_) => warn!(file = %file.display(), "a file that was committed is gone"),
            },
            Prepared::Append {
                prepared,
                file,
                at,
                bytes,
            } => append(prepared, file, *at, *bytes)?,
        }
        sync_directory(&self.directory)
    }

    /// Makes the directory, and removes what this task's former life began or prepared in vain. Done by
    /// every life, so that a number above its restored checkpoint tells.
    fn tidy(&mut self, restored: CheckpointId) -> io::Result<()> {
        if !self.directory.as_os_str().is_empty() {
            fs::create_dir_all(&self.directory).map_err(|error| match error.kind() {
                // Where it is to be nothing can be made; the next attempt would find the same.
                io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::InvalidInput, error),
                _ => error,
            })?;
        }
        let own = format!(".{}-", self.stem);
        for entry in fs::read_dir(readable(&self.directory))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&own)) else {
                continue;
            };
            // What was prepared up to the restored checkpoint counts: whoever has it commits it.
            let in_vain = match rest.strip_suffix(".prepared") {
                Some(checkpoint) => checkpoint.parse().is_ok_and(|c: u64| c > restored.0),
                None => rest.ends_with(".tmp"),
            };
            if in_vain {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Single {
    fn length(&mut self) -> io::Result<u64> {
        if let Some(length) = self.prepared_up_to {
            return Ok(length);
        }
        let length = match fs::metadata(&self.path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        self.prepared_up_to = Some(length);
        Ok(length)
    }
}

impl Open {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Appends a prepared file at its place, or does nothing if that was done before.
fn append(prepared: &Path, file: &Path, at: u64, bytes: u64) -> io::Result<()> {
    let mut target = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(file)?;
    let length = target.metadata()?.len();
    let mut source = match File::open(prepared) {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound && length >= at + bytes => {
            return Ok(());
        }
        Err(error) => return Err(lost(prepared, &error)),
    };
    if length < at {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{} has {length} bytes, but {at} were committed",
                file.display()
            ),
        ));
    }
    // A crash may have left a part of it behind.
    target.set_len(at)?;
    target.seek(SeekFrom::Start(at))?;
    io::copy(&mut source, &mut target)?;
    target.sync_all()?;
    fs::remove_file(prepared)
}

/// What was prepared is promised; that it is not there needs a person.
fn lost(prepared: &Path, error: &io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{}, which was to be committed, is gone", prepared.display()),
        ),
        kind => io::Error::new(kind, format!("{}: {error}", prepared.display())),
    }
}

/// A rename is durable once its directory is.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(readable(directory))?.sync_all()
}

/// A file's name alone lies in the working directory.
fn readable(directory: &Path) -> &Path {
    match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    }
}
