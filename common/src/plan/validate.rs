//! Everything wrong with a graph that can be known without typing its expressions and without a worker.
//!
//! Reports the first mistake of each node, all nodes at once, each with its JSON pointer.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::JobGraph;
use super::connector::{
    BoundedMode, Format, SinkSpec, SourceSpec, StartupMode, TopicSource, WebhookSink,
};
use super::operator::OperatorSpec;
use super::window::WindowSpec;
use crate::json::escaped;
use crate::limits::{MAX_JOB_NODES, MAX_JOB_TEXT_BYTES};

/// One mistake in a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphMistake {
    /// A JSON pointer into the graph.
    pub at: String,
    pub detail: String,
    pub hint: String,
}

/// Checks names, inputs, cycles, windows and bounds. Empty: the graph is sound so far.
pub fn validate(graph: &JobGraph) -> Vec<GraphMistake> {
    let mut mistakes = Mistakes(Vec::new());
    let nodes = graph.sources.len() + graph.operators.len() + graph.sinks.len();
    if nodes > MAX_JOB_NODES {
        mistakes.add(
            "",
            format!("a job has at most {MAX_JOB_NODES} nodes, this one has {nodes}"),
            "Split it into several jobs.",
        );
        return mistakes.0;
    }
    if graph.sources.is_empty() {
        mistakes.add(
            "/sources",
            "a job needs at least one source",
            "Add one, for example {\"connector\": \"topic\", \"topic\": …, \"schema\": …}.",
        );
    }
    if graph.sinks.is_empty() {
        mistakes.add(
            "/sinks",
            "a job needs at least one sink",
            "Add one, for example {\"connector\": \"blackhole\", \"input\": …}.",
        );
    }
    check_ids(graph, &mut mistakes);
    check_inputs(graph, &mut mistakes);
    check_cycles(graph, &mut mistakes);
    for (i, operator) in graph.operators.iter().enumerate() {
        check_operator(i, operator, &mut mistakes);
    }
    check_connectors(graph, &mut mistakes);
    mistakes.0
}

struct Mistakes(Vec<GraphMistake>);

impl Mistakes {
    fn add(&mut self, at: impl Into<String>, detail: impl Into<String>, hint: impl Into<String>) {
        self.0.push(GraphMistake {
            at: at.into(),
            detail: detail.into(),
            hint: hint.into(),
        });
    }
}

fn check_ids(graph: &JobGraph, mistakes: &mut Mistakes) {
    let sources = graph
        .sources
        .keys()
        .map(|name| (format!("/sources/{name}"), name.as_str()));
    let operators = graph
        .operators
        .iter()
        .enumerate()
        .map(|(i, op)| (format!("/operators/{i}/id"), op.id()));
    let sinks = graph
        .sinks
        .keys()
        .map(|name| (format!("/sinks/{name}"), name.as_str()));
    let mut seen = BTreeMap::new();
    for (at, id) in sources.chain(operators).chain(sinks) {
        let valid = !id.is_empty()
            && id.len() <= 100
            && id
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
        if !valid {
            mistakes.add(
                &at,
                format!("\"{id}\" is not a valid name"),
                "Names have 1 to 100 letters, digits, \".\", \"_\" and \"-\".",
            );
        }
        if let Some(first) = seen.insert(id.to_owned(), at.clone()) {
            mistakes.add(
                &at,
                format!("the name \"{id}\" is already used at {first}"),
                "State is kept under these names, so each must be unique in its job.",
            );
        }
    }
}

fn check_inputs(graph: &JobGraph, mistakes: &mut Mistakes) {
    let known: BTreeSet<&str> = graph
        .sources
        .keys()
        .map(String::as_str)
        .chain(graph.operators.iter().map(OperatorSpec::id))
        .collect();
    let names = some_of(known.iter().copied());
    let mut used = BTreeSet::new();
    let mut check = |at: String, input: &str, mistakes: &mut Mistakes| {
        used.insert(input.to_owned());
        if !known.contains(input) {
            mistakes.add(
                at,
                format!("there is no source or operator \"{input}\""),
                format!("There are: {names}."),
            );
        }
    };
    for (i, operator) in graph.operators.iter().enumerate() {
        for (j, input) in operator.inputs().iter().enumerate() {
            check(format!("/operators/{i}/inputs/{j}"), input, mistakes);
        }
    }
    for (name, sink) in &graph.sinks {
        check(format!("/sinks/{name}/input"), sink.input(), mistakes);
    }
    for (i, operator) in graph.operators.iter().enumerate() {
        if !used.contains(operator.id()) {
            mistakes.add(
                format!("/operators/{i}"),
                format!("nothing reads the output of \"{}\"", operator.id()),
                "Name it as the input of an operator or a sink, or remove it.",
            );
        }
    }
    for name in graph.sources.keys().filter(|name| !used.contains(*name)) {
        mistakes.add(
            format!("/sources/{name}"),
            format!("nothing reads the source \"{name}\""),
            "Name it as the input of an operator or a sink, or remove it.",
        );
    }
}

/// Names to read: not thousands of them.
fn some_of<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 20;
    let count = names.len();
    let mut shown = names.take(SHOWN).collect::<Vec<_>>().join(", ");
    if count > SHOWN {
        shown.push_str(&format!(", and {} more", count - SHOWN));
    }
    shown
}

/// Removes operators whose inputs are all removed or no operators; what stays is on or behind a cycle.
fn check_cycles(graph: &JobGraph, mistakes: &mut Mistakes) {
    let mut left: BTreeMap<&str, usize> = graph
        .operators
        .iter()
        .enumerate()
        .map(|(i, op)| (op.id(), i))
        .collect();
    let mut readers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    // How many of its inputs each operator still waits for.
    let mut waits: BTreeMap<&str, usize> = BTreeMap::new();
    for (id, i) in &left {
        let inputs = graph.operators[*i].inputs().iter().map(String::as_str);
        let operators: Vec<&str> = inputs.filter(|input| left.contains_key(input)).collect();
        for input in &operators {
            readers.entry(input).or_default().push(id);
        }
        waits.insert(id, operators.len());
    }
    let mut free: Vec<&str> = waits
        .iter()
        .filter(|(_, count)| **count == 0)
        .map(|(id, _)| *id)
        .collect();
    while let Some(id) = free.pop() {
        left.remove(id);
        for reader in readers.get(id).into_iter().flatten() {
            let count = waits.get_mut(reader).expect("every operator has a count");
            *count -= 1;
            if *count == 0 {
                free.push(reader);
            }
        }
    }
    if let Some((id, i)) = left.first_key_value() {
        let members = some_of(left.keys().copied());
        mistakes.add(
            format!("/operators/{i}/inputs"),
            format!("\"{id}\" is on a cycle or reads from one (among {members})"),
            "Rows must flow from sources to sinks without coming back.",
        );
    }
}

fn check_operator(i: usize, operator: &OperatorSpec, mistakes: &mut Mistakes) {
    let at = format!("/operators/{i}");
    let inputs = operator.inputs().len();
    match operator {
        OperatorSpec::Union(_) if inputs < 2 => {
            mistakes.add(
                format!("{at}/inputs"),
                "a union needs at least two inputs",
                "Leave it out, or name the streams that it joins in \"inputs\".",
            );
        }
        OperatorSpec::Union(_) | OperatorSpec::Custom(_) => {}
        OperatorSpec::Filter(_)
        | OperatorSpec::Project(_)
        | OperatorSpec::WindowAggregate(_)
        | OperatorSpec::Aggregate(_)
            if inputs != 1 =>
        {
            mistakes.add(
                format!("{at}/inputs"),
                format!(
                    "a {} has exactly one input, this one has {inputs}",
                    operator.type_name()
                ),
                "Join several streams with a union first.",
            );
        }
        OperatorSpec::Filter(_) | OperatorSpec::Aggregate(_) => {}
        OperatorSpec::Project(project) => {
            if project.columns.is_empty() {
                mistakes.add(
                    format!("{at}/columns"),
                    "a project needs at least one column",
                    "Name columns of its input in \"columns\", or {\"expr\": …, \"as\": …}.",
                );
            }
        }
        OperatorSpec::WindowAggregate(aggregate) => check_window(&at, &aggregate.window, mistakes),
    }
    if let OperatorSpec::Custom(custom) = operator
        && custom.config.to_string().len() > MAX_JOB_TEXT_BYTES
    {
        mistakes.add(
            format!("{at}/config"),
            "the configuration is over 1 MiB",
            "Put what is large into a topic or a file, and its name into the configuration.",
        );
    }
}

fn check_window(at: &str, window: &WindowSpec, mistakes: &mut Mistakes) {
    /// A row of a hopping window is in this many windows at most: each is a row of output per key.
    const MAX_WINDOWS_PER_ROW: u64 = 10_000;
    let (size, slide) = (window.size(), window.slide());
    if size.0 == 0 || slide.0 == 0 {
        mistakes.add(
            format!("{at}/window"),
            "a window's size and slide must be at least 1ms",
            "Write for example 500ms, 10s or 5m.",
        );
    } else if slide > size {
        mistakes.add(
            format!("{at}/window/slide"),
            format!(
                "the slide of {slide} is longer than the window of {size}, so rows would be lost"
            ),
            "Make the slide at most the size.",
        );
    } else if size.0.div_ceil(slide.0) > MAX_WINDOWS_PER_ROW {
        mistakes.add(
            format!("{at}/window/slide"),
            format!(
                "every row would be in {} windows; at most {MAX_WINDOWS_PER_ROW} are allowed",
                size.0.div_ceil(slide.0)
            ),
            "Choose a longer slide.",
        );
    }
}

/// What a worker would refuse when the job starts.
fn check_connectors(graph: &JobGraph, mistakes: &mut Mistakes) {
    let of_sources = graph.sources.iter().filter_map(|(name, spec)| match spec {
        SourceSpec::Files(files) => Some((format!("/sources/{name}"), &files.path, files.format)),
        SourceSpec::Topic(_) | SourceSpec::Generator(_) => None,
    });
    let of_sinks = graph.sinks.iter().filter_map(|(name, spec)| match spec {
        SinkSpec::Files(files) => Some((format!("/sinks/{name}"), &files.path, files.format)),
        _ => None,
    });
    for (at, path, format) in of_sources.chain(of_sinks) {
        if format == Format::Msgpack {
            mistakes.add(
                format!("{at}/format"),
                "files have one record per line, and MessagePack has no lines",
                "Use format json, csv or debezium_json.",
            );
        }
        if path.is_empty() {
            mistakes.add(
                format!("{at}/path"),
                "the path is empty",
                "Name a file, or a directory with a / at its end.",
            );
        }
    }
    for (name, spec) in &graph.sources {
        let at = format!("/sources/{name}");
        match spec {
            SourceSpec::Topic(topic) => check_startup(&at, topic, mistakes),
            SourceSpec::Generator(generator) => {
                let options = [
                    ("rate", generator.rate == Some(0)),
                    ("splits", generator.splits == 0),
                ];
                for (option, _) in options.iter().filter(|(_, is_zero)| *is_zero) {
                    mistakes.add(
                        format!("{at}/{option}"),
                        format!("with \"{option}\" 0 the generator would never give a row"),
                        "Make it at least 1, or leave it out.",
                    );
                }
            }
            SourceSpec::Files(_) => {}
        }
    }
    for (name, spec) in &graph.sinks {
        if let SinkSpec::Webhook(webhook) = spec {
            check_webhook(&format!("/sinks/{name}"), webhook, mistakes);
        }
    }
    check_loops(graph, mistakes);
}

/// A mode that needs a value has it, and a value has the mode in which it counts.
fn check_startup(at: &str, topic: &TopicSource, mistakes: &mut Mistakes) {
    for (mode, option, given, example) in [
        (
            StartupMode::Timestamp,
            "scan.startup.timestamp",
            topic.startup_timestamp_ms.is_some(),
            "milliseconds since 1970, or a time in ISO 8601",
        ),
        (
            StartupMode::Offsets,
            "scan.startup.offsets",
            !topic.startup_offsets.is_empty(),
            "the offset to begin at for each partition",
        ),
    ] {
        let name = match mode {
            StartupMode::Timestamp => "timestamp",
            _ => "offsets",
        };
        if topic.startup == mode && !given {
            mistakes.add(
                format!("{at}/scan.startup.mode"),
                format!("with scan.startup.mode {name} the option {option} is needed"),
                format!("Set {option}: {example}."),
            );
        }
        if topic.startup != mode && given {
            mistakes.add(
                format!("{at}/{option}"),
                format!("{option} means nothing without scan.startup.mode {name}"),
                format!("Set scan.startup.mode to {name}, or leave {option} out."),
            );
        }
    }
    if let Some((partition, offset)) = topic.startup_offsets.iter().find(|(_, o)| **o < 0) {
        mistakes.add(
            format!("{at}/scan.startup.offsets"),
            format!("the offset {offset} of partition {partition} is below 0"),
            "Offsets count from 0; partitions that are not named start at the earliest.",
        );
    }
}

fn check_webhook(at: &str, webhook: &WebhookSink, mistakes: &mut Mistakes) {
    if !webhook.url.starts_with("http://") {
        mistakes.add(
            format!("{at}/url"),
            format!("the URL \"{}\" does not start with http://", webhook.url),
            "Write it as http://host:port/path.",
        );
    }
    if webhook.max_rows == 0 {
        mistakes.add(
            format!("{at}/max_rows"),
            "with \"max_rows\" 0 no request would carry a row",
            "Make it at least 1, or leave it out.",
        );
    }
    for (name, value) in &webhook.headers {
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) {
            mistakes.add(
                format!("{at}/headers/{}", escaped(name)),
                format!("\"{name}\" is not a header's name"),
                "A header's name has letters, digits and \"-\".",
            );
        } else if !value
            .bytes()
            .all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
        {
            mistakes.add(
                format!("{at}/headers/{}", escaped(name)),
                format!("the value of the header \"{name}\" cannot be sent"),
                "A header's value is one line of printable ASCII characters.",
            );
        }
    }
}

/// What a job writes to a topic that it reads to no end comes back to it, again and again.
fn check_loops(graph: &JobGraph, mistakes: &mut Mistakes) {
    for (name, sink) in &graph.sinks {
        let SinkSpec::Topic(sink) = sink else {
            continue;
        };
        let read = graph.sources.iter().find(|(_, source)| {
            matches!(source, SourceSpec::Topic(source)
                if source.topic == sink.topic && source.bounded == BoundedMode::Unbounded)
        });
        if let Some((source, _)) = read {
            mistakes.add(
                format!("/sinks/{name}/topic"),
                format!(
                    "the job reads the topic \"{}\" (\"{source}\") and would read its own results for ever",
                    sink.topic
                ),
                "Write to another topic, split it into two jobs, or read with scan.bounded.mode latest.",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes_of(operators: &str) -> Vec<String> {
        let json = format!(
            r#"{{"sources": {{"in": {{"connector": "generator", "generator": "sensors"}}}},
                "operators": [{operators}],
                "sinks": {{"out": {{"connector": "blackhole", "input": "last"}}}}}}"#
        );
        let graph = serde_json::from_str(&json).unwrap();
        validate(&graph)
            .into_iter()
            .map(|m| format!("{}: {}", m.at, m.detail))
            .collect()
    }

    #[test]
    fn a_sound_graph_has_no_mistakes() {
        let found = mistakes_of(
            r#"{"type": "filter", "id": "last", "inputs": ["in"], "predicate": "true"}"#,
        );
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn a_cycle_is_found() {
        let found = mistakes_of(
            r#"{"type": "union", "id": "last", "inputs": ["in", "back"]},
               {"type": "filter", "id": "back", "inputs": ["last"], "predicate": "true"}"#,
        );
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("cycle"), "{found:?}");
    }

    #[test]
    fn dangling_inputs_and_duplicate_names_are_found_together() {
        let found = mistakes_of(
            r#"{"type": "filter", "id": "last", "inputs": ["inn"], "predicate": "true"},
               {"type": "filter", "id": "last", "inputs": ["in"], "predicate": "true"}"#,
        );
        assert!(
            found
                .iter()
                .any(|m| m.starts_with("/operators/0/inputs/0: there is no")),
            "{found:?}"
        );
        assert!(
            found
                .iter()
                .any(|m| m.starts_with("/operators/1/id: the name")),
            "{found:?}"
        );
    }

    #[test]
    fn connectors_that_no_worker_would_open_are_refused() {
        let json = r#"{
            "sources": {"in": {"connector": "files", "path": "a/", "format": "msgpack", "schema": []}},
            "operators": [],
            "sinks": {
                "file": {"connector": "files", "path": "", "format": "msgpack", "input": "in"},
                "hook": {"connector": "webhook", "url": "https://example.org", "input": "in"}}}"#;
        let found = validate(&serde_json::from_str(json).unwrap());
        let places: Vec<&str> = found.iter().map(|mistake| mistake.at.as_str()).collect();
        assert_eq!(
            places,
            [
                "/sources/in/format",
                "/sinks/file/format",
                "/sinks/file/path",
                "/sinks/hook/url"
            ]
        );
    }

    /// The places of what is wrong with one source and one sink.
    fn wrong_options(source: &str, sink: &str) -> Vec<String> {
        let json = format!(
            r#"{{"sources": {{"in": {{{source}}}}}, "sinks": {{"out": {{{sink}, "input": "in"}}}}}}"#
        );
        let found = validate(&serde_json::from_str(&json).unwrap());
        assert!(
            found.iter().all(|mistake| !mistake.hint.is_empty()),
            "{found:?}"
        );
        found.into_iter().map(|mistake| mistake.at).collect()
    }

    #[test]
    fn options_that_mean_nothing_are_refused_by_name() {
        const NOWHERE: &str = r#""connector": "blackhole""#;
        for (options, at) in [
            (r#""scan.startup.mode": "timestamp""#, "scan.startup.mode"),
            (r#""scan.startup.mode": "offsets""#, "scan.startup.mode"),
            (r#""scan.startup.timestamp": 7"#, "scan.startup.timestamp"),
            (
                r#""scan.startup.offsets": {"0": 7}"#,
                "scan.startup.offsets",
            ),
            (
                r#""scan.startup.mode": "offsets", "scan.startup.offsets": {"0": -7}"#,
                "scan.startup.offsets",
            ),
        ] {
            let source =
                format!(r#""connector": "topic", "topic": "bids", "schema": [], {options}"#);
            assert_eq!(
                wrong_options(&source, NOWHERE),
                [format!("/sources/in/{at}")]
            );
        }
        for option in ["rate", "splits"] {
            let source =
                format!(r#""connector": "generator", "generator": "sensors", "{option}": 0"#);
            assert_eq!(
                wrong_options(&source, NOWHERE),
                [format!("/sources/in/{option}")]
            );
        }
        for (options, at) in [
            (r#""max_rows": 0"#, "max_rows"),
            (r#""headers": {"a b": "c"}"#, "headers/a b"),
            (r#""headers": {"a/b": "c"}"#, "headers/a~1b"),
            (r#""headers": {"a": "b\nc: d"}"#, "headers/a"),
        ] {
            let source = r#""connector": "generator", "generator": "sensors""#;
            let sink = format!(r#""connector": "webhook", "url": "http://a/", {options}"#);
            assert_eq!(wrong_options(source, &sink), [format!("/sinks/out/{at}")]);
        }
    }

    #[test]
    fn a_job_that_would_read_its_own_results_for_ever_is_refused() {
        const SINK: &str = r#""connector": "topic", "topic": "bids""#;
        let source = r#""connector": "topic", "topic": "bids", "schema": []"#;
        assert_eq!(wrong_options(source, SINK), ["/sinks/out/topic"]);
        let once = format!(r#"{source}, "scan.bounded.mode": "latest""#);
        assert_eq!(wrong_options(&once, SINK), Vec::<String>::new());
    }

    #[test]
    fn windows_that_would_lose_rows_or_make_millions_are_refused() {
        for (window, word) in [
            (r#"{"type": "tumbling", "size": "0ms"}"#, "at least 1ms"),
            (
                r#"{"type": "hopping", "size": "1s", "slide": "2s"}"#,
                "longer than",
            ),
            (
                r#"{"type": "hopping", "size": "1d", "slide": "1ms"}"#,
                "windows",
            ),
        ] {
            let found = mistakes_of(&format!(
                r#"{{"type": "window_aggregate", "id": "last", "inputs": ["in"], "window": {window}, "aggregates": []}}"#
            ));
            assert!(
                found.iter().any(|m| m.contains(word)),
                "{window}: {found:?}"
            );
        }
    }
}
