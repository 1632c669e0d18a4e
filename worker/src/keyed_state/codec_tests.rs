//! Keys read back as they were, and their bytes sort as they do.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array,
    Float64Array, Int8Array, Int16Array, Int32Array, Int64Array, NullArray, StringArray,
    Time64NanosecondArray, TimestampMicrosecondArray, TimestampMillisecondArray,
    TimestampNanosecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array, make_comparator,
};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, TimeUnit};
use common::key_group::hash_key;
use proptest::prelude::*;

use super::codec::{EncodedKeys, KeyCodec, NULL_KEY, bigint_key};

fn encode(columns: &[ArrayRef]) -> (KeyCodec, EncodedKeys) {
    let types = columns
        .iter()
        .map(|column| column.data_type().clone())
        .collect();
    let codec = KeyCodec::new(types).unwrap();
    let mut keys = EncodedKeys::default();
    codec.encode(columns, columns[0].len(), &mut keys);
    (codec, keys)
}

fn nullable<V: std::fmt::Debug + Clone>(
    value: impl Strategy<Value = V> + 'static,
) -> impl Strategy<Value = Vec<Option<V>>> {
    let value = value.boxed();
    prop::collection::vec(prop::option::weighted(0.8, value), ROWS)
}

const ROWS: usize = 6;

/// A column of any key type, with values that are often equal or nearly so.
fn column() -> impl Strategy<Value = ArrayRef> {
    fn array(array: impl Array + 'static) -> ArrayRef {
        Arc::new(array)
    }
    let wide = || {
        prop_oneof![
            Just(i64::MIN),
            Just(-1),
            Just(0),
            Just(1),
            Just(i64::MAX),
            any::<i64>()
        ]
    };
    let bytes = || {
        prop::collection::vec(
            prop_oneof![Just(0_u8), Just(1), Just(255), any::<u8>()],
            0..5,
        )
    };
    prop_oneof![
        nullable(any::<bool>()).prop_map(|v| array(BooleanArray::from(v))),
        nullable(any::<i8>()).prop_map(|v| array(Int8Array::from(v))),
        nullable(any::<i16>()).prop_map(|v| array(Int16Array::from(v))),
        nullable(any::<i32>()).prop_map(|v| array(Int32Array::from(v))),
        nullable(wide()).prop_map(|v| array(Int64Array::from(v))),
        nullable(any::<u8>()).prop_map(|v| array(UInt8Array::from(v))),
        nullable(any::<u16>()).prop_map(|v| array(UInt16Array::from(v))),
        nullable(any::<u32>()).prop_map(|v| array(UInt32Array::from(v))),
        nullable(any::<u64>()).prop_map(|v| array(UInt64Array::from(v))),
        nullable(one_of_equal_singles()).prop_map(|v| array(Float32Array::from(v))),
        nullable(one_of_equal_floats()).prop_map(|v| array(Float64Array::from(v))),
        nullable(any::<i128>()).prop_map(|v| array(
            Decimal128Array::from(v)
                .with_precision_and_scale(38, 4)
                .unwrap()
        )),
        nullable("[a-b\0\u{1}\u{2}é]{0,4}").prop_map(|v| array(StringArray::from(v))),
        nullable(bytes()).prop_map(|v| array(BinaryArray::from_iter(v))),
        nullable(any::<i32>()).prop_map(|v| array(Date32Array::from(v))),
        nullable(wide()).prop_map(|v| array(Time64NanosecondArray::from(v))),
        nullable(wide()).prop_map(|v| array(TimestampMillisecondArray::from(v))),
        nullable(wide()).prop_map(|v| array(TimestampMicrosecondArray::from(v))),
        nullable(wide()).prop_map(|v| array(TimestampNanosecondArray::from(v))),
        Just(array(NullArray::new(ROWS))),
    ]
}

/// Floats of which no two are equal but differ in their bits.
fn one_of_equal_floats() -> impl Strategy<Value = f64> {
    let special = prop_oneof![
        Just(0.0),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(f64::NAN.abs())
    ];
    prop_oneof![
        special,
        any::<f64>().prop_filter("one of equals", |f| !f.is_nan() && *f != 0.0)
    ]
}

fn one_of_equal_singles() -> impl Strategy<Value = f32> {
    let special = prop_oneof![
        Just(0.0),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY),
        Just(f32::NAN.abs())
    ];
    prop_oneof![
        special,
        any::<f32>().prop_filter("one of equals", |f| !f.is_nan() && *f != 0.0)
    ]
}

proptest! {
    #[test]
    fn keys_read_back_as_they_were(columns in prop::collection::vec(column(), 1..4)) {
        let (codec, keys) = encode(&columns);
        let decoded = codec.decode(keys.iter()).unwrap();
        prop_assert_eq!(decoded, columns);
    }

    #[test]
    fn keys_sort_as_their_values_do_with_nulls_first(columns in prop::collection::vec(column(), 1..4)) {
        let (_, keys) = encode(&columns);
        let options = SortOptions { descending: false, nulls_first: true };
        let comparators: Vec<_> = columns
            .iter()
            .map(|column| make_comparator(column, column, options).unwrap())
            .collect();
        for a in 0..ROWS {
            for b in 0..ROWS {
                let by_value = comparators
                    .iter()
                    .map(|compare| compare(a, b))
                    .find(|ordering| ordering.is_ne())
                    .unwrap_or(Ordering::Equal);
                prop_assert_eq!(keys.key(a).cmp(keys.key(b)), by_value);
            }
        }
    }

    #[test]
    fn cut_or_changed_bytes_never_panic(
        columns in prop::collection::vec(column(), 1..3), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let (codec, keys) = encode(&columns);
        let mut key = keys.key(0).to_vec();
        let at = at.index(key.len());
        let cut = codec.decode([&key[..at]]);
        prop_assert!(cut.is_err(), "a key's beginning was taken for a key");
        key[at] = byte;
        if let Ok(decoded) = codec.decode([key.as_slice()]) {
            prop_assert_eq!(decoded[0].len(), 1);
        }
    }
}

#[test]
fn equal_numbers_are_one_key_whatever_their_bits() {
    let other_nan = f64::from_bits(f64::NAN.to_bits() | 1 | (1 << 63));
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![0.0, -0.0, f64::NAN, other_nan]));
    let (_, keys) = encode(&[floats]);
    assert_eq!(keys.key(0), keys.key(1));
    assert_eq!(keys.key(2), keys.key(3));
    assert_ne!(keys.key(0), keys.key(2));
}

#[test]
fn the_bytes_are_pinned() {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![Some(-2), None])),
        Arc::new(StringArray::from(vec!["a\0b", ""])),
        Arc::new(Float64Array::from(vec![-1.5, 1.5])),
    ];
    let (_, keys) = encode(&columns);
    let first: &[u8] = &[
        1, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, //
        1, b'a', 1, 1, b'b', 0, //
        1, 0x40, 0x07, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    let second: &[u8] = &[0, 1, 0, 1, 0xbf, 0xf8, 0, 0, 0, 0, 0, 0];
    assert_eq!(keys.iter().collect::<Vec<_>>(), [first, second]);
}

#[test]
fn the_short_way_for_one_bigint_is_the_same_key_and_hash() {
    let values = [i64::MIN, -1, 0, 42, i64::MAX];
    let column: ArrayRef = Arc::new(Int64Array::from_iter(
        values.into_iter().map(Some).chain([None]),
    ));
    let (_, keys) = encode(&[column]);
    let mut hashes = Vec::new();
    keys.hash_each(&mut hashes);
    for (row, value) in values.into_iter().enumerate() {
        assert_eq!(keys.key(row), bigint_key(value));
        assert_eq!(hashes[row], hash_key(&bigint_key(value)));
    }
    assert_eq!(keys.key(values.len()), NULL_KEY);
}

#[test]
fn no_columns_are_the_one_empty_key() {
    let codec = KeyCodec::new(Vec::new()).unwrap();
    let mut keys = EncodedKeys::default();
    codec.encode(&[], 3, &mut keys);
    assert_eq!(keys.iter().collect::<Vec<_>>(), [&[] as &[u8]; 3]);
    assert_eq!(codec.decode(keys.iter()), Ok(Vec::new()));
}

#[test]
fn nested_columns_are_refused_by_name() {
    let list = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
    let seconds = DataType::Timestamp(TimeUnit::Second, None);
    for kind in [list, seconds] {
        let refused = KeyCodec::new(vec![DataType::Int64, kind.clone()]).unwrap_err();
        assert_eq!(refused.0, kind);
    }
}
