//! A coordinator's log in the world. Alone it writes what it wants decided, and decides it; one of a group writes what
//! the group has decided (`group`).
//!
//! A record is `{index, entry}` in MessagePack on the engine that the real log stands on.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use common::ids::MetadataVersion;
use common::seglog::storage::LogStorage;
use common::seglog::{Options, SegLog};
use common::transport::msgpack;
use coordinator::metadata::ClusterMetadata;
use coordinator::metadata::command::Entry;

#[derive(Debug)]
pub(super) struct CommandLog {
    log: SegLog,
    next_index: u64,
}

impl CommandLog {
    /// Opens the log, and applies every command of it; `carried_out` is told those that were not rejected.
    pub(super) fn open(
        storage: Arc<dyn LogStorage>,
        segment_bytes: u64,
        metadata: &mut ClusterMetadata,
        carried_out: &mut dyn FnMut(&Entry),
    ) -> Result<CommandLog> {
        let options = Options {
            segment_bytes,
            ..Options::standard()
        };
        let (log, _) = SegLog::open(storage, options)?;
        for record in log.reader().records(log.start()) {
            let (index, entry): (u64, Entry) = msgpack::decode(&record?.payload())
                .with_context(|| format!("the command after {}", metadata.version()))?;
            ensure!(index == metadata.version().0 + 1, "a gap before {index}");
            // A command that was rejected is rejected again.
            if metadata.apply(MetadataVersion(index), &entry).is_ok() {
                carried_out(&entry);
            }
        }
        Ok(CommandLog {
            log,
            next_index: metadata.version().0 + 1,
        })
    }

    /// Writes a command. It counts once `sync` has returned; until then it may be there or not after
    /// a crash.
    pub(super) fn append(&mut self, entry: &Entry) -> Result<MetadataVersion> {
        let index = self.next_index;
        let bytes = msgpack::encode(&(index, entry))?;
        if self.log.needs_roll(bytes.len()) {
            self.log.roll()?;
        }
        self.log.append_framed(&[&bytes])?;
        self.next_index += 1;
        Ok(MetadataVersion(index))
    }

    /// Makes durable what was appended.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.log.sync()?;
        Ok(())
    }
}
