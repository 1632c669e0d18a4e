//! The entries of one namespace in one layer: an arena of bytes that only grows, and a hash index of
//! offsets into it (pure).
//!
//! An entry costs its bytes, a header of 8, and about 15 for the index; there is no allocation per entry.
//! In the arena, entries begin at multiples of 8:
//!
//! ```text
//!  ┌─────────────┬───────────────┬─────┬───────┬─────────┐
//!  │ key len u32 │ value len u32 │ key │ value │ padding │   a deletion has the greatest length
//!  └─────────────┴───────────────┴─────┴───────┴─────────┘
//! ```
//!
//! A value that is overwritten by one of about its size stays where it is, which is what aggregates do all
//! day; otherwise its place becomes garbage. When most of the arena is, its chunks are written anew one by
//! one, the oldest first. In the same way memory is given back: of the oldest chunk only those entries go
//! on that have to stay.

use std::collections::VecDeque;

use common::key_group::hash_key;
use hashbrown::HashTable;

const HEADER: usize = 8;
const UNIT: usize = 8;
/// Chunks have this size; the first one grows up to it. An entry that is larger has a chunk of its own.
const CHUNK: usize = 1 << 20;
const UNITS_PER_CHUNK: u32 = 1 << 17;
const MAX_CHUNKS: usize = 1 << 15;
const DELETED: u32 = u32::MAX;
/// Less garbage than this is not worth collecting.
const GARBAGE_MIN: u64 = 64 << 10;

/// When an entry was written: a number that grows with every seal of its table.
pub(super) type Stamp = u32;

/// What a layer knows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known<'a> {
    Value(&'a [u8]),
    Deleted,
    /// Older layers know.
    Nothing,
    /// Only the store knows: the base had it, or may have had it, and let it go.
    Stored,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Space {
    /// The namespace was emptied in this layer: what older layers have of it does not count.
    pub(super) cleared: bool,
    index: HashTable<Slot>,
    arena: Arena,
    deleted: usize,
    garbage: u64,
    /// Of keys and values.
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u32,
    at: Address,
    stamp: Stamp,
}

/// The number of a chunk and, in units, a place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address(u32);

#[derive(Clone, Debug, Default)]
struct Arena {
    /// The oldest first. They are numbered in order, and numbers begin again at `MAX_CHUNKS`.
    chunks: VecDeque<Vec<u8>>,
    /// The number of the oldest.
    first: usize,
    /// Bytes of entries, garbage included, and bytes that were asked of the system.
    used: u64,
    allocated: u64,
}

impl Space {
    pub(super) fn cleared() -> Space {
        Space {
            cleared: true,
            ..Space::default()
        }
    }

    /// Entries, deletions included.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Bytes of keys and values.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of memory it takes.
    pub(super) fn footprint(&self) -> u64 {
        self.arena.allocated + as_u64(self.index.allocation_size())
    }

    /// Chunks of memory, of which one at a time can be given back.
    pub(super) fn chunks(&self) -> usize {
        self.arena.chunks.len()
    }

    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Known<'_> {
        let hash = short(hash);
        let found = self.index.find(spread(hash), |slot| {
            slot.hash == hash && self.arena.key(slot.at) == key
        });
        match found {
            None if self.cleared => Known::Deleted,
            None => Known::Nothing,
            Some(slot) => match self.arena.entry(slot.at).1 {
                Some(value) => Known::Value(value),
                None => Known::Deleted,
            },
        }
    }

    /// Notes a value, or a deletion.
    pub(super) fn set(&mut self, hash: u64, key: &[u8], value: Option<&[u8]>, stamp: Stamp) {
        let hash = short(hash);
        let Space { index, arena, .. } = self;
        let slot = index.find_mut(spread(hash), |slot| {
            slot.hash == hash && arena.key(slot.at) == key
        });
        let Some(slot) = slot else {
            let at = arena.push(key, value);
            let slot = Slot { hash, at, stamp };
            index.insert_unique(spread(hash), slot, |slot| spread(slot.hash));
            self.bytes += size(key, value);
            self.deleted += usize::from(value.is_none());
            return;
        };
        slot.stamp = stamp;
        let before = arena.entry(slot.at).1;
        let (before_bytes, before_deleted) = (size(key, before), before.is_none());
        let room = footprint(key.len(), before.map_or(0, <[u8]>::len));
        if room == footprint(key.len(), value.map_or(0, <[u8]>::len)) {
            arena.overwrite(slot.at, key.len(), value);
        } else {
            slot.at = arena.push(key, value);
            self.garbage += as_u64(room);
        }
        self.bytes = self.bytes - before_bytes + size(key, value);
        self.deleted = self.deleted - usize::from(before_deleted) + usize::from(value.is_none());
        if self.garbage > GARBAGE_MIN && self.garbage > self.arena.used / 2 {
            self.rewrite_oldest(|_, _| true);
        }
    }

    /// Says that all entries were written at this time.
    pub(super) fn restamp(&mut self, stamp: Stamp) {
        for slot in self.index.iter_mut() {
            slot.stamp = stamp;
        }
    }

    /// Gives back the oldest chunk of memory. Entries in it that do not have to stay, by their stamp and
    /// value, are forgotten. Answers how many values and how many deletions were.
    pub(super) fn rewrite_oldest(
        &mut self,
        keep: impl Fn(Stamp, Option<&[u8]>) -> bool,
    ) -> (usize, usize) {
        let Some((number, chunk)) = self.arena.pop() else {
            return (0, 0);
        };
        let (mut values, mut deletions, mut start) = (0, 0, 0);
        while start < chunk.len() {
            let (key, value) = read_entry(&chunk[start..]);
            let room = footprint(key.len(), value.map_or(0, <[u8]>::len));
            let at = Address::new(number, start);
            start += room;
            let hash = spread(short(hash_key(key)));
            match self.index.find_entry(hash, |slot| slot.at == at) {
                Err(_) => self.garbage -= as_u64(room),
                Ok(mut entry) if keep(entry.get().stamp, value) => {
                    entry.get_mut().at = self.arena.push(key, value);
                }
                Ok(entry) => {
                    entry.remove();
                    self.bytes -= size(key, value);
                    match value {
                        Some(_) => values += 1,
                        None => deletions += 1,
                    }
                }
            }
        }
        self.deleted -= deletions;
        if self.index.len() < self.index.capacity() / 4 {
            let room = self.index.len() * 2;
            self.index.shrink_to(room, |slot| spread(slot.hash));
        }
        (values, deletions)
    }

    /// Forgets the key, where no older layer can have it.
    pub(super) fn forget(&mut self, hash: u64, key: &[u8]) {
        let hash = short(hash);
        let Space { index, arena, .. } = self;
        let found = index.find_entry(spread(hash), |slot| {
            slot.hash == hash && arena.key(slot.at) == key
        });
        let Ok(entry) = found else { return };
        let (slot, _) = entry.remove();
        let value = self.arena.entry(slot.at).1;
        let value_len = value.map_or(0, <[u8]>::len);
        self.garbage += as_u64(footprint(key.len(), value_len));
        self.bytes -= size(key, value);
        self.deleted -= usize::from(value.is_none());
    }

    /// Forgets which keys were deleted, where no older layer can have them.
    pub(super) fn forget_deletions(&mut self) {
        self.cleared = false;
        if self.deleted == 0 {
            return;
        }
        let Space {
            index,
            arena,
            garbage,
            bytes,
            ..
        } = self;
        index.retain(|slot| {
            let (key, value) = arena.entry(slot.at);
            if value.is_none() {
                *garbage += as_u64(footprint(key.len(), 0));
                *bytes -= as_u64(key.len());
            }
            value.is_some()
        });
        self.deleted = 0;
    }

    /// The entries, in no order; `None` for deletions.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.index.iter().map(|slot| self.arena.entry(slot.at))
    }
}

impl Arena {
    fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> Address {
        let bytes = footprint(key.len(), value.map_or(0, <[u8]>::len));
        let fits = |chunk: &Vec<u8>| chunk.len() + bytes <= CHUNK;
        if !self.chunks.back().is_some_and(fits) {
            assert!(
                self.chunks.len() < MAX_CHUNKS,
                "one namespace of a table holds more than 32 GiB"
            );
            let capacity = match self.chunks.is_empty() {
                true => bytes,
                false => bytes.max(CHUNK),
            };
            let chunk = Vec::with_capacity(capacity);
            self.allocated += as_u64(chunk.capacity());
            self.chunks.push_back(chunk);
        }
        let number = (self.first + self.chunks.len() - 1) % MAX_CHUNKS;
        let chunk = self.chunks.back_mut().expect("it fits, or was just made");
        let at = Address::new(number, chunk.len());
        let before = chunk.capacity();
        chunk.extend_from_slice(&as_u32(key.len()).to_le_bytes());
        chunk.extend_from_slice(&value_len(value).to_le_bytes());
        chunk.extend_from_slice(key);
        chunk.extend_from_slice(value.unwrap_or_default());
        chunk.resize(chunk.len().next_multiple_of(UNIT), 0);
        self.allocated += as_u64(chunk.capacity() - before);
        self.used += as_u64(bytes);
        at
    }

    /// Takes the oldest chunk out, with its number.
    fn pop(&mut self) -> Option<(usize, Vec<u8>)> {
        let chunk = self.chunks.pop_front()?;
        let number = self.first;
        self.first = (self.first + 1) % MAX_CHUNKS;
        self.used -= as_u64(chunk.len());
        self.allocated -= as_u64(chunk.capacity());
        Some((number, chunk))
    }

    /// Replaces the value of an entry by one with the same footprint.
    fn overwrite(&mut self, at: Address, key_len: usize, value: Option<&[u8]>) {
        let (number, start) = at.split();
        let index = self.index_of(number);
        let entry = &mut self.chunks[index][start..];
        entry[4..HEADER].copy_from_slice(&value_len(value).to_le_bytes());
        let value = value.unwrap_or_default();
        entry[HEADER + key_len..][..value.len()].copy_from_slice(value);
    }

    fn key(&self, at: Address) -> &[u8] {
        self.entry(at).0
    }

    fn entry(&self, at: Address) -> (&[u8], Option<&[u8]>) {
        let (number, start) = at.split();
        read_entry(&self.chunks[self.index_of(number)][start..])
    }

    fn index_of(&self, number: usize) -> usize {
        (number + MAX_CHUNKS - self.first) % MAX_CHUNKS
    }
}

/// The entry that these bytes begin with.
fn read_entry(bytes: &[u8]) -> (&[u8], Option<&[u8]>) {
    let (header, rest) = bytes
        .split_first_chunk::<HEADER>()
        .expect("an address is that of an entry");
    let [k0, k1, k2, k3, v0, v1, v2, v3] = *header;
    let (key, rest) = rest.split_at(u32::from_le_bytes([k0, k1, k2, k3]) as usize);
    match u32::from_le_bytes([v0, v1, v2, v3]) {
        DELETED => (key, None),
        len => (key, Some(&rest[..len as usize])),
    }
}

impl Address {
    fn new(number: usize, start: usize) -> Address {
        Address(as_u32(number) * UNITS_PER_CHUNK + as_u32(start / UNIT))
    }

    fn split(self) -> (usize, usize) {
        let unit = (self.0 % UNITS_PER_CHUNK) as usize;
        ((self.0 / UNITS_PER_CHUNK) as usize, unit * UNIT)
    }
}

/// What the index keeps of a hash: enough to hardly ever look at a wrong key.
fn short(hash: u64) -> u32 {
    as_u32((hash >> 32) as usize)
}

/// The index takes its bits from both ends of 64.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn size(key: &[u8], value: Option<&[u8]>) -> u64 {
    as_u64(key.len() + value.map_or(0, <[u8]>::len))
}

fn footprint(key_len: usize, value_len: usize) -> usize {
    (HEADER + key_len + value_len).next_multiple_of(UNIT)
}

fn value_len(value: Option<&[u8]>) -> u32 {
    match value {
        None => DELETED,
        Some(value) => {
            let len = as_u32(value.len());
            assert!(len != DELETED, "a value has less than 4 GiB");
            len
        }
    }
}

fn as_u32(number: usize) -> u32 {
    u32::try_from(number).expect("keys, values and chunks are counted in 32 bits")
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).expect("a length fits into 64 bits")
}
