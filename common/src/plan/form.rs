//! Where the JSON of a graph is not of a graph's form.
//!
//! The reader of a graph finds a node's fields only once it knows the node's type, and has lost the way to
//! them by then. Here every node is read by itself, as the type it says it is.

use serde_json::Value;

use super::JobGraph;
use super::connector::{
    BlackholeSink, ConsoleSink, FileSink, FileSource, GeneratorSource, SinkSpec, SourceSpec,
    TopicSink, TopicSource, WebhookSink,
};
use super::operator::{Aggregate, Custom, Filter, OperatorSpec, Project, Union, WindowAggregate};
use crate::error::{ErrorCode, Problem};
use crate::json::{Mistake, escaped, read_value};

/// The first thing that is not of a graph's form, with a JSON pointer to it. `None`: it is a graph.
pub fn problem(graph: &Value) -> Option<Problem> {
    of_nodes(graph)
        .chain(read::<JobGraph>(graph).map(|mistake| (String::new(), mistake)))
        .map(|(node, mistake)| said(graph, &node, mistake))
        .next()
}

/// What is wrong with each node, and where that node is.
fn of_nodes(graph: &Value) -> impl Iterator<Item = (String, Mistake)> {
    let named = |section: &'static str, of: fn(&Value) -> Option<Mistake>| {
        let nodes = graph.get(section).and_then(Value::as_object);
        nodes.into_iter().flatten().filter_map(move |(name, node)| {
            Some((format!("/{section}/{}", escaped(name)), of(node)?))
        })
    };
    let operators = graph.get("operators").and_then(Value::as_array);
    let operators = operators.into_iter().flatten().enumerate();
    let operators =
        operators.filter_map(|(i, node)| Some((format!("/operators/{i}"), of_operator(node)?)));
    named("sources", of_source)
        .chain(operators)
        .chain(named("sinks", of_sink))
}

fn of_source(node: &Value) -> Option<Mistake> {
    match tag(node, "connector") {
        Some("topic") => read_as::<TopicSource>(node, "connector"),
        Some("files" | "single_file") => read_as::<FileSource>(node, "connector"),
        Some("generator") => read_as::<GeneratorSource>(node, "connector"),
        _ => untyped::<SourceSpec>(node, "connector"),
    }
}

fn of_operator(node: &Value) -> Option<Mistake> {
    match tag(node, "type") {
        Some("filter") => read_as::<Filter>(node, "type"),
        Some("project") => read_as::<Project>(node, "type"),
        Some("union") => read_as::<Union>(node, "type"),
        Some("window_aggregate") => read_as::<WindowAggregate>(node, "type"),
        Some("aggregate") => read_as::<Aggregate>(node, "type"),
        Some("custom") => read_as::<Custom>(node, "type"),
        _ => untyped::<OperatorSpec>(node, "type"),
    }
}

fn of_sink(node: &Value) -> Option<Mistake> {
    match tag(node, "connector") {
        Some("topic") => read_as::<TopicSink>(node, "connector"),
        Some("files" | "single_file") => read_as::<FileSink>(node, "connector"),
        Some("webhook") => read_as::<WebhookSink>(node, "connector"),
        Some("blackhole") => read_as::<BlackholeSink>(node, "connector"),
        Some("console") => read_as::<ConsoleSink>(node, "connector"),
        _ => untyped::<SinkSpec>(node, "connector"),
    }
}

fn tag<'a>(node: &'a Value, name: &str) -> Option<&'a str> {
    node.get(name).and_then(Value::as_str)
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> Option<Mistake> {
    read_value::<T>(value.clone()).err()
}

/// The fields beside the tag.
fn read_as<T: serde::de::DeserializeOwned>(node: &Value, tag: &str) -> Option<Mistake> {
    let mut fields = node.clone();
    if let Some(fields) = fields.as_object_mut() {
        fields.remove(tag);
    }
    read::<T>(&fields)
}

/// A node that does not say what it is, or says what there is not.
fn untyped<T: serde::de::DeserializeOwned>(node: &Value, tag: &str) -> Option<Mistake> {
    let mut mistake = read::<T>(node)?;
    if node.is_object() {
        mistake.pointer = format!("/{tag}");
    }
    Some(mistake)
}

fn said(graph: &Value, node: &str, mistake: Mistake) -> Problem {
    let mut at = format!("{node}{}", mistake.pointer);
    // What has variants says by its type which one it is.
    let unknown = mistake.detail.starts_with("unknown variant");
    if unknown && graph.pointer(&at).is_some_and(Value::is_object) {
        at.push_str("/type");
    }
    let kind = graph.pointer(&at).and_then(Value::as_str);
    if at.ends_with("/window/type")
        && let Some(kind @ ("session" | "cumulate" | "cumulating")) = kind
    {
        return Problem::new(
            ErrorCode::UnsupportedFeature,
            format!("{kind} windows are not supported in a job yet"),
        )
        .at(at)
        .hint("There are tumbling and hopping windows.");
    }
    Problem::new(ErrorCode::InvalidGraph, mistake.detail).at(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(source: &str, operator: &str, sink: &str) -> Value {
        let text = format!(
            r#"{{"sources": {{"in": {source}}}, "operators": [{operator}], "sinks": {{"out": {sink}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    const SOURCE: &str = r#"{"connector": "generator", "generator": "sensors"}"#;
    const OPERATOR: &str =
        r#"{"type": "filter", "id": "f", "inputs": ["in"], "predicate": "true"}"#;
    const SINK: &str = r#"{"connector": "blackhole", "input": "f"}"#;

    #[test]
    fn a_graph_is_of_its_form() {
        let graph = graph(SOURCE, OPERATOR, SINK);
        assert_eq!(problem(&graph), None);
        assert!(serde_json::from_value::<JobGraph>(graph).is_ok());
    }

    #[test]
    fn every_mistake_of_form_is_pointed_at() {
        let sources = [
            (r#"{"connector": "topik"}"#, "/connector", "topik"),
            (r#"{"generator": "sensors"}"#, "/connector", "missing"),
            (
                r#"{"connector": "topic", "schema": []}"#,
                "/topic",
                "missing",
            ),
            (
                r#"{"connector": "topic", "topic": "a b", "schema": []}"#,
                "/topic",
                "a b",
            ),
            (
                r#"{"connector": "topic", "topic": "a", "schema": [{"name": "a", "type": "BIGNIT"}]}"#,
                "/schema/0/type",
                "BIGNIT",
            ),
            (
                r#"{"connector": "generator", "generator": "sensors", "rate": "fast"}"#,
                "/rate",
                "fast",
            ),
            (
                r#"{"connector": "generator", "generator": "sensors", "raet": 1}"#,
                "/raet",
                "raet",
            ),
            ("7", "", "invalid type"),
        ];
        let operators = [
            (
                r#"{"type": "fliter", "id": "f", "inputs": []}"#,
                "/type",
                "fliter",
            ),
            (
                r#"{"type": "filter", "id": "f", "inputs": ["in"]}"#,
                "/predicate",
                "missing",
            ),
            (
                r#"{"type": "filter", "id": "f", "inputs": "in", "predicate": "true"}"#,
                "/inputs",
                "sequence",
            ),
            (
                r#"{"type": "filter", "id": "f", "inputs": [1], "predicate": "true"}"#,
                "/inputs/0",
                "string",
            ),
            (
                r#"{"type": "union", "id": "f", "inputs": ["in"], "all": true}"#,
                "/all",
                "all",
            ),
            (
                r#"{"type": "window_aggregate", "id": "f", "inputs": ["in"], "window": {"type": "sliding"}, "aggregates": []}"#,
                "/window/type",
                "sliding",
            ),
            (
                r#"{"type": "window_aggregate", "id": "f", "inputs": ["in"], "window": {"size": "1s"}, "aggregates": []}"#,
                "/window/type",
                "missing",
            ),
            (
                r#"{"type": "aggregate", "id": "f", "inputs": ["in"], "aggregates": [{"fn": "sum"}]}"#,
                "/aggregates/0/as",
                "missing",
            ),
        ];
        let sinks = [
            (
                r#"{"connector": "topc", "input": "f"}"#,
                "/connector",
                "topc",
            ),
            (r#"{"connector": "blackhole"}"#, "/input", "missing"),
            (
                r#"{"connector": "webhook", "input": "f", "url": "http://a", "max_rows": -1}"#,
                "/max_rows",
                "-1",
            ),
        ];
        let all = sources
            .map(|(node, at, word)| {
                (
                    graph(node, OPERATOR, SINK),
                    format!("/sources/in{at}"),
                    word,
                )
            })
            .into_iter()
            .chain(operators.map(|(node, at, word)| {
                (graph(SOURCE, node, SINK), format!("/operators/0{at}"), word)
            }))
            .chain(sinks.map(|(node, at, word)| {
                (
                    graph(SOURCE, OPERATOR, node),
                    format!("/sinks/out{at}"),
                    word,
                )
            }));
        for (graph, at, word) in all {
            let problem = problem(&graph).unwrap_or_else(|| panic!("{graph} is of its form"));
            assert_eq!(problem.at, Some(at), "{graph}: {problem}");
            assert!(problem.detail.contains(word), "{graph}: {problem}");
            assert_eq!(problem.code, ErrorCode::InvalidGraph);
            assert!(serde_json::from_value::<JobGraph>(graph).is_err());
        }
    }

    #[test]
    fn a_session_window_is_a_feature_to_come() {
        let session = r#"{"type": "window_aggregate", "id": "f", "inputs": ["in"], "window": {"type": "session", "gap": "5s"}, "aggregates": []}"#;
        let problem = problem(&graph(SOURCE, session, SINK)).unwrap();
        assert_eq!(problem.code, ErrorCode::UnsupportedFeature);
        assert_eq!(problem.at.as_deref(), Some("/operators/0/window/type"));
    }

    #[test]
    fn what_is_beside_the_nodes_is_pointed_at() {
        let text = r#"{"sources": {}, "sinks": {}, "operatros": []}"#;
        let problem = problem(&serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(problem.at.as_deref(), Some("/operatros"));
    }
}
