//! The faults of a world, drawn from its seed: of processes, between them, of their disks and clocks; and an end.

use common::random::{Random, below, coin, seeded};
use common::time::{Span, Tick};

use super::disk::Crash;
use super::network::Process;
use super::plan::{Plan, from_to};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends, and starts again after a while.
    Crash {
        process: Process,
        crash: Crash,
        down: Span,
    },
    /// The process ends, and starts again after a while with an empty disk.
    LoseDisk { process: Process, down: Span },
    /// A worker and the other workers do not hear each other for a while, or a coordinator and the others.
    Isolate { process: Process, lasts: Span },
    /// These do not hear each other for a while.
    Cut { a: Process, b: Process, lasts: Span },
    /// The process does nothing for a while, and then goes on as if nothing had been.
    Stop { process: Process, lasts: Span },
    /// Its wall clock is set wrong by so much.
    SetClock { process: Process, by_ms: i64 },
    /// Its disk takes its time for a while.
    SlowDisk { process: Process, lasts: Span },
    /// Nothing goes wrong from now on.
    Calm,
}

/// When what goes wrong, in order.
pub fn schedule(plan: &Plan) -> Vec<(Tick, Fault)> {
    let (faults, end) = all(plan);
    let numbered = (0..).zip(faults);
    let happening = numbered.filter(|(number, _)| !plan.without.contains(number));
    let calm = (end, Fault::Calm);
    happening.map(|(_, fault)| fault).chain([calm]).collect()
}

/// The numbers of the faults that happen.
pub fn happening(plan: &Plan) -> Vec<usize> {
    let all = 0..all(plan).0.len();
    all.filter(|number| !plan.without.contains(number))
        .collect()
}

/// What the seed draws, in order, and when there is an end.
fn all(plan: &Plan) -> (Vec<(Tick, Fault)>, Tick) {
    let mut random = seeded(plan.seed, 4);
    let mut at = Tick(from_to(&mut random, 500, 4_000));
    let mut faults = Vec::new();
    let kinds = plan.kinds;
    let some = kinds.workers || kinds.coordinator || kinds.cuts;
    for _ in 0..if some { plan.faults } else { 0 } {
        faults.push((at, draw(plan, &mut random)));
        let pause = from_to(&mut random, 10, plan.fault_every_ms);
        at = at.plus(Span(pause));
    }
    for _ in 0..plan.replicas.more_faults {
        faults.push((at, leaders_change(plan, &mut random)));
        at = at.plus(Span(from_to(&mut random, 10, 3_000)));
    }
    faults.extend(lost_disk(plan, at));
    faults.extend(mishaps(plan, at));
    faults.sort_by_key(|(at, _)| *at);
    (faults, at)
}

/// What happens besides, until the others end.
fn mishaps(plan: &Plan, end: Tick) -> Vec<(Tick, Fault)> {
    let mut random = seeded(plan.seed, 17);
    let random = &mut random;
    let mishaps = (0..plan.mishaps.count).map(|_| {
        let at = Tick(from_to(random, 500, end.0.max(10_000)));
        let process = match below(random, 3) {
            0 => some_coordinator(plan, random),
            _ => {
                let index = below(random, plan.workers as u64);
                Process::Worker(usize::try_from(index).expect("a few"))
            }
        };
        let lasts = match below(random, 3) {
            0 => Span(from_to(random, 1, 100)),
            1 => Span(from_to(random, 100, 2_000)),
            _ => Span(from_to(random, 2_000, 12_000)),
        };
        let fault = match below(random, 4) {
            0 | 1 => Fault::Stop { process, lasts },
            2 => Fault::SlowDisk { process, lasts },
            _ => Fault::SetClock {
                process,
                by_ms: wrong_by(random),
            },
        };
        (at, fault)
    });
    mishaps.collect()
}

/// Up to ten days ahead, or back by less than anything is kept: what is written then would be too old at once.
fn wrong_by(random: &mut Random) -> i64 {
    const HOUR: i64 = 3_600_000;
    let part = i64::try_from(from_to(random, 1, 1_000)).expect("a small number");
    match coin(random) {
        true => part * 240 * HOUR / 1_000,
        false => -(part * 144 * HOUR / 1_000),
    }
}

/// One worker of those that have a replica, and no more: two more have what it had.
fn lost_disk(plan: &Plan, end: Tick) -> Option<(Tick, Fault)> {
    let process = Process::Worker(plan.loses_disk()?);
    let mut random = seeded(plan.seed, 8);
    let loss = Fault::LoseDisk {
        process,
        down: Span(from_to(&mut random, 1, 6_000)),
    };
    Some((Tick(from_to(&mut random, 500, end.0)), loss))
}

/// What makes others lead, and logs go different ways.
fn leaders_change(plan: &Plan, random: &mut Random) -> Fault {
    let index = below(random, plan.workers as u64);
    let process = Process::Worker(usize::try_from(index).expect("a few"));
    match below(random, 4) {
        0 => Fault::Cut {
            a: process,
            b: some_coordinator(plan, random),
            lasts: Span(from_to(random, 1_000, 15_000)),
        },
        1 if plan.kinds.isolations => Fault::Isolate {
            process,
            lasts: Span(from_to(random, 50, 3_000)),
        },
        _ => Fault::Crash {
            process,
            crash: match plan.kinds.power && coin(random) {
                true => Crash::PowerLoss,
                false => Crash::Kill,
            },
            down: Span(from_to(random, 1, 3_000)),
        },
    }
}

/// Where there is only one, nothing is drawn.
fn some_coordinator(plan: &Plan, random: &mut Random) -> Process {
    let index = match plan.coordinators {
        1 => 0,
        several => below(random, several as u64),
    };
    Process::Coordinator(usize::try_from(index).expect("a few"))
}

fn draw(plan: &Plan, random: &mut Random) -> Fault {
    let kinds = plan.kinds;
    loop {
        let worker = |random: &mut Random| {
            let index = below(random, plan.workers as u64);
            Process::Worker(usize::try_from(index).expect("a few"))
        };
        let process = match below(random, 4) {
            0 if kinds.coordinator && plan.coordinators > 1 && below(random, 3) == 0 => {
                return Fault::Isolate {
                    process: some_coordinator(plan, random),
                    lasts: Span(from_to(random, 50, 6_000)),
                };
            }
            0 if kinds.coordinator => some_coordinator(plan, random),
            1 | 2 if kinds.workers => worker(random),
            3 if kinds.cuts => {
                let (a, b) = (worker(random), worker(random));
                let b = match a == b {
                    true => some_coordinator(plan, random),
                    false => b,
                };
                return Fault::Cut {
                    a,
                    b,
                    lasts: Span(from_to(random, 50, 6_000)),
                };
            }
            _ => continue,
        };
        return Fault::Crash {
            process,
            crash: match kinds.power && coin(random) {
                true => Crash::PowerLoss,
                false => Crash::Kill,
            },
            down: match below(random, 3) {
                0 => Span(from_to(random, 1, 50)),
                1 => Span(from_to(random, 50, 1_000)),
                _ => Span(from_to(random, 1_000, 6_000)),
            },
        };
    }
}
