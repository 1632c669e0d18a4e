//! Rows read back as they were; bytes that are no rows are refused.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Decimal128Array, Float64Array, Int64Array,
    LargeStringArray, ListArray, NullArray, StringArray, StringViewArray, StructArray,
    TimestampMillisecondArray, UInt8Array, UInt64Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Field, Fields};
use proptest::prelude::*;

use super::row_codec::{EncodedRows, RowCodec};

fn codec(columns: &[ArrayRef]) -> RowCodec {
    let types = columns
        .iter()
        .map(|column| column.data_type().clone())
        .collect();
    RowCodec::new(types).unwrap()
}

fn encode(columns: &[ArrayRef]) -> EncodedRows {
    let mut rows = EncodedRows::default();
    codec(columns)
        .encode(columns, columns[0].len(), &mut rows)
        .unwrap();
    rows
}

fn decode(columns: &[ArrayRef], rows: &EncodedRows) -> Vec<ArrayRef> {
    codec(columns)
        .decode((0..rows.len()).map(|row| rows.row(row)))
        .unwrap()
}

fn array(array: impl Array + 'static) -> ArrayRef {
    Arc::new(array)
}

fn list(items: ArrayRef, lengths: [usize; ROWS], valid: [bool; ROWS]) -> ArrayRef {
    let field = Arc::new(Field::new("item", items.data_type().clone(), true));
    // Nulls have no items, as where they come from; Arrow would allow some.
    let lengths = lengths
        .into_iter()
        .zip(valid)
        .map(|(length, valid)| if valid { length } else { 0 });
    let offsets = OffsetBuffer::from_lengths(lengths);
    let used = *offsets.last().unwrap() as usize;
    let nulls = Some(NullBuffer::from(valid.to_vec()));
    array(ListArray::new(field, offsets, items.slice(0, used), nulls))
}

const ROWS: usize = 4;

fn flat(rows: usize) -> BoxedStrategy<ArrayRef> {
    fn values<V: std::fmt::Debug + Clone + 'static>(
        value: impl Strategy<Value = V> + 'static,
        rows: usize,
    ) -> BoxedStrategy<Vec<Option<V>>> {
        prop::collection::vec(prop::option::weighted(0.8, value), rows).boxed()
    }
    prop_oneof![
        values(any::<bool>(), rows).prop_map(|v| array(BooleanArray::from(v))),
        values(any::<u8>(), rows).prop_map(|v| array(UInt8Array::from(v))),
        values(any::<i64>(), rows).prop_map(|v| array(Int64Array::from(v))),
        values(any::<u64>(), rows).prop_map(|v| array(UInt64Array::from(v))),
        values(any::<f64>(), rows).prop_map(|v| array(Float64Array::from(v))),
        values(any::<i128>(), rows).prop_map(|v| array(
            Decimal128Array::from(v)
                .with_precision_and_scale(30, 6)
                .unwrap()
        )),
        values(any::<i64>(), rows).prop_map(|v| array(TimestampMillisecondArray::from(v))),
        values(".{0,5}", rows).prop_map(|v| array(StringArray::from(v))),
        values(".{0,20}", rows).prop_map(|v| array(StringViewArray::from(v))),
        values(".{0,5}", rows).prop_map(|v| array(LargeStringArray::from(v))),
        values(prop::collection::vec(any::<u8>(), 0..4), rows)
            .prop_map(|v| array(BinaryArray::from_iter(v))),
        Just(array(NullArray::new(rows))),
    ]
    .boxed()
}

fn column() -> impl Strategy<Value = ArrayRef> {
    let lists = (
        flat(ROWS * 3),
        any::<[bool; ROWS]>(),
        prop::array::uniform4(0_usize..4),
    )
        .prop_map(|(items, valid, lengths)| list(items, lengths, valid));
    let structs = (flat(ROWS), flat(ROWS), any::<[bool; ROWS]>()).prop_map(|(a, b, valid)| {
        let fields = Fields::from(vec![
            Field::new("a", a.data_type().clone(), true),
            Field::new("b", b.data_type().clone(), true),
        ]);
        array(StructArray::new(
            fields,
            vec![a, b],
            Some(NullBuffer::from(valid.to_vec())),
        ))
    });
    prop_oneof![3 => flat(ROWS), 2 => lists, 1 => structs]
}

/// Whether two arrays hold the same values, whatever lies under their nulls.
fn same(a: &ArrayRef, b: &ArrayRef) -> bool {
    a.data_type() == b.data_type() && a == b
}

proptest! {
    #[test]
    fn rows_read_back_as_they_were(columns in prop::collection::vec(column(), 1..4)) {
        let decoded = decode(&columns, &encode(&columns));
        for (decoded, column) in decoded.iter().zip(&columns) {
            prop_assert!(same(decoded, column), "{:?} is not {:?}", decoded, column);
        }
    }

    #[test]
    fn a_slice_is_encoded_as_the_rows_it_shows(columns in prop::collection::vec(column(), 1..3), start in 0..ROWS) {
        let whole = encode(&columns);
        let slices: Vec<ArrayRef> = columns.iter().map(|c| c.slice(start, ROWS - start)).collect();
        let part = encode(&slices);
        for row in start..ROWS {
            prop_assert_eq!(part.row(row - start), whole.row(row));
        }
    }

    #[test]
    fn cut_or_changed_rows_never_panic(
        columns in prop::collection::vec(column(), 1..3), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut row = encode(&columns).row(0).to_vec();
        let at = at.index(row.len());
        prop_assert!(codec(&columns).decode([&row[..at]]).is_err(), "a row's beginning was taken for a row");
        row[at] = byte;
        if let Ok(decoded) = codec(&columns).decode([row.as_slice()]) {
            prop_assert_eq!(decoded[0].len(), 1);
        }
    }
}

#[test]
fn the_bytes_are_pinned() {
    let items = array(Int64Array::from(vec![Some(7), None]));
    let field = Arc::new(Field::new("item", DataType::Int64, true));
    let columns = [
        array(UInt64Array::from(vec![258])),
        array(StringArray::from(vec!["hi"])),
        array(ListArray::new(
            field,
            OffsetBuffer::from_lengths([2]),
            items,
            None,
        )),
        array(BooleanArray::from(vec![None])),
    ];
    let expected: &[u8] = &[
        1, 2, 1, 0, 0, 0, 0, 0, 0, // 258
        1, 2, 0, 0, 0, b'h', b'i', // "hi"
        1, 2, 0, 0, 0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, // [7, null]
        0, // null
    ];
    assert_eq!(encode(&columns).row(0), expected);
}

#[test]
fn rows_that_were_put_together_decode_together() {
    let column = array(Int64Array::from(vec![1, 2, 3]));
    let rows = encode(&[Arc::clone(&column)]);
    let mut twice = EncodedRows::default();
    for row in [0, 1, 2, 0, 1, 2] {
        twice.push(rows.row(row));
    }
    let decoded = decode(&[Arc::clone(&column)], &twice);
    let expected = concat(&[column.as_ref(), column.as_ref()]).unwrap();
    assert_eq!(decoded[0].as_ref(), expected.as_ref());
    assert_eq!(
        decoded[0]
            .as_primitive::<arrow::datatypes::Int64Type>()
            .len(),
        6
    );
}

#[test]
fn a_type_without_a_layout_is_refused() {
    let map = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
    assert!(RowCodec::new(vec![map]).is_err());
}
