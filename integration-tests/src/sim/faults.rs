//! The faults of a world, drawn from its seed: crashes of processes and cuts between them, and an end.

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
    /// These do not hear each other for a while.
    Cut { a: Process, b: Process, lasts: Span },
    /// Nothing goes wrong from now on.
    Calm,
}

/// When what goes wrong, in order.
pub fn schedule(plan: &Plan) -> Vec<(Tick, Fault)> {
    let mut random = seeded(plan.seed, 4);
    let mut at = Tick(from_to(&mut random, 500, 4_000));
    let mut faults = Vec::new();
    for _ in 0..plan.faults {
        faults.push((at, draw(plan, &mut random)));
        let pause = from_to(&mut random, 10, plan.fault_every_ms);
        at = at.plus(Span(pause));
    }
    faults.push((at, Fault::Calm));
    faults
}

fn draw(plan: &Plan, random: &mut Random) -> Fault {
    let kinds = plan.kinds;
    loop {
        let worker = |random: &mut Random| {
            let index = below(random, plan.workers as u64);
            Process::Worker(usize::try_from(index).expect("a few"))
        };
        let process = match below(random, 4) {
            0 if kinds.coordinator => Process::Coordinator,
            1 | 2 if kinds.workers => worker(random),
            3 if kinds.cuts => {
                let (a, b) = (worker(random), worker(random));
                return Fault::Cut {
                    a,
                    b: if a == b { Process::Coordinator } else { b },
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
