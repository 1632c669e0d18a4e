//! The description of the API, taken at its word: what it says of a job's graph is what is accepted.

use actix_web::rt::System;
use serde_json::{Value, json};

use super::docs::openapi;

fn api() -> Value {
    System::new().block_on(async { openapi().await.0.clone() })
}

/// Why a value is not what a schema describes: the parts of JSON Schema that ours are made of.
fn mismatch(api: &Value, schema: &Value, value: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.trim_start_matches('#');
        let target = api.pointer(pointer);
        return mismatch(api, target.expect("a reference leads somewhere"), value);
    }
    if let Some(variants) = schema["oneOf"].as_array() {
        let all: Vec<Option<String>> = variants.iter().map(|v| mismatch(api, v, value)).collect();
        let fitting = all.iter().filter(|mismatch| mismatch.is_none()).count();
        return (fitting != 1).then(|| format!("{value} fits {fitting} of {all:?}"));
    }
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        Value::Null => return None,
        kind => vec![kind.clone()],
    };
    let is = |kind: &Value| match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("no type is called {other}"),
    };
    if !kinds.iter().any(is) {
        return Some(format!("{value} is none of {kinds:?}"));
    }
    if schema["enum"]
        .as_array()
        .is_some_and(|all| !all.contains(value))
    {
        return Some(format!("{value} is none of {}", schema["enum"]));
    }
    let mut items = value.as_array().into_iter().flatten();
    if let Some(mismatch) = items.find_map(|item| mismatch(api, &schema["items"], item)) {
        return Some(mismatch);
    }
    let fields = value.as_object()?;
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            return Some(format!("{name} is missing in {value}"));
        }
    }
    fields.iter().find_map(|(name, field)| {
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => Some(format!("{name} is unknown")),
            (Value::Null, Value::Null) => None,
            (Value::Null, others) => mismatch(api, others, field),
            (known, _) => mismatch(api, known, field),
        }
    })
}

fn graph() -> Value {
    json!({
        "sources": {
            "bids": {"connector": "topic", "topic": "bids", "format": "json",
                "schema": [{"name": "auction", "type": "BIGINT"}, {"name": "price", "type": "BIGINT"},
                           {"name": "ts", "type": "TIMESTAMP(3)", "nullable": false}],
                "watermark": {"column": "ts", "delay": "5s"}, "idle_timeout": 2_000,
                "scan.startup.mode": "offsets", "scan.startup.offsets": {"0": 7}},
            "old": {"connector": "files", "path": "/data/", "schema": [], "scan.watch": "1s"},
            "made": {"connector": "generator", "generator": "nexmark_bid", "rows": 5}},
        "operators": [
            {"id": "large", "type": "filter", "inputs": ["bids"], "predicate": "price > 1000"},
            {"id": "counts", "type": "window_aggregate", "inputs": ["large"],
             "keys": ["auction", {"expr": "price % 2", "as": "odd"}],
             "window": {"type": "tumbling", "size": "10s"},
             "aggregates": [{"fn": "count", "as": "bids"}, {"fn": "sum", "args": ["price"], "as": "total"}]},
            {"id": "own", "type": "custom", "inputs": ["counts"], "name": "own", "schema": [],
             "config": {"any": ["thing"]}}],
        "sinks": {
            "out": {"input": "counts", "connector": "topic", "topic": "counts", "format": "json"},
            "told": {"input": "own", "connector": "webhook", "url": "http://host/", "headers": {"a": "b"}}}})
}

#[test]
fn a_jobs_graph_is_what_the_schema_says() {
    let api = api();
    let schema = json!({"$ref": "#/components/schemas/JobGraph"});
    let told = |graph: &Value| mismatch(&api, &schema, graph);
    let taken =
        |graph: &Value| serde_json::from_value::<common::plan::JobGraph>(graph.clone()).is_ok();
    let good = graph();
    assert_eq!(told(&good), None);
    let again = serde_json::from_value::<common::plan::JobGraph>(good.clone()).unwrap();
    let again = serde_json::to_value(again).unwrap();
    assert_eq!(told(&again), None, "what is answered is of the same kind");
    for (place, name, wrong) in [
        ("", "sink", json!({})),
        ("/sources/bids", "connector", json!("topik")),
        ("/sources/bids", "topics", json!("bids")),
        ("/sources/bids", "topic", json!(7)),
        ("/sources/bids/watermark", "delay", json!(true)),
        ("/sources/bids/schema/0", "type", json!(7)),
        ("/sources/made", "generator", json!("nothing")),
        ("/sources/old", "url", json!("x")),
        ("/operators/0", "predicate", json!(["x"])),
        ("/operators/0", "type", json!("sort")),
        ("/operators/1", "keys", json!([7])),
        ("/operators/1/window", "slide", json!("5s")),
        ("/operators/1/aggregates/0", "as", json!(null)),
        ("/sinks/out", "format", json!("xml")),
        ("/sinks/told", "max_rows", json!("many")),
    ] {
        let mut bad = graph();
        bad.pointer_mut(place).unwrap()[name] = wrong;
        assert!(!taken(&bad), "{place}/{name} is accepted");
        assert!(told(&bad).is_some(), "{place}/{name} is described");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let api = api();
    let mut found = Vec::new();
    references(&api, &mut found);
    assert!(found.contains(&"#/components/schemas/JobGraph"));
    for reference in found {
        let target = api.pointer(reference.trim_start_matches('#'));
        assert!(target.is_some(), "{reference}");
    }
}
