//! Decimal numbers as text, turned into integers exactly.
//!
//! The text follows JSON's grammar; whoever hands it over has checked that.

/// A number at a fixed number of decimal places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scaled {
    /// The number times ten to the power of the places.
    pub(crate) value: i128,
    /// Nothing was rounded away.
    pub(crate) exact: bool,
}

/// The number at `places` decimal places, half rounded away from zero. `None`: it does not fit in 128 bits.
pub(crate) fn scaled(text: &str, places: i8) -> Option<Scaled> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        // Beyond these bounds the result is zero or too large, whatever the digits.
        Some((mantissa, exponent)) => (mantissa, clamped_exponent(exponent)),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || {
        let digits = whole.bytes().chain(fraction.bytes());
        digits.skip_while(|digit| *digit == b'0')
    };
    // The position of the decimal point, counted in digits from the first that is not zero.
    let skipped = (whole.len() + fraction.len()) - digits().count();
    let point = i64::try_from(whole.len()).ok()? - i64::try_from(skipped).ok()?;
    let kept = point + exponent + i64::from(places);
    let mut magnitude: i128 = 0;
    let mut exact = true;
    let mut taken: i64 = 0;
    for digit in digits() {
        let digit = i128::from(digit - b'0');
        if taken < kept {
            magnitude = magnitude.checked_mul(10)?.checked_add(digit)?;
        } else {
            if taken == kept && digit >= 5 {
                magnitude = magnitude.checked_add(1)?;
            }
            exact &= digit == 0;
        }
        taken += 1;
    }
    if magnitude != 0 {
        for _ in taken..kept {
            magnitude = magnitude.checked_mul(10)?;
        }
    }
    Some(Scaled {
        value: if negative { -magnitude } else { magnitude },
        exact,
    })
}

fn clamped_exponent(text: &str) -> i64 {
    const LIMIT: i64 = 1 << 32;
    match text.parse::<i64>() {
        Ok(exponent) => exponent.clamp(-LIMIT, LIMIT),
        Err(_) if text.starts_with('-') => -LIMIT,
        Err(_) => LIMIT,
    }
}

/// The integer this number is, also if it is written `1.0` or `1e3`. `None`: it has a fraction, or does
/// not fit in 128 bits.
#[inline]
pub(crate) fn integer(text: &str) -> Option<i128> {
    if let Some(small) = small_integer(text) {
        return Some(i128::from(small));
    }
    scaled(text, 0)
        .filter(|scaled| scaled.exact)
        .map(|scaled| scaled.value)
}

/// An integer of at most 18 digits: most of those there are.
#[inline]
pub(crate) fn small_integer(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let (negative, digits) = match bytes.first() {
        Some(b'-') => (true, &bytes[1..]),
        _ => (false, bytes),
    };
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let mut value: i64 = 0;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + i64::from(digit);
    }
    Some(if negative { -value } else { value })
}

/// Whether a text is a number as JSON writes them.
pub(crate) fn is_number(text: &str) -> bool {
    let mut scanner = super::json_scan::Scanner::new(text);
    let number = text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    number && scanner.value().is_ok() && scanner.at() == text.len()
}

/// Writes a decimal with its point, as many places as its type has.
pub(crate) fn write_decimal(out: &mut Vec<u8>, value: i128, places: i8) {
    let places = usize::try_from(places).expect("a decimal column has no negative scale");
    let digits = value.unsigned_abs().to_string();
    if value < 0 {
        out.push(b'-');
    }
    let whole = digits.len().saturating_sub(places);
    if whole == 0 {
        out.push(b'0');
    }
    out.extend_from_slice(&digits.as_bytes()[..whole]);
    if places > 0 {
        out.push(b'.');
        out.extend(std::iter::repeat_n(
            b'0',
            places.saturating_sub(digits.len()),
        ));
        out.extend_from_slice(&digits.as_bytes()[whole..]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_become_integers_only_where_nothing_is_lost() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("12", Some(12)),
            ("-12", Some(-12)),
            ("1.0", Some(1)),
            ("1e3", Some(1_000)),
            ("1200e-2", Some(12)),
            ("0.0e999999999999999999999", Some(0)),
            ("9223372036854775808", Some(9_223_372_036_854_775_808)),
            ("1.5", None),
            ("1e-1", None),
            ("1e999999999999999999999", None),
            ("1e40", None),
        ] {
            assert_eq!(integer(text), expected, "{text}");
        }
    }

    #[test]
    fn decimals_round_half_away_from_zero() {
        for (text, value, exact) in [
            ("1.25", 125, true),
            ("1.255", 126, false),
            ("-1.255", -126, false),
            ("1.2549", 125, false),
            ("0.005", 1, false),
            ("0.0049", 0, false),
            ("1e-50", 0, false),
            ("123e-1", 1_230, true),
        ] {
            assert_eq!(scaled(text, 2), Some(Scaled { value, exact }), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_decimal_reads_back_as_it_is_written(value in -(10_i128.pow(38) - 1)..10_i128.pow(38), places in 0..=38_i8) {
            let mut out = Vec::new();
            write_decimal(&mut out, value, places);
            let text = String::from_utf8(out).unwrap();
            prop_assert!(is_number(&text), "{}", text);
            prop_assert_eq!(scaled(&text, places), Some(Scaled { value, exact: true }), "{}", text);
        }

        #[test]
        fn small_integers_agree_with_the_general_way(value: i64) {
            let text = value.to_string();
            prop_assert_eq!(integer(&text), Some(i128::from(value)));
        }
    }
}
