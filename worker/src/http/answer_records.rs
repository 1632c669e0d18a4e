//! Stored records → what users read: JSON as it was stored, everything else as base64 or `bin`.

use common::log_batch::{HeaderRef, RecordRef};

use super::json_text;
use super::msgpack_text::{
    put_array, put_base64, put_bin, put_i64, put_json, put_map, put_str, put_value,
};
use crate::log::idempotency;

/// Appends a record as a JSON object on one line. `partition`: named where records of several are mixed.
pub(super) fn put_json_record(out: &mut Vec<u8>, record: &RecordRef<'_>, partition: Option<u32>) {
    out.push(b'{');
    if let Some(partition) = partition {
        out.extend_from_slice(format!("\"partition\":{partition},").as_bytes());
    }
    out.extend_from_slice(b"\"offset\":");
    out.extend_from_slice(record.offset.0.to_string().as_bytes());
    out.extend_from_slice(b",\"timestamp\":");
    out.extend_from_slice(record.timestamp.0.to_string().as_bytes());
    out.extend_from_slice(b",\"key\":");
    put_json_payload(out, record.key);
    out.extend_from_slice(b",\"value\":");
    put_json_payload(out, record.value);
    let headers = visible_headers(record);
    if !headers.is_empty() {
        out.extend_from_slice(b",\"headers\":{");
        for (index, (name, values)) in headers.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            put_json(out, name);
            out.push(b':');
            match &values[..] {
                [only] => put_json_header(out, *only),
                several => {
                    out.push(b'[');
                    for (index, value) in several.iter().enumerate() {
                        if index > 0 {
                            out.push(b',');
                        }
                        put_json_header(out, *value);
                    }
                    out.push(b']');
                }
            }
        }
        out.push(b'}');
    }
    out.push(b'}');
}

/// Appends a record as a MessagePack map.
pub(super) fn put_msgpack_record(out: &mut Vec<u8>, record: &RecordRef<'_>) {
    let headers = visible_headers(record);
    put_map(out, if headers.is_empty() { 4 } else { 5 });
    put_str(out, "offset");
    put_i64(out, record.offset.0);
    put_str(out, "timestamp");
    put_i64(out, record.timestamp.0);
    put_str(out, "key");
    put_msgpack_payload(out, record.key);
    put_str(out, "value");
    put_msgpack_payload(out, record.value);
    if headers.is_empty() {
        return;
    }
    put_str(out, "headers");
    put_map(out, headers.len());
    for (name, values) in headers {
        put_str(out, name);
        match &values[..] {
            [only] => put_msgpack_header(out, *only),
            several => {
                put_array(out, several.len());
                for value in several {
                    put_msgpack_header(out, *value);
                }
            }
        }
    }
}

fn put_json_payload(out: &mut Vec<u8>, payload: Option<&[u8]>) {
    match payload {
        None => out.extend_from_slice(b"null"),
        Some(text) if json_text::check(text).is_ok() => {
            let start = out.len();
            out.extend_from_slice(text);
            // Line breaks can only stand between a text's parts; a record of ndjson is one line.
            for byte in &mut out[start..] {
                if matches!(*byte, b'\n' | b'\r') {
                    *byte = b' ';
                }
            }
        }
        Some(bytes) => put_base64(out, bytes),
    }
}

fn put_msgpack_payload(out: &mut Vec<u8>, payload: Option<&[u8]>) {
    match payload {
        None => out.push(0xc0),
        Some(text) if json_text::check(text).is_ok() => put_value(out, text),
        Some(bytes) => put_bin(out, bytes),
    }
}

fn put_json_header(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => out.extend_from_slice(b"null"),
        Some((_, Ok(text))) => put_json(out, text),
        Some((bytes, Err(_))) => put_base64(out, bytes),
    }
}

fn put_msgpack_header(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => out.push(0xc0),
        Some((_, Ok(text))) => put_str(out, text),
        Some((bytes, Err(_))) => put_bin(out, bytes),
    }
}

/// Names in the order they first appear, each with all of its values.
fn visible_headers<'a>(record: &RecordRef<'a>) -> Vec<(&'a str, Vec<Option<&'a [u8]>>)> {
    let mut headers: Vec<(&str, Vec<Option<&[u8]>>)> = Vec::new();
    for HeaderRef { key, value } in record.headers.iter() {
        if key == idempotency::HEADER {
            continue;
        }
        match headers.iter_mut().find(|(name, _)| *name == key) {
            Some((_, values)) => values.push(value),
            None => headers.push((key, vec![value])),
        }
    }
    headers
}
