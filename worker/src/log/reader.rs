//! Reading a log on any thread, beside its writer: whole batches, checked, without copying them.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use common::log_batch::{BatchError, BatchHeader, HEADER_BYTES, LogBatch};
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::seglog::{LogError, Position, Reader};
use common::time::Timestamp;

use super::index::LogIndex;
use crate::partition::transactions::{AbortedTransaction, touching};

/// What one pass over the log reads at once beyond what was asked for: about one block.
const READ_AHEAD_BYTES: usize = 64 << 10;
/// A reader that meets nothing it may have goes on for so long before it says how far it got.
const MAX_SKIPPED_BYTES: usize = 8 << 20;

/// Reads a partition's log while it is written. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogReader {
    log: Reader,
    view: Arc<RwLock<View>>,
}

/// What readers and the writer share.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) index: LogIndex,
    pub(super) start: Offset,
    pub(super) aborted: Vec<AbortedTransaction>,
}

/// Batches as they were stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadBatches {
    pub bytes: Bytes,
    /// Past everything looked at, also what was left out.
    pub next_offset: Offset,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("offset {offset} is outside of the log, which has {start}..{end}")]
    OutOfRange {
        offset: Offset,
        start: Offset,
        end: Offset,
    },
    #[error("the batch at position {position} is corrupt")]
    Corrupt {
        position: Position,
        #[source]
        source: BatchError,
    },
    #[error("the log has no batch for offset {offset} at position {position}")]
    Missing { offset: Offset, position: Position },
    #[error(transparent)]
    Log(#[from] LogError),
}

impl LogReader {
    pub(super) fn new(log: Reader, view: Arc<RwLock<View>>) -> LogReader {
        LogReader { log, view }
    }

    /// The first offset that can be read.
    pub fn start(&self) -> Offset {
        self.look(|view| view.start)
    }

    /// Whole batches from the one that holds `from` on, up to `end`, of about `max_bytes`, at least one.
    /// Reading committed leaves out markers and what was aborted. May block on the disk.
    pub fn read(
        &self,
        from: Offset,
        end: Offset,
        max_bytes: usize,
        isolation: Isolation,
    ) -> Result<ReadBatches, ReadError> {
        let found = self.look(|view| {
            if from < view.start || from > end {
                return Err(ReadError::OutOfRange {
                    offset: from,
                    start: view.start,
                    end,
                });
            }
            let aborted: Vec<AbortedTransaction> = match isolation {
                Isolation::ReadCommitted => touching(&view.aborted, from, end),
                Isolation::ReadUncommitted => Vec::new(),
            };
            Ok((view.index.floor(from), aborted))
        })?;
        let (block, aborted) = found;
        let mut gathered = Gathered::default();
        let mut next_offset = from;
        let Some(block) = block.filter(|_| from < end) else {
            return Ok(gathered.finish(next_offset));
        };
        let mut walk = Walk::new(&self.log, block.position, max_bytes + READ_AHEAD_BYTES);
        let mut skipped = 0;
        while next_offset < end && gathered.bytes < max_bytes && skipped < MAX_SKIPPED_BYTES {
            let looked = self.look_at(&mut walk, next_offset, from, end);
            // What is damaged is an error for who asks for it, not for who asks for what comes before.
            let step = match looked {
                Ok(Some(step)) => step,
                // The log is said to be longer.
                Ok(None) if next_offset == from => {
                    return Err(ReadError::Missing {
                        offset: next_offset,
                        position: walk.position,
                    });
                }
                Ok(None) => break,
                Err(_) if next_offset > from => break,
                Err(error) => return Err(error),
            };
            let header = step.header;
            if header.end_offset() <= next_offset {
                continue;
            }
            let hidden = isolation == Isolation::ReadCommitted
                && (header.control || aborted.iter().any(|aborted| aborted.covers(&header)));
            if hidden {
                skipped += step.bytes();
            } else if gathered.bytes > 0 && gathered.bytes + step.bytes() > max_bytes {
                break;
            } else {
                match step.verify() {
                    Ok(_) => gathered.add(&step),
                    Err(_) if next_offset > from => break,
                    Err(error) => return Err(error),
                }
            }
            next_offset = header.end_offset();
        }
        Ok(gathered.finish(next_offset))
    }

    /// The first record before `end` whose time is at or after this one. May block on the disk.
    pub fn offset_at(&self, time: Timestamp, end: Offset) -> Result<Option<Offset>, ReadError> {
        let (start, block) =
            self.look(|view| (view.start, view.index.at_or_after(time, view.start)));
        let Some(block) = block else {
            return Ok(None);
        };
        let mut walk = Walk::new(&self.log, block.position, READ_AHEAD_BYTES);
        loop {
            let step = walk
                .next()
                .map_err(|error| self.explain(error, start, end))?;
            let Some(step) = step else {
                return Ok(None);
            };
            let header = step.header;
            if header.base_offset >= end {
                return Ok(None);
            }
            if header.max_timestamp < time || header.control || header.end_offset() <= start {
                continue;
            }
            let batch = step.verify()?;
            let corrupt = |source| ReadError::Corrupt {
                position: step.position,
                source,
            };
            for record in batch.records().map_err(corrupt)?.iter() {
                let record = record.map_err(corrupt)?;
                if record.timestamp >= time && record.offset >= start {
                    return Ok(Some(record.offset));
                }
            }
        }
    }

    /// The next batch of a walk, which has no hole before it.
    fn look_at(
        &self,
        walk: &mut Walk<'_>,
        next_offset: Offset,
        from: Offset,
        end: Offset,
    ) -> Result<Option<Step>, ReadError> {
        let step = walk
            .next()
            .map_err(|error| self.explain(error, from, end))?;
        if let Some(step) = &step
            && step.header.base_offset > next_offset
            && step.header.base_offset > from
        {
            return Err(ReadError::Missing {
                offset: next_offset,
                position: step.position,
            });
        }
        Ok(step)
    }

    /// What was there may have been dropped meanwhile: then the offset is what is wrong.
    fn explain(&self, error: ReadError, from: Offset, end: Offset) -> ReadError {
        let start = self.start();
        match error {
            ReadError::Log(LogError::OutOfRange { .. }) if from < start => ReadError::OutOfRange {
                offset: from,
                start,
                end,
            },
            other => other,
        }
    }

    fn look<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Batches one after another, as they lie in the log.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    log: &'a Reader,
    position: Position,
    ahead: Bytes,
    read_bytes: usize,
}

/// One batch where it lies, its checksum not verified yet.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) position: Position,
    pub(super) header: BatchHeader,
    /// What was read from the batch's start on: the batch and perhaps more.
    here: Bytes,
}

impl<'a> Walk<'a> {
    pub(super) fn new(log: &'a Reader, position: Position, read_bytes: usize) -> Walk<'a> {
        Walk {
            log,
            position,
            ahead: Bytes::new(),
            read_bytes,
        }
    }

    /// The next batch; `None` at the end of the log.
    pub(super) fn next(&mut self) -> Result<Option<Step>, ReadError> {
        self.have(HEADER_BYTES)?;
        if self.ahead.is_empty() {
            return Ok(None);
        }
        let position = self.position;
        let corrupt = |source| ReadError::Corrupt { position, source };
        let header = BatchHeader::parse(&self.ahead).map_err(corrupt)?;
        let length = header.total_bytes();
        self.have(length)?;
        if self.ahead.len() < length {
            return Err(corrupt(BatchError::CutOff {
                present: self.ahead.len(),
                needed: length,
            }));
        }
        let here = self.ahead.clone();
        self.ahead = here.slice(length..);
        self.position = position.plus(as_u64(length));
        Ok(Some(Step {
            position,
            header,
            here,
        }))
    }

    /// Reads on if fewer bytes are at hand. A batch lies in one segment, so it is never split by this.
    fn have(&mut self, bytes: usize) -> Result<(), ReadError> {
        if self.ahead.len() < bytes {
            let wanted = bytes.max(self.read_bytes);
            self.ahead = self.log.read_up_to(self.position, wanted)?;
        }
        Ok(())
    }
}

impl Step {
    pub(super) fn bytes(&self) -> usize {
        self.header.total_bytes()
    }

    pub(super) fn verify(&self) -> Result<LogBatch, ReadError> {
        LogBatch::parse(self.here.slice(..self.bytes())).map_err(|source| ReadError::Corrupt {
            position: self.position,
            source,
        })
    }
}

/// Batches to hand out: one run of the log as it was read, or several copied together where something
/// between them was left out.
#[derive(Debug, Default)]
struct Gathered {
    runs: Vec<Run>,
    bytes: usize,
}

/// Neighbouring batches in one buffer.
#[derive(Debug)]
struct Run {
    here: Bytes,
    bytes: usize,
}

impl Gathered {
    fn add(&mut self, step: &Step) {
        self.bytes += step.bytes();
        if let Some(run) = self.runs.last_mut()
            && run.here.get(run.bytes..).is_some_and(|rest| {
                rest.as_ptr() == step.here.as_ptr() && rest.len() >= step.bytes()
            })
        {
            run.bytes += step.bytes();
        } else {
            self.runs.push(Run {
                here: step.here.clone(),
                bytes: step.bytes(),
            });
        }
    }

    fn finish(self, next_offset: Offset) -> ReadBatches {
        let bytes = match &self.runs[..] {
            [] => Bytes::new(),
            [only] => only.here.slice(..only.bytes),
            several => {
                let mut joined = BytesMut::with_capacity(self.bytes);
                for run in several {
                    joined.extend_from_slice(&run.here[..run.bytes]);
                }
                joined.freeze()
            }
        };
        ReadBatches { bytes, next_offset }
    }
}

fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a length fits in 64 bits")
}
