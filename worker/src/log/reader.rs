//! Reading a log on any thread, beside its writer: whole batches as they lie there, without copying them.
//!
//! What is handed out is in the log's order and without a hole, as far as its headers say. Whether each
//! batch is what was written is checked by who opens it, behind every disk, memory and wire that it came
//! through, and only there. What is left out nobody opens: it is checked here.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use common::log_batch::{BatchError, BatchHeader, HEADER_BYTES, LogBatch};
use common::offset::Offset;
use common::plan::connector::Isolation;
use common::seglog::{LogError, Position, Reader};
use common::time::Timestamp;

use super::index::LogIndex;
use crate::partition::transactions::{AbortedTransaction, touching};

/// What a search by time reads at once: about one block.
const SEARCH_BYTES: usize = 64 << 10;
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

    /// Whole batches from the one that holds `from` on, up to `end`, of `max_bytes` at most, or one. There
    /// may be fewer than fit. Reading committed leaves out markers and what was aborted. May block on the
    /// disk.
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
            let block = view.index.floor(from).filter(|_| from < end);
            let stretch = block.map(|block| {
                let until = view
                    .index
                    .stretch(block, as_u64(max_bytes), end, self.log.end());
                (block.position, until)
            });
            Ok((stretch, aborted))
        })?;
        let (stretch, aborted) = found;
        let mut gathered = Gathered::default();
        let mut next_offset = from;
        let Some((position, until)) = stretch else {
            return Ok(gathered.finish(next_offset));
        };
        let bytes = usize::try_from(until.0.saturating_sub(position.0)).unwrap_or(usize::MAX);
        let mut walk = Walk::new(&self.log, position, bytes);
        let mut skipped = 0;
        while next_offset < end && skipped < MAX_SKIPPED_BYTES {
            if gathered.bytes > 0 && !walk.has(HEADER_BYTES) {
                break;
            }
            let looked = self.look_at(&mut walk, next_offset, from, end);
            // What is damaged is an error for who asks for it, not for who asks for what comes before.
            let header = match looked {
                Ok(Some(header)) => header,
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
            let length = header.total_bytes();
            // More than one pass over the disk, or more than fits, is for the next request.
            if gathered.bytes > 0 && (!walk.has(length) || gathered.bytes + length > max_bytes) {
                break;
            }
            let unwanted = header.end_offset() <= next_offset;
            let hidden = isolation == Isolation::ReadCommitted
                && (header.control || aborted.iter().any(|aborted| aborted.covers(&header)));
            let taken = walk.take(header).and_then(|step| {
                if hidden && !unwanted {
                    step.verify()?;
                }
                Ok(step)
            });
            let step = match taken {
                Ok(step) => step,
                Err(_) if next_offset > from => break,
                Err(error) => return Err(error),
            };
            if unwanted {
                continue;
            }
            if hidden {
                skipped += length;
            } else {
                gathered.add(&step);
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
        let mut walk = Walk::new(&self.log, block.position, SEARCH_BYTES);
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

    /// The header of the next batch of a walk, which has no hole before it.
    fn look_at(
        &self,
        walk: &mut Walk<'_>,
        next_offset: Offset,
        from: Offset,
        end: Offset,
    ) -> Result<Option<BatchHeader>, ReadError> {
        let header = walk
            .header()
            .map_err(|error| self.explain(error, from, end))?;
        if let Some(header) = &header
            && header.base_offset > next_offset
            && header.base_offset > from
        {
            return Err(ReadError::Missing {
                offset: next_offset,
                position: walk.position,
            });
        }
        Ok(header)
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
        match self.header()? {
            Some(header) => self.take(header).map(Some),
            None => Ok(None),
        }
    }

    /// What the next batch says of itself; `None` at the end of the log.
    fn header(&mut self) -> Result<Option<BatchHeader>, ReadError> {
        self.have(HEADER_BYTES)?;
        if self.ahead.is_empty() {
            return Ok(None);
        }
        BatchHeader::parse(&self.ahead)
            .map(Some)
            .map_err(|source| self.corrupt(source))
    }

    /// The next batch, which has this header.
    fn take(&mut self, header: BatchHeader) -> Result<Step, ReadError> {
        let length = header.total_bytes();
        self.have(length)?;
        if !self.has(length) {
            return Err(self.corrupt(BatchError::CutOff {
                present: self.ahead.len(),
                needed: length,
            }));
        }
        let (position, here) = (self.position, self.ahead.clone());
        self.ahead = here.slice(length..);
        self.position = position.plus(as_u64(length));
        Ok(Step {
            position,
            header,
            here,
        })
    }

    /// Whether so many bytes are at hand.
    fn has(&self, bytes: usize) -> bool {
        self.ahead.len() >= bytes
    }

    fn corrupt(&self, source: BatchError) -> ReadError {
        ReadError::Corrupt {
            position: self.position,
            source,
        }
    }

    /// Reads on if fewer bytes are at hand. A batch lies in one segment, so it is never split by this.
    fn have(&mut self, bytes: usize) -> Result<(), ReadError> {
        if !self.has(bytes) {
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
