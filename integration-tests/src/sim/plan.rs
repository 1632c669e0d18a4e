//! What a seed makes of a world: how large it is, what it is given to do, how rough it is.
//!
//! Every seed draws its own mixture, so that some worlds know one kind of fault only and others all
//! (`swarm`).

use std::collections::BTreeSet;

use common::ids::TopicName;
use common::random::{Random, below, coin, seeded};
use common::time::Span;

use super::generation::StoreChoice;
use super::network::Weather;
use super::swarm;
use super::tally::{Click, DELAY, Shape};

/// A checkpoint may take longer than it takes until a silent worker is missed: one that is given up before waits
/// for no standby so long, and what is lost with the worker may be all there is of it.
const MISSED_WITHIN: Span = Span::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub workers: usize,
    /// One, or a group of three.
    pub coordinators: usize,
    pub click_partitions: u32,
    pub tally_partitions: u32,
    pub sources: u32,
    pub operators: u32,
    pub clicks_per_partition: u64,
    pub keys: u64,
    /// Clicks that are sent at once, and pauses between them, at most.
    pub batch: u64,
    pub produce_every_ms: u64,
    pub checkpoint_interval: Span,
    pub checkpoint_timeout: Span,
    pub segment_bytes: u64,
    pub store: StoreChoice,
    pub weather: Weather,
    /// How many faults there are, at most how far apart, and which.
    pub faults: u64,
    pub fault_every_ms: u64,
    pub kinds: FaultKinds,
    /// In the end every window is closed.
    pub drain: bool,
    pub replicas: Replicas,
    pub standbys: Standbys,
    /// How often somebody wants the job to have more or fewer tasks.
    pub rescales: u64,
    pub mishaps: Mishaps,
    /// Faults that do not happen, by their numbers in the order of what the seed draws.
    pub without: BTreeSet<usize>,
}

/// Who keeps the state of tasks besides the workers that run them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standbys {
    pub count: u32,
    /// The worker that loses its disk may have tasks until then.
    pub loser_works: bool,
}

/// The copies of each topic's partitions, and how many of them are enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicas {
    pub clicks: u32,
    pub clicks_enough: u32,
    pub tallies: u32,
    pub tallies_enough: u32,
    /// What is in the memory of all counts as committed, where two are needed.
    pub in_memory: bool,
    /// A worker loses its disk.
    pub loses_disk: bool,
    /// Faults that come on top, after the others.
    pub more_faults: u64,
    /// How often somebody has replicas move to other workers.
    pub moves: u64,
}

/// What goes wrong with time: processes stop for a while, disks are slow, clocks are set wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mishaps {
    pub count: u64,
    /// By how many in a thousand the clocks of processes go wrong at most.
    pub drift_permille: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultKinds {
    pub workers: bool,
    pub coordinator: bool,
    pub power: bool,
    pub cuts: bool,
    /// Of a worker from all others.
    pub isolations: bool,
}

impl Plan {
    pub fn draw(seed: u64) -> Plan {
        let drawn = Plan {
            mishaps: Mishaps::draw(seed),
            ..Plan::draw_all(seed)
        };
        swarm::switch(drawn)
    }

    /// With everything that the seed has, but for mishaps.
    fn draw_all(seed: u64) -> Plan {
        let mut random = seeded(seed, 2);
        let random = &mut random;
        let mut spilling = seeded(seed, 6);
        let mut copies = seeded(seed, 10);
        let mut rescales = seeded(seed, 13);
        let click_partitions = from_to(random, 1, 4);
        let rough = below(random, 4) > 0;
        let mut kinds = FaultKinds {
            workers: below(random, 4) > 0,
            coordinator: coin(random),
            power: coin(random),
            cuts: coin(random),
            isolations: true,
        };
        if !(kinds.workers || kinds.coordinator || kinds.cuts) {
            kinds.workers = true;
        }
        let workers = from_to(random, 1, 4);
        let replicas = Replicas::draw(seed, workers, kinds);
        let standbys = Standbys::draw(seed, workers);
        let spare = match replicas.loses_disk && standbys.loser_works {
            true => MISSED_WITHIN,
            false => Span(0),
        };
        Plan {
            seed,
            replicas,
            standbys,
            workers: usize::try_from(workers).expect("a few"),
            coordinators: match coin(&mut seeded(seed, 14)) {
                true => 3,
                false => 1,
            },
            click_partitions: small(click_partitions),
            tally_partitions: small(from_to(random, 1, 3)),
            sources: small(from_to(random, 1, click_partitions.min(3))),
            operators: small(from_to(random, 1, 3)),
            clicks_per_partition: from_to(random, 50, 250),
            keys: from_to(random, 1, 30),
            batch: 6,
            // So that clicks still come while things go wrong.
            produce_every_ms: 3 * from_to(random, 5, 150),
            checkpoint_interval: Span(from_to(random, 100, 1_000)),
            checkpoint_timeout: Span(spare.0 + from_to(random, 2_000, 10_000)),
            segment_bytes: from_to(random, 2 << 10, 64 << 10),
            store: StoreChoice {
                fold_every: usize::try_from(from_to(random, 1, 6)).expect("a few"),
                base_after_bytes: match below(random, 4) {
                    0 => from_to(random, 512, 4 << 10),
                    _ => 1 << 20,
                },
                log_bytes: from_to(random, 8 << 10, 256 << 10),
                table_bytes: coin(&mut spilling).then(|| from_to(&mut spilling, 1, 8 << 10)),
                copies_bytes: match below(&mut copies, 3) {
                    0 => from_to(&mut copies, 0, 2 << 10),
                    _ => 1 << 20,
                },
                answer_bytes: small_size(from_to(&mut copies, 1, 8 << 10)),
            },
            weather: match rough {
                true => Weather {
                    delay_ms: from_to(random, 1, 12),
                    lost_permille: below(random, 60),
                    twice_permille: below(random, 60),
                    slow_permille: below(random, 10),
                },
                false => Weather::CALM,
            },
            faults: from_to(random, 2, 8),
            fault_every_ms: from_to(random, 1_000, 5_000),
            kinds,
            drain: coin(random),
            rescales: below(&mut rescales, 2) * from_to(&mut rescales, 1, 4),
            mishaps: Mishaps::NONE,
            without: BTreeSet::new(),
        }
    }

    /// Makes what was changed fit together: there are no more copies than workers to have them.
    pub fn fit(&mut self) {
        let workers = u32::try_from(self.workers).expect("a few");
        // A group of two is worse than one.
        self.coordinators = if self.coordinators < 3 { 1 } else { 3 };
        self.sources = self.sources.min(self.click_partitions);
        self.standbys.count = self.standbys.count.min(workers - 1);
        let Replicas {
            clicks,
            clicks_enough,
            tallies,
            tallies_enough,
            loses_disk,
            ..
        } = &mut self.replicas;
        *clicks = workers.min(*clicks);
        *tallies = workers.min(*tallies);
        *clicks_enough = (*clicks).min(*clicks_enough);
        *tallies_enough = (*tallies).min(*tallies_enough);
        // Two must have everything when one is gone, and one of them may be away.
        *loses_disk &= [*clicks, *tallies] == [3, 3] && [*clicks_enough, *tallies_enough] == [2, 2];
    }

    /// The same world without anything that goes wrong.
    pub fn undisturbed(seed: u64) -> Plan {
        let drawn = Plan::draw_all(seed);
        Plan {
            weather: Weather::CALM,
            faults: 0,
            rescales: 0,
            replicas: Replicas {
                loses_disk: false,
                more_faults: 0,
                moves: 0,
                ..drawn.replicas
            },
            ..drawn
        }
    }

    /// The world of this seed without copies.
    pub fn single(seed: u64) -> Plan {
        Plan {
            coordinators: 1,
            replicas: Replicas::NONE,
            standbys: Standbys::NONE,
            rescales: 0,
            ..Plan::draw_all(seed)
        }
    }

    /// The world of this seed without standbys, and with as many tasks as it has in the beginning.
    pub fn alone(seed: u64) -> Plan {
        Plan {
            coordinators: 1,
            standbys: Standbys::NONE,
            rescales: 0,
            ..Plan::draw_all(seed)
        }
    }

    /// The world of this seed with standbys, if it has workers for them.
    pub fn stood_by(seed: u64) -> Plan {
        let drawn = Plan::draw_all(seed);
        Plan {
            standbys: Standbys {
                count: drawn.standbys.count.max(1),
                ..drawn.standbys
            },
            ..drawn
        }
    }

    /// The world of this seed, in which the job is to have more or fewer tasks again and again.
    pub fn rescaled(seed: u64) -> Plan {
        let drawn = Plan::draw_all(seed);
        Plan {
            rescales: drawn.rescales.max(3),
            ..drawn
        }
    }

    /// The world of this seed with a group of coordinators, of which one or the other is often gone.
    pub fn of_group(seed: u64) -> Plan {
        let drawn = Plan::draw_all(seed);
        Plan {
            coordinators: 3,
            kinds: FaultKinds {
                coordinator: true,
                cuts: true,
                ..drawn.kinds
            },
            faults: drawn.faults.max(6),
            ..drawn
        }
    }

    /// The world of this seed, in which clocks are wrong, and processes and disks too slow, again and again.
    pub fn mistimed(seed: u64) -> Plan {
        Plan {
            mishaps: Mishaps {
                count: 12,
                drift_permille: 50,
            },
            ..Plan::draw_all(seed)
        }
    }

    /// The world of this seed, in which a worker with tasks loses its disk if it ever may.
    pub fn losing(seed: u64) -> Plan {
        let drawn = Plan::stood_by(seed);
        Plan {
            workers: drawn.workers.max(3),
            checkpoint_timeout: Span(drawn.checkpoint_timeout.0.max(2 * MISSED_WITHIN.0)),
            replicas: Replicas {
                clicks: 3,
                clicks_enough: 2,
                tallies: 3,
                tallies_enough: 2,
                in_memory: false,
                loses_disk: true,
                ..drawn.replicas
            },
            standbys: Standbys {
                loser_works: true,
                ..drawn.standbys
            },
            ..drawn
        }
    }

    /// The world of this seed with records that are acknowledged in memory, and power that goes.
    pub fn in_memory(seed: u64) -> Plan {
        let drawn = Plan::alone(seed);
        let copies = 2 + u32::from(seed.is_multiple_of(2));
        Plan {
            workers: drawn.workers.max(3),
            kinds: FaultKinds {
                workers: true,
                power: true,
                ..drawn.kinds
            },
            replicas: Replicas {
                clicks: copies,
                clicks_enough: 2,
                tallies: copies,
                tallies_enough: 2,
                in_memory: true,
                loses_disk: false,
                more_faults: drawn.replicas.more_faults.max(6),
                ..drawn.replicas
            },
            ..drawn
        }
    }

    /// The worker that loses its disk.
    pub fn loses_disk(&self) -> Option<usize> {
        self.replicas.loses_disk.then(|| self.workers - 1)
    }

    pub fn shape(&self) -> Shape {
        let name = |name: &str| TopicName::new(name).expect("it is a name");
        Shape {
            clicks: name("clicks"),
            tallies: name("tallies"),
            sources: self.sources,
            operators: self.operators,
            spills: self.store.table_bytes.is_some(),
        }
    }

    /// The clicks of each partition, in batches. Times rise, with some disorder within the delay.
    pub fn clicks(&self) -> Vec<Vec<Vec<Click>>> {
        let mut random = seeded(self.seed, 3);
        let mut id = 0;
        (0..self.click_partitions)
            .map(|_| {
                let mut left = self.clicks_per_partition;
                let mut time = 1_000;
                let mut batches = Vec::new();
                while left > 0 {
                    let size = from_to(&mut random, 1, left.min(self.batch));
                    left -= size;
                    let batch = (0..size).map(|_| {
                        id += 1;
                        time += below(&mut random, 30);
                        Click {
                            key: signed(below(&mut random, self.keys)),
                            id,
                            time: signed(time - below(&mut random, DELAY)),
                        }
                    });
                    batches.push(batch.collect());
                }
                batches
            })
            .collect()
    }
}

impl Mishaps {
    pub const NONE: Mishaps = Mishaps {
        count: 0,
        drift_permille: 0,
    };

    fn draw(seed: u64) -> Mishaps {
        let mut random = seeded(seed, 16);
        Mishaps {
            count: below(&mut random, 2) * from_to(&mut random, 1, 8),
            drift_permille: below(&mut random, 2) * from_to(&mut random, 1, 50),
        }
    }
}

impl Standbys {
    pub const NONE: Standbys = Standbys {
        count: 0,
        loser_works: false,
    };

    fn draw(seed: u64, workers: u64) -> Standbys {
        let mut random = seeded(seed, 9);
        let count = match workers {
            1 => 0,
            _ => small(below(&mut random, 3)),
        };
        Standbys {
            count,
            loser_works: count > 0 && below(&mut random, 3) > 0,
        }
    }
}

impl Replicas {
    pub const NONE: Replicas = Replicas {
        clicks: 1,
        clicks_enough: 1,
        tallies: 1,
        tallies_enough: 1,
        in_memory: false,
        loses_disk: false,
        more_faults: 0,
        moves: 0,
    };

    fn draw(seed: u64, workers: u64, kinds: FaultKinds) -> Replicas {
        let mut random = seeded(seed, 7);
        let random = &mut random;
        // Two must have everything when one is gone, and one of them may be away.
        let loses_disk = workers >= 3 && kinds.workers && below(random, 3) == 0;
        let mut copies = || {
            let most = workers.min(3);
            let copies = if loses_disk {
                3
            } else {
                from_to(random, 1, most)
            };
            let enough = if loses_disk {
                2
            } else {
                from_to(random, 1, copies)
            };
            (small(copies), small(enough))
        };
        let ((clicks, clicks_enough), (tallies, tallies_enough)) = (copies(), copies());
        Replicas {
            clicks,
            clicks_enough,
            tallies,
            tallies_enough,
            in_memory: drawn_in_memory(seed, kinds, random) && !loses_disk,
            loses_disk,
            more_faults: match clicks.max(tallies) {
                1 => 0,
                _ => from_to(random, 0, 12),
            },
            moves: match workers {
                1 => 0,
                _ => below(random, 2) * below(random, 6),
            },
        }
    }
}

/// Where the power goes, it is drawn by itself, so that the worlds of older seeds stay what they were but for that.
fn drawn_in_memory(seed: u64, kinds: FaultKinds, random: &mut Random) -> bool {
    match kinds.power {
        true => coin(&mut seeded(seed, 12)),
        false => coin(random),
    }
}

/// Both included.
pub fn from_to(random: &mut Random, from: u64, to: u64) -> u64 {
    from + below(random, to - from + 1)
}

fn small(number: u64) -> u32 {
    u32::try_from(number).expect("a few")
}

fn small_size(number: u64) -> usize {
    usize::try_from(number).expect("a few")
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).expect("a small number")
}
