//! What all of it is: `/openapi.json` for programs, `/docs` for people. Neither needs a network.

use std::sync::LazyLock;

use actix_web::HttpResponse;
use actix_web::web::Json;
use serde_json::Value;
use utoipa::OpenApi;

use super::Api;

const PAGE: &str = include_str!("docs.html");
const COMPONENTS: &str = "#/components/schemas/";
/// Types whose variants take no fields but their own. As derived, none of the variants says so.
const CLOSED: [&str; 1] = ["WindowSpec"];

static DESCRIPTION: LazyLock<Value> = LazyLock::new(description);

pub(crate) async fn openapi() -> Json<&'static Value> {
    Json(&DESCRIPTION)
}

pub(crate) async fn docs() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .body(PAGE)
}

fn description() -> Value {
    let mut api = serde_json::to_value(Api::openapi()).expect("a description is JSON");
    let schemas = api["components"]["schemas"].take();
    let mut told = schemas.clone();
    inline_tags(&mut told, &schemas);
    for name in CLOSED {
        for variant in told[name]["oneOf"].as_array_mut().into_iter().flatten() {
            variant["additionalProperties"] = Value::Bool(false);
        }
    }
    api["components"]["schemas"] = told;
    api
}

/// Makes one object of a variant's fields and its tag. As derived, a variant is all of its struct, which takes
/// no fields but its own, and of an object that wants the tag besides: nothing is both.
fn inline_tags(schema: &mut Value, schemas: &Value) {
    if let Some(merged) = tagged_variant(schema, schemas) {
        *schema = merged;
        return;
    }
    match schema {
        Value::Object(fields) => fields.values_mut().for_each(|s| inline_tags(s, schemas)),
        Value::Array(items) => items.iter_mut().for_each(|s| inline_tags(s, schemas)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn tagged_variant(schema: &Value, schemas: &Value) -> Option<Value> {
    let [fields, tag] = schema["allOf"].as_array()?.as_slice() else {
        return None;
    };
    let name = fields["$ref"].as_str()?.strip_prefix(COMPONENTS)?;
    let mut merged = schemas[name].clone();
    if merged["additionalProperties"] != false {
        return None;
    }
    let properties = merged["properties"].as_object_mut()?;
    properties.extend(tag["properties"].as_object()?.clone());
    let tags = tag["required"].as_array()?.iter().cloned();
    match merged["required"].as_array_mut() {
        Some(required) => required.extend(tags),
        None => merged["required"] = tags.collect(),
    }
    Some(merged)
}
