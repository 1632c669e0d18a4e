//! Workers whose sessions end too often, and for how long they are given nothing new (pure).
//!
//! Each return of such a worker makes leaders, tasks and copies move to it, and each of its ends moves them again. So
//! after a few ends in a row it is quarantined: its replicas stay, and others are preferred to it wherever something
//! has to go somewhere. Of jobs it counts as one that is drained: their tasks go elsewhere, where they can. Every further end makes the quarantine longer, and a long life ends the row.
//! Where there is nobody else, it serves as before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::ids::NodeId;
use common::time::{Span, Tick};

/// So many ends of sessions within this time are too many. A worker that is started anew by hand, also a few
/// times, has fewer; one that crashes as soon as it has work has more.
pub const TOO_MANY_ENDS: usize = 5;
pub const ENDS_WITHIN: Span = Span::from_secs(600);
/// How long the first quarantine lasts; each further end makes it twice as long, up to the longest.
pub const FIRST_QUARANTINE: Span = Span::from_secs(60);
pub const LONGEST_QUARANTINE: Span = Span::from_secs(1_800);

/// What was seen of the ends of workers' sessions. A coordinator that begins to lead has seen none, and
/// takes those that it finds quarantined for just quarantined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flapping {
    workers: BTreeMap<NodeId, Ends>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Ends {
    /// The last ones, the oldest first.
    at: VecDeque<Tick>,
    quarantine: Option<Quarantine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Quarantine {
    length: Span,
    until: Tick,
}

impl Flapping {
    /// A session of the worker has ended.
    pub fn ended(&mut self, now: Tick, worker: NodeId) {
        let ends = self.workers.entry(worker).or_default();
        ends.at.retain(|at| now.since(*at) < ENDS_WITHIN);
        if ends.at.len() == TOO_MANY_ENDS {
            ends.at.pop_front();
        }
        ends.at.push_back(now);
        if ends.at.len() == TOO_MANY_ENDS {
            let length = match ends.quarantine {
                Some(before) => Span((before.length.0 * 2).min(LONGEST_QUARANTINE.0)),
                None => FIRST_QUARANTINE,
            };
            ends.quarantine(now, length);
        }
    }

    /// These are quarantined, as the metadata says.
    pub fn found(&mut self, now: Tick, quarantined: &BTreeSet<NodeId>) {
        for worker in quarantined {
            let ends = self.workers.entry(*worker).or_default();
            if ends.quarantine.is_none() {
                ends.quarantine(now, FIRST_QUARANTINE);
            }
        }
    }

    /// Forgets what is long over.
    pub fn forget(&mut self, now: Tick) {
        self.workers.retain(|_, ends| {
            ends.at.retain(|at| now.since(*at) < ENDS_WITHIN);
            // For as long as ends count together, the next quarantine is longer than the last.
            let over = |quarantine: &Quarantine| now >= quarantine.until.plus(ENDS_WITHIN);
            if ends.quarantine.as_ref().is_some_and(over) {
                ends.quarantine = None;
            }
            !ends.at.is_empty() || ends.quarantine.is_some()
        });
    }

    /// Who is quarantined, and for how long yet.
    pub fn quarantined(&self, now: Tick) -> BTreeMap<NodeId, Span> {
        let all = self.workers.iter();
        let quarantined = all.filter_map(|(worker, ends)| {
            let until = ends.quarantine?.until;
            (now < until).then(|| (*worker, until.since(now)))
        });
        quarantined.collect()
    }
}

impl Ends {
    fn quarantine(&mut self, now: Tick, length: Span) {
        let until = now.plus(length);
        self.quarantine = Some(Quarantine { length, until });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: NodeId = NodeId(1);

    fn left(flapping: &Flapping, now: u64) -> Option<u64> {
        let quarantined = flapping.quarantined(Tick(now));
        quarantined.get(&WORKER).map(|span| span.0)
    }

    #[test]
    fn a_worker_whose_sessions_end_too_often_is_quarantined_longer_each_time() {
        let mut flapping = Flapping::default();
        for end in 0..4 {
            flapping.ended(Tick(end * 1_000), WORKER);
            assert_eq!(left(&flapping, end * 1_000), None);
        }
        flapping.ended(Tick(10_000), WORKER);
        assert_eq!(left(&flapping, 10_000), Some(60_000));
        assert_eq!(left(&flapping, 69_999), Some(1));
        assert_eq!(left(&flapping, 70_000), None);
        assert_eq!(flapping.quarantined(Tick(10_000)).len(), 1, "no other");
        let mut now = 70_000;
        for length in [120_000, 240_000, 480_000, 960_000, 1_800_000, 1_800_000] {
            flapping.ended(Tick(now), WORKER);
            assert_eq!(left(&flapping, now), Some(length));
            now += 1_000;
        }
    }

    #[test]
    fn ends_that_lie_far_apart_are_nothing_and_a_long_life_ends_the_row() {
        let mut flapping = Flapping::default();
        for end in 0..20 {
            flapping.ended(Tick(end * 150_000), WORKER);
            assert_eq!(left(&flapping, end * 150_000), None);
        }
        let mut flapping = Flapping::default();
        for end in 0..5 {
            flapping.ended(Tick(end), WORKER);
        }
        flapping.forget(Tick(60_000 + 599_999));
        let mut remembering = flapping.clone();
        for end in 0..5 {
            remembering.ended(Tick(660_000 + end), WORKER);
        }
        assert_eq!(left(&remembering, 660_004), Some(120_000));
        flapping.forget(Tick(60_004 + 600_000));
        assert_eq!(flapping, Flapping::default());
    }

    #[test]
    fn a_coordinator_that_begins_to_lead_keeps_the_quarantine_it_finds_for_a_while() {
        let mut flapping = Flapping::default();
        let found = BTreeSet::from([WORKER]);
        flapping.found(Tick(5_000), &found);
        flapping.found(Tick(9_000), &found);
        assert_eq!(left(&flapping, 9_000), Some(56_000));
        assert_eq!(left(&flapping, 65_000), None);
        // Until the metadata says otherwise it is found again, and that begins nothing.
        flapping.found(Tick(65_100), &found);
        assert_eq!(left(&flapping, 65_100), None);
    }
}
