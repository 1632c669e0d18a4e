//! JSON from outside → values, with the place of what is not as it should be.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

/// Why a text or a value was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// A JSON pointer; empty: the whole, or a text that is not JSON.
    pub pointer: String,
    pub detail: String,
    /// Line and column, if a text was read.
    pub place: (usize, usize),
}

/// Reads a text. Only an object will do: the structs of requests would also be read from arrays.
pub fn read_object<T: DeserializeOwned>(text: &[u8]) -> Result<T, Mistake> {
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    if !matches!(first, None | Some(b'{'))
        && let Ok(value) = serde_json::from_slice::<Value>(text)
    {
        return Err(Mistake {
            pointer: String::new(),
            detail: format!("an object is expected, not {}", kind(&value)),
            place: (1, 1),
        });
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| mistake(error.path(), error.inner()))?;
    deserializer.end().map_err(|error| Mistake {
        pointer: String::new(),
        detail: without_place(&error),
        place: (error.line(), error.column()),
    })?;
    Ok(value)
}

/// Reads a value.
pub fn read_value<T: DeserializeOwned>(value: Value) -> Result<T, Mistake> {
    serde_path_to_error::deserialize(value).map_err(|error| mistake(error.path(), error.inner()))
}

/// A name as a part of a JSON pointer.
pub fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn mistake(path: &Path, error: &serde_json::Error) -> Mistake {
    let detail = without_place(error);
    let mut pointer = String::new();
    // Of a text that is not JSON the line and column say more than where reading had come to.
    if error.is_data() {
        for segment in path {
            match segment {
                Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
                Segment::Map { key } => pointer.push_str(&format!("/{}", escaped(key))),
                Segment::Enum { .. } | Segment::Unknown => {}
            }
        }
        let named = ["missing field `", "unknown field `"]
            .iter()
            .find_map(|prefix| detail.strip_prefix(prefix)?.split('`').next());
        if let Some(field) = named.map(|field| format!("/{}", escaped(field)))
            && !(detail.starts_with("unknown") && pointer.ends_with(&field))
        {
            pointer.push_str(&field);
        }
    }
    Mistake {
        pointer,
        detail,
        place: (error.line(), error.column()),
    }
}

/// serde_json repeats the place at the end of its text.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only mistakes are looked at")]
    struct Outer {
        count: u32,
        #[serde(default)]
        inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only mistakes are looked at")]
    struct Inner {
        name: String,
    }

    #[test]
    fn a_mistake_is_pointed_at() {
        for (text, pointer, detail) in [
            (
                r#"{"count": "4"}"#,
                "/count",
                "invalid type: string \"4\", expected u32",
            ),
            (r#"{"cont": 4}"#, "/cont", "unknown field `cont`"),
            (r#"{}"#, "/count", "missing field `count`"),
            (
                r#"{"count": 1, "inner": [{"name": "a"}, {"name": 5}]}"#,
                "/inner/1/name",
                "invalid type",
            ),
            (
                r#"{"count": 1, "inner": [{}]}"#,
                "/inner/0/name",
                "missing field `name`",
            ),
            (
                r#"{"count": 1, "inner": [{"name": "a", "b/c": 1}]}"#,
                "/inner/0/b~1c",
                "unknown field",
            ),
            ("[]", "", "an object is expected, not an array"),
            ("", "", "EOF"),
            (r#"{"count": 1"#, "", "EOF"),
            (r#"{"count": 1} 2"#, "", "trailing characters"),
        ] {
            let mistake = read_object::<Outer>(text.as_bytes()).unwrap_err();
            assert_eq!(mistake.pointer, pointer, "{text}: {mistake:?}");
            assert!(mistake.detail.contains(detail), "{text}: {mistake:?}");
        }
    }
}
