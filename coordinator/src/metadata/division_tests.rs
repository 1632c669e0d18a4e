//! A job is divided anew only when everything of it is where it is to go on.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::error::ErrorCode;
use common::ids::{CheckpointId, Generation, JobId, NodeId, StageId, TaskId};
use common::plan::JobGraph;
use common::plan::task_graph::{Stage, TaskGraph};
use common::protocol::job::{CreateJob, JobState};
use common::protocol::task::{NextDivision, Standbys, TaskAssignment};
use common::time::Span;

use super::command::{Command, EpochCompleted, Rejection};
use super::division::{Dividing, JobUpdate, PlannedDivision};
use super::jobs::JobRow;
use super::test_history::{History, complete, start_generation};

const OTHER: NodeId = NodeId(77);

/// One stage of so many tasks, which keep state.
fn graph(id: u16, parallelism: u32) -> Arc<TaskGraph> {
    let aggregate = serde_json::json!({
        "type": "aggregate", "id": "sum", "inputs": ["in"], "keys": [], "aggregates": [],
    });
    let operator = common::plan::task_graph::PlannedOperator {
        spec: serde_json::from_value(aggregate).unwrap(),
        inputs: Vec::new(),
        output: Vec::new(),
        time_column: None,
        input_mode: common::plan::edge::ChangelogMode::Append,
        output_mode: common::plan::edge::ChangelogMode::Append,
    };
    Arc::new(TaskGraph {
        stages: vec![Stage {
            id: StageId(id),
            parallelism,
            source: None,
            operators: vec![operator],
            sink: None,
        }],
        edges: Vec::new(),
        key_groups: 256,
    })
}

fn task(stage: u16, index: u32) -> TaskId {
    TaskId {
        stage: StageId(stage),
        index,
    }
}

fn divide(job: JobId, first_stage: u16, parallelism: u32) -> Command {
    Command::Divide {
        job,
        first_stage: StageId(first_stage),
        division: Some(PlannedDivision {
            parallelism,
            graph: graph(first_stage, parallelism),
            places: BTreeMap::new(),
            update: None,
        }),
    }
}

fn assigned(graph: &TaskGraph, worker: NodeId) -> Vec<TaskAssignment> {
    let tasks = graph.tasks().map(|task| TaskAssignment { task, worker });
    tasks.collect()
}

fn prepare(job: JobId, generation: Generation, graph: &Arc<TaskGraph>, worker: NodeId) -> Command {
    Command::PrepareDivision {
        job,
        generation,
        next: Arc::new(NextDivision {
            graph: TaskGraph::clone(graph),
            tasks: assigned(graph, worker),
            standbys: Standbys::new(),
        }),
        standbys: Standbys::new(),
    }
}

/// Also of these tasks the state is there.
fn complete_with(
    job: JobId,
    generation: Generation,
    checkpoint: u64,
    worker: NodeId,
    others: &[TaskId],
) -> Command {
    let Command::EpochCompleted(mut completed) = complete(job, generation, checkpoint, worker)
    else {
        unreachable!("that is what it is");
    };
    let others = others.iter().map(|task| (*task, vec![worker]));
    completed.holders.extend(others);
    Command::EpochCompleted(EpochCompleted { ..completed })
}

fn begin(
    row: &JobRow,
    graph: &TaskGraph,
    dividing: Dividing,
    restore: Option<CheckpointId>,
    worker: NodeId,
) -> Command {
    match start_generation(row.id, row.generation, restore, worker) {
        Command::StartGeneration {
            job,
            generation,
            restore,
            standbys,
            state,
            reason,
            failure,
            ..
        } => Command::StartGeneration {
            job,
            generation,
            restore,
            dividing,
            tasks: assigned(graph, worker),
            standbys,
            state,
            reason,
            failure,
        },
        other => unreachable!("{other:?}"),
    }
}

/// A job of two tasks that runs and is to have four.
fn story() -> (History, JobId, NodeId, Generation) {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let job = history.job("sums");
    let generation = history.start(job, worker);
    history
        .command(Command::ReserveEpochs { job, generation })
        .unwrap();
    history
        .command(complete(job, generation, 1, worker))
        .unwrap();
    history.command(divide(job, 1, 4)).unwrap();
    (history, job, worker, generation)
}

#[test]
fn a_prepared_division_is_taken_with_all_that_tasks_have_done() {
    let (mut history, job, worker, generation) = story();
    let next = graph(1, 4);
    history
        .command(prepare(job, generation, &next, worker))
        .unwrap();
    let four: Vec<TaskId> = next.tasks().collect();
    let early = complete_with(job, generation, 2, worker, &four[..3]);
    history.command(early).unwrap();
    let row = history.metadata.job(job).unwrap().clone();
    let too_early = begin(&row, &next, Dividing::Anew, Some(CheckpointId(2)), worker);
    let refused = history.command(too_early);
    assert_eq!(refused, Err(Rejection::NotPrepared { job }));

    history
        .command(Command::CutOver { job, generation })
        .unwrap();
    let last = complete_with(job, generation, 3, worker, &four);
    history.command(last).unwrap();
    let row = history.metadata.job(job).unwrap().clone();
    assert!(row.cutting_over);
    let rows_in = |row: &JobRow| -> u64 { row.counts.values().map(|counts| counts.rows_in).sum() };
    let taken = begin(&row, &next, Dividing::Anew, Some(CheckpointId(3)), worker);
    history.command(taken).unwrap();
    let divided = history.metadata.job(job).unwrap();
    assert_eq!((&divided.graph, divided.spec.parallelism), (&next, Some(4)));
    assert_eq!((&divided.division, divided.cutting_over), (&None, false));
    assert_eq!(divided.holders.keys().copied().collect::<Vec<_>>(), four);
    assert_eq!(divided.next_stage(), StageId(2));
    // The stage of the two had no node that one of the four has.
    assert!(rows_in(&row) > 0 && rows_in(divided) == 0);
    let deployment = divided.deployment.as_ref().unwrap();
    assert_eq!((&deployment.graph, &deployment.next), (&*next, &None));
}

#[test]
fn a_new_generation_in_the_old_division_leaves_what_was_prepared() {
    let (mut history, job, worker, generation) = story();
    let next = graph(1, 4);
    history
        .command(prepare(job, generation, &next, worker))
        .unwrap();
    let four: Vec<TaskId> = next.tasks().collect();
    history
        .command(complete_with(job, generation, 2, worker, &four))
        .unwrap();
    history
        .command(Command::CutOver { job, generation })
        .unwrap();
    let row = history.metadata.job(job).unwrap().clone();
    let old = row.graph.clone();
    let again = begin(&row, &old, Dividing::AsBefore, row.completed, worker);
    history.command(again).unwrap();
    let row = history.metadata.job(job).unwrap().clone();
    assert!(row.division.is_some() && !row.cutting_over);
    assert_eq!(row.holders.len(), 2);
    let given_up = begin(&row, &old, Dividing::GivenUp, row.completed, worker);
    history.command(given_up).unwrap();
    let row = history.metadata.job(job).unwrap();
    assert_eq!(row.division, None);
    // Its numbers are of no other division.
    assert_eq!(row.next_stage(), StageId(2));
}

#[test]
fn what_does_not_go_with_the_facts_is_refused() {
    let (mut history, job, worker, generation) = story();
    let refused = history.command(divide(job, 1, 3));
    let name = history.metadata.job(job).unwrap().name.clone();
    let rejection = Rejection::DividedMeanwhile { job: name };
    assert_eq!(rejection.code(), ErrorCode::Conflict);
    assert_eq!(refused, Err(rejection));
    let cut_over = Command::CutOver { job, generation };
    let refused = history.command(cut_over);
    assert_eq!(refused, Err(Rejection::NotPrepared { job }));
    let of_another = prepare(job, generation, &graph(2, 4), worker);
    let refused = history.command(of_another);
    assert_eq!(refused, Err(Rejection::WrongTasks { job }));
    let of_the_past = prepare(job, Generation(0), &graph(1, 4), worker);
    let refused = history.command(of_the_past);
    assert!(matches!(refused, Err(Rejection::FencedGeneration { .. })));
    let unknown = complete_with(job, generation, 2, OTHER, &[task(1, 0)]);
    let refused = history.command(unknown);
    assert_eq!(refused, Err(Rejection::WrongTasks { job }));
}

/// Its sources may read nothing any more.
#[test]
fn a_change_that_is_withdrawn_in_the_middle_of_its_cut_over_ends_the_generation() {
    let (mut history, job, worker, generation) = story();
    history
        .command(prepare(job, generation, &graph(1, 4), worker))
        .unwrap();
    history
        .command(Command::CutOver { job, generation })
        .unwrap();
    let withdrawn = Command::Divide {
        job,
        first_stage: StageId(2),
        division: None,
    };
    history.command(withdrawn).unwrap();
    let row = history.metadata.job(job).unwrap();
    assert!(row.halting && !row.cutting_over && row.division.is_none());
    assert_eq!(row.deployment.as_ref().unwrap().next, None);
}

/// It may have failed of what it was.
#[test]
fn a_job_that_is_changed_at_rest_reads_nothing_until_it_is() {
    let (mut history, job, worker, generation) = story();
    let halted = Command::EndGeneration {
        job,
        generation,
        state: JobState::Failed,
        reason: "a record cannot be read".to_owned(),
        failure: None,
    };
    history.command(halted).unwrap();
    let row = history.metadata.job(job).unwrap().clone();
    let mut spec = CreateJob::clone(&row.spec);
    spec.checkpoint_interval_ms = Some(100);
    let changed = Command::Divide {
        job,
        first_stage: StageId(2),
        division: Some(PlannedDivision {
            parallelism: 2,
            graph: graph(2, 2),
            places: BTreeMap::new(),
            update: Some(Arc::new(JobUpdate {
                of: row.first_stage(),
                spec: spec.clone(),
                job_graph: JobGraph::default(),
                checkpoint_interval: Span(100),
            })),
        }),
    };
    history.command(changed).unwrap();
    let still = |history: &History| {
        let row = history.metadata.job(job).unwrap();
        row.deployment.as_ref().unwrap().still
    };
    let old = row.graph.clone();
    // Also if it fails once more on the way.
    for _ in 0..2 {
        let row = history.metadata.job(job).unwrap().clone();
        let started = begin(&row, &old, Dividing::AsBefore, row.completed, worker);
        history.command(started).unwrap();
        assert!(still(&history));
    }
    let row = history.metadata.job(job).unwrap().clone();
    let (generation, next) = (row.generation, graph(2, 2));
    history
        .command(prepare(job, generation, &next, worker))
        .unwrap();
    let two: Vec<TaskId> = next.tasks().collect();
    history
        .command(complete_with(job, generation, 2, worker, &two))
        .unwrap();
    let row = history.metadata.job(job).unwrap().clone();
    let taken = begin(&row, &next, Dividing::Anew, row.completed, worker);
    history.command(taken).unwrap();
    assert!(!still(&history));
    let row = history.metadata.job(job).unwrap();
    assert_eq!(row.checkpoint_interval, Span(100));
    spec.parallelism = Some(2);
    assert_eq!((&*row.spec, &row.graph), (&spec, &next));
}

#[test]
fn a_job_that_stands_still_reads_on_once_its_change_is_withdrawn() {
    let (mut history, job, worker, generation) = story();
    let row = history.metadata.job(job).unwrap().clone();
    let paused = Command::EndGeneration {
        job,
        generation,
        state: JobState::Paused,
        reason: String::new(),
        failure: None,
    };
    history.command(paused).unwrap();
    let divide = |first_stage: u16, division: Option<PlannedDivision>| Command::Divide {
        job,
        first_stage: StageId(first_stage),
        division,
    };
    let update = JobUpdate {
        of: row.first_stage(),
        spec: CreateJob::clone(&row.spec),
        job_graph: JobGraph::default(),
        checkpoint_interval: Span(100),
    };
    let changed = PlannedDivision {
        parallelism: 2,
        graph: graph(2, 2),
        places: BTreeMap::new(),
        update: Some(Arc::new(update)),
    };
    history.command(divide(2, Some(changed))).unwrap();
    let row = history.metadata.job(job).unwrap().clone();
    let started = begin(&row, &row.graph, Dividing::AsBefore, row.completed, worker);
    history.command(started).unwrap();
    history.command(divide(3, None)).unwrap();
    let row = history.metadata.job(job).unwrap().clone();
    assert!(row.halting && row.division.is_none());
    let started = begin(&row, &row.graph, Dividing::AsBefore, row.completed, worker);
    history.command(started).unwrap();
    let row = history.metadata.job(job).unwrap();
    assert!(!row.deployment.as_ref().unwrap().still);
}

/// Another change was taken while it was planned: what it would lose was said of the job as it had been.
#[test]
fn an_update_that_was_planned_for_what_the_job_is_no_more_is_refused() {
    let (mut history, job, worker, generation) = story();
    let row = history.metadata.job(job).unwrap().clone();
    let planned = JobUpdate {
        of: row.first_stage(),
        spec: CreateJob::clone(&row.spec),
        job_graph: JobGraph::default(),
        checkpoint_interval: Span(100),
    };
    let next = graph(1, 4);
    history
        .command(prepare(job, generation, &next, worker))
        .unwrap();
    let four: Vec<TaskId> = next.tasks().collect();
    history
        .command(complete_with(job, generation, 2, worker, &four))
        .unwrap();
    let row = history.metadata.job(job).unwrap().clone();
    let taken = begin(&row, &next, Dividing::Anew, row.completed, worker);
    history.command(taken).unwrap();
    let update = |of: JobUpdate| Command::Divide {
        job,
        first_stage: StageId(2),
        division: Some(PlannedDivision {
            parallelism: 2,
            graph: graph(2, 2),
            places: BTreeMap::new(),
            update: Some(Arc::new(of)),
        }),
    };
    let refused = history.command(update(planned.clone()));
    let name = row.name.clone();
    assert_eq!(refused, Err(Rejection::DividedMeanwhile { job: name }));
    let of = history.metadata.job(job).unwrap().first_stage();
    history
        .command(update(JobUpdate { of, ..planned }))
        .unwrap();
}
