//! Checkpoints as stories, and as properties over lost, repeated and late messages.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{CheckpointId, Generation, NodeId, StageId, TaskId, WorkerEpoch};
use common::limits::CHECKPOINT_RESERVATION;
use common::protocol::checkpoint::{CheckpointKind, TaskCounts, TaskSnapshot};
use common::protocol::task::Standbys;
use common::time::{Span, Tick};
use proptest::prelude::*;

use super::history::Outcome;
use super::machine::*;
use super::permit::CommitPermit;

const INTERVAL: Span = Span::from_secs(1);
const TIMEOUT: Span = Span::from_secs(60);
const SESSION: Span = Span::from_secs(3);

fn task(stage: u16, index: u32) -> TaskId {
    TaskId {
        stage: StageId(stage),
        index,
    }
}

/// Sources 0.0 on worker 1 and 0.1 on worker 2; 1.0 on worker 3.
fn team() -> Team {
    Team {
        worker_of: [
            (task(0, 0), NodeId(1)),
            (task(0, 1), NodeId(2)),
            (task(1, 0), NodeId(3)),
        ]
        .into(),
        sources: [task(0, 0), task(0, 1)].into(),
        standbys: Standbys::new(),
        next: Standbys::new(),
        workers: [1, 2, 3]
            .map(|id| (NodeId(id), WorkerEpoch(u64::from(id))))
            .into(),
    }
}

fn snapshot(task: TaskId) -> TaskSnapshot {
    TaskSnapshot {
        task,
        delta_bytes: 10,
        state_bytes: 100,
        positions: match task.stage {
            StageId(0) => [(format!("split-{}", task.index), 7)].into(),
            _ => BTreeMap::new(),
        },
        counts: TaskCounts {
            rows_in: 5 + u64::from(task.index),
            ..TaskCounts::default()
        },
    }
}

struct World {
    now: Tick,
    machine: CheckpointMachine,
    generation: Generation,
    reserved: u64,
    injects: Vec<(NodeId, CheckpointId, CheckpointKind)>,
    permits: Vec<CommitPermit>,
    completed: Vec<(CheckpointId, CheckpointKind)>,
    aborted: Vec<(CheckpointId, String)>,
    reservations: usize,
}

impl World {
    fn idle() -> World {
        let settings = Settings {
            pace: Pace {
                interval: INTERVAL,
                timeout: TIMEOUT,
            },
            session_timeout: SESSION,
        };
        World {
            now: Tick(0),
            machine: CheckpointMachine::new(settings, CheckpointId(0), None, &BTreeMap::new()),
            generation: Generation(1),
            reserved: 0,
            injects: Vec::new(),
            permits: Vec::new(),
            completed: Vec::new(),
            aborted: Vec::new(),
            reservations: 0,
        }
    }

    fn running() -> World {
        let mut world = World::idle();
        world.run(false);
        world.reserve();
        world
    }

    fn tell(&mut self, event: Event) {
        for effect in self.machine.handle(self.now, event) {
            match effect {
                Effect::Reserve { generation } => {
                    assert_eq!(generation, self.generation);
                    self.reservations += 1;
                }
                Effect::Inject {
                    worker,
                    checkpoint,
                    kind,
                    ..
                } => self.injects.push((worker, checkpoint, kind)),
                Effect::Complete(permit) => self.permits.push(permit),
                Effect::Completed {
                    checkpoint, kind, ..
                } => self.completed.push((checkpoint, kind)),
                Effect::Aborted { checkpoint, reason } => self.aborted.push((checkpoint, reason)),
            }
        }
    }

    fn run(&mut self, stop: bool) {
        self.run_with(stop, Standbys::new());
    }

    fn run_with(&mut self, stop: bool, standbys: Standbys) {
        let lives = standbys.values().flatten();
        let lives = lives.map(|worker| (*worker, WorkerEpoch(u64::from(worker.0))));
        let mut team = team();
        team.workers.extend(lives);
        self.tell(Event::Run {
            generation: self.generation,
            team: Team { standbys, ..team },
            kind: match stop {
                true => CheckpointKind::Stop,
                false => CheckpointKind::Periodic,
            },
            completed: self.machine.completed(),
        });
    }

    fn reserve(&mut self) {
        let first = CheckpointId(self.reserved + 1);
        self.reserved += CHECKPOINT_RESERVATION;
        let last = CheckpointId(self.reserved);
        self.reservations -= 1;
        self.tell(Event::Reserved { first, last });
    }

    fn pass(&mut self, span: Span) {
        self.now = self.now.plus(span);
        self.tell(Event::TimePassed);
    }

    fn confirm(&mut self, checkpoint: u64) {
        for worker in [1, 2] {
            self.confirm_from(checkpoint, worker);
        }
    }

    fn confirm_from(&mut self, checkpoint: u64, worker: u32) {
        self.tell(Event::BarrierInjected {
            generation: self.generation,
            checkpoint: CheckpointId(checkpoint),
            worker: NodeId(worker),
        });
    }

    fn acknowledge(&mut self, checkpoint: u64, tasks: &[TaskId]) {
        for task in tasks {
            self.tell(Event::Acknowledged {
                worker: team().worker_of[task],
                generation: self.generation,
                checkpoint: CheckpointId(checkpoint),
                tasks: vec![snapshot(*task)],
            });
        }
    }

    fn acknowledge_all(&mut self, checkpoint: u64) {
        self.acknowledge(checkpoint, &[task(0, 0), task(0, 1), task(1, 0)]);
    }

    fn hold(&mut self, worker: u32, checkpoint: u64) {
        self.tell(Event::Held {
            worker: NodeId(worker),
            generation: self.generation,
            held: vec![(task(1, 0), CheckpointId(checkpoint))],
        });
    }

    fn settle(&mut self, completed: bool) {
        let permit = self.permits.pop().expect("something is proposed");
        self.tell(Event::Settled {
            checkpoint: permit.checkpoint(),
            completed: completed.then_some(()).ok_or_else(|| "refused".to_owned()),
        });
    }
}

const PERIODIC: CheckpointKind = CheckpointKind::Periodic;
const STOP: CheckpointKind = CheckpointKind::Stop;

#[test]
fn a_checkpoint_is_injected_acknowledged_proposed_and_completed() {
    let mut world = World::running();
    assert!(
        world.injects.is_empty(),
        "the first one waits for the interval"
    );
    world.pass(INTERVAL);
    let first = CheckpointId(1);
    assert_eq!(
        world.injects,
        [(NodeId(1), first, PERIODIC), (NodeId(2), first, PERIODIC)]
    );
    world.confirm(1);
    world.now = world.now.plus(Span(20));
    world.acknowledge(1, &[task(1, 0), task(0, 0)]);
    assert!(world.permits.is_empty(), "task 0.1 is missing");
    world.acknowledge(1, &[task(0, 1)]);
    let proven = world.permits[0].clone().into_proven();
    let alone = team().worker_of.into_iter();
    let alone = alone.map(|(task, worker)| (task, vec![worker])).collect();
    assert_eq!(proven.holders, alone);
    assert_eq!(proven.duration, Span(20));
    assert_eq!((proven.delta_bytes, proven.state_bytes), (30, 300));
    assert_eq!(proven.positions.len(), 2);
    let rows_in = |(task, counts): (&TaskId, &TaskCounts)| (*task, counts.rows_in);
    let counted: Vec<_> = proven.counts.iter().map(rows_in).collect();
    assert_eq!(counted, [(task(0, 0), 5), (task(0, 1), 6), (task(1, 0), 5)]);
    assert_eq!(proven.positions[&task(0, 1)]["split-1"], 7);
    assert!(world.completed.is_empty());
    world.settle(true);
    assert_eq!(world.completed, [(first, PERIODIC)]);
    assert_eq!(world.machine.completed(), Some(first));
}

#[test]
fn after_a_restore_numbers_go_on_above_the_restored_state_whatever_was_reserved_before() {
    let mut world = World::running();
    world.pass(INTERVAL);
    world.tell(Event::Halt);
    world.injects.clear();
    let restored = CheckpointId(world.reserved + 1);
    world.generation = world.generation.next();
    world.tell(Event::Run {
        generation: world.generation,
        team: team(),
        kind: PERIODIC,
        completed: Some(restored),
    });
    assert_eq!(world.machine.completed(), Some(restored));
    world.pass(INTERVAL);
    assert!(world.injects.is_empty(), "no number is left");
    // An answer that was under way when the job was at rest is of no use any more.
    world.tell(Event::Reserved {
        first: CheckpointId(2),
        last: CheckpointId(world.reserved),
    });
    world.pass(INTERVAL);
    assert!(world.injects.is_empty(), "these numbers are below it");
    world.reserved += 1;
    world.reservations = 1;
    world.reserve();
    let next = restored.next();
    assert_eq!(world.injects[0], (NodeId(1), next, PERIODIC));
    world.confirm(next.0);
    world.acknowledge_all(next.0);
    world.settle(true);
    assert_eq!(world.machine.completed(), Some(next));
}

/// Two standbys of task 1.0: one keeps up, the other is lost, replaced, and late.
#[test]
fn a_checkpoint_waits_for_standbys_that_keep_up_and_for_no_others() {
    let mut world = World::running();
    let standbys = |workers: &[u32]| -> Standbys {
        let workers = workers.iter().copied().map(NodeId).collect();
        [(task(1, 0), workers)].into()
    };
    let holders = |world: &World| {
        let proven = world.permits.last().unwrap().clone().into_proven();
        let holders = &proven.holders[&task(1, 0)];
        holders.iter().map(|worker| worker.0).collect::<Vec<_>>()
    };
    world.run_with(false, standbys(&[4, 5]));
    assert_eq!(
        world
            .machine
            .check(world.generation, NodeId(4), WorkerEpoch(4)),
        Ok(())
    );
    world.pass(INTERVAL);
    world.confirm(1);
    world.acknowledge_all(1);
    world.hold(4, 1);
    assert!(
        world.permits.is_empty(),
        "worker 5 has nothing to catch up with"
    );
    world.hold(5, 1);
    assert_eq!(holders(&world), [3, 4, 5]);
    world.settle(true);

    world.pass(INTERVAL);
    world.confirm(2);
    world.hold(4, 2);
    world.acknowledge_all(2);
    let wake = world.machine.wake_at().expect("an end of patience");
    assert!(world.permits.is_empty());
    world.pass(wake.since(world.now));
    while world.permits.is_empty() {
        let wake = world.machine.wake_at().expect("an end of patience");
        world.pass(wake.since(world.now));
    }
    assert_eq!(holders(&world), [3, 4], "worker 5 is late");
    world.settle(true);

    world.pass(INTERVAL);
    world.confirm(3);
    world.hold(4, 3);
    world.acknowledge_all(3);
    assert_eq!(
        holders(&world),
        [3, 4],
        "nobody waits for worker 5 any more"
    );
    world.settle(true);
    world.hold(5, 3);

    world.pass(INTERVAL);
    world.confirm(4);
    world.hold(4, 4);
    world.acknowledge_all(4);
    assert!(world.permits.is_empty(), "it keeps up again");
    // Worker 5 is gone for good, and another one begins from nothing.
    world.run_with(false, standbys(&[4, 6]));
    assert_eq!(holders(&world), [3, 4]);
}

/// The standby keeps up, and gets nothing any more from a worker that has just acknowledged.
#[test]
fn a_silent_worker_is_missed_before_its_standby_is_left_out() {
    let mut world = World::running();
    world.run_with(false, [(task(1, 0), vec![NodeId(4)])].into());
    world.pass(INTERVAL);
    world.confirm(1);
    world.acknowledge_all(1);
    world.hold(4, 1);
    world.settle(true);

    world.pass(INTERVAL);
    world.confirm(2);
    world.acknowledge_all(2);
    world.pass(SESSION);
    assert!(
        world.permits.is_empty(),
        "worker 3 would be its only holder"
    );
    world.tell(Event::Halt);
    assert_eq!(world.aborted[0].0, CheckpointId(2));
    assert!(world.permits.is_empty());
}

#[test]
fn a_checkpoint_that_only_waits_for_a_standby_is_not_given_up() {
    let mut world = World::running();
    world.run_with(false, [(task(1, 0), vec![NodeId(4)])].into());
    world.pass(INTERVAL);
    world.confirm(1);
    world.pass(Span(TIMEOUT.0 - 1));
    world.acknowledge_all(1);
    assert!(world.permits.is_empty());
    world.pass(Span(1));
    assert_eq!((world.permits.len(), world.aborted.len()), (1, 0));
}

#[test]
fn a_checkpoint_that_is_wanted_comes_at_once_but_not_on_the_heels_of_another() {
    let mut world = World::running();
    let wanted = |generation| Event::Wanted { generation };
    world.tell(wanted(Generation(9)));
    assert!(world.injects.is_empty(), "of another generation");
    world.tell(wanted(world.generation));
    assert_eq!(world.injects.len(), 2);
    world.confirm(1);
    world.acknowledge_all(1);
    world.settle(true);
    world.tell(wanted(world.generation));
    assert_eq!(world.injects.len(), 2, "the last one has just ended");
    world.pass(MIN_PAUSE);
    assert_eq!(world.injects.len(), 4);
    world.confirm(2);
    world.acknowledge_all(2);
    world.settle(true);
    world.pass(MIN_PAUSE);
    assert_eq!(world.injects.len(), 4, "nobody wants one");
    world.pass(INTERVAL);
    assert_eq!(world.injects.len(), 6);
}

#[test]
fn no_checkpoint_starts_before_its_number_is_reserved() {
    let mut world = World::idle();
    world.run(false);
    assert_eq!(world.reservations, 1);
    world.pass(INTERVAL);
    assert!(world.injects.is_empty());
    world.reserve();
    assert_eq!(world.injects.len(), 2);
}

#[test]
fn a_failed_reservation_is_tried_again_after_a_pause() {
    let mut world = World::idle();
    world.run(false);
    world.tell(Event::ReservationFailed);
    assert_eq!(world.reservations, 1);
    let wake = world.machine.wake_at().expect("another attempt");
    world.pass(wake.since(world.now));
    assert_eq!(world.reservations, 2);
}

#[test]
fn the_next_block_is_reserved_before_the_last_one_is_used_up() {
    let mut world = World::running();
    let mut given = 0;
    while world.reservations == 0 {
        world.pass(INTERVAL);
        given += 1;
        world.confirm(given);
        world.acknowledge_all(given);
        world.settle(true);
    }
    assert!(given < CHECKPOINT_RESERVATION);
    world.reserve();
    world.pass(INTERVAL);
    assert_eq!(world.injects.last().unwrap().1, CheckpointId(given + 1));
}

#[test]
fn a_new_coordinator_starts_above_every_reserved_number() {
    let mut world = World::idle();
    let settings = Settings {
        pace: Pace {
            interval: INTERVAL,
            timeout: TIMEOUT,
        },
        session_timeout: SESSION,
    };
    world.reserved = 1024;
    world.machine = CheckpointMachine::new(
        settings,
        CheckpointId(1024),
        Some(CheckpointId(3)),
        &BTreeMap::new(),
    );
    world.run(false);
    world.reserve();
    world.pass(INTERVAL);
    assert_eq!(world.injects[0].1, CheckpointId(1025));
}

/// The shell read the clock once to hand over an event, and again to set its timer: what came due in the
/// millisecond between was neither done nor waited for, and the job took no checkpoint any more.
#[test]
fn what_comes_due_while_effects_are_carried_out_is_still_waited_for() {
    let mut world = World::running();
    world.pass(Span(INTERVAL.0 - 1));
    assert!(world.injects.is_empty());
    world.now = world.now.plus(Span::from_millis(1));
    assert_eq!(world.machine.wake_at(), Some(world.now));
    world.pass(Span(0));
    assert_eq!(world.injects.len(), 2);
}

#[test]
fn an_unconfirmed_barrier_is_sent_again_to_that_worker_only() {
    let mut world = World::running();
    world.pass(INTERVAL);
    world.injects.clear();
    world.confirm_from(1, 1);
    let wake = world.machine.wake_at().expect("a repetition");
    assert_eq!(wake, world.now.plus(INJECT_AGAIN));
    world.pass(INJECT_AGAIN);
    assert_eq!(world.injects, [(NodeId(2), CheckpointId(1), PERIODIC)]);
}

#[test]
fn the_next_barrier_may_follow_while_the_last_checkpoint_is_written_but_not_before_it_is_everywhere()
 {
    let mut world = World::running();
    world.pass(INTERVAL);
    world.pass(INTERVAL);
    assert!(
        world
            .injects
            .iter()
            .all(|(_, checkpoint, _)| checkpoint.0 == 1)
    );
    world.confirm(1);
    assert_eq!(world.injects.last().unwrap().1, CheckpointId(2));
    world.confirm(2);
    world.pass(INTERVAL);
    assert_eq!(
        world.injects.last().unwrap().1,
        CheckpointId(2),
        "two are open"
    );
    world.acknowledge_all(2);
    world.settle(true);
    assert_eq!(
        world.completed,
        [(CheckpointId(2), PERIODIC)],
        "it covers the first"
    );
    let history = world.machine.history();
    assert_eq!(
        history.get(CheckpointId(1)).unwrap().outcome,
        Outcome::Subsumed
    );
    world.acknowledge_all(1);
    assert!(world.permits.is_empty());
}

#[test]
fn a_pause_lies_between_the_end_of_one_and_the_start_of_the_next() {
    let mut world = World::running();
    world.pass(INTERVAL);
    world.confirm(1);
    world.pass(INTERVAL);
    world.tell(Event::Declined {
        worker: NodeId(3),
        generation: Generation(1),
        checkpoint: CheckpointId(2),
        reason: "disk full".to_owned(),
    });
    world.acknowledge_all(1);
    world.settle(true);
    world.injects.clear();
    world.now = world.now.plus(INTERVAL);
    world.tell(Event::TimePassed);
    assert_eq!(world.injects.len(), 2);
    world.confirm(3);
    world.now = world.now.plus(Span(990));
    world.acknowledge_all(3);
    world.settle(true);
    world.injects.clear();
    world.pass(Span(49));
    assert!(world.injects.is_empty());
    world.pass(Span(1));
    assert_eq!(world.injects.len(), 2);
}

#[test]
fn a_declined_or_late_checkpoint_is_forgotten_and_its_number_never_used_again() {
    let mut world = World::running();
    world.pass(INTERVAL);
    world.confirm(1);
    world.tell(Event::Declined {
        worker: NodeId(3),
        generation: Generation(1),
        checkpoint: CheckpointId(1),
        reason: "disk full".to_owned(),
    });
    world.acknowledge_all(1);
    assert!(world.permits.is_empty());
    world.pass(INTERVAL);
    world.confirm(2);
    world.acknowledge(2, &[task(0, 0)]);
    world.pass(TIMEOUT);
    assert_eq!(
        world.aborted,
        [
            (
                CheckpointId(1),
                "declined by worker 3: disk full".to_owned()
            ),
            (
                CheckpointId(2),
                "not complete after 1m: waiting for task 0.1, task 1.0".to_owned()
            ),
        ]
    );
    world.pass(INTERVAL);
    assert_eq!(world.injects.last().unwrap().1, CheckpointId(3));
}

#[test]
fn what_is_proposed_is_not_given_up_before_its_outcome_is_known() {
    let mut world = World::running();
    world.pass(INTERVAL);
    world.confirm(1);
    world.acknowledge_all(1);
    world.pass(TIMEOUT);
    world.tell(Event::Declined {
        worker: NodeId(3),
        generation: Generation(1),
        checkpoint: CheckpointId(1),
        reason: "late".to_owned(),
    });
    assert!(world.aborted.is_empty());
    world.tell(Event::Halt);
    world.settle(true);
    assert_eq!(world.machine.completed(), Some(CheckpointId(1)));
}

#[test]
fn a_last_checkpoint_is_taken_at_once_again_until_it_completes_and_nothing_follows() {
    let mut world = World::running();
    world.run(true);
    assert_eq!(world.injects[0], (NodeId(1), CheckpointId(1), STOP));
    world.tell(Event::Declined {
        worker: NodeId(1),
        generation: Generation(1),
        checkpoint: CheckpointId(1),
        reason: "disk full".to_owned(),
    });
    world.pass(MIN_PAUSE);
    assert_eq!(
        world.injects.last().unwrap(),
        &(NodeId(2), CheckpointId(2), STOP)
    );
    world.confirm(2);
    world.acknowledge_all(2);
    world.settle(true);
    assert_eq!(world.completed, [(CheckpointId(2), STOP)]);
    let injects = world.injects.len();
    world.pass(Span::from_secs(600));
    assert_eq!(world.injects.len(), injects);
    assert_eq!(world.machine.wake_at(), None);
}

#[test]
fn messages_of_other_generations_and_of_former_lives_are_fenced() {
    let world = World::running();
    let check = |generation, worker, epoch| {
        let machine = &world.machine;
        machine.check(Generation(generation), NodeId(worker), WorkerEpoch(epoch))
    };
    assert_eq!(check(1, 3, 3), Ok(()));
    assert_eq!(check(0, 3, 3), Err(Fence::PastGeneration));
    assert_eq!(check(2, 3, 3), Err(Fence::FutureGeneration));
    assert_eq!(check(1, 3, 2), Err(Fence::WorkerEpoch));
    assert_eq!(check(1, 9, 3), Err(Fence::WorkerEpoch));
}

#[test]
fn a_task_is_acknowledged_only_by_the_worker_it_runs_on() {
    let mut world = World::running();
    world.pass(INTERVAL);
    world.confirm(1);
    world.acknowledge(1, &[task(0, 0), task(0, 1)]);
    world.tell(Event::Acknowledged {
        worker: NodeId(1),
        generation: Generation(1),
        checkpoint: CheckpointId(1),
        tasks: vec![snapshot(task(1, 0))],
    });
    assert!(world.permits.is_empty());
}

#[test]
fn a_new_generation_forgets_what_was_open() {
    let mut world = World::running();
    world.pass(INTERVAL);
    world.confirm(1);
    world.generation = Generation(2);
    world.run(false);
    assert_eq!(
        world.aborted,
        [(CheckpointId(1), "generation 1 ended".to_owned())]
    );
    world.acknowledge_all(1);
    assert!(world.permits.is_empty());
}

#[test]
fn a_new_generation_keeps_the_beat_of_checkpoints_but_reads_a_moment_first() {
    let mut world = World::running();
    world.pass(INTERVAL);
    world.confirm(1);
    world.acknowledge_all(1);
    world.settle(true);
    // Three quarters of the interval have gone.
    world.pass(Span(INTERVAL.0 * 3 / 4));
    world.generation = Generation(2);
    world.run(false);
    world.pass(Span(INTERVAL.0 / 4 - 1));
    assert_eq!(world.machine.last_given(), CheckpointId(1));
    world.pass(Span(1));
    assert_eq!(world.machine.last_given(), CheckpointId(2));
    // This one is lost, and the next had been due long ago.
    world.pass(Span(INTERVAL.0 * 3));
    world.generation = Generation(3);
    world.run(false);
    world.pass(Span(MIN_PAUSE.0 - 1));
    assert_eq!(world.machine.last_given(), CheckpointId(2));
    world.pass(Span(1));
    assert_eq!(world.machine.last_given(), CheckpointId(3));
}

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Reserve,
    Confirm { back: u64, worker: u32 },
    Acknowledge { back: u64, task: usize },
    Decline { back: u64 },
    Settle(bool),
    NewGeneration,
    Halt,
    Stop,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u64..2_000).prop_map(Step::Pass),
        2 => Just(Step::Reserve),
        8 => (0_u64..3, 1_u32..4).prop_map(|(back, worker)| Step::Confirm { back, worker }),
        16 => (0_u64..3, 0_usize..3).prop_map(|(back, task)| Step::Acknowledge { back, task }),
        1 => (0_u64..3).prop_map(|back| Step::Decline { back }),
        4 => prop_oneof![4 => Just(true), 1 => Just(false)].prop_map(Step::Settle),
        1 => Just(Step::NewGeneration),
        1 => Just(Step::Halt),
        1 => Just(Step::Stop),
    ]
}

/// What was acknowledged, kept beside the machine and in another way.
#[derive(Default)]
struct Witness {
    injected: BTreeMap<CheckpointId, Generation>,
    acknowledged: BTreeSet<(Generation, CheckpointId, TaskId)>,
}

impl World {
    fn take(&mut self, step: Step, witness: &mut Witness) {
        let newest = self
            .injects
            .iter()
            .map(|(_, id, _)| id.0)
            .max()
            .unwrap_or(0);
        match step {
            Step::Pass(milliseconds) => self.pass(Span(milliseconds)),
            Step::Reserve => {
                if self.reservations > 0 {
                    self.reserve();
                }
            }
            Step::Confirm { back, worker } => {
                self.confirm_from(newest.saturating_sub(back), worker);
            }
            Step::Acknowledge { back, task: number } => {
                let checkpoint = newest.saturating_sub(back);
                let tasks = [task(0, 0), task(0, 1), task(1, 0)];
                let acknowledged = (self.generation, CheckpointId(checkpoint), tasks[number]);
                witness.acknowledged.insert(acknowledged);
                self.acknowledge(checkpoint, &tasks[number..=number]);
            }
            Step::Decline { back } => self.tell(Event::Declined {
                worker: NodeId(1),
                generation: self.generation,
                checkpoint: CheckpointId(newest.saturating_sub(back)),
                reason: "no".to_owned(),
            }),
            Step::Settle(completed) => {
                if !self.permits.is_empty() {
                    self.settle(completed);
                }
            }
            Step::NewGeneration => {
                // The old generation's proposals are decided before the next one starts.
                while !self.permits.is_empty() {
                    self.settle(true);
                }
                self.generation = self.generation.next();
                self.run(false);
            }
            Step::Halt => self.tell(Event::Halt),
            Step::Stop => self.run(true),
        }
    }
}

proptest! {
    #[test]
    fn completed_checkpoints_grow_and_were_acknowledged_by_every_task(
        steps in prop::collection::vec(steps(), 1..200),
    ) {
        let mut world = World::running();
        let mut witness = Witness::default();
        let mut last = None;
        for step in steps {
            let permits = world.permits.len();
            let injects = world.injects.len();
            world.take(step, &mut witness);
            prop_assert!(world.permits.len() <= 1, "one is proposed at a time");
            for permit in world.permits.iter().skip(permits) {
                let proven = permit.clone().into_proven();
                for task in team().worker_of.keys() {
                    let seen = (proven.generation, proven.checkpoint, *task);
                    prop_assert!(witness.acknowledged.contains(&seen), "{seen:?} is missing");
                }
            }
            for (_, checkpoint, _) in &world.injects[injects..] {
                let generation = witness.injected.entry(*checkpoint).or_insert(world.generation);
                prop_assert_eq!(*generation, world.generation, "{} is used twice", checkpoint);
                prop_assert!(checkpoint.0 <= world.reserved);
            }
            let completed = world.machine.completed();
            prop_assert!(completed >= last);
            last = completed;
        }
        let grows = world.completed.windows(2).all(|pair| pair[0].0 < pair[1].0);
        prop_assert!(grows, "{:?}", world.completed);
    }

    #[test]
    fn whatever_happened_before_checkpoints_complete_once_workers_answer(
        steps in prop::collection::vec(steps(), 1..100),
    ) {
        let mut world = World::running();
        let mut witness = Witness::default();
        for step in steps {
            world.take(step, &mut witness);
        }
        world.take(Step::NewGeneration, &mut witness);
        let before = world.machine.completed();
        for _ in 0..4 {
            world.take(Step::Reserve, &mut witness);
            if let Some(wake) = world.machine.wake_at() {
                world.pass(wake.since(world.now));
            }
            let newest = world.injects.iter().map(|(_, id, _)| id.0).max().unwrap_or(0);
            world.confirm(newest);
            world.acknowledge_all(newest);
            while !world.permits.is_empty() {
                world.settle(true);
            }
        }
        prop_assert!(world.machine.completed() > before);
    }
}

/// A task of the next division, which worker 4 is to run and worker 5 to stand by for.
fn next() -> Standbys {
    [(task(2, 0), vec![NodeId(4), NodeId(5)])].into()
}

fn run_towards(world: &mut World, kind: CheckpointKind) {
    let mut team = team();
    team.workers
        .extend([4, 5].map(|id| (NodeId(id), WorkerEpoch(u64::from(id)))));
    world.tell(Event::Run {
        generation: world.generation,
        team: Team {
            next: next(),
            ..team
        },
        kind,
        completed: world.machine.completed(),
    });
}

fn prepare(world: &mut World, worker: u32, checkpoint: u64) {
    world.tell(Event::Held {
        worker: NodeId(worker),
        generation: world.generation,
        held: vec![(task(2, 0), CheckpointId(checkpoint))],
    });
}

#[test]
fn a_cut_over_is_complete_once_everything_is_where_it_is_to_run_and_not_before() {
    let mut world = World::running();
    run_towards(&mut world, PERIODIC);
    world.pass(INTERVAL);
    world.confirm(1);
    world.acknowledge_all(1);
    prepare(&mut world, 4, 1);
    prepare(&mut world, 5, 1);
    let holders = world.permits[0].clone().into_proven().holders;
    assert_eq!(holders[&task(2, 0)], [NodeId(4), NodeId(5)]);
    world.settle(true);

    run_towards(&mut world, CheckpointKind::CutOver);
    world.pass(MIN_PAUSE);
    world.confirm(2);
    world.acknowledge_all(2);
    prepare(&mut world, 5, 2);
    world.pass(TIMEOUT.min(Span(SESSION.0 * 4)));
    assert!(
        world.permits.is_empty(),
        "a standby is not enough, however long it takes"
    );
    prepare(&mut world, 4, 2);
    world.settle(true);
    assert_eq!(
        world.completed.last(),
        Some(&(CheckpointId(2), CheckpointKind::CutOver))
    );
    world.pass(INTERVAL);
    assert_eq!(
        world.machine.last_given(),
        CheckpointId(2),
        "nothing comes after it"
    );
}

#[test]
fn a_cut_over_that_is_never_prepared_is_given_up_like_any_checkpoint() {
    let mut world = World::running();
    run_towards(&mut world, CheckpointKind::CutOver);
    world.pass(INTERVAL);
    world.confirm(1);
    world.acknowledge_all(1);
    world.pass(TIMEOUT);
    let (_, reason) = world.aborted.last().expect("it is given up");
    assert!(
        reason.contains("the tasks of the next division"),
        "{reason}"
    );
}
