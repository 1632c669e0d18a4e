//! A value of any format, and the rules by which it becomes one of a column's type.
//!
//! Every format hands its values over as a `Value`; the rules are the same for all.

use std::borrow::Cow;

use arrow::datatypes::TimeUnit;

use super::instant::{self, Instant};
use super::number;

/// A value of some format, on its way into a column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    /// Digits as JSON writes them.
    Number(&'a str),
    Integer(i128),
    Float(f64),
    Text(Cow<'a, str>),
    Bytes(&'a [u8]),
    Instant(Instant),
    /// A MessagePack extension of this type, which no column holds.
    Extension(i8),
    /// A whole array or object, checked for its form.
    JsonArray(&'a str),
    JsonObject(&'a str),
    MsgpackArray(&'a [u8]),
    MsgpackMap(&'a [u8]),
}

/// Why a value does not fit its column, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misfit(pub(crate) String);

impl Value<'_> {
    /// `from_text`: a string of digits is one, too.
    #[inline]
    pub(super) fn to_integer<T: TryFrom<i128> + TryFrom<i64>>(&self, from_text: bool) -> Option<T> {
        let wide = match self {
            Value::Number(text) => match number::small_integer(text) {
                Some(small) => return T::try_from(small).ok(),
                None => number::integer(text),
            },
            Value::Integer(integer) => Some(*integer),
            Value::Float(float) => whole(*float),
            Value::Text(text) if from_text => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                plain.then(|| text.parse().ok()).flatten()
            }
            _ => None,
        };
        wide.and_then(|wide| T::try_from(wide).ok())
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a double is rounded to the nearest float; one that is too large for it is refused"
    )]
    pub(super) fn to_float32(&self) -> Option<f32> {
        match self {
            Value::Number(text) => text.parse().ok().filter(|float: &f32| float.is_finite()),
            Value::Float(float) => {
                let narrow = *float as f32;
                (narrow.is_finite() || !float.is_finite()).then_some(narrow)
            }
            #[expect(clippy::cast_precision_loss, reason = "the nearest float is meant")]
            Value::Integer(integer) => Some(*integer as f32),
            _ => None,
        }
    }

    pub(super) fn to_float64(&self) -> Option<f64> {
        match self {
            Value::Number(text) => text.parse().ok().filter(|float: &f64| float.is_finite()),
            Value::Float(float) => Some(*float),
            #[expect(clippy::cast_precision_loss, reason = "the nearest double is meant")]
            Value::Integer(integer) => Some(*integer as f64),
            _ => None,
        }
    }

    pub(super) fn to_decimal(&self, precision: u8, scale: i8) -> Option<i128> {
        let scaled = match self {
            Value::Number(text) => number::scaled(text, scale),
            Value::Text(text) if number::is_number(text) => number::scaled(text, scale),
            Value::Integer(integer) => number::scaled(&integer.to_string(), scale),
            // The shortest decimal that is this double: what its writer meant.
            Value::Float(float) if float.is_finite() => number::scaled(&float.to_string(), scale),
            _ => None,
        };
        let limit = 10_i128.pow(u32::from(precision));
        scaled
            .map(|scaled| scaled.value)
            .filter(|value| -limit < *value && *value < limit)
    }

    pub(super) fn to_date(&self) -> Option<i32> {
        match self {
            Value::Text(text) => instant::parse_date(text),
            _ => None,
        }
    }

    pub(super) fn to_time(&self) -> Option<i64> {
        match self {
            Value::Text(text) => instant::parse_time(text),
            _ => None,
        }
    }

    /// A text is ISO 8601, a number is milliseconds since 1970.
    pub(super) fn to_timestamp(&self, unit: TimeUnit) -> Option<i64> {
        let per_millisecond = instant::units_per_second(unit) / 1_000;
        let from_millis = |millis: i64| millis.checked_mul(per_millisecond);
        match self {
            Value::Text(text) => instant::parse_timestamp(text)?.to_unit(unit),
            Value::Number(text) => from_millis(i64::try_from(number::integer(text)?).ok()?),
            Value::Integer(integer) => from_millis(i64::try_from(*integer).ok()?),
            Value::Instant(instant) => instant.to_unit(unit),
            _ => None,
        }
    }

    /// In words a user understands.
    pub(super) fn described(&self) -> String {
        match self {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(text) => format!("the number {}", shortened(text)),
            Value::Integer(integer) => format!("the number {integer}"),
            Value::Float(float) => format!("the number {float}"),
            Value::Text(text) => format!("the string \"{}\"", shortened(text)),
            Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Value::Instant(_) => "a timestamp".to_owned(),
            Value::Extension(number) => format!("an extension of type {number}"),
            Value::JsonArray(_) | Value::MsgpackArray(_) => "an array".to_owned(),
            Value::JsonObject(_) | Value::MsgpackMap(_) => "an object".to_owned(),
        }
    }
}

/// The integer that a double is, if it is one.
fn whole(float: f64) -> Option<i128> {
    const LIMIT: f64 = 1e18;
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
    (float.fract() == 0.0 && float.abs() < LIMIT).then_some(float as i128)
}

/// Enough of a text to recognise it.
fn shortened(text: &str) -> Cow<'_, str> {
    const ENOUGH: usize = 64;
    match text.char_indices().nth(ENOUGH) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}
