//! What is too much is refused soon, with a place and a next step, and whatever was allowed is planned soon.
//!
//! Every text is planned from a thread with a small stack, as those of the HTTP server are.

use common::time::{Span, SystemClock};

use super::planner_tests::plan_of;
use super::*;

/// Far more than any of these texts takes, far less than one that grows without bound would.
const SOON: Span = Span::from_secs(30);

const TABLES: &str = "CREATE TABLE bids (auction BIGINT, price BIGINT, channel VARCHAR, ts TIMESTAMP(3), \
     WATERMARK FOR ts AS ts - INTERVAL '5' SECOND) WITH (connector = 'topic', topic = 'bids'); \
     CREATE TABLE out WITH (connector = 'blackhole'); ";

/// Plans `statements` behind the tables, on a thread with a stack of 2 MiB.
fn plan_soon(statements: &str) -> Result<PlannedJob, Problem> {
    let sql = format!("{TABLES}{statements}");
    on_small_stack(move || plan_of(&sql))
}

fn on_small_stack<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let clock = SystemClock::shared();
    let started = clock.tick();
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    let outcome = thread.spawn(work).unwrap().join().unwrap();
    let took = clock.tick().since(started);
    assert!(took < SOON, "it took {took}");
    outcome
}

fn refused(statements: &str, code: ErrorCode, words: &str) -> Problem {
    let shown: String = statements.chars().take(120).collect();
    let problem = match plan_soon(statements) {
        Ok(_) => panic!("it was planned: {shown}"),
        Err(problem) => problem,
    };
    assert_eq!(problem.code, code, "{problem}: {shown}");
    assert!(problem.detail.contains(words), "{problem}: {shown}");
    assert!(!problem.hint.is_empty(), "{problem}: {shown}");
    problem
}

fn planned_soon(statements: &str) -> PlannedJob {
    let shown: String = statements.chars().take(120).collect();
    match plan_soon(statements) {
        Ok(job) => job,
        Err(problem) => panic!("{problem}: {shown}"),
    }
}

fn filter(condition: &str) -> String {
    format!("INSERT INTO out SELECT auction FROM bids WHERE {condition}")
}

fn chain(part: &str, operator: &str, parts: usize) -> String {
    vec![part; parts].join(operator)
}

fn nested(open: &str, inner: &str, close: &str, levels: usize) -> String {
    format!("{}{inner}{}", open.repeat(levels), close.repeat(levels))
}

#[test]
fn a_text_has_a_largest_size() {
    let comment = format!("/* {} */", "x".repeat(1 << 20));
    let problem = plan_soon(&comment).unwrap_err();
    assert_eq!(problem.code, ErrorCode::RequestTooLarge);
    assert!(problem.detail.contains("1048576"), "{problem}");
}

#[test]
fn chains_of_operators_are_planned_up_to_the_depth_and_refused_beyond_it() {
    for operator in [" OR ", " AND "] {
        planned_soon(&filter(&chain("price = auction", operator, 120)));
        for parts in [130, 2_000, 10_000, 30_000] {
            let words = if parts < 10_000 {
                "128 levels"
            } else {
                "20000"
            };
            refused(
                &filter(&chain("price = auction", operator, parts)),
                ErrorCode::SqlSyntax,
                words,
            );
        }
    }
    for operator in [" + ", " - ", " * ", " % "] {
        planned_soon(&filter(&format!("{} > 3", chain("price", operator, 100))));
        let problem = refused(
            &filter(&format!("{} > 3", chain("price", operator, 9_000))),
            ErrorCode::SqlSyntax,
            "128 levels",
        );
        // Where the chain begins.
        assert!(problem.at.unwrap().starts_with("line 1, column"));
    }
    refused(
        &filter(&format!("{} = 'a'", chain("channel", " || ", 5_000))),
        ErrorCode::SqlSyntax,
        "128 levels",
    );
    refused(
        &filter(&format!("price{} = 3", "::BIGINT".repeat(5_000))),
        ErrorCode::SqlSyntax,
        "128 levels",
    );
}

#[test]
fn long_lists_are_no_chains() {
    let numbers: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    planned_soon(&filter(&format!("price IN ({})", numbers.join(", "))));
    let cases: Vec<String> = (0..500)
        .map(|n| format!("WHEN {n} THEN {}", n + 1))
        .collect();
    planned_soon(&filter(&format!("CASE price {} END = 3", cases.join(" "))));
}

#[test]
fn nesting_is_planned_up_to_the_depth_and_refused_beyond_it() {
    for (open, inner, close) in [
        ("(", "price > 1", ")"),
        ("NOT ", "price > 1", ""),
        ("abs(", "price", ") > 1"),
        ("- ", "price", " > 1"),
        ("CASE WHEN price > 1 THEN ", "true", " ELSE false END"),
        ("CAST(", "price", " AS BIGINT) > 1"),
        ("price IN (", "1", ")"),
        ("EXISTS (SELECT 1 FROM bids WHERE ", "true", ")"),
    ] {
        let close_once = close.strip_suffix(" > 1").unwrap_or(close);
        let condition = |levels: usize| {
            let text = nested(open, inner, close_once, levels);
            match close.len() > close_once.len() || open == "- " {
                true => format!("{text} > 1"),
                false => text,
            }
        };
        for levels in [200, 5_000] {
            let problem = plan_soon(&filter(&condition(levels))).unwrap_err();
            assert_eq!(problem.code, ErrorCode::SqlSyntax, "{open}: {problem}");
            assert!(
                problem.detail.contains("nest") || problem.detail.contains("20000"),
                "{open}: {problem}"
            );
            assert!(!problem.hint.is_empty(), "{open}: {problem}");
            assert!(problem.at.is_some(), "{open}: {problem}");
        }
    }
    planned_soon(&filter(&nested("(", "price > 1", ")", 100)));
    planned_soon(&filter(&format!(
        "{} > 1",
        nested("abs(", "price", ")", 100)
    )));
    planned_soon(&filter(&nested("NOT (", "price > 1", ")", 60)));
}

/// The parser reads some words in two ways, one after the other. Without a bound thirty of them took hours.
#[test]
fn what_the_parser_could_read_in_two_ways_does_not_take_twice_as_long_each_time() {
    for open in [
        "CASE WHEN price THEN ",
        "CAST(",
        "TRY_CAST(",
        "CEIL(",
        "FLOOR(",
        "CONVERT(",
        "SUBSTRING(",
        "OVERLAY(",
        "CURRENT_DATE(",
        "LOCALTIME(",
        "ARRAY[",
        "channel[",
        "CAST(CASE WHEN ",
        "INTERVAL ",
        "INTERVAL - ",
    ] {
        for inner in ["price", "", "1 1 1", "price )("] {
            for levels in [12, 100] {
                let condition = format!("{}{inner}", open.repeat(levels));
                let problem = plan_soon(&filter(&condition)).unwrap_err();
                assert!(
                    matches!(
                        problem.code,
                        ErrorCode::SqlSyntax | ErrorCode::SqlPlan | ErrorCode::UnsupportedFeature
                    ),
                    "{open}{inner}: {problem}"
                );
            }
        }
    }
}

#[test]
fn types_that_nest_without_end_are_refused() {
    for open in ["ARRAY<", "STRUCT<a "] {
        let kind = nested(open, "INT", ">", 6_000);
        plan_soon(&filter(&format!("CAST(price AS {kind}) IS NULL"))).unwrap_err();
        plan_soon(&format!(
            "CREATE TABLE deep (a {kind}) WITH (connector = 'topic', topic = 'bids')"
        ))
        .unwrap_err();
    }
}

#[test]
fn queries_nest_up_to_the_depth_and_are_refused_beyond_it() {
    let query = |levels: usize| {
        let inner = nested(
            "SELECT auction FROM (",
            "SELECT auction FROM bids",
            ")",
            levels,
        );
        format!("INSERT INTO out {inner}")
    };
    planned_soon(&query(60));
    refused(&query(130), ErrorCode::SqlSyntax, "128 levels");
    refused(&query(5_000), ErrorCode::SqlSyntax, "128 levels");
}

#[test]
fn a_job_has_at_most_500_selects() {
    let union = |selects: usize| {
        let parts: Vec<String> = (0..selects)
            .map(|i| format!("SELECT auction FROM bids WHERE price = {i}"))
            .collect();
        format!("INSERT INTO out {}", parts.join(" UNION ALL "))
    };
    planned_soon(&union(500));
    refused(&union(501), ErrorCode::SqlSyntax, "at most 500 SELECTs");
    let inserts = "INSERT INTO out SELECT auction FROM bids; ".repeat(501);
    refused(&inserts, ErrorCode::SqlSyntax, "at most 500 SELECTs");
}

/// Each view reads the one before it twice: thirty of them would be a billion scans.
#[test]
fn views_that_read_each_other_are_counted_with_all_they_read() {
    let mut views = "CREATE VIEW v0 AS SELECT auction FROM bids; ".to_owned();
    let mut names = "WITH w0 AS (SELECT auction FROM bids)".to_owned();
    for i in 1..30 {
        let j = i - 1;
        views.push_str(&format!(
            "CREATE VIEW v{i} AS SELECT auction FROM v{j} UNION ALL SELECT auction FROM V{j}; "
        ));
        names.push_str(&format!(
            ", w{i} AS (SELECT auction FROM w{j} UNION ALL SELECT auction FROM w{j})"
        ));
    }
    let words = "at most 5000 tables";
    refused(
        &format!("{views} INSERT INTO out SELECT auction FROM v29"),
        ErrorCode::SqlPlan,
        words,
    );
    refused(
        &format!("INSERT INTO out {names} SELECT auction FROM w29"),
        ErrorCode::SqlPlan,
        words,
    );
    // Also if a window reads it, and over all inserts together.
    let some: String = views.split_inclusive("; ").take(8).collect();
    planned_soon(&format!("{some} INSERT INTO out SELECT auction FROM v7"));
    let few: String = views.split_inclusive("; ").take(12).collect();
    for from in ["v11", "V11 UNION ALL SELECT auction FROM v11"] {
        let inserts = format!("INSERT INTO out SELECT auction FROM {from}; ").repeat(20);
        refused(&format!("{few}{inserts}"), ErrorCode::SqlPlan, words);
    }
    let windows =
        "INSERT INTO out SELECT count(*) FROM TUMBLE(v11, ts, INTERVAL '1' DAY); ".repeat(2);
    refused(&format!("{few}{windows}"), ErrorCode::SqlPlan, words);
}

#[test]
fn a_table_has_at_most_1000_columns() {
    let table = |columns: usize| {
        let list: Vec<String> = (0..columns).map(|i| format!("c{i} BIGINT")).collect();
        format!(
            "CREATE TABLE wide ({}) WITH (connector = 'topic', topic = 'bids'); \
             INSERT INTO out SELECT * FROM wide",
            list.join(", ")
        )
    };
    planned_soon(&table(1_000));
    refused(&table(1_001), ErrorCode::SqlSyntax, "at most 1000 columns");
}

fn graph(operators: &[String], last: &str) -> JobGraph {
    let text = format!(
        r#"{{"sources": {{"in": {{"connector": "topic", "topic": "bids", "schema": [{{"name": "a", "type": "BIGINT"}}]}}}},
            "operators": [{}], "sinks": {{"out": {{"connector": "blackhole", "input": "{last}"}}}}}}"#,
        operators.join(",")
    );
    serde_json::from_str(&text).unwrap()
}

fn plan_graph_soon(graph: JobGraph) -> Result<PlannedJob, Problem> {
    on_small_stack(move || {
        plan_graph(
            &graph,
            None,
            common::limits::DEFAULT_KEY_GROUPS,
            &planner_tests::context(),
        )
    })
}

#[test]
fn a_graph_as_long_as_it_may_be_is_planned_soon_and_a_longer_one_refused() {
    let line = |length: usize| {
        let operators: Vec<String> = (0..length)
            .map(|i| {
                let input = if i == 0 { "in".to_owned() } else { format!("f{}", i - 1) };
                format!(r#"{{"type": "filter", "id": "f{i}", "inputs": ["{input}"], "predicate": "a > {i}"}}"#)
            })
            .collect();
        graph(&operators, &format!("f{}", length - 1))
    };
    let most = common::limits::MAX_JOB_NODES;
    let job = plan_graph_soon(line(most - 2)).unwrap();
    assert_eq!(job.tasks.stages.len(), 1);
    let problem = plan_graph_soon(line(most)).unwrap_err();
    assert_eq!(problem.code, ErrorCode::InvalidGraph);
    assert!(problem.detail.contains("at most"), "{problem}");
}

/// Every node of a layer is read twice by the next one.
#[test]
fn a_graph_with_many_ways_through_it_is_planned_soon() {
    let mut operators = Vec::new();
    let mut before = ("in".to_owned(), "in".to_owned());
    for i in 0..100 {
        for (side, input) in [("a", &before.0), ("b", &before.1)] {
            operators.push(format!(
                r#"{{"type": "filter", "id": "{side}{i}", "inputs": ["{input}"], "predicate": "a > 1"}}"#
            ));
        }
        operators.push(format!(
            r#"{{"type": "union", "id": "u{i}", "inputs": ["a{i}", "b{i}"]}}"#
        ));
        before = (format!("u{i}"), format!("u{i}"));
    }
    plan_graph_soon(graph(&operators, "u99")).unwrap();
}

#[test]
fn expressions_of_a_graph_have_the_bounds_of_those_of_sql() {
    let filter = |predicate: String| {
        let operator = serde_json::json!({"type": "filter", "id": "f", "inputs": ["in"], "predicate": predicate});
        plan_graph_soon(graph(&[operator.to_string()], "f"))
    };
    filter(chain("a > 1", " AND ", 120)).unwrap();
    for predicate in [
        chain("a > 1", " AND ", 200),
        chain("a > 1", " OR ", 10_000),
        nested("NOT ", "true", "", 5_000),
        nested("(", "true", ")", 5_000),
        nested("CASE WHEN ", "a", "", 200),
        nested("CAST(", "a", "", 200),
    ] {
        let problem = filter(predicate).unwrap_err();
        assert_eq!(problem.code, ErrorCode::SqlSyntax, "{problem}");
        assert_eq!(problem.at.as_deref(), Some("/operators/0/predicate"));
        assert!(!problem.hint.is_empty(), "{problem}");
    }
}
