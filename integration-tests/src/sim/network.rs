//! Calls between processes: each request and each reply is delayed, lost, or (the request) delivered twice.
//!
//! Calls overtake each other, as calls over pooled connections do. A lost message mostly shows as a
//! broken connection, which says nothing about what happened; sometimes as silence until the deadline.

use std::collections::BTreeMap;

use common::error::Problem;
use common::protocol::checkpoint::{AckCheckpoint, DeclineCheckpoint, InjectBarrier};
use common::protocol::exchange::{Bundle, BundleReply};
use common::protocol::fetch::{FetchBatches, FetchedBatches};
use common::protocol::metadata::{FetchMetadata, MetadataDelta};
use common::protocol::node::{Heartbeat, HeartbeatReply, RegisterWorker, Registered};
use common::protocol::produce::{Append, AppendedBatch};
use common::protocol::replicate::{AlterIsr, IsrAltered, Replicate, Replicated};
use common::protocol::standby::{AckStandby, FetchState, StateFetched};
use common::random::{Random, below};
use common::time::{Span, Tick};
use coordinator::metadata::command::Command;

use super::tally::Shape;

/// A process of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    Coordinator(usize),
    Worker(usize),
    Client,
}

#[derive(Clone, Debug)]
pub enum Request {
    Register(RegisterWorker),
    Heartbeat(Heartbeat),
    FetchMetadata(FetchMetadata),
    /// Whether somebody listens there.
    Probe,
    Inject(InjectBarrier),
    Acknowledge(AckCheckpoint),
    Decline(DeclineCheckpoint),
    /// A standby has what it says it has.
    Hold(AckStandby),
    FetchState(FetchState),
    /// Batches of one partition.
    Append(Append),
    Fetch(FetchBatches),
    Bundle(Bundle),
    Replicate(Replicate),
    AlterIsr(AlterIsr),
    /// What a user asks of the coordinator.
    Command(Box<Command>),
    /// A user wants the job to have as many tasks as this.
    Rescale(Shape),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Registered(Registered),
    Heartbeat(HeartbeatReply),
    Metadata(Box<MetadataDelta>),
    Done,
    Appended(Vec<AppendedBatch>),
    Fetched(FetchedBatches),
    State(StateFetched),
    Bundle(BundleReply),
    Replicated(Replicated),
    IsrAltered(IsrAltered),
}

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallFailed {
    Problem(Problem),
    /// Nobody listens there: it was certainly not done.
    Refused,
    /// The connection broke.
    Broken,
    Timeout,
}

pub type CallId = u64;

/// Where a reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReturnAddress {
    pub caller: Process,
    pub life: u64,
    pub call: CallId,
    /// Who answers.
    pub callee: Process,
}

/// How bad the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    pub delay_ms: u64,
    pub lost_permille: u64,
    pub twice_permille: u64,
    /// Of a thousand messages so many take a hundred times as long.
    pub slow_permille: u64,
}

#[derive(Debug)]
pub struct Network {
    pub weather: Weather,
    random: Random,
    /// Which pairs do not hear each other, and until when.
    cuts: BTreeMap<(Process, Process), Tick>,
    /// Processes that do nothing until then. What is sent to them arrives, and nobody reads it.
    stopped: BTreeMap<Process, Tick>,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Arrives(Span),
    /// Both ends notice that the connection broke.
    Breaks(Span),
    Vanishes,
}

impl CallFailed {
    /// Whether the same call may succeed later.
    pub fn is_retriable(&self) -> bool {
        match self {
            CallFailed::Problem(problem) => problem.code.is_retriable(),
            CallFailed::Refused | CallFailed::Broken | CallFailed::Timeout => true,
        }
    }
}

impl Weather {
    pub const CALM: Weather = Weather {
        delay_ms: 2,
        lost_permille: 0,
        twice_permille: 0,
        slow_permille: 0,
    };
}

impl Network {
    pub fn new(weather: Weather, random: Random) -> Network {
        Network {
            weather,
            random,
            cuts: BTreeMap::new(),
            stopped: BTreeMap::new(),
        }
    }

    /// These do not hear each other for a while.
    pub fn cut(&mut self, a: Process, b: Process, until: Tick) {
        self.cuts.insert((a.min(b), a.max(b)), until);
    }

    pub fn stop(&mut self, process: Process, until: Tick) {
        self.stopped.insert(process, until);
    }

    /// It goes on, or has ended.
    pub fn go_on(&mut self, process: Process) {
        self.stopped.remove(&process);
    }

    /// Until when it does nothing.
    pub fn stopped(&self, now: Tick, process: Process) -> Option<Tick> {
        let until = self.stopped.get(&process).copied();
        until.filter(|until| now < *until)
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
        self.weather = Weather::CALM;
    }

    /// Whether these hear each other.
    pub fn hear(&self, now: Tick, a: Process, b: Process) -> bool {
        let cut = self.cuts.get(&(a.min(b), a.max(b)));
        cut.is_none_or(|until| *until <= now)
    }

    /// Whether everybody hears everybody.
    pub fn is_whole(&self, now: Tick) -> bool {
        self.cuts.values().all(|until| *until <= now)
    }

    /// What becomes of a message that is sent now.
    pub fn fate(&mut self, now: Tick, from: Process, to: Process) -> Fate {
        if from == to {
            // Within a process nothing is lost.
            return Fate::Arrives(Span(below(&mut self.random, 2)));
        }
        if !self.hear(now, from, to) {
            return Fate::Vanishes;
        }
        let delay = self.delay();
        if below(&mut self.random, 1000) < self.weather.lost_permille {
            return match below(&mut self.random, 10) {
                0 => Fate::Vanishes,
                _ => Fate::Breaks(delay),
            };
        }
        Fate::Arrives(delay)
    }

    /// Whether a request is sent again by whatever lies between, and how much later.
    pub fn repetition(&mut self, from: Process, to: Process) -> Option<Span> {
        let twice = from != to && below(&mut self.random, 1000) < self.weather.twice_permille;
        twice.then(|| Span(self.delay().0 * 4))
    }

    fn delay(&mut self) -> Span {
        let delay = below(&mut self.random, self.weather.delay_ms + 1);
        let slow = below(&mut self.random, 1000) < self.weather.slow_permille;
        Span(if slow { delay * 100 } else { delay })
    }
}
