//! Messages ↔ frame bodies: rows become one Arrow IPC stream of one batch.
//!
//! Kinds and origins travel as two more columns behind the rows' own, marked in the schema's metadata.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int8Array, Int64Array, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use common::protocol::exchange::FrameBody;

use crate::task::message::{Barrier, Message, Origin, Rows, Signal};

const KINDS: &str = "millstream.kinds";
const ORIGIN_SOURCE: &str = "millstream.origin.source";
const ORIGIN_PARTITION: &str = "millstream.origin.partition";

/// A message as it goes over the wire.
pub fn encode(message: &Message) -> Result<FrameBody, ArrowError> {
    Ok(match message {
        Message::Rows(rows) => FrameBody::Rows {
            ipc: encode_rows(rows)?,
        },
        Message::Signal(Signal::Watermark(timestamp)) => FrameBody::Watermark {
            timestamp: *timestamp,
        },
        Message::Signal(Signal::Idle) => FrameBody::Idle,
        Message::Signal(Signal::Active) => FrameBody::Active,
        Message::Signal(Signal::Barrier(barrier)) => FrameBody::Barrier {
            checkpoint: barrier.checkpoint,
            stop: barrier.stop,
        },
    })
}

/// The message of a body; `None` for those that are about the channel itself.
pub fn decode(body: FrameBody) -> Result<Option<Message>, ArrowError> {
    Ok(Some(match body {
        FrameBody::Rows { ipc } => Message::Rows(decode_rows(&ipc)?),
        FrameBody::Watermark { timestamp } => Message::Signal(Signal::Watermark(timestamp)),
        FrameBody::Idle => Message::Signal(Signal::Idle),
        FrameBody::Active => Message::Signal(Signal::Active),
        FrameBody::Barrier { checkpoint, stop } => {
            Message::Signal(Signal::Barrier(Barrier { checkpoint, stop }))
        }
        FrameBody::Hello | FrameBody::Credit { .. } => return Ok(None),
    }))
}

fn encode_rows(rows: &Rows) -> Result<Bytes, ArrowError> {
    let schema = rows.batch.schema();
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
    let mut columns: Vec<ArrayRef> = rows.batch.columns().to_vec();
    let mut metadata = HashMap::new();
    if let Some(kinds) = &rows.kinds {
        metadata.insert(KINDS.to_owned(), String::new());
        fields.push(Arc::new(Field::new(KINDS, DataType::Int8, false)));
        columns.push(Arc::new(kinds.clone()));
    }
    if let Some(origin) = &rows.origin {
        metadata.insert(ORIGIN_SOURCE.to_owned(), origin.source.to_string());
        metadata.insert(ORIGIN_PARTITION.to_owned(), origin.partition.to_string());
        fields.push(Arc::new(Field::new(ORIGIN_SOURCE, DataType::Int64, false)));
        columns.push(Arc::new(origin.offsets.clone()));
    }
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let batch = RecordBatch::try_new(schema.clone(), columns)?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
    writer.write(&batch)?;
    Ok(Bytes::from(writer.into_inner()?))
}

fn decode_rows(ipc: &[u8]) -> Result<Rows, ArrowError> {
    // The one copy: into memory aligned as arrays want it, which they then share.
    let mut buffer = Buffer::from_slice_ref(ipc);
    let mut decoder = StreamDecoder::new();
    let batch = decoder
        .decode(&mut buffer)?
        .ok_or_else(|| ArrowError::IpcError("a rows message holds no batch".to_owned()))?;
    let schema = batch.schema();
    let metadata = schema.metadata();
    let mut own_columns = batch.num_columns();
    let origin = match (metadata.get(ORIGIN_SOURCE), metadata.get(ORIGIN_PARTITION)) {
        (Some(source), Some(partition)) => {
            own_columns -= 1;
            Some(Origin {
                source: Arc::from(source.as_str()),
                partition: partition.parse().map_err(|_| malformed("partition"))?,
                offsets: column::<Int64Array>(&batch, own_columns)?,
            })
        }
        _ => None,
    };
    let kinds = match metadata.contains_key(KINDS) {
        true => {
            own_columns -= 1;
            Some(column::<Int8Array>(&batch, own_columns)?)
        }
        false => None,
    };
    let fields: Vec<Arc<Field>> = schema.fields()[..own_columns].to_vec();
    let batch = RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        batch.columns()[..own_columns].to_vec(),
    )?;
    Ok(Rows {
        batch,
        kinds,
        origin,
    })
}

fn column<A: Array + Clone + 'static>(batch: &RecordBatch, index: usize) -> Result<A, ArrowError> {
    let array = batch.column(index).as_any().downcast_ref::<A>();
    array.cloned().ok_or_else(|| malformed("column"))
}

fn malformed(what: &str) -> ArrowError {
    ArrowError::IpcError(format!("a rows message has a malformed {what}"))
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;

    use super::*;

    #[test]
    fn rows_arrive_with_their_kinds_and_origins() {
        let schema = Arc::new(Schema::new(vec![Field::new("name", DataType::Utf8, true)]));
        let names = StringArray::from(vec![Some("a"), None, Some("c")]);
        let batch = RecordBatch::try_new(schema, vec![Arc::new(names)]).unwrap();
        let origin = Origin {
            source: Arc::from("bids"),
            partition: 3,
            offsets: Int64Array::from(vec![7, 8, 10]),
        };
        for (kinds, origin) in [
            (None, None),
            (Some(Int8Array::from(vec![0, 1, 2])), None),
            (Some(Int8Array::from(vec![0, 3, 0])), Some(origin.clone())),
            (None, Some(origin)),
        ] {
            let rows = Rows {
                batch: batch.clone(),
                kinds,
                origin,
            };
            let body = encode(&Message::Rows(rows.clone())).unwrap();
            let Some(Message::Rows(back)) = decode(body).unwrap() else {
                panic!("rows did not come back as rows");
            };
            assert_eq!(back.batch, rows.batch);
            assert_eq!(back.kinds, rows.kinds);
            assert_eq!(
                back.origin.map(|o| (o.source, o.partition, o.offsets)),
                rows.origin.map(|o| (o.source, o.partition, o.offsets)),
            );
        }
    }

    #[test]
    fn bytes_that_are_no_rows_are_refused() {
        for bytes in [&b""[..], b"garbage that is no arrow", &[0xff; 64]] {
            let body = FrameBody::Rows {
                ipc: Bytes::copy_from_slice(bytes),
            };
            assert!(decode(body).is_err(), "{bytes:?} was accepted");
        }
    }
}
