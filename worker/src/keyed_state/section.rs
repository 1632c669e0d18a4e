//! Entries of tables as bytes, in sections of one key group each, as deltas and base files have them (pure).
//!
//! Within a section, entries stand by namespace and key, so two sections can be merged side by side:
//!
//! ```text
//!  ┌───────────────┬─────────────┬───────────────┬─────┬───────┐
//!  │ namespace i64 │ key len u32 │ value len u32 │ key │ value │   little endian
//!  └───────────────┴─────────────┴───────────────┴─────┴───────┘   a deletion has the greatest length
//! ```

use common::key_group::KeyGroup;
use serde::{Deserialize, Serialize};

use super::overlay::{Change, Overlay};

const DELETED: u32 = u32::MAX;

/// The name of a table within its task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableId {
    pub operator: String,
    pub table: String,
}

/// The sections of one table, in the order of their bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSections {
    pub table: TableId,
    /// Namespaces that were emptied before the entries were written; none in a base file.
    pub cleared: Vec<i64>,
    pub sections: Vec<Section>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    pub group: KeyGroup,
    pub bytes: u64,
    /// CRC-32C.
    pub crc: u32,
}

/// Bytes that are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a section of state is damaged")]
pub struct DamagedSection;

/// An entry as a section has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionEntry<'a> {
    pub namespace: i64,
    pub key: &'a [u8],
    /// `None`: a deletion.
    pub value: Option<&'a [u8]>,
}

/// Appends entries to a buffer and notes where each key group's begin.
#[derive(Debug, Default)]
pub struct SectionWriter {
    sections: Vec<Section>,
}

impl SectionWriter {
    /// Appends one entry; key groups come in order.
    pub fn push(&mut self, bytes: &mut Vec<u8>, change: Change<'_>) {
        let start = bytes.len();
        let len = |bytes: &[u8]| as_u32(bytes.len());
        bytes.extend_from_slice(&change.namespace.to_le_bytes());
        bytes.extend_from_slice(&len(change.key).to_le_bytes());
        bytes.extend_from_slice(&change.value.map_or(DELETED, len).to_le_bytes());
        bytes.extend_from_slice(change.key);
        bytes.extend_from_slice(change.value.unwrap_or_default());

        let added = &bytes[start..];
        match self.sections.last_mut() {
            Some(section) if section.group == change.group => {
                section.bytes += as_u64(added.len());
                section.crc = crc32c::crc32c_append(section.crc, added);
            }
            _ => self.sections.push(Section {
                group: change.group,
                bytes: as_u64(added.len()),
                crc: crc32c::crc32c(added),
            }),
        }
    }

    pub fn finish(&mut self) -> Vec<Section> {
        std::mem::take(&mut self.sections)
    }
}

impl Section {
    /// The entries in these bytes, if they are the ones that were written.
    pub fn entries<'a>(
        &self,
        bytes: &'a [u8],
    ) -> Result<impl Iterator<Item = SectionEntry<'a>> + use<'a>, DamagedSection> {
        if as_u64(bytes.len()) != self.bytes || crc32c::crc32c(bytes) != self.crc {
            return Err(DamagedSection);
        }
        Ok(Entries { bytes })
    }
}

impl Section {
    /// Applies its changes to an overlay; `bytes` begins with the section's, and is left after them.
    pub fn apply(&self, bytes: &mut &[u8], overlay: &mut Overlay) -> Result<(), DamagedSection> {
        let len = usize::try_from(self.bytes).map_err(|_| DamagedSection)?;
        let (own, rest) = bytes.split_at_checked(len).ok_or(DamagedSection)?;
        *bytes = rest;
        for entry in self.entries(own)? {
            match entry.value {
                Some(value) => overlay.put(entry.namespace, entry.key, value),
                None => overlay.delete(entry.namespace, entry.key),
            }
        }
        Ok(())
    }
}

impl TableSections {
    /// Applies these changes to an overlay; `bytes` begins with the table's, and is left after them.
    pub fn apply(&self, bytes: &mut &[u8], overlay: &mut Overlay) -> Result<(), DamagedSection> {
        for namespace in &self.cleared {
            overlay.clear_namespace(*namespace);
        }
        self.sections
            .iter()
            .try_for_each(|section| section.apply(bytes, overlay))
    }
}

/// Entries of bytes whose checksum was right.
struct Entries<'a> {
    bytes: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = SectionEntry<'a>;

    fn next(&mut self) -> Option<SectionEntry<'a>> {
        if self.bytes.is_empty() {
            return None;
        }
        let (entry, rest) =
            split_entry(self.bytes).expect("the checksum says that this was written by `push`");
        self.bytes = rest;
        Some(entry)
    }
}

/// The entry that bytes begin with, and what follows it; `None`: it does not end there.
pub(super) fn split_entry(bytes: &[u8]) -> Option<(SectionEntry<'_>, &[u8])> {
    let (namespace, rest) = bytes.split_first_chunk::<8>()?;
    let (key_len, rest) = rest.split_first_chunk::<4>()?;
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_len) as usize)?;
    let (value, rest) = match u32::from_le_bytes(*value_len) {
        DELETED => (None, rest),
        len => {
            let (value, rest) = rest.split_at_checked(len as usize)?;
            (Some(value), rest)
        }
    };
    let entry = SectionEntry {
        namespace: i64::from_le_bytes(*namespace),
        key,
        value,
    };
    Some((entry, rest))
}

fn as_u32(number: usize) -> u32 {
    u32::try_from(number).expect("a key or value has less than 4 GiB")
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).expect("a length fits into 64 bits")
}
