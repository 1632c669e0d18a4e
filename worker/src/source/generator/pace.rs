//! How many rows may have been given by now (pure).

use common::time::{Span, Tick};

/// A steady rate since the source was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pace {
    rows_per_second: u64,
    since: Tick,
}

impl Pace {
    pub(super) fn new(rows_per_second: u64, since: Tick) -> Pace {
        Pace {
            rows_per_second: rows_per_second.max(1),
            since,
        }
    }

    /// How many rows are due in all.
    pub(super) fn due(&self, now: Tick) -> u64 {
        let due = u128::from(now.since(self.since).0) * u128::from(self.rows_per_second) / 1_000;
        u64::try_from(due).unwrap_or(u64::MAX)
    }

    /// How long until row number `row`, counted from 0, is due.
    pub(super) fn wait_for(&self, row: u64, now: Tick) -> Span {
        let due_at = (u128::from(row) + 1) * 1_000;
        let due_at = due_at.div_ceil(u128::from(self.rows_per_second));
        let due_at = u64::try_from(due_at).unwrap_or(u64::MAX);
        Span(due_at.saturating_sub(now.since(self.since).0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_at_their_rate_and_the_wait_is_exactly_long_enough() {
        for rate in [1, 3, 1_000, 7_777, 1_000_000] {
            let pace = Pace::new(rate, Tick(5_000));
            assert_eq!(pace.due(Tick(5_000)), 0);
            assert_eq!(pace.due(Tick(15_000)), rate * 10);
            for row in [0, 1, rate - 1, rate, 12 * rate + 1] {
                let wait = pace.wait_for(row, Tick(5_000));
                assert!(
                    pace.due(Tick(5_000).plus(wait)) > row,
                    "{rate}/s: row {row}"
                );
                assert!(
                    pace.due(Tick(5_000 + wait.0 - 1)) <= row,
                    "{rate}/s: row {row}"
                );
            }
        }
    }
}
