//! Time: `Timestamp` for what people and records mean by it, `Tick` for timers, `Span` for lengths.
//!
//! No wall clock of one node is ever compared with another's, and no decision is made on a wall clock:
//! machines are handed a `Tick`. Only this file reads the operating system's clocks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, OneOf, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// Milliseconds since 1970-01-01T00:00:00Z: event time, and what records carry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// Milliseconds on this process's monotonic clock: what timeouts and sessions are measured with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

/// A length of time in milliseconds. Written as `250ms`, `5s`, `10m`, `2h`, `7d`, or a bare number of milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub u64);

/// The only way to the time. A node is given one when it is built; tests and the simulator give their own.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock: for record timestamps, for people, and for what goes by its age; never for other decisions.
    fn wall(&self) -> Timestamp;
    /// The monotonic clock.
    fn tick(&self) -> Tick;
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

/// A clock that moves when it is told to.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall: AtomicI64,
    tick: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a length of time; write for example 500ms, 5s, 10m, 2h or 7d")]
pub struct SpanError {
    pub text: String,
}

/// The text is no point in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not a time; write milliseconds since 1970, or for example 2026-01-31T12:00:00Z"
)]
pub struct TimestampError {
    pub text: String,
}

impl Timestamp {
    /// Before every event: the watermark of a source that has said nothing.
    pub const MIN: Timestamp = Timestamp(i64::MIN);
    /// After every event: the watermark of a source that has ended.
    pub const MAX: Timestamp = Timestamp(i64::MAX);

    pub fn plus(self, span: Span) -> Timestamp {
        Timestamp(self.0.saturating_add_unsigned(span.0))
    }

    pub fn minus(self, span: Span) -> Timestamp {
        Timestamp(self.0.saturating_sub_unsigned(span.0))
    }
}

impl Tick {
    pub fn plus(self, span: Span) -> Tick {
        Tick(self.0.saturating_add(span.0))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Tick) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Span {
    pub const fn from_secs(seconds: u64) -> Span {
        Span(seconds * 1000)
    }

    pub const fn from_millis(milliseconds: u64) -> Span {
        Span(milliseconds)
    }

    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the clock the others are pointed to"
    )]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(SystemClock {
            started: Instant::now(),
        })
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the clock the others are pointed to"
    )]
    fn wall(&self) -> Timestamp {
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("the wall clock is past 1970");
        Timestamp(i64::try_from(since_1970.as_millis()).expect("the year is before 292 million"))
    }

    fn tick(&self) -> Tick {
        Tick(u64::try_from(self.started.elapsed().as_millis()).expect("uptime fits in 64 bits"))
    }
}

impl ManualClock {
    pub fn at(wall: Timestamp) -> ManualClock {
        ManualClock {
            wall: AtomicI64::new(wall.0),
            tick: AtomicU64::new(0),
        }
    }

    /// Moves both clocks on.
    pub fn advance(&self, span: Span) {
        let milliseconds = i64::try_from(span.0).expect("a test advances by less than an age");
        self.wall.fetch_add(milliseconds, Ordering::Relaxed);
        self.tick.fetch_add(span.0, Ordering::Relaxed);
    }

    /// Somebody sets the wall clock, so many milliseconds ahead or back.
    pub fn set(&self, by_ms: i64) {
        self.wall.fetch_add(by_ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        Timestamp(self.wall.load(Ordering::Relaxed))
    }

    fn tick(&self) -> Tick {
        Tick(self.tick.load(Ordering::Relaxed))
    }
}

impl std::str::FromStr for Timestamp {
    type Err = TimestampError;

    /// Milliseconds since 1970, or ISO 8601; without an offset it is UTC.
    fn from_str(text: &str) -> Result<Timestamp, TimestampError> {
        if let Ok(milliseconds) = text.parse::<i64>() {
            return Ok(Timestamp(milliseconds));
        }
        if let Ok(time) = chrono::DateTime::parse_from_rfc3339(text) {
            return Ok(Timestamp(time.timestamp_millis()));
        }
        for format in [
            "%Y-%m-%dT%H:%M:%S%.f",
            "%Y-%m-%d %H:%M:%S%.f",
            "%Y-%m-%dT%H:%M",
        ] {
            if let Ok(time) = chrono::NaiveDateTime::parse_from_str(text, format) {
                return Ok(Timestamp(time.and_utc().timestamp_millis()));
            }
        }
        let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d");
        match date.ok().and_then(|date| date.and_hms_opt(0, 0, 0)) {
            Some(midnight) => Ok(Timestamp(midnight.and_utc().timestamp_millis())),
            None => Err(TimestampError {
                text: text.to_owned(),
            }),
        }
    }
}

impl std::str::FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Span, SpanError> {
        let error = || SpanError {
            text: text.to_owned(),
        };
        let trimmed = text.trim();
        let digits = trimmed
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(trimmed.len());
        let count: u64 = trimmed[..digits].parse().map_err(|_| error())?;
        let unit_ms = match trimmed[digits..].trim() {
            "" | "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(error()),
        };
        count.checked_mul(unit_ms).map(Span).ok_or_else(error)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            (86_400_000, "d"),
            (3_600_000, "h"),
            (60_000, "m"),
            (1_000, "s"),
        ];
        match units
            .into_iter()
            .find(|(ms, _)| self.0 != 0 && self.0.is_multiple_of(*ms))
        {
            Some((ms, unit)) => write!(f, "{}{unit}", self.0 / ms),
            None => write!(f, "{}ms", self.0),
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match chrono::DateTime::from_timestamp_millis(self.0) {
            Some(time) => write!(f, "{}", time.format("%Y-%m-%dT%H:%M:%S%.3fZ")),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        struct SpanVisitor;

        impl serde::de::Visitor<'_> for SpanVisitor {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length of time such as \"5s\", or a number of milliseconds")
            }

            fn visit_u64<E: serde::de::Error>(self, milliseconds: u64) -> Result<Span, E> {
                Ok(Span(milliseconds))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(SpanVisitor)
    }
}

impl PartialSchema for Span {
    fn schema() -> RefOr<Schema> {
        let text = Object::builder()
            .schema_type(Type::String)
            .pattern(Some("^[0-9]+(ms|s|m|h|d)?$"));
        let milliseconds = Object::builder()
            .schema_type(Type::Integer)
            .minimum(Some(0));
        let one_of = OneOf::builder()
            .item(text.build())
            .item(milliseconds.build());
        let description = "A length of time such as 5s, or a number of milliseconds.";
        Schema::OneOf(one_of.description(Some(description)).build()).into()
    }
}

impl ToSchema for Span {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_back_as_they_were_written() {
        for (text, milliseconds) in [
            ("0ms", 0),
            ("250ms", 250),
            ("5s", 5_000),
            ("90m", 5_400_000),
            ("7d", 604_800_000),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span, Span(milliseconds));
            assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }
        assert_eq!("42".parse::<Span>().unwrap(), Span(42));
        for bad in ["", "s", "5 parsecs", "-1s", "99999999999999999999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn timestamps_print_as_iso_8601() {
        assert_eq!(
            Timestamp(1_700_000_000_123).to_string(),
            "2023-11-14T22:13:20.123Z"
        );
    }
}
