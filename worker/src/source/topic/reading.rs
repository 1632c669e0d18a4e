//! The records of one fetch, on their way into rows.

use common::log_batch::{BatchError, LogBatches, Records};
use common::offset::Offset;
use common::time::Tick;

use super::{SourceDecoder, SourceError, Split};

/// A fetch that is being turned into rows.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) split: usize,
    pub(super) batches: LogBatches,
    /// The batch that was begun, and how many of its records were taken.
    pub(super) records: Option<(Records, usize)>,
    pub(super) next_offset: Offset,
    pub(super) end_offset: Offset,
    /// When there was nothing to read, not even behind an open transaction.
    pub(super) caught_up: Option<Tick>,
}

impl Reading {
    /// Decodes records until there are rows enough for a message. Answers what comes after those that were
    /// taken, and whether there are no more.
    pub(super) fn decode(
        &mut self,
        split: &Split,
        decoder: &mut SourceDecoder,
    ) -> Result<(Offset, bool), SourceError> {
        let corrupt = |error: BatchError| {
            SourceError::Fatal(format!(
                "topic \"{}\", partition {}: {error}",
                split.place.source, split.place.partition
            ))
        };
        let mut next_position = split.position;
        let mut finished = false;
        while !decoder.is_full() {
            let (records, taken) = match self.records.take() {
                Some(begun) => begun,
                None => match self.batches.next() {
                    Some(batch) => {
                        let batch = batch.map_err(corrupt)?;
                        if batch.header().control {
                            continue;
                        }
                        (batch.records().map_err(corrupt)?, 0)
                    }
                    None => {
                        finished = true;
                        break;
                    }
                },
            };
            let mut taken_now = 0;
            let mut more = false;
            for record in records.iter().skip(taken) {
                let record = record.map_err(corrupt)?;
                taken_now += 1;
                if record.offset < split.position
                    || split.end.is_some_and(|end| record.offset >= end)
                {
                    continue;
                }
                decoder.push(&split.place, record.offset.0, record.value)?;
                next_position = record.offset.next();
                if decoder.is_full() {
                    more = true;
                    break;
                }
            }
            if more {
                self.records = Some((records, taken + taken_now));
            }
        }
        if finished {
            // Also past what was left out behind the last record.
            let past_all = split
                .end
                .map_or(self.next_offset, |end| end.min(self.next_offset));
            next_position = next_position.max(past_all);
        }
        Ok((next_position, finished))
    }
}
