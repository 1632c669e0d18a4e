//! SQL expressions as text, and the names of what they compute.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::schema::{AdditionalProperties, Object, OneOf, Schema, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

/// A SQL expression over the columns of an operator's input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
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
        match plain && !has(NEVER_A_COLUMN, name) && !has(A_COLUMN_ALONE, name) {
            true => Expression(name.to_owned()),
            false => Expression(format!("\"{}\"", name.replace('"', "\"\""))),
        }
    }

    /// The column this expression is, if it is nothing but one.
    pub fn as_column(&self) -> Option<String> {
        let text = self.0.trim();
        if let Some(quoted) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
            // Quotes inside a name are doubled: single ones end it, and something follows.
            let doubled = quoted.split("\"\"").collect::<Vec<_>>();
            let is_one_name = doubled.iter().all(|part| !part.contains('"'));
            return is_one_name.then(|| doubled.join("\""));
        }
        let word = !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !text.starts_with(|c: char| c.is_ascii_digit())
            && !has(NEVER_A_COLUMN, &text.to_ascii_lowercase());
        word.then(|| text.to_ascii_lowercase())
    }
}

/// Words that an expression parser does not read as a column, also if nothing else is there. Sorted, because
/// they are searched by halves; the planner has a test that no word of the parser's is missing.
const NEVER_A_COLUMN: &[&str] = &[
    "current_date",
    "current_time",
    "current_timestamp",
    "exists",
    "false",
    "interval",
    "null",
    "struct",
    "trim",
    "true",
];

/// Words that it reads as a column only if nothing else is there. Sorted.
const A_COLUMN_ALONE: &[&str] = &[
    "all",
    "any",
    "case",
    "current_catalog",
    "current_user",
    "distinct",
    "localtime",
    "localtimestamp",
    "not",
    "returning",
    "select",
    "session_user",
    "some",
    "user",
    "when",
    "with",
];

fn has(words: &[&str], word: &str) -> bool {
    words.binary_search(&word).is_ok()
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

impl PartialSchema for NamedExpression {
    fn schema() -> RefOr<Schema> {
        let text = || Object::with_type(SchemaType::new(Type::String));
        let named = Object::builder()
            .property("expr", Ref::from_schema_name(Expression::name()))
            .property("as", text())
            .required("expr")
            .required("as")
            .additional_properties(Some(AdditionalProperties::FreeForm(false)))
            .build();
        let one_of = OneOf::builder().item(text()).item(named);
        let description = "A column's name, or an expression and the name of what it computes.";
        Schema::OneOf(one_of.description(Some(description)).build()).into()
    }
}

impl ToSchema for NamedExpression {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Expression::name().into_owned(), Expression::schema()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Names of every kind: plain ones, the words of SQL, and ones that only quotes can carry.
    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z_][a-z0-9_]{0,8}",
            prop::sample::select(NEVER_A_COLUMN).prop_map(str::to_owned),
            prop::sample::select(A_COLUMN_ALONE).prop_map(str::to_uppercase),
            "\\PC{1,8}",
            "[ \"'.,()a-zA-Z0-9;ü-]{1,12}",
        ]
    }

    proptest! {
        #[test]
        fn a_column_of_any_name_survives_as_an_expression(name in name()) {
            let expression = Expression::column(&name);
            prop_assert_eq!(expression.as_column(), Some(name), "{}", expression);
        }
    }

    #[test]
    fn words_that_mean_something_else_are_quoted() {
        for word in NEVER_A_COLUMN {
            assert_eq!(Expression::column(word).0, format!("\"{word}\""));
            assert_eq!(Expression((*word).to_owned()).as_column(), None);
        }
        for word in A_COLUMN_ALONE {
            assert_eq!(Expression::column(word).0, format!("\"{word}\""));
        }
        assert_eq!(Expression::column("timestamp").0, "timestamp");
    }

    #[test]
    fn the_words_are_sorted() {
        for words in [NEVER_A_COLUMN, A_COLUMN_ALONE] {
            assert!(words.is_sorted_by(|a, b| a < b), "{words:?}");
        }
    }

    #[test]
    fn what_computes_something_is_no_column() {
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
