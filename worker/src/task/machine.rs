//! What a task does with what its inputs have: through its chain, to its outputs and its sink; and what
//! barriers, completions and time mean to it.
//!
//! It takes from queues and puts into queues, and never waits: the shell gives it turns. A turn is short,
//! so that the tasks of one thread take turns. Nothing is taken while an output is full: pressure reaches
//! the source, and the log keeps what is not read.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::error::Problem;
use common::ids::{CheckpointId, TaskId};
use common::limits::{MAX_ROWS_BYTES, MAX_ROWS_PER_MESSAGE};
use common::protocol::state::{Consistency, QueryState};
use common::protocol::task::TaskState as Standing;
use common::time::{Tick, Timestamp};

use super::chain::{self, Chain, ChainOutput, Question};
use super::channel_input::{Arrival, ChannelInput};
use super::dead_letter::DeadLetter;
use super::event_time;
use super::failure::Failure;
use super::memory::{MemoryShare, Pressure};
use super::message::{Barrier, Rows, Signal};
use super::messages::{Foldable, Sealed, Snapshot};
use super::output::Output;
use super::progress::{Progress, Sealing};
use super::query::{self, Reading};
use super::sink_pump::{SinkCommand, SinkEvent, SinkQueue};
use super::source_gate::SourceGate;
use super::source_input::SourceInput;
use super::task_state::{TaskState, deltas_of};
use super::under_way::{Asking, Doing, UnderWay, Work};
use crate::checkpoint::state_store::{LeftTask, RestoredTask, TaskTables};
use crate::checkpoint::view_reader::ViewReader;
use crate::keyed_state::stored::Answer;
use crate::keyed_state::table::{At, Table};
use crate::link::reports::TaskStatus;
use crate::sink::SinkError;
use crate::source::watermark::Watermarks;
use crate::source::{SourceEvent, SourceRows};

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
    /// What it may use, if its state need not be in memory.
    pub memory: Option<MemoryShare>,
    pub under_way: UnderWay,
}

impl TaskMachine {
    /// Goes on where its state was left. Called once, before anything else.
    pub fn start(&mut self) -> Result<(), Failure> {
        if let Some(checkpoint) = self.restored {
            // A former life may have ended between a checkpoint's completion and its commit.
            self.commit(checkpoint);
        }
        self.under_way.put(Work::Restore);
        self.work()
    }

    /// Gives up its tables, for the next generation to go on with, and with them what it is for. `reader`: of
    /// what they do not have in memory.
    pub fn leave(&mut self, reader: Option<ViewReader>) -> LeftTask {
        let mut tables: TaskTables = self.chain.take_tables().collect();
        tables.extend(self.state.take_tables());
        LeftTask {
            sealed: Some(self.progress.sealed),
            tables: RestoredTask { tables, reader },
        }
    }

    /// It goes on no more. Answers what it leaves, if that is still good.
    pub fn fail(&mut self, failure: Failure, reader: Option<ViewReader>) -> Option<LeftTask> {
        let Failure {
            reason,
            fatal,
            keeps_state,
        } = failure;
        self.status.set_state(Standing::Failed { reason, fatal });
        keeps_state.then(|| self.leave(reader))
    }

    /// Works until nothing is there, an output is full, or others should have their turn; true: there
    /// is more to do.
    pub fn turn(&mut self) -> Result<bool, Failure> {
        self.sink.advance();
        self.sink_events()?;
        self.progress.meter.turns += 1;
        for _ in 0..MESSAGES_PER_TURN {
            if !self.has_room() || self.under_way.is_asking() {
                // Whoever makes room, or answers, wakes this task.
                self.progress.meter.blocked_turns += 1;
                return Ok(false);
            }
            if self.under_way.is_empty() {
                let more = self.relieve();
                if !self.take()? {
                    return Ok(more);
                }
            }
            self.work()?;
            self.progress.meter.busy_turns += 1;
        }
        Ok(true)
    }

    /// What the store has to be asked before the task goes on; each question once.
    pub fn question(&mut self) -> Option<Question> {
        self.under_way.question()
    }

    /// The answer to its question. The next turn goes on with it.
    pub fn answered(&mut self, question: &Question, answer: Answer) {
        self.under_way.answered();
        self.chain.answer(question, answer);
    }

    /// The coordinator has the source cut its rows here; with `drain`, as if it ended here. Repeated until
    /// acknowledged, so it may come again.
    pub fn inject(&mut self, barrier: Barrier, drain: bool) -> Result<(), Failure> {
        // Also after a stop barrier: the last checkpoint is taken again until one completes.
        if barrier.checkpoint > self.progress.sealed {
            // Behind what was taken before it.
            if drain {
                self.under_way.put(Work::EndOfTime);
            }
            self.under_way.put(Work::Signal(Signal::Barrier(barrier)));
            self.work()?;
        }
        Ok(())
    }

    /// The checkpoint is a fact: everything up to it counts.
    pub fn complete(&mut self, checkpoint: CheckpointId) {
        if self.progress.complete(checkpoint) {
            if let Input::Source(source) = &mut self.input {
                source.gate.completed(checkpoint);
            }
            self.state.complete(checkpoint);
            self.commit(checkpoint);
            self.let_tables_know();
        }
    }

    /// The completed checkpoint is about to be folded.
    pub fn prepare_fold(&mut self, checkpoint: CheckpointId) -> Foldable {
        self.complete(checkpoint);
        let at_once = self.is_crowded();
        Foldable {
            up_to: self.progress.fold_begins(at_once),
            at_once,
        }
    }

    fn let_tables_know(&mut self) {
        while let Some(checkpoint) = self.progress.let_tables_know() {
            for table in self.chain.tables_mut() {
                table.complete(checkpoint);
            }
        }
    }

    /// The store has everything up to this checkpoint, so memory need not. `other`: it is not the store that
    /// answered until now.
    pub fn folded(&mut self, checkpoint: CheckpointId, other: bool) -> Result<(), Failure> {
        if other && self.chain.tables_mut().any(|table| table.needs_store()) {
            return Err(Failure {
                reason: "the store its state was read from is gone".to_owned(),
                fatal: false,
                keeps_state: false,
            });
        }
        let mut news = false;
        for table in self.chain.tables_mut() {
            news |= table.folded(checkpoint);
        }
        if let (Some(memory), true) = (&mut self.memory, news) {
            memory.retry();
        }
        // The rest follows in the turns of its own.
        self.relieve();
        Ok(())
    }

    /// The next snapshot for the job to make durable.
    pub fn hand_over(&mut self) -> Option<Sealed> {
        self.progress.handing_over.pop_front()
    }

    /// The job could not take it; it goes first the next time.
    pub fn take_back(&mut self, sealed: Sealed) {
        self.progress.handing_over.push_front(sealed);
    }

    /// Begins to read the state of one of its operators. Until `end_reading`, completed checkpoints do not
    /// replace the state that is read.
    pub fn begin_reading(&mut self, query: QueryState) -> Result<Reading, Problem> {
        let watermark = match (query.consistency, query.checkpoint) {
            (Consistency::Completed, Some(at)) => self.state.watermark_at(at),
            _ => self.progress.watermark,
        };
        let watermark = (watermark > Timestamp::MIN).then_some(watermark);
        let reading = Reading::begin(query, &self.chain, watermark)?;
        if let At::Completed(checkpoint) = reading.at() {
            self.progress.reading_began(checkpoint);
        }
        Ok(reading)
    }

    /// Reads on, as far as is possible without the store.
    pub fn read_on(
        &self,
        reading: &mut Reading,
        answer: Option<Answer>,
    ) -> Result<query::Step, Problem> {
        reading.step(&self.chain, answer)
    }

    /// Nobody goes on with a reading that began.
    pub fn end_reading(&mut self, reading: &Reading) {
        if let At::Completed(checkpoint) = reading.at() {
            self.progress.reading_ended(checkpoint);
            self.let_tables_know();
        }
    }

    /// The event time its rows have reached.
    pub fn watermark(&self) -> Timestamp {
        self.progress.watermark
    }

    /// Looks around: gathers the numbers shown to people, and lets in a little where there is no memory.
    pub fn look(&mut self, now: Tick) {
        let sizes = self.state_size();
        self.progress.metrics.watermark =
            (self.progress.watermark > Timestamp::MIN).then_some(self.progress.watermark);
        let metrics = &mut self.progress.metrics;
        (metrics.state_bytes, metrics.state_keys) = sizes;
        metrics.state_memory_bytes = self.chain.footprint();
        self.progress.measure(now, MESSAGES_PER_TURN as u64);
        self.status.set_metrics(self.progress.metrics);
        if let Some(memory) = &self.memory {
            self.under_way.allow(memory.trickle());
            let wanted = memory.is_crowded() && !self.awaits_fold();
            self.status.want_checkpoint(wanted);
        }
    }

    fn commit(&mut self, checkpoint: CheckpointId) {
        let prepared = self.state.committables(checkpoint);
        self.sink.push(SinkCommand::Commit {
            checkpoint,
            prepared,
            last: self.progress.stopped && checkpoint >= self.progress.sealed,
        });
        self.state.forget_committables(checkpoint);
    }

    fn has_room(&self) -> bool {
        self.sink.has_room() && self.outputs.iter().all(Output::has_room)
    }

    /// Takes one thing from the inputs. False: there was none, or there is no memory for it.
    fn take(&mut self) -> Result<bool, Failure> {
        let crowded = self.is_crowded();
        if crowded && !self.may_take_crowded() {
            self.progress.meter.blocked_turns += 1;
            return Ok(false);
        }
        let before = self.progress.metrics.bytes_in;
        match &mut self.input {
            Input::Source(_) if self.progress.stopped => return Ok(false),
            Input::Source(source) if source.gate.is_closed() => return Ok(false),
            Input::Source(source) => {
                let Some(event) = source.reader.take() else {
                    return Ok(false);
                };
                self.source_event(event?);
            }
            Input::Channels(channels) => match channels.take() {
                None => return Ok(false),
                Some(Arrival::Rows(input, rows)) => {
                    self.progress.metrics.bytes_in += rows.bytes() as u64;
                    self.under_way.put(Work::Rows(input, rows));
                }
                Some(Arrival::Signal(signal)) => self.under_way.put(Work::Signal(signal)),
            },
        }
        if crowded {
            let bytes = self.progress.metrics.bytes_in - before;
            self.under_way.took_crowded(bytes);
        }
        Ok(true)
    }

    fn is_crowded(&self) -> bool {
        self.memory.as_ref().is_some_and(MemoryShare::is_crowded)
    }

    /// Folds give memory back, as long as there is something to fold. While none is to come, checkpoints lead
    /// to the next one, so what is in front of a barrier is taken at once. Other things trickle, lest nothing
    /// moves when a barrier is held up further back, or a fold fails.
    fn may_take_crowded(&self) -> bool {
        let barrier_is_near = match &self.input {
            Input::Source(_) => false,
            Input::Channels(channels) => channels.has_barrier(),
        };
        let mut tables = self.tables();
        tables.all(Table::is_folded)
            || (barrier_is_near && !self.awaits_fold())
            || self.under_way.may_trickle()
    }

    /// Whether the store is about to get something that is in memory only.
    fn awaits_fold(&self) -> bool {
        let due = self.progress.fold_due();
        let mut unfolded = self.tables().filter_map(Table::first_unfolded);
        unfolded.any(|first| Some(first) <= due)
    }

    /// Bytes of keys and values, and entries.
    fn state_size(&self) -> (u64, u64) {
        let sizes = self.tables().map(Table::size);
        sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        let states = self.chain.operators().map(|(_, _, state)| state);
        states.flat_map(|state| state.tables.values())
    }

    fn source_event(&mut self, event: SourceEvent) {
        let Input::Source(source) = &mut self.input else {
            unreachable!("only a source gives source events");
        };
        let watermarks = &mut source.watermarks;
        // Of a source that begins again the first split is not the only one: those that are found after it may be
        // behind it in time, and say so only once they are found.
        let advances = !matches!(event, SourceEvent::Discovered { .. });
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
                let column = source.time_column.map(|column| rows.batch.column(column));
                let latest = column.and_then(|column| event_time::latest(column));
                // Said before the rows, so that nobody downstream still leaves this task out.
                if let Some(signal) = watermarks.rows(&split, latest) {
                    self.under_way.put(Work::Signal(signal));
                }
                if !rows.is_empty() {
                    self.under_way.put(Work::Rows(0, rows));
                }
                self.progress.metrics.bytes_in += bytes;
                self.progress.metrics.lag_records = lag;
                self.dead_letters(dead_letters, 0);
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
        if advances {
            self.under_way.put(Work::AdvanceTime);
        }
        if self.progress.exhausted {
            self.under_way.put(Work::Exhausted);
        }
    }

    /// Works on what was taken, until it is finished or the chain has to ask.
    fn work(&mut self) -> Result<(), Failure> {
        while !self.under_way.is_asking() {
            if let Some(doing) = self.under_way.doing {
                match self.chain.run()? {
                    chain::Progress::Done(output) => {
                        self.under_way.doing = None;
                        self.dispatch(output)?;
                        self.finish(doing)?;
                    }
                    chain::Progress::Asks(output, question) => {
                        self.dispatch(output)?;
                        self.under_way.asking = Asking::Wanted(question);
                    }
                }
                continue;
            }
            match self.under_way.next() {
                None => return Ok(()),
                Some(Work::Restore) => self.begin(Doing::Restore, chain::Work::Restore),
                Some(Work::Rows(input, rows)) => {
                    self.progress.metrics.rows_in += rows.len() as u64;
                    self.begin(Doing::Rows, chain::Work::Rows(input, rows));
                }
                Some(Work::Signal(signal)) => self.signal(signal)?,
                Some(Work::AdvanceTime) => self.advance_time()?,
                Some(Work::EndOfTime) => {
                    if let Input::Source(source) = &mut self.input {
                        source.watermarks.exhausted();
                    }
                    self.advance_time()?;
                }
                Some(Work::Exhausted) => self.status.set_state(Standing::Exhausted),
            }
        }
        Ok(())
    }

    fn begin(&mut self, doing: Doing, work: chain::Work) {
        self.under_way.doing = Some(doing);
        self.chain.begin(work);
    }

    /// What the source's splits together say about time, if it is news.
    fn advance_time(&mut self) -> Result<(), Failure> {
        let Input::Source(source) = &mut self.input else {
            return Ok(());
        };
        let signal = source.watermarks.advance();
        signal.map_or(Ok(()), |signal| self.signal(signal))
    }

    fn signal(&mut self, signal: Signal) -> Result<(), Failure> {
        match signal {
            // It was injected again while it waited here.
            Signal::Barrier(barrier) if barrier.checkpoint <= self.progress.sealed => {}
            Signal::Barrier(barrier) => {
                let seal = chain::Work::Seal(barrier.checkpoint);
                self.begin(Doing::Barrier(barrier), seal);
            }
            Signal::Watermark(watermark) => {
                self.progress.watermark = watermark;
                let work = chain::Work::Watermark(watermark);
                self.begin(Doing::Watermark(watermark), work);
            }
            Signal::Idle | Signal::Active => self.forward(signal)?,
        }
        Ok(())
    }

    /// The chain is done with it.
    fn finish(&mut self, doing: Doing) -> Result<(), Failure> {
        match doing {
            Doing::Restore => self.status.set_state(Standing::Running),
            Doing::Rows => {}
            Doing::Watermark(watermark) => {
                let watermark = self.chain.output_watermark(watermark);
                self.forward(Signal::Watermark(watermark))?;
            }
            Doing::Barrier(barrier) => self.sealed(barrier)?,
        }
        Ok(())
    }

    /// Everything before the barrier is sealed: passes it on. The task goes on at once; the sink tells
    /// later that it is prepared.
    fn sealed(&mut self, barrier: Barrier) -> Result<(), Failure> {
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
        let (state_bytes, _) = self.state_size();
        self.progress.sealing.push_back(Sealing {
            checkpoint: barrier.checkpoint,
            counts: self.progress.metrics.counts(),
            state_bytes,
        });
        Ok(())
    }

    /// Gives memory back while nothing relies on what was read. True: there is more to be given back.
    fn relieve(&mut self) -> bool {
        let Some(memory) = &mut self.memory else {
            return false;
        };
        if !self.chain.is_idle() {
            return false;
        }
        let Pressure::Evict(bytes) = memory.judge(self.chain.footprint()) else {
            return false;
        };
        let more = self.chain.evict(bytes);
        if !more {
            memory.evicted(self.chain.footprint());
        }
        more
    }

    fn dispatch(&mut self, output: ChainOutput) -> Result<(), Failure> {
        self.dead_letters(output.dead_letters, output.late_rows);
        let pieces = |rows: Rows| rows.pieces(MAX_ROWS_PER_MESSAGE, MAX_ROWS_BYTES);
        for rows in output.rows.into_iter().flat_map(pieces) {
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
                    let sealed = sealed.expect("a sink prepares what was sealed");
                    assert_eq!(
                        sealed.checkpoint, checkpoint,
                        "a sink prepares barriers in order"
                    );
                    self.state.seal_sink(checkpoint, committable);
                    self.snapshot(sealed);
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
                        keeps_state: false,
                    });
                }
                SinkEvent::Failed(SinkError::Broken(reason)) => {
                    return Err(Failure {
                        reason,
                        fatal: false,
                        keeps_state: true,
                    });
                }
            }
        }
        Ok(())
    }

    /// Everything of the checkpoint is here: the job makes it durable.
    fn snapshot(&mut self, sealed: Sealing) {
        let Sealing {
            checkpoint,
            counts,
            state_bytes,
        } = sealed;
        let mut deltas = self.state.deltas(checkpoint);
        for (id, _, state) in self.chain.operators() {
            deltas.extend(deltas_of(id, state, checkpoint));
        }
        let positions = self.state.positions(checkpoint);
        let snapshot = Snapshot {
            deltas,
            state_bytes,
            positions: positions
                .into_iter()
                .map(|s| (s.split.to_string(), s.position))
                .collect(),
            counts,
        };
        self.progress.handing_over.push_back(Sealed {
            task: self.task,
            checkpoint,
            snapshot,
        });
    }
}
