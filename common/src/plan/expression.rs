//! SQL expressions as text, and the names of what they compute.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// A SQL expression over the columns of an operator's input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Expression(pub String);

/// An expression and the column it becomes. A bare column may be written as a plain string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct NamedExpression {
    pub expr: Expression,
    #[serde(rename = "as")]
    pub name: String,
}

impl Expression {
    /// The expression that is a column's value. The name is quoted, so that any name will do.
    pub fn column(name: &str) -> Expression {
        let plain = name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        // A quoted name is always right; an unquoted one reads better and is right for these.
        let reserved = sql_reserved(name);
        match plain && !reserved {
            true => Expression(name.to_owned()),
            false => Expression(format!("\"{}\"", name.replace('"', "\"\""))),
        }
    }

    /// The column this expression is, if it is nothing but one.
    pub fn as_column(&self) -> Option<String> {
        let text = self.0.trim();
        if let Some(quoted) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
            let name = quoted.replace("\"\"", "\u{0}");
            return (!name.contains('"')).then(|| name.replace('\u{0}', "\""));
        }
        let word = !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && !sql_reserved(&text.to_ascii_lowercase());
        word.then(|| text.to_ascii_lowercase())
    }
}

/// Words that an expression parser does not read as a column when they stand alone.
fn sql_reserved(word: &str) -> bool {
    const RESERVED: &[&str] = &[
        "all",
        "and",
        "any",
        "array",
        "as",
        "between",
        "by",
        "case",
        "cast",
        "current_date",
        "current_time",
        "current_timestamp",
        "cross",
        "date",
        "distinct",
        "else",
        "end",
        "except",
        "exists",
        "extract",
        "false",
        "fetch",
        "from",
        "full",
        "group",
        "having",
        "in",
        "inner",
        "intersect",
        "interval",
        "is",
        "join",
        "left",
        "like",
        "limit",
        "localtime",
        "localtimestamp",
        "natural",
        "not",
        "null",
        "offset",
        "on",
        "or",
        "order",
        "outer",
        "position",
        "right",
        "select",
        "some",
        "struct",
        "substring",
        "table",
        "then",
        "time",
        "timestamp",
        "trim",
        "true",
        "union",
        "unique",
        "using",
        "values",
        "when",
        "where",
        "window",
        "with",
    ];
    RESERVED.binary_search(&word).is_ok() || word == "cross"
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NamedExpression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NamedExpression, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a column's name, or {\"expr\": …, \"as\": …}")]
        enum Written {
            Column(String),
            Named(Full),
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Full {
            expr: Expression,
            #[serde(rename = "as")]
            name: String,
        }
        match Written::deserialize(deserializer)? {
            Written::Named(Full { expr, name }) => Ok(NamedExpression { expr, name }),
            Written::Column(text) => {
                let expr = Expression(text);
                let name = expr.as_column().ok_or_else(|| {
                    serde::de::Error::custom(format!(
                        "\"{expr}\" is not a plain column; give it a name: {{\"expr\": …, \"as\": …}}"
                    ))
                })?;
                Ok(NamedExpression { expr, name })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_of_any_name_survives_as_an_expression() {
        for name in [
            "price",
            "Price",
            "a b",
            "select",
            "timestamp",
            "say \"hi\"",
            "1st",
            "ü",
        ] {
            assert_eq!(Expression::column(name).as_column().as_deref(), Some(name));
        }
        assert_eq!(Expression("price + 1".into()).as_column(), None);
        assert_eq!(Expression("\"a\" || \"b\"".into()).as_column(), None);
    }

    #[test]
    fn only_a_plain_column_may_go_without_a_name() {
        let named: NamedExpression = serde_json::from_str("\"auction\"").unwrap();
        assert_eq!(named.name, "auction");
        let error = serde_json::from_str::<NamedExpression>("\"price * 2\"").unwrap_err();
        assert!(error.to_string().contains("give it a name"), "{error}");
    }
}
