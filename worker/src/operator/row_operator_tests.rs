//! Filter, project, union and custom operators: rows in, rows and dead letters out.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int8Array, Int64Array, StringArray};
use common::error::ErrorCode;
use common::plan::operator::OperatorSpec;

use super::custom::CustomOperators;
use super::harness::{Harness, batch, from_topic, planned};
use super::{Operator, OperatorError, build};
use crate::task::context::Context;
use crate::task::dead_letter::{LetterOrigin, Reason};
use crate::task::message::{Rows, kind};

const COLUMNS: &[&str] = &["a BIGINT", "b BIGINT"];

fn rows(a: &[Option<i64>], b: &[Option<i64>]) -> Rows {
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(a.to_vec())),
        Arc::new(Int64Array::from(b.to_vec())),
    ];
    from_topic(batch(COLUMNS, arrays))
}

fn filter(predicate: &str) -> Harness {
    let spec = format!(
        r#"{{"type": "filter", "id": "some", "inputs": ["in"], "predicate": "{predicate}"}}"#
    );
    Harness::new(&planned(&spec, &[COLUMNS], COLUMNS))
}

#[test]
fn a_filter_keeps_true_rows_with_their_kinds_and_origins() {
    let mut filter = filter("a > 1");
    let mut input = rows(&[Some(1), Some(2), Some(4), None, Some(3)], &[Some(0); 5]);
    input.kinds = Some(Int8Array::from(vec![
        kind::INSERT,
        kind::UPDATE_BEFORE,
        kind::UPDATE_AFTER,
        kind::INSERT,
        kind::DELETE,
    ]));
    filter.process(input);
    let kept = &filter.outputs.rows[0];
    let origin = kept.origin.as_ref().unwrap();
    assert_eq!(origin.offsets.values(), &[101, 102, 104]);
    let kinds = kept.kinds.as_ref().unwrap();
    assert_eq!(
        kinds.values(),
        &[kind::UPDATE_BEFORE, kind::UPDATE_AFTER, kind::DELETE]
    );
    assert_eq!(
        filter.table(),
        "\
+---+---+------+
| a | b | kind |
+---+---+------+
| 2 | 0 | 1    |
| 4 | 0 | 2    |
| 3 | 0 | 3    |
+---+---+------+"
    );
}

#[test]
fn a_filter_that_keeps_nothing_gives_nothing_and_one_that_keeps_all_does_not_copy() {
    let mut none = filter("a > 10");
    none.process(rows(&[Some(1)], &[Some(1)]));
    assert!(none.outputs.rows.is_empty());
    let mut all = filter("a < 10");
    let input = rows(&[Some(1)], &[Some(1)]);
    let column = Arc::clone(input.batch.column(0));
    all.process(input);
    assert!(Arc::ptr_eq(&column, all.outputs.rows[0].batch.column(0)));
}

#[test]
fn a_row_an_expression_fails_on_becomes_a_dead_letter_with_its_origin() {
    let mut filter = filter("a / b > 1");
    filter.process(rows(
        &[Some(4), Some(5), Some(6)],
        &[Some(2), Some(0), Some(2)],
    ));
    assert_eq!(
        filter.table(),
        "+---+---+\n| a | b |\n+---+---+\n| 4 | 2 |\n| 6 | 2 |\n+---+---+"
    );
    let letters = &filter.outputs.dead_letters;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!(letter.reason, Reason::Expression);
    assert_eq!(letter.operator, "some");
    assert_eq!(letter.value.as_ref(), br#"{"a":5,"b":0}"#);
    assert_eq!(
        letter.origin,
        Some(LetterOrigin {
            topic: "in".into(),
            partition: 3,
            offset: 101
        })
    );
    assert!(letter.detail.contains("a / b > 1"), "{}", letter.detail);
}

#[test]
fn a_project_computes_its_columns_and_gives_up_a_failing_row_once() {
    let spec = r#"{"type": "project", "id": "made", "inputs": ["in"], "columns": [
        "a", {"expr": "a / b", "as": "ratio"}, {"expr": "100 / b", "as": "share"},
        {"expr": "concat('#', a)", "as": "label"}]}"#;
    let output = &["a BIGINT", "ratio BIGINT", "share BIGINT", "label VARCHAR"];
    let mut project = Harness::new(&planned(spec, &[COLUMNS], output));
    project.process(rows(
        &[Some(9), Some(1), None],
        &[Some(3), Some(0), Some(50)],
    ));
    assert_eq!(project.outputs.dead_letters.len(), 1);
    assert_eq!(
        project.table(),
        "\
+---+-------+-------+-------+
| a | ratio | share | label |
+---+-------+-------+-------+
| 9 | 3     | 33    | #9    |
|   |       | 2     | #     |
+---+-------+-------+-------+"
    );
}

#[test]
fn a_project_whose_plan_says_another_type_is_refused() {
    let spec = r#"{"type": "project", "id": "made", "inputs": ["in"], "columns": ["a"]}"#;
    let planned = planned(spec, &[COLUMNS], &["a VARCHAR"]);
    let problem = build(&planned, &CustomOperators::default()).unwrap_err();
    assert!(problem.detail.contains("the plan has VARCHAR"), "{problem}");
}

#[test]
fn a_union_gives_all_rows_under_its_own_names() {
    let spec = r#"{"type": "union", "id": "both", "inputs": ["x", "y"]}"#;
    let planned = planned(
        spec,
        &[COLUMNS, &["c BIGINT", "d BIGINT"]],
        &["a BIGINT", "b BIGINT"],
    );
    let mut union = Harness::new(&planned);
    let other = batch(
        &["c BIGINT", "d BIGINT"],
        vec![
            Arc::new(Int64Array::from(vec![7])),
            Arc::new(Int64Array::from(vec![8])),
        ],
    );
    union.call(|operator, context| operator.process(0, rows(&[Some(1)], &[Some(2)]), context));
    union.call(|operator, context| operator.process(1, from_topic(other), context));
    assert_eq!(
        union.table(),
        "+---+---+\n| a | b |\n+---+---+\n| 1 | 2 |\n| 7 | 8 |\n+---+---+"
    );
}

#[test]
fn inputs_of_a_union_with_other_types_are_refused() {
    let spec = r#"{"type": "union", "id": "both", "inputs": ["x", "y"]}"#;
    let planned = planned(spec, &[&["a BIGINT"], &["a VARCHAR"]], &["a BIGINT"]);
    let problem = build(&planned, &CustomOperators::default()).unwrap_err();
    assert_eq!(problem.code, ErrorCode::InvalidGraph);
}

/// Adds a word from its configuration to every row.
#[derive(Debug)]
struct Greet {
    word: String,
}

impl Operator for Greet {
    fn process(
        &mut self,
        _input: u16,
        rows: Rows,
        context: &mut Context<'_>,
    ) -> Result<(), OperatorError> {
        let words: ArrayRef = Arc::new(StringArray::from(vec![self.word.as_str(); rows.len()]));
        context.emit(rows.with_batch(batch(&["word VARCHAR"], vec![words])));
        Ok(())
    }
}

#[test]
fn a_worker_runs_the_custom_operators_it_was_given_and_names_them_when_one_is_missing() {
    let spec = r#"{"type": "custom", "id": "g", "inputs": ["in"], "name": "greet",
        "schema": [{"name": "word", "type": "VARCHAR"}], "config": {"word": "hello"}}"#;
    let planned = planned(spec, &[COLUMNS], &["word VARCHAR"]);
    let custom = CustomOperators::default().with("greet", |custom, _| {
        let word = custom.config["word"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        Ok(Box::new(Greet { word }))
    });
    let mut operator = Harness {
        operator: build(&planned, &custom).unwrap(),
        ..filter("true")
    };
    operator.process(rows(&[Some(1)], &[Some(2)]));
    assert_eq!(
        operator.table(),
        "+-------+\n| word  |\n+-------+\n| hello |\n+-------+"
    );
    let OperatorSpec::Custom(mut other) = planned.spec.clone() else {
        panic!("it was read as a custom operator");
    };
    other.name = "missing".into();
    let problem = custom.build(&other, &planned).unwrap_err();
    assert!(problem.hint.contains("greet"), "{problem}");
}
