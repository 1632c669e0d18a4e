//! Sparse offset → position: from where to read to find an offset or a time.
//!
//! The log is divided into blocks of about `BLOCK_BYTES`, none of which spans two segments. For each
//! the index has the first offset, the position, and the latest timestamp inside. A reader starts at a
//! block and looks at batch headers until it meets what it wants.
//!
//! Blocks are kept in chunks that never change once full, so that saving the index writes only its end.

use std::collections::VecDeque;

use common::offset::Offset;
use common::seglog::Position;
use common::time::Timestamp;

/// A block's aim. A reader reads at most this much in vain, and 1 GiB of log takes 400 KiB of memory.
const BLOCK_BYTES: u64 = 64 << 10;
/// A full chunk is saved as one value of 3 KiB.
const BLOCKS_PER_CHUNK: usize = 128;
const BLOCK_RECORD_BYTES: usize = 24;

/// Where a stretch of the log begins, and the latest timestamp in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    pub offset: Offset,
    pub position: Position,
    pub max_timestamp: Timestamp,
}

/// Blocks in order; known by its first block's offset. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    pub blocks: Vec<Block>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogIndex {
    chunks: VecDeque<Chunk>,
    /// The next batch starts a block, whatever its size: a segment begins.
    split: bool,
}

impl LogIndex {
    /// The index that was saved as these chunks, in order. What it says must be checked against the log.
    pub fn from_chunks(chunks: impl IntoIterator<Item = Chunk>) -> LogIndex {
        LogIndex {
            chunks: chunks
                .into_iter()
                .filter(|chunk| !chunk.blocks.is_empty())
                .collect(),
            split: true,
        }
    }

    /// A batch was appended at the end of the log.
    pub fn append(&mut self, offset: Offset, position: Position, max_timestamp: Timestamp) {
        let split = std::mem::take(&mut self.split);
        if let Some(last) = self.last_mut() {
            assert!(
                last.offset < offset && last.position < position,
                "a log only grows: {offset} at {position:?} follows {last:?}"
            );
            if !split && position.since(last.position) < BLOCK_BYTES {
                last.max_timestamp = last.max_timestamp.max(max_timestamp);
                return;
            }
        }
        let block = Block {
            offset,
            position,
            max_timestamp,
        };
        match self.chunks.back_mut() {
            Some(chunk) if chunk.blocks.len() < BLOCKS_PER_CHUNK => chunk.blocks.push(block),
            Some(_) | None => self.chunks.push_back(Chunk {
                blocks: vec![block],
            }),
        }
    }

    /// The next batch is the first of its segment.
    pub fn segment_begins(&mut self) {
        self.split = true;
    }

    /// The block that holds this offset if any does: the last that starts at or before it.
    pub fn floor(&self, offset: Offset) -> Option<Block> {
        self.last_of_those(|block| block.offset <= offset)
    }

    /// Where to stop who reads from this block on: at the end of a block, or of the log, so that whole
    /// batches are read and none twice. What is read is not more than `bytes`, or one block; and none of
    /// the blocks in which everything is at or after `end`.
    pub fn stretch(&self, from: Block, bytes: u64, end: Offset, log_end: Position) -> Position {
        let limit = from.position.plus(bytes);
        let until = match self.last_of_those(|block| block.position <= limit) {
            _ if log_end <= limit => log_end,
            Some(last) if last.position > from.position => last.position,
            Some(_) | None => self
                .first_behind_those(|block| block.position <= from.position)
                .map_or(log_end, |next| next.position),
        };
        match self.first_behind_those(|block| block.offset < end) {
            Some(behind) if behind.position > from.position => until.min(behind.position),
            Some(_) | None => until,
        }
    }

    /// The first block, of those from `from` on, with a record at or after this time.
    pub fn at_or_after(&self, time: Timestamp, from: Offset) -> Option<Block> {
        let start = self.floor(from).map_or(from, |block| block.offset);
        self.blocks()
            .find(|block| block.offset >= start && block.max_timestamp >= time)
    }

    /// Everything at or after this position was cut off. The last block left may claim a later timestamp
    /// than it still has: a reader then finds nothing in it and goes on.
    pub fn truncate(&mut self, position: Position) {
        while let Some(chunk) = self.chunks.back_mut() {
            let keep = chunk
                .blocks
                .partition_point(|block| block.position < position);
            chunk.blocks.truncate(keep);
            if keep > 0 {
                break;
            }
            self.chunks.pop_back();
        }
    }

    /// Everything before this position is gone. Whole chunks go; older blocks of the first chunk left
    /// stay and are never asked for.
    pub fn drop_before(&mut self, position: Position) {
        while let Some(second) = self.chunks.get(1) {
            if second.first().position > position {
                break;
            }
            self.chunks.pop_front();
        }
    }

    pub fn last(&self) -> Option<Block> {
        self.chunks.back()?.blocks.last().copied()
    }

    pub fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.blocks.iter().copied())
    }

    /// The chunks, oldest first. All but the last never change.
    pub fn chunks(&self) -> impl DoubleEndedIterator<Item = &Chunk> + '_ {
        self.chunks.iter()
    }

    /// The last block for which this holds, as it does for all before.
    fn last_of_those(&self, holds: impl Fn(&Block) -> bool) -> Option<Block> {
        let after = self.chunks.partition_point(|chunk| holds(&chunk.first()));
        let chunk = self.chunks.get(after.checked_sub(1)?)?;
        let after = chunk.blocks.partition_point(holds);
        chunk.blocks.get(after.checked_sub(1)?).copied()
    }

    /// The first block for which this does not hold, as it does for all before.
    fn first_behind_those(&self, holds: impl Fn(&Block) -> bool) -> Option<Block> {
        let after = self.chunks.partition_point(|chunk| holds(&chunk.first()));
        let within = after.checked_sub(1).and_then(|last| {
            let blocks = &self.chunks.get(last)?.blocks;
            blocks.get(blocks.partition_point(&holds))
        });
        let next = || self.chunks.get(after)?.blocks.first();
        within.or_else(next).copied()
    }

    fn last_mut(&mut self) -> Option<&mut Block> {
        self.chunks.back_mut()?.blocks.last_mut()
    }
}

impl Chunk {
    pub fn first(&self) -> Block {
        *self.blocks.first().expect("a chunk is never empty")
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.blocks.len() * BLOCK_RECORD_BYTES);
        for block in &self.blocks {
            bytes.extend_from_slice(&block.offset.0.to_be_bytes());
            bytes.extend_from_slice(&block.position.0.to_be_bytes());
            bytes.extend_from_slice(&block.max_timestamp.0.to_be_bytes());
        }
        bytes
    }

    /// `None` if these are not the bytes of a chunk: its blocks must rise.
    pub fn decode(bytes: &[u8]) -> Option<Chunk> {
        let (records, rest) = bytes.as_chunks::<BLOCK_RECORD_BYTES>();
        if records.is_empty() || !rest.is_empty() {
            return None;
        }
        let blocks: Vec<Block> = records
            .iter()
            .map(|record| {
                let number = |at: usize| {
                    *record[at..]
                        .first_chunk::<8>()
                        .expect("a block's record has three numbers")
                };
                Block {
                    offset: Offset(i64::from_be_bytes(number(0))),
                    position: Position(u64::from_be_bytes(number(8))),
                    max_timestamp: Timestamp(i64::from_be_bytes(number(16))),
                }
            })
            .collect();
        blocks
            .is_sorted_by(|a, b| a.offset < b.offset && a.position < b.position)
            .then_some(Chunk { blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    struct Appended {
        offset: i64,
        position: u64,
        time: i64,
    }

    /// Batches of these sizes and times; a segment begins wherever the flag is set.
    fn build(batches: &[(u64, i64, bool)]) -> (LogIndex, Vec<Appended>) {
        let mut index = LogIndex::default();
        let (mut offset, mut position) = (0, 0);
        let mut appended = Vec::new();
        for (bytes, time, begins) in batches {
            if *begins {
                index.segment_begins();
            }
            index.append(Offset(offset), Position(position), Timestamp(*time));
            appended.push(Appended {
                offset,
                position,
                time: *time,
            });
            offset += 3;
            position += bytes;
        }
        (index, appended)
    }

    fn batches() -> impl Strategy<Value = Vec<(u64, i64, bool)>> {
        proptest::collection::vec(
            (100_u64..40_000, 0_i64..100, prop::bool::weighted(0.05)),
            1..600,
        )
    }

    proptest! {
        #[test]
        fn a_block_never_starts_after_what_is_looked_for_nor_a_block_too_early(
            batches in batches(),
            wanted in 0_i64..1_800,
        ) {
            let (index, appended) = build(&batches);
            let holder = appended.iter().rev().find(|batch| batch.offset <= wanted).unwrap();
            let block = index.floor(Offset(wanted)).unwrap();
            prop_assert!(block.offset.0 <= holder.offset);
            prop_assert!(block.position.0 <= holder.position);
            prop_assert!(holder.position - block.position.0 < BLOCK_BYTES + 40_000);
        }

        /// The reference goes through the blocks one by one.
        #[test]
        fn a_stretch_is_as_many_whole_blocks_as_fit(
            batches in batches(),
            wanted in 0_i64..1_800,
            bytes in 1_u64..400_000,
            ahead in 1_i64..1_900,
        ) {
            let end = wanted + ahead;
            let (index, appended) = build(&batches);
            let last = appended.last().unwrap();
            let log_end = Position(last.position + batches.last().unwrap().0);
            let from = index.floor(Offset(wanted)).unwrap();
            let until = index.stretch(from, bytes, Offset(end), log_end);
            let mut rest = index.blocks().skip_while(|block| *block != from).peekable();
            let mut expected = from.position;
            while let Some(block) = rest.next() {
                let behind = rest.peek().map_or(log_end, |next| next.position);
                let first = expected == from.position;
                let fits = behind.since(from.position) <= bytes;
                if !first && (!fits || block.offset >= Offset(end)) {
                    break;
                }
                expected = behind;
                if !fits {
                    break;
                }
            }
            prop_assert_eq!(until, expected);
        }

        #[test]
        fn a_time_is_looked_for_from_the_block_that_has_it(
            batches in batches(),
            time in 0_i64..110,
        ) {
            let (index, appended) = build(&batches);
            let first = appended.iter().find(|batch| batch.time >= time);
            let block = index.at_or_after(Timestamp(time), Offset(0));
            prop_assert_eq!(block.is_some(), first.is_some());
            if let (Some(block), Some(first)) = (block, first) {
                prop_assert_eq!(index.floor(Offset(first.offset)), Some(block));
            }
        }

        #[test]
        fn a_saved_index_goes_on_as_the_original(
            batches in batches(),
            cut in any::<prop::sample::Index>(),
            dropped in any::<prop::sample::Index>(),
        ) {
            let (mut index, appended) = build(&batches);
            let cut = Position(appended[cut.index(appended.len())].position);
            index.truncate(cut);
            prop_assert!(index.blocks().all(|block| block.position < cut));
            let start = appended[dropped.index(appended.len())];
            let before = index.floor(Offset(start.offset));
            index.drop_before(Position(start.position));
            prop_assert_eq!(index.floor(Offset(start.offset)), before);

            let saved: Vec<Vec<u8>> = index.chunks().map(Chunk::encode).collect();
            prop_assert!(saved.iter().all(|bytes| bytes.len() <= 4 << 10));
            let read = LogIndex::from_chunks(saved.iter().map(|b| Chunk::decode(b).unwrap()));
            prop_assert!(read.blocks().eq(index.blocks()));
        }
    }

    #[test]
    fn bytes_that_are_not_a_chunk_are_not_read_as_one() {
        let (index, _) = build(&[(70_000, 1, false), (70_000, 1, false)]);
        let bytes = index.chunks().next().unwrap().encode();
        assert!(Chunk::decode(&bytes).is_some());
        assert_eq!(Chunk::decode(&bytes[1..]), None);
        assert_eq!(Chunk::decode(&[]), None);
        let (first, second) = bytes.split_at(24);
        assert_eq!(Chunk::decode(&[second, first].concat()), None);
    }
}
