//! What a user's expression means is what a worker evaluates: through the planner, the text that a plan
//! carries, and the worker's reading of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::ids::TopicName;
use common::plan::expression::Expression;
use common::plan::operator::OperatorSpec;
use common::schema::{Column, to_arrow_schema};
use coordinator::planner::{PlanContext, plan_sql};
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray, TimestampMillisecondArray,
};
use proptest::prelude::*;
use worker::operator::expression::Expressions;

const COLUMNS: &[(&str, &str)] = &[
    ("a", "BIGINT"),
    ("b", "INT"),
    ("f", "DOUBLE"),
    ("d", "DECIMAL(10, 2)"),
    ("s", "VARCHAR"),
    ("o", "BOOLEAN"),
    ("t", "TIMESTAMP(3)"),
    ("user", "BIGINT"),
    ("Odd \"name\"", "VARCHAR"),
];

fn columns() -> Vec<Column> {
    let column = |(name, kind): &(&str, &str)| Column::new(*name, kind.parse().unwrap(), true);
    COLUMNS.iter().map(column).collect()
}

/// Expressions of numbers, texts, truths and times, inside each other.
#[derive(Clone, Copy)]
enum Kind {
    Number,
    Text,
    Truth,
    Time,
}

fn expression(kind: Kind, depth: u32) -> BoxedStrategy<String> {
    use Kind::{Number, Text, Time, Truth};
    let leaf = match kind {
        Number => prop::sample::select(vec![
            "a", "b", "f", "d", "\"user\"", "0", "1", "-7", "2.5", "1e3", "NULL", "100",
        ]),
        Text => prop::sample::select(vec![
            "s",
            "\"Odd \"\"name\"\"\"",
            "'it''s'",
            "''",
            "'ü%'",
            "'a_b'",
            "NULL",
        ]),
        Truth => prop::sample::select(vec!["o", "TRUE", "FALSE", "NULL", "a > 3", "s = 'a'"]),
        Time => prop::sample::select(vec!["t", "TIMESTAMP '2013-01-01 05:00:00'"]),
    }
    .prop_map(str::to_owned);
    if depth == 0 {
        return leaf.boxed();
    }
    let sub = |kind| expression(kind, depth - 1);
    let two = |kind| (sub(kind), sub(kind));
    let inner = match kind {
        Number => prop_oneof![
            (
                two(Number),
                prop::sample::select(vec!["+", "-", "*", "/", "%"])
            )
                .prop_map(|((x, y), op)| format!("({x} {op} {y})")),
            (two(Number), prop::sample::select(vec!["+", "-"]))
                .prop_map(|((x, y), op)| format!("{x} {op} {y}")),
            sub(Number).prop_map(|x| format!("abs({x})")),
            sub(Number).prop_map(|x| format!("- ({x})")),
            two(Number).prop_map(|(x, y)| format!("coalesce({x}, {y})")),
            two(Number).prop_map(|(x, y)| format!("nullif({x}, {y})")),
            sub(Text).prop_map(|x| format!("character_length({x})")),
            sub(Number).prop_map(|x| format!("TRY_CAST({x} AS INT)")),
            sub(Number).prop_map(|x| format!("CAST({x} AS DOUBLE)")),
            (sub(Truth), two(Number))
                .prop_map(|(c, (x, y))| format!("CASE WHEN {c} THEN {x} ELSE {y} END")),
            sub(Time).prop_map(|x| format!("date_part('hour', {x})")),
        ]
        .boxed(),
        Text => prop_oneof![
            two(Text).prop_map(|(x, y)| format!("({x} || {y})")),
            two(Text).prop_map(|(x, y)| format!("concat({x}, {y}, '-')")),
            sub(Text).prop_map(|x| format!("upper({x})")),
            sub(Number).prop_map(|x| format!("CAST({x} AS VARCHAR)")),
            sub(Text).prop_map(|x| format!("substr({x}, 1, 2)")),
            (sub(Truth), two(Text))
                .prop_map(|(c, (x, y))| format!("CASE WHEN {c} THEN {x} ELSE {y} END")),
        ]
        .boxed(),
        Truth => prop_oneof![
            (
                two(Number),
                prop::sample::select(vec!["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM"])
            )
                .prop_map(|((x, y), op)| format!("{x} {op} {y}")),
            two(Truth).prop_map(|(x, y)| format!("({x}) AND ({y})")),
            (two(Truth), sub(Truth)).prop_map(|((x, y), z)| format!("({x} OR {y}) AND NOT ({z})")),
            two(Truth).prop_map(|(x, y)| format!("({x}) OR ({y})")),
            sub(Text).prop_map(|x| format!("{x} LIKE 'a%'")),
            sub(Text).prop_map(|x| format!("{x} NOT IN ('a', 'b', 'it''s')")),
            (sub(Number), two(Number))
                .prop_map(|(x, (y, z))| format!("({x}) NOT BETWEEN ({y}) AND ({z})")),
            sub(Number).prop_map(|x| format!("({x}) IS NULL")),
            sub(Truth).prop_map(|x| format!("({x}) IS NOT TRUE")),
            two(Time).prop_map(|(x, y)| format!("{x} < {y}")),
        ]
        .boxed(),
        Time => prop_oneof![
            sub(Time).prop_map(|x| format!("({x} + INTERVAL '90' MINUTE)")),
            sub(Time).prop_map(|x| format!("date_trunc('day', {x})")),
            sub(Time).prop_map(|x| format!("date_bin(INTERVAL '15 minutes', {x})")),
        ]
        .boxed(),
    };
    prop_oneof![1 => leaf, 4 => inner].boxed()
}

fn any_expression() -> impl Strategy<Value = String> {
    use Kind::{Number, Text, Time, Truth};
    prop::sample::select(vec![0, 1, 2, 3])
        .prop_flat_map(|kind| expression([Number, Text, Truth, Time][kind], 3))
}

type Row = (
    Option<i64>,
    Option<i32>,
    Option<f64>,
    Option<i128>,
    Option<String>,
    Option<bool>,
    Option<i64>,
);

fn rows() -> impl Strategy<Value = Vec<Row>> {
    fn some<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
        prop::option::weighted(0.85, of)
    }
    let row = (
        some(-20_i64..20),
        some(-3_i32..4),
        some(prop_oneof![Just(0.0), Just(2.5), -1e3..1e3_f64]),
        some(-1000_i128..1000),
        some("[ab%ü_']{0,3}"),
        some(any::<bool>()),
        some(1_350_000_000_000_i64..1_360_000_000_000),
    );
    prop::collection::vec(row, 1..12)
}

fn batch(rows: &[Row]) -> RecordBatch {
    let decimals: Decimal128Array = rows.iter().map(|row| row.3).collect();
    let texts = || {
        rows.iter()
            .map(|row| row.4.clone())
            .collect::<StringArray>()
    };
    let integers = || rows.iter().map(|row| row.0).collect::<Int64Array>();
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(integers()),
        Arc::new(rows.iter().map(|row| row.1).collect::<Int32Array>()),
        Arc::new(rows.iter().map(|row| row.2).collect::<Float64Array>()),
        Arc::new(decimals.with_precision_and_scale(10, 2).unwrap()),
        Arc::new(texts()),
        Arc::new(rows.iter().map(|row| row.5).collect::<BooleanArray>()),
        Arc::new(
            rows.iter()
                .map(|row| row.6)
                .collect::<TimestampMillisecondArray>(),
        ),
        Arc::new(integers()),
        Arc::new(texts()),
    ];
    RecordBatch::try_new(to_arrow_schema(&columns()), arrays).unwrap()
}

/// The text that a plan carries for an expression, over which columns; or why it has none.
fn planned(text: &str) -> Result<(Expression, Vec<Column>), String> {
    let declared: Vec<String> = COLUMNS
        .iter()
        .map(|(name, kind)| format!("\"{}\" {kind}", name.replace('"', "\"\"")))
        .collect();
    let sql = format!(
        "CREATE TABLE t ({}) WITH (connector = 'topic', topic = 'in');
         CREATE TABLE out WITH (connector = 'blackhole');
         INSERT INTO out SELECT {text} AS result FROM t",
        declared.join(", ")
    );
    let context = PlanContext {
        topics: BTreeMap::from([(TopicName::new("in").unwrap(), 1)]),
        worker_cores: 1,
        ..PlanContext::default()
    };
    let job = plan_sql(&sql, None, 256, &context).map_err(|problem| problem.to_string())?;
    let operator = job.tasks.stages[0]
        .operators
        .first()
        .expect("the result has a name of its own");
    let OperatorSpec::Project(project) = &operator.spec else {
        panic!("{text} became {:?}", operator.spec);
    };
    Ok((project.columns[0].expr.clone(), operator.inputs[0].clone()))
}

fn of_columns(batch: &RecordBatch, columns: &[Column]) -> RecordBatch {
    let schema = batch.schema();
    let positions: Vec<usize> = columns
        .iter()
        .map(|column| schema.index_of(&column.name).unwrap())
        .collect();
    batch.project(&positions).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_user_wrote_is_what_a_worker_evaluates(text in any_expression(), rows in rows()) {
        evaluate_both(&text, &batch(&rows))?;
    }
}

fn evaluate_both(text: &str, all: &RecordBatch) -> Result<(), TestCaseError> {
    let as_written = Expressions::new(&columns())
        .unwrap()
        .compile(&Expression(text.to_owned()));
    let (written, (expression, columns)) = match (as_written, planned(text)) {
        (Err(_), Err(_)) => return Ok(()),
        (Ok(written), Ok(planned)) => (written, planned),
        (Ok(_), Err(problem)) => {
            return Err(TestCaseError::fail(format!(
                "{text} is not planned: {problem}"
            )));
        }
        (Err(problem), Ok(_)) => {
            let detail = format!("{text} is planned, but a worker says {problem}");
            return Err(TestCaseError::fail(detail));
        }
    };
    let compiled = Expressions::new(&columns)
        .unwrap()
        .compile(&expression)
        .unwrap();
    let (found_type, expected_type) = (compiled.data_type(), written.data_type());
    prop_assert_eq!(found_type, expected_type, "{} became {}", text, expression);
    let expected = written.evaluate(all).unwrap();
    let found = compiled.evaluate(&of_columns(all, &columns)).unwrap();
    prop_assert_eq!(
        &found.values,
        &expected.values,
        "{} became {}",
        text,
        expression
    );
    let failed = |failures: &[worker::operator::expression::Failure]| {
        let rows = failures.iter().map(|failure| failure.row);
        rows.collect::<Vec<_>>()
    };
    let (found, expected) = (failed(&found.failures), failed(&expected.failures));
    prop_assert_eq!(found, expected, "{} became {}", text, expression);
    Ok(())
}

/// `a IS DISTINCT FROM b OR o` compares with `b OR o`: where it was written, nothing was planned.
#[test]
fn what_takes_in_all_that_follows_is_put_in_brackets() {
    let row = |a, b, o| (Some(a), Some(b), None, None, None, Some(o), None);
    let rows = [row(1, 1, true), row(1, 1, false), row(1, 2, false)];
    for distinct in ["a IS DISTINCT FROM b", "a IS NOT DISTINCT FROM b"] {
        for text in [
            format!("({distinct}) OR o"),
            format!("o OR ({distinct})"),
            format!("({distinct}) AND o"),
            format!("o AND ({distinct})"),
            format!("NOT ({distinct})"),
            format!("({distinct}) = o"),
            format!("({distinct}) IS DISTINCT FROM o"),
            format!("CASE WHEN ({distinct}) OR (NULL) THEN a ELSE b END"),
        ] {
            planned(&text).unwrap();
            evaluate_both(&text, &batch(&rows)).unwrap();
        }
    }
}

/// As deep as the planner allows, on a stack as small as a worker's threads have.
#[test]
fn the_deepest_expression_that_is_planned_is_evaluated() {
    let nested = |open: &str, inner: &str, close: &str, levels: usize| {
        format!("{}{inner}{}", open.repeat(levels), close.repeat(levels))
    };
    let chain = |part: &str, operator: &str, parts: usize| vec![part; parts].join(operator);
    for shape in [
        &(|n: usize| nested("(", "a", ")", n)) as &dyn Fn(usize) -> String,
        &|n| nested("abs(", "a", ")", n),
        &|n| nested("- (", "a", ")", n),
        &|n| nested("NOT (", "o", ")", n),
        &|n| chain("a", " + ", n),
        &|n| chain("(a = b)", " OR ", n),
        &|n| chain("s", " || ", n),
        &|n| nested("coalesce(a, ", "b", ")", n),
        &|n| nested("CASE WHEN o THEN ", "a", " ELSE 1 END", n),
        &|n| nested("CAST(", "a", " AS BIGINT)", n),
        &|n| nested("CAST(CAST(", "a", " AS VARCHAR) AS BIGINT)", n),
    ] {
        // The deepest one that is planned.
        let (mut planned_at, mut refused_at) = (1, 200);
        while refused_at - planned_at > 1 {
            let middle = usize::midpoint(planned_at, refused_at);
            match planned(&shape(middle)) {
                Ok(_) => planned_at = middle,
                Err(_) => refused_at = middle,
            }
        }
        let (expression, columns) = planned(&shape(planned_at)).unwrap();
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        let evaluated = thread.spawn(move || {
            let compiled = Expressions::new(&columns)
                .unwrap()
                .compile(&expression)
                .unwrap();
            let rows = vec![
                (
                    Some(1),
                    Some(1),
                    None,
                    None,
                    Some("a".to_owned()),
                    Some(true),
                    None
                );
                3
            ];
            compiled
                .evaluate(&of_columns(&batch(&rows), &columns))
                .unwrap()
                .values
        });
        assert_eq!(evaluated.unwrap().join().unwrap().len(), 3, "{}", shape(2));
        assert!(
            planned_at >= 8,
            "{} is planned {planned_at} times over",
            shape(1)
        );
    }
}
