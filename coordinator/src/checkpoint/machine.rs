//! Decides when a job takes a checkpoint, and when one is complete.
//!
//! A checkpoint is ALIGNING while its barrier is not yet at every worker with sources, PERSISTING until
//! every task of the generation has acknowledged it and every standby that keeps up holds it, PROPOSED while
//! its completion is being made a fact. A standby that takes much longer than the tasks is left out, but not
//! before a worker that went with all it has would have been missed: it may be why the standby has nothing.
//! At most one aligns, and at most two are open: the next barrier may follow while the last one is still
//! being written. Completed checkpoints grow strictly and belong to the generation that proposes them.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{CheckpointId, Generation, NodeId, TaskId, WorkerEpoch};
use common::limits::CHECKPOINT_RESERVATION;
use common::protocol::checkpoint::{CheckpointKind, TaskSnapshot};
use common::protocol::task::Standbys;
use common::time::{Span, Tick};

use super::history::{History, Outcome, Record};
use super::holders::Holders;
use super::permit::{CommitPermit, Proven};

/// Between the end of one checkpoint and the start of the next, whatever the interval.
pub const MIN_PAUSE: Span = Span::from_millis(50);
/// A barrier that a worker has not confirmed is sent to it again.
pub const INJECT_AGAIN: Span = Span::from_secs(1);
/// A standby may take so much longer than the tasks themselves, beyond a session's time, or two intervals if that
/// is more. A heartbeat may have been under way so long, and the end of a session takes a moment to be a fact.
const STANDBY_PATIENCE: Span = Span::from_secs(2);
/// Tasks of the next division may be late without any harm but to when it is taken.
const PREPARING_PATIENCE: Span = Span::from_millis(500);
const MAX_OPEN: usize = 2;
/// The next block of numbers is reserved when so few are left, so that no checkpoint waits for one.
const RESERVE_BELOW: u64 = CHECKPOINT_RESERVATION / 8;

/// How often a job wants checkpoints, and after how long one is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pace {
    pub interval: Span,
    pub timeout: Span,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    pub pace: Pace,
    /// A worker that says nothing for so long is gone.
    pub session_timeout: Span,
}

/// The tasks of a generation, where they run, who stands by, and in which life of those workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Team {
    pub worker_of: BTreeMap<TaskId, NodeId>,
    pub sources: BTreeSet<TaskId>,
    /// These change within a generation.
    pub standbys: Standbys,
    /// The tasks of the job's next division, and where they are prepared: where each is to run first. They come and go
    /// within a generation, too.
    pub next: Standbys,
    pub workers: BTreeMap<NodeId, WorkerEpoch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The job was changed, and takes checkpoints so from its next generation on.
    Paced(Pace),
    /// Every task of this generation runs; checkpoints of this kind are wanted, a last one until it completes.
    /// Told again when the kind or the standbys change.
    /// `completed`: the last completed checkpoint, which may be a state that was restored meanwhile.
    Run {
        generation: Generation,
        team: Team,
        kind: CheckpointKind,
        completed: Option<CheckpointId>,
    },
    /// No generation runs.
    Halt,
    /// A task has no memory left: the next checkpoint does not wait for its time.
    Wanted {
        generation: Generation,
    },
    /// `first` to `last`, both included, are this machine's to give out.
    Reserved {
        first: CheckpointId,
        last: CheckpointId,
    },
    /// The reservation did not come about.
    ReservationFailed,
    BarrierInjected {
        generation: Generation,
        checkpoint: CheckpointId,
        worker: NodeId,
    },
    /// From a worker that `check` let through.
    Acknowledged {
        worker: NodeId,
        generation: Generation,
        checkpoint: CheckpointId,
        tasks: Vec<TaskSnapshot>,
    },
    /// From a worker that `check` let through.
    Held {
        worker: NodeId,
        generation: Generation,
        held: Vec<(TaskId, CheckpointId)>,
    },
    Declined {
        worker: NodeId,
        generation: Generation,
        checkpoint: CheckpointId,
        reason: String,
    },
    /// The outcome of `Effect::Complete` is known.
    Settled {
        checkpoint: CheckpointId,
        /// `Err`: why it is not completed.
        completed: Result<(), String>,
    },
    TimePassed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Have the next block of numbers reserved for this generation.
    Reserve { generation: Generation },
    Inject {
        worker: NodeId,
        generation: Generation,
        checkpoint: CheckpointId,
        kind: CheckpointKind,
    },
    /// Make the completion a fact.
    Complete(CommitPermit),
    Completed {
        generation: Generation,
        checkpoint: CheckpointId,
        kind: CheckpointKind,
    },
    Aborted {
        checkpoint: CheckpointId,
        reason: String,
    },
}

/// Why a message of a worker is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fence {
    /// The generation is over.
    PastGeneration,
    /// The generation is not known here yet.
    FutureGeneration,
    /// Not the life of the worker that runs the tasks.
    WorkerEpoch,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CheckpointMachine {
    settings: Settings,
    /// The time of the last event: what was due by then has been done, or waits for something else.
    asked: Tick,
    run: Option<Run>,
    /// The last number given out, and the last that may be.
    last: CheckpointId,
    reserved: CheckpointId,
    reserving: bool,
    reserve_after: Tick,
    /// Its completion is being made a fact.
    proposed: Option<CheckpointId>,
    completed: Option<CheckpointId>,
    holders: Holders,
    history: History,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Run {
    generation: Generation,
    team: Team,
    /// Of the checkpoints to come.
    kind: CheckpointKind,
    /// The last checkpoint has been completed.
    done: bool,
    /// Oldest first.
    open: Vec<Open>,
    due: Tick,
    not_before: Tick,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Open {
    checkpoint: CheckpointId,
    kind: CheckpointKind,
    triggered: Tick,
    phase: Phase,
    missing: BTreeSet<TaskId>,
    /// When none was missing any more.
    acknowledged: Option<Tick>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Workers that have not confirmed the barrier, and when it goes to them again.
    Aligning {
        unconfirmed: BTreeMap<NodeId, Tick>,
    },
    Persisting,
    Proposed,
}

impl CheckpointMachine {
    /// `reserved`: the highest number that was ever reserved for this job. A former coordinator may have
    /// used any of them, so this one starts above. `holders`: who has the state of `completed`.
    pub fn new(
        settings: Settings,
        reserved: CheckpointId,
        completed: Option<CheckpointId>,
        holders: &BTreeMap<TaskId, Vec<NodeId>>,
    ) -> CheckpointMachine {
        CheckpointMachine {
            holders: Holders::new(completed, holders),
            settings,
            asked: Tick(0),
            run: None,
            last: reserved,
            reserved,
            reserving: false,
            reserve_after: Tick(0),
            proposed: None,
            completed,
            history: History::default(),
        }
    }

    /// Applies one event. Deterministic: same machine, same event, same time, same effects.
    pub fn handle(&mut self, now: Tick, event: Event) -> Vec<Effect> {
        self.asked = now;
        let mut effects = Vec::new();
        match event {
            Event::Paced(pace) => self.settings.pace = pace,
            Event::Run {
                generation,
                team,
                kind,
                completed,
            } => {
                self.adopt(completed);
                self.start(now, generation, team, kind, &mut effects);
            }
            Event::Halt => self.halt(now, &mut effects),
            Event::Wanted { generation } => self.hurry(now, generation),
            Event::Reserved { first, last } => self.own(first, last),
            Event::ReservationFailed => {
                self.reserving = false;
                self.reserve_after = now.plus(MIN_PAUSE);
            }
            Event::BarrierInjected {
                generation,
                checkpoint,
                worker,
            } => self.confirm(generation, checkpoint, worker),
            Event::Acknowledged {
                worker,
                generation,
                checkpoint,
                tasks,
            } => self.acknowledge(now, worker, generation, checkpoint, &tasks),
            Event::Held {
                worker,
                generation,
                held,
            } => self.hold(worker, generation, held),
            Event::Declined {
                worker,
                generation,
                checkpoint,
                reason,
            } => {
                let reason = format!("declined by worker {worker}: {reason}");
                self.decline(now, generation, checkpoint, reason, &mut effects);
            }
            Event::Settled {
                checkpoint,
                completed,
            } => self.settle(now, checkpoint, completed, &mut effects),
            Event::TimePassed => {}
        }
        self.give_up_late_ones(now, &mut effects);
        self.propose(now, &mut effects);
        self.reserve(now, &mut effects);
        self.trigger(now);
        self.inject(now, &mut effects);
        effects
    }

    /// Whether a worker's message about a generation is of use.
    pub fn check(
        &self,
        generation: Generation,
        worker: NodeId,
        epoch: WorkerEpoch,
    ) -> Result<(), Fence> {
        let Some(run) = &self.run else {
            return Err(Fence::PastGeneration);
        };
        match generation.cmp(&run.generation) {
            std::cmp::Ordering::Less => Err(Fence::PastGeneration),
            std::cmp::Ordering::Greater => Err(Fence::FutureGeneration),
            std::cmp::Ordering::Equal if run.team.workers.get(&worker) != Some(&epoch) => {
                Err(Fence::WorkerEpoch)
            }
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    /// When the machine wants to be asked again, if nothing happens before: maybe a moment ago, if carrying out
    /// the effects has taken its time.
    pub fn wake_at(&self) -> Option<Tick> {
        let run = self.run.as_ref()?;
        let timeouts = run.open.iter().filter(|open| open.phase != Phase::Proposed);
        let timeouts = timeouts.map(|open| open.triggered.plus(self.settings.pace.timeout));
        let repeats = run.open.iter().flat_map(|open| match &open.phase {
            Phase::Aligning { unconfirmed } => unconfirmed.values().copied().min(),
            Phase::Persisting | Phase::Proposed => None,
        });
        let next = self.next_trigger(run);
        let late_standbys = run.open.iter().filter_map(|open| self.patience_ends(open));
        timeouts
            .chain(repeats)
            .chain(late_standbys)
            .chain(next)
            .chain([self.reserve_after])
            .filter(|at| *at > self.asked)
            .min()
    }

    pub fn completed(&self) -> Option<CheckpointId> {
        self.completed
    }

    /// Every checkpoint above it has yet to begin.
    pub fn last_given(&self) -> CheckpointId {
        self.last
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    fn start(
        &mut self,
        now: Tick,
        generation: Generation,
        team: Team,
        kind: CheckpointKind,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(run) = &mut self.run
            && run.generation == generation
        {
            run.kind = kind;
            self.holders.assign(&team.standbys, &team.next);
            run.team.standbys = team.standbys;
            run.team.next = team.next;
            // The lives that run the tasks are those the generation began with.
            let standbys = team.workers.into_iter();
            let runs = |worker: &NodeId| run.team.worker_of.values().any(|runs| runs == worker);
            let standbys: Vec<_> = standbys.filter(|(worker, _)| !runs(worker)).collect();
            run.team.workers.extend(standbys);
            return;
        }
        self.halt(now, effects);
        self.holders.restart(self.completed);
        self.holders.assign(&team.standbys, &team.next);
        self.run = Some(Run {
            generation,
            team,
            kind,
            done: false,
            open: Vec::new(),
            due: self.first_due(now),
            not_before: now,
        });
    }

    /// What a job puts out waits for a checkpoint: that a generation ended makes nobody wait longer than it had to.
    /// Its successor has a moment to read what there is.
    fn first_due(&self, now: Tick) -> Tick {
        let interval = self.settings.pace.interval;
        let last = self.completed.and_then(|last| self.history.get(last));
        let due = last.map_or(now, |last| last.triggered).plus(interval);
        due.max(now.plus(MIN_PAUSE)).min(now.plus(interval))
    }

    /// A restored state has a number above all that were ever reserved, and no worker has it yet.
    fn adopt(&mut self, completed: Option<CheckpointId>) {
        if let Some(restored) = completed.filter(|completed| *completed > self.reserved) {
            self.completed = Some(restored);
            self.last = restored;
            self.reserved = restored;
            self.holders = Holders::default();
        }
    }

    fn hurry(&mut self, now: Tick, generation: Generation) {
        if let Some(run) = &mut self.run
            && run.generation == generation
        {
            run.due = run.due.min(now);
        }
    }

    fn halt(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        let Some(run) = self.run.take() else { return };
        for open in run.open {
            // What is proposed is decided by the metadata, and told by `Settled`.
            if open.phase != Phase::Proposed {
                let reason = format!("generation {} ended", run.generation);
                self.abort(now, open.checkpoint, reason, effects);
            }
        }
    }

    fn confirm(&mut self, generation: Generation, checkpoint: CheckpointId, worker: NodeId) {
        let Some(open) = self.open_mut(generation, checkpoint) else {
            return;
        };
        if let Phase::Aligning { unconfirmed } = &mut open.phase {
            unconfirmed.remove(&worker);
            if unconfirmed.is_empty() {
                open.phase = Phase::Persisting;
            }
        }
    }

    fn acknowledge(
        &mut self,
        now: Tick,
        worker: NodeId,
        generation: Generation,
        checkpoint: CheckpointId,
        tasks: &[TaskSnapshot],
    ) {
        let Some(run) = &mut self.run else { return };
        if run.generation != generation {
            return;
        }
        let open = run.open.iter_mut();
        let Some(open) = open.into_iter().find(|open| open.checkpoint == checkpoint) else {
            return;
        };
        for snapshot in tasks {
            let runs_there = run.team.worker_of.get(&snapshot.task) == Some(&worker);
            // A repeated acknowledgement says nothing new.
            if runs_there && open.missing.remove(&snapshot.task) {
                self.history.acknowledge(checkpoint, snapshot);
            }
        }
        if open.missing.is_empty() {
            open.acknowledged.get_or_insert(now);
        }
    }

    fn hold(&mut self, worker: NodeId, generation: Generation, held: Vec<(TaskId, CheckpointId)>) {
        let Some(run) = &self.run else { return };
        if run.generation != generation {
            return;
        }
        for (task, checkpoint) in held {
            // Only what was given out: it could not be completed otherwise.
            if checkpoint <= self.last {
                self.holders.hold(worker, task, checkpoint);
            }
        }
    }

    fn decline(
        &mut self,
        now: Tick,
        generation: Generation,
        checkpoint: CheckpointId,
        reason: String,
        effects: &mut Vec<Effect>,
    ) {
        let Some(open) = self.open_mut(generation, checkpoint) else {
            return;
        };
        if open.phase != Phase::Proposed {
            self.abort(now, checkpoint, reason, effects);
        }
    }

    fn settle(
        &mut self,
        now: Tick,
        checkpoint: CheckpointId,
        completed: Result<(), String>,
        effects: &mut Vec<Effect>,
    ) {
        assert_eq!(
            self.proposed.take(),
            Some(checkpoint),
            "only what is proposed is decided"
        );
        if let Err(reason) = completed {
            self.abort(now, checkpoint, reason, effects);
            return;
        }
        assert!(
            self.completed < Some(checkpoint),
            "completed checkpoints grow strictly: {checkpoint} after {:?}",
            self.completed
        );
        self.completed = Some(checkpoint);
        self.history.end(now, checkpoint, Outcome::Completed);
        let Some(run) = &mut self.run else { return };
        let (covered, later) = run
            .open
            .drain(..)
            .partition(|open| open.checkpoint <= checkpoint);
        run.open = later;
        let covered: Vec<Open> = covered;
        for open in covered {
            if open.checkpoint < checkpoint {
                self.history.end(now, open.checkpoint, Outcome::Subsumed);
                continue;
            }
            run.not_before = now.plus(MIN_PAUSE);
            run.done = open.kind.is_last();
            effects.push(Effect::Completed {
                generation: run.generation,
                checkpoint,
                kind: open.kind,
            });
        }
    }

    fn abort(
        &mut self,
        now: Tick,
        checkpoint: CheckpointId,
        reason: String,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(run) = &mut self.run {
            run.open.retain(|open| open.checkpoint != checkpoint);
            run.not_before = now.plus(MIN_PAUSE);
        }
        let outcome = Outcome::Aborted {
            reason: reason.clone(),
        };
        self.history.end(now, checkpoint, outcome);
        effects.push(Effect::Aborted { checkpoint, reason });
    }

    fn give_up_late_ones(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        let Some(run) = &self.run else { return };
        let late: Vec<(CheckpointId, String)> = run
            .open
            .iter()
            // What only standbys are missing from is completed without them.
            .filter(|open| open.acknowledged.is_none() || !self.is_prepared(run, open))
            .filter(|open| now >= open.triggered.plus(self.settings.pace.timeout))
            .map(|open| (open.checkpoint, self.settings.describe_delay(open)))
            .collect();
        for (checkpoint, reason) in late {
            self.abort(now, checkpoint, reason, effects);
        }
    }

    /// Whether the job can go on from a checkpoint as it is to: with a cut-over everything has to be where it is to run.
    fn is_prepared(&self, run: &Run, open: &Open) -> bool {
        let is_there = |(task, workers): (&TaskId, &Vec<NodeId>)| {
            let runs = workers.first();
            runs.is_some_and(|worker| self.holders.holds(*worker, *task, open.checkpoint))
        };
        open.kind != CheckpointKind::CutOver || run.team.next.iter().all(is_there)
    }

    /// When a checkpoint that all tasks have acknowledged waits no longer for standbys.
    fn patience_ends(&self, open: &Open) -> Option<Tick> {
        let Settings {
            pace: Pace { interval, timeout },
            session_timeout,
        } = self.settings;
        let acknowledged = open.acknowledged?;
        let awaited = self.holders.awaited(open.checkpoint, self.completed);
        let patience = awaited.map(|standby| match self.holders.prepares(&standby) {
            true => PREPARING_PATIENCE,
            false => Span(session_timeout.0 + STANDBY_PATIENCE.0).max(Span(interval.0 * 2)),
        });
        let ends = |patience| {
            acknowledged
                .plus(patience)
                .min(open.triggered.plus(timeout))
        };
        Some(patience.max().map_or(acknowledged, ends))
    }

    /// The newest checkpoint that every task has acknowledged covers the ones before it.
    fn propose(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        let Some(run) = &self.run else { return };
        // Also one of a generation that has ended since: outcomes come one after another.
        if self.proposed.is_some() {
            return;
        }
        let proposable = |open: &Open| {
            self.patience_ends(open).is_some_and(|at| at <= now) && self.is_prepared(run, open)
        };
        let Some(at) = run.open.iter().rposition(proposable) else {
            return;
        };
        let Some(run) = &mut self.run else { return };
        run.open[at].phase = Phase::Proposed;
        let Some(run) = &self.run else { return };
        let open = &run.open[at];
        self.proposed = Some(open.checkpoint);
        let seen = self
            .history
            .get(open.checkpoint)
            .expect("the history is longer than what can be open");
        effects.push(Effect::Complete(CommitPermit::new(Proven {
            generation: run.generation,
            checkpoint: open.checkpoint,
            kind: open.kind,
            holders: run
                .team
                .worker_of
                .iter()
                .map(|(task, worker)| {
                    let standbys = self.holders.of(*task, open.checkpoint);
                    (*task, std::iter::once(*worker).chain(standbys).collect())
                })
                .chain(self.holders_of_next(&run.team.next, open.checkpoint))
                .collect(),
            positions: seen.positions.clone(),
            counts: seen.counts.clone(),
            duration: now.since(open.triggered),
            delta_bytes: seen.delta_bytes,
            state_bytes: seen.state_bytes,
        })));
    }

    /// Where each is to run first, if it is there.
    fn holders_of_next<'a>(
        &'a self,
        next: &'a Standbys,
        checkpoint: CheckpointId,
    ) -> impl Iterator<Item = (TaskId, Vec<NodeId>)> + 'a {
        next.iter().filter_map(move |(task, workers)| {
            let holds = |worker: &NodeId| self.holders.holds(*worker, *task, checkpoint);
            let holders: Vec<NodeId> = workers.iter().copied().filter(holds).collect();
            (!holders.is_empty()).then_some((*task, holders))
        })
    }

    fn own(&mut self, first: CheckpointId, last: CheckpointId) {
        self.reserving = false;
        // A restored state has a number above it.
        if last < self.reserved {
            return;
        }
        assert!(
            self.reserved < first && first <= last,
            "a block of numbers is reserved once: {first} to {last} after {}",
            self.reserved
        );
        if first > self.reserved.next() {
            self.last = CheckpointId(first.0 - 1);
        }
        self.reserved = last;
    }

    fn reserve(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        let Some(run) = &self.run else { return };
        let left = self.reserved.0 - self.last.0;
        if !self.reserving && left < RESERVE_BELOW && now >= self.reserve_after {
            self.reserving = true;
            effects.push(Effect::Reserve {
                generation: run.generation,
            });
        }
    }

    fn trigger(&mut self, now: Tick) {
        let Some(run) = &mut self.run else { return };
        let aligning = |open: &Open| matches!(open.phase, Phase::Aligning { .. });
        let stopping = |open: &Open| open.kind.is_last();
        if run.done
            || run.open.len() == MAX_OPEN
            || run.open.iter().any(|open| aligning(open) || stopping(open))
            || now < run.not_before
            || (now < run.due && !run.kind.is_last())
            || self.last == self.reserved
        {
            return;
        }
        self.last = self.last.next();
        let checkpoint = self.last;
        let kind = run.kind;
        let sources = run.team.sources.iter();
        let workers: BTreeSet<NodeId> = sources.map(|task| run.team.worker_of[task]).collect();
        run.due = now.plus(self.settings.pace.interval);
        run.open.push(Open {
            checkpoint,
            kind,
            triggered: now,
            phase: Phase::Aligning {
                unconfirmed: workers.into_iter().map(|worker| (worker, now)).collect(),
            },
            missing: run.team.worker_of.keys().copied().collect(),
            acknowledged: None,
        });
        self.history.begin(Record {
            checkpoint,
            generation: run.generation,
            kind,
            triggered: now,
            ended: None,
            outcome: Outcome::InProgress,
            tasks: run.team.worker_of.len(),
            acknowledged: 0,
            delta_bytes: 0,
            state_bytes: 0,
            positions: BTreeMap::new(),
            counts: BTreeMap::new(),
        });
    }

    /// Also for the first time.
    fn inject(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        let Some(run) = &mut self.run else { return };
        for open in &mut run.open {
            let Phase::Aligning { unconfirmed } = &mut open.phase else {
                continue;
            };
            for (worker, at) in unconfirmed.iter_mut().filter(|(_, at)| **at <= now) {
                *at = now.plus(INJECT_AGAIN);
                effects.push(Effect::Inject {
                    worker: *worker,
                    generation: run.generation,
                    checkpoint: open.checkpoint,
                    kind: open.kind,
                });
            }
        }
    }

    fn next_trigger(&self, run: &Run) -> Option<Tick> {
        let at = if run.kind.is_last() {
            run.not_before
        } else {
            run.due.max(run.not_before)
        };
        (!run.done).then_some(at)
    }

    fn open_mut(&mut self, generation: Generation, checkpoint: CheckpointId) -> Option<&mut Open> {
        let run = self.run.as_mut()?;
        if run.generation != generation {
            return None;
        }
        run.open
            .iter_mut()
            .find(|open| open.checkpoint == checkpoint)
    }
}

impl Settings {
    fn describe_delay(&self, open: &Open) -> String {
        let waiting_for = match &open.phase {
            Phase::Aligning { unconfirmed } => unconfirmed
                .keys()
                .map(|worker| format!("the sources of worker {worker}"))
                .collect::<Vec<_>>(),
            Phase::Persisting | Phase::Proposed => {
                let missing = open.missing.iter();
                let missing = missing.map(|task| format!("task {task}"));
                match open.acknowledged {
                    None => missing.collect(),
                    Some(_) => vec!["the tasks of the next division".to_owned()],
                }
            }
        };
        let more = waiting_for.len().saturating_sub(5);
        let mut reason = format!(
            "not complete after {}: waiting for {}",
            self.pace.timeout,
            waiting_for[..waiting_for.len() - more].join(", ")
        );
        if more > 0 {
            reason.push_str(&format!(" and {more} more"));
        }
        reason
    }
}
