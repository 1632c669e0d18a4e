//! Whether a savepoint's state is that of a job: what differs, in words (pure).
//!
//! State is kept by the ids of operators and divided over tasks by key groups, so both have to be the same, and what
//! operators do to it too. Where results go may change, unless it is into files: their sinks remember in
//! their state which of them are to be given their names.

use std::collections::BTreeMap;

use common::error::{ErrorCode, Problem};
use common::plan::connector::SinkSpec;
use common::plan::task_graph::{PlannedOperator, PlannedSink, PlannedSource, Stage, TaskGraph};

/// So many differences are told.
const TOLD: usize = 5;

/// Refuses a savepoint of another job, and says what differs. `planned`: the job that is to begin with it.
pub fn check(saved: &TaskGraph, planned: &TaskGraph) -> Result<(), Problem> {
    let differences = differences(saved, planned);
    if differences.is_empty() {
        return Ok(());
    }
    let more = differences.len().saturating_sub(TOLD);
    let mut detail = format!(
        "the savepoint is of another job: {}",
        differences[..differences.len() - more].join("; ")
    );
    if more > 0 {
        detail.push_str(&format!("; and {more} more differences"));
    }
    Err(Problem::new(ErrorCode::SavepointMismatch, detail))
}

fn differences(saved: &TaskGraph, planned: &TaskGraph) -> Vec<String> {
    let mut differences = Vec::new();
    if saved.key_groups != planned.key_groups {
        differences.push(format!(
            "it has {} key groups, the job has {}: set \"key_groups\" in its config",
            saved.key_groups, planned.key_groups
        ));
    }
    let parallelism = |graph: &TaskGraph| graph.stages.iter().map(|stage| stage.parallelism).max();
    if parallelism(saved) != parallelism(planned) {
        differences.push(format!(
            "its parallelism is {}, the job's is {}: set \"parallelism\"",
            parallelism(saved).unwrap_or(0),
            parallelism(planned).unwrap_or(0)
        ));
    }
    differences.extend(operator_differences(saved, planned));
    if differences.is_empty() && !same_stages(saved, planned) {
        differences.push("its operators are divided over tasks in another way".to_owned());
    }
    differences
}

/// What differs of sources, operators and sinks, however they are divided over tasks.
pub fn operator_differences(saved: &TaskGraph, planned: &TaskGraph) -> Vec<String> {
    let mut differences = Vec::new();
    compare(
        "source",
        sources(saved),
        sources(planned),
        same_source,
        &mut differences,
    );
    compare(
        "operator",
        operators(saved),
        operators(planned),
        PartialEq::eq,
        &mut differences,
    );
    compare(
        "sink",
        sinks(saved),
        sinks(planned),
        same_sink,
        &mut differences,
    );
    differences
}

fn compare<T>(
    what: &str,
    saved: BTreeMap<&str, &T>,
    planned: BTreeMap<&str, &T>,
    same: impl Fn(&T, &T) -> bool,
    differences: &mut Vec<String>,
) {
    for (name, saved) in &saved {
        match planned.get(name) {
            None => differences.push(format!("the job has no {what} \"{name}\"")),
            Some(planned) if !same(saved, planned) => {
                differences.push(format!("{what} \"{name}\" is defined otherwise"));
            }
            Some(_) => {}
        }
    }
    for name in planned.keys().filter(|name| !saved.contains_key(*name)) {
        differences.push(format!("it has no {what} \"{name}\""));
    }
}

fn sources(graph: &TaskGraph) -> BTreeMap<&str, &PlannedSource> {
    let sources = graph
        .stages
        .iter()
        .filter_map(|stage| stage.source.as_ref());
    sources
        .map(|source| (source.name.as_str(), source))
        .collect()
}

fn operators(graph: &TaskGraph) -> BTreeMap<&str, &PlannedOperator> {
    let operators = graph.stages.iter().flat_map(|stage| &stage.operators);
    operators
        .map(|operator| (operator.spec.id(), operator))
        .collect()
}

fn sinks(graph: &TaskGraph) -> BTreeMap<&str, &PlannedSink> {
    let sinks = graph.stages.iter().filter_map(|stage| stage.sink.as_ref());
    sinks.map(|sink| (sink.name.as_str(), sink)).collect()
}

fn same_source(saved: &PlannedSource, planned: &PlannedSource) -> bool {
    saved == planned
}

fn same_sink(saved: &PlannedSink, planned: &PlannedSink) -> bool {
    let files = |sink: &PlannedSink| matches!(sink.spec, SinkSpec::Files(_));
    let free = !files(saved) && !files(planned);
    (saved.spec == planned.spec || free)
        && (&saved.columns, &saved.mode) == (&planned.columns, &planned.mode)
}

/// Tasks are told apart by their stages' numbers, of which a job that was rescaled has others.
fn same_stages(saved: &TaskGraph, planned: &TaskGraph) -> bool {
    let shape = |stage: &Stage| {
        let operators = stage
            .operators
            .iter()
            .map(|operator| operator.spec.id().to_owned());
        (
            stage.id,
            stage.parallelism,
            stage.source.as_ref().map(|source| source.name.clone()),
            operators.collect::<Vec<_>>(),
            stage.sink.as_ref().map(|sink| sink.name.clone()),
        )
    };
    let shapes = |graph: &TaskGraph| graph.stages.iter().map(shape).collect::<Vec<_>>();
    shapes(saved) == shapes(planned) && saved.edges == planned.edges
}

#[cfg(test)]
mod tests {
    use common::ids::StageId;
    use common::plan::connector::SourceSpec;
    use common::plan::edge::ChangelogMode;

    use super::*;

    fn graph(parallelism: u32, key_groups: u16, topic: &str, sink: &str) -> TaskGraph {
        let source = serde_json::json!({"connector": "topic", "topic": topic, "schema": []});
        let source: SourceSpec = serde_json::from_value(source).unwrap();
        let sink: SinkSpec = serde_json::from_str(sink).unwrap();
        let planned = PlannedSink {
            name: "out".to_owned(),
            spec: sink,
            columns: Vec::new(),
            mode: ChangelogMode::Append,
        };
        TaskGraph {
            stages: vec![Stage {
                id: StageId(0),
                parallelism,
                source: Some(PlannedSource {
                    name: "bids".to_owned(),
                    spec: source,
                    columns: Vec::new(),
                }),
                operators: Vec::new(),
                sink: Some(planned),
            }],
            edges: Vec::new(),
            key_groups,
        }
    }

    const TOPIC: &str = r#"{"connector": "topic", "input": "bids", "topic": "a"}"#;
    const OTHER: &str = r#"{"connector": "topic", "input": "bids", "topic": "b"}"#;
    const FILES: &str = r#"{"connector": "files", "input": "bids", "path": "/tmp/a/"}"#;

    fn told(saved: &TaskGraph, planned: &TaskGraph) -> String {
        let problem = check(saved, planned).unwrap_err();
        assert_eq!(problem.code, ErrorCode::SavepointMismatch);
        problem.detail
    }

    #[test]
    fn the_same_job_fits_also_if_its_results_go_to_another_topic() {
        let job = graph(2, 256, "bids", TOPIC);
        assert_eq!(check(&job, &job), Ok(()));
        assert_eq!(check(&job, &graph(2, 256, "bids", OTHER)), Ok(()));
    }

    #[test]
    fn what_differs_is_said_with_what_to_do() {
        let job = graph(2, 256, "bids", TOPIC);
        let detail = told(&job, &graph(3, 256, "bids", TOPIC));
        assert!(
            detail.contains("its parallelism is 2, the job's is 3"),
            "{detail}"
        );
        let detail = told(&job, &graph(2, 128, "bids", TOPIC));
        assert!(
            detail.contains("256 key groups, the job has 128"),
            "{detail}"
        );
        let detail = told(&job, &graph(2, 256, "clicks", TOPIC));
        assert!(
            detail.contains("source \"bids\" is defined otherwise"),
            "{detail}"
        );
        let detail = told(&job, &graph(2, 256, "bids", FILES));
        assert!(
            detail.contains("sink \"out\" is defined otherwise"),
            "{detail}"
        );
        let mut renamed = job.clone();
        renamed.stages[0].source.as_mut().unwrap().name = "offers".to_owned();
        let detail = told(&job, &renamed);
        assert!(
            detail.contains("the job has no source \"bids\""),
            "{detail}"
        );
        assert!(detail.contains("it has no source \"offers\""), "{detail}");
    }
}
