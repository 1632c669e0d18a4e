//! Alignment against a model that looks at whole histories, and the cases that have bitten others.

use common::ids::CheckpointId;
use common::time::Timestamp;
use proptest::prelude::*;

use super::input_gate::InputGate;
use super::message::{Barrier, Signal};

fn gate(channels: usize) -> InputGate {
    InputGate::new(channels, CheckpointId(0), Timestamp::MIN)
}

fn barrier(checkpoint: u64) -> Signal {
    Signal::Barrier(Barrier {
        checkpoint: CheckpointId(checkpoint),
        stop: false,
    })
}

fn watermark(ms: i64) -> Signal {
    Signal::Watermark(Timestamp(ms))
}

#[test]
fn a_channel_is_blocked_from_its_barrier_until_the_last_one_has_it() {
    let mut gate = gate(2);
    assert_eq!(gate.push(0, barrier(1)), None);
    assert!(!gate.may_read(0));
    assert!(gate.may_read(1));
    assert_eq!(gate.push(1, barrier(1)), Some(barrier(1)));
    assert!(gate.may_read(0) && gate.may_read(1));
}

#[test]
fn a_later_barrier_abandons_the_one_that_is_being_aligned() {
    let mut gate = gate(3);
    assert_eq!(gate.push(0, barrier(1)), None);
    // The coordinator died after it had injected 1 at one source only; its successor injects 5.
    assert_eq!(gate.push(1, barrier(5)), None);
    assert!(
        gate.may_read(0),
        "channel 0 must be read on to reach its barrier 5"
    );
    assert_eq!(gate.push(0, barrier(5)), None);
    assert_eq!(gate.push(2, barrier(5)), Some(barrier(5)));
}

#[test]
fn a_barrier_of_an_abandoned_or_sealed_checkpoint_is_dropped() {
    let mut gate = gate(2);
    gate.push(0, barrier(5));
    assert_eq!(gate.push(1, barrier(1)), None);
    assert!(gate.may_read(1));
    assert_eq!(gate.push(1, barrier(5)), Some(barrier(5)));
    assert_eq!(gate.push(0, barrier(5)), None);
    assert!(gate.may_read(0));
}

#[test]
fn a_stop_barrier_whose_checkpoint_came_to_nothing_is_followed_by_another() {
    let mut gate = gate(2);
    let stop = |checkpoint| {
        Signal::Barrier(Barrier {
            checkpoint: CheckpointId(checkpoint),
            stop: true,
        })
    };
    assert_eq!(gate.push(0, stop(1)), None);
    assert_eq!(gate.push(1, stop(1)), Some(stop(1)));
    // The next one also overtakes it where it was not delivered everywhere.
    assert_eq!(gate.push(0, stop(2)), None);
    assert_eq!(gate.push(1, stop(3)), None);
    assert_eq!(gate.push(0, stop(3)), Some(stop(3)));
}

#[test]
fn the_watermark_is_the_least_of_the_active_channels_and_never_falls() {
    let mut gate = gate(2);
    assert_eq!(gate.push(0, watermark(10)), None);
    assert_eq!(gate.push(1, watermark(5)), Some(watermark(5)));
    assert_eq!(gate.push(1, Signal::Idle), Some(watermark(10)));
    // Channel 1 wakes behind the others: what was said stays said.
    assert_eq!(gate.push(1, watermark(7)), None);
    assert_eq!(gate.push(0, watermark(20)), None);
    assert_eq!(gate.push(1, watermark(15)), Some(watermark(15)));
}

#[test]
fn all_idle_is_passed_on_once_and_waking_too() {
    let mut gate = gate(2);
    gate.push(0, watermark(10));
    gate.push(1, watermark(10));
    assert_eq!(gate.push(0, Signal::Idle), None);
    assert_eq!(gate.push(1, Signal::Idle), Some(Signal::Idle));
    assert_eq!(gate.push(1, Signal::Idle), None);
    assert_eq!(gate.push(0, Signal::Active), Some(Signal::Active));
}

#[test]
fn a_restored_gate_does_not_repeat_an_older_watermark() {
    let mut gate = InputGate::new(1, CheckpointId(7), Timestamp(100));
    assert_eq!(gate.push(0, watermark(50)), None);
    assert_eq!(gate.push(0, barrier(7)), None);
    assert_eq!(gate.push(0, watermark(101)), Some(watermark(101)));
}

proptest! {
    /// Every channel delivers its rows and some of the barriers in order; the last barrier is on all of
    /// them. However they interleave, the gate never deadlocks, and every checkpoint it releases cuts
    /// each channel exactly at that channel's barrier.
    #[test]
    fn every_released_checkpoint_is_a_consistent_cut_and_the_last_one_is_released(
        scripts in prop::collection::vec(prop::collection::vec(any::<bool>(), 8), 1..5),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
    ) {
        const LAST: u64 = 9;
        // Channel c carries barrier k+1 iff scripts[c][k]; a row follows each place.
        let queues: Vec<Vec<Option<u64>>> = scripts
            .iter()
            .map(|present| {
                let mut queue = Vec::new();
                for (k, present) in present.iter().enumerate() {
                    if *present {
                        queue.push(Some(k as u64 + 1));
                    }
                    queue.push(None);
                }
                queue.push(Some(LAST));
                queue
            })
            .collect();
        let mut gate = gate(queues.len());
        let mut read = vec![0; queues.len()];
        let mut released = Vec::new();
        let mut picks = order.into_iter();
        loop {
            let ready: Vec<usize> = (0..queues.len())
                .filter(|c| read[*c] < queues[*c].len() && gate.may_read(*c))
                .collect();
            if ready.is_empty() {
                break;
            }
            let channel = ready[picks.next().map_or(0, |pick| pick.index(ready.len()))];
            let item = queues[channel][read[channel]];
            read[channel] += 1;
            let Some(checkpoint) = item else { continue };
            if let Some(Signal::Barrier(Barrier { checkpoint, .. })) =
                gate.push(channel, barrier(checkpoint))
            {
                for (queue, read) in queues.iter().zip(&read) {
                    prop_assert_eq!(queue[*read - 1], Some(checkpoint.0), "not cut at its barrier");
                }
                released.push(checkpoint.0);
            }
        }
        prop_assert!(released.is_sorted());
        prop_assert_eq!(released.last(), Some(&LAST));
    }

    #[test]
    fn the_merged_watermark_never_exceeds_the_least_active_one_and_never_falls(
        steps in prop::collection::vec((0..3_usize, 0..4_u8, 0..100_i64), 0..100),
    ) {
        let mut gate = gate(3);
        let mut said = [i64::MIN; 3];
        let mut idle = [false; 3];
        let mut last = i64::MIN;
        for (channel, step, ms) in steps {
            let signal = match step {
                0 => { idle[channel] = true; Signal::Idle }
                1 => { idle[channel] = false; Signal::Active }
                _ => {
                    idle[channel] = false;
                    said[channel] = said[channel].max(ms);
                    watermark(ms)
                }
            };
            if let Some(Signal::Watermark(Timestamp(merged))) = gate.push(channel, signal) {
                prop_assert!(merged > last);
                let least = (0..3).filter(|c| !idle[*c]).map(|c| said[c]).min();
                prop_assert_eq!(Some(merged), least);
                last = merged;
            }
        }
    }
}
