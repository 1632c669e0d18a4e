//! Files of lines, read once or watched: one split per file.
//!
//! A split's position is a byte of the file's unpacked content, where the next record begins: reading goes
//! on there with a seek. A packed file is unpacked up to there again. A file is what it was when it was
//! found: in a watched directory files appear whole, by being renamed into it. Only a single file that is
//! watched is followed as it grows by whole lines; it must not shrink.
//!
//! A task reads the files whose names hash to it, one after another in the order of their names. The
//! file system is touched on blocking threads only, one step at a time, one step ahead.

mod reader;
mod open_file;
mod lines;

use std::collections::VecDeque;
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::plan::connector::{FileSource as Spec, Format};
use common::schema::Column;
use common::time::{Clock, Span, Tick};
use futures_util::future::{FutureExt, LocalBoxFuture};
use tokio::task::JoinHandle;

use super::decoded::{Place, SourceDecoder};
use super::{Source, SourceContext, SourceError, SourceEvent, SplitState};
use lines::record_length;
use open_file::Chunk;
use reader::{Reader, Step};

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
        let reader = Reader::new(spec, context);
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
        while !self.decoder.is_full() && chunk.taken < chunk.lines.len() {
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

fn signed(length: usize) -> i64 {
    i64::try_from(length).expect("a file is below 2^63 bytes")
}
