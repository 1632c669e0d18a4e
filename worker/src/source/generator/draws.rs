//! Numbers that look random and depend on nothing but a seed, a row and what they are for.
//!
//! Any row can be drawn by itself, in any order and on any machine: that is what lets a generated stream
//! go on from a position without making the rows before it. Only integers and the four basic operations
//! on floats are used, which are the same everywhere.

/// The draws for one value of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draws {
    state: u64,
}

/// The increment of SplitMix64, 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Draws {
    /// `purpose` tells the values of one row apart.
    pub(super) fn new(seed: u64, purpose: u64, row: u64) -> Draws {
        let stream = mix(seed ^ mix(purpose.wrapping_mul(GOLDEN)));
        Draws {
            state: mix(stream ^ row.wrapping_mul(GOLDEN)),
        }
    }

    #[inline]
    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// From 0 to before `bound`, each as likely to within one in 2^64 / `bound`.
    #[inline]
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let scaled = (u128::from(self.next()) * u128::from(bound)) >> 64;
        u64::try_from(scaled).expect("a scaled draw is below its bound")
    }

    /// Whether something happens that happens once in `times` times.
    #[inline]
    pub(super) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// From 0 to before 1.
    #[inline]
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact in a double")]
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From −1 to 1, middling values being more likely.
    pub(super) fn noise(&mut self) -> f64 {
        self.unit() + self.unit() - 1.0
    }

    #[inline]
    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let choice = self.below(choices.len() as u64);
        choices[usize::try_from(choice).expect("an index fits")]
    }

    /// Appends `min` to `max` small letters.
    pub(super) fn letters(&mut self, min: u64, max: u64, out: &mut String) {
        let length = min + self.below(max - min + 1);
        let mut bits = 0;
        for i in 0..length {
            // One draw is good for twelve letters.
            if i % 12 == 0 {
                bits = self.next();
            }
            let letter = u8::try_from(bits % 26).expect("a letter of 26");
            out.push(char::from(b'a' + letter));
            bits /= 26;
        }
    }
}

/// The finalizer of SplitMix64: every bit of the result depends on every bit of the number.
#[inline]
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Ten to the power of a number from 0 to 6.
pub(super) fn power_of_ten(exponent: f64) -> f64 {
    // e^x by its series: x is at most 2.31 once whole powers are taken out, so 20 terms are exact.
    let whole = exponent.floor();
    let x = (exponent - whole) * std::f64::consts::LN_10;
    let mut sum = 1.0;
    for term in (1..=20).rev() {
        sum = 1.0 + sum * x / f64::from(term);
    }
    let mut left = whole;
    while left >= 1.0 {
        sum *= 10.0;
        left -= 1.0;
    }
    sum
}

/// A smooth wave of period 1, from −1 to 1: two parabolas, which a sine is hard to tell from.
pub(super) fn wave(phase: f64) -> f64 {
    let x = phase - phase.floor();
    if x < 0.5 {
        16.0 * x * (0.5 - x)
    } else {
        -16.0 * (x - 0.5) * (1.0 - x)
    }
}

/// Rounded to this many places, as people write amounts and measurements.
pub(super) fn rounded(number: f64, scale: f64) -> f64 {
    (number * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_ten_are_right() {
        for (exponent, expected) in [
            (0.0, 1.0),
            (0.5, 10_f64.sqrt()),
            (1.0, 10.0),
            (5.25, 177_827.941),
        ] {
            let found = power_of_ten(exponent);
            assert!(
                (found / expected - 1.0).abs() < 1e-9,
                "10^{exponent} = {found}"
            );
        }
    }

    #[test]
    fn draws_are_spread_evenly_and_differ_by_seed_purpose_and_row() {
        let mut counts = [0_u32; 10];
        for row in 0..10_000 {
            counts[usize::try_from(Draws::new(1, 2, row).below(10)).unwrap()] += 1;
        }
        assert!(
            counts.iter().all(|count| (900..1_100).contains(count)),
            "{counts:?}"
        );
        let first = Draws::new(1, 2, 3).next();
        for other in [
            Draws::new(2, 2, 3),
            Draws::new(1, 3, 3),
            Draws::new(1, 2, 4),
        ] {
            assert_ne!(other.clone().next(), first);
        }
    }
}
