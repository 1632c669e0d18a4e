//! A column of any name keeps it in the text of expressions.

use common::plan::expression::Expression;
use common::schema::{Column, ColumnType};
use datafusion::logical_expr::Expr;
use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;
use proptest::prelude::*;

use super::expression_text::write;
use super::expressions::{Functions, df_schema};

/// Where in a text a column may stand.
const PLACES: &[&str] = &[
    "{}",
    "({})",
    "{} + 1",
    "1 + {}",
    "-{}",
    "{} - {}",
    "{} > {}",
    "abs({})",
    "coalesce({}, {}, 1)",
    "{} IS NULL",
    "{} IS NOT NULL AND {} > 1",
    "NOT {} > 1",
    "{} BETWEEN {} AND {}",
    "{} IN ({}, 1)",
    "1 IN ({}, {})",
    "CASE WHEN {} > 1 THEN {} ELSE {} END",
    "CASE {} WHEN {} THEN {} END",
    "CAST({} AS VARCHAR)",
    "CAST({} AS VARCHAR) LIKE CAST({} AS VARCHAR)",
    "make_array({}, {})",
    "named_struct('a', {})",
    "{} = 1 OR {} = 2",
    "{} % {} * {}",
    "{} IS DISTINCT FROM {}",
];

fn columns(name: &str) -> Vec<Column> {
    vec![Column::new(name, ColumnType::BigInt, true)]
}

#[test]
fn no_word_of_the_parsers_is_mistaken_for_something_else() {
    let functions = Functions::new();
    let mut wrong = Vec::new();
    for word in ALL_KEYWORDS {
        let name = word.to_ascii_lowercase();
        if !name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') {
            continue;
        }
        let schema = df_schema(&columns(&name)).unwrap();
        let compiled = |text: String| functions.compile(&Expression(text), &schema);
        for place in PLACES {
            // In quotes a name is always right.
            let expected = compiled(place.replace("{}", &format!("\"{name}\""))).unwrap();
            let found = compiled(place.replace("{}", &Expression::column(&name).0));
            if found.as_ref() != Ok(&expected) {
                wrong.push(format!("{name} in {place}"));
            }
        }
        // What stands alone and is taken for a column is one.
        let alone = matches!(
            compiled(name.clone()), Ok(typed) if typed.expr == Expr::Column(name.clone().into())
        );
        let taken = Expression(name.clone()).as_column().is_some();
        if alone != taken {
            wrong.push(format!(
                "{name} alone: column {alone}, taken for one {taken}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

proptest! {
    #[test]
    fn a_column_of_any_name_is_written_and_read_as_itself(
        name in prop_oneof!["[a-zA-Z_][a-zA-Z0-9_]{0,8}", "\\PC{1,8}", "[ \"'.,();a-zA-Z0-9ü-]{1,12}"],
        place in prop::sample::select(PLACES),
    ) {
        let functions = Functions::new();
        let schema = df_schema(&columns(&name)).unwrap();
        let text = place.replace("{}", &Expression::column(&name).0);
        let typed = functions.compile(&Expression(text), &schema).unwrap();
        let written = write(&functions, &typed.expr, &schema).unwrap();
        let again = functions.compile(&written, &schema).unwrap();
        prop_assert_eq!(again.field.data_type(), typed.field.data_type());
        prop_assert_eq!(again.expr.column_refs(), typed.expr.column_refs());
        for column in typed.expr.column_refs() {
            prop_assert_eq!(&column.name, &name);
        }
    }
}
