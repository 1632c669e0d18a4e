//! What users were promised of formats: which values are taken, what becomes of bad records, and that
//! what is written reads back.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array,
    Float64Array, Int8Array, Int64Array, RecordBatch, StringArray, Time64NanosecondArray,
    TimestampMillisecondArray, TimestampNanosecondArray, UInt64Array,
};
use arrow::datatypes::Int64Type;
use common::plan::connector::Format;
use common::schema::{Column, to_arrow_schema};
use proptest::prelude::*;
use serde_json::Value as Json;

use super::{Decoder, EncodedRecords, Encoder};
use crate::task::message::{Rows, kind};

/// Columns from `name TYPE [NOT NULL], …`.
fn columns(text: &str) -> Vec<Column> {
    let row: common::schema::ColumnType = format!("ROW<{text}>").parse().unwrap();
    match row {
        common::schema::ColumnType::Row(columns) => columns,
        other => panic!("{other}"),
    }
}

fn decoder(format: Format, schema: &str) -> Decoder {
    let schema = columns(schema);
    Decoder::new(format, &schema, &schema).unwrap()
}

/// The only row's columns as JSON, or why there is none.
fn decode_one(format: Format, schema: &str, record: &[u8]) -> Result<Json, String> {
    let mut decoder = decoder(format, schema);
    let rows = decoder.push(Some(record)).map_err(|bad| bad.detail)?;
    assert_eq!(rows, 1);
    let (batch, kinds) = decoder.finish();
    assert_eq!(kinds, None);
    let encoder = Encoder::new(Format::Json, &columns(schema), &[]).unwrap();
    let mut out = EncodedRecords::default();
    encoder.encode(&Rows::inserts(batch), &mut out).unwrap();
    let record = out.iter().next().unwrap();
    Ok(serde_json::from_slice(record.value.unwrap()).unwrap())
}

#[test]
fn json_that_is_no_object_is_told_from_what_is_no_json() {
    for (record, complaint) in [
        ("[1,2]", "a row is a JSON object, and this is an array"),
        (" \"a\" ", "a row is a JSON object, and this is a text"),
        ("null", "a row is a JSON object, and this is null"),
        ("[1,2", "not JSON at byte 0"),
        ("{\"a\": }", "not JSON at byte 6"),
    ] {
        let refused = decode_one(Format::Json, "a BIGINT", record.as_bytes()).unwrap_err();
        assert!(refused.starts_with(complaint), "{record}: {refused}");
    }
}

#[test]
fn json_values_fit_their_columns_as_documented() {
    // (type, the value in the record, the value in the row or a word of the complaint)
    let cases: &[(&str, &str, Result<&str, &str>)] = &[
        ("BIGINT", "12", Ok("12")),
        ("BIGINT", "\"-12\"", Ok("-12")),
        (
            "BIGINT",
            "\"9223372036854775807\"",
            Ok("9223372036854775807"),
        ),
        ("BIGINT", "12.0", Ok("12")),
        ("BIGINT", "1e3", Ok("1000")),
        ("BIGINT", "9223372036854775808", Err("BIGINT")),
        ("BIGINT", "12.5", Err("12.5")),
        ("BIGINT", "\" 12\"", Err("the string")),
        ("BIGINT", "\"\"", Err("the string")),
        ("BIGINT", "\"+1\"", Err("the string")),
        ("BIGINT", "true", Err("true")),
        ("BIGINT", "[1]", Err("an array")),
        ("INT", "\"12\"", Err("the string")),
        ("INT", "2147483648", Err("2147483648")),
        ("TINYINT", "-128", Ok("-128")),
        ("TINYINT", "128", Err("128")),
        (
            "BIGINT UNSIGNED",
            "18446744073709551615",
            Ok("18446744073709551615"),
        ),
        ("BIGINT UNSIGNED", "-1", Err("-1")),
        ("DOUBLE", "1.5", Ok("1.5")),
        ("DOUBLE", "3", Ok("3.0")),
        ("DOUBLE", "1e400", Err("1e400")),
        ("DOUBLE", "\"1.5\"", Err("the string")),
        ("FLOAT", "1e39", Err("1e39")),
        ("DECIMAL(5, 2)", "12.345", Ok("12.35")),
        ("DECIMAL(5, 2)", "\"12.3\"", Ok("12.30")),
        ("DECIMAL(5, 2)", "999.99", Ok("999.99")),
        ("DECIMAL(5, 2)", "1000", Err("1000")),
        ("DECIMAL(5, 2)", "\"1,5\"", Err("the string")),
        (
            "VARCHAR",
            "\"a\\u00e9\\n\\ud83d\\ude00\"",
            Ok("\"aé\\n😀\""),
        ),
        ("VARCHAR", "\"\\ud83d\"", Err("surrogate")),
        ("VARCHAR", "1", Err("the number 1")),
        ("BOOLEAN", "true", Ok("true")),
        ("BOOLEAN", "\"true\"", Err("the string")),
        ("BYTES", "\"aGk=\"", Ok("\"aGk=\"")),
        ("BYTES", "\"aGk\"", Ok("\"aGk=\"")),
        ("BYTES", "\"a\\u0000\"", Err("base64")),
        ("DATE", "\"2024-02-29\"", Ok("\"2024-02-29\"")),
        ("DATE", "\"2023-02-29\"", Err("the string")),
        ("TIME", "\"12:30\"", Ok("\"12:30:00\"")),
        (
            "TIMESTAMP(3)",
            "1700000000123",
            Ok("\"2023-11-14T22:13:20.123\""),
        ),
        (
            "TIMESTAMP(3)",
            "\"2023-11-14T23:13:20+01:00\"",
            Ok("\"2023-11-14T22:13:20\""),
        ),
        (
            "TIMESTAMP(6)",
            "\"2023-11-14 22:13:20.123456789\"",
            Ok("\"2023-11-14T22:13:20.123456\""),
        ),
        (
            "TIMESTAMP(9)",
            "9223372036854775807",
            Err("9223372036854775807"),
        ),
        ("TIMESTAMP(3)", "\"yesterday\"", Err("yesterday")),
        ("TIMESTAMP(3)", "1.5", Err("1.5")),
        ("JSON", "{\"a\": [1, \"x\"]}", Ok("{\"a\": [1, \"x\"]}")),
        ("JSON", "\"text\"", Ok("\"text\"")),
        ("ARRAY<BIGINT>", "[1, null, \"3\"]", Ok("[1,null,3]")),
        ("ARRAY<BIGINT>", "[1, true]", Err("true")),
        ("ARRAY<ARRAY<BIGINT>>", "[[], [1]]", Ok("[[],[1]]")),
        (
            "ROW<x BIGINT, y VARCHAR NOT NULL>",
            "{\"y\": \"a\", \"z\": {}}",
            Ok("{\"x\":null,\"y\":\"a\"}"),
        ),
        (
            "ROW<x BIGINT, y VARCHAR NOT NULL>",
            "{\"x\": 1}",
            Err("\"y\" is NOT NULL"),
        ),
        ("ROW<x BIGINT>", "[]", Err("an array")),
        ("BIGINT", "null", Ok("null")),
        ("BIGINT NOT NULL", "null", Err("NOT NULL")),
        ("ROW<x BIGINT NOT NULL>", "null", Ok("null")),
    ];
    for (kind, value, expected) in cases {
        let record = format!("{{\"other\": {{\"v\": 0}}, \"v\": {value}}}");
        let decoded = decode_one(Format::Json, &format!("v {kind}"), record.as_bytes());
        match (expected, decoded) {
            (Ok(expected), Ok(row)) => {
                let expected: Json = serde_json::from_str(expected).unwrap();
                assert_eq!(row["v"], expected, "{kind}: {value}");
            }
            (Err(word), Err(detail)) => {
                assert!(
                    detail.contains(word) && detail.contains("\"v\""),
                    "{kind}: {value}: {detail}"
                );
            }
            (_, decoded) => panic!("{kind}: {value}: {decoded:?}"),
        }
    }
}

#[test]
fn a_record_is_exactly_one_json_object() {
    for (record, word) in [
        ("", "an object is expected"),
        ("[]", "an array"),
        ("1", "a number"),
        ("{\"v\": 1} {\"v\": 2}", "something follows"),
        ("{\"v\": 1},", "something follows"),
        ("{\"v\": 1,}", "a string is expected"),
        ("{\"v\": 1", "a comma or the end"),
        ("{\"v\" 1}", "a colon"),
        ("{\"a\": 01}", "start with 0"),
        ("{\"a\": \"\t\"}", "control character"),
        ("{'v': 1}", "a string is expected"),
        ("\u{feff}{\"v\": 1}", "an object is expected"),
    ] {
        let detail = decode_one(Format::Json, "v BIGINT", record.as_bytes()).unwrap_err();
        assert!(detail.contains(word), "{record}: {detail}");
    }
    let detail = decode_one(Format::Json, "v BIGINT", b"{\"a\": \"\xff\"}").unwrap_err();
    assert!(detail.contains("UTF-8"), "{detail}");
    let row = decode_one(
        Format::Json,
        "v BIGINT",
        b" \n{ \"v\" : 1 , \"\\u0076\" : 2 } \r\n",
    )
    .unwrap();
    assert_eq!(row["v"], 2, "of two fields of one name the last counts");
}

#[test]
fn a_bad_record_leaves_no_trace_among_the_good_ones() {
    let mut decoder = decoder(
        Format::Json,
        "a BIGINT, t VARCHAR, l ARRAY<VARCHAR>, r ROW<x BIGINT, y BOOLEAN>, z BIGINT NOT NULL",
    );
    for i in 0..10 {
        let good = format!(
            r#"{{"a": {i}, "t": "t{i}", "l": ["x", "y{i}"], "r": {{"x": {i}, "y": true}}, "z": 1}}"#
        );
        assert_eq!(decoder.push(Some(good.as_bytes())), Ok(1));
        for bad in [
            r#"{"a": 99, "t": "bad", "l": ["b", "c"], "r": {"x": 9, "y": false}}"#,
            r#"{"a": 99, "t": "bad", "l": ["b", "c", 1], "z": 1}"#,
            r#"{"a": 99, "t": "bad", "r": {"x": 9, "y": 1}, "z": 1}"#,
            r#"{"a": 99, "t": 1, "z": 1}"#,
            r#"{"a": 99, "z": 1"#,
        ] {
            assert!(decoder.push(Some(bad.as_bytes())).is_err(), "{bad}");
        }
    }
    let (batch, _) = decoder.finish();
    assert_eq!(batch.num_rows(), 10);
    let expected: Vec<i64> = (0..10).collect();
    assert_eq!(
        batch["a"].as_primitive::<Int64Type>().values(),
        &expected[..]
    );
    for (i, number) in expected.into_iter().enumerate() {
        assert_eq!(batch["t"].as_string::<i32>().value(i), format!("t{i}"));
        let list = batch["l"].as_list::<i32>().value(i);
        assert_eq!(list.as_string::<i32>().value(1), format!("y{i}"));
        let x = batch["r"].as_struct().column(0);
        assert_eq!(x.as_primitive::<Int64Type>().value(i), number);
    }
    assert_eq!(decoder.finish().0.num_rows(), 0);
}

#[test]
fn only_the_columns_a_job_needs_are_read_and_checked_for_type() {
    let schema = columns("a BIGINT NOT NULL, b BIGINT NOT NULL");
    let mut decoder = Decoder::new(Format::Json, &schema, &schema[1..]).unwrap();
    assert_eq!(decoder.push(Some(br#"{"a": "no number", "b": 1}"#)), Ok(1));
    let (batch, _) = decoder.finish();
    assert_eq!(batch.schema(), to_arrow_schema(&schema[1..]));
    let unknown = columns("c BIGINT");
    assert!(Decoder::new(Format::Json, &schema, &unknown).is_err());
}

#[test]
fn records_of_changing_shapes_are_read_right() {
    let mut decoder = decoder(Format::Json, "a BIGINT, b BIGINT");
    let shapes = [
        r#"{"a": 1, "b": 2}"#,
        r#"{"b": 2, "a": 1}"#,
        r#"{"x": 0, "b": 2, "y": [{}], "a": 1}"#,
        r#"{"ab": 5, "a": 1, "b": 2}"#,
        r#"{"a": 1, "bb": 5, "b": 2}"#,
        r#"{"\u0061": 1, "b": 2}"#,
    ];
    for round in 0..3 {
        for (i, _) in shapes.iter().enumerate() {
            let record = shapes[(i * (round + 1)) % shapes.len()];
            assert_eq!(decoder.push(Some(record.as_bytes())), Ok(1), "{record}");
        }
    }
    let (batch, _) = decoder.finish();
    for (name, value) in [("a", 1), ("b", 2)] {
        let column = batch[name].as_primitive::<Int64Type>();
        assert!(
            column.iter().all(|found| found == Some(value)),
            "{column:?}"
        );
    }
}

#[test]
fn csv_is_read_by_position_and_strictly() {
    let schema = "a BIGINT, t VARCHAR, d DOUBLE, l ARRAY<BIGINT>, ts TIMESTAMP(3)";
    for (line, expected) in [
        (
            "1,x,1.5,\"[1,2]\",2023-11-14T22:13:20",
            r#"{"a":1,"t":"x","d":1.5,"l":[1,2],"ts":"2023-11-14T22:13:20"}"#,
        ),
        (
            ",,,,\r\n",
            r#"{"a":null,"t":null,"d":null,"l":null,"ts":null}"#,
        ),
        (
            "\"1\",\"\",,,1700000000000",
            r#"{"a":1,"t":"","d":null,"l":null,"ts":"2023-11-14T22:13:20"}"#,
        ),
        (
            "1,\"a \"\"b\"\",\nc\",,,",
            r#"{"a":1,"t":"a \"b\",\nc","d":null,"l":null,"ts":null}"#,
        ),
    ] {
        let row = decode_one(Format::Csv, schema, line.as_bytes()).unwrap();
        assert_eq!(
            row,
            serde_json::from_str::<Json>(expected).unwrap(),
            "{line}"
        );
    }
    for (line, word) in [
        ("1,x", "2 fields"),
        ("1,x,1,,,", "6 fields"),
        ("x,x,1,,", "\"a\" is BIGINT"),
        ("1,\"x,1,,", "not closed"),
        ("1,\"x\"y,1,,", "follows the closing quote"),
        ("1,x\"y,1,,", "a quote stands"),
        ("1,x,1,[1,", "column \"l\""),
        ("1,x,1,[1],2023-99-01", "\"ts\""),
    ] {
        let detail = decode_one(Format::Csv, schema, line.as_bytes()).unwrap_err();
        assert!(detail.contains(word), "{line}: {detail}");
    }
}

#[test]
fn debezium_changes_become_rows_with_kinds() {
    let mut decoder = decoder(Format::DebeziumJson, "id BIGINT NOT NULL, v VARCHAR");
    let records = [
        r#"{"before": null, "after": {"id": 1, "v": "a"}, "op": "c", "ts_ms": 1}"#,
        r#"{"schema": {}, "payload": {"before": {"id": 1, "v": "a"}, "after": {"id": 1, "v": "b"}, "op": "u"}}"#,
        r#"{"after": {"id": 2, "v": "c"}, "op": "r"}"#,
        r#"{"before": {"id": 2, "v": "c"}, "op": "d"}"#,
    ];
    let rows: Vec<usize> = records
        .iter()
        .map(|record| decoder.push(Some(record.as_bytes())).unwrap())
        .collect();
    assert_eq!(rows, [1, 2, 1, 1]);
    assert_eq!(
        decoder.push(None),
        Ok(0),
        "a record without a value is no change"
    );
    for (bad, word) in [
        (r#"{"after": {"id": 1}}"#, "\"op\" is missing"),
        (r#"{"after": {"id": 1}, "op": "x"}"#, "\"op\" is \"x\""),
        (r#"{"op": "c"}"#, "\"after\" is missing"),
        (
            r#"{"before": {"id": 2}, "op": "u"}"#,
            "\"after\" is missing",
        ),
        (
            r#"{"before": {"id": 2}, "after": {"v": "b"}, "op": "u"}"#,
            "NOT NULL",
        ),
        (r#"{"before": [], "op": "d"}"#, "an object is expected"),
    ] {
        let detail = decoder.push(Some(bad.as_bytes())).unwrap_err().detail;
        assert!(detail.contains(word), "{bad}: {detail}");
    }
    let (batch, kinds) = decoder.finish();
    let expected = [
        kind::INSERT,
        kind::UPDATE_BEFORE,
        kind::UPDATE_AFTER,
        kind::INSERT,
        kind::DELETE,
    ];
    assert_eq!(kinds.unwrap().values(), &expected[..]);
    let values: Vec<_> = batch["v"].as_string::<i32>().iter().flatten().collect();
    assert_eq!(values, ["a", "a", "b", "c", "c"]);
}

/// It was read as an insert, and a running aggregate counted the row twice.
#[test]
fn an_update_or_delete_without_the_row_before_is_a_bad_record_that_says_what_to_set() {
    let mut decoder = decoder(Format::DebeziumJson, "id BIGINT NOT NULL, v VARCHAR");
    for bad in [
        r#"{"after": {"id": 1, "v": "c"}, "op": "u"}"#,
        r#"{"before": null, "after": {"id": 1, "v": "c"}, "op": "u"}"#,
        r#"{"schema": {}, "payload": {"before": null, "after": {"id": 1}, "op": "u"}}"#,
        r#"{"before": null, "after": null, "op": "d"}"#,
    ] {
        let detail = decoder.push(Some(bad.as_bytes())).unwrap_err().detail;
        assert!(
            detail.starts_with("\"before\" is missing or null"),
            "{detail}"
        );
        assert!(detail.contains("REPLICA IDENTITY FULL"), "{detail}");
    }
    assert_eq!(decoder.finish().0.num_rows(), 0);
}

fn changes() -> (Vec<Column>, Rows) {
    let schema = columns("id BIGINT NOT NULL, v VARCHAR");
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 1, 1, 2, 1, 3]));
    let values: ArrayRef = Arc::new(StringArray::from(vec!["a", "a", "b", "x", "b", "n"]));
    let batch = RecordBatch::try_new(to_arrow_schema(&schema), vec![ids, values]).unwrap();
    let kinds = [
        kind::INSERT,
        kind::UPDATE_BEFORE,
        kind::UPDATE_AFTER,
        kind::UPDATE_AFTER,
        kind::DELETE,
        kind::UPDATE_BEFORE,
    ];
    let rows = Rows {
        kinds: Some(Int8Array::from(kinds.to_vec())),
        ..Rows::inserts(batch)
    };
    (schema, rows)
}

fn encoded(format: Format, schema: &[Column], rows: &Rows, key: &[&str]) -> Vec<String> {
    let key: Vec<String> = key.iter().map(|name| (*name).to_owned()).collect();
    let encoder = Encoder::new(format, schema, &key).unwrap();
    let mut out = EncodedRecords::default();
    encoder.encode(rows, &mut out).unwrap();
    let text = |bytes: Option<&[u8]>| match bytes {
        Some(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        None => "-".to_owned(),
    };
    out.iter()
        .map(|record| format!("{} {} {}", record.row, text(record.key), text(record.value)))
        .collect()
}

#[test]
fn upserts_say_the_latest_row_per_key_and_a_delete_is_a_key_without_value() {
    let (schema, rows) = changes();
    assert_eq!(
        encoded(Format::Json, &schema, &rows, &["id"]),
        [
            r#"0 {"id":1} {"id":1,"v":"a"}"#,
            r#"2 {"id":1} {"id":1,"v":"b"}"#,
            r#"3 {"id":2} {"id":2,"v":"x"}"#,
            r#"4 {"id":1} -"#,
        ]
    );
    let encoder = Encoder::new(Format::Json, &schema, &[]).unwrap();
    let refused = encoder.encode(&rows, &mut EncodedRecords::default());
    assert!(refused.unwrap_err().detail.contains("no key"));
}

#[test]
fn debezium_says_every_change_and_reads_back() {
    let (schema, rows) = changes();
    let records = encoded(Format::DebeziumJson, &schema, &rows, &[]);
    assert_eq!(
        records,
        [
            r#"0 - {"before":null,"after":{"id":1,"v":"a"},"op":"c"}"#,
            r#"2 - {"before":{"id":1,"v":"a"},"after":{"id":1,"v":"b"},"op":"u"}"#,
            r#"3 - {"before":null,"after":{"id":2,"v":"x"},"op":"c"}"#,
            r#"4 - {"before":{"id":1,"v":"b"},"after":null,"op":"d"}"#,
            r#"5 - {"before":{"id":3,"v":"n"},"after":null,"op":"d"}"#,
        ]
    );
    let mut decoder = Decoder::new(Format::DebeziumJson, &schema, &schema).unwrap();
    for record in &records {
        let value = record.splitn(3, ' ').last().unwrap();
        decoder.push(Some(value.as_bytes())).unwrap();
    }
    assert_eq!(decoder.finish().0, rows.batch);
}

/// One column of every type, two rows of ordinary values, one of extremes, one of nulls.
fn every_type() -> (Vec<Column>, RecordBatch) {
    let schema = columns(
        "b BOOLEAN, i TINYINT, l BIGINT, u BIGINT UNSIGNED, f FLOAT, d DOUBLE, n DECIMAL(38, 10), \
         t VARCHAR, y BYTES, day DATE, tm TIME, ms TIMESTAMP(3), ns TIMESTAMP(9), \
         a ARRAY<VARCHAR>, r ROW<x BIGINT, \"y \"\"z\" VARCHAR>, j JSON",
    );
    let text = [
        Some("plain"),
        Some("quotes \" \\ \n \u{1} ü 😀, end"),
        Some(""),
        None,
    ];
    let mut lists = arrow::array::ListBuilder::new(arrow::array::StringBuilder::new());
    lists.append_value([Some("a"), None]);
    lists.append_value([Some("x,\"y\"")]);
    lists.append_value(Vec::<Option<&str>>::new());
    lists.append_null();
    let arrow_schema = to_arrow_schema(&schema);
    let row_fields = match arrow_schema.field_with_name("r").unwrap().data_type() {
        arrow::datatypes::DataType::Struct(fields) => fields.clone(),
        other => panic!("{other}"),
    };
    let rows = arrow::array::StructArray::new(
        row_fields,
        vec![
            Arc::new(Int64Array::from(vec![Some(1), None, Some(3), None])) as ArrayRef,
            Arc::new(StringArray::from(text.to_vec())),
        ],
        Some(vec![true, true, true, false].into()),
    );
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(BooleanArray::from(vec![
            Some(true),
            Some(false),
            Some(true),
            None,
        ])),
        Arc::new(Int8Array::from(vec![
            Some(0),
            Some(-1),
            Some(i8::MIN),
            None,
        ])),
        Arc::new(Int64Array::from(vec![
            Some(7),
            Some(i64::MIN),
            Some(i64::MAX),
            None,
        ])),
        Arc::new(UInt64Array::from(vec![
            Some(7),
            Some(0),
            Some(u64::MAX),
            None,
        ])),
        Arc::new(Float32Array::from(vec![
            Some(0.1),
            Some(-2.5),
            Some(f32::MAX),
            None,
        ])),
        Arc::new(Float64Array::from(vec![
            Some(0.1),
            Some(1e-300),
            Some(f64::MAX),
            None,
        ])),
        Arc::new(
            Decimal128Array::from(vec![Some(15), Some(-1), Some(10_i128.pow(38) - 1), None])
                .with_precision_and_scale(38, 10)
                .unwrap(),
        ),
        Arc::new(StringArray::from(text.to_vec())),
        Arc::new(BinaryArray::from(vec![
            Some(&b"hi"[..]),
            Some(b"\xff\x00"),
            Some(b""),
            None,
        ])),
        Arc::new(Date32Array::from(vec![
            Some(0),
            Some(-1),
            Some(2_932_896),
            None,
        ])),
        Arc::new(Time64NanosecondArray::from(vec![
            Some(0),
            Some(1),
            Some(86_399_999_999_999),
            None,
        ])),
        Arc::new(TimestampMillisecondArray::from(vec![
            Some(0),
            Some(-1),
            Some(i64::MAX),
            None,
        ])),
        Arc::new(TimestampNanosecondArray::from(vec![
            Some(0),
            Some(-1),
            Some(i64::MIN),
            None,
        ])),
        Arc::new(lists.finish()),
        Arc::new(rows),
        Arc::new(StringArray::from(vec![
            Some("{\"k\": [1, 2.50]}"),
            Some("1e5"),
            Some("\"s\""),
            None,
        ])),
    ];
    (schema, RecordBatch::try_new(arrow_schema, arrays).unwrap())
}

#[test]
fn every_type_reads_back_in_every_format() {
    let (schema, batch) = every_type();
    for format in [
        Format::Json,
        Format::Csv,
        Format::Msgpack,
        Format::DebeziumJson,
    ] {
        // MessagePack keeps JSON text as text; reading it as a JSON column makes it a JSON string.
        let kept: Vec<usize> = (0..schema.len())
            .filter(|i| format != Format::Msgpack || schema[*i].name != "j")
            .collect();
        let schema: Vec<Column> = kept.iter().map(|i| schema[*i].clone()).collect();
        let batch = batch.project(&kept).unwrap();
        let encoder = Encoder::new(format, &schema, &[]).unwrap();
        let mut out = EncodedRecords::default();
        encoder
            .encode(&Rows::inserts(batch.clone()), &mut out)
            .unwrap();
        let mut decoder = Decoder::new(format, &schema, &schema).unwrap();
        for record in out.iter() {
            let value = record.value.unwrap();
            assert!(
                format != Format::Json || !value.contains(&b'\n'),
                "a record is one line"
            );
            let shown = String::from_utf8_lossy(value);
            assert_eq!(decoder.push(Some(value)), Ok(1), "{format:?}: {shown}");
        }
        assert_eq!(decoder.finish().0, batch, "{format:?}");
    }
}

#[test]
fn what_json_has_no_number_for_is_null() {
    let schema = columns("f FLOAT, d DOUBLE");
    let floats: ArrayRef = Arc::new(Float32Array::from(vec![f32::NAN, f32::INFINITY]));
    let doubles: ArrayRef = Arc::new(Float64Array::from(vec![f64::NEG_INFINITY, f64::NAN]));
    let batch = RecordBatch::try_new(to_arrow_schema(&schema), vec![floats, doubles]).unwrap();
    assert_eq!(
        encoded(Format::Json, &schema, &Rows::inserts(batch), &[]),
        [r#"0 - {"f":null,"d":null}"#, r#"1 - {"f":null,"d":null}"#]
    );
}

/// What another parser makes of a record, by the rules of the column types used below.
fn reference(record: &[u8]) -> Option<Json> {
    let text = std::str::from_utf8(record).ok()?;
    // The form is what counts for fields nobody needs: this parser checks just that.
    serde_json::from_str::<BTreeMap<String, serde::de::IgnoredAny>>(text).ok()?;
    let fields: BTreeMap<String, Box<serde_json::value::RawValue>> =
        serde_json::from_str(text).ok()?;
    let field = |name: &str| fields.get(name).map(|raw| raw.get());
    let integer = match field("i") {
        None | Some("null") => Json::Null,
        Some(raw) => match serde_json::from_str::<Json>(raw).ok()? {
            Json::Number(number) => match number.as_i64() {
                Some(integer) => integer.into(),
                // Written with a point or an exponent, it may still be whole.
                None => {
                    let float = number.as_f64()?;
                    let whole = float.fract() == 0.0 && float.abs() < 1e15;
                    whole.then_some(float as i64)?.into()
                }
            },
            Json::String(text) => {
                let digits = text.strip_prefix('-').unwrap_or(&text);
                let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                plain.then(|| text.parse::<i64>().ok()).flatten()?.into()
            }
            _ => return None,
        },
    };
    let text = match field("t") {
        None | Some("null") => Json::Null,
        Some(raw) => Json::String(serde_json::from_str(raw).ok()?),
    };
    let flag = match field("b") {
        None | Some("null") => Json::Null,
        Some(raw) => Json::Bool(serde_json::from_str(raw).ok()?),
    };
    Some(serde_json::json!({"i": integer, "t": text, "b": flag}))
}

fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        (-1000..1000_i64).prop_map(|i| i.to_string()),
        any::<i32>().prop_map(|i| format!("\"{i}\"")),
        prop_oneof![
            "-?[0-9]{1,3}(\\.[0-9]{1,2})?(e[0-9])?",
            "-?(0|[1-9][0-9]{0,25})"
        ],
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        "\"(\\\\u00[0-7][0-9a-f]|\\\\n|[a-z ])*\"",
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::vec((name(), inner), 0..4).prop_map(object),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[itb]", 1 => "[a-z]{1,3}", 1 => Just("\\u0069".to_owned())]
}

fn object(fields: Vec<(String, String)>) -> String {
    let fields: Vec<String> = fields
        .into_iter()
        .map(|(name, value)| format!("\"{name}\" :{value}"))
        .collect();
    format!("{{{}}}", fields.join(" , "))
}

fn record() -> impl Strategy<Value = Vec<u8>> {
    let fields = prop::collection::vec((name(), any_json()), 0..6);
    let sound = fields.prop_map(|fields| object(fields).into_bytes());
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>()), 0..3);
    // Half of the records are left as they are; others lose, gain or change bytes.
    (sound, edits, any::<bool>()).prop_map(|(mut bytes, edits, sound)| {
        for (index, edit, byte) in edits.into_iter().filter(|_| !sound) {
            let at = index.index(bytes.len().max(1));
            match edit {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] = byte,
                2 if at < bytes.len() => {
                    bytes.remove(at);
                }
                _ => bytes.insert(
                    at.min(bytes.len()),
                    b"{}[]\",:0-. \n"[usize::from(byte) % 12],
                ),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_decoder_agrees_with_another_strict_parser(records in prop::collection::vec(record(), 1..6)) {
        // One decoder for several records: what it learnt of one must not change the next.
        let mut decoder = decoder(Format::Json, "i BIGINT, t VARCHAR, b BOOLEAN");
        let mut expected = Vec::new();
        for record in &records {
            let reference = reference(record);
            let decoded = decoder.push(Some(record));
            let shown = String::from_utf8_lossy(record);
            prop_assert_eq!(decoded.is_ok(), reference.is_some(), "{}: {:?}", shown, decoded);
            expected.extend(reference);
        }
        let (batch, _) = decoder.finish();
        let schema = columns("i BIGINT, t VARCHAR, b BOOLEAN");
        let encoder = Encoder::new(Format::Json, &schema, &[]).unwrap();
        let mut out = EncodedRecords::default();
        encoder.encode(&Rows::inserts(batch), &mut out).unwrap();
        let rows: Vec<Json> = out
            .iter()
            .map(|record| serde_json::from_slice(record.value.unwrap()).unwrap())
            .collect();
        prop_assert_eq!(rows, expected);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic_or_leave_half_a_row(
        records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..8),
        format in prop::sample::select(vec![Format::Json, Format::Csv, Format::Msgpack, Format::DebeziumJson]),
    ) {
        let mut decoder = decoder(format, "a BIGINT, t VARCHAR, l ARRAY<BYTES>, j JSON");
        let mut rows = 0;
        for record in &records {
            rows += decoder.push(Some(record)).unwrap_or(0);
        }
        prop_assert_eq!(decoder.finish().0.num_rows(), rows);
    }
}
