//! Dates, times and timestamps as text: ISO 8601, read strictly and written shortest.
//!
//! A timestamp has no zone: one that is read with an offset is converted to UTC. A fraction is written
//! only as far as it is needed, in steps of three digits.

use arrow::datatypes::TimeUnit;

const SECONDS_PER_DAY: i64 = 86_400;
pub(crate) const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// A point in time: seconds since 1970 (UTC) and nanoseconds after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instant {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

impl Instant {
    /// In units since 1970, digits beyond the unit left out. `None`: it does not fit.
    pub(crate) fn to_unit(self, unit: TimeUnit) -> Option<i64> {
        let per_second = units_per_second(unit);
        let fraction = i64::from(self.nanos) / (NANOS_PER_SECOND / per_second);
        // Wide, because the seconds alone of a time before 1970 may not fit where the sum does.
        let total = i128::from(self.seconds) * i128::from(per_second) + i128::from(fraction);
        i64::try_from(total).ok()
    }

    pub(crate) fn from_unit(value: i64, unit: TimeUnit) -> Instant {
        let per_second = units_per_second(unit);
        let fraction = value.rem_euclid(per_second) * (NANOS_PER_SECOND / per_second);
        Instant {
            seconds: value.div_euclid(per_second),
            nanos: u32::try_from(fraction).expect("a fraction is below one second"),
        }
    }
}

pub(crate) fn units_per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => NANOS_PER_SECOND,
    }
}

/// Reads `2024-02-29`, `2024-02-29T12:30`, `2024-02-29 12:30:45.123456`, each with or without `Z` or an
/// offset such as `+02:00`.
pub(crate) fn parse_timestamp(text: &str) -> Option<Instant> {
    let mut reader = Reader(text.as_bytes());
    let days = reader.date()?;
    let (mut second_of_day, mut nanos, mut offset) = (0, 0, 0);
    if !reader.0.is_empty() {
        match reader.byte()? {
            b'T' | b't' | b' ' => {}
            _ => return None,
        }
        (second_of_day, nanos) = reader.time_of_day()?;
        offset = reader.offset()?;
    }
    let seconds = days
        .checked_mul(SECONDS_PER_DAY)?
        .checked_add(second_of_day - offset)?;
    reader.0.is_empty().then_some(Instant { seconds, nanos })
}

/// Reads `2024-02-29` as days since 1970.
pub(crate) fn parse_date(text: &str) -> Option<i32> {
    let mut reader = Reader(text.as_bytes());
    let days = i32::try_from(reader.date()?).ok()?;
    reader.0.is_empty().then_some(days)
}

/// Reads `12:30`, `12:30:45` or `12:30:45.123456789` as nanoseconds since midnight.
pub(crate) fn parse_time(text: &str) -> Option<i64> {
    let mut reader = Reader(text.as_bytes());
    let (seconds, nanos) = reader.time_of_day()?;
    let total = seconds * NANOS_PER_SECOND + i64::from(nanos);
    reader.0.is_empty().then_some(total)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.byte()? == byte).then_some(())
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.0.first() == Some(&byte);
        if found {
            self.0 = &self.0[1..];
        }
        found
    }

    fn two_digits(&mut self, max: i64) -> Option<i64> {
        let (digits, rest) = self.0.split_at_checked(2)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        self.0 = rest;
        let number = i64::from(digits[0] - b'0') * 10 + i64::from(digits[1] - b'0');
        (number <= max).then_some(number)
    }

    /// Days since 1970.
    fn date(&mut self) -> Option<i64> {
        let sign = match self.0.first()? {
            b'+' => Some(1),
            b'-' => Some(-1),
            _ => None,
        };
        if sign.is_some() {
            self.byte();
        }
        let length = self.0.iter().take_while(|b| b.is_ascii_digit()).count();
        // ISO 8601: four digits, or a sign and more. Twelve hold every timestamp there can be.
        let allowed = if sign.is_some() { 4..=12 } else { 4..=4 };
        if !allowed.contains(&length) {
            return None;
        }
        let year: i64 = std::str::from_utf8(&self.0[..length]).ok()?.parse().ok()?;
        let year = year * sign.unwrap_or(1);
        self.0 = &self.0[length..];
        self.expect(b'-')?;
        let month = self.two_digits(12)?;
        self.expect(b'-')?;
        let day = self.two_digits(31)?;
        (month >= 1 && day >= 1 && day <= days_in_month(year, month))
            .then(|| days_from_civil(year, month, day))
    }

    /// Seconds since midnight, and nanoseconds.
    fn time_of_day(&mut self) -> Option<(i64, u32)> {
        let hour = self.two_digits(23)?;
        self.expect(b':')?;
        let minute = self.two_digits(59)?;
        let (mut second, mut nanos) = (0, 0);
        if self.take(b':') {
            second = self.two_digits(59)?;
            if self.take(b'.') || self.take(b',') {
                nanos = self.fraction()?;
            }
        }
        Some((hour * 3_600 + minute * 60 + second, nanos))
    }

    fn fraction(&mut self) -> Option<u32> {
        let length = self.0.iter().take_while(|b| b.is_ascii_digit()).count();
        let mut nanos = 0;
        for i in 0..9 {
            let digit = if i < length { self.0[i] - b'0' } else { 0 };
            nanos = nanos * 10 + u32::from(digit);
        }
        self.0 = &self.0[length..];
        (length > 0).then_some(nanos)
    }

    /// Seconds east of UTC.
    fn offset(&mut self) -> Option<i64> {
        let sign = match self.0.first() {
            None => return Some(0),
            Some(b'Z' | b'z') => {
                self.byte();
                return Some(0);
            }
            Some(b'+') => 1,
            Some(b'-') => -1,
            Some(_) => return None,
        };
        self.byte();
        let hours = self.two_digits(23)?;
        let minutes = if self.0.is_empty() {
            0
        } else {
            self.take(b':');
            self.two_digits(59)?
        };
        Some(sign * (hours * 3_600 + minutes * 60))
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years begin in March, so that the leap day
/// is the last of its year; 400 of them have 146,097 days.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of `days_from_civil`.
fn civil_from_days(days: i64) -> (i64, u8, u8) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let small = |number| u8::try_from(number).expect("months and days are small");
    (year, small(month), small(day))
}

/// Writes `2024-02-29T12:30:45.123`.
pub(crate) fn write_timestamp(out: &mut Vec<u8>, value: i64, unit: TimeUnit) {
    write_instant(out, Instant::from_unit(value, unit));
}

pub(crate) fn write_instant(out: &mut Vec<u8>, Instant { seconds, nanos }: Instant) {
    write_days(out, seconds.div_euclid(SECONDS_PER_DAY));
    out.push(b'T');
    write_time_of_day(out, seconds.rem_euclid(SECONDS_PER_DAY), nanos);
}

/// Writes `2024-02-29`.
pub(crate) fn write_date(out: &mut Vec<u8>, days: i32) {
    write_days(out, i64::from(days));
}

/// Writes nanoseconds since midnight as `12:30:45.123`.
pub(crate) fn write_time(out: &mut Vec<u8>, nanos_of_day: i64) {
    let Instant { seconds, nanos } = Instant::from_unit(nanos_of_day, TimeUnit::Nanosecond);
    write_time_of_day(out, seconds, nanos);
}

fn write_days(out: &mut Vec<u8>, days: i64) {
    let (year, month, day) = civil_from_days(days);
    match u32::try_from(year) {
        Ok(year) if year <= 9_999 => write_digits(out, year, 4),
        _ => {
            out.push(if year < 0 { b'-' } else { b'+' });
            let digits = format!("{:04}", year.unsigned_abs());
            out.extend_from_slice(digits.as_bytes());
        }
    }
    out.push(b'-');
    write_digits(out, u32::from(month), 2);
    out.push(b'-');
    write_digits(out, u32::from(day), 2);
}

fn write_time_of_day(out: &mut Vec<u8>, second_of_day: i64, nanos: u32) {
    let second_of_day = u32::try_from(second_of_day).expect("a day has 86,400 seconds");
    write_digits(out, second_of_day / 3_600, 2);
    out.push(b':');
    write_digits(out, second_of_day / 60 % 60, 2);
    out.push(b':');
    write_digits(out, second_of_day % 60, 2);
    if nanos == 0 {
        return;
    }
    out.push(b'.');
    if nanos.is_multiple_of(1_000_000) {
        write_digits(out, nanos / 1_000_000, 3);
    } else if nanos.is_multiple_of(1_000) {
        write_digits(out, nanos / 1_000, 6);
    } else {
        write_digits(out, nanos, 9);
    }
}

/// Writes a number with leading zeros up to this width, which it does not exceed.
fn write_digits(out: &mut Vec<u8>, number: u32, width: usize) {
    let mut digits = [b'0'; 10];
    let mut left = number;
    for digit in digits[..width].iter_mut().rev() {
        *digit = b'0' + u8::try_from(left % 10).expect("a digit is below 10");
        left /= 10;
    }
    out.extend_from_slice(&digits[..width]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(text: &str) -> Option<i64> {
        parse_timestamp(text)?.to_unit(TimeUnit::Millisecond)
    }

    #[test]
    fn timestamps_are_read_as_iso_8601_allows_and_no_further() {
        for (text, expected) in [
            ("1970-01-01", Some(0)),
            ("2023-11-14T22:13:20.123Z", Some(1_700_000_000_123)),
            ("2023-11-14 22:13:20,123", Some(1_700_000_000_123)),
            ("2023-11-15T00:13:20.123456+02:00", Some(1_700_000_000_123)),
            ("2023-11-14T17:13:20-0500", Some(1_700_000_000_000)),
            ("2023-11-15T00:13+02", Some(1_699_999_980_000)),
            ("1969-12-31T23:59:59.999", Some(-1)),
            ("2024-02-29T00:00:00", Some(1_709_164_800_000)),
            ("2023-02-29T00:00:00", None),
            ("2023-13-01", None),
            ("2023-00-10", None),
            ("2023-11-14T24:00:00", None),
            ("2023-11-14T22:60:00", None),
            ("2023-11-14T22:13:20.", None),
            ("2023-11-14T22:13:20.5ZZ", None),
            ("2023-11-14T22", None),
            ("23-11-14", None),
            ("", None),
            ("now", None),
        ] {
            assert_eq!(millis(text), expected, "{text}");
        }
    }

    #[test]
    fn a_fraction_is_written_only_as_far_as_needed() {
        for (nanos, expected) in [
            (0, "1970-01-01T00:00:00"),
            (500_000_000, "1970-01-01T00:00:00.500"),
            (1_000, "1970-01-01T00:00:00.000001"),
            (1, "1970-01-01T00:00:00.000000001"),
            (-1, "1969-12-31T23:59:59.999999999"),
        ] {
            let mut out = Vec::new();
            write_timestamp(&mut out, nanos, TimeUnit::Nanosecond);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    proptest! {
        #[test]
        fn every_timestamp_reads_back_as_it_is_written(value: i64, unit in 0..3_usize) {
            let unit = [TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond][unit];
            let mut out = Vec::new();
            write_timestamp(&mut out, value, unit);
            let text = String::from_utf8(out).unwrap();
            prop_assert_eq!(parse_timestamp(&text).and_then(|i| i.to_unit(unit)), Some(value), "{}", text);
        }

        #[test]
        fn the_calendar_agrees_with_another_one(value in -200_000_000_000_000_i64..200_000_000_000_000) {
            let mut out = Vec::new();
            write_timestamp(&mut out, value, TimeUnit::Millisecond);
            let reference = chrono::DateTime::from_timestamp_millis(value).unwrap();
            let reference = reference.format("%Y-%m-%dT%H:%M:%S%.f").to_string();
            let ours = String::from_utf8(out).unwrap();
            prop_assert_eq!(ours, reference);
        }
    }
}
