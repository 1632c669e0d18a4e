//! Values of several columns as bytes, a row at a time (pure).
//!
//! What aggregates hold is Arrow arrays, one element per group; what a table holds is bytes per key. A
//! row is its columns one after the other, each a byte that says whether it is null (0) or not (1), and
//! then:
//!
//! ```text
//! fixed width (numbers, times)  its bytes, little endian
//! BOOLEAN                       1 byte, 0 or 1
//! text, bytes                   length: u32 little endian, then the bytes
//! list                          items: u32 little endian, then each item like a column
//! struct                        each field like a column
//! ```
//!
//! Nothing here depends on Arrow's own formats, so state outlives a change of its version.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, BooleanArray, BooleanBufferBuilder, ListArray, NullArray,
    StructArray, make_array,
};
use arrow::buffer::{Buffer, MutableBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use arrow::error::ArrowError;

const NULL: u8 = 0;
const PRESENT: u8 = 1;

/// Encodes and decodes rows of one list of columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowCodec {
    /// What is encoded and decoded.
    types: Vec<DataType>,
    /// The same in the layouts that are written: one kind of text, one of bytes, one of lists.
    stored: Vec<DataType>,
}

/// Rows of a batch, one after the other in one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedRows {
    bytes: Vec<u8>,
    /// Where each row ends.
    ends: Vec<usize>,
}

#[derive(Debug, thiserror::Error)]
pub enum RowError {
    #[error("a column of type {0} cannot be kept as bytes")]
    Unsupported(DataType),
    #[error("the bytes are not a row of these columns")]
    Corrupt,
    #[error("the values do not fit their columns: {0}")]
    Mismatch(#[from] ArrowError),
}

impl RowCodec {
    pub fn new(types: Vec<DataType>) -> Result<RowCodec, RowError> {
        let stored = types.iter().map(stored_type).collect::<Result<_, _>>()?;
        Ok(RowCodec { types, stored })
    }

    pub fn types(&self) -> &[DataType] {
        &self.types
    }

    /// Replaces what `encoded` holds by these rows.
    pub fn encode(
        &self,
        columns: &[ArrayRef],
        rows: usize,
        encoded: &mut EncodedRows,
    ) -> Result<(), RowError> {
        assert_eq!(columns.len(), self.types.len(), "one array per column");
        let columns = columns
            .iter()
            .zip(&self.stored)
            .map(|(column, stored)| match column.data_type() == stored {
                true => Ok(Arc::clone(column)),
                false => cast(column, stored),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let writers: Vec<Writer<'_>> = columns.iter().map(|c| Writer::new(c.as_ref())).collect();
        encoded.bytes.clear();
        encoded.ends.clear();
        for row in 0..rows {
            for writer in &writers {
                writer.write(row, &mut encoded.bytes);
            }
            encoded.ends.push(encoded.bytes.len());
        }
        Ok(())
    }

    /// The columns these rows were made of.
    pub fn decode<'r>(
        &self,
        rows: impl IntoIterator<Item = &'r [u8]>,
    ) -> Result<Vec<ArrayRef>, RowError> {
        let mut readers: Vec<Reader> = self.stored.iter().map(Reader::new).collect();
        for mut row in rows {
            for reader in &mut readers {
                reader.read(&mut row)?;
            }
            if !row.is_empty() {
                return Err(RowError::Corrupt);
            }
        }
        readers
            .into_iter()
            .zip(&self.types)
            .map(|(reader, wanted)| {
                let array = reader.finish()?;
                match array.data_type() == wanted {
                    true => Ok(array),
                    false => Ok(cast(&array, wanted)?),
                }
            })
            .collect()
    }
}

impl EncodedRows {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn row(&self, row: usize) -> &[u8] {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[row]]
    }

    /// Adds a row that was encoded before.
    pub fn push(&mut self, row: &[u8]) {
        self.bytes.extend_from_slice(row);
        self.ends.push(self.bytes.len());
    }
}

fn stored_type(kind: &DataType) -> Result<DataType, RowError> {
    let stored_field = |field: &FieldRef| -> Result<FieldRef, RowError> {
        let stored = stored_type(field.data_type())?;
        Ok(Arc::new(Field::new(field.name(), stored, true)))
    };
    Ok(match kind {
        DataType::Null | DataType::Boolean => kind.clone(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::List(item) | DataType::LargeList(item) => DataType::List(stored_field(item)?),
        DataType::Struct(fields) => DataType::Struct(
            fields
                .iter()
                .map(stored_field)
                .collect::<Result<Fields, _>>()?,
        ),
        fixed if fixed.primitive_width().is_some() => fixed.clone(),
        other => return Err(RowError::Unsupported(other.clone())),
    })
}

/// A column, looked at once so that its values are written without asking for its type.
enum Writer<'a> {
    Fixed {
        values: Buffer,
        width: usize,
        nulls: Option<&'a NullBuffer>,
    },
    Boolean(&'a BooleanArray),
    Bytes {
        values: &'a [u8],
        offsets: &'a [i32],
        nulls: Option<&'a NullBuffer>,
    },
    List {
        items: Box<Writer<'a>>,
        list: &'a ListArray,
    },
    Struct {
        fields: Vec<Writer<'a>>,
        nulls: Option<&'a NullBuffer>,
    },
    Null,
}

impl<'a> Writer<'a> {
    fn new(column: &'a dyn Array) -> Writer<'a> {
        let nulls = column.nulls();
        match column.data_type() {
            DataType::Null => Writer::Null,
            DataType::Boolean => Writer::Boolean(column.as_boolean()),
            DataType::Utf8 => {
                let text = column.as_string::<i32>();
                Writer::Bytes {
                    values: text.value_data(),
                    offsets: text.value_offsets(),
                    nulls,
                }
            }
            DataType::Binary => {
                let bytes = column.as_binary::<i32>();
                Writer::Bytes {
                    values: bytes.value_data(),
                    offsets: bytes.value_offsets(),
                    nulls,
                }
            }
            DataType::List(_) => {
                let list = column.as_list::<i32>();
                Writer::List {
                    items: Box::new(Writer::new(list.values().as_ref())),
                    list,
                }
            }
            DataType::Struct(_) => Writer::Struct {
                fields: column
                    .as_struct()
                    .columns()
                    .iter()
                    .map(|field| Writer::new(field.as_ref()))
                    .collect(),
                nulls,
            },
            fixed => {
                let width = fixed
                    .primitive_width()
                    .expect("every other stored type has a fixed width");
                let data = column.to_data();
                Writer::Fixed {
                    values: data.buffers()[0].slice(data.offset() * width),
                    width,
                    nulls,
                }
            }
        }
    }

    fn write(&self, row: usize, bytes: &mut Vec<u8>) {
        if self.is_null(row) {
            return bytes.push(NULL);
        }
        bytes.push(PRESENT);
        match self {
            Writer::Fixed { values, width, .. } => {
                bytes.extend_from_slice(&values[row * width..(row + 1) * width]);
            }
            Writer::Boolean(values) => bytes.push(u8::from(values.value(row))),
            Writer::Bytes {
                values, offsets, ..
            } => {
                let (start, end) = (
                    offsets[row].cast_unsigned(),
                    offsets[row + 1].cast_unsigned(),
                );
                bytes.extend_from_slice(&(end - start).to_le_bytes());
                bytes.extend_from_slice(&values[start as usize..end as usize]);
            }
            Writer::List { items, list } => {
                let offsets = list.value_offsets();
                let (start, end) = (
                    offsets[row].cast_unsigned(),
                    offsets[row + 1].cast_unsigned(),
                );
                bytes.extend_from_slice(&(end - start).to_le_bytes());
                for item in start..end {
                    items.write(item as usize, bytes);
                }
            }
            Writer::Struct { fields, .. } => {
                for field in fields {
                    field.write(row, bytes);
                }
            }
            Writer::Null => unreachable!("every value of this type is null"),
        }
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Writer::Fixed { nulls, .. }
            | Writer::Bytes { nulls, .. }
            | Writer::Struct { nulls, .. } => nulls.is_some_and(|nulls| nulls.is_null(row)),
            Writer::Boolean(values) => values.is_null(row),
            Writer::List { list, .. } => list.is_null(row),
            Writer::Null => true,
        }
    }
}

/// A column that grows by one value of every row that is read.
struct Reader {
    kind: DataType,
    nulls: BooleanBufferBuilder,
    values: Values,
}

enum Values {
    Fixed {
        width: usize,
        bytes: MutableBuffer,
    },
    Boolean(BooleanBufferBuilder),
    Bytes {
        offsets: Vec<i32>,
        bytes: Vec<u8>,
    },
    List {
        offsets: Vec<i32>,
        items: Box<Reader>,
    },
    Struct(Vec<Reader>),
    Null,
}

impl Reader {
    fn new(kind: &DataType) -> Reader {
        let values = match kind {
            DataType::Null => Values::Null,
            DataType::Boolean => Values::Boolean(BooleanBufferBuilder::new(0)),
            DataType::Utf8 | DataType::Binary => Values::Bytes {
                offsets: vec![0],
                bytes: Vec::new(),
            },
            DataType::List(item) => Values::List {
                offsets: vec![0],
                items: Box::new(Reader::new(item.data_type())),
            },
            DataType::Struct(fields) => Values::Struct(
                fields
                    .iter()
                    .map(|field| Reader::new(field.data_type()))
                    .collect(),
            ),
            fixed => Values::Fixed {
                width: fixed
                    .primitive_width()
                    .expect("every other stored type has a fixed width"),
                bytes: MutableBuffer::new(0),
            },
        };
        Reader {
            kind: kind.clone(),
            nulls: BooleanBufferBuilder::new(0),
            values,
        }
    }

    fn read(&mut self, row: &mut &[u8]) -> Result<(), RowError> {
        match take(row, 1)?[0] {
            NULL => {
                self.append_null();
                return Ok(());
            }
            PRESENT => self.nulls.append(true),
            _ => return Err(RowError::Corrupt),
        }
        match &mut self.values {
            Values::Fixed { width, bytes } => bytes.extend_from_slice(take(row, *width)?),
            Values::Boolean(values) => values.append(take(row, 1)?[0] != 0),
            Values::Bytes { offsets, bytes } => {
                let length = take_length(row)?;
                bytes.extend_from_slice(take(row, length)?);
                offsets.push(i32::try_from(bytes.len()).map_err(|_| RowError::Corrupt)?);
            }
            Values::List { offsets, items } => {
                for _ in 0..take_length(row)? {
                    items.read(row)?;
                }
                offsets.push(i32::try_from(items.nulls.len()).map_err(|_| RowError::Corrupt)?);
            }
            Values::Struct(fields) => {
                for field in fields {
                    field.read(row)?;
                }
            }
            Values::Null => return Err(RowError::Corrupt),
        }
        Ok(())
    }

    fn append_null(&mut self) {
        self.nulls.append(false);
        match &mut self.values {
            Values::Fixed { width, bytes } => bytes.extend_zeros(*width),
            Values::Boolean(values) => values.append(false),
            Values::Bytes { offsets, .. } | Values::List { offsets, .. } => {
                offsets.push(*offsets.last().expect("offsets begin with 0"));
            }
            Values::Struct(fields) => fields.iter_mut().for_each(Reader::append_null),
            Values::Null => {}
        }
    }

    fn finish(mut self) -> Result<ArrayRef, RowError> {
        let rows = self.nulls.len();
        let nulls = NullBuffer::new(self.nulls.finish());
        let nulls = (nulls.null_count() > 0).then_some(nulls);
        Ok(match self.values {
            Values::Fixed { bytes, .. } => {
                let data = ArrayData::builder(self.kind)
                    .len(rows)
                    .add_buffer(bytes.into())
                    .nulls(nulls)
                    .build()?;
                make_array(data)
            }
            Values::Boolean(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Bytes { offsets, bytes } => {
                // Checks that text is UTF-8.
                let data = ArrayData::builder(self.kind)
                    .len(rows)
                    .add_buffer(Buffer::from_vec(offsets))
                    .add_buffer(Buffer::from_vec(bytes))
                    .nulls(nulls)
                    .build()
                    .map_err(|_| RowError::Corrupt)?;
                make_array(data)
            }
            Values::List { offsets, items } => {
                let DataType::List(field) = self.kind else {
                    unreachable!("a list is read for a list");
                };
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                Arc::new(ListArray::try_new(field, offsets, items.finish()?, nulls)?)
            }
            Values::Struct(fields) => {
                let DataType::Struct(names) = self.kind else {
                    unreachable!("a struct is read for a struct");
                };
                let columns = fields
                    .into_iter()
                    .map(Reader::finish)
                    .collect::<Result<Vec<_>, _>>()?;
                Arc::new(StructArray::try_new_with_length(
                    names, columns, nulls, rows,
                )?)
            }
            Values::Null => Arc::new(NullArray::new(rows)),
        })
    }
}

fn take<'r>(row: &mut &'r [u8], length: usize) -> Result<&'r [u8], RowError> {
    let (taken, rest) = row.split_at_checked(length).ok_or(RowError::Corrupt)?;
    *row = rest;
    Ok(taken)
}

fn take_length(row: &mut &[u8]) -> Result<usize, RowError> {
    let bytes = take(row, 4)?.try_into().expect("four bytes were taken");
    Ok(u32::from_le_bytes(bytes) as usize)
}
