//! Which tasks' state a task takes over when the same job is divided into tasks in another way (pure).
//!
//! What is kept by key goes by key groups. What a task keeps for itself goes with what it is for: the positions of
//! splits with the source, to whoever they are dealt to; what a sink has prepared and not committed with the sink,
//! to one task each.

use std::collections::BTreeSet;

use super::operator::OperatorSpec;
use super::task_graph::{Stage, TaskGraph};
use super::upgrade;
use crate::ids::TaskId;
use crate::key_group::KeyGroupRange;

/// What one task takes over of another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    pub of: TaskId,
    /// The operators whose tables it takes, and the key groups of them; none of them if there is no operator.
    pub operators: BTreeSet<String>,
    pub groups: KeyGroupRange,
    /// Whether it takes the splits that are dealt to it.
    pub splits: bool,
    /// Whether it takes what the sink has prepared.
    pub committables: bool,
    /// Whether it goes on from what was said of event time.
    pub time: bool,
}

/// What a task of `after` takes over of tasks of `before`: by key groups, so that what is taken of an operator is in
/// order. Never no share, so that it becomes what it is at the same checkpoint as all others.
pub fn shares(before: &TaskGraph, after: &TaskGraph, task: TaskId) -> Vec<Share> {
    let stage = after.stage(task.stage);
    let own = KeyGroupRange::of_task(task.index, after.key_groups, stage.parallelism);
    let former = before.stages.iter().filter(|former| meet(former, stage));
    let time = goes_on(before, after, stage);
    let shares: Vec<Share> = former
        .flat_map(|former| shares_of(former, stage, task, own, before.key_groups, time))
        .collect();
    match (shares.is_empty(), before.stages.first()) {
        // Nothing of any other.
        (true, Some(any)) => {
            let nothing = share_of_nobody(any, task, own, before.key_groups, time);
            vec![nothing]
        }
        _ => shares,
    }
}

/// The operators whose state cannot be divided: each task has some that belongs to no key.
pub fn indivisible(graph: &TaskGraph) -> impl Iterator<Item = &str> {
    let operators = graph.stages.iter().flat_map(|stage| &stage.operators);
    operators.filter_map(|operator| match &operator.spec {
        OperatorSpec::Custom(custom) if custom.keys.is_empty() => Some(operator.spec.id()),
        _ => None,
    })
}

fn shares_of(
    former: &Stage,
    stage: &Stage,
    task: TaskId,
    own: KeyGroupRange,
    key_groups: u16,
    time: bool,
) -> Vec<Share> {
    let operators = common_state(former, stage);
    let splits = has_same_source(former, stage);
    let sink = has_same_sink(former, stage);
    let share = |index: u32| {
        let nothing = share_of_nobody(former, TaskId { index, ..task }, own, key_groups, time);
        let operators = match nothing.groups.is_empty() {
            true => BTreeSet::new(),
            false => operators.clone(),
        };
        Share {
            operators,
            splits,
            committables: sink && index % stage.parallelism == task.index,
            ..nothing
        }
    };
    let all = (0..former.parallelism).map(share);
    let taken: Vec<Share> = all
        .filter(|share| share.splits || share.committables || !share.operators.is_empty())
        .collect();
    match taken.is_empty() {
        true => vec![share(task.index % former.parallelism)],
        false => taken,
    }
}

/// Only what it has said of event time, if that, of the task with the same index.
fn share_of_nobody(
    former: &Stage,
    task: TaskId,
    own: KeyGroupRange,
    key_groups: u16,
    time: bool,
) -> Share {
    let index = task.index % former.parallelism;
    let range = KeyGroupRange::of_task(index, key_groups, former.parallelism);
    Share {
        of: TaskId {
            stage: former.id,
            index,
        },
        operators: BTreeSet::new(),
        groups: range.and(own),
        splits: false,
        committables: false,
        time,
    }
}

/// The keyed operators of two stages that mean the same by their state.
fn common_state(former: &Stage, stage: &Stage) -> BTreeSet<String> {
    let keyed = stage.operators.iter().filter(|of| of.spec.keys().is_some());
    let kept = keyed.filter(|operator| {
        let mut formers = former.operators.iter();
        let was = formers.find(|was| was.spec.id() == operator.spec.id());
        was.is_some_and(|was| upgrade::operator_differs(was, operator).is_none())
    });
    kept.map(|operator| operator.spec.id().to_owned()).collect()
}

/// Whether what a stage's tasks say of event time follows what was said before: it goes on with state, or with what a
/// source brings that goes on. What comes of other sources only may be of any time.
fn goes_on(before: &TaskGraph, after: &TaskGraph, stage: &Stage) -> bool {
    let mut formers = before.stages.iter();
    if formers
        .any(|former| has_same_source(former, stage) || !common_state(former, stage).is_empty())
    {
        return true;
    }
    let mut inputs = after.inputs_of(stage.id);
    inputs.any(|(_, edge)| goes_on(before, after, after.stage(edge.from)))
}

/// Whether two stages have anything in common.
fn meet(former: &Stage, stage: &Stage) -> bool {
    let ids = |of: &Stage| -> BTreeSet<String> {
        let operators = of.operators.iter().map(|operator| operator.spec.id());
        operators.map(str::to_owned).collect()
    };
    has_same_source(former, stage)
        || has_same_sink(former, stage)
        || !ids(former).is_disjoint(&ids(stage))
}

fn has_same_source(former: &Stage, stage: &Stage) -> bool {
    match (&former.source, &stage.source) {
        (Some(was), Some(is)) => was.name == is.name && upgrade::source_differs(was, is).is_none(),
        _ => false,
    }
}

fn has_same_sink(former: &Stage, stage: &Stage) -> bool {
    match (&former.sink, &stage.sink) {
        (Some(was), Some(is)) => was.name == is.name && upgrade::sink_differs(was, is).is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::StageId;
    use crate::key_group::KeyGroup;
    use crate::plan::connector::{BlackholeSink, SinkSpec};
    use crate::plan::edge::ChangelogMode;
    use crate::plan::operator::{Aggregate, Project};
    use crate::plan::task_graph::{PlannedOperator, PlannedSink};

    fn operator(spec: OperatorSpec) -> PlannedOperator {
        PlannedOperator {
            spec,
            inputs: Vec::new(),
            output: Vec::new(),
            time_column: None,
            input_mode: ChangelogMode::Append,
            output_mode: ChangelogMode::Append,
        }
    }

    fn stage(id: u16, parallelism: u32, operators: Vec<PlannedOperator>, sink: bool) -> Stage {
        let sink = sink.then(|| PlannedSink {
            name: "out".to_owned(),
            spec: SinkSpec::Blackhole(BlackholeSink {
                input: "in".to_owned(),
            }),
            columns: Vec::new(),
            mode: ChangelogMode::Append,
        });
        Stage {
            id: StageId(id),
            parallelism,
            source: None,
            operators,
            sink,
        }
    }

    /// A projection, and behind it an aggregate with a sink.
    fn graph(first: u16, parallelism: u32) -> TaskGraph {
        let project = OperatorSpec::Project(Project {
            id: "project".to_owned(),
            inputs: vec!["in".to_owned()],
            columns: Vec::new(),
        });
        let aggregate = OperatorSpec::Aggregate(Aggregate {
            id: "sum".to_owned(),
            inputs: vec!["project".to_owned()],
            keys: Vec::new(),
            aggregates: Vec::new(),
        });
        TaskGraph {
            stages: vec![
                stage(first, parallelism, vec![operator(project)], false),
                stage(first + 1, parallelism, vec![operator(aggregate)], true),
            ],
            edges: Vec::new(),
            key_groups: 16,
        }
    }

    proptest! {
        #[test]
        fn every_key_group_and_every_sink_goes_to_one_task(before in 1_u32..9, after in 1_u32..9) {
            let (old, new) = (graph(0, before), graph(2, after));
            let mut groups: Vec<(KeyGroup, TaskId)> = Vec::new();
            let mut sinks: Vec<TaskId> = Vec::new();
            for task in new.tasks() {
                let shares = shares(&old, &new, task);
                prop_assert!(!shares.is_empty());
                for share in shares {
                    prop_assert_eq!(share.of.stage.0 + 2, task.stage.0);
                    if !share.operators.is_empty() {
                        let range = share.groups.start..share.groups.end;
                        groups.extend(range.map(|group| (KeyGroup(group), share.of)));
                    }
                    if share.committables {
                        sinks.push(share.of);
                    }
                }
            }
            groups.sort();
            let owned = |group| {
                let index = crate::key_group::owner(group, 16, before);
                TaskId { stage: StageId(1), index }
            };
            let expected: Vec<_> = (0..16).map(KeyGroup).map(|group| (group, owned(group))).collect();
            prop_assert_eq!(groups, expected);
            sinks.sort();
            let all: Vec<TaskId> = old.tasks().filter(|task| task.stage == StageId(1)).collect();
            prop_assert_eq!(sinks, all);
        }
    }
}
