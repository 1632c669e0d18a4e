//! What every node of a job graph gives: its columns, its event time, its kinds of change.

use std::collections::{BTreeMap, BTreeSet};

use common::error::{ErrorCode, Problem};
use common::plan::JobGraph;
use common::plan::connector::{IDEMPOTENCY_KEY, SinkSpec, SourceSpec};
use common::plan::expression::NamedExpression;
use common::plan::operator::{AggregateCall, OperatorSpec, WindowAggregate};
use common::plan::window::WindowSpec;
use common::schema::{Column, ColumnType};
use common::time::Span;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DFSchemaRef, ExprSchema};
use datafusion::logical_expr::Expr;

use super::changelog::{self, Changes};
use super::expressions::{Functions, Typed, column, df_schema};
use super::windows::{WINDOW_END, WINDOW_START};

/// What a source or operator gives.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) columns: Vec<Column>,
    /// The event-time column, if the watermark still says something about one.
    pub(super) time: Option<String>,
    /// The windows its rows are results of.
    pub(super) windows: Option<Windows>,
    pub(super) changes: Changes,
}

/// Windows whose results are rows: every row says the start of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    pub(super) spec: WindowSpec,
    /// The column of a window's start.
    pub(super) start: String,
    /// The column of its end, if it has one.
    pub(super) end: Option<String>,
    /// The rows of a window have come when the watermark is this far behind its start.
    pub(super) due: Span,
}

impl Windows {
    /// The windows with these columns, if the start is among them. `renamed`: the new name of a column.
    fn renamed(&self, renamed: impl Fn(&str) -> Option<String>) -> Option<Windows> {
        Some(Windows {
            start: renamed(&self.start)?,
            end: self.end.as_deref().and_then(renamed),
            ..self.clone()
        })
    }

    /// How rows are put into the same windows again. A window that overlaps with others is known by the time
    /// up to the next one's start, and stays open until its rows have come.
    pub(super) fn again(&self) -> (WindowSpec, Span) {
        let (size, offset) = (self.spec.slide(), self.spec.offset());
        let lateness = Span(self.due.0.saturating_sub(size.0));
        (WindowSpec::Tumbling { size, offset }, lateness)
    }

    /// The windows of what is aggregated in them again.
    fn aggregated_again(&self) -> Windows {
        let whole = self.spec.slide() == self.spec.size();
        Windows {
            spec: self.spec.clone(),
            start: WINDOW_START.to_owned(),
            end: whole.then(|| WINDOW_END.to_owned()),
            due: self.spec.slide(),
        }
    }
}

/// The columns of a source's rows. `at` is its place in the graph.
pub(super) fn source_node(spec: &SourceSpec, at: &str) -> Result<Node, Problem> {
    let columns = source_columns(spec);
    let schema_at = format!("{at}/schema");
    if columns.is_empty() {
        return Err(invalid("the source has no columns", &schema_at));
    }
    let mut seen = BTreeSet::new();
    for column in &columns {
        if !seen.insert(column.name.as_str()) {
            let detail = format!("the column \"{}\" is declared twice", column.name);
            return Err(invalid(detail, &schema_at));
        }
    }
    if let SourceSpec::Generator(generator) = spec {
        let known = generator.generator.columns();
        for column in &columns {
            let found = known.iter().find(|known| known.name == column.name);
            if found.is_none_or(|known| known.kind != column.kind) {
                let list: Vec<String> = known
                    .iter()
                    .map(|known| format!("{} {}", known.name, known.kind))
                    .collect();
                let detail = format!(
                    "the generator has no column {} {}",
                    column.name, column.kind
                );
                let hint = format!("It has {}.", list.join(", "));
                return Err(invalid(detail, &schema_at).hint(hint));
            }
        }
    }
    let time = match spec.watermark() {
        None => None,
        Some(watermark) => {
            let at = format!("{at}/watermark/column");
            let column = columns
                .iter()
                .find(|column| column.name == watermark.column);
            match column.map(|column| &column.kind) {
                Some(ColumnType::Timestamp(_)) => Some(watermark.column.clone()),
                Some(kind) => {
                    let detail = format!(
                        "the watermark column \"{}\" is of type {kind}; event time is a TIMESTAMP",
                        watermark.column
                    );
                    return Err(invalid(detail, &at));
                }
                None => {
                    let detail = format!("there is no column \"{}\"", watermark.column);
                    return Err(invalid(detail, &at));
                }
            }
        }
    };
    Ok(Node {
        columns,
        time,
        windows: None,
        changes: changelog::of_source(spec),
    })
}

/// The columns a source declares; a generator's own if it declares none.
pub(super) fn source_columns(spec: &SourceSpec) -> Vec<Column> {
    match spec {
        SourceSpec::Generator(generator) if generator.schema.is_empty() => {
            generator.generator.columns()
        }
        other => other.schema().to_vec(),
    }
}

/// What an operator makes of its inputs. `at` is its place in the graph.
pub(super) fn operator_node(
    functions: &Functions,
    spec: &OperatorSpec,
    inputs: &[&Node],
    at: &str,
) -> Result<Node, Problem> {
    let first = inputs[0];
    let schema = df_schema(&first.columns)?;
    let typing = Typing {
        functions,
        schema: &schema,
        retract: !first.changes.are_inserts(),
        at,
    };
    let mut changes = changelog::of_operator(spec, inputs, at)?;
    let mut windows = None;
    let (columns, time) = match spec {
        OperatorSpec::Filter(filter) => {
            functions
                .compile_predicate(&filter.predicate, &schema)
                .map_err(|problem| placed(problem, &format!("{at}/predicate")))?;
            windows = first.windows.clone();
            (first.columns.clone(), first.time.clone())
        }
        OperatorSpec::Project(project) => {
            let columns = typing.named(&project.columns, "columns")?;
            changes = changelog::of_project(&first.changes, &typing.carried(&project.columns)?);
            let renamed = |from: &str| {
                let column = project
                    .columns
                    .iter()
                    .find(|column| column.expr.as_column().as_deref() == Some(from));
                column.map(|column| column.name.clone())
            };
            windows = first.windows.as_ref().and_then(|w| w.renamed(renamed));
            (columns, first.time.as_deref().and_then(renamed))
        }
        OperatorSpec::Union(_) => {
            let same = inputs.iter().all(|input| input.windows == first.windows);
            windows = first.windows.clone().filter(|_| same);
            union(inputs, at)?
        }
        OperatorSpec::WindowAggregate(aggregate) => {
            let again = same_windows(first, aggregate, at)?;
            let time = match again {
                Some(again) => again.start.clone(),
                None => window_time(first, aggregate.time.as_deref(), at)?,
            };
            let kind = first
                .columns
                .iter()
                .find(|column| column.name == time)
                .expect("event time is one of the columns")
                .kind
                .clone();
            let mut columns = typing.named(&aggregate.keys, "keys")?;
            for name in [WINDOW_START, WINDOW_END] {
                columns.push(Column::new(name, kind.clone(), false));
            }
            columns.extend(typing.calls(&aggregate.aggregates)?);
            let own = match again {
                Some(again) => again.aggregated_again(),
                None => Windows {
                    spec: aggregate.window.clone(),
                    start: WINDOW_START.to_owned(),
                    end: Some(WINDOW_END.to_owned()),
                    due: aggregate.window.size(),
                },
            };
            let time = own.end.clone();
            windows = Some(own);
            (columns, time)
        }
        OperatorSpec::Aggregate(aggregate) => {
            let mut columns = typing.named(&aggregate.keys, "keys")?;
            columns.extend(typing.calls(&aggregate.aggregates)?);
            if columns.is_empty() {
                return Err(invalid("an aggregate has keys or aggregates", at));
            }
            (columns, None)
        }
        OperatorSpec::Custom(custom) => {
            typing.named(&custom.keys, "keys")?;
            (custom.schema.clone(), None)
        }
    };
    let mut seen = BTreeSet::new();
    for column in &columns {
        if !seen.insert(column.name.as_str()) {
            let detail = format!("two columns of its output are called \"{}\"", column.name);
            return Err(invalid(detail, at).hint("Give one of them another name."));
        }
    }
    Ok(Node {
        columns,
        time,
        windows,
        changes,
    })
}

/// The windows of its input that an aggregate aggregates again, if it places rows by their windows' start.
fn same_windows<'a>(
    input: &'a Node,
    aggregate: &WindowAggregate,
    at: &str,
) -> Result<Option<&'a Windows>, Problem> {
    let Some(windows) = input.windows.as_ref() else {
        return Ok(None);
    };
    if aggregate.time.as_ref() != Some(&windows.start) || aggregate.time == input.time {
        return Ok(None);
    }
    let (window, lateness) = windows.again();
    if aggregate.window != window || aggregate.allowed_lateness < lateness {
        let detail = format!(
            "\"{}\" is the start of the windows its input's rows are in, and these are other windows",
            windows.start
        );
        return Err(
            invalid(detail, &format!("{at}/window")).hint(format!(
                "Make it tumbling windows of {} with an offset of {} and an allowed lateness of at least {lateness}.",
                window.size(),
                window.offset(),
            )),
        );
    }
    Ok(Some(windows))
}

/// The column that places a row in time. It must be the one the watermark speaks about.
fn window_time(input: &Node, asked: Option<&str>, at: &str) -> Result<String, Problem> {
    const HINT: &str = "Declare a watermark on the source, and keep its column up to the window.";
    match (&input.time, asked) {
        (None, _) => Err(invalid(
            "a window needs event time, but its input has none",
            &format!("{at}/window"),
        )
        .hint(HINT)),
        (Some(time), Some(asked)) if time != asked => Err(invalid(
            format!("\"{asked}\" is not the event time of its input, \"{time}\" is"),
            &format!("{at}/time"),
        )
        .hint(HINT)),
        (Some(time), _) => Ok(time.clone()),
    }
}

fn union(inputs: &[&Node], at: &str) -> Result<(Vec<Column>, Option<String>), Problem> {
    let (first, others) = inputs.split_first().expect("a union has inputs");
    let mut columns = first.columns.clone();
    for (i, other) in others.iter().enumerate() {
        let shape = |columns: &[Column]| -> Vec<String> {
            columns
                .iter()
                .map(|column| format!("{} {}", column.name, column.kind))
                .collect()
        };
        let (left, right) = (shape(&columns), shape(&other.columns));
        if left != right {
            let detail = format!(
                "the inputs of a union have the same columns; one has ({}), another ({})",
                left.join(", "),
                right.join(", ")
            );
            return Err(invalid(detail, &format!("{at}/inputs/{}", i + 1))
                .hint("Put a project before it that names and casts them alike."));
        }
        for (column, other) in columns.iter_mut().zip(&other.columns) {
            column.nullable |= other.nullable;
        }
    }
    let same_time = others.iter().all(|other| other.time == first.time);
    let time = first.time.clone().filter(|_| same_time);
    Ok((columns, time))
}

/// Types the expressions of one operator over its first input.
struct Typing<'a> {
    functions: &'a Functions,
    schema: &'a DFSchemaRef,
    /// The input's rows may be taken back.
    retract: bool,
    at: &'a str,
}

impl Typing<'_> {
    fn named(&self, exprs: &[NamedExpression], field: &str) -> Result<Vec<Column>, Problem> {
        exprs
            .iter()
            .enumerate()
            .map(|(i, named)| {
                let at = format!("{}/{field}/{i}", self.at);
                let typed = self.functions.compile(&named.expr, self.schema);
                let Typed { field, .. } = typed.map_err(|problem| placed(problem, &at))?;
                column(&named.name, &field).map_err(|problem| placed(problem, &at))
            })
            .collect()
    }

    /// For each expression, the column whose values it tells apart as that column does.
    fn carried(&self, exprs: &[NamedExpression]) -> Result<Vec<(String, String)>, Problem> {
        let mut carried = Vec::new();
        for named in exprs {
            let typed = self.functions.compile(&named.expr, self.schema)?;
            if let Some(column) = same_identity(&typed.expr, self.schema) {
                carried.push((column, named.name.clone()));
            }
        }
        Ok(carried)
    }

    fn calls(&self, calls: &[AggregateCall]) -> Result<Vec<Column>, Problem> {
        calls
            .iter()
            .enumerate()
            .map(|(i, call)| {
                let at = format!("{}/aggregates/{i}", self.at);
                let typed = self
                    .functions
                    .compile_aggregate(call, self.schema, self.retract);
                let Typed { field, .. } = typed.map_err(|problem| placed(problem, &at))?;
                column(&call.name, &field).map_err(|problem| placed(problem, &at))
            })
            .collect()
    }
}

/// The column that an expression is, as it stands or converted without two values becoming one.
fn same_identity(expr: &Expr, schema: &DFSchemaRef) -> Option<String> {
    match expr {
        Expr::Column(column) => Some(column.name.clone()),
        Expr::Cast(cast) => {
            let Expr::Column(column) = cast.expr.as_ref() else {
                return None;
            };
            let from = schema.field_from_column(column).ok()?.data_type();
            let to = cast.field.data_type();
            // What does not fit fails instead of becoming something else.
            let keeps = from.is_integer() && (to.is_integer() || *to == DataType::Utf8);
            keeps.then(|| column.name.clone())
        }
        _ => None,
    }
}

/// Every node of a graph, typed with only the columns the job needs of each source.
#[derive(Debug)]
pub(super) struct TypedGraph {
    pub(super) nodes: BTreeMap<String, Node>,
    /// Positions of operators, inputs before what reads them.
    pub(super) order: Vec<usize>,
}

/// Types a graph that `validate` found sound.
pub(super) fn type_graph(functions: &Functions, graph: &JobGraph) -> Result<TypedGraph, Problem> {
    let order = inputs_first(graph);
    let mut nodes = BTreeMap::new();
    for (name, spec) in &graph.sources {
        nodes.insert(name.clone(), source_node(spec, &pointer("sources", name))?);
    }
    // First with all columns: mistakes are named whether or not a column is needed.
    let full = type_operators(functions, graph, &order, nodes.clone())?;
    check_sink_keys(graph, &full)?;
    check_webhook_rows(graph, &full)?;
    let needed = needed_columns(functions, graph, &order, &full)?;
    for name in graph.sources.keys() {
        let node = nodes.get_mut(name).expect("every source was typed");
        let needed = &needed[name];
        let time = node.time.clone();
        node.columns
            .retain(|column| needed.contains(&column.name) || time.as_ref() == Some(&column.name));
    }
    let nodes = type_operators(functions, graph, &order, nodes)?;
    Ok(TypedGraph { nodes, order })
}

fn type_operators(
    functions: &Functions,
    graph: &JobGraph,
    order: &[usize],
    mut nodes: BTreeMap<String, Node>,
) -> Result<BTreeMap<String, Node>, Problem> {
    for position in order {
        let spec = &graph.operators[*position];
        let inputs: Vec<&Node> = spec.inputs().iter().map(|input| &nodes[input]).collect();
        let at = format!("/operators/{position}");
        let node = operator_node(functions, spec, &inputs, &at)?;
        nodes.insert(spec.id().to_owned(), node);
    }
    Ok(nodes)
}

/// Which of each node's columns something behind it reads.
fn needed_columns(
    functions: &Functions,
    graph: &JobGraph,
    order: &[usize],
    nodes: &BTreeMap<String, Node>,
) -> Result<BTreeMap<String, BTreeSet<String>>, Problem> {
    let mut needed: BTreeMap<String, BTreeSet<String>> = nodes
        .keys()
        .map(|name| (name.clone(), BTreeSet::new()))
        .collect();
    let all = |name: &str| -> BTreeSet<String> {
        let columns = nodes[name].columns.iter();
        columns.map(|column| column.name.clone()).collect()
    };
    for sink in graph.sinks.values() {
        needed
            .get_mut(sink.input())
            .expect("validated")
            .extend(all(sink.input()));
    }
    for position in order.iter().rev() {
        let spec = &graph.operators[*position];
        for input in spec.inputs() {
            let schema = df_schema(&nodes[input].columns)?;
            let of_input = match spec {
                OperatorSpec::Filter(filter) => {
                    let mut names = needed[spec.id()].clone();
                    names.extend(functions.columns_of(&filter.predicate, &schema)?);
                    names
                }
                OperatorSpec::Project(project) => {
                    let mut names = BTreeSet::new();
                    for column in &project.columns {
                        names.extend(functions.columns_of(&column.expr, &schema)?);
                    }
                    at_least_one(names, &nodes[input])
                }
                OperatorSpec::WindowAggregate(aggregate) => {
                    let (keys, calls) = (&aggregate.keys, &aggregate.aggregates);
                    let mut names = keyed_columns(functions, keys, calls, &schema)?;
                    names.extend(nodes[input].time.clone());
                    names.extend(aggregate.time.clone());
                    names
                }
                OperatorSpec::Aggregate(aggregate) => {
                    let (keys, calls) = (&aggregate.keys, &aggregate.aggregates);
                    let names = keyed_columns(functions, keys, calls, &schema)?;
                    at_least_one(names, &nodes[input])
                }
                // The inputs of a union have the same columns; what a custom operator reads is unknown.
                OperatorSpec::Union(_) | OperatorSpec::Custom(_) => all(input),
            };
            needed.get_mut(input).expect("validated").extend(of_input);
        }
    }
    Ok(needed)
}

fn keyed_columns(
    functions: &Functions,
    keys: &[NamedExpression],
    calls: &[AggregateCall],
    schema: &DFSchemaRef,
) -> Result<BTreeSet<String>, Problem> {
    let mut names = BTreeSet::new();
    let exprs = keys.iter().map(|key| &key.expr).chain(
        calls
            .iter()
            .flat_map(|call| call.args.iter().chain(&call.filter)),
    );
    for expr in exprs {
        names.extend(functions.columns_of(expr, schema)?);
    }
    Ok(names)
}

/// Rows are counted by their columns, so one stays. The narrowest that is sure to be cheap: the first.
fn at_least_one(mut names: BTreeSet<String>, input: &Node) -> BTreeSet<String> {
    if names.is_empty()
        && let Some(first) = input.columns.first()
    {
        names.insert(first.name.clone());
    }
    names
}

fn check_sink_keys(graph: &JobGraph, nodes: &BTreeMap<String, Node>) -> Result<(), Problem> {
    for (name, sink) in &graph.sinks {
        let SinkSpec::Topic(topic) = sink else {
            continue;
        };
        let columns = &nodes[sink.input()].columns;
        for (i, key) in topic.key.iter().enumerate() {
            if !columns.iter().any(|column| column.name == *key) {
                let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
                let at = format!("{}/key/{i}", pointer("sinks", name));
                return Err(invalid(format!("there is no column \"{key}\""), &at)
                    .hint(format!("There are: {}.", names.join(", "))));
            }
        }
    }
    Ok(())
}

/// The sink adds a column to what it sends.
fn check_webhook_rows(graph: &JobGraph, nodes: &BTreeMap<String, Node>) -> Result<(), Problem> {
    for (name, sink) in &graph.sinks {
        let columns = &nodes[sink.input()].columns;
        if matches!(sink, SinkSpec::Webhook(_))
            && columns.iter().any(|column| column.name == IDEMPOTENCY_KEY)
        {
            let detail = format!(
                "the rows of \"{name}\" have a column \"{IDEMPOTENCY_KEY}\", which a webhook adds"
            );
            return Err(
                invalid(detail, &format!("{}/input", pointer("sinks", name)))
                    .hint("Give the column another name."),
            );
        }
    }
    Ok(())
}

/// The positions of operators in an order in which inputs come first. The graph has no cycle.
fn inputs_first(graph: &JobGraph) -> Vec<usize> {
    let mut order = Vec::with_capacity(graph.operators.len());
    let mut known: BTreeSet<&str> = graph.sources.keys().map(String::as_str).collect();
    while order.len() < graph.operators.len() {
        let before = order.len();
        for (i, spec) in graph.operators.iter().enumerate() {
            let ready = spec
                .inputs()
                .iter()
                .all(|input| known.contains(input.as_str()));
            if ready && known.insert(spec.id()) {
                order.push(i);
            }
        }
        assert!(order.len() > before, "a validated graph has no cycle");
    }
    order
}

pub(super) fn pointer(section: &str, name: &str) -> String {
    format!("/{section}/{}", name.replace('~', "~0").replace('/', "~1"))
}

fn placed(problem: Problem, at: &str) -> Problem {
    // A graph's mistakes are pointed at by JSON pointer; where in the text is worth keeping too.
    let problem = match (&problem.at, problem.code) {
        (Some(place), ErrorCode::SqlSyntax) => {
            let detail = format!("{} ({place})", problem.detail);
            Problem { detail, ..problem }
        }
        _ => problem,
    };
    problem.at(at)
}

fn invalid(detail: impl Into<String>, at: &str) -> Problem {
    Problem::new(ErrorCode::InvalidGraph, detail).at(at)
}
