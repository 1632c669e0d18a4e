//! The events of a run: what each producer sends, computed from the seed, the producer and a number alone.
//!
//! Nothing of a stream is kept: whoever needs an event computes it again. Event time grows with every
//! batch, the same for all producers, and inside a batch it goes to and fro.

use std::fmt::Write;

use common::random::{below, seeded};
use serde_json::Value;

/// Events of one request.
pub const BATCH: u64 = 500;
/// What tells accounts apart in the stream; `END` is none of them.
pub const ACCOUNTS: u64 = 300;
/// The account of the events that end a run: they are so late that every window before them closes.
pub const END: i64 = -1;
/// How far a producer may be ahead of the slowest, in batches.
pub const AHEAD: u64 = 20;
/// How much later each batch is, and how far events of a batch are apart.
const STEP_MS: u64 = 100;
const SPREAD_MS: u64 = 1_000;
/// How much earlier than the latest event of its partition an event can be.
pub const DISORDER_MS: u64 = AHEAD * STEP_MS + SPREAD_MS;

/// 2023-11-14T22:13:20Z.
const BEGIN_MS: i64 = 1_700_000_000_000;
const END_MS: i64 = BEGIN_MS + 1_000_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub producer: i64,
    /// Counts the producer's events.
    pub serial: u64,
    pub account: i64,
    pub amount: i64,
    pub ts: i64,
}

impl Event {
    pub fn of(seed: u64, producer: i64, serial: u64) -> Event {
        let mut random = seeded(seed ^ serial, producer.cast_unsigned());
        let batch = serial / BATCH;
        let millis = batch * STEP_MS + below(&mut random, SPREAD_MS);
        Event {
            producer,
            serial,
            account: below(&mut random, ACCOUNTS).cast_signed(),
            amount: below(&mut random, 2_001).cast_signed() - 1_000,
            ts: BEGIN_MS + millis.cast_signed(),
        }
    }

    /// The event that ends a partition.
    pub fn end() -> Event {
        Event {
            producer: END,
            serial: 0,
            account: END,
            amount: -1,
            ts: END_MS,
        }
    }

    pub fn is_end(&self) -> bool {
        self.producer == END
    }

    pub fn to_json(self) -> String {
        let mut line = String::with_capacity(96);
        self.write(&mut line);
        line
    }

    fn write(&self, line: &mut String) {
        let Event {
            producer,
            serial,
            account,
            amount,
            ts,
        } = self;
        write!(
            line,
            r#"{{"producer":{producer},"serial":{serial},"account":{account},"amount":{amount},"ts":{ts}}}"#
        )
        .expect("a string takes everything");
    }

    pub fn from_json(value: &Value) -> Option<Event> {
        let number = |name: &str| value.get(name)?.as_i64();
        Some(Event {
            producer: number("producer")?,
            serial: value.get("serial")?.as_u64()?,
            account: number("account")?,
            amount: number("amount")?,
            ts: number("ts")?,
        })
    }
}

/// A producer's batch, one line per event.
pub fn batch(seed: u64, producer: i64, number: u64) -> Vec<u8> {
    let mut lines = String::with_capacity(100 * usize::try_from(BATCH).unwrap_or(0));
    for serial in number * BATCH..(number + 1) * BATCH {
        Event::of(seed, producer, serial).write(&mut lines);
        lines.push('\n');
    }
    lines.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_read_back_is_the_one_that_was_written() {
        for event in [Event::of(7, 3, 1_234), Event::end()] {
            let value = serde_json::from_str(&event.to_json()).unwrap();
            assert_eq!(Event::from_json(&value), Some(event));
        }
    }

    #[test]
    fn events_are_not_more_disordered_than_is_said() {
        let mut latest = i64::MIN;
        for batch in 0..AHEAD * 3 {
            // One producer as far ahead of another as it may be.
            let ahead = (batch + AHEAD) * BATCH..(batch + AHEAD + 1) * BATCH;
            latest = ahead.map(|n| Event::of(1, 0, n).ts).fold(latest, i64::max);
            for serial in batch * BATCH..(batch + 1) * BATCH {
                assert!(latest - Event::of(1, 1, serial).ts <= DISORDER_MS.cast_signed());
            }
        }
    }
}
