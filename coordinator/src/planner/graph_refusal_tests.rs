//! Graphs that are wrong, and what their users are told: where, by JSON pointer, what, and what to do.

use super::planner_tests::context;
use super::*;

/// Operators and sinks of a graph over one source, its mistake, and words of what is said.
const GRAPHS: &[(&str, &str, &str, &str, &[&str])] = &[
    ("no sink", "", "", "/sinks", &["at least one sink"]),
    (
        "an input that is not there",
        r#"{"type": "filter", "id": "f", "inputs": ["inn"], "predicate": "true"}"#,
        r#""out": {"connector": "blackhole", "input": "f"}"#,
        "/operators/0/inputs/0",
        &["\"inn\"", "There are: f, in"],
    ),
    (
        "a sink's input that is not there",
        r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "true"}"#,
        r#""out": {"connector": "blackhole", "input": "g"}"#,
        "/sinks/out/input",
        &["\"g\""],
    ),
    (
        "a cycle",
        r#"{"type": "union", "id": "u", "inputs": ["in", "f"]},
           {"type": "filter", "id": "f", "inputs": ["u"], "predicate": "true"}"#,
        r#""out": {"connector": "blackhole", "input": "u"}"#,
        "/operators/",
        &["cycle"],
    ),
    (
        "an operator that reads itself",
        r#"{"type": "union", "id": "u", "inputs": ["in", "u"]}"#,
        r#""out": {"connector": "blackhole", "input": "u"}"#,
        "/operators/0/inputs",
        &["cycle"],
    ),
    (
        "two operators of one id",
        r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "true"},
           {"type": "filter", "id": "f", "inputs": ["in"], "predicate": "true"}"#,
        r#""out": {"connector": "blackhole", "input": "f"}"#,
        "/operators/1/id",
        &["already used"],
    ),
    (
        "an operator of a source's name",
        r#"{"type": "filter", "id": "in", "inputs": ["in"], "predicate": "true"}"#,
        r#""out": {"connector": "blackhole", "input": "in"}"#,
        "/operators/0/id",
        &["already used"],
    ),
    (
        "an id that is no name",
        r#"{"type": "filter", "id": "a b", "inputs": ["in"], "predicate": "true"}"#,
        r#""out": {"connector": "blackhole", "input": "a b"}"#,
        "/operators/0/id",
        &["not a valid name"],
    ),
    (
        "an operator nobody reads",
        r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "true"},
           {"type": "filter", "id": "g", "inputs": ["in"], "predicate": "true"}"#,
        r#""out": {"connector": "blackhole", "input": "f"}"#,
        "/operators/1",
        &["nothing reads", "remove it"],
    ),
    (
        "a union of one",
        r#"{"type": "union", "id": "u", "inputs": ["in"]}"#,
        r#""out": {"connector": "blackhole", "input": "u"}"#,
        "/operators/0/inputs",
        &["at least two"],
    ),
    (
        "a filter of two",
        r#"{"type": "filter", "id": "f", "inputs": ["in", "in"], "predicate": "true"}"#,
        r#""out": {"connector": "blackhole", "input": "f"}"#,
        "/operators/0/inputs",
        &["exactly one input", "union"],
    ),
    (
        "a project of nothing",
        r#"{"type": "project", "id": "p", "inputs": ["in"], "columns": []}"#,
        r#""out": {"connector": "blackhole", "input": "p"}"#,
        "/operators/0/columns",
        &["at least one column"],
    ),
    (
        "two columns of one name",
        r#"{"type": "project", "id": "p", "inputs": ["in"], "columns": ["a", {"expr": "a + 1", "as": "a"}]}"#,
        r#""out": {"connector": "blackhole", "input": "p"}"#,
        "/operators/0",
        &["\"a\"", "another name"],
    ),
    (
        "an unknown column",
        r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "aa > 1"}"#,
        r#""out": {"connector": "blackhole", "input": "f"}"#,
        "/operators/0/predicate",
        &["\"aa\"", "\"a\""],
    ),
    (
        "an expression that does not parse",
        r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "a >"}"#,
        r#""out": {"connector": "blackhole", "input": "f"}"#,
        "/operators/0/predicate",
        &["line 1, column"],
    ),
    (
        "a condition that is none",
        r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "a + 1"}"#,
        r#""out": {"connector": "blackhole", "input": "f"}"#,
        "/operators/0/predicate",
        &["no condition"],
    ),
    (
        "an unknown aggregate",
        r#"{"type": "aggregate", "id": "g", "inputs": ["in"], "aggregates": [{"fn": "summ", "args": ["a"], "as": "s"}]}"#,
        r#""out": {"connector": "blackhole", "input": "g"}"#,
        "/operators/0/aggregates/0",
        &["\"summ\"", "There are: count, sum"],
    ),
    (
        "a window without event time",
        r#"{"type": "window_aggregate", "id": "w", "inputs": ["in"], "window": {"type": "tumbling", "size": "10s"},
            "aggregates": [{"fn": "count", "as": "n"}]}"#,
        r#""out": {"connector": "blackhole", "input": "w"}"#,
        "/operators/0/window",
        &["event time", "watermark"],
    ),
    (
        "a custom operator no worker carries",
        r#"{"type": "custom", "id": "c", "inputs": ["in"], "name": "magic", "schema": [{"name": "a", "type": "INT"}]}"#,
        r#""out": {"connector": "blackhole", "input": "c"}"#,
        "/operators/0/name",
        &["\"magic\""],
    ),
    (
        "a sink on the job's own dead letters",
        r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "true"}"#,
        r#""out": {"connector": "topic", "topic": "sums.dead-letters", "input": "f"}"#,
        "/sinks/out/topic",
        &["dead letters", "another topic"],
    ),
    (
        "a column that a webhook adds",
        r#"{"type": "project", "id": "p", "inputs": ["in"], "columns": [{"expr": "a", "as": "idempotency_key"}]}"#,
        r#""out": {"connector": "webhook", "url": "http://a/", "input": "p"}"#,
        "/sinks/out/input",
        &["idempotency_key", "another name"],
    ),
    (
        "a number compared with a text that is none",
        r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "a > 'abc'"}"#,
        r#""out": {"connector": "blackhole", "input": "f"}"#,
        "/operators/0/predicate",
        &["'abc' is no BIGINT", "CAST"],
    ),
    (
        "a record key of no column",
        r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "true"}"#,
        r#""out": {"connector": "topic", "topic": "r", "key": ["b"], "input": "f"}"#,
        "/sinks/out/key/0",
        &["\"b\"", "There are: a"],
    ),
];

#[test]
fn every_mistake_in_a_graph_is_pointed_at() {
    let mut wrong = Vec::new();
    for (name, operators, sinks, at, words) in GRAPHS {
        let text = format!(
            r#"{{"sources": {{"in": {{"connector": "topic", "topic": "bids", "schema": [{{"name": "a", "type": "BIGINT"}}]}}}},
                "operators": [{operators}], "sinks": {{{sinks}}}}}"#
        );
        let graph: JobGraph = serde_json::from_str(&text).unwrap();
        let problem = match plan_graph(&graph, None, common::limits::DEFAULT_KEY_GROUPS, &context())
        {
            Ok(_) => {
                wrong.push(format!("{name}: it was planned"));
                continue;
            }
            Err(problem) => problem,
        };
        let said = format!("{} {}", problem.detail, problem.hint);
        let place = problem.at.clone().unwrap_or_default();
        if !place.starts_with(at) || !words.iter().all(|word| said.contains(word)) {
            wrong.push(format!("{name}: {problem:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_empty_graph_is_refused() {
    let problem = plan_graph(&JobGraph::default(), None, 256, &context()).unwrap_err();
    assert_eq!(problem.code, ErrorCode::InvalidGraph);
    assert!(problem.detail.contains("at least one source"), "{problem}");
}
