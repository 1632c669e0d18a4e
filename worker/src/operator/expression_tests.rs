//! What expressions give, what they refuse, and which rows they fail on.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Int64Type};
use arrow::util::display::array_value_to_string;
use common::error::ErrorCode;
use common::plan::expression::Expression;
use common::schema::ColumnType;
use proptest::prelude::*;

use super::expression::Expressions;
use super::harness::{batch, columns};

const COLUMNS: &[&str] = &["a BIGINT", "b BIGINT", "Name VARCHAR", "ts TIMESTAMP(3)"];

fn expressions() -> Expressions {
    Expressions::new(&columns(COLUMNS)).unwrap()
}

fn rows(a: Vec<Option<i64>>, b: Vec<Option<i64>>) -> arrow::array::RecordBatch {
    let count = a.len();
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(a)),
        Arc::new(Int64Array::from(b)),
        Arc::new(StringArray::from(vec!["Ada"; count])),
        Arc::new(TimestampMillisecondArray::from(vec![
            1_700_000_012_345;
            count
        ])),
    ];
    batch(COLUMNS, arrays)
}

/// The type and the value over the row (a = 7, b = 2, "Name" = 'Ada', ts = 2023-11-14 22:13:32.345).
fn of_one_row(text: &str) -> (ColumnType, String) {
    let compiled = expressions().compile(&Expression(text.into())).unwrap();
    let evaluated = compiled
        .evaluate(&rows(vec![Some(7)], vec![Some(2)]))
        .unwrap();
    assert_eq!(evaluated.failures, []);
    assert_eq!(evaluated.values.data_type(), compiled.data_type());
    let kind = ColumnType::from_arrow(compiled.data_type()).unwrap();
    (kind, array_value_to_string(&evaluated.values, 0).unwrap())
}

#[test]
fn expressions_give_what_sql_says_in_types_a_column_can_have() {
    for (text, kind, value) in [
        ("a", ColumnType::BigInt, "7"),
        ("A + b", ColumnType::BigInt, "9"),
        ("a / b", ColumnType::BigInt, "3"),
        ("a * 1.5", ColumnType::Double, "10.5"),
        ("\"Name\" || '!'", ColumnType::Varchar, "Ada!"),
        ("upper(\"Name\")", ColumnType::Varchar, "ADA"),
        ("CAST(a AS VARCHAR)", ColumnType::Varchar, "7"),
        ("substr(\"Name\", 2)", ColumnType::Varchar, "da"),
        ("a > 5 AND b IS NOT NULL", ColumnType::Boolean, "true"),
        (
            "CASE WHEN a > b THEN 'more' ELSE 'less' END",
            ColumnType::Varchar,
            "more",
        ),
        ("coalesce(NULL, a)", ColumnType::BigInt, "7"),
        (
            "ts + INTERVAL '1' SECOND",
            ColumnType::Timestamp(3),
            "2023-11-14T22:13:33.345",
        ),
        (
            "date_trunc('minute', ts)",
            ColumnType::Timestamp(3),
            "2023-11-14T22:13:00",
        ),
        ("extract(hour FROM ts)", ColumnType::Int, "22"),
        ("1", ColumnType::BigInt, "1"),
        (
            "CAST('12.50' AS DECIMAL(10, 2))",
            ColumnType::Decimal {
                precision: 10,
                scale: 2,
            },
            "12.50",
        ),
    ] {
        assert_eq!(of_one_row(text), (kind, value.to_owned()), "{text}");
    }
}

#[test]
fn a_constant_has_a_value_for_every_row() {
    let compiled = expressions().compile(&Expression("42".into())).unwrap();
    let evaluated = compiled
        .evaluate(&rows(vec![None; 3], vec![None; 3]))
        .unwrap();
    assert_eq!(
        evaluated.values.as_primitive::<Int64Type>().values(),
        &[42, 42, 42]
    );
}

#[test]
fn what_cannot_be_compiled_is_refused_with_its_text_and_a_reason() {
    for (text, code, word) in [
        ("a +", ErrorCode::SqlSyntax, "a +"),
        ("missing + 1", ErrorCode::SqlPlan, "missing"),
        ("name", ErrorCode::SqlPlan, "name"),
        ("nonsense(a)", ErrorCode::SqlPlan, "nonsense"),
        ("now()", ErrorCode::UnsupportedFeature, "current time"),
        (
            "ts > current_date",
            ErrorCode::UnsupportedFeature,
            "current time",
        ),
        ("INTERVAL '1' SECOND", ErrorCode::SqlPlan, "Interval"),
    ] {
        let problem = expressions().compile(&Expression(text.into())).unwrap_err();
        assert_eq!(problem.code, code, "{text}: {problem}");
        assert!(problem.detail.contains(word), "{text}: {problem}");
    }
    let problem = expressions()
        .compile_predicate(&Expression("a + b".into()))
        .unwrap_err();
    assert!(problem.detail.contains("no condition"), "{problem}");
    let problem = expressions()
        .compile_as(&Expression("a".into()), &ColumnType::Varchar)
        .unwrap_err();
    assert!(problem.detail.contains("the plan has VARCHAR"), "{problem}");
}

#[test]
fn a_row_that_fails_is_found_and_the_others_keep_their_values() {
    for (text, a, b, word) in [
        ("a / b", 1, 0, "Divide by zero"),
        ("a + b", i64::MAX, 1, "Overflow"),
        ("a * b", i64::MAX, 2, "Overflow"),
        ("CAST(a AS SMALLINT)", 70_000, 1, "cast"),
        (
            "CAST(CASE WHEN b = 0 THEN 'x' ELSE '1' END AS BIGINT)",
            1,
            0,
            "Cannot cast",
        ),
    ] {
        let compiled = expressions().compile(&Expression(text.into())).unwrap();
        let batch = rows(
            vec![Some(4), Some(a), Some(6), None, Some(8)],
            vec![Some(2), Some(b), Some(3), Some(1), Some(4)],
        );
        let evaluated = compiled.evaluate(&batch).unwrap();
        assert_eq!(
            evaluated.failures.len(),
            1,
            "{text}: {:?}",
            evaluated.failures
        );
        assert_eq!(evaluated.failures[0].row, 1, "{text}");
        let detail = &evaluated.failures[0].detail;
        assert!(
            detail.to_lowercase().contains(&word.to_lowercase()) && detail.contains(text),
            "{text}: {detail}"
        );
        assert_eq!(evaluated.values.len(), 5, "{text}");
        let alone = compiled.evaluate(&batch.slice(2, 3)).unwrap().values;
        assert_eq!(
            evaluated.values.slice(2, 3).as_ref(),
            alone.as_ref(),
            "{text}"
        );
    }
}

proptest! {
    /// A row is never lost to its company.
    #[test]
    fn a_batch_gives_each_row_what_it_gives_alone(
        pairs in prop::collection::vec((prop::option::of(-3_i64..4), prop::option::of(-2_i64..3)), 0..40),
        text in prop::sample::select(vec![
            "a / b", "b <> 0 AND a / b > 0", "CASE WHEN b <> 0 THEN a / b ELSE 0 END",
            "9223372036854775806 + a", "100 % b",
        ]),
    ) {
        let compiled = expressions().compile(&Expression(text.into())).unwrap();
        let (a, b): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let batch = rows(a, b);
        let together = compiled.evaluate(&batch).unwrap();
        let mut failed = Vec::new();
        for row in 0..batch.num_rows() {
            let alone = compiled.evaluate(&batch.slice(row, 1)).unwrap();
            if alone.failures.is_empty() {
                let values = together.values.slice(row, 1);
                prop_assert_eq!(values.as_ref(), alone.values.as_ref());
            } else {
                failed.push(row);
            }
        }
        let found: Vec<usize> = together.failures.iter().map(|failure| failure.row).collect();
        prop_assert_eq!(found, failed);
    }
}

#[test]
fn text_is_of_one_arrow_type_whatever_function_made_it() {
    let batch = rows(vec![Some(1)], vec![Some(1)]);
    for text in [
        "substr(\"Name\", 1, 2)",
        "lower(\"Name\")",
        "split_part(\"Name\", 'd', 1)",
    ] {
        let compiled = expressions().compile(&Expression(text.into())).unwrap();
        let values = compiled.evaluate(&batch).unwrap().values;
        assert_eq!(values.data_type(), &DataType::Utf8, "{text}");
    }
}
