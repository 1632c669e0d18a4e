//! What can still be read of a damaged log: everything before the damage.
//!
//! Nothing is written to it and nothing is cut off, because whoever repairs it needs what is left. A
//! transaction whose end may lie behind the damage stays undecided.

use std::sync::{Arc, RwLock};

use common::log_batch::HEADER_BYTES;
use common::offset::Offset;
use common::seglog::salvage;
use common::seglog::storage::LogStorage;
use common::time::Timestamp;

use super::partition_log::scan_batch;
use super::reader::{LogReader, View, Walk};
use super::replay::Replay;
use crate::partition::transactions::Undecided;

#[derive(Debug)]
pub struct Salvaged {
    pub reader: LogReader,
    /// Where the damage begins.
    pub end: Offset,
    pub undecided: Undecided,
}

impl Salvaged {
    /// `None`: not even the first batch is sound. Blocks.
    pub fn of(storage: &dyn LogStorage, steady: Timestamp) -> Option<Salvaged> {
        let log = salvage(storage, scan_batch).ok()??;
        let first = Walk::new(&log, log.start(), HEADER_BYTES).next().ok()??;
        let start = first.header.base_offset;
        let mut replay = Replay {
            next_offset: start,
            ..Replay::default()
        };
        // That it ends with an error is why this is done.
        drop(replay.run(&log, log.start(), steady));
        let Replay {
            mut derived,
            index,
            next_offset,
        } = replay;
        derived.transactions.committed(next_offset);
        let view = View {
            index,
            start,
            aborted: derived.transactions.aborted().to_vec(),
        };
        Some(Salvaged {
            reader: LogReader::new(log, Arc::new(RwLock::new(view))),
            end: next_offset,
            undecided: derived.transactions.undecided(),
        })
    }
}
