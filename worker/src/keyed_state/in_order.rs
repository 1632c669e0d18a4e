//! Reads a table of a base file by namespace and key, which stands there by key group first: its sections are merged,
//! of each of which a small part is in memory.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use common::key_group::KeyGroup;

use super::base_file::{BaseFile, BaseFileError};
use super::overlay::Change;
use super::section::{Section, TableId, split_entry};

/// Read of a section at once.
const STRETCH: usize = 64 << 10;

impl BaseFile {
    /// Visits every entry of a table. `Damaged` if a section is not as it was written: what was visited by then may
    /// be wrong.
    pub fn visit_in_order<E: From<BaseFileError>>(
        &self,
        table: &TableId,
        visit: &mut dyn FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sections = self.sections(table).into_iter();
        let cursors = sections.map(|(group, (at, section))| Cursor {
            file: self,
            group,
            section,
            at,
            end: at + section.bytes,
            crc: 0,
            bytes: Vec::new(),
            read: 0,
        });
        let mut cursors: Vec<Cursor<'_>> = cursors.collect();
        let mut first = BinaryHeap::new();
        for (number, cursor) in cursors.iter_mut().enumerate() {
            first.extend(cursor.place()?.map(|place| Reverse((place, number))));
        }
        while let Some(Reverse((_, number))) = first.pop() {
            let cursor = &mut cursors[number];
            cursor.pass(visit)?;
            first.extend(cursor.place()?.map(|place| Reverse((place, number))));
        }
        Ok(())
    }
}

/// Where a section has been read to.
struct Cursor<'f> {
    file: &'f BaseFile,
    group: KeyGroup,
    section: Section,
    /// What is still to be read of the file, and the checksum of what was.
    at: u64,
    end: u64,
    crc: u32,
    bytes: Vec<u8>,
    /// Of these, those of entries that were passed.
    read: usize,
}

impl Cursor<'_> {
    /// Of its next entry, all of which is in memory then; `None`: there is none.
    fn place(&mut self) -> Result<Option<(i64, Vec<u8>)>, BaseFileError> {
        loop {
            if let Some((entry, _)) = split_entry(&self.bytes[self.read..]) {
                return Ok(Some((entry.namespace, entry.key.to_vec())));
            }
            if self.at == self.end {
                let sound = self.read == self.bytes.len() && self.crc == self.section.crc;
                return sound.then_some(None).ok_or_else(|| self.damaged());
            }
            self.bytes.drain(..self.read);
            self.read = 0;
            let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
            let more = self.file.read_raw(self.at, left.min(STRETCH))?;
            self.at += more.len() as u64;
            self.crc = crc32c::crc32c_append(self.crc, &more);
            self.bytes.extend_from_slice(&more);
        }
    }

    /// Visits its next entry.
    fn pass<E: From<BaseFileError>>(
        &mut self,
        visit: &mut dyn FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes = &self.bytes[self.read..];
        let (entry, rest) = split_entry(bytes).expect("it has a place");
        // A base file has no deletions.
        if entry.value.is_none() {
            return Err(self.damaged().into());
        }
        visit(Change {
            group: self.group,
            namespace: entry.namespace,
            key: entry.key,
            value: entry.value,
        })?;
        self.read += bytes.len() - rest.len();
        Ok(())
    }

    fn damaged(&self) -> BaseFileError {
        BaseFileError::Damaged {
            path: self.file.path().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use common::ids::CheckpointId;
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;
    use crate::keyed_state::base_file::{self, Since};
    use crate::keyed_state::overlay::Overlay;

    const KEY_GROUPS: u16 = 8;

    fn table() -> TableId {
        TableId {
            operator: "counts".to_owned(),
            table: "groups".to_owned(),
        }
    }

    fn write(directory: &std::path::Path, entries: &BTreeMap<(i64, Vec<u8>), Vec<u8>>) -> BaseFile {
        let mut overlay = Overlay::default();
        for ((namespace, key), value) in entries {
            overlay.put(*namespace, key, value);
        }
        let whole = (BTreeSet::new(), vec![0..=u16::MAX]);
        let since = Since {
            tables: [(table(), whole)].into(),
            read: &|_, _| Ok::<_, BaseFileError>(overlay.clone()),
        };
        base_file::write(
            directory,
            CheckpointId(1),
            KEY_GROUPS,
            None,
            &since,
            &|| Ok(()),
        )
        .unwrap()
    }

    type Entry = ((i64, Vec<u8>), Vec<u8>);

    fn read(base: &BaseFile) -> Result<Vec<Entry>, BaseFileError> {
        let mut found = Vec::new();
        base.visit_in_order(&table(), &mut |change| {
            let value = change.value.expect("a base file has no deletions").to_vec();
            found.push(((change.namespace, change.key.to_vec()), value));
            Ok::<_, BaseFileError>(())
        })?;
        Ok(found)
    }

    proptest! {
        #[test]
        fn every_entry_is_visited_once_by_namespace_and_key(
            entries in btree_map(
                (-2..3_i64, prop::collection::vec(0..4_u8, 0..6)),
                // Some are larger than what is read at once.
                prop_oneof![
                    9 => prop::collection::vec(any::<u8>(), 0..20),
                    1 => Just(vec![7; 2 * STRETCH + 1]),
                ],
                0..60,
            ),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let base = write(directory.path(), &entries);
            prop_assert_eq!(read(&base).unwrap(), entries.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn damage_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let entries = (0..200_u8).map(|key| ((0, vec![key]), vec![key; 9]));
        let base = write(directory.path(), &entries.collect());
        let mut bytes = std::fs::read(base.path()).unwrap();
        // In a value, a key and a length.
        for at in [100, 2_000, 4_000, 4_013] {
            bytes[at] ^= 1;
            std::fs::write(base.path(), &bytes).unwrap();
            let outcome = read(&BaseFile::open(base.path()).unwrap());
            assert!(
                matches!(outcome, Err(BaseFileError::Damaged { .. })),
                "at {at}: {outcome:?}"
            );
            bytes[at] ^= 1;
        }
    }
}
