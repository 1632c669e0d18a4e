//! What several chunks change together, read one stretch of key groups after the other, so that no fold
//! holds more than a few megabytes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use super::delta_log::{ChunkRef, DeltaLog, DeltaLogError, PlacedTable};
use crate::keyed_state::overlay::Overlay;
use crate::keyed_state::section::TableId;

/// A stretch of key groups ends when it has this many bytes of changes.
const STRETCH_BYTES: u64 = 4 << 20;

/// The changes of some chunks.
#[derive(Debug)]
pub(super) struct Changes<'l> {
    log: &'l DeltaLog,
    /// What each chunk has of a table, in the order of the chunks.
    tables: BTreeMap<TableId, Vec<PlacedTable>>,
}

impl<'l> Changes<'l> {
    pub(super) fn of(log: &'l DeltaLog, chunks: &[ChunkRef]) -> Result<Changes<'l>, DeltaLogError> {
        let mut tables: BTreeMap<TableId, Vec<PlacedTable>> = BTreeMap::new();
        for chunk in chunks {
            for (table, placed) in log.tables_of(chunk)? {
                tables.entry(table).or_default().push(placed);
            }
        }
        Ok(Changes { log, tables })
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = &TableId> {
        self.tables.keys()
    }

    /// The namespaces of a table that some chunk emptied.
    pub(super) fn cleared(&self, table: &TableId) -> BTreeSet<i64> {
        let placed = self.tables.get(table).into_iter().flatten();
        placed.flat_map(|placed| placed.cleared.clone()).collect()
    }

    /// All key groups in stretches that can be read at once.
    pub(super) fn stretches(&self, table: &TableId) -> Vec<RangeInclusive<u16>> {
        let mut bytes: BTreeMap<u16, u64> = BTreeMap::new();
        for placed in self.tables.get(table).into_iter().flatten() {
            for (_, section) in &placed.sections {
                *bytes.entry(section.group.0).or_default() += section.bytes;
            }
        }
        stretches(bytes)
    }

    /// The changes of a table in a stretch of key groups.
    pub(super) fn read(
        &self,
        table: &TableId,
        groups: &RangeInclusive<u16>,
    ) -> Result<Overlay, DeltaLogError> {
        let mut changes = Overlay::default();
        for placed in self.tables.get(table).into_iter().flatten() {
            self.log.apply_table(placed, groups, &mut changes)?;
        }
        Ok(changes)
    }
}

/// Cuts all key groups into stretches, from the bytes that each has.
pub(super) fn stretches(bytes: BTreeMap<u16, u64>) -> Vec<RangeInclusive<u16>> {
    let mut stretches = Vec::new();
    let (mut start, mut gathered) = (0, 0);
    for (group, bytes) in bytes {
        gathered += bytes;
        if gathered >= STRETCH_BYTES && group < u16::MAX {
            stretches.push(start..=group);
            (start, gathered) = (group + 1, 0);
        }
    }
    stretches.push(start..=u16::MAX);
    stretches
}
