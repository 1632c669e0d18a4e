//! Clicks as a shop writes them: read from a file, checked before anything runs on them.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, NaiveDateTime};
use serde_json::Value;

/// What one click says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Click {
    pub(crate) session: i64,
    pub(crate) action: String,
    pub(crate) product: Option<i64>,
    pub(crate) price: Option<f64>,
    pub(crate) quantity: Option<i64>,
    pub(crate) at: NaiveDateTime,
}

const SHAPE: &str = "a click is an object such as {\"session\": 1, \"action\": \"purchase\", \"product\": 7, \
                     \"price\": 2.5, \"quantity\": 2, \"ts\": \"2026-01-01T12:00:00.250\"}";

impl Click {
    /// Strict, as the cluster is: what passes here is a row there, and no dead letter.
    pub(crate) fn of(value: &Value) -> Result<Click> {
        ensure!(value.is_object(), "it is no object; {SHAPE}");
        let field = |name: &str| Some(&value[name]).filter(|field| !field.is_null());
        let text = |name: &str| {
            let text = field(name).map(|field| field.as_str().with_context(|| wrong(name, "text")));
            text.transpose()
        };
        let integer = |name: &str| {
            let number = field(name).map(|f| f.as_i64().with_context(|| wrong(name, "an integer")));
            number.transpose()
        };
        let price = field("price").map(|f| f.as_f64().with_context(|| wrong("price", "a number")));
        let click = Click {
            session: integer("session")?.with_context(|| missing("session"))?,
            action: text("action")?
                .with_context(|| missing("action"))?
                .to_owned(),
            product: integer("product")?,
            price: price.transpose()?,
            quantity: integer("quantity")?,
            at: time(field("ts").with_context(|| missing("ts"))?)?,
        };
        if click.action == "purchase" {
            ensure!(click.product.is_some(), missing("product"));
            ensure!(click.price.is_some(), missing("price"));
            ensure!(click.quantity.is_some(), missing("quantity"));
        }
        Ok(click)
    }
}

fn missing(name: &str) -> String {
    format!("\"{name}\" is missing; {SHAPE}")
}

fn wrong(name: &str, kind: &str) -> String {
    format!("\"{name}\" is not {kind}; {SHAPE}")
}

/// A text, or milliseconds since 1970.
fn time(value: &Value) -> Result<NaiveDateTime> {
    let no_time = || wrong("ts", "a time");
    if let Some(milliseconds) = value.as_i64() {
        let time = DateTime::from_timestamp_millis(milliseconds).with_context(no_time)?;
        return Ok(time.naive_utc());
    }
    let text = value.as_str().with_context(no_time)?;
    for form in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, form) {
            return Ok(time);
        }
    }
    let zoned = DateTime::parse_from_rfc3339(text).with_context(no_time)?;
    Ok(zoned.naive_utc())
}

/// The lines of a file, each of them a click.
pub(crate) fn read(file: &Path) -> Result<Vec<Vec<u8>>> {
    let name = file.display();
    let bytes = std::fs::read(file).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!("there is no file {name}"),
        _ => anyhow::anyhow!("cannot read {name}: {error}"),
    })?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        bail!("{name} is compressed; unpack it first: gunzip --keep {name}");
    }
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let value: Value = serde_json::from_slice(line)
            .map_err(|error| anyhow::anyhow!("{name}, line {number} is not JSON: {error}"))?;
        Click::of(&value).with_context(|| format!("{name}, line {number} is no click"))?;
        lines.push(line.to_vec());
    }
    ensure!(!lines.is_empty(), "there are no clicks in {name}; {SHAPE}");
    Ok(lines)
}
