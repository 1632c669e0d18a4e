//! What followers are told and when: stories, and whatever is slow, given up or begun anew.

use std::collections::BTreeSet;

use bytes::Bytes;
use common::error::{ErrorCode, Problem};
use common::ids::{LeaderEpoch, NodeId, PartitionId, TopicId, TopicPartition, WorkerEpoch};
use common::offset::Offset;
use common::protocol::replicate::{ReplicaPosition, Replicate, Replicated, Verdict};
use common::time::{Span, Tick};
use proptest::prelude::*;
use uuid::Uuid;

use super::session_machine::{
    ANSWER_BYTES, CallId, Effect, Look, MAX_WAIT, REPLICA_BYTES, SESSION_OVER, SessionMachine,
    ToRead, WatchId,
};

const NOW: Tick = Tick(1_000);
const FOLLOWER: NodeId = NodeId(2);

type Machine = SessionMachine<&'static str>;
type Effects = Vec<Effect<&'static str>>;

fn at(partition: u32, log_end: i64) -> ReplicaPosition {
    ReplicaPosition {
        partition: TopicPartition {
            topic: TopicId(Uuid::nil()),
            partition: PartitionId(partition),
        },
        leader_epoch: LeaderEpoch(4),
        log_end: Offset(log_end),
        last_epoch: None,
        durable: Offset(log_end),
        committed: Offset(0),
    }
}

fn call(session: u64, number: u64, positions: &[ReplicaPosition]) -> Replicate {
    Replicate {
        from: FOLLOWER,
        from_epoch: WorkerEpoch(1),
        session,
        number,
        positions: positions.to_vec(),
        wait: Span::from_secs(1),
    }
}

fn continues(log_end: i64, committed: i64) -> Look<&'static str> {
    Look::Continues(ToRead {
        log: "the log",
        log_end: Offset(log_end),
        committed: Offset(committed),
    })
}

fn watch(effects: &Effects) -> WatchId {
    let watches = effects.iter().filter_map(|effect| match effect {
        Effect::Look { watch, .. } => Some(*watch),
        Effect::Read { .. } | Effect::Answer { .. } => None,
    });
    watches.last().unwrap_or_else(|| panic!("{effects:?}"))
}

fn answers(effects: Effects) -> Vec<(CallId, Replicated)> {
    let answers = effects.into_iter().filter_map(|effect| match effect {
        Effect::Answer { call, reply } => Some((call, reply)),
        Effect::Look { .. } | Effect::Read { .. } => None,
    });
    answers.collect()
}

fn batches(bytes: usize) -> Result<Bytes, Problem> {
    static LARGEST: [u8; REPLICA_BYTES + 1_000] = [b'x'; REPLICA_BYTES + 1_000];
    Ok(Bytes::from_static(&LARGEST[..bytes]))
}

#[test]
fn a_position_is_looked_at_until_there_is_news_and_then_told_once() {
    let mut machine = Machine::default();
    let (first, effects) = machine.called(NOW, call(1, 0, &[at(0, 5)])).unwrap();
    let watch = watch(&effects);
    let life = (FOLLOWER, WorkerEpoch(1));
    let look = Effect::Look {
        watch,
        life,
        at: at(0, 5),
    };
    assert_eq!(effects, std::slice::from_ref(&look));
    // Nothing new: it is looked at again.
    assert_eq!(
        machine.looked(NOW, watch, continues(5, 0)),
        std::slice::from_ref(&look)
    );
    let read = Effect::Read {
        watch,
        log: "the log",
        from: Offset(5),
        to: Offset(8),
    };
    assert_eq!(machine.looked(NOW, watch, continues(8, 3)), [read]);
    let told = answers(machine.read(NOW, watch, batches(7)));
    let [(answered, reply)] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(*answered, first);
    assert_eq!((reply.news[0].at, reply.batches.len()), (at(0, 5), 7));
    let verdict = Verdict::Continues {
        bytes: 7,
        committed: Offset(3),
    };
    assert_eq!(reply.news[0].verdict, verdict);
    // What else was on its way about this position comes too late.
    assert_eq!(machine.looked(NOW, watch, continues(9, 3)), []);
    assert_eq!(machine.read(NOW, watch, batches(1)), []);
}

#[test]
fn more_that_is_committed_is_news_by_itself() {
    let mut machine = Machine::default();
    let (_, effects) = machine.called(NOW, call(1, 0, &[at(0, 5)])).unwrap();
    let told = answers(machine.looked(NOW, watch(&effects), continues(5, 4)));
    let verdict = Verdict::Continues {
        bytes: 0,
        committed: Offset(4),
    };
    assert_eq!(told[0].1.news[0].verdict, verdict);
}

#[test]
fn a_later_call_takes_the_place_of_the_one_before_and_news_waits_for_the_next() {
    let mut machine = Machine::default();
    let (first, effects) = machine.called(NOW, call(1, 0, &[at(0, 5)])).unwrap();
    let of_first = watch(&effects);
    let (second, effects) = machine.called(NOW, call(1, 1, &[])).unwrap();
    let displaced = answers(effects);
    assert_eq!((displaced[0].0, displaced[0].1.news.len()), (first, 0));
    let until = machine.next_wake().unwrap();
    assert_eq!(until, NOW.plus(Span::from_secs(1)));
    let nothing = answers(machine.time_passed(until));
    assert_eq!((nothing[0].0, nothing[0].1.news.len()), (second, 0));
    let refused = Verdict::Refused {
        problem: Problem::new(ErrorCode::NotLeader, "no"),
    };
    assert_eq!(machine.looked(until, of_first, Look::Tell(refused)), []);
    let (third, effects) = machine.called(until, call(1, 2, &[])).unwrap();
    let told = answers(effects);
    assert_eq!((told[0].0, told[0].1.news.len()), (third, 1));
    assert!(!machine.is_asked_by(FOLLOWER));
}

#[test]
fn what_waits_to_be_taken_along_is_bounded_and_the_others_are_read_as_there_is_room() {
    let mut machine = Machine::default();
    let positions: Vec<ReplicaPosition> = (0..6).map(|partition| at(partition, 0)).collect();
    let (_, effects) = machine.called(NOW, call(1, 0, &positions)).unwrap();
    let watches: Vec<WatchId> = effects
        .iter()
        .map(|effect| watch(&vec![effect.clone()]))
        .collect();
    let read = |machine: &mut Machine, index: usize| {
        let effects = machine.looked(NOW, watches[index], continues(9, 0));
        matches!(effects[..], [Effect::Read { .. }])
    };
    let all: Vec<bool> = (0..6).map(|index| read(&mut machine, index)).collect();
    assert_eq!(all, [true, true, true, true, false, false]);
    // A small one gives back what it did not need, which is not enough for another.
    let told = machine.read(NOW, watches[0], batches(10));
    assert_eq!(
        (told.len(), answers(told).len()),
        (2, 1),
        "its call takes it along"
    );
    for watch in &watches[1..5] {
        assert_eq!(machine.read(NOW, *watch, batches(REPLICA_BYTES)), []);
    }
    let (_, effects) = machine.called(NOW, call(1, 1, &[])).unwrap();
    let reads = effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Read { .. }));
    assert_eq!(reads.count(), 1, "the last one has room now");
    let told = answers(effects);
    assert_eq!(told[0].1.batches.len(), ANSWER_BYTES);
}

#[test]
fn a_session_without_calls_is_over_and_one_that_begins_takes_its_place() {
    let mut machine = Machine::default();
    let (first, effects) = machine.called(NOW, call(1, 0, &[at(0, 5)])).unwrap();
    let old = watch(&effects);
    machine.gone(NOW, first);
    assert!(!machine.is_asked_by(FOLLOWER));
    let over = machine.next_wake().unwrap();
    assert_eq!(over, Tick(NOW.plus(SESSION_OVER).0 + 1));
    assert_eq!(machine.time_passed(over), []);
    assert_eq!(machine.next_wake(), None);
    assert_eq!(machine.looked(over, old, continues(9, 0)), []);

    let (second, effects) = machine.called(over, call(2, 0, &[at(0, 5)])).unwrap();
    let old = watch(&effects);
    let (_, effects) = machine.called(over, call(3, 0, &[])).unwrap();
    assert_eq!(answers(effects)[0].0, second);
    assert_eq!(machine.looked(over, old, continues(9, 0)), []);
}

#[test]
fn sessions_that_are_not_known_and_lives_that_have_ended_are_refused() {
    let mut machine = Machine::default();
    let code = |machine: &mut Machine, call| machine.called(NOW, call).unwrap_err().code;
    assert_eq!(code(&mut machine, call(1, 1, &[])), ErrorCode::Conflict);
    machine.called(NOW, call(1, 0, &[])).unwrap();
    machine.called(NOW, call(2, 0, &[])).unwrap();
    assert_eq!(code(&mut machine, call(1, 1, &[])), ErrorCode::Conflict);
    let next_life = Replicate {
        from_epoch: WorkerEpoch(2),
        ..call(3, 0, &[])
    };
    machine.called(NOW, next_life).unwrap();
    for number in [0, 1] {
        let ended = code(&mut machine, call(2, number, &[]));
        assert_eq!(ended, ErrorCode::FencedWorkerEpoch);
    }
}

/// A call that came again took along news, and its answer went nowhere.
#[test]
fn a_call_counts_once_in_whatever_order_calls_come() {
    let mut machine = Machine::default();
    let mut counts = |session, number| match machine.called(NOW, call(session, number, &[])) {
        Ok(_) => true,
        Err(problem) => {
            assert_eq!(problem.code, ErrorCode::Conflict);
            false
        }
    };
    assert!(!counts(1, 1), "it has not begun");
    let numbers = [0, 2, 1, 1, 0, 2, 5, 3, 4];
    let counted = numbers.map(|number| counts(1, number));
    let expected = [true, true, true, false, false, false, false, true, true];
    assert_eq!(counted, expected);
    assert!(counts(2, 0));
    assert!(!counts(1, 5));
}

/// Its positions were watched no more, and the follower never heard of them.
#[test]
fn a_call_to_a_session_that_is_over_is_refused() {
    for told in [true, false] {
        let mut machine = Machine::default();
        let (first, _) = machine.called(NOW, call(1, 0, &[at(0, 5)])).unwrap();
        machine.gone(NOW, first);
        let over = machine.next_wake().unwrap();
        if told {
            machine.time_passed(over);
        }
        for number in [0, 1] {
            let refused = machine.called(over, call(1, number, &[])).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Conflict);
        }
        machine.called(over, call(2, 0, &[])).unwrap();
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Call { begins: bool, positions: u32 },
    Gone,
    Looked(usize, i64),
    Read(usize, usize),
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (prop::bool::weighted(0.1), 0_u32..4)
            .prop_map(|(begins, positions)| Step::Call { begins, positions }),
        1 => Just(Step::Gone),
        4 => (any::<usize>(), 0_i64..3).prop_map(|(which, more)| Step::Looked(which, more)),
        4 => (any::<usize>(), 1_usize..REPLICA_BYTES + 1_000)
            .prop_map(|(which, bytes)| Step::Read(which, bytes)),
        2 => (0_u64..700).prop_map(Step::Time),
    ]
}

/// What the shell does, and what the follower has seen.
#[derive(Debug, Default)]
struct World {
    machine: Machine,
    looking: Vec<WatchId>,
    reading: Vec<WatchId>,
    calls: BTreeSet<CallId>,
    /// The positions of this session, and those there was news of.
    listed: BTreeSet<u32>,
    told: BTreeSet<u32>,
    session: u64,
    number: u64,
}

impl World {
    fn call(&mut self, now: Tick, begins: bool, new: &[u32]) {
        let positions: Vec<ReplicaPosition> =
            new.iter().map(|partition| at(*partition, 0)).collect();
        let goes_on = !begins && self.session > 0;
        let called = goes_on.then(|| {
            let call = call(self.session, self.number, &positions);
            self.machine.called(now, call)
        });
        let (call, effects, late) = match called {
            Some(Ok((call, effects))) => (call, effects, BTreeSet::new()),
            refused => {
                assert!(
                    refused.is_none() || self.calls.is_empty(),
                    "it cannot be over while a call waits"
                );
                self.session += 1;
                self.number = 0;
                self.listed.clear();
                self.told.clear();
                let first = call(self.session, 0, &positions);
                let (call, effects) = self.machine.called(now, first).unwrap();
                (call, effects, self.calls.clone())
            }
        };
        self.number += 1;
        self.listed.extend(new);
        self.calls.insert(call);
        self.run(effects, &late);
    }

    /// `late`: calls of another session.
    fn run(&mut self, effects: Effects, late: &BTreeSet<CallId>) {
        for effect in effects {
            match effect {
                Effect::Look { watch, .. } => self.looking.push(watch),
                Effect::Read { watch, .. } => self.reading.push(watch),
                Effect::Answer { call, reply } => {
                    assert!(self.calls.remove(&call), "a call is answered once");
                    assert!(reply.batches.len() <= ANSWER_BYTES + 1_000);
                    for (at, verdict, batches) in reply.into_each() {
                        let Verdict::Continues { bytes, .. } = verdict else {
                            panic!("{verdict:?}");
                        };
                        assert_eq!(bytes as usize, batches.len());
                        if !late.contains(&call) {
                            let partition = at.partition.partition.0;
                            assert!(self.listed.contains(&partition));
                            assert!(
                                self.told.insert(partition),
                                "of a position there is news once"
                            );
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    /// However looks, reads, calls and time fall: each call is answered once, each position has news once and,
    /// when everything was looked at and read, all have; what waits for a call is bounded.
    #[test]
    fn every_position_has_news_once(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::default();
        let mut now = NOW;
        let mut next = 0;
        for step in steps {
            match step {
                Step::Call { begins, positions } => {
                    let new: Vec<u32> = (next..next + positions).collect();
                    next += positions;
                    world.call(now, begins, &new);
                }
                Step::Gone => {
                    if let Some(call) = world.calls.pop_first() {
                        world.machine.gone(now, call);
                    }
                }
                Step::Looked(which, more) if !world.looking.is_empty() => {
                    let watch = world.looking.swap_remove(which % world.looking.len());
                    let effects = world.machine.looked(now, watch, continues(more, 0));
                    world.run(effects, &BTreeSet::new());
                }
                Step::Read(which, bytes) if !world.reading.is_empty() => {
                    let watch = world.reading.swap_remove(which % world.reading.len());
                    let effects = world.machine.read(now, watch, batches(bytes));
                    world.run(effects, &BTreeSet::new());
                }
                Step::Looked(..) | Step::Read(..) => {}
                Step::Time(passed) => {
                    now = now.plus(Span(passed));
                    let effects = world.machine.time_passed(now);
                    world.run(effects, &BTreeSet::new());
                    prop_assert!(world.machine.next_wake().is_none_or(|at| at > now));
                }
            }
            prop_assert!(world.calls.len() <= 1);
        }
        // Another session says everything, and asks until it has heard of all.
        let all: Vec<u32> = (1_000..1_009).collect();
        world.call(now, true, &all);
        while world.told.len() < all.len() {
            for watch in std::mem::take(&mut world.looking) {
                let effects = world.machine.looked(now, watch, continues(1, 0));
                world.run(effects, &BTreeSet::new());
            }
            for watch in std::mem::take(&mut world.reading) {
                let effects = world.machine.read(now, watch, batches(REPLICA_BYTES));
                world.run(effects, &BTreeSet::new());
            }
            now = now.plus(MAX_WAIT);
            let effects = world.machine.time_passed(now);
            world.run(effects, &BTreeSet::new());
            world.call(now, false, &[]);
        }
    }
}
