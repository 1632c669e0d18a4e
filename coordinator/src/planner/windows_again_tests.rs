//! Results of windows that are grouped by their windows again: which queries are that, and which graphs.

use super::planner_tests::{context, plan_of};
use super::*;

const TABLES: &str = "
CREATE TABLE bids (auction BIGINT, price BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND)
WITH (connector = 'topic', topic = 'bids');
CREATE TABLE out WITH (connector = 'topic', topic = 'results', format = 'debezium_json');
CREATE VIEW v AS SELECT window_start, window_end, auction, count(*) AS n
  FROM TUMBLE(bids, ts, INTERVAL '10' SECOND) GROUP BY window_start, window_end, auction;
CREATE VIEW same AS SELECT window_start, window_end, auction, max(price) AS n
  FROM TUMBLE(bids, ts, INTERVAL '10' SECOND) GROUP BY window_start, window_end, auction;
CREATE VIEW longer AS SELECT window_start, window_end, auction, count(*) AS n
  FROM TUMBLE(bids, ts, INTERVAL '20' SECOND) GROUP BY window_start, window_end, auction;
CREATE VIEW hop AS SELECT window_start, window_end, auction, count(*) AS n
  FROM HOP(bids, ts, INTERVAL '4' SECOND, INTERVAL '10' SECOND) GROUP BY window_start, window_end, auction;
";

/// A query, and what aggregates in its graph from the sources on: in windows, again in the same windows, running.
const QUERIES: &[(&str, &str)] = &[
    ("SELECT window_start, window_end, max(n) FROM v GROUP BY window_start, window_end", "windows again"),
    ("SELECT window_end, max(n) FROM v GROUP BY window_end", "windows again"),
    ("SELECT window_start, max(n) FROM v GROUP BY window_start", "windows again"),
    ("SELECT n, window_end, count(*) FROM v GROUP BY n, window_end", "windows again"),
    ("SELECT max(n) FROM v GROUP BY window_start, window_end HAVING count(*) > 2", "windows again"),
    ("SELECT s, max(m) FROM (SELECT window_start AS s, n + 1 AS m FROM v WHERE n > 2) GROUP BY s", "windows again"),
    ("SELECT window_end, max(n) FROM hop GROUP BY window_start, window_end", "windows again"),
    ("SELECT window_end, max(n) FROM (SELECT * FROM v UNION ALL SELECT * FROM same) GROUP BY window_start, window_end",
     "windows windows again"),
    ("SELECT window_end, sum(m) FROM (SELECT window_start, window_end, n, max(auction) AS m FROM v
        GROUP BY window_start, window_end, n) GROUP BY window_start, window_end", "windows again again"),
    ("SELECT sum(m) FROM (SELECT window_end AS until, max(n) AS m FROM v GROUP BY window_start, window_end)
        GROUP BY TUMBLE(INTERVAL '1' HOUR)", "windows again windows"),
    ("SELECT DISTINCT window_start, n FROM v", "windows again"),
    ("SELECT DISTINCT window_start, n FROM hop", "windows again"),
    ("SELECT DISTINCT window_start, auction FROM HOP(bids, ts, INTERVAL '4' SECOND, INTERVAL '10' SECOND)", "windows"),
    ("SELECT DISTINCT auction FROM bids", "running"),
    ("SELECT DISTINCT auction, n FROM v", "windows running"),
    // Windows of different lengths are not the same ones; what is computed from a bound is none.
    ("SELECT window_end, max(n) FROM (SELECT * FROM v UNION ALL SELECT * FROM longer) GROUP BY window_start, window_end",
     "windows windows running"),
    ("SELECT date_trunc('hour', window_end), max(n) FROM v GROUP BY 1", "windows running"),
    ("SELECT auction, max(n) FROM v GROUP BY auction", "windows running"),
    ("SELECT w, max(n) FROM (SELECT window_end + INTERVAL '1' SECOND AS w, n FROM v) GROUP BY w", "windows running"),
];

#[test]
fn results_are_aggregated_in_their_windows_again_however_they_are_reached() {
    let mut wrong = Vec::new();
    for (query, expected) in QUERIES {
        let job = match plan_of(&format!("{TABLES}INSERT INTO out {query}")) {
            Ok(job) => job,
            Err(problem) => {
                wrong.push(format!("{query}: {problem}"));
                continue;
            }
        };
        let kinds = job.graph.operators.iter().filter_map(|spec| match spec {
            OperatorSpec::WindowAggregate(aggregate) if aggregate.time.is_some() => Some("again"),
            OperatorSpec::WindowAggregate(_) => Some("windows"),
            OperatorSpec::Aggregate(_) => Some("running"),
            _ => None,
        });
        let found = kinds.collect::<Vec<_>>().join(" ");
        if found != *expected {
            wrong.push(format!("{query}: {found}, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Rows of other windows would come late, or come out before others of their window have come.
#[test]
fn a_graph_that_aggregates_windows_again_must_mean_the_same_windows() {
    let planned = |window: &str, lateness: &str| {
        let text = format!(
            r#"{{"sources": {{"in": {{"connector": "topic", "topic": "bids",
                 "schema": [{{"name": "t", "type": "TIMESTAMP(3)"}}], "watermark": {{"column": "t", "delay": "1s"}}}}}},
                "operators": [
                  {{"type": "window_aggregate", "id": "w", "inputs": ["in"],
                    "window": {{"type": "hopping", "size": "10s", "slide": "4s", "offset": "1s"}},
                    "aggregates": [{{"fn": "count", "as": "n"}}]}},
                  {{"type": "window_aggregate", "id": "again", "inputs": ["w"], "time": "window_start",
                    "window": {window}, "allowed_lateness": "{lateness}",
                    "aggregates": [{{"fn": "max", "args": ["n"], "as": "n"}}]}}],
                "sinks": {{"out": {{"connector": "blackhole", "input": "again"}}}}}}"#
        );
        let graph: JobGraph = serde_json::from_str(&text).unwrap();
        plan_graph(&graph, None, 256, &context())
    };
    let right = r#"{"type": "tumbling", "size": "4s", "offset": "1s"}"#;
    for lateness in ["6s", "7s"] {
        planned(right, lateness).unwrap();
    }
    for (window, lateness) in [
        (right, "5s"),
        (r#"{"type": "tumbling", "size": "4s"}"#, "6s"),
        (
            r#"{"type": "tumbling", "size": "10s", "offset": "1s"}"#,
            "6s",
        ),
        (
            r#"{"type": "hopping", "size": "10s", "slide": "4s", "offset": "1s"}"#,
            "6s",
        ),
    ] {
        let problem = planned(window, lateness).unwrap_err();
        assert_eq!(problem.code, ErrorCode::InvalidGraph, "{window} {lateness}");
        assert_eq!(problem.at.as_deref(), Some("/operators/1/window"));
        assert!(
            problem.hint.contains(
                "tumbling windows of 4s with an offset of 1s and an allowed lateness of at least 6s"
            ),
            "{problem:?}"
        );
    }
}
