//! Keys as bytes that sort as the keys do (pure).
//!
//! Key groups, sharding of tasks and state on disk depend on these bytes, so they are pinned: version 1
//! never changes. A key is its columns one after the other, each a byte that says whether it is null (0)
//! or not (1), and then:
//!
//! ```text
//! BOOLEAN                         1 byte, 0 or 1
//! integers, DATE, TIME, TIMESTAMP big endian, the sign bit flipped if there is one
//! DECIMAL                         16 bytes like an integer
//! FLOAT, DOUBLE                   big endian, all bits flipped if negative, else the sign bit;
//!                                 -0.0 is 0.0 and every NaN is the same, greater than infinity
//! VARCHAR, JSON, BYTES            0x00 as 0x01 0x01 and 0x01 as 0x01 0x02, then 0x00
//! ```
//!
//! A null sorts before every value. No key is the beginning of another of the same columns.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryBuilder, BooleanBuilder, NullArray,
    PrimitiveBuilder, StringBuilder,
};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use common::key_group::hash_key;

use super::ordered::Ordered;

const NULL: u8 = 0;
const PRESENT: u8 = 1;
/// Ends text and bytes, in which it does not occur otherwise.
const END: u8 = 0;
/// Stands before a byte that was `END` or this one, and is now one greater.
const ESCAPE: u8 = 1;

/// Encodes and decodes the keys of one list of columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyCodec {
    types: Vec<DataType>,
}

/// Keys of a batch, one after the other in one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedKeys {
    bytes: Vec<u8>,
    /// Where each key starts, and where the last one ends.
    bounds: Vec<usize>,
}

/// A column of this type cannot be part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a column of type {0} cannot be part of a key")]
pub struct UnsupportedKey(pub DataType);

/// Bytes that are no key of these columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not a key of these columns")]
pub struct CorruptKey;

impl KeyCodec {
    pub fn new(types: Vec<DataType>) -> Result<KeyCodec, UnsupportedKey> {
        match types.iter().find(|kind| !can_be_key(kind)) {
            Some(other) => Err(UnsupportedKey(other.clone())),
            None => Ok(KeyCodec { types }),
        }
    }

    pub fn types(&self) -> &[DataType] {
        &self.types
    }

    /// Replaces what `keys` holds by the keys of `rows` rows.
    pub fn encode(&self, columns: &[ArrayRef], rows: usize, keys: &mut EncodedKeys) {
        assert_eq!(columns.len(), self.types.len(), "one array per key column");
        for (column, kind) in columns.iter().zip(&self.types) {
            assert_eq!(column.data_type(), kind, "a key column has its own type");
            assert_eq!(column.len(), rows, "a key column has a value per row");
        }
        // One pass per column measures, one writes: no row is looked at through its type.
        keys.bounds.clear();
        keys.bounds.resize(rows + 1, 0);
        for column in columns {
            measure(column.as_ref(), &mut keys.bounds[1..]);
        }
        let mut total = 0;
        for bound in &mut keys.bounds[1..] {
            total += *bound;
            *bound = total;
        }
        keys.bytes.clear();
        keys.bytes.resize(total, 0);
        let mut writer = Writer {
            bytes: &mut keys.bytes,
            at: keys.bounds[..rows].to_vec(),
        };
        for column in columns {
            writer.write(column.as_ref());
        }
    }

    /// The columns these keys were made of.
    pub fn decode<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k [u8]>,
    ) -> Result<Vec<ArrayRef>, CorruptKey> {
        let mut rest: Vec<&[u8]> = keys.into_iter().collect();
        let columns = self
            .types
            .iter()
            .map(|kind| read_column(kind, &mut rest))
            .collect::<Result<_, _>>()?;
        match rest.iter().all(|left| left.is_empty()) {
            true => Ok(columns),
            false => Err(CorruptKey),
        }
    }
}

impl EncodedKeys {
    pub fn len(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn key(&self, row: usize) -> &[u8] {
        &self.bytes[self.bounds[row]..self.bounds[row + 1]]
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.bounds
            .windows(2)
            .map(|bounds| &self.bytes[bounds[0]..bounds[1]])
    }

    /// Adds a key that was encoded before.
    pub fn push(&mut self, key: &[u8]) {
        if self.bounds.is_empty() {
            self.bounds.push(0);
        }
        self.bytes.extend_from_slice(key);
        self.bounds.push(self.bytes.len());
    }

    /// Bytes of memory they take.
    pub fn footprint(&self) -> usize {
        self.bytes.capacity() + self.bounds.capacity() * size_of::<usize>()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bounds.clear();
    }

    /// Replaces what `hashes` holds by the hash of every key, the one key groups are made of.
    pub fn hash_each(&self, hashes: &mut Vec<u64>) {
        hashes.clear();
        hashes.extend(self.iter().map(hash_key));
    }
}

/// The key that is one BIGINT column: what `encode` writes for it.
#[inline]
pub fn bigint_key(value: i64) -> [u8; 9] {
    let mut key = [PRESENT; 9];
    key[1..].copy_from_slice(&value.ordered());
    key
}

/// The key that is one column, which is null.
pub const NULL_KEY: [u8; 1] = [NULL];

/// Whether a column of this type can be part of a key.
pub fn can_be_key(kind: &DataType) -> bool {
    match kind {
        DataType::Null
        | DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float32
        | DataType::Float64
        | DataType::Decimal128(..)
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32
        | DataType::Time64(TimeUnit::Nanosecond) => true,
        DataType::Timestamp(unit, None) => *unit != TimeUnit::Second,
        _ => false,
    }
}

/// Adds to each row's length what this column takes of its key.
fn measure(column: &dyn Array, lengths: &mut [usize]) {
    let width = match column.data_type() {
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            return measure_bytes(column, lengths, |row| values.value(row).as_bytes());
        }
        DataType::Binary => {
            let values = column.as_binary::<i32>();
            return measure_bytes(column, lengths, |row| values.value(row));
        }
        DataType::Null => 0,
        DataType::Boolean => 1,
        fixed => fixed
            .primitive_width()
            .expect("every other key column has a fixed width"),
    };
    for (row, length) in lengths.iter_mut().enumerate() {
        *length += 1 + if column.is_null(row) { 0 } else { width };
    }
}

fn measure_bytes<'a>(column: &dyn Array, lengths: &mut [usize], value: impl Fn(usize) -> &'a [u8]) {
    for (row, length) in lengths.iter_mut().enumerate() {
        *length += 1;
        if column.is_valid(row) {
            let value = value(row);
            let escapes = value.iter().filter(|byte| **byte <= ESCAPE).count();
            *length += value.len() + escapes + 1;
        }
    }
}

struct Writer<'a> {
    bytes: &'a mut [u8],
    /// Where each key goes on.
    at: Vec<usize>,
}

impl Writer<'_> {
    fn write(&mut self, column: &dyn Array) {
        match column.data_type() {
            DataType::Null => {
                for at in &mut self.at {
                    self.bytes[*at] = NULL;
                    *at += 1;
                }
            }
            DataType::Boolean => {
                let values = column.as_boolean();
                self.fixed(column, |row| u8::from(values.value(row)));
            }
            DataType::Int8 => self.primitive::<Int8Type>(column),
            DataType::Int16 => self.primitive::<Int16Type>(column),
            DataType::Int32 => self.primitive::<Int32Type>(column),
            DataType::Int64 => self.primitive::<Int64Type>(column),
            DataType::UInt8 => self.primitive::<UInt8Type>(column),
            DataType::UInt16 => self.primitive::<UInt16Type>(column),
            DataType::UInt32 => self.primitive::<UInt32Type>(column),
            DataType::UInt64 => self.primitive::<UInt64Type>(column),
            DataType::Float32 => self.primitive::<Float32Type>(column),
            DataType::Float64 => self.primitive::<Float64Type>(column),
            DataType::Decimal128(..) => self.primitive::<Decimal128Type>(column),
            DataType::Date32 => self.primitive::<Date32Type>(column),
            DataType::Time64(_) => self.primitive::<Time64NanosecondType>(column),
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                self.primitive::<TimestampMillisecondType>(column);
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                self.primitive::<TimestampMicrosecondType>(column);
            }
            DataType::Timestamp(_, _) => self.primitive::<TimestampNanosecondType>(column),
            DataType::Utf8 => {
                let values = column.as_string::<i32>();
                self.escaped(column, |row| values.value(row).as_bytes());
            }
            DataType::Binary => {
                let values = column.as_binary::<i32>();
                self.escaped(column, |row| values.value(row));
            }
            other => unreachable!("{other} was refused when the codec was made"),
        }
    }

    fn primitive<T: ArrowPrimitiveType<Native: Ordered>>(&mut self, column: &dyn Array) {
        let values = column.as_primitive::<T>().values();
        self.fixed(column, |row| values[row]);
    }

    fn fixed<V: Ordered>(&mut self, column: &dyn Array, value: impl Fn(usize) -> V) {
        for (row, at) in self.at.iter_mut().enumerate() {
            if column.is_null(row) {
                self.bytes[*at] = NULL;
                *at += 1;
                continue;
            }
            let value = value(row).ordered();
            let value = value.as_ref();
            self.bytes[*at] = PRESENT;
            self.bytes[*at + 1..*at + 1 + value.len()].copy_from_slice(value);
            *at += 1 + value.len();
        }
    }

    fn escaped<'a>(&mut self, column: &dyn Array, value: impl Fn(usize) -> &'a [u8]) {
        for (row, at) in self.at.iter_mut().enumerate() {
            if column.is_null(row) {
                self.bytes[*at] = NULL;
                *at += 1;
                continue;
            }
            self.bytes[*at] = PRESENT;
            *at += 1;
            // Runs that need no escape are copied whole; most values are one such run.
            for run in value(row).split_inclusive(|byte| *byte <= ESCAPE) {
                let (plain, escaped) = match run.split_last() {
                    Some((&last, plain)) if last <= ESCAPE => (plain, Some(last)),
                    _ => (run, None),
                };
                self.bytes[*at..*at + plain.len()].copy_from_slice(plain);
                *at += plain.len();
                if let Some(byte) = escaped {
                    self.bytes[*at..*at + 2].copy_from_slice(&[ESCAPE, byte + 1]);
                    *at += 2;
                }
            }
            self.bytes[*at] = END;
            *at += 1;
        }
    }
}

/// Takes one column off the front of every key.
fn read_column(kind: &DataType, keys: &mut [&[u8]]) -> Result<ArrayRef, CorruptKey> {
    Ok(match kind {
        DataType::Null => {
            for key in keys.iter_mut() {
                if read_presence(key)? {
                    return Err(CorruptKey);
                }
            }
            Arc::new(NullArray::new(keys.len()))
        }
        DataType::Boolean => {
            let mut values = BooleanBuilder::with_capacity(keys.len());
            for key in keys {
                values.append_option(read_fixed::<u8>(key)?.map(|value| value != 0));
            }
            Arc::new(values.finish())
        }
        DataType::Int8 => read_primitive::<Int8Type>(kind, keys)?,
        DataType::Int16 => read_primitive::<Int16Type>(kind, keys)?,
        DataType::Int32 => read_primitive::<Int32Type>(kind, keys)?,
        DataType::Int64 => read_primitive::<Int64Type>(kind, keys)?,
        DataType::UInt8 => read_primitive::<UInt8Type>(kind, keys)?,
        DataType::UInt16 => read_primitive::<UInt16Type>(kind, keys)?,
        DataType::UInt32 => read_primitive::<UInt32Type>(kind, keys)?,
        DataType::UInt64 => read_primitive::<UInt64Type>(kind, keys)?,
        DataType::Float32 => read_primitive::<Float32Type>(kind, keys)?,
        DataType::Float64 => read_primitive::<Float64Type>(kind, keys)?,
        DataType::Decimal128(..) => read_primitive::<Decimal128Type>(kind, keys)?,
        DataType::Date32 => read_primitive::<Date32Type>(kind, keys)?,
        DataType::Time64(_) => read_primitive::<Time64NanosecondType>(kind, keys)?,
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            read_primitive::<TimestampMillisecondType>(kind, keys)?
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            read_primitive::<TimestampMicrosecondType>(kind, keys)?
        }
        DataType::Timestamp(_, _) => read_primitive::<TimestampNanosecondType>(kind, keys)?,
        DataType::Utf8 => {
            let mut values = StringBuilder::new();
            let mut scratch = Vec::new();
            for key in keys {
                match read_escaped(key, &mut scratch)? {
                    true => {
                        values.append_value(std::str::from_utf8(&scratch).map_err(|_| CorruptKey)?);
                    }
                    false => values.append_null(),
                }
            }
            Arc::new(values.finish())
        }
        DataType::Binary => {
            let mut values = BinaryBuilder::new();
            let mut scratch = Vec::new();
            for key in keys {
                match read_escaped(key, &mut scratch)? {
                    true => values.append_value(&scratch),
                    false => values.append_null(),
                }
            }
            Arc::new(values.finish())
        }
        other => unreachable!("{other} was refused when the codec was made"),
    })
}

fn read_primitive<T: ArrowPrimitiveType<Native: Ordered>>(
    kind: &DataType,
    keys: &mut [&[u8]],
) -> Result<ArrayRef, CorruptKey> {
    let mut values = PrimitiveBuilder::<T>::with_capacity(keys.len());
    for key in keys {
        values.append_option(read_fixed::<T::Native>(key)?);
    }
    // The builder knows neither a decimal's precision nor a timestamp's unit beyond its Rust type.
    Ok(Arc::new(values.finish().with_data_type(kind.clone())))
}

fn read_presence(key: &mut &[u8]) -> Result<bool, CorruptKey> {
    let (presence, rest) = key.split_first().ok_or(CorruptKey)?;
    *key = rest;
    match *presence {
        NULL => Ok(false),
        PRESENT => Ok(true),
        _ => Err(CorruptKey),
    }
}

fn read_fixed<V: Ordered>(key: &mut &[u8]) -> Result<Option<V>, CorruptKey> {
    if !read_presence(key)? {
        return Ok(None);
    }
    let width = size_of::<V::Bytes>();
    let (value, rest) = key.split_at_checked(width).ok_or(CorruptKey)?;
    *key = rest;
    let value = V::Bytes::try_from(value).map_err(|_| CorruptKey)?;
    Ok(Some(V::from_ordered(value)))
}

/// Puts the value into `scratch`; false if it is null.
fn read_escaped(key: &mut &[u8], scratch: &mut Vec<u8>) -> Result<bool, CorruptKey> {
    scratch.clear();
    if !read_presence(key)? {
        return Ok(false);
    }
    let end = key.iter().position(|byte| *byte == END).ok_or(CorruptKey)?;
    let mut value = key[..end].iter();
    *key = &key[end + 1..];
    while let Some(&byte) = value.next() {
        match byte {
            ESCAPE => match value.next() {
                Some(&escaped @ 1..=2) => scratch.push(escaped - 1),
                _ => return Err(CorruptKey),
            },
            plain => scratch.push(plain),
        }
    }
    Ok(true)
}
