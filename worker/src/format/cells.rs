//! Values of Arrow columns, one by one, as the formats write them.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Decimal128Array, ListArray,
    PrimitiveArray, RecordBatch, StringArray,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use common::schema::{Column, ColumnType};

/// One value.
#[derive(Clone, Debug)]
pub(crate) enum Cell<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f32),
    Double(f64),
    Decimal(i128, i8),
    Text(&'a str),
    Json(&'a str),
    Bytes(&'a [u8]),
    Date(i32),
    Time(i64),
    Timestamp(i64, TimeUnit),
    List(&'a Cells, Range<usize>),
    Row(Row<'a>),
}

/// One row of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    columns: &'a [NamedCells],
    row: usize,
}

/// The columns of a batch.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<NamedCells>,
}

#[derive(Debug)]
pub(crate) struct NamedCells {
    name: Arc<str>,
    cells: Cells,
}

/// A column whose type is known.
#[derive(Debug)]
pub(crate) struct Cells {
    /// All null if the column is of type NULL.
    array: ArrayRef,
    values: Values,
}

/// The array once more, as what it is.
#[derive(Debug)]
enum Values {
    Null,
    Boolean(BooleanArray),
    Int8(PrimitiveArray<Int8Type>),
    Int16(PrimitiveArray<Int16Type>),
    Int32(PrimitiveArray<Int32Type>),
    Int64(PrimitiveArray<Int64Type>),
    UInt8(PrimitiveArray<UInt8Type>),
    UInt16(PrimitiveArray<UInt16Type>),
    UInt32(PrimitiveArray<UInt32Type>),
    UInt64(PrimitiveArray<UInt64Type>),
    Float(PrimitiveArray<Float32Type>),
    Double(PrimitiveArray<Float64Type>),
    Decimal(Decimal128Array, i8),
    Text(StringArray),
    Json(StringArray),
    Bytes(BinaryArray),
    Date(PrimitiveArray<Date32Type>),
    Time(PrimitiveArray<Time64NanosecondType>),
    Milliseconds(PrimitiveArray<TimestampMillisecondType>),
    Microseconds(PrimitiveArray<TimestampMicrosecondType>),
    Nanoseconds(PrimitiveArray<TimestampNanosecondType>),
    List(ListArray, Box<Cells>),
    Row(Table),
}

impl Table {
    /// The batch's columns as what the schema says they are. A column of another type is converted, or
    /// the batch refused.
    pub(crate) fn new(batch: &RecordBatch, columns: &[Column]) -> Result<Table, ArrowError> {
        Table::of_arrays(batch.columns(), columns)
    }

    fn of_arrays(arrays: &[ArrayRef], columns: &[Column]) -> Result<Table, ArrowError> {
        if arrays.len() != columns.len() {
            return Err(ArrowError::SchemaError(format!(
                "{} columns are expected, {} came",
                columns.len(),
                arrays.len()
            )));
        }
        let columns = arrays.iter().zip(columns).map(|(array, column)| {
            Ok(NamedCells {
                name: column.name.as_str().into(),
                cells: Cells::new(array, &column.kind)?,
            })
        });
        Ok(Table {
            columns: columns.collect::<Result<_, ArrowError>>()?,
        })
    }

    pub(crate) fn row(&self, row: usize) -> Row<'_> {
        Row {
            columns: &self.columns,
            row,
        }
    }
}

impl<'a> Row<'a> {
    pub(crate) fn columns(self) -> &'a [NamedCells] {
        self.columns
    }

    pub(crate) fn cell(self, column: usize) -> Cell<'a> {
        self.columns[column].cells.cell(self.row)
    }

    pub(crate) fn cells(self) -> impl Iterator<Item = (&'a str, Cell<'a>)> {
        self.columns
            .iter()
            .map(move |column| (&*column.name, column.cells.cell(self.row)))
    }
}

impl Cells {
    pub(crate) fn new(array: &ArrayRef, kind: &ColumnType) -> Result<Cells, ArrowError> {
        let wanted = kind.to_arrow();
        let array = if array.data_type().equals_datatype(&wanted) {
            array.clone()
        } else {
            cast(array, &wanted)?
        };
        let values = match (kind, array.data_type()) {
            (ColumnType::Null, _) => Values::Null,
            (ColumnType::Boolean, _) => Values::Boolean(array.as_boolean().clone()),
            (ColumnType::TinyInt, _) => Values::Int8(array.as_primitive().clone()),
            (ColumnType::SmallInt, _) => Values::Int16(array.as_primitive().clone()),
            (ColumnType::Int, _) => Values::Int32(array.as_primitive().clone()),
            (ColumnType::BigInt, _) => Values::Int64(array.as_primitive().clone()),
            (ColumnType::UnsignedTinyInt, _) => Values::UInt8(array.as_primitive().clone()),
            (ColumnType::UnsignedSmallInt, _) => Values::UInt16(array.as_primitive().clone()),
            (ColumnType::UnsignedInt, _) => Values::UInt32(array.as_primitive().clone()),
            (ColumnType::UnsignedBigInt, _) => Values::UInt64(array.as_primitive().clone()),
            (ColumnType::Float, _) => Values::Float(array.as_primitive().clone()),
            (ColumnType::Double, _) => Values::Double(array.as_primitive().clone()),
            (ColumnType::Decimal { scale, .. }, _) => {
                Values::Decimal(array.as_primitive().clone(), *scale)
            }
            (ColumnType::Varchar, _) => Values::Text(array.as_string().clone()),
            (ColumnType::Json, _) => Values::Json(array.as_string().clone()),
            (ColumnType::Bytes, _) => Values::Bytes(array.as_binary().clone()),
            (ColumnType::Date, _) => Values::Date(array.as_primitive().clone()),
            (ColumnType::Time, _) => Values::Time(array.as_primitive().clone()),
            (ColumnType::Timestamp(_), DataType::Timestamp(TimeUnit::Millisecond, _)) => {
                Values::Milliseconds(array.as_primitive().clone())
            }
            (ColumnType::Timestamp(_), DataType::Timestamp(TimeUnit::Microsecond, _)) => {
                Values::Microseconds(array.as_primitive().clone())
            }
            (ColumnType::Timestamp(_), _) => Values::Nanoseconds(array.as_primitive().clone()),
            (ColumnType::Array(item), _) => {
                let list: &ListArray = array.as_list();
                let items = Cells::new(list.values(), item)?;
                Values::List(list.clone(), Box::new(items))
            }
            (ColumnType::Row(columns), _) => {
                Values::Row(Table::of_arrays(array.as_struct().columns(), columns)?)
            }
        };
        Ok(Cells { array, values })
    }

    #[inline]
    pub(crate) fn cell(&self, row: usize) -> Cell<'_> {
        if self.array.is_null(row) {
            return Cell::Null;
        }
        match &self.values {
            Values::Null => Cell::Null,
            Values::Boolean(array) => Cell::Bool(array.value(row)),
            Values::Int8(array) => Cell::Int(array.value(row).into()),
            Values::Int16(array) => Cell::Int(array.value(row).into()),
            Values::Int32(array) => Cell::Int(array.value(row).into()),
            Values::Int64(array) => Cell::Int(array.value(row)),
            Values::UInt8(array) => Cell::Uint(array.value(row).into()),
            Values::UInt16(array) => Cell::Uint(array.value(row).into()),
            Values::UInt32(array) => Cell::Uint(array.value(row).into()),
            Values::UInt64(array) => Cell::Uint(array.value(row)),
            Values::Float(array) => Cell::Float(array.value(row)),
            Values::Double(array) => Cell::Double(array.value(row)),
            Values::Decimal(array, scale) => Cell::Decimal(array.value(row), *scale),
            Values::Text(array) => Cell::Text(array.value(row)),
            Values::Json(array) => Cell::Json(array.value(row)),
            Values::Bytes(array) => Cell::Bytes(array.value(row)),
            Values::Date(array) => Cell::Date(array.value(row)),
            Values::Time(array) => Cell::Time(array.value(row)),
            Values::Milliseconds(array) => Cell::Timestamp(array.value(row), TimeUnit::Millisecond),
            Values::Microseconds(array) => Cell::Timestamp(array.value(row), TimeUnit::Microsecond),
            Values::Nanoseconds(array) => Cell::Timestamp(array.value(row), TimeUnit::Nanosecond),
            Values::List(array, items) => {
                let bound = |i: usize| {
                    usize::try_from(array.value_offsets()[i]).expect("offsets are not negative")
                };
                Cell::List(items, bound(row)..bound(row + 1))
            }
            Values::Row(table) => Cell::Row(table.row(row)),
        }
    }
}
