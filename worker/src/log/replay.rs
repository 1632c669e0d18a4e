//! Reads a log into what is derived from it, and checks it on the way.

use common::log_batch::{BatchHeader, LogBatch};
use common::offset::Offset;
use common::seglog::{Position, Reader};
use common::time::Timestamp;

use super::derived::{Derived, follows};
use super::idempotency::RequestPart;
use super::index::LogIndex;
use super::partition_log::OpenError;
use super::reader::Walk;

const SCAN_BYTES: usize = 1 << 20;

/// What is known of a log up to an offset.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) derived: Derived,
    pub(super) index: LogIndex,
    pub(super) next_offset: Offset,
}

impl Replay {
    /// Reads on from here to the end of the log. After an error it knows everything before the damage.
    pub(super) fn run(
        &mut self,
        log: &Reader,
        from: Position,
        steady: Timestamp,
    ) -> Result<(), OpenError> {
        let segments = log.segments();
        let mut begins = segments.iter().map(|segment| segment.base).peekable();
        let mut walk = Walk::new(log, from, SCAN_BYTES);
        while let Some(step) = walk.next()? {
            while begins.next_if(|base| *base <= step.position).is_some() {
                self.index.segment_begins();
            }
            self.take(step.position, &step.verify()?, steady)?;
        }
        if segments.last().is_some_and(|segment| segment.bytes == 0) {
            self.index.segment_begins();
        }
        Ok(())
    }

    fn take(
        &mut self,
        position: Position,
        batch: &LogBatch,
        steady: Timestamp,
    ) -> Result<(), OpenError> {
        let header: &BatchHeader = batch.header();
        let broken = |source| OpenError::Broken { position, source };
        follows(header, self.next_offset).map_err(broken)?;
        let part = RequestPart::of(batch);
        self.derived
            .record(header, batch, part.as_ref(), steady)
            .map_err(broken)?;
        self.next_offset = header.end_offset();
        self.index
            .append(header.base_offset, position, header.max_timestamp);
        Ok(())
    }
}
