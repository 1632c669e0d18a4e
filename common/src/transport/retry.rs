//! How long to wait before trying again: a pure function of the attempt and a seed.

use crate::time::Span;

/// Doubles from `first` up to `most`; each delay is drawn from the upper half of its step, so that many
/// who failed together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first: Span,
    pub most: Span,
}

impl Backoff {
    /// For calls to a node that is expected back within moments.
    pub const CALLS: Backoff = Backoff {
        first: Span::from_millis(20),
        most: Span::from_millis(1_000),
    };

    /// The delay before attempt `attempt + 1`, where attempts count from 0.
    pub fn delay(self, attempt: u32, seed: u64) -> Span {
        let doubled = self.first.0.saturating_mul(1_u64 << attempt.min(32));
        let step = doubled.min(self.most.0);
        let half = step / 2;
        let draw = xxhash_rust::xxh3::xxh3_64_with_seed(&attempt.to_le_bytes(), seed);
        Span(step - draw % (half + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_bound_and_stay_there() {
        let backoff = Backoff {
            first: Span(10),
            most: Span(160),
        };
        for seed in 0..200 {
            for (attempt, step) in [
                (0, 10),
                (1, 20),
                (2, 40),
                (3, 80),
                (4, 160),
                (5, 160),
                (u32::MAX, 160),
            ] {
                let delay = backoff.delay(attempt, seed).0;
                assert!(
                    (step / 2..=step).contains(&delay),
                    "attempt {attempt}: {delay}"
                );
            }
        }
    }

    #[test]
    fn two_who_failed_together_come_back_apart() {
        let distinct: std::collections::BTreeSet<u64> = (0..100)
            .map(|seed| Backoff::CALLS.delay(8, seed).0)
            .collect();
        assert!(distinct.len() > 50, "only {} delays", distinct.len());
        assert_eq!(Backoff::CALLS.delay(3, 9), Backoff::CALLS.delay(3, 9));
    }
}
