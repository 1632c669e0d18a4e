//! Read batches of a partition and wait for more, between nodes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Call;
use crate::ids::TopicPartition;
use crate::log_batch::{BatchError, LogBatch, LogBatches};
use crate::offset::Offset;
use crate::plan::connector::Isolation;
use crate::time::{Span, Timestamp};
use crate::transport::msgpack::{self, Encoded, MsgpackError};

/// Batches from `offset` on. Waits up to `wait` while there are none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FetchBatches {
    pub partition: TopicPartition,
    pub offset: Offset,
    pub max_bytes: u32,
    pub wait: Span,
    pub isolation: Isolation,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FetchedBatches {
    /// Where to go on reading: past everything looked at, also what was left out.
    pub next_offset: Offset,
    pub log_start_offset: Offset,
    /// One past the last record that may be read with this isolation.
    pub end_offset: Offset,
    /// Whole record batches, one after another. The first may start before the offset asked for.
    /// Control batches and batches of aborted transactions are left out when reading committed.
    /// They come as they lie on the disk: who opens them checks whether they are what was written.
    pub batches: Bytes,
}

/// As it is read: the batches are part of the message.
#[derive(Deserialize)]
struct LentBatches<'a> {
    next_offset: Offset,
    log_start_offset: Offset,
    end_offset: Offset,
    batches: &'a [u8],
}

impl FetchedBatches {
    /// The batches, checked, and where to go on reading. Damage is an error for who asks for it, not for
    /// who asked for what comes before: that is given, and the next fetch begins at the damage.
    pub fn open(self) -> Result<(Vec<LogBatch>, Offset), BatchError> {
        let mut sound: Vec<LogBatch> = Vec::new();
        for batch in LogBatches::new(self.batches) {
            match (batch, sound.last()) {
                (Ok(batch), _) => sound.push(batch),
                (Err(_), Some(before)) => {
                    let damage = before.header().end_offset();
                    return Ok((sound, damage));
                }
                (Err(error), None) => return Err(error),
            }
        }
        Ok((sound, self.next_offset))
    }
}

impl Call for FetchBatches {
    const PATH: &'static str = "/internal/v1/fetch";
    type Reply = FetchedBatches;

    fn write_reply(mut reply: FetchedBatches) -> Result<Encoded, MsgpackError> {
        let batches = std::mem::take(&mut reply.batches);
        msgpack::encode_before(&reply, batches)
    }

    fn read_reply(body: Bytes) -> Result<FetchedBatches, MsgpackError> {
        let lent: LentBatches<'_> = msgpack::decode(&body)?;
        Ok(FetchedBatches {
            next_offset: lent.next_offset,
            log_start_offset: lent.log_start_offset,
            end_offset: lent.end_offset,
            batches: body.slice_ref(lent.batches),
        })
    }
}

/// Where a partition starts and ends, and which offset a time has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListOffsets {
    pub partition: TopicPartition,
    /// Also look up the first record at or after this time.
    pub at: Option<Timestamp>,
    /// The ends are to be no older than the question: a worker that may have been given up cannot say.
    #[serde(default)]
    pub newest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionOffsets {
    pub log_start_offset: Offset,
    /// One past the last record that read-committed readers see.
    pub last_stable_offset: Offset,
    pub committed_offset: Offset,
    pub log_end_offset: Offset,
    /// The first record at or after the time asked for; `None` if there is none.
    pub at: Option<Offset>,
}

impl Call for ListOffsets {
    const PATH: &'static str = "/internal/v1/list-offsets";
    type Reply = PartitionOffsets;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_batch::LogBatchBuilder;

    fn batches(count: i64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for offset in 0..count {
            let mut builder = LogBatchBuilder::new();
            builder.push(Timestamp(offset), None, Some(b"value"), &[]);
            let mut batch = builder.build();
            batch.stamp(Offset(offset), crate::ids::LeaderEpoch(1));
            bytes.extend_from_slice(batch.bytes());
        }
        bytes
    }

    fn fetched(batches: Vec<u8>) -> FetchedBatches {
        FetchedBatches {
            next_offset: Offset(7),
            log_start_offset: Offset(2),
            end_offset: Offset(900),
            batches: batches.into(),
        }
    }

    #[test]
    fn batches_pass_through_a_reply_without_being_copied() {
        for count in [0, 1, 10, 2_000] {
            let reply = fetched(batches(count));
            let written = FetchBatches::write_reply(reply.clone()).unwrap();
            assert_eq!(written.tail.as_ptr_range(), reply.batches.as_ptr_range());
            let body = Bytes::from([&written.head[..], &written.tail].concat());
            let plain: FetchedBatches = msgpack::decode(&body).unwrap();
            assert_eq!(
                plain, reply,
                "it is the message that serde would have written"
            );
            let read = FetchBatches::read_reply(body.clone()).unwrap();
            assert_eq!(read, reply);
            if count > 0 {
                assert_eq!(read.batches.as_ptr_range().end, body.as_ptr_range().end);
            }
        }
    }

    #[test]
    fn what_comes_before_damage_is_given_and_the_damage_is_an_error() {
        let sound = batches(3);
        let (batches, next) = fetched(sound.clone()).open().unwrap();
        assert_eq!((batches.len(), next), (3, Offset(7)));
        let each = sound.len() / 3;
        for damaged in 0..3 {
            for bit in 0..8 * each {
                let (at, bit) = (damaged * each + bit / 8, bit % 8);
                let place = at % each;
                // Offset and epoch are the leader's to write, and not part of what a batch vouches for.
                if place < 8 || (12..16).contains(&place) {
                    continue;
                }
                let mut bytes = sound.clone();
                bytes[at] ^= 1 << bit;
                match fetched(bytes).open() {
                    Ok((before, next)) => {
                        assert_eq!(before.len(), damaged, "byte {at}");
                        assert_eq!(next, before[damaged - 1].header().end_offset());
                    }
                    Err(_) => assert_eq!(damaged, 0, "byte {at}"),
                }
            }
        }
    }
}
