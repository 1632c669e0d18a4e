//! A world as a line of text, `seed=7 workers=2 without=3,5`: its seed, and where it is not what that draws.
//!
//! A world that was made smaller is run again from such a line, and a test of a past failure keeps one.

use std::collections::BTreeSet;

use common::time::Span;

use super::plan::Plan;

/// A number of a plan, by its name.
#[derive(Clone, Copy, Debug)]
pub struct Knob {
    pub name: &'static str,
    /// How small it may be made. `None`: smaller is not simpler.
    pub least: Option<u64>,
    pub get: fn(&Plan) -> u64,
    pub set: fn(&mut Plan, u64),
}

/// All that makes a world large or rough, what takes most away first.
pub const KNOBS: [Knob; 35] = [
    knob("faults", 0, |p| p.faults, |p, n| p.faults = n),
    knob(
        "more_faults",
        0,
        |p| p.replicas.more_faults,
        |p, n| p.replicas.more_faults = n,
    ),
    knob(
        "mishaps",
        0,
        |p| p.mishaps.count,
        |p, n| p.mishaps.count = n,
    ),
    knob(
        "drift_permille",
        0,
        |p| p.mishaps.drift_permille,
        |p, n| p.mishaps.drift_permille = n,
    ),
    knob(
        "clicks",
        1,
        |p| p.clicks_per_partition,
        |p, n| p.clicks_per_partition = n,
    ),
    knob(
        "workers",
        1,
        |p| p.workers as u64,
        |p, n| p.workers = size(n),
    ),
    knob(
        "coordinators",
        1,
        |p| p.coordinators as u64,
        |p, n| p.coordinators = size(n),
    ),
    knob(
        "click_partitions",
        1,
        |p| p.click_partitions.into(),
        |p, n| p.click_partitions = small(n),
    ),
    knob(
        "tally_partitions",
        1,
        |p| p.tally_partitions.into(),
        |p, n| p.tally_partitions = small(n),
    ),
    knob(
        "sources",
        1,
        |p| p.sources.into(),
        |p, n| p.sources = small(n),
    ),
    knob(
        "operators",
        1,
        |p| p.operators.into(),
        |p, n| p.operators = small(n),
    ),
    knob("keys", 1, |p| p.keys, |p, n| p.keys = n),
    knob(
        "loses_disk",
        0,
        |p| p.replicas.loses_disk.into(),
        |p, n| p.replicas.loses_disk = n > 0,
    ),
    knob(
        "moves",
        0,
        |p| p.replicas.moves,
        |p, n| p.replicas.moves = n,
    ),
    knob("rescales", 0, |p| p.rescales, |p, n| p.rescales = n),
    knob(
        "standbys",
        0,
        |p| p.standbys.count.into(),
        |p, n| p.standbys.count = small(n),
    ),
    knob(
        "loser_works",
        0,
        |p| p.standbys.loser_works.into(),
        |p, n| p.standbys.loser_works = n > 0,
    ),
    knob(
        "click_copies",
        1,
        |p| p.replicas.clicks.into(),
        |p, n| p.replicas.clicks = small(n),
    ),
    knob(
        "tally_copies",
        1,
        |p| p.replicas.tallies.into(),
        |p, n| p.replicas.tallies = small(n),
    ),
    knob(
        "click_copies_enough",
        1,
        |p| p.replicas.clicks_enough.into(),
        |p, n| p.replicas.clicks_enough = small(n),
    ),
    knob(
        "tally_copies_enough",
        1,
        |p| p.replicas.tallies_enough.into(),
        |p, n| p.replicas.tallies_enough = small(n),
    ),
    knob(
        "in_memory",
        0,
        |p| p.replicas.in_memory.into(),
        |p, n| p.replicas.in_memory = n > 0,
    ),
    knob(
        "coordinator_faults",
        0,
        |p| p.kinds.coordinator.into(),
        |p, n| p.kinds.coordinator = n > 0,
    ),
    knob(
        "cuts",
        0,
        |p| p.kinds.cuts.into(),
        |p, n| p.kinds.cuts = n > 0,
    ),
    knob(
        "isolations",
        0,
        |p| p.kinds.isolations.into(),
        |p, n| p.kinds.isolations = n > 0,
    ),
    knob("drain", 0, |p| p.drain.into(), |p, n| p.drain = n > 0),
    knob(
        "lost_permille",
        0,
        |p| p.weather.lost_permille,
        |p, n| p.weather.lost_permille = n,
    ),
    knob(
        "twice_permille",
        0,
        |p| p.weather.twice_permille,
        |p, n| p.weather.twice_permille = n,
    ),
    knob(
        "slow_permille",
        0,
        |p| p.weather.slow_permille,
        |p, n| p.weather.slow_permille = n,
    ),
    knob(
        "delay_ms",
        1,
        |p| p.weather.delay_ms,
        |p, n| p.weather.delay_ms = n,
    ),
    // Zero: tables have all the memory they want.
    knob(
        "table_bytes",
        0,
        |p| p.store.table_bytes.unwrap_or_default(),
        |p, n| p.store.table_bytes = (n > 0).then_some(n),
    ),
    Knob {
        name: "batch",
        least: None,
        get: |p| p.batch,
        set: |p, n| p.batch = n,
    },
    Knob {
        name: "produce_every_ms",
        least: None,
        get: |p| p.produce_every_ms,
        set: |p, n| p.produce_every_ms = n,
    },
    Knob {
        name: "fault_every_ms",
        least: None,
        get: |p| p.fault_every_ms,
        set: |p, n| p.fault_every_ms = n,
    },
    Knob {
        name: "checkpoint_timeout_ms",
        least: None,
        get: |p| p.checkpoint_timeout.0,
        set: |p, n| p.checkpoint_timeout = Span(n),
    },
];

const fn knob(
    name: &'static str,
    least: u64,
    get: fn(&Plan) -> u64,
    set: fn(&mut Plan, u64),
) -> Knob {
    Knob {
        name,
        least: Some(least),
        get,
        set,
    }
}

/// What has to be said of a world for it to be drawn again.
pub fn describe(plan: &Plan) -> String {
    let drawn = Plan::draw(plan.seed);
    let mut words = vec![format!("seed={}", plan.seed)];
    let differ = KNOBS
        .iter()
        .filter(|knob| (knob.get)(plan) != (knob.get)(&drawn));
    words.extend(differ.map(|knob| format!("{}={}", knob.name, (knob.get)(plan))));
    if !plan.without.is_empty() {
        let numbers: Vec<String> = plan.without.iter().map(usize::to_string).collect();
        words.push(format!("without={}", numbers.join(",")));
    }
    words.join(" ")
}

/// The world that was described. Panics where the text makes no sense: its reader is who wrote it.
pub fn read(text: &str) -> Plan {
    let words = text.split_whitespace().map(|word| {
        let (name, value) = word.split_once('=').expect("a word is name=value");
        (name, value)
    });
    let mut words = words.peekable();
    let number = |value: &str| -> u64 { value.parse().expect("the value is a number") };
    let (first, seed) = words.next().expect("it begins with its seed");
    assert_eq!(first, "seed", "it begins with its seed");
    let mut plan = Plan::draw(number(seed));
    for (name, value) in words {
        if name == "without" {
            let numbers = value.split(',').map(|value| size(number(value)));
            plan.without = numbers.collect::<BTreeSet<usize>>();
            continue;
        }
        let knob = KNOBS.iter().find(|knob| knob.name == name);
        let knob = knob.unwrap_or_else(|| panic!("no world has a \"{name}\""));
        (knob.set)(&mut plan, number(value));
    }
    plan
}

fn small(number: u64) -> u32 {
    u32::try_from(number).expect("a few")
}

fn size(number: u64) -> usize {
    usize::try_from(number).expect("a few")
}
