//! The clocks of the processes: each goes at a pace of its own, and its wall clock may be set wrong.
//!
//! Nobody knows the time of the world. What a process waits for lasts as long as its own clock says.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::random::{below, seeded};
use common::time::{Clock, ManualClock, Span, Tick, Timestamp};

use super::network::Process;

const START: Timestamp = Timestamp(1_700_000_000_000);
/// What goes as the world does counts so many in a thousand of its milliseconds.
const TRUE_PACE: u64 = 1_000;

#[derive(Debug)]
pub struct Clocks {
    seed: u64,
    /// By how many in a thousand a clock goes wrong at most.
    drift_permille: u64,
    clocks: BTreeMap<Process, OwnClock>,
}

#[derive(Debug)]
struct OwnClock {
    pace: u64,
    clock: Arc<ManualClock>,
}

impl Clocks {
    pub fn new(seed: u64, drift_permille: u64) -> Clocks {
        Clocks {
            seed,
            drift_permille,
            clocks: BTreeMap::new(),
        }
    }

    pub fn of(&mut self, process: Process) -> Arc<ManualClock> {
        self.own(process).clock.clone()
    }

    /// What the clock of this process shows at a time of the world.
    pub fn show(&mut self, process: Process, time: Tick) -> Tick {
        let own = self.own(process);
        let shows = Tick(time.0 * own.pace / TRUE_PACE);
        own.clock.advance(shows.since(own.clock.tick()));
        shows
    }

    /// How long it takes in the world until a process that waits from then on has waited for so long.
    pub fn lasts(&mut self, process: Process, time: Tick, wait: Span) -> Span {
        let over = self.show(process, time).plus(wait);
        let pace = self.own(process).pace;
        Tick((over.0 * TRUE_PACE).div_ceil(pace)).since(time)
    }

    pub fn set(&mut self, process: Process, by_ms: i64) {
        self.own(process).clock.set(by_ms);
    }

    fn own(&mut self, process: Process) -> &mut OwnClock {
        let (seed, most) = (self.seed, self.drift_permille);
        self.clocks.entry(process).or_insert_with(|| OwnClock {
            pace: pace(seed, process, most),
            clock: Arc::new(ManualClock::at(START)),
        })
    }
}

/// That of a client matters to nobody.
fn pace(seed: u64, process: Process, drift_permille: u64) -> u64 {
    let number = match process {
        Process::Coordinator(index) => 2 * index,
        Process::Worker(index) => 2 * index + 1,
        Process::Client => return TRUE_PACE,
    };
    let stream = 100 + u64::try_from(number).expect("a few");
    let drift = below(&mut seeded(seed, stream), 2 * drift_permille + 1);
    TRUE_PACE - drift_permille + drift
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: Process = Process::Worker(1);

    #[test]
    fn who_waits_has_waited_by_its_own_clock() {
        let mut paces = Vec::new();
        for seed in 1..=50 {
            let mut clocks = Clocks::new(seed, 50);
            for (time, wait) in [(0, 0), (7, 0), (10, 1), (12_345, 5_000), (99_999, 12)] {
                let began = clocks.show(PROCESS, Tick(time));
                let lasts = clocks.lasts(PROCESS, Tick(time), Span(wait));
                let ended = clocks.show(PROCESS, Tick(time).plus(lasts));
                let waited = ended.since(began).0;
                assert!((wait..=wait + 1).contains(&waited), "{waited} for {wait}");
            }
            paces.push(clocks.own(PROCESS).pace);
        }
        paces.sort_unstable();
        assert!(paces[0] >= 950 && paces[0] < 970, "{paces:?}");
        assert!(paces[49] <= 1_050 && paces[49] > 1_030, "{paces:?}");
    }

    #[test]
    fn a_clock_that_is_set_goes_on_as_before() {
        let mut clocks = Clocks::new(1, 0);
        let clock = clocks.of(PROCESS);
        assert_eq!(clocks.show(PROCESS, Tick(500)), Tick(500));
        clocks.set(PROCESS, 90_000);
        clocks.set(PROCESS, -100_000);
        assert_eq!(clocks.show(PROCESS, Tick(600)), Tick(600));
        assert_eq!(clock.wall(), Timestamp(START.0 + 600 - 10_000));
    }
}
