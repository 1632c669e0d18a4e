//! What a task does with what its inputs have: through its chain, to its outputs and its sink; and what
//! barriers, completions and time mean to it.
//!
//! It takes from queues and puts into queues, and never waits: the shell gives it turns. A turn is short,
//! so that the tasks of one thread take turns. Nothing is taken while an output is full: pressure reaches
//! the source, and the log keeps what is not read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use common::error::Problem;
use common::ids::{CheckpointId, TaskId};
use common::limits::MAX_ROWS_PER_MESSAGE;
use common::protocol::state::{QueryState, StateEntries};
use common::protocol::task::{TaskMetrics, TaskState as Standing};
use common::time::{Tick, Timestamp};

use super::chain::{Chain, ChainOutput};
use super::channel_input::{Arrival, ChannelInput};
use super::dead_letter::DeadLetter;
use super::event_time;
use super::message::{Barrier, Rows, Signal};
use super::messages::{Sealed, Snapshot};
use super::output::Output;
use super::query;
use super::sink_pump::{SinkCommand, SinkEvent, SinkQueue};
use super::source_gate::SourceGate;
use super::source_input::SourceInput;
use super::task_state::{TaskState, deltas_of};
use crate::link::reports::TaskStatus;
use crate::operator::OperatorError;
use crate::sink::SinkError;
use crate::source::watermark::Watermarks;
use crate::source::{SourceError, SourceEvent, SourceRows};

/// Messages a task works on before it lets the other tasks of its thread have their turn.
const MESSAGES_PER_TURN: usize = 4;

/// Where a task's rows come from.
#[derive(Debug)]
pub enum Input {
    Source(SourceSide),
    Channels(ChannelInput),
}

/// A source, and what it says about time.
#[derive(Debug)]
pub struct SourceSide {
    pub reader: SourceInput,
    pub watermarks: Watermarks,
    /// The position of the event-time column in its rows, if there is one.
    pub time_column: Option<usize>,
    /// The latest event time that a former life read of each split.
    pub clocks: BTreeMap<Arc<str>, Timestamp>,
    pub gate: SourceGate,
}

/// Everything a task is made of.
#[derive(Debug)]
pub struct TaskMachine {
    pub task: TaskId,
    pub status: Arc<TaskStatus>,
    pub input: Input,
    pub chain: Chain,
    pub state: TaskState,
    pub outputs: Vec<Output>,
    pub sink: SinkQueue,
    pub progress: Progress,
    /// The checkpoint its state is of; `None`: it starts from nothing.
    pub restored: Option<CheckpointId>,
}

/// Where the task is, and what it has done.
#[derive(Debug)]
pub struct Progress {
    watermark: Timestamp,
    /// No barrier up to this one is of interest any more.
    sealed: CheckpointId,
    /// A stop barrier has passed: a source reads no further. Only more such barriers follow.
    stopped: bool,
    /// The source has ended, and everything it gave has been sent on.
    exhausted: bool,
    /// Sealed, and waiting for the sink to be prepared.
    sealing: VecDeque<CheckpointId>,
    /// Snapshots the job has not taken yet, in order: none may be lost, because each holds changes that
    /// no later one repeats.
    handing_over: VecDeque<Sealed>,
    /// The checkpoint whose completion arrived last.
    completed: Option<CheckpointId>,
    metrics: TaskMetrics,
    meter: Meter,
}

/// How the time since the last look was spent.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    since: Tick,
    turns: u64,
    busy_turns: u64,
    blocked_turns: u64,
}

/// Why a task ends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    /// The same would happen again.
    pub fatal: bool,
}

impl Progress {
    pub fn restored(
        restored: Option<CheckpointId>,
        sealed: CheckpointId,
        watermark: Timestamp,
    ) -> Progress {
        Progress {
            watermark,
            sealed,
            stopped: false,
            exhausted: false,
            sealing: VecDeque::new(),
            handing_over: VecDeque::new(),
            completed: restored,
            metrics: TaskMetrics::default(),
            meter: Meter::default(),
        }
    }
}

impl TaskMachine {
    /// Goes on where its state was left. Called once, before anything else.
    pub fn start(&mut self) -> Result<(), Failure> {
        if let Some(checkpoint) = self.restored {
            // A former life may have ended between a checkpoint's completion and its commit.
            self.commit(checkpoint);
        }
        let output = self.chain.restore()?;
        self.dispatch(output)?;
        self.status.set_state(Standing::Running);
        Ok(())
    }

    /// Works until nothing is there, an output is full, or others should have their turn; true: there
    /// is more to do.
    pub fn turn(&mut self) -> Result<bool, Failure> {
        self.sink.advance();
        self.sink_events()?;
        self.progress.meter.turns += 1;
        for _ in 0..MESSAGES_PER_TURN {
            if !self.has_room() {
                // Whoever makes room wakes this task.
                self.progress.meter.blocked_turns += 1;
                return Ok(false);
            }
            if !self.step()? {
                return Ok(false);
            }
            self.progress.meter.busy_turns += 1;
        }
        Ok(true)
    }

    /// The coordinator has the source cut its rows here; with `drain`, as if it ended here. Repeated until
    /// acknowledged, so it may come again.
    pub fn inject(&mut self, barrier: Barrier, drain: bool) -> Result<(), Failure> {
        // Also after a stop barrier: the last checkpoint is taken again until one completes.
        if barrier.checkpoint > self.progress.sealed {
            if drain {
                self.end_of_time()?;
            }
            self.barrier(barrier)?;
        }
        Ok(())
    }

    /// The checkpoint is a fact: everything up to it counts.
    pub fn complete(&mut self, checkpoint: CheckpointId) {
        if self
            .progress
            .completed
            .is_some_and(|completed| checkpoint <= completed)
        {
            return;
        }
        self.progress.completed = Some(checkpoint);
        if let Input::Source(source) = &mut self.input {
            source.gate.completed(checkpoint);
        }
        for (_, state) in self.chain.states_mut() {
            for table in state.tables.values_mut() {
                table.complete(checkpoint);
            }
        }
        self.state.complete(checkpoint);
        self.commit(checkpoint);
    }

    /// The next snapshot for the job to make durable.
    pub fn hand_over(&mut self) -> Option<Sealed> {
        self.progress.handing_over.pop_front()
    }

    /// The job could not take it; it goes first the next time.
    pub fn take_back(&mut self, sealed: Sealed) {
        self.progress.handing_over.push_front(sealed);
    }

    pub fn query(&self, query: &QueryState) -> Result<StateEntries, Problem> {
        let watermark = self.progress.watermark;
        query::answer(
            query,
            &self.chain,
            (watermark > Timestamp::MIN).then_some(watermark),
        )
    }

    /// The event time its rows have reached.
    pub fn watermark(&self) -> Timestamp {
        self.progress.watermark
    }

    /// Gathers the numbers shown to people.
    pub fn measure(&mut self, now: Tick) {
        let meter = std::mem::take(&mut self.progress.meter);
        self.progress.meter.since = now;
        let metrics = &mut self.progress.metrics;
        metrics.watermark =
            (self.progress.watermark > Timestamp::MIN).then_some(self.progress.watermark);
        (metrics.state_bytes, metrics.state_keys) = self
            .chain
            .operators()
            .flat_map(|(_, _, state)| state.tables.values())
            .map(|table| table.size())
            .fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
        metrics.blocked_permille = permille(meter.blocked_turns, meter.turns);
        metrics.busy_permille = permille(meter.busy_turns, meter.turns * MESSAGES_PER_TURN as u64);
        self.status.set_metrics(*metrics);
    }

    fn commit(&mut self, checkpoint: CheckpointId) {
        let prepared = self.state.committables(checkpoint);
        self.sink.push(SinkCommand::Commit(checkpoint, prepared));
        self.state.forget_committables(checkpoint);
    }

    fn has_room(&self) -> bool {
        self.sink.has_room() && self.outputs.iter().all(Output::has_room)
    }

    /// Takes one thing from the inputs. False: there was none.
    fn step(&mut self) -> Result<bool, Failure> {
        match &mut self.input {
            Input::Source(_) if self.progress.stopped => return Ok(false),
            Input::Source(source) if source.gate.is_closed() => return Ok(false),
            Input::Source(source) => {
                let Some(event) = source.reader.take() else {
                    return Ok(false);
                };
                self.source_event(event?)?;
            }
            Input::Channels(channels) => match channels.take() {
                None => return Ok(false),
                Some(Arrival::Rows(input, rows)) => {
                    self.progress.metrics.bytes_in += rows.batch.get_array_memory_size() as u64;
                    self.rows(input, rows)?;
                }
                Some(Arrival::Signal(signal)) => self.signal(signal)?,
            },
        }
        Ok(true)
    }

    fn source_event(&mut self, event: SourceEvent) -> Result<(), Failure> {
        let Input::Source(source) = &mut self.input else {
            unreachable!("only a source gives source events");
        };
        let watermarks = &mut source.watermarks;
        match event {
            SourceEvent::Rows(read) => {
                let SourceRows {
                    split,
                    rows,
                    dead_letters,
                    bytes,
                    lag,
                    ..
                } = read;
                // Said before the rows, so that nobody downstream still leaves this task out.
                let column = source.time_column.map(|column| rows.batch.column(column));
                let latest = column.and_then(|column| event_time::latest(column));
                let woke = watermarks.rows(&split, latest);
                self.progress.metrics.bytes_in += bytes;
                self.progress.metrics.lag_records = lag;
                self.dead_letters(dead_letters, 0);
                if let Some(signal) = woke {
                    self.signal(signal)?;
                }
                if !rows.is_empty() {
                    self.rows(0, rows)?;
                }
            }
            SourceEvent::CaughtUp { split, at } => {
                self.progress.metrics.lag_records = 0;
                watermarks.caught_up(&split, at);
            }
            SourceEvent::Waiting => watermarks.waiting(),
            SourceEvent::Discovered { split } => {
                watermarks.add(&split.split, source.clocks.remove(&split.split));
            }
            SourceEvent::Ended { split } => watermarks.ended(&split),
            SourceEvent::Exhausted => {
                watermarks.exhausted();
                self.progress.exhausted = true;
            }
        }
        self.advance_time()?;
        if self.progress.exhausted {
            self.status.set_state(Standing::Exhausted);
        }
        Ok(())
    }

    /// The source reads no further, as if it ended here.
    fn end_of_time(&mut self) -> Result<(), Failure> {
        if let Input::Source(source) = &mut self.input {
            source.watermarks.exhausted();
        }
        self.advance_time()
    }

    /// What the source's splits together say about time, if it is news.
    fn advance_time(&mut self) -> Result<(), Failure> {
        let Input::Source(source) = &mut self.input else {
            return Ok(());
        };
        let signal = source.watermarks.advance();
        signal.map_or(Ok(()), |signal| self.signal(signal))
    }

    fn rows(&mut self, input: u16, rows: Rows) -> Result<(), Failure> {
        self.progress.metrics.rows_in += rows.len() as u64;
        let output = self.chain.rows(input, rows)?;
        self.dispatch(output)
    }

    fn signal(&mut self, signal: Signal) -> Result<(), Failure> {
        match signal {
            Signal::Barrier(barrier) => self.barrier(barrier),
            Signal::Watermark(watermark) => {
                self.progress.watermark = watermark;
                let output = self.chain.watermark(watermark)?;
                self.dispatch(output)?;
                let watermark = self.chain.output_watermark(watermark);
                self.forward(Signal::Watermark(watermark))
            }
            Signal::Idle | Signal::Active => self.forward(signal),
        }
    }

    /// Seals everything before the barrier and passes it on. The task goes on at once; the sink tells
    /// later that it is prepared.
    fn barrier(&mut self, barrier: Barrier) -> Result<(), Failure> {
        let output = self.chain.seal(barrier.checkpoint)?;
        self.dispatch(output)?;
        self.forward(Signal::Barrier(barrier))?;
        if let Input::Source(source) = &mut self.input {
            self.state
                .note_source(source.reader.splits(), source.watermarks.latest());
            source.gate.sealed(barrier.checkpoint);
        }
        self.state.seal(barrier.checkpoint, self.progress.watermark);
        self.sink.push(SinkCommand::Barrier(barrier.checkpoint));
        self.progress.sealed = barrier.checkpoint;
        self.progress.stopped |= barrier.stop;
        self.progress.sealing.push_back(barrier.checkpoint);
        Ok(())
    }

    fn dispatch(&mut self, output: ChainOutput) -> Result<(), Failure> {
        self.dead_letters(output.dead_letters, output.late_rows);
        for rows in output.rows.into_iter().flat_map(cut) {
            self.progress.metrics.rows_out += rows.len() as u64;
            for edge in &mut self.outputs {
                edge.rows(&rows)?;
            }
            if self.sink.has_sink() {
                self.sink.push(SinkCommand::Rows(rows));
            }
        }
        Ok(())
    }

    fn dead_letters(&mut self, letters: Vec<DeadLetter>, late_rows: u64) {
        if letters.is_empty() {
            return;
        }
        self.progress.metrics.dead_letters += letters.len() as u64;
        self.progress.metrics.late_rows += late_rows;
        self.sink.push(SinkCommand::DeadLetters(letters));
    }

    fn forward(&mut self, signal: Signal) -> Result<(), Failure> {
        for edge in &self.outputs {
            edge.signal(signal)?;
        }
        Ok(())
    }

    fn sink_events(&mut self) -> Result<(), Failure> {
        while let Some(event) = self.sink.event() {
            match event {
                SinkEvent::Prepared(checkpoint, committable) => {
                    let sealed = self.progress.sealing.pop_front();
                    assert_eq!(
                        sealed,
                        Some(checkpoint),
                        "a sink prepares barriers in order"
                    );
                    self.state.seal_sink(checkpoint, committable);
                    self.snapshot(checkpoint);
                }
                SinkEvent::Committed(checkpoint) => {
                    if self.progress.stopped && checkpoint >= self.progress.sealed {
                        // The numbers people find when the job has ended.
                        self.status.set_metrics(self.progress.metrics);
                        self.status.set_state(Standing::Finished);
                    }
                }
                SinkEvent::Failed(SinkError::Fatal(reason)) => {
                    return Err(Failure {
                        reason,
                        fatal: true,
                    });
                }
                SinkEvent::Failed(SinkError::Broken(reason)) => {
                    return Err(Failure {
                        reason,
                        fatal: false,
                    });
                }
            }
        }
        Ok(())
    }

    /// Everything of the checkpoint is here: the job makes it durable.
    fn snapshot(&mut self, checkpoint: CheckpointId) {
        let mut deltas = self.state.deltas(checkpoint);
        for (id, _, state) in self.chain.operators() {
            deltas.extend(deltas_of(id, state, checkpoint));
        }
        let positions = self.state.positions(checkpoint);
        let snapshot = Snapshot {
            deltas,
            state_bytes: self.progress.metrics.state_bytes,
            positions: positions
                .into_iter()
                .map(|s| (s.split.to_string(), s.position))
                .collect(),
        };
        self.progress.handing_over.push_back(Sealed {
            task: self.task,
            checkpoint,
            snapshot,
        });
    }
}

/// Rows in messages no larger than a channel is made for.
fn cut(rows: Rows) -> impl Iterator<Item = Rows> {
    let total = rows.len();
    (0..total).step_by(MAX_ROWS_PER_MESSAGE).map(move |start| {
        if total <= MAX_ROWS_PER_MESSAGE {
            return rows.clone();
        }
        rows.slice(start, MAX_ROWS_PER_MESSAGE.min(total - start))
    })
}

fn permille(part: u64, whole: u64) -> u16 {
    u16::try_from((part * 1000).checked_div(whole).unwrap_or(0).min(1000)).expect("at most 1000")
}

impl From<OperatorError> for Failure {
    fn from(error: OperatorError) -> Failure {
        Failure {
            reason: error.reason,
            fatal: error.fatal,
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Failure {
        let fatal = matches!(error, SourceError::Fatal(_));
        Failure {
            reason: error.to_string(),
            fatal,
        }
    }
}

impl From<arrow::error::ArrowError> for Failure {
    fn from(error: arrow::error::ArrowError) -> Failure {
        Failure {
            reason: format!("rows cannot be sent on: {error}"),
            fatal: true,
        }
    }
}
