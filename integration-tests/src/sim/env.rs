//! What a process of the world lives in: time, the network, chance, and those who watch.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use common::error::Problem;
use common::ids::{NodeId, TaskId};
use common::random::{Random, below, seeded};
use common::time::{Clock, ManualClock, Span, Tick, Timestamp};

use super::clocks::Clocks;
use super::group::Group;
use super::network::{CallFailed, CallId, Fate, Network, Process, Reply, Request, ReturnAddress};
use super::sabotage::Sabotage;
use super::swarm::{Kind, Kinds};
use super::{client, coordinator, worker};
use crate::checkers::{Checkers, Verdict};

/// Lines of the trace that are kept.
const TRACE_LINES: usize = 400;
/// What takes a disk a while takes a slow one so many times as long.
const SLOW_DISK: u64 = 20;

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    Request {
        to: Process,
        from: ReturnAddress,
        request: Request,
    },
    Answer {
        to: ReturnAddress,
        answer: Result<Reply, CallFailed>,
    },
    Timer {
        process: Process,
        life: u64,
        timer: Timer,
    },
    /// The connections of a process that has ended break.
    HungUp {
        to: Process,
        gone: Process,
        life: u64,
    },
    /// A worker that has tasks loses its disk once it may, and comes back so much later.
    LoseDisk(usize, Span),
    /// The next of the faults is due.
    Fault,
    /// It is looked at who leads, and who has come to know what.
    Group,
    Restart(Process),
}

#[derive(Debug)]
pub enum Timer {
    Coordinator(coordinator::Timer),
    Worker(worker::Timer),
    Client(client::Timer),
}

#[derive(Debug)]
pub struct Env {
    /// Of the world.
    pub time: Tick,
    /// What the clock of who acts shows; where the world itself acts, its time.
    pub now: Tick,
    pub network: Network,
    pub group: Group,
    pub checkers: Checkers,
    pub sabotage: Option<Sabotage>,
    /// How often a task did not have in memory what it needed.
    pub questions: u64,
    /// How often a replica of several began to lead, and how often a log was cut off.
    pub reigns: u64,
    pub cut_off: u64,
    pub suspected: u64,
    /// How often a task with state went on elsewhere than before, and how often of that what a standby had in
    /// memory was enough.
    pub promoted: u64,
    pub promoted_hot: u64,
    /// How often a task that had failed left its tables.
    pub left_by_failed: u64,
    /// How often the job was to be divided anew, and how often it was.
    pub rescales: u64,
    pub rescaled: u64,
    /// Whether the job runs and has something left to do, and what has struck it then.
    pub at_work: bool,
    pub struck: Kinds,
    /// Where each task ran last.
    pub ran_on: BTreeMap<TaskId, NodeId>,
    pub clocks: Clocks,
    acting: Option<(Process, Arc<ManualClock>)>,
    /// Whose disk is slow, and until when.
    slow_disks: BTreeMap<Process, Tick>,
    random: Random,
    queue: BTreeMap<(Tick, u64), Event>,
    next: u64,
    trace: VecDeque<String>,
    broken: Option<String>,
}

impl Event {
    /// Who acts on it; `None`: the world.
    pub fn acts(&self) -> Option<Process> {
        match self {
            Event::Request { to, .. } => Some(*to),
            Event::Answer { to, .. } => Some(to.caller),
            Event::Timer { process, .. } => Some(*process),
            Event::HungUp { to, .. } => Some(*to),
            Event::LoseDisk(..) | Event::Fault | Event::Group | Event::Restart(_) => None,
        }
    }
}

impl Env {
    pub fn new(
        seed: u64,
        clocks: Clocks,
        network: Network,
        group: Group,
        sabotage: Option<Sabotage>,
    ) -> Env {
        Env {
            time: Tick(0),
            now: Tick(0),
            network,
            group,
            checkers: Checkers::default(),
            sabotage,
            questions: 0,
            reigns: 0,
            cut_off: 0,
            suspected: 0,
            promoted: 0,
            promoted_hot: 0,
            left_by_failed: 0,
            rescales: 0,
            rescaled: 0,
            at_work: false,
            struck: Kinds::default(),
            ran_on: BTreeMap::new(),
            clocks,
            acting: None,
            slow_disks: BTreeMap::new(),
            random: seeded(seed, 1),
            queue: BTreeMap::new(),
            next: 0,
            trace: VecDeque::new(),
            broken: None,
        }
    }

    /// The next event, at its time. What is for a process that is stopped waits until that goes on.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let ((at, _), event) = self.queue.pop_first()?;
            self.time = at;
            self.act(None);
            let stopped = event.acts().and_then(|who| self.network.stopped(at, who));
            match stopped {
                Some(until) => self.after(until.since(at), event),
                None => return Some(event),
            }
        }
    }

    /// From now on this process acts, by its own clock, or the world.
    pub fn act(&mut self, who: Option<Process>) {
        self.acting = who.map(|process| (process, self.clocks.of(process)));
        self.now = match who {
            Some(process) => self.clocks.show(process, self.time),
            None => self.time,
        };
    }

    /// The wall clock of who acts.
    pub fn wall(&self) -> Timestamp {
        self.clock().wall()
    }

    /// The clock of who acts.
    pub fn clock(&self) -> Arc<dyn Clock> {
        let (_, clock) = self.acting.as_ref().expect("a process acts");
        clock.clone()
    }

    /// So long after now by the clock of who acts.
    pub fn after(&mut self, delay: Span, event: Event) {
        let delay = match &self.acting {
            Some((process, _)) => self.clocks.lasts(*process, self.time, delay),
            None => delay,
        };
        self.next += 1;
        self.queue.insert((self.time.plus(delay), self.next), event);
    }

    /// From 0 to before `bound`.
    pub fn draw(&mut self, bound: u64) -> u64 {
        below(&mut self.random, bound)
    }

    /// A time up to so many milliseconds, which something takes.
    pub fn some_ms(&mut self, most: u64) -> Span {
        Span(self.draw(most + 1))
    }

    /// A time up to so many milliseconds, which the disk of who acts takes; longer if it is slow.
    pub fn some_disk_ms(&mut self, most: u64) -> Span {
        let slow = self.acting.as_ref();
        let slow = slow.and_then(|(process, _)| self.slow_disks.get(process));
        let times = match slow.is_some_and(|until| self.time < *until) {
            true => SLOW_DISK,
            false => 1,
        };
        self.some_ms(most * times)
    }

    pub fn slow_disk(&mut self, process: Process, until: Tick) {
        self.slow_disks.insert(process, until);
    }

    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Calls another process; the answer comes as an event, at the latest when the deadline has come.
    pub fn call(
        &mut self,
        (caller, life): (Process, u64),
        callee: Process,
        request: Request,
        deadline: Span,
    ) -> CallId {
        self.next += 1;
        let call = self.next;
        let from = ReturnAddress {
            caller,
            life,
            call,
            callee,
        };
        let to = callee;
        let answer = Err(CallFailed::Timeout);
        self.after(deadline, Event::Answer { to: from, answer });
        match self.fate(caller, callee) {
            Fate::Arrives(delay) => {
                if let Some(later) = self.network.repetition(caller, callee) {
                    self.strike(Kind::MessageRepeated);
                    let request = request.clone();
                    let again = Event::Request { to, from, request };
                    self.after(Span(delay.0 + later.0), again);
                }
                self.after(delay, Event::Request { to, from, request });
            }
            Fate::Breaks(delay) => {
                let answer = Err(CallFailed::Broken);
                self.after(delay, Event::Answer { to: from, answer });
            }
            Fate::Vanishes => {}
        }
        call
    }

    pub fn answer(&mut self, to: ReturnAddress, answer: Result<Reply, Problem>) {
        let answer = answer.map_err(CallFailed::Problem);
        match self.fate(to.callee, to.caller) {
            Fate::Arrives(delay) => self.after(delay, Event::Answer { to, answer }),
            Fate::Breaks(delay) => {
                let answer = Err(CallFailed::Broken);
                self.after(delay, Event::Answer { to, answer });
            }
            Fate::Vanishes => {}
        }
    }

    /// A process has ended, and another one hears of it, unless something is between them.
    pub fn hang_up(&mut self, (gone, life): (Process, u64), to: Process) {
        match self.fate(gone, to) {
            Fate::Arrives(delay) | Fate::Breaks(delay) => {
                self.after(delay, Event::HungUp { to, gone, life });
            }
            Fate::Vanishes => {}
        }
    }

    fn fate(&mut self, from: Process, to: Process) -> Fate {
        let fate = self.network.fate(self.time, from, to);
        match fate {
            Fate::Arrives(delay) if delay.0 > self.network.weather.delay_ms => {
                self.strike(Kind::MessageSlow);
            }
            Fate::Breaks(_) => self.strike(Kind::MessageLost),
            Fate::Arrives(_) | Fate::Vanishes => {}
        }
        fate
    }

    /// Something strikes the world, maybe while there is work.
    pub fn strike(&mut self, kind: Kind) {
        if self.at_work {
            self.struck.add(kind);
        }
    }

    /// Nobody listens where the call went.
    pub fn refuse(&mut self, to: ReturnAddress) {
        let answer = Err(CallFailed::Refused);
        self.after(Span(1), Event::Answer { to, answer });
    }

    pub fn sabotaged(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    pub fn check(&mut self, verdict: Verdict) {
        if let Err(broken) = verdict {
            self.break_promise(broken);
        }
    }

    /// Only the first counts: what follows may be its consequence.
    pub fn break_promise(&mut self, broken: String) {
        self.trace(|| format!("BROKEN: {broken}"));
        self.broken.get_or_insert(broken);
    }

    pub fn broken(&self) -> Option<&String> {
        self.broken.as_ref()
    }

    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        self.trace
            .push_back(format!("{:>8} {}", self.time.0, line()));
    }

    pub fn trace_tail(&self) -> impl Iterator<Item = &String> {
        self.trace.iter()
    }
}
