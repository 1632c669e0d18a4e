//! How a job is divided anew, told as stories.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{CheckpointId, Generation, NodeId, StageId, TaskId};
use common::limits::CUT_OVER_TIMEOUT;
use common::protocol::job::JobState::*;
use common::protocol::task::TaskState;

use super::facts::*;
use super::machine::*;
use super::test_world::{World, cut_over, room, shape};
use crate::metadata::jobs::Desired;
use crate::placement::tasks::{JobShape, StageShape};

/// Twice as many tasks as before, each made of one of the former.
fn wanted() -> Wanted {
    let stage = |id, has_source| StageShape {
        id: StageId(id),
        parallelism: 4,
        has_state: true,
        has_source,
        custom: BTreeSet::new(),
    };
    let shape = JobShape {
        stages: vec![stage(2, true), stage(3, false)],
    };
    let of = |task: TaskId| TaskId {
        stage: StageId(task.stage.0 - 2),
        index: task.index / 2,
    };
    Wanted {
        updates: false,
        predecessors: shape
            .tasks()
            .map(|task| (task, [of(task)].into()))
            .collect(),
        shape,
        places: BTreeMap::new(),
    }
}

fn next(world: &World) -> NextTasks {
    let running = world.facts.running.clone().unwrap();
    running.next.expect("it is being prepared")
}

/// A job on four workers that has completed a checkpoint and is to be divided.
fn dividing() -> World {
    let workers = (1..=4).map(|id| (NodeId(id), room(u64::from(id), 1)));
    let mut world = World::with_workers(workers.collect()).run();
    world.complete_checkpoint(1);
    world.facts.wanted = Some(wanted());
    world.metadata_changed();
    world.settle();
    world
}

/// Everything is where it is to be.
fn complete_prepared(world: &mut World, checkpoint: u64) {
    let places = next(world).places(&wanted().shape);
    world.facts.completed = Some(CheckpointId(checkpoint));
    world.facts.holders.extend(places);
    world.metadata_changed();
    world.settle();
}

#[test]
fn a_job_is_divided_once_everything_is_prepared() {
    let mut world = dividing();
    let (generation, prepared) = (world.facts.generation, next(&world));
    let workers: BTreeSet<NodeId> = prepared.tasks.iter().map(|task| task.worker).collect();
    assert_eq!(workers.len(), 4, "they are spread");
    // Who prepares a task has what it is made of, or runs it.
    let running = world.facts.running.clone().unwrap();
    for (task, places) in prepared.places(&wanted().shape) {
        let of = *wanted().predecessors[&task].first().unwrap();
        for worker in places {
            let stands_by = running
                .standbys
                .get(&of)
                .is_some_and(|all| all.contains(&worker));
            assert!(
                running.worker_of[&of] == worker || stands_by,
                "{task} on {worker}"
            );
        }
    }
    assert_eq!(world.checkpointing, Checkpointing::Periodic { generation });
    assert_eq!(world.machine.undividable(), None);

    complete_prepared(&mut world, 2);
    assert_eq!(world.checkpointing, Checkpointing::CutOver { generation });
    world.complete_checkpoint(3);
    let held = prepared.places(&wanted().shape);
    world.facts.holders.extend(held);
    world.metadata_changed();
    world.tell(Event::FinalCheckpointCompleted { generation });
    world.settle();
    assert_eq!(world.facts.generation, generation, "sinks may not be done");
    world.report(TaskState::Finished);
    world.settle();
    world.expect(Deploying, "its parallelism changes to 4");
    assert_eq!(world.facts.generation, generation.next());
    let tasks = prepared.tasks.iter().map(|of| (of.task, of.worker));
    assert_eq!(world.runs_on(), tasks.collect());
    assert!(world.failures.is_empty());
}

/// Its sources had stopped for the change, and the change's last checkpoint passed for that of the drain: windows
/// stayed open.
#[test]
fn a_job_that_is_to_be_drained_while_it_is_divided_anew_drains_in_its_next_generation() {
    let mut world = dividing();
    complete_prepared(&mut world, 2);
    let generation = world.facts.generation;
    world.want(Desired::Drained);
    world.settle();
    assert_eq!(world.checkpointing, Checkpointing::CutOver { generation });
    cut_over(&mut world, 3);
    assert_eq!(world.facts.generation, generation.next());
    world.report(TaskState::Running);
    world.settle();
    let generation = world.facts.generation;
    assert_eq!(world.checkpointing, Checkpointing::Drain { generation });
}

#[test]
fn a_job_that_was_to_stop_drains_in_its_next_generation() {
    let mut world = World::new().run();
    world.complete_checkpoint(1);
    let generation = world.facts.generation;
    world.want(Desired::Stopped);
    world.settle();
    assert_eq!(world.checkpointing, Checkpointing::Final { generation });
    world.want(Desired::Drained);
    world.settle();
    world.report(TaskState::Running);
    world.settle();
    let next = generation.next();
    assert_eq!(
        world.checkpointing,
        Checkpointing::Drain { generation: next }
    );
}

#[test]
fn tasks_go_where_they_are_said_to_go_if_that_worker_is_there() {
    let workers = (1..=4).map(|id| (NodeId(id), room(u64::from(id), 4)));
    let mut world = World::with_workers(workers.collect()).run();
    world.complete_checkpoint(1);
    let runs: BTreeSet<NodeId> = world.runs_on().into_values().collect();
    let free = (1..=4).map(NodeId).find(|worker| !runs.contains(worker));
    let free = free.expect("it has two tasks");
    let mut wanted = wanted();
    for stage in [2, 3].map(StageId) {
        wanted.places.insert(TaskId { stage, index: 3 }, free);
    }
    world.facts.wanted = Some(wanted);
    world.metadata_changed();
    world.settle();
    let on = |world: &World, index| -> Vec<NodeId> {
        let tasks = next(world).tasks;
        let tasks = tasks.iter().filter(|of| of.task.index == index);
        tasks.map(|of| of.worker).collect()
    };
    assert_eq!(on(&world, 3), [free, free]);
    world.lose(free);
    world.settle();
    assert!(!on(&world, 3).contains(&free));
}

#[test]
fn one_that_prepares_and_is_lost_is_replaced_and_in_the_middle_of_a_cut_over_the_job_begins_again()
{
    let mut world = dividing();
    let runs: BTreeSet<NodeId> = world.runs_on().into_values().collect();
    let only_prepares = |world: &World| -> NodeId {
        let next = next(world);
        let workers = next.tasks.iter().map(|task| task.worker);
        let mut others = workers.filter(|worker| !runs.contains(worker));
        others
            .next()
            .expect("it has fewer tasks than there are workers")
    };
    let lost = only_prepares(&world);
    world.register(NodeId(5));
    world.lose(lost);
    world.settle();
    let prepared = next(&world);
    assert!(prepared.tasks.iter().all(|task| task.worker != lost));
    complete_prepared(&mut world, 2);
    assert!(world.facts.cutting_over);

    let (generation, lost) = (world.facts.generation, only_prepares(&world));
    world.lose(lost);
    world.settle();
    assert_eq!(world.facts.generation, generation.next());
    let task = prepared
        .tasks
        .iter()
        .find(|task| task.worker == lost)
        .unwrap()
        .task;
    let reason = format!("worker {lost}, where task {task} was prepared, is gone");
    world.expect(Recovering, &reason);
    assert!(world.facts.wanted.is_some(), "it is still wanted");
    assert_eq!(world.facts.shape, shape());
}

#[test]
fn a_cut_over_that_takes_too_long_is_given_up_and_the_job_goes_on_as_it_was() {
    let mut world = dividing();
    complete_prepared(&mut world, 2);
    let due = world.machine.wake_at().expect("it does not wait for ever");
    assert!(due <= world.now.plus(CUT_OVER_TIMEOUT));
    world.pass(CUT_OVER_TIMEOUT);
    world.settle();
    world.expect(Recovering, &world.facts.reason.clone());
    assert!(
        world.facts.reason.contains("was given up"),
        "{}",
        world.facts.reason
    );
    assert_eq!(
        (world.facts.wanted.clone(), &world.facts.shape),
        (None, &shape())
    );
    world.report(TaskState::Running);
    world.settle();
    let generation = world.facts.generation;
    assert_eq!(world.checkpointing, Checkpointing::Periodic { generation });
}

#[test]
fn a_new_coordinator_goes_on_with_a_cut_over() {
    let mut world = dividing();
    complete_prepared(&mut world, 2);
    let generation = world.facts.generation;
    world.machine = JobMachine::new(
        world.now,
        Settings::default(),
        world.facts.clone(),
        world.workers.clone(),
    );
    world.metadata_changed();
    assert_eq!(world.checkpointing, Checkpointing::CutOver { generation });
}

#[test]
fn what_has_no_state_yet_is_divided_at_once_and_what_has_no_room_says_what_it_lacks() {
    let mut world = World::new().run();
    world.facts.wanted = Some(wanted());
    world.metadata_changed();
    world.settle();
    assert_eq!(
        (world.facts.generation, world.runs_on().len()),
        (Generation(2), 8)
    );

    let workers = [(NodeId(1), room(1, 1)), (NodeId(2), room(2, 1))];
    let mut world = World::with_workers(workers.into()).run();
    world.complete_checkpoint(1);
    world.facts.wanted = Some(wanted());
    world.metadata_changed();
    world.settle();
    assert_eq!(world.facts.generation, Generation(1));
    let lacks = world.machine.undividable().expect("there is no room");
    assert_eq!(
        lacks.to_string(),
        "needs 4 slots, 2 are free: 2 more must come"
    );
}
