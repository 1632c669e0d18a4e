//! What is left of a log that cannot be opened: to be read, and never written.

use super::frame::Scanner;
use super::recovery::open_segments;
use super::segment::Segments;
use super::storage::LogStorage;
use super::{LogError, Reader};

/// A reader of the segments up to the first that is missing or cut off. What is in them has not been
/// verified. `None`: there is no segment.
pub fn salvage(storage: &dyn LogStorage, scanner: Scanner) -> Result<Option<Reader>, LogError> {
    let mut segments = open_segments(storage)?;
    let gap = segments
        .windows(2)
        .position(|pair| pair[0].end() != pair[1].base);
    if let Some(gap) = gap {
        segments.truncate(gap + 1);
    }
    Ok((!segments.is_empty()).then(|| Reader {
        segments: Segments::new(segments),
        scanner,
    }))
}
