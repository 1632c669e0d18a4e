//! Idempotency keys: what a partition remembers of REST requests that may be sent again.
//!
//! A request's records for one partition may fill several batches. The first record of each carries a
//! header that says which request and which part of it this is. Since it lies in the log, what is
//! remembered survives every crash and every change of leader. A repetition is answered with the first
//! result; parts that a crash kept from the log are appended then.

use std::collections::BTreeMap;

use common::log_batch::{BatchHeader, LogBatch};
use common::offset::Offset;
use common::record::Header;
use common::time::{Span, Timestamp};
use serde::{Deserialize, Serialize};

/// The name of the header. Readers over REST do not see it.
pub const HEADER: &str = "millstream-idempotency";
pub const MAX_KEY_BYTES: usize = 255;
/// How long a key is remembered.
pub const KEY_EXPIRY: Span = Span::from_secs(24 * 60 * 60);
/// Keys one partition remembers. Beyond it the oldest are forgotten, an eighth at a time.
pub const MAX_KEYS: usize = 64 << 10;

/// Which part of which request a batch is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestPart {
    pub key: String,
    /// Of the request's whole content: another request with the same key is a mistake.
    pub fingerprint: u64,
    pub part: u32,
    pub parts: u32,
}

/// The keys of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdempotencyKeys {
    requests: BTreeMap<String, RememberedRequest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct RememberedRequest {
    fingerprint: u64,
    parts: Vec<Option<RememberedPart>>,
    seen: Timestamp,
}

/// Where a part of a request lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RememberedPart {
    pub base_offset: Offset,
    pub records: u32,
    pub max_timestamp: Timestamp,
}

/// What is known of a request's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Known {
    Not,
    Appended(RememberedPart),
    /// The key was used with other content.
    OtherRequest,
}

impl RequestPart {
    pub fn to_header(&self) -> Header {
        let text = serde_json::to_vec(self).expect("a part is plain data");
        Header {
            key: HEADER.to_owned(),
            value: Some(text.into()),
        }
    }

    /// The request this batch is a part of. Only batches that were encoded here carry one, and those are
    /// not compressed, not numbered and not transactional: nothing else is opened.
    pub fn of(batch: &LogBatch) -> Option<RequestPart> {
        let header = batch.header();
        let plain = header.compression == common::compression::Compression::None;
        if !plain || header.producer.is_some() {
            return None;
        }
        let records = batch.records().ok()?;
        let first = records.iter().next()?.ok()?;
        let value = first
            .headers
            .iter()
            .find(|header| header.key == HEADER)?
            .value?;
        let part: RequestPart = serde_json::from_slice(value).ok()?;
        (part.part < part.parts && part.key.len() <= MAX_KEY_BYTES).then_some(part)
    }
}

impl IdempotencyKeys {
    pub fn look_up(&self, part: &RequestPart) -> Known {
        let Some(request) = self.requests.get(&part.key) else {
            return Known::Not;
        };
        let same =
            request.fingerprint == part.fingerprint && request.parts.len() == index(part.parts);
        if !same {
            return Known::OtherRequest;
        }
        match request.parts.get(index(part.part)) {
            Some(Some(known)) => Known::Appended(*known),
            Some(None) | None => Known::Not,
        }
    }

    /// This part is in the log now. `seen`: the worker's steady time.
    pub fn record(&mut self, part: &RequestPart, header: &BatchHeader, seen: Timestamp) {
        // A part claims its request's size; what it claims is bounded by what one request may bring.
        let parts = index(part.parts).min(common::limits::MAX_REQUEST_BYTES / MIN_PART_BYTES + 1);
        let request = self
            .requests
            .entry(part.key.clone())
            .or_insert_with(|| RememberedRequest {
                fingerprint: part.fingerprint,
                parts: vec![None; parts],
                seen,
            });
        if let Some(known) = request.parts.get_mut(index(part.part)) {
            *known = Some(RememberedPart {
                base_offset: header.base_offset,
                records: header.record_count,
                max_timestamp: header.max_timestamp,
            });
        }
        if self.requests.len() > MAX_KEYS {
            self.forget_oldest();
        }
    }

    pub fn expire(&mut self, steady: Timestamp) {
        let oldest = steady.minus(KEY_EXPIRY);
        self.requests.retain(|_, request| request.seen >= oldest);
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    fn forget_oldest(&mut self) {
        let mut times: Vec<Timestamp> = self.requests.values().map(|r| r.seen).collect();
        let eighth = times.len() / 8;
        let (_, threshold, _) = times.select_nth_unstable(eighth);
        let threshold = *threshold;
        let mut left = eighth;
        self.requests.retain(|_, request| {
            let forget = request.seen <= threshold && left > 0;
            left -= usize::from(forget);
            !forget
        });
    }
}

/// Parts are cut when they are larger than this, so a request has at most so many.
const MIN_PART_BYTES: usize = 64 << 10;

fn index(number: u32) -> usize {
    usize::try_from(number).expect("a usize has at least 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ids::{LeaderEpoch, ProducerEpoch, ProducerId};
    use common::log_batch::{LogBatchBuilder, ProducerStamp};

    const SEEN: Timestamp = Timestamp(1_000);

    fn part(key: &str, fingerprint: u64, part: u32, parts: u32) -> RequestPart {
        RequestPart {
            key: key.to_owned(),
            fingerprint,
            part,
            parts,
        }
    }

    fn batch(part: &RequestPart, base_offset: i64) -> LogBatch {
        let mut builder = LogBatchBuilder::new();
        builder.push(Timestamp(5), None, Some(b"1"), &[part.to_header()]);
        let mut batch = builder.build();
        batch.stamp(Offset(base_offset), LeaderEpoch(1));
        batch
    }

    #[test]
    fn a_request_is_known_by_its_batch() {
        let sent = part("order-17", 42, 0, 2);
        assert_eq!(RequestPart::of(&batch(&sent, 0)), Some(sent.clone()));

        let mut numbered = LogBatchBuilder::new().producer(ProducerStamp {
            id: ProducerId(1),
            epoch: ProducerEpoch(0),
            base_sequence: 0,
        });
        numbered.push(Timestamp(5), None, Some(b"1"), &[sent.to_header()]);
        assert_eq!(RequestPart::of(&numbered.build()), None);
    }

    #[test]
    fn a_repetition_finds_the_parts_that_arrived_and_only_those() {
        let mut keys = IdempotencyKeys::default();
        let (first, second) = (part("k", 42, 0, 2), part("k", 42, 1, 2));
        assert_eq!(keys.look_up(&first), Known::Not);
        keys.record(&first, batch(&first, 7).header(), SEEN);
        assert!(matches!(
            keys.look_up(&first),
            Known::Appended(RememberedPart {
                base_offset: Offset(7),
                records: 1,
                ..
            })
        ));
        assert_eq!(keys.look_up(&second), Known::Not);
        assert_eq!(keys.look_up(&part("k", 43, 0, 2)), Known::OtherRequest);
        assert_eq!(keys.look_up(&part("k", 42, 0, 3)), Known::OtherRequest);
        assert_eq!(keys.look_up(&part("l", 42, 0, 2)), Known::Not);
    }

    #[test]
    fn keys_are_forgotten_after_a_day_and_beyond_the_limit() {
        let mut keys = IdempotencyKeys::default();
        let old = part("old", 1, 0, 1);
        keys.record(&old, batch(&old, 0).header(), SEEN);
        keys.expire(SEEN.plus(KEY_EXPIRY));
        assert!(!keys.is_empty());
        keys.expire(SEEN.plus(KEY_EXPIRY).plus(Span(1)));
        assert!(keys.is_empty());

        let template = batch(&old, 0);
        for number in 0..MAX_KEYS + 10 {
            keys.record(&part(&number.to_string(), 1, 0, 1), template.header(), SEEN);
            assert!(keys.len() <= MAX_KEYS);
        }
    }
}
