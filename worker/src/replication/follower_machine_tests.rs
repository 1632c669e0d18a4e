//! When a follower asks and what it does with answers: stories, and whatever is lost or late.

use std::collections::BTreeMap;

use bytes::Bytes;
use common::ids::{LeaderEpoch, PartitionId, TopicId, TopicPartition};
use common::offset::Offset;
use common::protocol::replicate::{ReplicaNews, ReplicaPosition, Replicated, Verdict};
use common::time::{Span, Tick};
use proptest::prelude::*;
use uuid::Uuid;

use super::follower_machine::{Effect, FollowerMachine};

const NOW: Tick = Tick(1_000);
const EPOCH: LeaderEpoch = LeaderEpoch(4);

fn id(partition: u32) -> TopicPartition {
    TopicPartition {
        topic: TopicId(Uuid::nil()),
        partition: PartitionId(partition),
    }
}

fn at(partition: u32, log_end: i64) -> ReplicaPosition {
    ReplicaPosition {
        partition: id(partition),
        leader_epoch: EPOCH,
        log_end: Offset(log_end),
        last_epoch: None,
        durable: Offset(log_end),
        committed: Offset(0),
    }
}

fn following(partitions: u32) -> FollowerMachine {
    let mut machine = FollowerMachine::new(7);
    let replicas: BTreeMap<_, _> = (0..partitions).map(|p| (id(p), EPOCH)).collect();
    let effects = machine.follow(&replicas);
    assert_eq!(effects.len(), partitions as usize);
    assert_eq!(machine.follow(&replicas), []);
    machine
}

fn news(positions: &[ReplicaPosition]) -> Replicated {
    let news = positions.iter().map(|at| ReplicaNews {
        at: *at,
        verdict: Verdict::Continues {
            bytes: 1,
            committed: Offset(0),
        },
    });
    Replicated {
        news: news.collect(),
        batches: Bytes::from(vec![b'x'; positions.len()]),
    }
}

#[test]
fn one_call_stays_at_the_leader_and_the_next_takes_its_place() {
    let mut machine = following(2);
    assert_eq!(machine.next_call(NOW), None);
    machine.positioned(at(0, 5));
    let first = machine.next_call(NOW).unwrap();
    assert_eq!((first.session, first.number), (7, 0));
    assert_eq!(first.positions, [at(0, 5)]);
    assert_eq!(machine.next_call(NOW), None);
    machine.positioned(at(1, 3));
    let second = machine.next_call(NOW).unwrap();
    assert_eq!(second.number, 1);
    assert_eq!(second.positions, [at(1, 3)]);
    // The first comes back with nothing: the second is the one that waits.
    assert_eq!(machine.answered(NOW, 7, news(&[])), []);
    assert_eq!(machine.next_call(NOW), None);
    assert_eq!(machine.answered(NOW, 7, news(&[])), []);
    let third = machine.next_call(NOW).unwrap();
    assert!(third.positions.is_empty() && third.number == 2);
}

#[test]
fn a_replica_is_listed_again_only_when_its_log_has_what_it_was_given() {
    let mut machine = following(1);
    machine.positioned(at(0, 5));
    machine.next_call(NOW).unwrap();
    let effects = machine.answered(NOW, 7, news(&[at(0, 5)]));
    let [
        Effect::Apply {
            at: applied,
            batches,
            ..
        },
    ] = &effects[..]
    else {
        panic!("{effects:?}");
    };
    assert_eq!((*applied, &batches[..]), (at(0, 5), &b"x"[..]));
    assert_eq!(machine.next_call(NOW), None);
    machine.positioned(at(0, 6));
    assert_eq!(machine.next_call(NOW).unwrap().positions, [at(0, 6)]);
    // The same answer once more is one of the past.
    assert_eq!(machine.answered(NOW, 7, news(&[at(0, 5)])), []);
}

#[test]
fn after_a_failed_call_everything_is_said_again_in_another_session() {
    let mut machine = following(2);
    machine.positioned(at(0, 5));
    machine.next_call(NOW).unwrap();
    machine.positioned(at(1, 5));
    machine.next_call(NOW).unwrap();
    machine.failed(NOW, 7);
    assert_eq!(machine.next_call(NOW), None);
    let later = machine.next_wake().unwrap();
    let again = machine.next_call(later).unwrap();
    assert_eq!((again.session, again.number), (8, 0));
    assert_eq!(again.positions.len(), 2);
    // What the other call of the old session brings is of no interest, nor that it failed.
    assert_eq!(machine.answered(later, 7, news(&[at(0, 5)])), []);
    machine.failed(later, 7);
    assert_eq!(machine.session(), 8);
}

/// A pause that was over before the shell had set its timer had no timer, and its leader was asked no more.
#[test]
fn a_pause_that_is_over_is_waited_for_until_the_next_call() {
    let mut machine = following(1);
    machine.positioned(at(0, 5));
    machine.next_call(NOW).unwrap();
    machine.failed(NOW, 7);
    let over = machine.next_wake().unwrap();
    assert_eq!(machine.next_call(NOW), None);
    assert_eq!(machine.next_wake(), Some(over));
    assert!(machine.next_call(over.plus(Span::from_millis(1))).is_some());
    assert_eq!(machine.next_wake(), None);
}

#[test]
fn a_refused_replica_rests_and_is_asked_for_its_position_again() {
    let mut machine = following(1);
    machine.unpositioned(NOW, id(0), EPOCH);
    assert_eq!(machine.wake(NOW), []);
    let later = machine.next_wake().unwrap();
    assert_eq!(machine.wake(later).len(), 1);
    machine.positioned(at(0, 1));
    machine.next_call(later).unwrap();
    let refused = Replicated {
        news: vec![ReplicaNews {
            at: at(0, 1),
            verdict: Verdict::Refused {
                problem: common::error::Problem::new(common::error::ErrorCode::NotLeader, "no"),
            },
        }],
        batches: Bytes::new(),
    };
    assert_eq!(machine.answered(later, 7, refused), []);
    assert!(machine.next_wake().is_some());
    // In the next reign what was known of the last is forgotten.
    let next = BTreeMap::from([(id(0), LeaderEpoch(5))]);
    assert_eq!(machine.follow(&next).len(), 1);
    machine.positioned(at(0, 1));
    assert_eq!(machine.next_call(later), None);
}

#[derive(Clone, Debug)]
enum Step {
    Call,
    Answer(usize, bool),
    Fail(usize),
    Applied(u32),
    Time(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Call),
        3 => (0_usize..4, any::<bool>()).prop_map(|(call, all)| Step::Answer(call, all)),
        1 => (0_usize..4).prop_map(Step::Fail),
        3 => (0_u32..3).prop_map(Step::Applied),
        1 => (0_u64..200).prop_map(Step::Time),
    ]
}

proptest! {
    /// Whatever is lost or late: a replica is in one call or one change of its log at a time, what it is given
    /// fits to where its log is, and in the end everything is asked for again.
    #[test]
    fn no_replica_is_in_two_places(steps in prop::collection::vec(step(), 1..120)) {
        let mut machine = following(3);
        let mut logs = [0_i64; 3];
        let mut applying = [true; 3];
        let mut calls: Vec<(u64, Vec<ReplicaPosition>)> = Vec::new();
        let mut now = NOW;
        for step in steps {
            match step {
                Step::Call => {
                    if let Some(say) = machine.next_call(now) {
                        for position in &say.positions {
                            let listed = calls.iter().filter(|(session, _)| *session == say.session);
                            let twice = listed.flat_map(|(_, positions)| positions).any(|p| p == position);
                            prop_assert!(!twice);
                        }
                        calls.push((say.session, say.positions));
                    }
                }
                Step::Answer(call, all) if call < calls.len() => {
                    let (session, positions) = calls.remove(call);
                    let told = if all { &positions[..] } else { &[] };
                    if !all && session == machine.session() {
                        // There is no news of these yet: the session's next answer may have it.
                        match calls.iter_mut().find(|(other, _)| *other == session) {
                            Some((_, others)) => {
                                others.extend(&positions);
                                prop_assert_eq!(machine.answered(now, session, news(&[])), []);
                            }
                            None => calls.push((session, positions.clone())),
                        }
                        continue;
                    }
                    for effect in machine.answered(now, session, news(told)) {
                        let Effect::Apply { at, .. } = effect else { panic!("{effect:?}") };
                        let partition = at.partition.partition.0 as usize;
                        prop_assert!(!applying[partition]);
                        prop_assert_eq!(at.log_end.0, logs[partition]);
                        applying[partition] = true;
                        logs[partition] += 1;
                    }
                }
                Step::Fail(call) if call < calls.len() => {
                    let (session, _) = calls.remove(call);
                    machine.failed(now, session);
                }
                Step::Applied(partition) if applying[partition as usize] => {
                    applying[partition as usize] = false;
                    machine.positioned(at(partition, logs[partition as usize]));
                }
                Step::Answer(..) | Step::Fail(_) | Step::Applied(_) => {}
                Step::Time(passed) => now = now.plus(Span(passed)),
            }
        }
        for (session, _) in std::mem::take(&mut calls) {
            machine.failed(now, session);
        }
        for partition in 0..3 {
            if applying[partition as usize] {
                machine.positioned(at(partition, logs[partition as usize]));
            }
        }
        now = machine.next_wake().unwrap_or(now);
        let all: usize = machine.next_call(now).map_or(0, |say| say.positions.len());
        prop_assert_eq!(all, 3);
    }
}
