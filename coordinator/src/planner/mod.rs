//! SQL or JobGraph → typed TaskGraph: what a job means, and how it is cut into tasks.
//!
//! SQL compiles to a job graph, and only job graphs are typed and cut: a graph that came from SQL,
//! posted back, gives the same tasks. Text from outside is planned on a thread of its own with a deep
//! stack, so that no query, however it nests, can take the coordinator down.

mod tokens;
mod rewrite;
mod parse;
mod bounds;
mod catalog;
mod windows;
mod sql;
mod rewrite_plan;
mod lower;
mod names;
mod expressions;
mod expression_text;
mod typing;
mod changelog;
mod task_graph;
mod explain;
mod problems;

#[cfg(test)]
mod planner_tests;
#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod graph_refusal_tests;
#[cfg(test)]
mod stability_tests;
#[cfg(test)]
mod column_name_tests;
#[cfg(test)]
mod windows_again_tests;
#[cfg(test)]
mod upgrade_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::ids::TopicName;
use common::plan::JobGraph;
use common::plan::connector::{SinkSpec, SourceSpec};
use common::plan::operator::OperatorSpec;
use common::plan::task_graph::TaskGraph;
use common::plan::validate::validate;

pub use explain::explain;

use expressions::Functions;

/// What of the cluster a plan depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanContext {
    /// Existing topics and their partition counts.
    pub topics: BTreeMap<TopicName, u32>,
    /// The cores of all active workers together.
    pub worker_cores: u32,
    /// Custom operators that active workers carry.
    pub custom_operators: BTreeSet<String>,
    /// The topic of the job's own dead letters, if the job has a name.
    pub dead_letters: Option<TopicName>,
}

/// A job as it will run.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedJob {
    /// What its user may read and post back.
    pub graph: JobGraph,
    pub tasks: TaskGraph,
    pub parallelism: u32,
    /// Topics it reads. They exist.
    pub source_topics: Vec<TopicName>,
    /// Topics it writes that do not exist yet, with the partitions they are to have.
    pub sink_topics: Vec<(TopicName, u32)>,
    pub warnings: Vec<String>,
}

/// Plans SQL statements. `parallelism`: default from the sources and the workers' cores.
pub fn plan_sql(
    sql: &str,
    parallelism: Option<u32>,
    key_groups: u16,
    context: &PlanContext,
) -> Result<PlannedJob, Problem> {
    on_deep_stack(|| {
        let functions = Arc::new(Functions::new());
        let compiled = sql::compile(sql, &functions)?;
        let planned = plan(
            &functions,
            &compiled.graph,
            parallelism,
            key_groups,
            context,
        )
        .map_err(|problem| compiled.placed(problem))?;
        Ok(PlannedJob {
            warnings: compiled.warnings,
            ..planned
        })
    })
}

/// Plans a job graph.
pub fn plan_graph(
    graph: &JobGraph,
    parallelism: Option<u32>,
    key_groups: u16,
    context: &PlanContext,
) -> Result<PlannedJob, Problem> {
    on_deep_stack(|| plan(&Functions::new(), graph, parallelism, key_groups, context))
}

fn plan(
    functions: &Functions,
    graph: &JobGraph,
    parallelism: Option<u32>,
    key_groups: u16,
    context: &PlanContext,
) -> Result<PlannedJob, Problem> {
    if let Some(mistake) = validate(graph).into_iter().next() {
        return Err(Problem::new(ErrorCode::InvalidGraph, mistake.detail)
            .at(mistake.at)
            .hint(mistake.hint));
    }
    check_surroundings(graph, context)?;
    let parallelism =
        parallelism.unwrap_or_else(|| task_graph::default_parallelism(graph, context));
    if parallelism == 0 || parallelism > u32::from(key_groups) {
        return Err(Problem::new(
            ErrorCode::InvalidRequest,
            format!("the parallelism is {parallelism}; it is 1 to {key_groups}, the key groups of the job"),
        )
        .at("/parallelism")
        .hint("Leave it out for a default by sources and cores."));
    }
    let typed = typing::type_graph(functions, graph)?;
    let tasks = task_graph::cut(graph, &typed, parallelism, key_groups, context)?;
    let mut sink_topics = BTreeSet::new();
    for sink in graph.sinks.values() {
        if let SinkSpec::Topic(topic) = sink
            && !context.topics.contains_key(&topic.topic)
        {
            sink_topics.insert(topic.topic.clone());
        }
    }
    let source_topics: BTreeSet<TopicName> = graph
        .sources
        .values()
        .filter_map(|source| match source {
            SourceSpec::Topic(topic) => Some(topic.topic.clone()),
            SourceSpec::Files(_) | SourceSpec::Generator(_) => None,
        })
        .collect();
    Ok(PlannedJob {
        graph: graph.clone(),
        tasks,
        parallelism,
        source_topics: source_topics.into_iter().collect(),
        sink_topics: sink_topics
            .into_iter()
            .map(|topic| (topic, parallelism))
            .collect(),
        warnings: Vec::new(),
    })
}

/// What a graph names must exist: topics it reads, operators that workers carry.
fn check_surroundings(graph: &JobGraph, context: &PlanContext) -> Result<(), Problem> {
    check_dead_letters(graph, context)?;
    for (name, source) in &graph.sources {
        if let SourceSpec::Topic(topic) = source
            && let Some(partitions) = context.topics.get(&topic.topic)
            && let Some(partition) = topic.startup_offsets.keys().find(|p| *p >= partitions)
        {
            return Err(Problem::new(
                ErrorCode::UnknownPartition,
                format!(
                    "topic \"{}\" has no partition {partition}, it has {partitions} from 0",
                    topic.topic
                ),
            )
            .at(format!(
                "{}/scan.startup.offsets",
                typing::pointer("sources", name)
            ))
            .hint("Name only partitions that it has; the others start at the earliest."));
        }
        if let SourceSpec::Topic(topic) = source
            && !context.topics.contains_key(&topic.topic)
        {
            let near = problems::nearest(
                topic.topic.as_str(),
                context.topics.keys().map(TopicName::as_str),
            );
            let hint = match near {
                Some(near) => format!("Did you mean \"{near}\"?"),
                None => "Create it first: POST /v1/topics.".to_owned(),
            };
            return Err(Problem::new(
                ErrorCode::UnknownTopic,
                format!(
                    "the topic \"{}\", which \"{name}\" reads, does not exist",
                    topic.topic
                ),
            )
            .at(format!("{}/topic", typing::pointer("sources", name)))
            .hint(hint));
        }
    }
    for (i, operator) in graph.operators.iter().enumerate() {
        if let OperatorSpec::Custom(custom) = operator
            && !context.custom_operators.contains(&custom.name)
        {
            let known: Vec<&str> = context
                .custom_operators
                .iter()
                .map(String::as_str)
                .collect();
            return Err(Problem::new(
                ErrorCode::InvalidGraph,
                format!("no active worker carries an operator \"{}\"", custom.name),
            )
            .at(format!("/operators/{i}/name"))
            .hint(match known.is_empty() {
                true => "Workers carry the operators they were built with.".to_owned(),
                false => format!("There are: {}.", known.join(", ")),
            }));
        }
    }
    Ok(())
}

/// What the job writes as dead letters is not for its sinks, and would come back to its sources for ever.
fn check_dead_letters(graph: &JobGraph, context: &PlanContext) -> Result<(), Problem> {
    let Some(own) = &context.dead_letters else {
        return Ok(());
    };
    let refused = |at: String, what: &str| {
        Err(Problem::new(
            ErrorCode::InvalidGraph,
            format!("the topic \"{own}\" is for this job's own dead letters, and {what}"),
        )
        .at(format!("{at}/topic"))
        .hint("Choose another topic, or another name for the job."))
    };
    for (name, sink) in &graph.sinks {
        if matches!(sink, SinkSpec::Topic(topic) if topic.topic == *own) {
            let at = typing::pointer("sinks", name);
            return refused(at, &format!("\"{name}\" would write its results there"));
        }
    }
    for (name, source) in &graph.sources {
        if matches!(source, SourceSpec::Topic(topic) if topic.topic == *own) {
            let at = typing::pointer("sources", name);
            return refused(at, &format!("\"{name}\" would read them"));
        }
    }
    Ok(())
}

/// Enough for a tree as deep as the longest statement allowed.
const STACK_BYTES: usize = 64 << 20;

fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, Problem> + Send) -> Result<T, Problem> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("planner".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|error| {
                Problem::new(
                    ErrorCode::Overloaded,
                    format!("no thread could be started to plan on: {error}"),
                )
            })?;
        // The query came from outside and went through a parser and a planner that are not ours: if
        // they panic, this query fails and nothing else.
        thread.join().unwrap_or_else(|_| {
            Err(
                Problem::new(ErrorCode::Internal, "the planner failed on this query")
                    .hint("Please report it with the query."),
            )
        })
    })
}
