//! Typed job graph → stages: chains of operators that share a task, and the edges between them.
//!
//! Rows stay in their task as long as they need not meet others: a new stage begins where rows are
//! hashed by key, where several inputs meet, where one output is read twice, and where the number of
//! tasks changes.

use std::collections::{BTreeMap, BTreeSet};

use common::error::{ErrorCode, Problem};
use common::ids::StageId;
use common::limits::MAX_TASKS_PER_JOB;
use common::plan::JobGraph;
use common::plan::connector::{SinkSpec, SourceSpec};
use common::plan::edge::{ChangelogMode, Route};
use common::plan::expression::Expression;
use common::plan::operator::OperatorSpec;
use common::plan::task_graph::{
    Edge, PlannedOperator, PlannedSink, PlannedSource, Stage, TaskGraph,
};

use super::PlanContext;
use super::changelog;
use super::typing::{Node, TypedGraph, pointer};

/// How many tasks could share the reading of a source, as far as is known here.
pub(super) fn splits(spec: &SourceSpec, context: &PlanContext) -> Option<u32> {
    match spec {
        SourceSpec::Topic(topic) => context.topics.get(&topic.topic).copied(),
        SourceSpec::Generator(generator) => Some(generator.splits),
        // How many files a directory has is known only on the workers.
        SourceSpec::Files(files) => (!files.path.ends_with('/')).then_some(1),
    }
}

/// The largest source's splits, at most the workers' cores, at least 1.
pub(super) fn default_parallelism(graph: &JobGraph, context: &PlanContext) -> u32 {
    let cores = context.worker_cores.max(1);
    graph
        .sources
        .values()
        .map(|source| splits(source, context).unwrap_or(cores))
        .max()
        .unwrap_or(1)
        .clamp(1, cores)
}

/// Cuts a typed graph into stages.
pub(super) fn cut(
    graph: &JobGraph,
    typed: &TypedGraph,
    parallelism: u32,
    key_groups: u16,
    context: &PlanContext,
) -> Result<TaskGraph, Problem> {
    let mut cutting = Cutting {
        typed,
        parallelism,
        readers: readers(graph),
        leading_to_keys: leading_to_keys(graph, typed),
        stages: Vec::new(),
        edges: Vec::new(),
        ends: BTreeMap::new(),
    };
    for (name, spec) in &graph.sources {
        cutting.source(name, spec, context);
    }
    for position in &typed.order {
        cutting.operator(&graph.operators[*position]);
    }
    for (name, spec) in &graph.sinks {
        cutting.sink(name, spec)?;
    }
    let tasks = TaskGraph {
        stages: cutting.stages,
        edges: cutting.edges,
        key_groups,
    };
    let count = u32::try_from(tasks.tasks().take(MAX_TASKS_PER_JOB as usize + 1).count())
        .expect("the count is bounded");
    if count > MAX_TASKS_PER_JOB {
        return Err(Problem::new(
            ErrorCode::InvalidRequest,
            format!("the job would have more than {MAX_TASKS_PER_JOB} tasks"),
        )
        .hint("Lower its parallelism."));
    }
    Ok(tasks)
}

/// How many nodes read each node.
fn readers(graph: &JobGraph) -> BTreeMap<&str, usize> {
    let mut readers = BTreeMap::new();
    let inputs = graph.operators.iter().flat_map(OperatorSpec::inputs);
    let of_sinks = graph.sinks.values().map(SinkSpec::input);
    for input in inputs.map(String::as_str).chain(of_sinks) {
        *readers.entry(input).or_default() += 1;
    }
    readers
}

/// The operators all of whose rows are hashed by key further on, with nothing heavy before that: then they are
/// spread there, and spreading them before would only cost.
fn leading_to_keys<'a>(graph: &'a JobGraph, typed: &TypedGraph) -> BTreeSet<&'a str> {
    let in_sinks: BTreeSet<&str> = graph.sinks.values().map(SinkSpec::input).collect();
    // Nodes that something reads which does not lead to keys.
    let mut spoilt: BTreeSet<&str> = BTreeSet::new();
    let mut leading = BTreeSet::new();
    // What reads comes before what is read.
    for position in typed.order.iter().rev() {
        let spec = &graph.operators[*position];
        let leads = match spec {
            OperatorSpec::WindowAggregate(_) | OperatorSpec::Aggregate(_) => true,
            OperatorSpec::Custom(custom) => !custom.keys.is_empty(),
            OperatorSpec::Union(_) => false,
            OperatorSpec::Filter(_) | OperatorSpec::Project(_) => {
                !in_sinks.contains(spec.id()) && !spoilt.contains(spec.id())
            }
        };
        match leads {
            true => {
                leading.insert(spec.id());
            }
            false => spoilt.extend(spec.inputs().iter().map(String::as_str)),
        }
    }
    leading
}

struct Cutting<'a> {
    typed: &'a TypedGraph,
    parallelism: u32,
    readers: BTreeMap<&'a str, usize>,
    leading_to_keys: BTreeSet<&'a str>,
    stages: Vec<Stage>,
    edges: Vec<Edge>,
    /// The stage whose last member each node is.
    ends: BTreeMap<&'a str, StageId>,
}

impl<'a> Cutting<'a> {
    fn source(&mut self, name: &'a str, spec: &SourceSpec, context: &PlanContext) {
        let splits = splits(spec, context).unwrap_or(self.parallelism).max(1);
        let planned = PlannedSource {
            name: name.to_owned(),
            spec: spec.clone(),
            columns: self.typed.nodes[name].columns.clone(),
        };
        self.new_stage(self.parallelism.min(splits)).source = Some(planned);
        let id = stage_id(self.stages.len() - 1);
        self.ends.insert(name, id);
    }

    fn operator(&mut self, spec: &'a OperatorSpec) {
        let inputs: Vec<&'a str> = spec.inputs().iter().map(String::as_str).collect();
        let stage = match spec.keys() {
            Some(keys) => {
                let keys: Vec<Expression> = keys.iter().map(|key| key.expr.clone()).collect();
                let tasks = if keys.is_empty() { 1 } else { self.parallelism };
                self.keyed(inputs[0], keys, tasks)
            }
            None if inputs.len() == 1 => self.behind(inputs[0], spec.id()),
            None => self.meeting(&inputs),
        };
        let nodes: Vec<&Node> = inputs
            .iter()
            .map(|input| &self.typed.nodes[*input])
            .collect();
        let own = &self.typed.nodes[spec.id()];
        let operator = PlannedOperator {
            spec: spec.clone(),
            inputs: nodes.iter().map(|node| node.columns.clone()).collect(),
            output: own.columns.clone(),
            time_column: nodes[0].time.clone(),
            input_mode: input_mode(&nodes),
            output_mode: own.changes.mode(),
        };
        self.stages[usize::from(stage.0)].operators.push(operator);
        self.ends.insert(spec.id(), stage);
    }

    fn sink(&mut self, name: &'a str, spec: &'a SinkSpec) -> Result<(), Problem> {
        let input = spec.input();
        let node = &self.typed.nodes[input];
        let at = pointer("sinks", name);
        let mode = changelog::of_sink(name, spec, &node.changes, &at)?;
        let one_file = matches!(spec, SinkSpec::Files(files) if !files.is_directory());
        let stage = match one_file {
            true => self.with_tasks(input, 1),
            false => self.behind(input, name),
        };
        self.stages[usize::from(stage.0)].sink = Some(PlannedSink {
            name: name.to_owned(),
            spec: spec.clone(),
            columns: node.columns.clone(),
            mode,
        });
        Ok(())
    }

    /// A stage whose rows arrive by key.
    fn keyed(&mut self, input: &'a str, keys: Vec<Expression>, tasks: u32) -> StageId {
        self.new_stage(tasks);
        let to = stage_id(self.stages.len() - 1);
        self.connect(input, to, 0, Route::Hash { keys });
        to
    }

    /// A stage where several inputs meet.
    fn meeting(&mut self, inputs: &[&'a str]) -> StageId {
        let inserts = inputs
            .iter()
            .all(|input| self.typed.nodes[*input].changes.are_inserts());
        let first = self.tasks_of(inputs[0]);
        let equal = inputs.iter().all(|input| self.tasks_of(input) == first);
        // Changes of one row keep their order only on one way: forward, or to a single task.
        let tasks = match (equal, inserts) {
            (true, _) => first,
            (false, true) => self.parallelism,
            (false, false) => 1,
        };
        self.new_stage(tasks);
        let to = stage_id(self.stages.len() - 1);
        for (i, input) in inputs.iter().enumerate() {
            let number = u16::try_from(i).expect("a job has few nodes");
            let route = self.unkeyed_route(input, tasks);
            self.connect(input, to, number, route);
        }
        to
    }

    /// The stage in which an unkeyed node goes on with the rows of `input`.
    fn behind(&mut self, input: &'a str, node: &str) -> StageId {
        let stage = &self.stages[usize::from(self.ends[input].0)];
        // Only a source may have fewer tasks for want of splits; what is behind it may use more.
        let may_widen = stage.source.is_some()
            && self.typed.nodes[input].changes.are_inserts()
            && !self.leading_to_keys.contains(node);
        let tasks = match may_widen {
            true => self.parallelism,
            false => stage.parallelism,
        };
        self.with_tasks(input, tasks)
    }

    /// The stage of `input` itself, if it goes on alone with as many tasks; else a new one.
    fn with_tasks(&mut self, input: &'a str, tasks: u32) -> StageId {
        if self.readers[input] == 1 && self.tasks_of(input) == tasks {
            return self.ends[input];
        }
        let route = self.unkeyed_route(input, tasks);
        self.new_stage(tasks);
        let to = stage_id(self.stages.len() - 1);
        self.connect(input, to, 0, route);
        to
    }

    fn unkeyed_route(&self, input: &str, tasks: u32) -> Route {
        match self.tasks_of(input) == tasks {
            true => Route::Forward,
            false => Route::Rebalance,
        }
    }

    fn tasks_of(&self, node: &str) -> u32 {
        self.stages[usize::from(self.ends[node].0)].parallelism
    }

    fn connect(&mut self, input: &'a str, to: StageId, number: u16, route: Route) {
        self.edges.push(Edge {
            from: self.ends[input],
            to,
            input: number,
            route,
            columns: self.typed.nodes[input].columns.clone(),
        });
    }

    fn new_stage(&mut self, parallelism: u32) -> &mut Stage {
        let id = stage_id(self.stages.len());
        self.stages.push(Stage {
            id,
            parallelism,
            source: None,
            operators: Vec::new(),
            sink: None,
        });
        self.stages.last_mut().expect("it was just put there")
    }
}

fn stage_id(position: usize) -> StageId {
    StageId(u16::try_from(position).expect("a job has few nodes"))
}

fn input_mode(inputs: &[&Node]) -> ChangelogMode {
    match inputs {
        [one] => one.changes.mode(),
        _ => inputs
            .iter()
            .map(|input| input.changes.mode())
            .find(|mode| *mode != ChangelogMode::Append)
            .map_or(ChangelogMode::Append, |_| ChangelogMode::Retract {
                key: Vec::new(),
            }),
    }
}
