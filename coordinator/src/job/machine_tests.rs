//! A job's life told as stories against a small model of the metadata, and as properties.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{
    CheckpointId, Generation, MetadataVersion, NodeId, StageId, TaskId, WorkerEpoch,
};
use common::limits::CUT_OVER_TIMEOUT;
use common::protocol::job::JobState::{self, *};
use common::protocol::task::TaskState;
use common::time::{Span, Tick};
use proptest::prelude::*;

use super::facts::*;
use super::machine::*;
use super::wishes::*;
use crate::metadata::division::Dividing;
use crate::metadata::jobs::{Desired, may_follow};
use crate::placement::tasks::{JobShape, StageShape};

/// A job of two stages, two instances, on workers 1 and 2 with two slots each; and the metadata around
/// it, which applies every proposal that is of the current generation.
struct World {
    now: Tick,
    version: u64,
    facts: Facts,
    workers: Workers,
    machine: JobMachine,
    checkpointing: Checkpointing,
    /// What the machine proposed and the metadata has not seen yet.
    proposal: Option<Proposal>,
    transitions: Vec<(JobState, JobState)>,
    failures: Vec<String>,
}

const SESSION: Span = Span::from_secs(3);

fn shape() -> JobShape {
    let stage = |id, has_source| StageShape {
        id: StageId(id),
        parallelism: 2,
        has_state: true,
        has_source,
        custom: BTreeSet::new(),
    };
    JobShape {
        stages: vec![stage(0, true), stage(1, false)],
    }
}

fn room(epoch: u64, free_slots: u32) -> WorkerRoom {
    WorkerRoom {
        epoch: WorkerEpoch(epoch),
        draining: false,
        free_slots,
        operators: BTreeSet::new(),
        rack: None,
    }
}

impl World {
    fn new() -> World {
        World::with_workers([(NodeId(1), room(1, 2)), (NodeId(2), room(2, 2))].into())
    }

    fn with_workers(workers: Workers) -> World {
        let facts = Facts {
            shape: shape(),
            wanted: None,
            state: Created,
            reason: String::new(),
            desired: Desired::Running,
            generation: Generation(0),
            running: None,
            halting: false,
            cutting_over: false,
            completed: None,
            holders: BTreeMap::new(),
            restoring: false,
        };
        let machine = JobMachine::new(Tick(0), Settings::default(), facts.clone(), workers.clone());
        World {
            now: Tick(0),
            version: 10,
            facts,
            workers,
            machine,
            checkpointing: Checkpointing::Off,
            proposal: None,
            transitions: Vec::new(),
            failures: Vec::new(),
        }
    }

    fn tell(&mut self, event: Event) {
        for effect in self.machine.handle(self.now, event) {
            match effect {
                Effect::Propose(proposal) => {
                    assert!(self.proposal.is_none(), "a second proposal is in flight");
                    self.proposal = Some(proposal);
                }
                Effect::Checkpoint(checkpointing) => self.checkpointing = checkpointing,
            }
        }
    }

    fn metadata_changed(&mut self) {
        self.tell(Event::MetadataChanged {
            facts: self.facts.clone(),
            workers: self.workers.clone(),
        });
    }

    /// The metadata applies what is proposed, until nothing is.
    fn settle(&mut self) {
        while let Some(proposal) = self.proposal.take() {
            self.apply(proposal);
            self.metadata_changed();
            self.tell(Event::ProposalApplied);
        }
    }

    fn apply(&mut self, proposal: Proposal) {
        self.version += 1;
        match proposal {
            Proposal::Start {
                generation,
                dividing,
                tasks,
                standbys,
                state,
                reason,
                failure,
            } if generation == self.facts.generation => {
                self.enter(state, reason, failure);
                self.facts.generation = generation.next();
                self.facts.halting = false;
                self.facts.running = Some(RunningTasks {
                    version: MetadataVersion(self.version),
                    worker_of: tasks.iter().map(|a| (a.task, a.worker)).collect(),
                    standbys,
                    next: None,
                });
                self.facts.cutting_over = false;
                match dividing {
                    Dividing::AsBefore => {}
                    Dividing::GivenUp => self.facts.wanted = None,
                    Dividing::Anew => {
                        let wanted = self.facts.wanted.take();
                        self.facts.shape = wanted.expect("it is wanted").shape;
                    }
                }
            }
            Proposal::Halt {
                generation,
                state,
                reason,
                failure,
            } if generation == self.facts.generation => {
                self.enter(state, reason, failure);
                if self.facts.running.take().is_some() {
                    self.facts.generation = generation.next();
                }
                self.facts.halting = false;
                if state.is_terminal() {
                    self.facts.desired = Desired::Stopped;
                }
            }
            Proposal::Run { generation } if generation == self.facts.generation => {
                self.enter(Running, String::new(), None);
            }
            Proposal::StandBy {
                generation,
                standbys,
            } if generation == self.facts.generation => {
                let running = self.facts.running.as_mut().expect("something runs");
                running.standbys = standbys;
            }
            Proposal::Prepare {
                generation,
                next,
                standbys,
            } if generation == self.facts.generation => {
                let running = self.facts.running.as_mut().expect("something runs");
                running.standbys = standbys;
                running.next = Some(next);
            }
            Proposal::CutOver { generation } if generation == self.facts.generation => {
                self.facts.cutting_over = true;
            }
            Proposal::Start { .. }
            | Proposal::Halt { .. }
            | Proposal::Run { .. }
            | Proposal::StandBy { .. }
            | Proposal::Prepare { .. }
            | Proposal::CutOver { .. } => {}
        }
    }

    fn enter(&mut self, state: JobState, reason: String, failure: Option<String>) {
        self.transitions.push((self.facts.state, state));
        self.facts.state = state;
        self.facts.reason = reason;
        self.failures.extend(failure);
    }

    fn want(&mut self, desired: Desired) {
        if wish(self.facts.state, desired) != Wish::Granted {
            return;
        }
        let was_told = self.facts.desired != Desired::Running && self.facts.desired != desired;
        self.facts.halting |= self.facts.running.is_some() && was_told;
        self.facts.desired = desired;
        self.metadata_changed();
    }

    fn report_from(&mut self, worker: NodeId, state: &TaskState) {
        let (Some(running), Some(room)) = (&self.facts.running, self.workers.get(&worker)) else {
            return;
        };
        // A process that was registered after the generation began runs none of its tasks.
        let lives = room.epoch.0 < running.version.0;
        let epoch = room.epoch;
        let here = running.worker_of.iter();
        let here = here.filter(|(_, assigned)| lives && **assigned == worker);
        let tasks = here.map(|(task, _)| (self.facts.generation, *task, state.clone()));
        let tasks = tasks.collect();
        self.tell(Event::TasksReported {
            worker,
            epoch,
            tasks,
        });
    }

    fn report(&mut self, state: TaskState) {
        for worker in self.workers.clone().into_keys() {
            self.report_from(worker, &state);
        }
    }

    fn fail_task(&mut self, reason: &str, fatal: bool) {
        let failed = TaskState::Failed {
            reason: reason.to_owned(),
            fatal,
        };
        self.report_from(NodeId(1), &failed);
    }

    fn complete_checkpoint(&mut self, checkpoint: u64) {
        let running = self.facts.running.as_ref().expect("a generation runs");
        self.facts.completed = Some(CheckpointId(checkpoint));
        let own = running.worker_of.iter();
        let alone = own.map(|(task, worker)| (*task, vec![*worker]));
        self.facts.holders = alone.collect();
        self.metadata_changed();
    }

    fn runs_on(&self) -> BTreeMap<TaskId, NodeId> {
        let running = self.facts.running.as_ref().expect("a generation runs");
        running.worker_of.clone()
    }

    fn complete_final_checkpoint(&mut self, checkpoint: u64) {
        let generation = self.facts.generation;
        assert!(self.wants_a_last_checkpoint());
        self.complete_checkpoint(checkpoint);
        self.tell(Event::FinalCheckpointCompleted { generation });
        self.settle();
        assert!(self.facts.running.is_some(), "sinks may not be done");
        self.report(TaskState::Finished);
        self.settle();
    }

    fn wants_a_last_checkpoint(&self) -> bool {
        let generation = self.facts.generation;
        self.checkpointing == Checkpointing::Final { generation }
            || self.checkpointing == Checkpointing::Drain { generation }
    }

    fn lose(&mut self, worker: NodeId) {
        self.workers.remove(&worker);
        self.metadata_changed();
    }

    fn register(&mut self, worker: NodeId) {
        self.version += 1;
        self.workers.insert(worker, room(self.version, 2));
        self.metadata_changed();
    }

    fn pass(&mut self, span: Span) {
        self.now = self.now.plus(span);
        self.tell(Event::TimePassed);
    }

    fn run(mut self) -> World {
        self.metadata_changed();
        self.settle();
        self.report(TaskState::Running);
        self.settle();
        self.expect(Running, "");
        self
    }

    fn expect(&self, state: JobState, reason: &str) {
        assert_eq!(
            (self.facts.state, self.facts.reason.as_str()),
            (state, reason)
        );
    }
}

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

/// Who has each task's state: the worker it runs on and its standbys.
fn hold_all(world: &mut World) {
    let running = world.facts.running.clone().unwrap();
    let held = running.worker_of.iter().map(|(task, worker)| {
        let standbys = running.standbys.get(task).into_iter().flatten();
        (
            *task,
            std::iter::once(worker).chain(standbys).copied().collect(),
        )
    });
    world.facts.holders = held.collect();
    world.metadata_changed();
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

/// The last checkpoint is complete, all have it, and what belongs to it is visible.
fn cut_over(world: &mut World, checkpoint: u64) {
    let generation = world.facts.generation;
    world.complete_checkpoint(checkpoint);
    hold_all(world);
    world.tell(Event::FinalCheckpointCompleted { generation });
    world.settle();
    world.report(TaskState::Finished);
    world.settle();
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
