//! What the coordinators of a group agree on: one log for all of them, to which the one that leads adds, and which the
//! others come to know later.
//!
//! How they agree is not simulated: that is Raft's part, which is tested where it lives, with its own suite and with
//! real processes. This is what it promises, and all that it does not: who leads is chosen anew when a majority does not
//! hear the leader, who may not know that for a while; of what it had not decided by then, some may be decided all the
//! same, and nobody tells it.

use std::collections::VecDeque;

use common::ids::MetadataVersion;
use common::random::{Random, below, seeded};
use common::time::{Span, Tick};
use coordinator::metadata::ClusterMetadata;
use coordinator::metadata::command::{Entry, Outcome, Rejection};

use super::coordinator::suspects;
use super::network::{Network, Process};

/// A majority that does not hear the leader chooses another one after this, at least and at most.
const ELECTION_MS: (u64, u64) = (150, 900);
/// A leader that no majority has answered for so long promises nothing any more.
const QUORUM_SILENT: Span = Span::from_millis(1_200);

/// Of each coordinator a number; 0 is nobody's.
pub type Term = u64;
/// By which a coordinator knows what it has proposed.
pub type Token = u64;

#[derive(Debug)]
pub struct Group {
    random: Random,
    /// Which of them are running.
    up: Vec<bool>,
    term: Term,
    leader: Option<usize>,
    led_last: Option<usize>,
    /// Since when the leader is not heard by a majority, and until when it is waited for.
    silent: Option<(Tick, Tick)>,
    /// What the leader wants decided, in order.
    proposed: VecDeque<(Token, Entry)>,
    log: Vec<Entry>,
    /// What all of the log comes to.
    facts: ClusterMetadata,
    /// How often another one than before came to lead.
    successions: u64,
}

/// A command that has been decided.
#[derive(Debug)]
pub struct Decided {
    pub token: Token,
    pub index: MetadataVersion,
    pub entry: Entry,
}

/// What a command came to when it was added to the log, and how many more replicas are suspect since.
pub type Noted<'n> = &'n mut dyn FnMut(&Entry, &Result<Outcome, Rejection>, u64);

impl Group {
    pub fn new(seed: u64, coordinators: usize) -> Group {
        Group {
            random: seeded(seed, 15),
            up: vec![false; coordinators],
            term: 0,
            leader: None,
            led_last: None,
            silent: None,
            proposed: VecDeque::new(),
            log: Vec::new(),
            facts: ClusterMetadata::default(),
            successions: 0,
        }
    }

    /// Alone it agrees with itself, and none of this is needed.
    pub fn is_several(&self) -> bool {
        self.up.len() > 1
    }

    pub fn facts(&self) -> &ClusterMetadata {
        &self.facts
    }

    pub fn successions(&self) -> u64 {
        self.successions
    }

    /// One that starts again follows, whatever it did before.
    pub fn set_up(&mut self, coordinator: usize, up: bool) {
        self.up[coordinator] = up;
        self.leader.take_if(|leader| *leader == coordinator);
    }

    /// Whether it leads, in this term.
    pub fn leads(&self, coordinator: usize, term: Term) -> bool {
        (self.leader, self.term) == (Some(coordinator), term)
    }

    /// Who leads, if this one hears it.
    pub fn leader_heard(&self, network: &Network, now: Tick, by: usize) -> Option<usize> {
        let leader = self.leader.filter(|leader| self.up[*leader])?;
        hear(network, now, by, leader).then_some(leader)
    }

    /// Whether most say that it leads.
    pub fn confirms(&self, network: &Network, now: Tick, coordinator: usize, term: Term) -> bool {
        self.leads(coordinator, term) && self.has_majority(network, now, coordinator)
    }

    /// What is proposed by one that leads no more is lost without a word.
    pub fn propose(&mut self, coordinator: usize, term: Term, token: Token, entry: Entry) {
        if self.leads(coordinator, term) {
            self.proposed.push_back((token, entry));
        }
    }

    /// Whether something of a kind is about to be decided.
    pub fn is_proposed(&self, is_meant: impl Fn(&Entry) -> bool) -> bool {
        self.proposed.iter().any(|(_, entry)| is_meant(entry))
    }

    /// Decides what was proposed; a majority hears who leads.
    pub fn decide(&mut self, noted: Noted<'_>) -> Vec<Decided> {
        let mut decided = Vec::new();
        while let Some((token, entry)) = self.proposed.pop_front() {
            let index = self.add(entry.clone(), noted);
            decided.push(Decided {
                token,
                index,
                entry,
            });
        }
        decided
    }

    /// What was decided after a version.
    pub fn after(&self, version: MetadataVersion) -> &[Entry] {
        let known = usize::try_from(version.0).expect("a short log");
        &self.log[known..]
    }

    /// Whether one that has led in this term knows by now that it does not.
    pub fn is_told_it_leads_no_more(
        &self,
        network: &Network,
        now: Tick,
        coordinator: usize,
        term: Term,
    ) -> bool {
        let followed = self.leader_heard(network, now, coordinator).is_some();
        !self.leads(coordinator, term) && (followed || self.leader.is_none())
    }

    /// Time passes: another one may come to lead, and is answered with its term.
    pub fn look(
        &mut self,
        network: &Network,
        now: Tick,
        noted: Noted<'_>,
    ) -> Option<(usize, Term)> {
        if let Some(leader) = self.leader
            && self.up[leader]
            && self.has_majority(network, now, leader)
        {
            self.silent = None;
            return None;
        }
        let (least, most) = ELECTION_MS;
        let patience = least + below(&mut self.random, most - least);
        let (_, until) = *self.silent.get_or_insert((now, now.plus(Span(patience))));
        if self.is_silent(now) {
            self.leader = None;
        }
        if now < until {
            return None;
        }
        let candidates = (0..self.up.len()).filter(|one| self.has_majority(network, now, *one));
        let candidates: Vec<usize> = candidates.collect();
        if candidates.is_empty() {
            return None;
        }
        let chosen = below(&mut self.random, candidates.len() as u64);
        let chosen = candidates[usize::try_from(chosen).expect("a few")];
        // What reached enough of them before the leader went is decided all the same.
        let kept = below(&mut self.random, self.proposed.len() as u64 + 1);
        for (_, entry) in std::mem::take(&mut self.proposed)
            .into_iter()
            .take(usize::try_from(kept).expect("a few"))
        {
            self.add(entry, noted);
        }
        let before = self.led_last.replace(chosen);
        self.successions += u64::from(before.is_some_and(|before| before != chosen));
        self.term += 1;
        self.leader = Some(chosen);
        self.silent = None;
        Some((chosen, self.term))
    }

    fn is_silent(&self, now: Tick) -> bool {
        self.silent
            .is_some_and(|(since, _)| now.since(since) > QUORUM_SILENT)
    }

    fn has_majority(&self, network: &Network, now: Tick, coordinator: usize) -> bool {
        let all = self.up.len();
        let heard =
            (0..all).filter(|other| self.up[*other] && hear(network, now, coordinator, *other));
        self.up[coordinator] && 2 * heard.count() > all
    }

    fn add(&mut self, entry: Entry, noted: Noted<'_>) -> MetadataVersion {
        let index = MetadataVersion(self.log.len() as u64 + 1);
        let before = suspects(&self.facts);
        let outcome = self.facts.apply(index, &entry);
        let more = suspects(&self.facts).saturating_sub(before);
        noted(&entry, &outcome, more);
        self.log.push(entry);
        index
    }
}

fn hear(network: &Network, now: Tick, a: usize, b: usize) -> bool {
    let (a, b) = (Process::Coordinator(a), Process::Coordinator(b));
    let stopped = |process| network.stopped(now, process).is_some();
    network.hear(now, a, b) && !stopped(a) && !stopped(b)
}
