//! The commands on disk: appended in order, made durable together, applied again at the next start.
//!
//! A record of the log is `{index, entry}` in MessagePack. Everything here may block.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::info;

use common::ids::MetadataVersion;
use common::seglog::storage::LogStorage;
use common::seglog::{LogError, Options, Position, SegLog};
use common::transport::msgpack;

use super::single::OpenError;
use crate::metadata::ClusterMetadata;
use crate::metadata::command::Entry;

#[derive(Debug)]
pub struct CommandLog {
    log: SegLog,
    next_index: u64,
}

/// Why a command was not appended.
#[derive(Debug)]
pub enum Refused {
    ByDisk,
    TooLarge(usize),
    Fatally(LogError),
}

#[derive(Serialize)]
struct RecordRef<'a> {
    index: u64,
    entry: &'a Entry,
}

#[derive(Deserialize)]
struct Record {
    index: u64,
    entry: Entry,
}

impl CommandLog {
    /// Opens the log, and applies every command of it that the metadata, which is what the snapshot says,
    /// does not have yet. Refuses what cannot be all that was answered.
    pub fn open(
        storage: Arc<dyn LogStorage>,
        segment_bytes: u64,
        metadata: &mut ClusterMetadata,
    ) -> Result<CommandLog, OpenError> {
        let options = Options {
            segment_bytes,
            ..Options::standard()
        };
        let (log, recovery) = SegLog::open(storage, options)?;
        if let Some(cut) = recovery.cut {
            info!(
                bytes = cut.bytes,
                found = cut.found,
                "cut off what was never answered"
            );
        }
        let replayed = replay(&log, metadata)?;
        info!(version = %metadata.version(), replayed, "metadata is complete");
        Ok(CommandLog {
            log,
            next_index: metadata.version().0 + 1,
        })
    }

    /// Writes a command. It counts once `sync` has returned; until then it may be there or not after
    /// a crash.
    pub fn append(&mut self, entry: &Entry) -> Result<MetadataVersion, Refused> {
        let record = RecordRef {
            index: self.next_index,
            entry,
        };
        let bytes = msgpack::encode(&record).expect("commands are plain data");
        if bytes.len() > common::limits::MAX_COMMAND_BYTES {
            return Err(Refused::TooLarge(bytes.len()));
        }
        if self.log.needs_roll(bytes.len()) {
            self.log.roll()?;
        }
        self.log.append_framed(&[&bytes])?;
        self.next_index += 1;
        Ok(MetadataVersion(record.index))
    }

    /// Makes durable what was appended.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.log.sync().map(drop)
    }

    pub fn start(&self) -> Position {
        self.log.start()
    }

    pub fn end(&self) -> Position {
        self.log.end()
    }

    /// What lies before this is in a snapshot: its segments go.
    pub fn drop_before(&mut self, position: Position) -> Result<(), LogError> {
        self.log.roll()?;
        if let Some(removal) = self.log.drop_prefix(position) {
            removal.run()?;
        }
        Ok(())
    }
}

impl From<LogError> for Refused {
    fn from(error: LogError) -> Refused {
        match error {
            LogError::DiskFull => Refused::ByDisk,
            fatal => Refused::Fatally(fatal),
        }
    }
}

fn replay(log: &SegLog, metadata: &mut ClusterMetadata) -> Result<u64, OpenError> {
    let snapshot = metadata.version().0;
    let mut replayed = 0;
    let mut end = None;
    for record in log.reader().records(log.start()) {
        let record: Record =
            msgpack::decode(&record?.payload()).map_err(|source| OpenError::Record {
                index: metadata.version().0 + 1,
                source,
            })?;
        end = Some(record.index);
        let before = metadata.version().0;
        if record.index <= before {
            continue;
        }
        if before == 0 && record.index > 1 {
            return Err(OpenError::NoSnapshot);
        }
        if record.index != before + 1 {
            return Err(OpenError::Gap {
                before,
                found: record.index,
            });
        }
        // A command that was rejected is rejected again.
        let _outcome = metadata.apply(MetadataVersion(record.index), &record.entry);
        replayed += 1;
    }
    match end {
        Some(end) if end < snapshot => Err(OpenError::EndsEarly { end, snapshot }),
        // A log is empty when it is new, or when a snapshot took the place of all that was in it.
        None if log.end() == Position::ZERO && snapshot > 0 => {
            Err(OpenError::EndsEarly { end: 0, snapshot })
        }
        None if log.end() > Position::ZERO && snapshot == 0 => Err(OpenError::NoSnapshot),
        Some(_) | None => Ok(replayed),
    }
}
