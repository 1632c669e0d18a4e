//! What becomes of the state of each node when a job is changed: the upgrade plan (pure).
//!
//! State is kept under the ids of operators. It goes on if the changed operator means the same by it: the same
//! keys, windows and functions over the same types. What a user may change freely is what is done with rows before and
//! after, how results are named, and where they go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::connector::{SinkSpec, SourceSpec};
use super::expression::{Expression, NamedExpression};
use super::operator::{AggregateCall, OperatorSpec};
use super::task_graph::{PlannedOperator, PlannedSink, PlannedSource, Stage, TaskGraph};
use crate::schema::Column;

/// What becomes of what a node has kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It goes on as it is.
    Kept,
    /// It goes on, dealt to another number of tasks.
    Migrated,
    /// The node is no longer there.
    Dropped,
    /// The node means something else by it, and begins with nothing.
    Rebuilt,
    /// The node was not there before.
    New,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    Source,
    Operator,
    Sink,
}

/// What becomes of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeUpgrade {
    /// The operator's id, the source's or the sink's name.
    pub operator: String,
    #[schema(inline)]
    pub kind: NodeKind,
    #[schema(inline)]
    pub state: Fate,
    pub reason: String,
    /// Whether something it knows is known no more.
    pub loses_state: bool,
}

/// What becomes of every node: those of the changed job, then those it has no more.
pub fn upgrade(before: &TaskGraph, after: &TaskGraph) -> Vec<NodeUpgrade> {
    let (former, changed) = (nodes(before), nodes(after));
    let mut upgrades = Vec::new();
    for (key, (stage, node)) in &changed {
        let upgrade = match former.get(key) {
            None => node.is_new(),
            Some((before, was)) => node.upgraded(was, before.parallelism, stage.parallelism),
        };
        upgrades.push(upgrade);
    }
    for (key, (_, node)) in &former {
        if !changed.contains_key(key) {
            upgrades.push(node.dropped());
        }
    }
    upgrades
}

/// Why a source cannot go on from where the former one of its name was; `None`: it does.
pub(super) fn source_differs(former: &PlannedSource, source: &PlannedSource) -> Option<String> {
    match (&former.spec, &source.spec) {
        (SourceSpec::Topic(former), SourceSpec::Topic(topic)) => {
            if former.topic != topic.topic {
                return Some(format!(
                    "it reads the topic \"{}\" and not \"{}\"",
                    topic.topic, former.topic
                ));
            }
            (former.bounded != topic.bounded)
                .then(|| "\"scan.bounded.mode\" says where it ends, and has changed".to_owned())
        }
        (SourceSpec::Files(former), SourceSpec::Files(files)) => {
            if former.path != files.path {
                return Some(format!("it reads {} and not {}", files.path, former.path));
            }
            (former.format != files.format).then(|| {
                "positions in files are those of their format, which has changed".to_owned()
            })
        }
        (SourceSpec::Generator(former), SourceSpec::Generator(generator)) => {
            let rows = |of: &super::connector::GeneratorSource| {
                (of.generator, of.rows, of.seed, of.splits)
            };
            (rows(former) != rows(generator)).then(|| "it generates other rows".to_owned())
        }
        _ => Some("it is of another connector".to_owned()),
    }
}

/// Why an operator cannot go on with what the former one of its id kept; `None`: it does.
pub(super) fn operator_differs(
    former: &PlannedOperator,
    operator: &PlannedOperator,
) -> Option<String> {
    let differs = match (&former.spec, &operator.spec) {
        (OperatorSpec::WindowAggregate(was), OperatorSpec::WindowAggregate(is)) => {
            if was.window != is.window {
                return Some("its windows are others".to_owned());
            }
            if was.time != is.time || former.time_column != operator.time_column {
                return Some("another column says which window a row is in".to_owned());
            }
            keys_differ(former, &was.keys, operator, &is.keys)
                .or_else(|| calls_differ(&was.aggregates, &is.aggregates))
        }
        (OperatorSpec::Aggregate(was), OperatorSpec::Aggregate(is)) => {
            keys_differ(former, &was.keys, operator, &is.keys)
                .or_else(|| calls_differ(&was.aggregates, &is.aggregates))
        }
        (OperatorSpec::Custom(was), OperatorSpec::Custom(is)) => {
            if was.name != is.name {
                return Some(format!(
                    "it is a \"{}\" and not a \"{}\"",
                    is.name, was.name
                ));
            }
            if is.keys.is_empty() {
                return Some("what an operator without keys keeps belongs to no key".to_owned());
            }
            keys_differ(former, &was.keys, operator, &is.keys)
        }
        (was, is) if was.type_name() == is.type_name() => return None,
        (was, is) => {
            let (was, is) = (was.type_name(), is.type_name());
            return Some(format!("it is of type {is} and not {was}"));
        }
    };
    differs.or_else(|| inputs_differ(former, operator))
}

/// Why what the former sink of its name prepared is nothing to this one; `None`: it is.
pub(super) fn sink_differs(former: &PlannedSink, sink: &PlannedSink) -> Option<String> {
    let place = |of: &PlannedSink| match &of.spec {
        SinkSpec::Topic(topic) => format!("topic \"{}\"", topic.topic),
        SinkSpec::Files(files) => files.path.clone(),
        SinkSpec::Webhook(webhook) => webhook.url.clone(),
        SinkSpec::Blackhole(_) => "a blackhole".to_owned(),
        SinkSpec::Console(_) => "the console".to_owned(),
    };
    (place(former) != place(sink)).then(|| {
        format!(
            "what it has written stays in {}; from now on it writes to {}",
            place(former),
            place(sink)
        )
    })
}

fn keys_differ(
    former: &PlannedOperator,
    were: &[NamedExpression],
    operator: &PlannedOperator,
    are: &[NamedExpression],
) -> Option<String> {
    let expressions = |of: &[NamedExpression]| -> Vec<Expression> {
        of.iter().map(|key| key.expr.clone()).collect()
    };
    let types = |of: &PlannedOperator, count: usize| -> Vec<_> {
        let keys = of.output.iter().take(count);
        keys.map(|column| column.kind.clone()).collect()
    };
    let same = expressions(were) == expressions(are);
    // What a custom operator emits says nothing of its keys.
    let typed = !matches!(operator.spec, OperatorSpec::Custom(_));
    match same && (!typed || types(former, were.len()) == types(operator, are.len())) {
        true => None,
        false => Some("its keys are others".to_owned()),
    }
}

fn calls_differ(were: &[AggregateCall], are: &[AggregateCall]) -> Option<String> {
    // What they are called does not matter.
    let unnamed = |calls: &[AggregateCall]| -> Vec<AggregateCall> {
        let name = String::new();
        let unnamed = calls.iter().cloned();
        unnamed
            .map(|call| AggregateCall {
                name: name.clone(),
                ..call
            })
            .collect()
    };
    (unnamed(were) != unnamed(are)).then(|| {
        "its aggregates are others, and what a group holds is all of them together".to_owned()
    })
}

/// What an operator holds is of the types of the columns it computes with.
fn inputs_differ(former: &PlannedOperator, operator: &PlannedOperator) -> Option<String> {
    if former.input_mode != operator.input_mode {
        return Some("rows that reached it came to stay, or can be taken back now".to_owned());
    }
    let texts = expressions_of(&operator.spec);
    let mentioned = |column: &&Column| {
        let mut texts = texts.iter().map(|text| text.to_lowercase());
        texts.any(|text| text.contains(&column.name.to_lowercase()))
    };
    for (before, now) in former.inputs.iter().zip(&operator.inputs) {
        for column in now.iter().filter(mentioned) {
            let was = before.iter().find(|was| was.name == column.name);
            if was.is_none_or(|was| was.kind != column.kind) {
                return Some(format!("\"{}\" has another type", column.name));
            }
        }
    }
    None
}

fn expressions_of(spec: &OperatorSpec) -> Vec<&str> {
    let calls: &[AggregateCall] = match spec {
        OperatorSpec::WindowAggregate(aggregate) => &aggregate.aggregates,
        OperatorSpec::Aggregate(aggregate) => &aggregate.aggregates,
        _ => &[],
    };
    let keys = spec.keys().unwrap_or_default().iter().map(|key| &key.expr);
    let of_calls = calls
        .iter()
        .flat_map(|call| call.args.iter().chain(&call.filter));
    keys.chain(of_calls).map(|text| text.0.as_str()).collect()
}

/// By kind and name.
type Nodes<'a> = BTreeMap<(u8, &'a str), (&'a Stage, Node<'a>)>;

#[derive(Clone, Copy)]
enum Node<'a> {
    Source(&'a PlannedSource),
    Operator(&'a PlannedOperator),
    Sink(&'a PlannedSink),
}

fn nodes(graph: &TaskGraph) -> Nodes<'_> {
    let mut nodes = Nodes::new();
    for stage in &graph.stages {
        let source = stage.source.iter().map(Node::Source);
        let operators = stage.operators.iter().map(Node::Operator);
        let sink = stage.sink.iter().map(Node::Sink);
        for node in source.chain(operators).chain(sink) {
            nodes.insert((node.kind() as u8, node.name()), (stage, node));
        }
    }
    nodes
}

impl<'a> Node<'a> {
    fn name(self) -> &'a str {
        match self {
            Node::Source(source) => &source.name,
            Node::Operator(operator) => operator.spec.id(),
            Node::Sink(sink) => &sink.name,
        }
    }

    fn kind(self) -> NodeKind {
        match self {
            Node::Source(_) => NodeKind::Source,
            Node::Operator(_) => NodeKind::Operator,
            Node::Sink(_) => NodeKind::Sink,
        }
    }

    /// Whether it knows something of the past.
    fn knows(self) -> bool {
        match self {
            Node::Source(_) => true,
            Node::Operator(operator) => operator.spec.has_state(),
            // All of it is committed before the job changes.
            Node::Sink(_) => false,
        }
    }

    fn becomes(self, state: Fate, reason: String, loses_state: bool) -> NodeUpgrade {
        NodeUpgrade {
            operator: self.name().to_owned(),
            kind: self.kind(),
            state,
            reason,
            loses_state,
        }
    }

    fn is_new(self) -> NodeUpgrade {
        let reason = match self {
            Node::Source(_) => "it begins where its startup mode says",
            Node::Operator(operator) if operator.spec.has_state() => {
                "it begins with the rows that come from now on"
            }
            Node::Operator(_) | Node::Sink(_) => "it keeps no state",
        };
        self.becomes(Fate::New, reason.to_owned(), false)
    }

    fn dropped(self) -> NodeUpgrade {
        let reason = match self {
            Node::Source(_) => {
                "the changed job does not have it, and how far it was read is forgotten"
            }
            Node::Operator(operator) if operator.spec.has_state() => {
                "the changed job does not have it, and what it kept is removed"
            }
            Node::Operator(_) => "the changed job does not have it; it kept no state",
            Node::Sink(_) => "the changed job does not have it; what it has written stays",
        };
        self.becomes(Fate::Dropped, reason.to_owned(), self.knows())
    }

    fn upgraded(self, was: &Node<'_>, tasks_before: u32, tasks: u32) -> NodeUpgrade {
        let differs = match (was, self) {
            (Node::Source(was), Node::Source(is)) => source_differs(was, is),
            (Node::Operator(was), Node::Operator(is)) => {
                match (was.spec.has_state(), is.spec.has_state()) {
                    (false, false) => None,
                    _ => operator_differs(was, is),
                }
            }
            (Node::Sink(was), Node::Sink(is)) => {
                let reason = sink_differs(was, is).unwrap_or_else(|| "it goes on".to_owned());
                return self.becomes(Fate::Kept, reason, false);
            }
            _ => unreachable!("they are of one kind"),
        };
        if let Some(reason) = differs {
            let knew = was.knows();
            return self.becomes(Fate::Rebuilt, reason, knew);
        }
        let moves = self.knows() && tasks_before != tasks;
        match (self, moves) {
            (_, true) => {
                let what = match self {
                    Node::Source(_) => "its splits are dealt",
                    Node::Operator(_) | Node::Sink(_) => "its keys are dealt",
                };
                let reason = format!("{what} to {tasks} tasks instead of {tasks_before}");
                self.becomes(Fate::Migrated, reason, false)
            }
            (Node::Source(_), false) => {
                self.becomes(Fate::Kept, "it goes on from where it is".to_owned(), false)
            }
            (_, false) if self.knows() => {
                self.becomes(Fate::Kept, "it means the same by it".to_owned(), false)
            }
            (_, false) => self.becomes(Fate::Kept, "it keeps no state".to_owned(), false),
        }
    }
}
