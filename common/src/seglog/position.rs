//! Places in a log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a byte is in a log, counted over all its segments from the log's very first byte. A position
/// stays valid when earlier segments are dropped.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    pub const ZERO: Position = Position(0);

    pub fn plus(self, bytes: u64) -> Position {
        Position(
            self.0
                .checked_add(bytes)
                .expect("a log has fewer than 2^64 bytes"),
        )
    }

    /// How many bytes lie from `earlier` to before this position, which must not be before it.
    pub fn since(self, earlier: Position) -> u64 {
        self.0
            .checked_sub(earlier.0)
            .expect("the earlier position is the smaller one")
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
