//! A job's life told as stories, and as properties.

use common::ids::{CheckpointId, Generation, NodeId, StageId, TaskId, WorkerEpoch};
use common::limits::CUT_OVER_TIMEOUT;
use common::protocol::job::JobState::*;
use common::protocol::task::TaskState;
use common::time::Span;
use proptest::prelude::*;

use super::facts::*;
use super::machine::*;
use super::test_world::{SESSION, World, cut_over, hold_all, room, shape};
use super::wishes::*;
use crate::metadata::jobs::{Desired, may_follow};

#[test]
fn a_new_job_is_deployed_and_runs_once_every_task_does() {
    let mut world = World::new();
    world.metadata_changed();
    world.settle();
    world.expect(Deploying, "");
    assert_eq!(world.facts.generation, Generation(1));
    assert_eq!(world.checkpointing, Checkpointing::Off);

    world.report_from(NodeId(1), &TaskState::Running);
    world.report_from(NodeId(2), &TaskState::Deploying);
    world.settle();
    world.expect(Deploying, "");

    world.report_from(NodeId(2), &TaskState::Running);
    world.settle();
    world.expect(Running, "");
    let generation = Generation(1);
    assert_eq!(world.checkpointing, Checkpointing::Periodic { generation });
}

#[test]
fn a_job_waits_for_slots_and_says_how_many() {
    let mut world = World::with_workers([(NodeId(1), room(1, 1))].into());
    world.metadata_changed();
    world.settle();
    world.expect(Waiting, "needs 2 slots, 1 are free: 1 more must come");
    let proposals = world.transitions.len();
    world.metadata_changed();
    assert_eq!(
        world.transitions.len(),
        proposals,
        "the same reason is not told twice"
    );
    world.register(NodeId(2));
    world.settle();
    world.expect(Deploying, "");
}

#[test]
fn a_lost_workers_tasks_go_on_at_their_standbys_and_others_stand_by() {
    let workers = [1, 2, 3].map(|id| (NodeId(id), room(u64::from(id), 2)));
    let mut world = World::with_workers(workers.into()).run();
    world.complete_checkpoint(3);
    hold_all(&mut world);
    let before = world.runs_on();
    // It runs the second instance and stands by for the first.
    let lost = before[&shape().tasks().last().unwrap()];
    world.lose(lost);
    world.settle();
    assert_eq!(world.facts.state, Recovering);
    world.report(TaskState::Running);
    world.settle();
    world.expect(Running, "");
    let running = world.facts.running.clone().unwrap();
    for (task, worker) in &running.worker_of {
        let stays = before[task] != lost;
        assert!(
            if stays {
                *worker == before[task]
            } else {
                *worker != lost
            },
            "task {task}"
        );
        // It may come back with what it has.
        let standbys = &running.standbys[task];
        assert!(!standbys.contains(worker));
        assert_eq!(standbys[..], [lost], "task {task}");
    }
    world.pass(Span::from_secs(10));
    world.settle();
    let running = world.facts.running.clone().unwrap();
    assert_eq!(running.standbys.len(), 4);
    for (task, standbys) in &running.standbys {
        assert!(!standbys.contains(&lost), "task {task}");
        assert!(!standbys.contains(&running.worker_of[task]));
    }
    assert_eq!(
        world.facts.generation,
        Generation(2),
        "nothing was started anew"
    );
}

#[test]
fn a_worker_that_is_drained_gives_up_its_tasks_once_others_hold_them() {
    let mut world = World::with_workers([(NodeId(1), room(1, 4)), (NodeId(2), room(2, 2))].into());
    world = world.run();
    world.complete_checkpoint(3);
    for room in world.workers.values_mut() {
        room.free_slots = 2;
    }
    world.workers.get_mut(&NodeId(1)).unwrap().draining = true;
    world.metadata_changed();
    world.settle();
    assert_eq!(
        world.facts.generation,
        Generation(1),
        "nobody else holds its state"
    );
    hold_all(&mut world);
    world.settle();
    // Everything up to a last checkpoint is done here.
    let generation = world.facts.generation;
    assert_eq!(world.checkpointing, Checkpointing::CutOver { generation });
    world.expect(Running, "");
    cut_over(&mut world, 5);
    world.expect(Deploying, "worker 1 is drained or quarantined");
    assert!(world.runs_on().values().all(|worker| *worker == NodeId(2)));
    assert!(world.failures.is_empty());
    world.report(TaskState::Running);
    world.settle();
    world.expect(Running, "");
}

#[test]
fn a_job_whose_last_checkpoint_before_a_move_does_not_come_or_is_not_needed_reads_on() {
    let moving = || {
        let workers = [(NodeId(1), room(1, 4)), (NodeId(2), room(2, 2))];
        let mut world = World::with_workers(workers.into()).run();
        world.complete_checkpoint(3);
        for room in world.workers.values_mut() {
            room.free_slots = 2;
        }
        hold_all(&mut world);
        world.workers.get_mut(&NodeId(1)).unwrap().draining = true;
        world.metadata_changed();
        world.settle();
        assert!(world.facts.cutting_over);
        world
    };
    let mut world = moving();
    let generation = world.facts.generation;
    world.pass(CUT_OVER_TIMEOUT);
    world.settle();
    assert_eq!(world.facts.generation, generation.next());

    // The worker is not to be emptied any more.
    let mut world = moving();
    world.workers.get_mut(&NodeId(1)).unwrap().draining = false;
    world.metadata_changed();
    cut_over(&mut world, 5);
    assert_eq!(world.facts.generation, generation.next());
    assert!(!world.facts.cutting_over);
}

/// It was waited for as a standby of the next generation, however long it had been gone.
#[test]
fn a_worker_that_was_gone_long_before_a_generation_began_does_not_stand_by() {
    let workers = [1, 2, 3].map(|id| (NodeId(id), room(u64::from(id), 2)));
    let mut world = World::with_workers(workers.into()).run();
    world.complete_checkpoint(3);
    hold_all(&mut world);
    world.want(Desired::Paused);
    world.settle();
    world.complete_checkpoint(5);
    hold_all(&mut world);
    let generation = world.facts.generation;
    world.tell(Event::FinalCheckpointCompleted { generation });
    world.report(TaskState::Finished);
    world.settle();
    world.expect(Paused, "");
    let holders = world.facts.holders.values().flatten();
    let lost = *holders.max().unwrap();
    world.lose(lost);
    world.pass(Span::from_secs(11));
    world.want(Desired::Running);
    world.settle();
    let running = world.facts.running.as_ref().unwrap();
    assert!(
        !running
            .standbys
            .values()
            .flatten()
            .any(|worker| *worker == lost)
    );
}

#[test]
fn a_worker_that_joins_stands_by() {
    let mut world = World::with_workers([(NodeId(1), room(1, 2))].into()).run();
    assert!(world.facts.running.as_ref().unwrap().standbys.is_empty());
    world.register(NodeId(2));
    world.settle();
    let running = world.facts.running.as_ref().unwrap();
    assert_eq!(running.standbys.len(), 4);
    assert_eq!(
        world.machine.team().workers[&NodeId(2)],
        world.workers[&NodeId(2)].epoch
    );
    assert_eq!(world.facts.generation, Generation(1));
}

#[test]
fn a_lost_worker_without_state_is_replaced_at_once() {
    let mut world = World::with_workers([(NodeId(1), room(1, 2)), (NodeId(2), room(2, 4))].into());
    world = world.run();
    world.lose(NodeId(1));
    world.settle();
    world.expect(Recovering, "worker 1 is gone");
    assert_eq!(world.facts.generation, Generation(2));
    world.report(TaskState::Running);
    world.settle();
    world.expect(Running, "");
    assert_eq!(world.failures, ["worker 1 is gone"]);
}

/// A checkpoint may be completed while a new generation is proposed, which was to begin with the one before.
#[test]
fn what_was_refused_is_proposed_again_at_once_if_the_facts_had_changed() {
    let mut world = World::with_workers([(NodeId(1), room(1, 2)), (NodeId(2), room(2, 4))].into());
    world = world.run();
    world.lose(NodeId(1));
    for completed in [4, 5] {
        let refused = world.proposal.take();
        assert!(
            matches!(refused, Some(Proposal::Start { .. })),
            "{refused:?}"
        );
        world.facts.completed = Some(CheckpointId(completed));
        world.metadata_changed();
        world.tell(Event::ProposalRejected);
    }
    assert!(world.proposal.take().is_some());
    world.metadata_changed();
    world.tell(Event::ProposalRejected);
    assert!(world.proposal.is_none(), "it would be refused again");
    world.pass(Span::from_secs(1));
    assert!(world.proposal.is_some());
}

#[test]
fn a_lost_worker_with_state_is_waited_for_and_its_next_life_gets_a_new_generation() {
    let mut world = World::new().run();
    world.complete_checkpoint(7);
    world.lose(NodeId(1));
    world.settle();
    world.expect(
        Waiting,
        "waits for worker 1, which holds the state of 2 tasks",
    );
    assert!(
        world.facts.running.is_none(),
        "the survivors have nothing to do"
    );
    world.register(NodeId(1));
    world.settle();
    world.expect(Recovering, "");
    assert_eq!(world.runs_on(), ran_last(&world.facts.holders));
}

#[test]
fn a_worker_that_is_back_before_it_was_missed_has_lost_its_tasks_all_the_same() {
    let mut world = World::new().run();
    world.complete_checkpoint(7);
    world.register(NodeId(2));
    world.settle();
    world.expect(Recovering, "worker 2 has started again");
    assert_eq!(world.facts.generation, Generation(2));
}

#[test]
fn a_task_that_was_there_and_is_missing_from_a_later_report_has_failed() {
    let mut world = World::new().run();
    let epoch = world.workers[&NodeId(1)].epoch;
    world.tell(Event::TasksReported {
        worker: NodeId(1),
        epoch,
        tasks: Vec::new(),
    });
    world.settle();
    world.expect(Recovering, "task 0.0 on worker 1 is gone");
}

#[test]
fn reports_of_other_generations_and_of_former_lives_say_nothing() {
    let mut world = World::new().run();
    let failed = TaskState::Failed {
        reason: "old".to_owned(),
        fatal: true,
    };
    let task = TaskId {
        stage: StageId(0),
        index: 0,
    };
    for (epoch, generation) in [(99, Generation(1)), (0, Generation(1))] {
        world.tell(Event::TasksReported {
            worker: NodeId(1),
            epoch: WorkerEpoch(epoch),
            tasks: vec![(generation, task, failed.clone())],
        });
    }
    world.settle();
    world.expect(Running, "");
}

#[test]
fn a_fatal_failure_fails_the_job_at_once_and_resuming_runs_it_again() {
    let mut world = World::new().run();
    world.fail_task("value \"x\" is not a BIGINT", true);
    world.settle();
    world.expect(Failed, "task 0.0 on worker 1: value \"x\" is not a BIGINT");
    assert!(world.facts.running.is_none());
    world.want(Desired::Running);
    world.settle();
    world.expect(Deploying, "");
}

#[test]
fn failures_pause_longer_and_longer_until_the_budget_is_spent() {
    let mut world = World::new().run();
    let mut pauses = Vec::new();
    while world.facts.state != Failed {
        world.report(TaskState::Running);
        world.settle();
        world.fail_task("out of luck", false);
        world.settle();
        let began = world.now;
        while world.facts.state == Recovering && world.facts.running.is_none() {
            let wake = world.machine.wake_at().expect("an end of the pause");
            world.pass(wake.since(world.now));
            world.settle();
        }
        pauses.push(world.now.since(began).0);
    }
    assert_eq!(
        pauses,
        [
            0, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000, 0
        ]
    );
    world.expect(
        Failed,
        "failed 11 times within 10m, the last time: task 0.0 on worker 1: out of luck",
    );
    assert_eq!(world.failures.len(), 11);
}

#[test]
fn failures_far_apart_never_spend_the_budget() {
    let mut world = World::new().run();
    for _ in 0..30 {
        world.pass(Span::from_secs(601));
        world.fail_task("now and then", false);
        world.settle();
        world.report(TaskState::Running);
        world.settle();
        world.expect(Running, "");
    }
}

#[test]
fn workers_lost_again_and_again_do_not_fail_a_job_that_gets_on_in_between() {
    let mut world = World::new().run();
    for checkpoint in 1..=40 {
        world.complete_checkpoint(checkpoint);
        world.register(NodeId(1));
        world.settle();
        world.report(TaskState::Running);
        world.settle();
        world.expect(Running, "");
    }
    assert_eq!(world.failures.len(), 40);
}

#[test]
fn a_generation_that_does_not_come_up_in_time_is_given_up() {
    let mut world = World::new();
    world.metadata_changed();
    world.settle();
    world.report_from(NodeId(1), &TaskState::Running);
    world.pass(Span::from_secs(29));
    world.settle();
    world.expect(Deploying, "");
    world.report_from(NodeId(2), &TaskState::Deploying);
    world.pass(Span::from_secs(1));
    world.settle();
    world.expect(Recovering, "not running after 30s: task 0.1, 1.1");
}

#[test]
fn pausing_takes_a_last_checkpoint_and_resuming_goes_on_from_it() {
    let mut world = World::new().run();
    world.want(Desired::Paused);
    world.settle();
    world.expect(Running, "");
    world.complete_final_checkpoint(5);
    world.expect(Paused, "");
    assert_eq!(world.checkpointing, Checkpointing::Off);
    world.pass(Span::from_secs(100));
    assert!(world.proposal.is_none());
    world.want(Desired::Running);
    world.settle();
    world.expect(Deploying, "");
    assert_eq!(world.runs_on(), ran_last(&world.facts.holders));
}

#[test]
fn a_pause_taken_back_before_it_was_reached_needs_a_new_generation() {
    let mut world = World::new().run();
    world.want(Desired::Paused);
    world.want(Desired::Running);
    world.settle();
    world.expect(Deploying, "");
    assert_eq!(
        world.facts.generation,
        Generation(2),
        "sources may have stopped reading"
    );
}

#[test]
fn a_failure_on_the_way_to_a_pause_pauses_at_the_checkpoint_before() {
    let mut world = World::new().run();
    world.complete_checkpoint(4);
    world.want(Desired::Paused);
    world.lose(NodeId(2));
    world.settle();
    world.expect(Paused, "worker 2 is gone");
}

#[test]
fn what_does_not_run_yet_is_paused_stopped_and_cancelled_at_once() {
    for (desired, state) in [
        (Desired::Paused, Paused),
        (Desired::Stopped, Stopped),
        (Desired::Cancelled, Cancelled),
    ] {
        let mut world = World::new();
        world.metadata_changed();
        world.settle();
        world.want(desired);
        world.settle();
        world.expect(state, "");

        let mut world = World::with_workers(Workers::new());
        world.metadata_changed();
        world.settle();
        world.want(desired);
        world.settle();
        world.expect(state, "");
    }
}

#[test]
fn a_job_whose_sources_have_all_ended_is_finished_by_a_last_checkpoint() {
    let mut world = World::new().run();
    world.report_from(NodeId(1), &TaskState::Exhausted);
    world.settle();
    let generation = Generation(1);
    assert_eq!(world.checkpointing, Checkpointing::Periodic { generation });
    world.report_from(NodeId(2), &TaskState::Exhausted);
    world.settle();
    world.expect(Running, "");
    world.complete_final_checkpoint(9);
    world.expect(Finished, "");
    world.want(Desired::Running);
    world.settle();
    world.expect(Finished, "");
}

#[test]
fn a_new_coordinator_leaves_a_running_job_alone() {
    let mut world = World::new().run();
    world.machine = JobMachine::new(
        world.now,
        Settings::default(),
        world.facts.clone(),
        world.workers.clone(),
    );
    world.checkpointing = Checkpointing::Off;
    let transitions = world.transitions.len();
    world.metadata_changed();
    world.pass(SESSION);
    world.report(TaskState::Running);
    world.pass(Span::from_secs(60));
    world.settle();
    assert_eq!(world.transitions.len(), transitions);
    let generation = Generation(1);
    assert_eq!(world.checkpointing, Checkpointing::Periodic { generation });
}

#[test]
fn a_new_coordinator_that_hears_nothing_of_a_task_starts_a_new_generation() {
    let mut world = World::new().run();
    world.machine = JobMachine::new(
        world.now,
        Settings::default(),
        world.facts.clone(),
        world.workers.clone(),
    );
    world.report_from(NodeId(1), &TaskState::Running);
    let wake = world.machine.wake_at().expect("a deadline");
    world.pass(wake.since(world.now));
    world.settle();
    world.expect(Recovering, "not running after 30s: task 0.1, 1.1");
}

#[test]
fn a_job_whose_life_is_over_can_only_be_left_alone() {
    use Wish::*;
    let wishes = |state| {
        [
            Desired::Running,
            Desired::Paused,
            Desired::Stopped,
            Desired::Drained,
            Desired::Cancelled,
        ]
        .map(|desired| wish(state, desired))
    };
    for state in [Created, Waiting, Deploying, Running, Recovering, Paused] {
        assert_eq!(wishes(state), [Granted; 5]);
    }
    for state in [Stopped, Failed] {
        assert_eq!(
            wishes(state),
            [Granted, Refused, Fulfilled, Fulfilled, Fulfilled]
        );
    }
    for state in [Finished, Cancelled] {
        assert_eq!(
            wishes(state),
            [Refused, Refused, Fulfilled, Fulfilled, Fulfilled]
        );
    }
}

#[test]
fn a_job_that_is_drained_recovers_drains_again_and_is_finished() {
    let mut world = World::new();
    world.metadata_changed();
    world.settle();
    world.report(TaskState::Running);
    world.settle();
    world.want(Desired::Drained);
    world.settle();
    let generation = world.facts.generation;
    assert_eq!(world.checkpointing, Checkpointing::Drain { generation });
    world.register(NodeId(1));
    world.settle();
    world.report(TaskState::Running);
    world.settle();
    assert!(
        world.facts.generation > generation,
        "what was undone is read again"
    );
    world.complete_final_checkpoint(7);
    world.settle();
    world.expect(Finished, "");
}

#[derive(Clone, Debug)]
enum Step {
    Report(u32, TaskState),
    Lose(u32),
    Register(u32),
    Want(Desired),
    Checkpoint,
    FinalCheckpoint,
    Pass(u64),
    /// The metadata catches up with the proposal in flight.
    Settle,
    Rebuild,
}

fn steps() -> impl Strategy<Value = Step> {
    let worker = 1_u32..3;
    let state = prop_oneof![
        4 => Just(TaskState::Running),
        1 => Just(TaskState::Deploying),
        2 => Just(TaskState::Exhausted),
        2 => Just(TaskState::Finished),
        1 => Just(TaskState::Failed { reason: "no".to_owned(), fatal: false }),
    ];
    let desired = prop_oneof![
        3 => Just(Desired::Running),
        2 => Just(Desired::Paused),
        1 => Just(Desired::Stopped),
        1 => Just(Desired::Drained),
    ];
    prop_oneof![
        6 => (worker.clone(), state).prop_map(|(worker, state)| Step::Report(worker, state)),
        1 => worker.clone().prop_map(Step::Lose),
        2 => worker.prop_map(Step::Register),
        2 => desired.prop_map(Step::Want),
        2 => Just(Step::Checkpoint),
        2 => Just(Step::FinalCheckpoint),
        2 => (0_u64..40_000).prop_map(Step::Pass),
        8 => Just(Step::Settle),
        1 => Just(Step::Rebuild),
    ]
}

impl World {
    fn take(&mut self, step: Step, checkpoint: u64) {
        match step {
            Step::Report(worker, state) => self.report_from(NodeId(worker), &state),
            Step::Lose(worker) => self.lose(NodeId(worker)),
            Step::Register(worker) => self.register(NodeId(worker)),
            Step::Want(desired) => self.want(desired),
            Step::Checkpoint => {
                if self.checkpointing != Checkpointing::Off && self.facts.running.is_some() {
                    self.complete_checkpoint(checkpoint);
                }
            }
            Step::FinalCheckpoint => {
                let generation = self.facts.generation;
                if self.wants_a_last_checkpoint() {
                    self.complete_checkpoint(checkpoint);
                    self.tell(Event::FinalCheckpointCompleted { generation });
                }
            }
            Step::Pass(milliseconds) => self.pass(Span(milliseconds)),
            Step::Settle => self.settle(),
            Step::Rebuild => {
                self.machine = JobMachine::new(
                    self.now,
                    Settings::default(),
                    self.facts.clone(),
                    self.workers.clone(),
                );
                self.proposal = None;
                self.checkpointing = Checkpointing::Off;
                self.metadata_changed();
            }
        }
    }

    /// Everything works from now on.
    fn heal(&mut self) {
        for worker in [NodeId(1), NodeId(2)] {
            self.register(worker);
        }
        for checkpoint in 1_000..1_020 {
            self.settle();
            self.report(TaskState::Running);
            self.settle();
            if self.wants_a_last_checkpoint() {
                self.complete_final_checkpoint(checkpoint);
            }
            if let Some(wake) = self.machine.wake_at()
                && self.facts.running.is_none()
            {
                self.pass(wake.since(self.now));
            }
        }
    }
}

proptest! {
    #[test]
    fn every_transition_is_legal_and_a_healed_job_comes_to_what_its_user_wants(
        steps in prop::collection::vec(steps(), 1..80),
    ) {
        let mut world = World::new();
        world.metadata_changed();
        let mut generation = Generation(0);
        for (step, checkpoint) in steps.into_iter().zip(1..) {
            world.take(step, checkpoint);
            prop_assert!(world.facts.generation >= generation);
            generation = world.facts.generation;
        }
        world.heal();
        for (from, to) in &world.transitions {
            prop_assert!(may_follow(*from, *to), "{from:?} -> {to:?}");
        }
        let reached = match world.facts.desired {
            Desired::Running => world.facts.state == Running,
            Desired::Drained => matches!(world.facts.state, Stopped | Failed | Finished),
            Desired::Paused => world.facts.state == Paused,
            Desired::Stopped => matches!(world.facts.state, Stopped | Failed | Finished),
            Desired::Cancelled => world.facts.state == Cancelled,
        };
        prop_assert!(reached, "wanted {:?}, is {:?}: {}", world.facts.desired, world.facts.state, world.facts.reason);
    }
}
