//! Offsets of records in a partition, and the only place where they are added or subtracted.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The position of a record in its partition, from 0. Never negative.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Offset(pub i64);

/// Records from `start` to before `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OffsetRange {
    pub start: Offset,
    pub end: Offset,
}

impl Offset {
    pub const ZERO: Offset = Offset(0);

    /// The offset `records` further on.
    pub fn plus(self, records: u64) -> Offset {
        let records = i64::try_from(records).expect("a partition holds fewer than 2^63 records");
        Offset(
            self.0
                .checked_add(records)
                .expect("a partition holds fewer than 2^63 records"),
        )
    }

    pub fn next(self) -> Offset {
        self.plus(1)
    }

    /// How many records lie from `earlier` to before this offset; 0 if this one is not later.
    pub fn since(self, earlier: Offset) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

impl OffsetRange {
    pub fn new(start: Offset, end: Offset) -> OffsetRange {
        assert!(
            start <= end,
            "an offset range ends before it starts: {start}..{end}"
        );
        OffsetRange { start, end }
    }

    pub fn records(self) -> u64 {
        self.end.since(self.start)
    }

    pub fn contains(self, offset: Offset) -> bool {
        self.start <= offset && offset < self.end
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}
