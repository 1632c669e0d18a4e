//! Segments: the files of a log, and the readers that share them with the writer.
//!
//! A segment's name is the position of its first byte, so the files in order are the log:
//! `00000000000000000000.log`, `00000000000067108864.log`, … A position is never given to another byte
//! unless the log's end was cut off before it.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use super::frame::{FrameCheck, Scanner};
use super::storage::LogFile;
use super::{LogError, Position, as_u64};
use crate::time::Timestamp;

const EXTENSION: &str = ".log";
/// What an iteration over frames reads at once.
const READ_AHEAD_BYTES: usize = 256 << 10;

/// One file of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The position of its first byte.
    pub base: Position,
    pub bytes: u64,
    pub created: Timestamp,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) base: Position,
    pub(super) name: String,
    pub(super) created: Timestamp,
    pub(super) file: Arc<dyn LogFile>,
    /// Bytes appended as a whole; a write in progress is beyond it.
    bytes: AtomicU64,
}

impl Segment {
    pub(super) fn new(
        base: Position,
        created: Timestamp,
        file: Arc<dyn LogFile>,
        bytes: u64,
    ) -> Segment {
        Segment {
            base,
            name: segment_name(base),
            created,
            file,
            bytes: AtomicU64::new(bytes),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    pub(super) fn set_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Release);
    }

    pub(super) fn end(&self) -> Position {
        self.base.plus(self.bytes())
    }

    pub(super) fn info(&self) -> SegmentInfo {
        SegmentInfo {
            base: self.base,
            bytes: self.bytes(),
            created: self.created,
        }
    }
}

pub(super) fn segment_name(base: Position) -> String {
    format!("{:020}{EXTENSION}", base.0)
}

/// The position a segment's name says; `None` for any other file.
pub(super) fn parse_segment_name(name: &str) -> Option<Position> {
    let digits = name.strip_suffix(EXTENSION)?;
    let base = Position(digits.parse().ok()?);
    (segment_name(base) == name).then_some(base)
}

/// The log's segments in order, the active one last; never empty. Readers hold it with the writer.
#[derive(Debug)]
pub(super) struct Segments {
    list: RwLock<Vec<Arc<Segment>>>,
}

impl Segments {
    pub(super) fn new(segments: Vec<Arc<Segment>>) -> Arc<Segments> {
        assert!(!segments.is_empty(), "a log has an active segment");
        Arc::new(Segments {
            list: RwLock::new(segments),
        })
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Vec<Arc<Segment>>) -> T) -> T {
        change(&mut self.list.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn look<T>(&self, look: impl FnOnce(&[Arc<Segment>]) -> T) -> T {
        look(&self.list.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn bounds(&self) -> (Position, Position) {
        self.look(|list| (first(list).base, last(list).end()))
    }

    /// The segment that has, or will have, the byte at this position.
    fn holding(&self, position: Position) -> Option<Arc<Segment>> {
        self.look(|list| {
            let after = list.partition_point(|segment| segment.base <= position);
            let segment = list.get(after.checked_sub(1)?)?;
            (position <= segment.end()).then(|| Arc::clone(segment))
        })
    }
}

fn first(list: &[Arc<Segment>]) -> &Segment {
    list.first().expect("a log has an active segment")
}

fn last(list: &[Arc<Segment>]) -> &Segment {
    list.last().expect("a log has an active segment")
}

/// Reads a log on any thread, while it is written, rolled and dropped. Cheap to clone.
///
/// It sees what has been appended, durable or not: what may be shown to whom is the owner's to know. A
/// read of what has been dropped or cut off is an error, a read that is under way when it is dropped
/// succeeds.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) segments: Arc<Segments>,
    pub(super) scanner: Scanner,
}

impl Reader {
    pub fn start(&self) -> Position {
        self.segments.bounds().0
    }

    pub fn end(&self) -> Position {
        self.segments.bounds().1
    }

    /// The segments, the active one last.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.segments
            .look(|list| list.iter().map(|s| s.info()).collect())
    }

    /// Exactly `len` bytes, which lie in one segment, as whatever was appended at once does.
    pub fn read(&self, position: Position, len: usize) -> Result<Bytes, LogError> {
        let segment = self.segment(position)?;
        let until = position.plus(as_u64(len));
        if until > segment.end() {
            return Err(self.out_of_range(until));
        }
        match segment
            .file
            .read_exact_at(position.since(segment.base), len)
        {
            Ok(bytes) => Ok(bytes.into()),
            // The end was cut off meanwhile: no damage, unless the log still says that it is there.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof && until > self.end() => {
                Err(self.out_of_range(until))
            }
            Err(error) => Err(LogError::io("read", &segment.name, error)),
        }
    }

    /// At most `max` bytes: up to the end of the segment that holds the position; nothing at the log's end.
    pub fn read_up_to(&self, position: Position, max: usize) -> Result<Bytes, LogError> {
        let segment = self.segment(position)?;
        let left = usize::try_from(segment.end().since(position)).unwrap_or(usize::MAX);
        self.read(position, left.min(max))
    }

    /// The records from here to the end, as it is when each is reached. Each is checked.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use common::seglog::{SegLog, Options, frame, memory::MemoryStorage};
    /// # let disk = MemoryStorage::new(Arc::new(common::time::ManualClock::default()));
    /// let (mut log, _) = SegLog::open(disk.shared(), Options::standard()).unwrap();
    /// log.append_framed(&[b"one"]).unwrap();
    /// log.append_framed(&[b"t", b"wo"]).unwrap();
    /// let records: Vec<_> = log.reader().records(log.start()).collect::<Result<_, _>>().unwrap();
    /// assert_eq!(&records[1].bytes[frame::FRAME_HEADER_BYTES..], b"two");
    /// ```
    pub fn records(&self, from: Position) -> Records {
        Records {
            reader: self.clone(),
            position: from,
            ahead: Bytes::new(),
            failed: false,
        }
    }

    fn segment(&self, position: Position) -> Result<Arc<Segment>, LogError> {
        self.segments
            .holding(position)
            .ok_or_else(|| self.out_of_range(position))
    }

    fn out_of_range(&self, position: Position) -> LogError {
        let (start, end) = self.segments.bounds();
        LogError::OutOfRange {
            position,
            start,
            end,
        }
    }
}

/// A record as it was appended, with where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub position: Position,
    pub bytes: Bytes,
}

impl Record {
    /// The payload of a record in the standard frame.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(super::frame::FRAME_HEADER_BYTES..)
    }

    pub fn end(&self) -> Position {
        self.position.plus(as_u64(self.bytes.len()))
    }
}

/// See [`Reader::records`]. Ends after the first error.
#[derive(Debug)]
pub struct Records {
    reader: Reader,
    position: Position,
    /// Bytes read beyond `position`, all of one segment.
    ahead: Bytes,
    failed: bool,
}

impl Records {
    /// Where the next record begins.
    pub fn position(&self) -> Position {
        self.position
    }

    fn step(&mut self) -> Result<Option<Record>, LogError> {
        let mut wanted = 1;
        loop {
            if self.ahead.len() < wanted {
                self.ahead = self
                    .reader
                    .read_up_to(self.position, wanted.max(READ_AHEAD_BYTES))?;
                if self.ahead.is_empty() && wanted == 1 {
                    return Ok(None);
                }
                if self.ahead.len() < wanted {
                    return Err(self.corrupt());
                }
            }
            match (self.reader.scanner)(&self.ahead) {
                FrameCheck::Complete(bytes) => {
                    let record = Record {
                        position: self.position,
                        bytes: self.ahead.split_to(bytes),
                    };
                    self.position = record.end();
                    return Ok(Some(record));
                }
                FrameCheck::Incomplete(bytes) if bytes > self.ahead.len() => wanted = bytes,
                FrameCheck::Incomplete(_) | FrameCheck::Corrupt => return Err(self.corrupt()),
            }
        }
    }

    fn corrupt(&self) -> LogError {
        match self.reader.segment(self.position) {
            Ok(segment) => LogError::Corrupt {
                file: segment.name.clone(),
                position: self.position,
                found: "a record that is not sound",
            },
            Err(dropped_meanwhile) => dropped_meanwhile,
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record, LogError>;

    fn next(&mut self) -> Option<Result<Record, LogError>> {
        if self.failed {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}
