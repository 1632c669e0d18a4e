//! Suites that others wrote, through the decoders of produce requests. Skipped, visibly, where the
//! suites are not there.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use common::compression::Compression;
use serde_json::Value;

use super::json_text::{check, trim};
use super::msgpack_text::put_value;
use super::request_records::{BodyFormat, RequestRecord, decode};

/// A file of the folder of shared data, which lies beside the repository or above it.
fn shared_data(file: &str) -> Option<PathBuf> {
    let given = std::env::var_os("MILLSTREAM_SHARED_DATA").map(PathBuf::from);
    let above = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("shared/data"));
    let found = given
        .into_iter()
        .chain(above)
        .map(|folder| folder.join(file))
        .find(|path| path.exists());
    if found.is_none() {
        eprintln!("SKIPPED: shared data has no {file}; set MILLSTREAM_SHARED_DATA to its folder");
    }
    found
}

/// The files of a tar archive, by name.
fn untar(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    const BLOCK: usize = 512;
    let text = |field: &[u8]| {
        let end = field.iter().position(|byte| *byte == 0);
        String::from_utf8_lossy(&field[..end.unwrap_or(field.len())]).into_owned()
    };
    let mut files = Vec::new();
    let mut rest = archive;
    while rest.len() >= BLOCK && rest[0] != 0 {
        let size = usize::from_str_radix(text(&rest[124..136]).trim(), 8).unwrap();
        let is_file = matches!(rest[156], b'0' | 0);
        if is_file {
            files.push((text(&rest[..100]), rest[BLOCK..BLOCK + size].to_vec()));
        }
        rest = &rest[BLOCK + size.div_ceil(BLOCK) * BLOCK..];
    }
    files
}

fn envelope(value: &[u8]) -> Vec<u8> {
    [&b"{\"records\":[{\"value\":"[..], value, b"}]}"].concat()
}

/// The record's stored value; null is none.
fn stored(record: &RequestRecord<'_>) -> Vec<u8> {
    record.value.as_deref().unwrap_or(b"null").to_vec()
}

#[test]
fn json_that_must_be_accepted_is_stored_as_it_came_and_what_must_not_is_refused() {
    let Some(path) = shared_data("jsontestsuite/jsontestsuite.tar.zst") else {
        return;
    };
    let packed = Bytes::from(std::fs::read(path).unwrap());
    let archive = Compression::Zstd.decompress(&packed, 64 << 20).unwrap();
    let mut seen = [0, 0, 0];
    for (path, text) in untar(&archive) {
        let Some((_, name)) = path.rsplit_once("test_parsing/") else {
            continue;
        };
        let body = envelope(&text);
        let decoded = decode(BodyFormat::Json, &body, None);
        let accepted = check(&text).is_ok();
        match name.as_bytes().first() {
            Some(b'y') => {
                seen[0] += 1;
                assert!(accepted, "{name} was refused: {:?}", check(&text));
                let records = decoded.unwrap();
                assert_eq!(stored(&records[0]), trim(&text), "{name}");
            }
            Some(b'n') => {
                seen[1] += 1;
                assert!(!accepted, "{name} was accepted");
                let problem = decoded.expect_err(name);
                assert!((400..500).contains(&problem.status), "{name}: {problem}");
            }
            _ => {
                seen[2] += 1;
                assert_eq!(accepted, decoded.is_ok(), "{name}");
            }
        }
        // As a line of its own, it is judged in the same way.
        if !text.contains(&b'\n') && !trim(&text).is_empty() {
            let lines = decode(BodyFormat::Ndjson, &text, None);
            assert_eq!(lines.is_ok(), accepted, "{name}");
        }
    }
    assert!(seen.iter().all(|count| *count > 30), "{seen:?}");
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn same(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Number(found), Value::Number(expected)) => found.as_f64() == expected.as_f64(),
        (Value::Array(found), Value::Array(expected)) => {
            found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| same(f, e))
        }
        (Value::Object(found), Value::Object(expected)) => {
            found.len() == expected.len()
                && found
                    .iter()
                    .zip(expected)
                    .all(|((fk, f), (ek, e))| fk == ek && same(f, e))
        }
        (found, expected) => found == expected,
    }
}

#[test]
fn messagepack_becomes_the_json_it_stands_for_and_back() {
    let Some(path) = shared_data("msgpack-test-suite/msgpack-test-suite.json") else {
        return;
    };
    let suite: serde_json::Map<String, Value> =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut seen = 0;
    for case in suite.values().flat_map(|cases| cases.as_array().unwrap()) {
        for hex in case["msgpack"].as_array().unwrap() {
            let hex = hex.as_str().unwrap();
            let head = b"\x81\xa7records\x91\x81\xa5value";
            let body = [&head[..], &from_hex(hex)].concat();
            let decoded = decode(BodyFormat::Msgpack, &body, None);
            seen += 1;
            if case.get("ext").is_some() || case.get("timestamp").is_some() {
                assert_eq!(decoded.unwrap_err().status, 400, "{hex}");
                continue;
            }
            let records = decoded.unwrap_or_else(|problem| panic!("{hex}: {problem}"));
            if let Some(bytes) = case.get("binary") {
                let expected = from_hex(bytes.as_str().unwrap());
                assert_eq!(records[0].value.as_deref(), Some(&expected[..]), "{hex}");
                continue;
            }
            let text = stored(&records[0]);
            let found: Value = serde_json::from_slice(&text).unwrap();
            let expected = ["nil", "bool", "number", "string", "array", "map"]
                .iter()
                .find_map(|kind| case.get(*kind))
                .cloned()
                .unwrap_or_else(|| case["bignum"].as_str().unwrap().parse::<Value>().unwrap());
            assert!(same(&found, &expected), "{hex}: {found} is not {expected}");

            let mut again = head.to_vec();
            put_value(&mut again, &text);
            let again = decode(BodyFormat::Msgpack, &again, None).unwrap();
            let again: Value = serde_json::from_slice(&stored(&again[0])).unwrap();
            assert!(same(&again, &expected), "{hex} came back as {again}");
        }
    }
    assert!(seen > 100, "{seen}");
}

#[test]
fn truncated_messagepack_is_refused_at_every_byte() {
    let body = b"\x81\xa7records\x91\x82\xa5value\x92\xcd\x01\x02\xa3abc\xa3key\xc4\x02\x00\xff";
    assert!(decode(BodyFormat::Msgpack, body, None).is_ok());
    for end in 0..body.len() {
        let cut = decode(BodyFormat::Msgpack, &body[..end], None);
        assert!(cut.is_err(), "{end} bytes were accepted");
    }
    let huge = b"\x81\xa7records\xdd\xff\xff\xff\xff\x81\xa5value\x01";
    assert!(decode(BodyFormat::Msgpack, huge, None).is_err());
}

#[test]
fn bytes_keys_and_headers_come_in_both_formats() {
    let encoded = BASE64.encode([0xff, 0x00]);
    let json = format!(
        r#"{{"records":[{{"key":"a\u0062","value":{{"base64":"{encoded}"}},
            "headers":{{"h":["1",null],"b":{{"base64":"{encoded}"}}}},
            "timestamp":"2026-01-31T12:00:00+02:00","partition":3}}]}}"#
    );
    let from_json = decode(BodyFormat::Json, json.as_bytes(), None).unwrap();
    let msgpack = [
        &b"\x81\xa7records\x91\x85\xa3key\xa2ab\xa5value\xc4\x02\xff\x00\xa7headers\x82\xa1h\x92"[..],
        b"\xa11\xc0\xa1b\xc4\x02\xff\x00\xa9timestamp\xcf",
        &1_769_853_600_000_u64.to_be_bytes(),
        b"\xa9partition\x03",
    ]
    .concat();
    let from_msgpack = decode(BodyFormat::Msgpack, &msgpack, None).unwrap();
    assert_eq!(from_json, from_msgpack);
    assert_eq!(from_json[0].key.as_deref(), Some(&b"\"ab\""[..]));
    assert_eq!(from_json[0].value.as_deref(), Some(&[0xff, 0x00][..]));
    assert_eq!(from_json[0].headers.len(), 3);
}

#[test]
fn a_mistake_is_named_by_record_and_place() {
    // body, format → place
    let table: [(&[u8], BodyFormat, &str); 9] = [
        (b"{}\n{\"a\":01}\n", BodyFormat::Ndjson, "line 2, column 7"),
        (b"\n\n  x", BodyFormat::Ndjson, "line 3, column 3"),
        (
            br#"{"records":[{"value":1},{"value":2,"x":3}]}"#,
            BodyFormat::Json,
            "/records/1",
        ),
        (
            br#"{"records":[{"key":1}]}"#,
            BodyFormat::Json,
            "/records/0",
        ),
        (br#"{"records":[7]}"#, BodyFormat::Json, "/records/0"),
        (
            br#"{"records":[{"value":1,"timestamp":"soon"}]}"#,
            BodyFormat::Json,
            "/records/0/timestamp",
        ),
        (
            br#"{"records":[{"value":1,"partition":-1}]}"#,
            BodyFormat::Json,
            "/records/0/partition",
        ),
        (b"{\"records\":[\n{]}", BodyFormat::Json, "line 2, column 2"),
        (
            b"\x81\xa7records\x91\x81\xa3key\x01",
            BodyFormat::Msgpack,
            "/records/0",
        ),
    ];
    for (body, format, place) in table {
        let problem = decode(format, body, None).unwrap_err();
        let body = String::from_utf8_lossy(body);
        assert_eq!(problem.at.as_deref(), Some(place), "{body}: {problem}");
        assert_eq!(problem.status, 400);
    }
}

#[test]
fn a_record_may_nest_as_deep_as_the_limit_in_every_format() {
    let depth = common::limits::MAX_JSON_DEPTH;
    for (depth, fits) in [(depth, true), (depth + 1, false)] {
        let json = "[".repeat(depth) + &"]".repeat(depth);
        let line = decode(BodyFormat::Ndjson, json.as_bytes(), None).map(drop);
        assert_eq!(line.is_ok(), fits);
        let body = envelope(json.as_bytes());
        assert_eq!(decode(BodyFormat::Json, &body, None).is_ok(), fits);
        let nested = [&b"\x91".repeat(depth - 1)[..], b"\x90"].concat();
        let body = [&b"\x81\xa7records\x91\x81\xa5value"[..], &nested].concat();
        assert_eq!(decode(BodyFormat::Msgpack, &body, None).is_ok(), fits);
    }
}
