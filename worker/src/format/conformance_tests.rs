//! Published conformance suites, run through the decoders as records of a stream: what must be accepted
//! arrives as a row with the same value, what must be refused is a bad record, and nothing panics.
//!
//! The suites lie in `shared/data`, above the sources or where `MILLSTREAM_SHARED_DATA` says; without
//! them the tests say so and check nothing.

use std::io::Read;
use std::path::PathBuf;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMillisecondType, TimestampNanosecondType};
use common::plan::connector::Format;
use common::schema::{Column, ColumnType};
use serde_json::Value as Json;

use super::{BadRecord, Decoder};

fn shared_data(file: &str) -> Option<PathBuf> {
    let named = std::env::var_os("MILLSTREAM_SHARED_DATA").map(PathBuf::from);
    let above = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("shared/data"))
        .find(|folder| folder.is_dir());
    let path = named.or(above)?.join(file);
    path.exists().then_some(path)
}

/// The row's only value, as an array of one.
fn decode(
    format: Format,
    kind: ColumnType,
    record: &[u8],
) -> Result<arrow::array::ArrayRef, BadRecord> {
    let columns = [Column::new("v", kind, true)];
    let mut decoder = Decoder::new(format, &columns, &columns).unwrap();
    decoder.push(Some(record))?;
    let (batch, _) = decoder.finish();
    assert_eq!(batch.num_rows(), 1);
    Ok(batch.column(0).clone())
}

/// The files of a tar archive: name and content.
fn untar(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut rest = archive;
    while rest.len() >= 512 && rest[0] != 0 {
        let text = |field: &[u8]| {
            let end = field
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(field.len());
            String::from_utf8(field[..end].to_vec()).unwrap()
        };
        let name = text(&rest[..100]);
        let size = usize::from_str_radix(text(&rest[124..136]).trim(), 8).unwrap();
        if rest[156] == b'0' {
            files.push((name, rest[512..512 + size].to_vec()));
        }
        rest = &rest[512 + size.div_ceil(512) * 512..];
    }
    files
}

#[test]
fn the_json_suite_is_accepted_and_refused_as_it_says() {
    let Some(path) = shared_data("jsontestsuite/jsontestsuite.tar.zst") else {
        println!("skipped: shared/data/jsontestsuite is not here");
        return;
    };
    let mut archive = Vec::new();
    zstd::Decoder::new(std::fs::File::open(path).unwrap())
        .unwrap()
        .read_to_end(&mut archive)
        .unwrap();
    let (mut accepted, mut refused, mut either) = (0, 0, 0);
    for (name, content) in untar(&archive) {
        let Some(name) = name.strip_prefix("test_parsing/") else {
            continue;
        };
        let record = [b"{\"v\":", &content[..], b"}"].concat();
        let row = decode(Format::Json, ColumnType::Json, &record);
        match &name[..2] {
            "y_" => {
                accepted += 1;
                let value = row.unwrap_or_else(|bad| panic!("{name}: {bad}"));
                let expected: Json = serde_json::from_slice(&content).unwrap();
                let found = match value.is_null(0) {
                    true => Json::Null,
                    false => serde_json::from_str(value.as_string::<i32>().value(0)).unwrap(),
                };
                assert_eq!(found, expected, "{name}");
            }
            "n_" => {
                refused += 1;
                assert!(row.is_err(), "{name} was accepted");
                assert!(
                    decode(Format::Json, ColumnType::Json, &content).is_err(),
                    "{name} alone"
                );
            }
            _ => either += 1,
        }
    }
    assert_eq!((accepted, refused, either), (95, 188, 35));
}

fn unhex(hex: &str) -> Vec<u8> {
    hex.split('-')
        .filter(|byte| !byte.is_empty())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

/// A map with the encoding as its only field.
fn as_record(encoding: &[u8]) -> Vec<u8> {
    [b"\x81\xa1v", encoding].concat()
}

#[test]
fn every_encoding_of_the_messagepack_suite_gives_its_value() {
    let Some(path) = shared_data("msgpack-test-suite/msgpack-test-suite.json") else {
        println!("skipped: shared/data/msgpack-test-suite is not here");
        return;
    };
    let suite: Json = serde_json::from_reader(std::fs::File::open(path).unwrap()).unwrap();
    let mut checked = 0;
    for case in suite
        .as_object()
        .unwrap()
        .values()
        .flat_map(|g| g.as_array().unwrap())
    {
        let case = case.as_object().unwrap();
        for hex in case["msgpack"].as_array().unwrap() {
            let encoding = unhex(hex.as_str().unwrap());
            for (kind, value) in case.iter().filter(|(kind, _)| *kind != "msgpack") {
                check(kind, value, &as_record(&encoding));
                checked += 1;
            }
            check_mutilated(&encoding);
        }
    }
    assert!(checked > 200, "only {checked} encodings were there");
}

fn check(kind: &str, value: &Json, record: &[u8]) {
    let decode = |kind: &str| {
        let column = kind.parse().unwrap();
        decode(Format::Msgpack, column, record).unwrap_or_else(|bad| panic!("{value}: {bad}"))
    };
    match kind {
        "nil" => assert!(decode("BIGINT").is_null(0)),
        "bool" => assert_eq!(
            decode("BOOLEAN").as_boolean().value(0),
            value.as_bool().unwrap()
        ),
        "binary" => {
            let expected = unhex(value.as_str().unwrap());
            assert_eq!(decode("BYTES").as_binary::<i32>().value(0), expected);
        }
        "number" => {
            let expected = value.as_f64().unwrap();
            let found = decode("DOUBLE").as_primitive::<Float64Type>().value(0);
            assert_eq!(found, expected);
            if let Some(expected) = value.as_i64() {
                let found = decode("BIGINT").as_primitive::<Int64Type>().value(0);
                assert_eq!(found, expected);
            }
        }
        "bignum" => {
            let expected: i128 = value.as_str().unwrap().parse().unwrap();
            let decimal = decode("DECIMAL(38, 0)");
            let decimal = decimal.as_primitive::<arrow::datatypes::Decimal128Type>();
            assert_eq!(decimal.value(0), expected);
        }
        "string" => {
            assert_eq!(
                decode("VARCHAR").as_string::<i32>().value(0),
                value.as_str().unwrap()
            );
        }
        "array" | "map" => {
            let column = decode("JSON");
            let found: Json = serde_json::from_str(column.as_string::<i32>().value(0)).unwrap();
            assert_eq!(found, *value);
        }
        "timestamp" => {
            let part = |i: usize| value[i].as_i64().unwrap();
            let millis = decode("TIMESTAMP(3)")
                .as_primitive::<TimestampMillisecondType>()
                .value(0);
            assert_eq!(millis, part(0) * 1_000 + part(1) / 1_000_000);
            let exact = part(0)
                .checked_mul(1_000_000_000)
                .and_then(|n| n.checked_add(part(1)));
            if let Some(exact) = exact {
                let nanos = decode("TIMESTAMP(9)")
                    .as_primitive::<TimestampNanosecondType>()
                    .value(0);
                assert_eq!(nanos, exact);
            }
        }
        // No column holds it; beside columns that do not need it, it is well-formed.
        "ext" => {
            let other = [Column::new("w", ColumnType::BigInt, true)];
            let mut decoder = Decoder::new(Format::Msgpack, &other, &other).unwrap();
            assert_eq!(decoder.push(Some(record)), Ok(1));
        }
        other => panic!("the suite has a kind {other} that this test does not know"),
    }
}

/// Bytes missing at the end, or one too many: never a row.
fn check_mutilated(encoding: &[u8]) {
    let refused = |record: &[u8]| {
        let row = decode(Format::Msgpack, ColumnType::Json, record);
        assert!(row.is_err(), "{record:x?} was accepted");
    };
    let whole = as_record(encoding);
    for end in 0..whole.len() {
        refused(&whole[..end]);
    }
    refused(&[&whole[..], b"\xc0"].concat());
}

#[test]
fn messagepack_that_lies_about_its_length_or_depth_is_refused_without_harm() {
    for encoding in [
        b"\xdd\xff\xff\xff\xff".to_vec(),
        b"\xdf\xff\xff\xff\xff\xc0\xc0".to_vec(),
        b"\xdb\xff\xff\xff\xffabc".to_vec(),
        b"\xc6\xff\xff\xff\xffabc".to_vec(),
        b"\xc9\xff\xff\xff\xff\x01a".to_vec(),
        b"\xc1".to_vec(),
        b"\xa1\xff".to_vec(),
        b"\xc7\x0c\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00".to_vec(),
        vec![0x91; 100_000],
        [vec![0x91; 100_000], vec![0xc0]].concat(),
    ] {
        let row = decode(Format::Msgpack, ColumnType::Json, &as_record(&encoding));
        assert!(row.is_err());
    }
    let nested = [vec![0x91; 100], vec![0xc0]].concat();
    assert!(decode(Format::Msgpack, ColumnType::Json, &as_record(&nested)).is_ok());
}
