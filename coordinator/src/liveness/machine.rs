//! Heartbeats → alive, suspect, dead.
//!
//! Sessions follow the metadata: every epoch that has not ended has one, and a session that is new here
//! has its full time, so that a coordinator that has just started takes nobody for dead. A heartbeat that
//! is overtaken by a later one is ignored.
#![warn(clippy::wildcard_enum_match_arm)]

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{NodeId, WorkerEpoch};
use common::limits::HEARTBEAT_INTERVAL;
use common::time::{Span, Tick};

use super::flapping::Flapping;

/// Silent for this long, a worker is asked whether it is there: more than one heartbeat is missing.
const SUSPECT_AFTER: Span = Span::from_millis(HEARTBEAT_INTERVAL.0 + 100);
const PROBE_EVERY: Span = Span::from_millis(200);
/// One that was heard to end may still be ending.
pub const PROBE_SUSPECTS_EVERY: Span = Span::from_millis(50);
/// A worker that is gone for so long is not waited for any more: its replicas are made anew elsewhere.
const GIVEN_UP_AFTER: Span = Span::from_secs(300);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LivenessMachine {
    session_timeout: Span,
    sessions: BTreeMap<NodeId, Session>,
    /// Since when workers have been seen to have no session.
    gone: BTreeMap<NodeId, Tick>,
    flapping: Flapping,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Session {
    epoch: WorkerEpoch,
    /// Of the last heartbeat; 0 before the first.
    sequence: u64,
    heard: Tick,
    ready: bool,
    probed: Option<Tick>,
    /// A connection of the worker's broke since.
    suspected: bool,
    /// Nobody listens where it was.
    refused: bool,
}

impl LivenessMachine {
    pub fn new(session_timeout: Span) -> LivenessMachine {
        LivenessMachine {
            session_timeout,
            sessions: BTreeMap::new(),
            gone: BTreeMap::new(),
            flapping: Flapping::default(),
        }
    }

    /// The epochs that have not ended are these.
    pub fn follow(&mut self, now: Tick, epochs: &BTreeMap<NodeId, WorkerEpoch>) {
        let flapping = &mut self.flapping;
        self.sessions.retain(|worker, session| {
            let goes_on = epochs.get(worker) == Some(&session.epoch);
            if !goes_on {
                flapping.ended(now, *worker);
            }
            goes_on
        });
        self.flapping.forget(now);
        for (worker, epoch) in epochs {
            self.sessions.entry(*worker).or_insert(Session {
                epoch: *epoch,
                sequence: 0,
                heard: now,
                ready: false,
                probed: None,
                suspected: false,
                refused: false,
            });
        }
    }

    /// These are all the workers whose last epoch has ended.
    pub fn miss(&mut self, now: Tick, fenced: &BTreeSet<NodeId>) {
        self.gone.retain(|worker, _| fenced.contains(worker));
        for worker in fenced {
            self.gone.entry(*worker).or_insert(now);
        }
    }

    /// These are quarantined, as the metadata says.
    pub fn quarantine(&mut self, now: Tick, quarantined: &BTreeSet<NodeId>) {
        self.flapping.found(now, quarantined);
    }

    /// Workers whose sessions ended too often, and for how long yet they are given nothing new.
    pub fn quarantined(&self, now: Tick) -> BTreeMap<NodeId, Span> {
        self.flapping.quarantined(now)
    }

    /// Workers that are not waited for any more.
    pub fn given_up(&self, now: Tick) -> BTreeSet<NodeId> {
        let gone = self.gone.iter();
        let given_up = gone.filter(|(_, since)| now.since(**since) >= GIVEN_UP_AFTER);
        given_up.map(|(worker, _)| *worker).collect()
    }

    /// A heartbeat came. `false`: a later one was here before it, or its epoch has no session.
    pub fn heard(
        &mut self,
        now: Tick,
        worker: NodeId,
        epoch: WorkerEpoch,
        sequence: u64,
        ready: bool,
    ) -> bool {
        match self.sessions.get_mut(&worker) {
            Some(session) if session.epoch == epoch && sequence > session.sequence => {
                session.sequence = sequence;
                session.heard = now;
                session.ready = ready;
                session.probed = None;
                session.suspected = false;
                session.refused = false;
                true
            }
            Some(_) | None => false,
        }
    }

    /// A connection of the worker's broke while it waited for an answer: it may be gone. It is asked at once; that it
    /// does not want the answer any more may have other reasons.
    pub fn suspect(&mut self, worker: NodeId) {
        if let Some(session) = self.sessions.get_mut(&worker) {
            session.suspected = true;
        }
    }

    /// A connection to the worker was refused: its process is gone.
    pub fn refused(&mut self, worker: NodeId, epoch: WorkerEpoch) {
        if let Some(session) = self.sessions.get_mut(&worker)
            && session.epoch == epoch
            // A heartbeat after the probe was sent proves more.
            && session.probed.is_some()
        {
            session.refused = true;
        }
    }

    /// Workers that are silent or suspected and were not asked lately; they count as asked now.
    pub fn due_probes(&mut self, now: Tick) -> Vec<(NodeId, WorkerEpoch)> {
        self.sessions
            .iter_mut()
            .filter(|(_, session)| {
                let every = match session.suspected {
                    true => PROBE_SUSPECTS_EVERY,
                    false => PROBE_EVERY,
                };
                (session.suspected || now.since(session.heard) >= SUSPECT_AFTER)
                    && session.probed.is_none_or(|at| now.since(at) >= every)
            })
            .map(|(worker, session)| {
                session.probed = Some(now);
                (*worker, session.epoch)
            })
            .collect()
    }

    pub fn dead(&self, now: Tick) -> impl Iterator<Item = (NodeId, WorkerEpoch)> {
        self.sessions
            .iter()
            .filter(move |(_, session)| {
                session.refused || now.since(session.heard) >= self.session_timeout
            })
            .map(|(worker, session)| (*worker, session.epoch))
    }

    /// Workers that have said that they may be given work.
    pub fn ready(&self) -> impl Iterator<Item = (NodeId, WorkerEpoch)> {
        self.sessions
            .iter()
            .filter(|(_, session)| session.ready)
            .map(|(worker, session)| (*worker, session.epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKER: NodeId = NodeId(1);
    const EPOCH: WorkerEpoch = WorkerEpoch(7);
    const TIMEOUT: Span = Span::from_secs(3);

    fn machine(now: u64) -> LivenessMachine {
        let mut machine = LivenessMachine::new(TIMEOUT);
        machine.follow(Tick(now), &BTreeMap::from([(WORKER, EPOCH)]));
        machine
    }

    fn is_dead(machine: &LivenessMachine, now: u64) -> bool {
        machine.dead(Tick(now)).any(|(worker, _)| worker == WORKER)
    }

    #[test]
    fn a_worker_is_dead_once_it_was_silent_for_its_session() {
        let mut machine = machine(1_000);
        assert!(!is_dead(&machine, 3_999));
        assert!(is_dead(&machine, 4_000));
        assert!(machine.heard(Tick(3_000), WORKER, EPOCH, 1, false));
        assert!(!is_dead(&machine, 5_999));
        assert!(is_dead(&machine, 6_000));
    }

    #[test]
    fn a_heartbeat_that_was_overtaken_or_is_of_another_epoch_proves_nothing() {
        let mut machine = machine(0);
        assert!(machine.heard(Tick(1_000), WORKER, EPOCH, 5, true));
        for (epoch, sequence) in [(7, 5), (7, 4), (6, 9), (8, 9)] {
            let counted = machine.heard(Tick(2_000), WORKER, WorkerEpoch(epoch), sequence, false);
            assert!(!counted, "{epoch} {sequence}");
        }
        assert!(!machine.heard(Tick(2_000), NodeId(2), EPOCH, 9, true));
        assert!(is_dead(&machine, 4_000));
        assert_eq!(machine.ready().collect::<Vec<_>>(), [(WORKER, EPOCH)]);
    }

    #[test]
    fn a_new_epoch_has_its_full_time_and_an_ended_one_has_none() {
        let mut machine = machine(0);
        machine.heard(Tick(10), WORKER, EPOCH, 1, true);
        let next = WorkerEpoch(8);
        machine.follow(Tick(2_900), &BTreeMap::from([(WORKER, next)]));
        assert!(!is_dead(&machine, 5_899));
        assert!(is_dead(&machine, 5_900));
        assert_eq!(machine.ready().count(), 0, "the new life has yet to say so");
        machine.follow(Tick(3_000), &BTreeMap::new());
        assert!(!is_dead(&machine, 100_000));
    }

    #[test]
    fn a_silent_worker_is_probed_and_a_refused_connection_ends_the_wait() {
        let mut machine = machine(0);
        assert!(machine.due_probes(Tick(599)).is_empty());
        machine.refused(WORKER, EPOCH);
        assert!(!is_dead(&machine, 599), "nobody asked");
        assert_eq!(machine.due_probes(Tick(600)), [(WORKER, EPOCH)]);
        assert!(
            machine.due_probes(Tick(700)).is_empty(),
            "asked a moment ago"
        );
        assert_eq!(machine.due_probes(Tick(800)).len(), 1);
        machine.refused(WORKER, WorkerEpoch(6));
        assert!(!is_dead(&machine, 800), "that was another life");
        machine.refused(WORKER, EPOCH);
        assert!(is_dead(&machine, 800));
    }

    /// It was noticed when its next heartbeat was missing: 350 ms later in the middle.
    #[test]
    fn a_worker_whose_connection_broke_is_probed_at_once_and_until_it_is_heard_of() {
        let mut machine = machine(0);
        machine.heard(Tick(100), WORKER, EPOCH, 1, true);
        machine.suspect(NodeId(2));
        machine.suspect(WORKER);
        assert_eq!(machine.due_probes(Tick(101)), [(WORKER, EPOCH)]);
        assert!(
            machine.due_probes(Tick(150)).is_empty(),
            "asked a moment ago"
        );
        assert_eq!(machine.due_probes(Tick(151)).len(), 1);
        assert!(!is_dead(&machine, 151), "nobody has refused");
        // It only gave up waiting for an answer.
        assert!(machine.heard(Tick(160), WORKER, EPOCH, 2, true));
        assert!(machine.due_probes(Tick(600)).is_empty());
        machine.refused(WORKER, EPOCH);
        assert!(!is_dead(&machine, 600), "that is older than its heartbeat");
        machine.suspect(WORKER);
        machine.due_probes(Tick(601));
        machine.refused(WORKER, EPOCH);
        assert!(is_dead(&machine, 601));
    }

    #[test]
    fn a_worker_is_given_up_five_minutes_after_its_epoch_ended_unless_it_is_back() {
        let mut machine = machine(0);
        let gone = BTreeSet::from([WORKER]);
        machine.miss(Tick(1_000), &gone);
        machine.miss(Tick(200_000), &gone);
        assert!(machine.given_up(Tick(300_999)).is_empty());
        assert_eq!(machine.given_up(Tick(301_000)), gone);
        machine.miss(Tick(302_000), &BTreeSet::new());
        machine.miss(Tick(303_000), &gone);
        assert!(machine.given_up(Tick(304_000)).is_empty());
    }

    #[test]
    fn a_worker_that_ends_again_and_again_is_quarantined_whether_it_was_fenced_or_came_back_first()
    {
        let mut machine = machine(0);
        let mut epoch = EPOCH;
        for end in 1..=5 {
            assert!(machine.quarantined(Tick(end)).is_empty());
            if end % 2 == 0 {
                machine.follow(Tick(end), &BTreeMap::new());
            }
            epoch = WorkerEpoch(epoch.0 + 1);
            machine.follow(Tick(end), &BTreeMap::from([(WORKER, epoch)]));
        }
        assert!(machine.quarantined(Tick(5)).contains_key(&WORKER));
    }

    #[test]
    fn a_heartbeat_after_a_probe_proves_more_than_the_probe() {
        let mut machine = machine(0);
        machine.due_probes(Tick(600));
        assert!(machine.heard(Tick(650), WORKER, EPOCH, 1, true));
        machine.refused(WORKER, EPOCH);
        assert!(!is_dead(&machine, 700));
    }
}
