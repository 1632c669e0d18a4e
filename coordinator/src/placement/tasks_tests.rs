//! Placement as a table of small clusters, and as properties over random ones.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{NodeId, StageId, TaskId};
use proptest::prelude::*;

use super::tasks::*;

fn task(stage: u16, index: u32) -> TaskId {
    TaskId {
        stage: StageId(stage),
        index,
    }
}

fn stage(id: u16, parallelism: u32, has_state: bool) -> StageShape {
    StageShape {
        id: StageId(id),
        parallelism,
        has_state,
        has_source: id == 0,
        custom: BTreeSet::new(),
    }
}

/// A source, a keyed operator and a sink, all with state.
fn job(parallelism: u32) -> JobShape {
    JobShape {
        stages: (0..3).map(|id| stage(id, parallelism, true)).collect(),
    }
}

fn slots(free: &[(u32, u32)]) -> BTreeMap<NodeId, u32> {
    free.iter().map(|(id, free)| (NodeId(*id), *free)).collect()
}

fn places(problem: &Problem) -> BTreeMap<TaskId, NodeId> {
    let assignments = place(problem).expect("the job fits");
    assignments.iter().map(|a| (a.task, a.worker)).collect()
}

/// Each held where it is placed, and nowhere else.
fn held(places: &BTreeMap<TaskId, NodeId>) -> BTreeMap<TaskId, Vec<NodeId>> {
    let alone = places.iter().map(|(task, worker)| (*task, vec![*worker]));
    alone.collect()
}

#[test]
fn instances_spread_over_workers_and_their_tasks_stay_together() {
    let problem = Problem {
        shape: job(4),
        free_slots: slots(&[(1, 8), (2, 16)]),
        ..Problem::default()
    };
    let placed = places(&problem);
    for index in 0..4 {
        let workers: BTreeSet<NodeId> = (0..3).map(|s| placed[&task(s, index)]).collect();
        assert_eq!(workers.len(), 1, "instance {index} is torn apart");
    }
    let on_first = (0..4).filter(|i| placed[&task(0, *i)] == NodeId(1)).count();
    assert_eq!(on_first, 2);
    assert_eq!(
        placed[&task(0, 0)],
        NodeId(2),
        "the emptier worker comes first"
    );
}

#[test]
fn too_few_slots_say_how_many_are_missing() {
    let problem = Problem {
        shape: job(6),
        free_slots: slots(&[(1, 2), (2, 2)]),
        ..Problem::default()
    };
    let refusal = place(&problem).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "needs 6 slots, 4 are free: 2 more must come"
    );
}

#[test]
fn a_task_with_state_waits_for_the_worker_that_holds_it() {
    let mut problem = Problem {
        shape: job(2),
        free_slots: slots(&[(1, 8), (2, 8)]),
        ..Problem::default()
    };
    problem.previous = places(&problem);
    problem.holders = held(&problem.previous);
    problem.free_slots.remove(&NodeId(2));
    assert_eq!(
        place(&problem).unwrap_err().to_string(),
        "waits for worker 2, which holds the state of 3 tasks"
    );
    problem.free_slots = slots(&[(1, 8), (2, 1), (3, 80)]);
    assert_eq!(places(&problem), problem.previous);
}

#[test]
fn a_lost_workers_tasks_go_to_their_standbys_and_the_others_stay() {
    let mut problem = Problem {
        shape: job(3),
        free_slots: slots(&[(1, 8), (2, 8), (3, 8)]),
        ..Problem::default()
    };
    problem.previous = places(&problem);
    problem.holders = held(&problem.previous);
    for holders in problem.holders.values_mut() {
        let NodeId(own) = holders[0];
        holders.push(NodeId(own % 3 + 1));
    }
    assert_eq!(places(&problem), problem.previous);
    problem.free_slots.remove(&NodeId(2));
    for (task, worker) in places(&problem) {
        let before = problem.previous[&task];
        let expected = if before == NodeId(2) {
            NodeId(3)
        } else {
            before
        };
        assert_eq!(worker, expected, "task {task}");
    }
    problem.free_slots.remove(&NodeId(3));
    assert_eq!(
        place(&problem).unwrap_err().to_string(),
        "waits for one of workers 2 and 3, which hold the state of 3 tasks"
    );
}

#[test]
fn a_task_makes_room_for_one_that_is_held_nowhere_else() {
    let problem = Problem {
        shape: job(2),
        free_slots: slots(&[(1, 1), (2, 1)]),
        holders: [
            (task(1, 0), vec![NodeId(1), NodeId(2)]),
            (task(1, 1), vec![NodeId(1)]),
        ]
        .into(),
        ..Problem::default()
    };
    let placed = places(&problem);
    assert_eq!(
        (placed[&task(1, 0)], placed[&task(1, 1)]),
        (NodeId(2), NodeId(1))
    );
}

#[test]
fn a_holder_without_room_is_named() {
    let problem = Problem {
        shape: job(2),
        free_slots: slots(&[(1, 1), (2, 80)]),
        holders: held(&[(task(1, 0), NodeId(1)), (task(1, 1), NodeId(1))].into()),
        ..Problem::default()
    };
    assert_eq!(
        place(&problem).unwrap_err().to_string(),
        "needs 2 slots on worker 1, which holds its state and has 1 free: 1 more must come"
    );
}

#[test]
fn tasks_without_state_move_away_from_a_lost_worker() {
    let mut problem = Problem {
        shape: JobShape {
            stages: vec![stage(0, 2, false), stage(1, 2, false)],
        },
        free_slots: slots(&[(1, 8), (2, 8)]),
        ..Problem::default()
    };
    problem.previous = places(&problem);
    problem.free_slots.remove(&NodeId(1));
    let placed = places(&problem);
    assert!(placed.values().all(|worker| *worker == NodeId(2)));
}

/// A source, and behind it a stage with a custom operator.
fn custom(parallelism: u32, has_state: bool) -> JobShape {
    let mut stages = vec![
        stage(0, parallelism, false),
        stage(1, parallelism, has_state),
    ];
    stages[1].custom.insert("magic".to_owned());
    JobShape { stages }
}

fn carried(by: &[u32]) -> BTreeMap<NodeId, BTreeSet<String>> {
    let magic = || BTreeSet::from(["magic".to_owned(), "more".to_owned()]);
    by.iter().map(|id| (NodeId(*id), magic())).collect()
}

#[test]
fn a_custom_operator_runs_only_where_it_is_carried() {
    let mut problem = Problem {
        shape: custom(3, false),
        free_slots: slots(&[(1, 80), (2, 3), (3, 80)]),
        carried: carried(&[2]),
        ..Problem::default()
    };
    let placed = places(&problem);
    assert!(
        (0..3).all(|i| placed[&task(1, i)] == NodeId(2)),
        "{placed:?}"
    );
    // What ran elsewhere before does not go back there.
    problem.previous = placed.keys().map(|task| (*task, NodeId(1))).collect();
    let placed = places(&problem);
    assert!(
        (0..3).all(|i| placed[&task(1, i)] == NodeId(2)),
        "{placed:?}"
    );
}

#[test]
fn a_custom_operator_that_too_few_carry_waits_and_says_so() {
    let mut problem = Problem {
        shape: custom(3, true),
        free_slots: slots(&[(1, 80), (2, 2)]),
        carried: carried(&[2]),
        ..Problem::default()
    };
    assert_eq!(
        place(&problem).unwrap_err().to_string(),
        "needs 3 slots on workers that carry \"magic\", 2 are free there: 1 more must come"
    );
    problem.carried = carried(&[1]);
    problem.holders = held(&[(task(1, 0), NodeId(2))].into());
    assert_eq!(
        place(&problem).unwrap_err().to_string(),
        "worker 2, which holds its state, does not carry \"magic\""
    );
}

prop_compose! {
    fn shapes()(stages in prop::collection::vec((1_u32..6, any::<bool>()), 1..5)) -> JobShape {
        let stages = stages.into_iter().zip(0..).map(|((parallelism, has_state), id)| stage(id, parallelism, has_state));
        JobShape { stages: stages.collect() }
    }
}

prop_compose! {
    fn problems()(
        shape in shapes(),
        free_slots in prop::collection::btree_map((1_u32..6).prop_map(NodeId), 0_u32..6, 0..5),
        held in prop::collection::vec(prop::collection::vec(1_u32..6, 0..3), 30),
        before in prop::collection::vec(prop::option::of(1_u32..6), 30),
    ) -> Problem {
        let spots = |places: &[Option<u32>]| -> BTreeMap<TaskId, NodeId> {
            shape.tasks().zip(places).filter_map(|(task, place)| Some((task, NodeId((*place)?)))).collect()
        };
        let holders = shape.tasks().zip(held).filter(|(_, held)| !held.is_empty());
        let holders = holders.map(|(task, held)| (task, held.into_iter().map(NodeId).collect())).collect();
        Problem { holders, previous: spots(&before), free_slots, shape, ..Problem::default() }
    }
}

/// Whether each of these can go to one of its holders: every way is tried.
fn all_fit(held: &[&[NodeId]], free: &mut BTreeMap<NodeId, u32>) -> bool {
    let Some((first, rest)) = held.split_first() else {
        return true;
    };
    first.iter().any(|holder| {
        let left = free.get(holder).copied().unwrap_or(0);
        if left == 0 {
            return false;
        }
        free.insert(*holder, left - 1);
        let fit = all_fit(rest, free);
        free.insert(*holder, left);
        fit
    })
}

proptest! {
    #[test]
    fn a_placement_is_complete_within_capacity_and_keeps_state_where_it_is(problem in problems()) {
        let Ok(assignments) = place(&problem) else { return Ok(()); };
        let tasks: Vec<TaskId> = assignments.iter().map(|a| a.task).collect();
        prop_assert_eq!(tasks, problem.shape.tasks().collect::<Vec<_>>());
        for (worker, used) in slots_used(assignments.iter().map(|a| (a.task, a.worker))) {
            prop_assert!(used <= problem.free_slots[&worker]);
        }
        for assignment in &assignments {
            let stage = problem.shape.stages.iter().find(|s| s.id == assignment.task.stage).unwrap();
            if let (true, Some(holders)) = (stage.has_state, problem.holders.get(&assignment.task)) {
                prop_assert!(holders.contains(&assignment.worker));
            }
        }
    }

    #[test]
    fn a_job_is_refused_only_if_it_cannot_be_placed(problem in problems()) {
        let stateful = problem.shape.stages.iter().filter(|stage| stage.has_state);
        let pinned = stateful.map(|stage| {
            let held = problem.holders.iter().filter(|(task, _)| task.stage == stage.id);
            held.map(|(_, holders)| holders.as_slice()).collect::<Vec<_>>()
        });
        let possible = pinned.into_iter().all(|held| all_fit(&held, &mut problem.free_slots.clone()))
            && problem.shape.parallelism() <= problem.free_slots.values().sum();
        prop_assert_eq!(place(&problem).is_ok(), possible);
    }

    #[test]
    fn what_ran_somewhere_runs_there_again(mut problem in problems()) {
        problem.holders.clear();
        let Ok(first) = place(&problem) else { return Ok(()); };
        problem.previous = first.iter().map(|a| (a.task, a.worker)).collect();
        problem.free_slots.insert(NodeId(99), 100);
        prop_assert_eq!(place(&problem).unwrap(), first);
    }
}
