//! One file, read in chunks of whole records from any position of its content on.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;
use common::limits::MAX_MESSAGE_BYTES;
use flate2::read::MultiGzDecoder;

use super::lines::last_record_end;
use super::reader::{Progress, is_packed};
use super::{Place, signed};

/// What is read of a file at once.
const CHUNK_BYTES: usize = 1 << 20;
/// A longer record is no record of any topic either.
const MAX_RECORD_BYTES: usize = MAX_MESSAGE_BYTES as usize;

/// A file that is being read.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) place: Place,
    input: Input,
    /// The beginning of a record whose end was not read yet.
    carry: Vec<u8>,
    /// Where in the content `carry` begins.
    pub(super) position: i64,
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

/// Whole records of one file.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) place: Place,
    /// Where in the content they begin.
    pub(super) start: i64,
    pub(super) lines: Bytes,
    /// How many of these bytes were decoded.
    pub(super) taken: usize,
    /// Bytes of the file that could be read behind these.
    pub(super) bytes_behind: u64,
}

impl OpenFile {
    pub(super) fn open(place: Place, progress: &Progress, follow: bool) -> io::Result<OpenFile> {
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
    pub(super) fn read_chunk(&mut self, is_csv: bool) -> io::Result<Option<Chunk>> {
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

pub(super) fn signed_length(length: u64) -> i64 {
    i64::try_from(length).expect("a file is below 2^63 bytes")
}
