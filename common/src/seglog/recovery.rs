//! What a log does with the files it finds: verify what may be torn, cut what is, and refuse the rest.
//!
//! The recovery point divides the log. Below it, everything was durable once: a hole or a short file
//! there is damage, and nothing is removed, because a copy elsewhere may need what is left to know what
//! to send. At or above it, the first record that is not sound is where a crash tore the log: nothing
//! from there on was ever acknowledged, so it is cut off.

use std::sync::Arc;

use super::error::sync_result;
use super::frame::{FrameCheck, Scanner};
use super::segment::{Segment, parse_segment_name, segment_name};
use super::storage::{LogFile, LogStorage};
use super::{LogError, Position, as_u64};

/// What a scan reads at once.
const SCAN_BYTES: usize = 1 << 20;
/// Holds the recovery point the log itself knows: u64, and its CRC-32C, little endian.
const NOTE: &str = "recovery-point";

/// What opening a log found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Records from here on were verified.
    pub verified_from: Position,
    /// What was cut off, if anything.
    pub cut: Option<Cut>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub at: Position,
    /// Bytes removed, those of whole segments included.
    pub bytes: u64,
    pub found: &'static str,
}

pub(super) struct Recovered {
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) recovery: Recovery,
}

/// Opens the segments of a directory. Everything it returns is durable.
pub(super) fn recover(
    storage: &dyn LogStorage,
    scanner: Scanner,
    known: Position,
) -> Result<Recovered, LogError> {
    let mut segments = open_segments(storage)?;
    let noted = read_recovery_point(storage)?.unwrap_or_default();
    let start = segments.first().map_or(Position::ZERO, |s| s.base);
    let recovery_point = known.max(noted).max(start);

    let mut cut = cut_at_gap(&mut segments, recovery_point)?;
    if let Some(torn) = find_torn(&segments, scanner, recovery_point)? {
        cut.get_or_insert_with(|| Tear {
            at: torn.at,
            found: torn.found,
            unreachable: Vec::new(),
        });
        let tear = cut.as_mut().expect("it was put there");
        tear.at = torn.at;
        tear.found = torn.found;
        // The segment that the tear is in stays, even if nothing of it is left.
        let keep = segments.partition_point(|s| s.base <= torn.at).max(1);
        let later = segments.split_off(keep);
        tear.unreachable.splice(0..0, later);
    }
    let cut = match cut {
        Some(tear) => Some(perform_cut(storage, &segments, tear)?),
        None => None,
    };

    if segments.is_empty() {
        segments.push(create_first(storage)?);
    }
    // What a killed process wrote is in the page cache only, and may be about to be relied upon.
    for segment in segments.iter().filter(|s| s.end() >= recovery_point) {
        sync_result(&segment.name, segment.file.sync())?;
    }
    sync_result("directory", storage.sync_directory())?;
    Ok(Recovered {
        segments,
        recovery: Recovery {
            verified_from: recovery_point,
            cut,
        },
    })
}

/// Where the log has to be cut, and the segments after it.
struct Tear {
    at: Position,
    found: &'static str,
    unreachable: Vec<Arc<Segment>>,
}

struct Torn {
    at: Position,
    found: &'static str,
}

pub(super) fn open_segments(storage: &dyn LogStorage) -> Result<Vec<Arc<Segment>>, LogError> {
    let names = storage
        .list()
        .map_err(|error| LogError::io("list", "directory", error))?;
    let mut bases: Vec<Position> = names
        .iter()
        .filter_map(|name| parse_segment_name(name))
        .collect();
    bases.sort_unstable();
    bases
        .into_iter()
        .map(|base| {
            let name = segment_name(base);
            let file = storage
                .open(&name)
                .map_err(|error| LogError::io("open", &name, error))?;
            segment(base, file)
        })
        .collect()
}

fn create_first(storage: &dyn LogStorage) -> Result<Arc<Segment>, LogError> {
    let name = segment_name(Position::ZERO);
    let file = storage
        .create(&name)
        .map_err(|error| LogError::io("create", &name, error))?;
    segment(Position::ZERO, file)
}

pub(super) fn segment(base: Position, file: Arc<dyn LogFile>) -> Result<Arc<Segment>, LogError> {
    let look = |error| LogError::io("look at", &segment_name(base), error);
    let bytes = file.bytes().map_err(look)?;
    let created = file.created().map_err(look)?;
    Ok(Arc::new(Segment::new(base, created, file, bytes)))
}

/// Checks that each segment ends where the next begins and that the last reaches the recovery point.
fn cut_at_gap(
    segments: &mut Vec<Arc<Segment>>,
    recovery_point: Position,
) -> Result<Option<Tear>, LogError> {
    let Some(last) = segments.last() else {
        if recovery_point == Position::ZERO {
            return Ok(None);
        }
        return Err(LogError::Corrupt {
            file: segment_name(Position::ZERO),
            position: Position::ZERO,
            found: "no segment at all, though there were records",
        });
    };
    let gap = segments
        .windows(2)
        .position(|pair| pair[0].end() != pair[1].base);
    let (reaches, short) = match gap {
        Some(gap) => (
            segments[gap].end().min(segments[gap + 1].base),
            &segments[gap],
        ),
        None => (last.end(), last),
    };
    if reaches < recovery_point {
        return Err(LogError::Corrupt {
            file: short.name.clone(),
            position: reaches,
            found: "the end of a segment, though records that were durable follow",
        });
    }
    Ok(gap.map(|gap| {
        let unreachable = segments.split_off(gap + 1);
        Tear {
            at: segments[gap].end(),
            found: "a missing segment",
            unreachable,
        }
    }))
}

/// Walks the records from the recovery point on; where the first unsound one begins.
fn find_torn(
    segments: &[Arc<Segment>],
    scanner: Scanner,
    recovery_point: Position,
) -> Result<Option<Torn>, LogError> {
    let mut buffer = Vec::new();
    for segment in segments.iter().filter(|s| s.end() > recovery_point) {
        let bytes = segment.bytes();
        // Bytes of the segment: [0, at) are sound, [at, at + buffer.len()) are read.
        let mut at = recovery_point.max(segment.base).since(segment.base);
        let mut read = 0..0;
        while at < bytes {
            let window = &buffer[read.clone()];
            let wanted = match if window.is_empty() {
                FrameCheck::Incomplete(1)
            } else {
                scanner(window)
            } {
                FrameCheck::Complete(length) => {
                    read.start += length;
                    at += as_u64(length);
                    continue;
                }
                FrameCheck::Incomplete(wanted) => wanted,
                FrameCheck::Corrupt => {
                    return Ok(Some(Torn {
                        at: segment.base.plus(at),
                        found: "a record that is not sound",
                    }));
                }
            };
            let left = bytes - at;
            if as_u64(wanted) > left || wanted <= read.len() {
                return Ok(Some(Torn {
                    at: segment.base.plus(at),
                    found: "part of a record",
                }));
            }
            let size = wanted.max(SCAN_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX)));
            buffer = segment
                .file
                .read_exact_at(at, size)
                .map_err(|error| LogError::io("read", &segment.name, error))?;
            read = 0..size;
        }
    }
    Ok(None)
}

/// Removes what lies beyond a tear: the newest first, so that a crash half way leaves no hole.
fn perform_cut(
    storage: &dyn LogStorage,
    segments: &[Arc<Segment>],
    tear: Tear,
) -> Result<Cut, LogError> {
    let mut bytes = 0;
    for segment in tear.unreachable.iter().rev() {
        bytes += segment.bytes();
        storage
            .remove(&segment.name)
            .map_err(|error| LogError::io("remove", &segment.name, error))?;
        sync_result("directory", storage.sync_directory())?;
    }
    if let Some(last) = segments.last() {
        let keep = tear.at.since(last.base);
        bytes += last.bytes() - keep;
        last.file
            .truncate(keep)
            .map_err(|error| LogError::io("truncate", &last.name, error))?;
        last.set_bytes(keep);
    }
    Ok(Cut {
        at: tear.at,
        bytes,
        found: tear.found,
    })
}

/// Writes down how far the log is durable, so that after a crash damage can be told from a torn tail.
/// The note may be behind, for instance after a loss of power; it must never be ahead.
pub(super) fn note_recovery_point(
    storage: &dyn LogStorage,
    position: Position,
    durable: bool,
) -> Result<(), LogError> {
    let mut note = [0; 12];
    note[..8].copy_from_slice(&position.0.to_le_bytes());
    let crc = crc32c::crc32c(&note[..8]);
    note[8..].copy_from_slice(&crc.to_le_bytes());
    storage
        .write_note(NOTE, &note, durable)
        .map_err(|error| LogError::io("write", NOTE, error))
}

fn read_recovery_point(storage: &dyn LogStorage) -> Result<Option<Position>, LogError> {
    let note = storage
        .read_note(NOTE)
        .map_err(|error| LogError::io("read", NOTE, error))?;
    let Some(Ok(note)) = note.map(<[u8; 12]>::try_from) else {
        return Ok(None);
    };
    let [p0, p1, p2, p3, p4, p5, p6, p7, c0, c1, c2, c3] = note;
    let position = [p0, p1, p2, p3, p4, p5, p6, p7];
    let sound = crc32c::crc32c(&position) == u32::from_le_bytes([c0, c1, c2, c3]);
    Ok(sound.then(|| Position(u64::from_le_bytes(position))))
}
