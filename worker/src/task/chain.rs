//! The operators of one task, one after another: rows, watermarks and barriers run through all of them.
//!
//! What one operator emits is the next one's input at once, so nothing waits between them and a barrier
//! never finds rows half way. An operator may have to know first what a store has of its state: the chain
//! stands still until it is answered.

use common::ids::CheckpointId;
use common::key_group::KeyGroupRange;
use common::time::{Span, Timestamp};

use super::context::{Context, OperatorState, Outputs};
use super::dead_letter::DeadLetter;
use super::message::Rows;
use crate::keyed_state::section::TableId;
use crate::keyed_state::stored::{Answer, Ask, StoredRange};
use crate::keyed_state::table::Table;
use crate::operator::{Call, Operator, OperatorError, Wanted};

/// A chain and the state of its operators.
#[derive(Debug)]
pub struct Chain {
    links: Vec<Link>,
    watermark: Timestamp,
    /// How far the watermark behind the last operator stays behind.
    delay: Span,
    key_range: KeyGroupRange,
    key_groups: u16,
    /// What is still to be done of the work at hand; the next thing is the last.
    todo: Vec<Todo>,
    /// What an operator cannot do before its question is answered.
    asking: Option<Todo>,
    /// What is true once nothing is left to be done.
    finally: Finally,
    output: ChainOutput,
    /// The table that gives memory back next.
    hand: usize,
}

/// What the chain is given to do.
#[derive(Debug)]
pub enum Work {
    /// Lets every operator rebuild what it keeps outside its tables.
    Restore,
    /// Rows that arrived at the numbered input of the first operator.
    Rows(u16, Rows),
    Watermark(Timestamp),
    /// Puts everything into the tables and seals them. What this emits belongs before the barrier.
    Seal(CheckpointId),
}

/// How far the work has come.
#[derive(Debug)]
pub enum Progress {
    Done(ChainOutput),
    /// It goes on when this is answered. What has come out until then may be sent on.
    Asks(ChainOutput, Question),
}

/// What is asked of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub table: TableId,
    pub ask: Ask,
}

#[derive(Debug, Default)]
enum Finally {
    #[default]
    Nothing,
    Watermark(Timestamp),
    Seal(CheckpointId),
}

/// An event for one operator of the chain, or for who is behind it.
#[derive(Debug)]
struct Todo {
    index: usize,
    event: Event,
    /// What the operator has to know first, and a range it was answered.
    wanted: Option<Wanted>,
    range: Option<StoredRange>,
}

#[derive(Debug)]
struct Link {
    id: String,
    operator: Box<dyn Operator>,
    state: OperatorState,
    /// How far the watermark in front of it stays behind that of the chain's input.
    delay: Span,
}

/// What left the chain at its end, and on the side.
#[derive(Debug, Default)]
pub struct ChainOutput {
    pub rows: Vec<Rows>,
    pub dead_letters: Vec<DeadLetter>,
    pub late_rows: u64,
}

/// What happens to an operator; decides which of its methods is called.
#[derive(Clone, Debug)]
enum Event {
    Rows(u16, Rows),
    Watermark(Timestamp),
    Seal,
    Restore,
}

impl Chain {
    pub fn new(
        operators: Vec<(String, Box<dyn Operator>, OperatorState)>,
        watermark: Timestamp,
        key_range: KeyGroupRange,
        key_groups: u16,
    ) -> Chain {
        let mut delay = Span(0);
        let mut links = Vec::new();
        for (id, operator, state) in operators {
            let before = delay;
            delay = Span(delay.0.saturating_add(operator.delays_watermark().0));
            links.push(Link {
                id,
                operator,
                state,
                delay: before,
            });
        }
        Chain {
            links,
            watermark,
            delay,
            key_range,
            key_groups,
            todo: Vec::new(),
            asking: None,
            finally: Finally::Nothing,
            output: ChainOutput::default(),
            hand: 0,
        }
    }

    /// Gives its tables up, and with them what it is for.
    pub fn take_tables(&mut self) -> impl Iterator<Item = (TableId, Table)> + '_ {
        self.links
            .iter_mut()
            .flat_map(|link| link.state.take_tables(&link.id))
    }

    /// Gives it something to do, once it is done with what was before.
    pub fn begin(&mut self, work: Work) {
        assert!(
            self.todo.is_empty() && self.asking.is_none(),
            "a chain does one thing after the other"
        );
        match work {
            Work::Restore => self.for_each(Event::Restore),
            Work::Rows(input, rows) => self.todo.push(Todo::new(0, Event::Rows(input, rows))),
            Work::Watermark(watermark) => {
                assert!(watermark >= self.watermark, "a merged watermark fell");
                self.for_each(Event::Watermark(watermark));
                self.finally = Finally::Watermark(watermark);
            }
            Work::Seal(checkpoint) => {
                self.for_each(Event::Seal);
                self.finally = Finally::Seal(checkpoint);
            }
        }
    }

    /// Works until everything is done, or an operator has to ask.
    pub fn run(&mut self) -> Result<Progress, OperatorError> {
        while let Some(mut todo) = self.todo.pop() {
            if let Some(Wanted { table, ask }) = todo.wanted.take() {
                let table = TableId {
                    operator: self.links[todo.index].id.clone(),
                    table: table.to_owned(),
                };
                self.asking = Some(todo);
                let output = std::mem::take(&mut self.output);
                return Ok(Progress::Asks(output, Question { table, ask }));
            }
            self.step(todo)?;
        }
        match std::mem::take(&mut self.finally) {
            Finally::Nothing => {}
            Finally::Watermark(watermark) => self.watermark = watermark,
            Finally::Seal(checkpoint) => {
                let states = self.links.iter_mut().map(|link| &mut link.state);
                for table in states.flat_map(|state| state.tables.values_mut()) {
                    table.seal(checkpoint);
                }
            }
        }
        Ok(Progress::Done(std::mem::take(&mut self.output)))
    }

    /// Takes the answer to its question; `run` goes on with it.
    pub fn answer(&mut self, question: &Question, answer: Answer) {
        let mut todo = self.asking.take().expect("it asked");
        match answer {
            Answer::Range(range) => todo.range = Some(range),
            keys @ Answer::Keys(_) => {
                let tables = &mut self.links[todo.index].state.tables;
                let table = tables.get_mut(&question.table.table);
                table.expect("it asked of it").load(keys);
            }
        }
        self.todo.push(todo);
    }

    /// Whether everything it was given to do is done.
    pub fn is_idle(&self) -> bool {
        self.todo.is_empty() && self.asking.is_none()
    }

    /// All of some work at once, of operators that have everything in memory.
    #[cfg(test)]
    pub(super) fn run_all(&mut self, work: Work) -> Result<ChainOutput, OperatorError> {
        self.begin(work);
        match self.run()? {
            Progress::Done(output) => Ok(output),
            Progress::Asks(_, question) => panic!("{question:?} is not in memory"),
        }
    }

    /// What the watermark of the chain's output is when that of its input is this.
    pub fn output_watermark(&self, watermark: Timestamp) -> Timestamp {
        delayed(watermark, self.delay)
    }

    /// The operators with their ids and tables, in order.
    pub fn operators(&self) -> impl Iterator<Item = (&str, &dyn Operator, &OperatorState)> {
        self.links
            .iter()
            .map(|link| (link.id.as_str(), &*link.operator, &link.state))
    }

    pub fn tables_mut(&mut self) -> impl Iterator<Item = &mut Table> {
        let states = self.links.iter_mut().map(|link| &mut link.state);
        states.flat_map(|state| state.tables.values_mut())
    }

    /// Has the tables give back about so many bytes of memory. A little at a time: answers whether there is to be
    /// another one.
    pub fn evict(&mut self, mut bytes: u64) -> bool {
        let hand = std::mem::take(&mut self.hand);
        let mut paused = None;
        for (index, table) in self.tables_mut().enumerate().skip(hand) {
            let before = table.footprint();
            let more = table.evict(bytes);
            bytes = bytes.saturating_sub(before.saturating_sub(table.footprint()));
            if more {
                paused = Some(index);
                break;
            }
        }
        self.hand = paused.unwrap_or(0);
        paused.is_some()
    }

    /// Bytes of memory that the tables take, and what operators hold outside them.
    pub fn footprint(&self) -> u64 {
        let states = self.links.iter().map(|link| &link.state);
        let tables = states.flat_map(|state| state.tables.values());
        let held = self
            .links
            .iter()
            .map(|link| link.operator.held_bytes() as u64);
        tables.map(Table::footprint).sum::<u64>() + held.sum::<u64>()
    }

    /// The same event for every operator in order; what one emits passes those behind it first.
    fn for_each(&mut self, event: Event) {
        for (index, link) in self.links.iter().enumerate().rev() {
            let event = match &event {
                Event::Watermark(watermark) => Event::Watermark(delayed(*watermark, link.delay)),
                other => other.clone(),
            };
            self.todo.push(Todo::new(index, event));
        }
    }

    /// Gives an event to an operator, and what it emits to those behind it.
    fn step(&mut self, mut todo: Todo) -> Result<(), OperatorError> {
        let Some(link) = self.links.get_mut(todo.index) else {
            if let Event::Rows(_, rows) = todo.event {
                self.output.rows.push(rows);
            }
            return Ok(());
        };
        let mut emitted = Outputs::default();
        let mut context = Context::new(
            &mut link.state,
            &mut emitted,
            delayed(self.watermark, link.delay),
            self.key_range,
            self.key_groups,
        );
        let call = match &todo.event {
            Event::Rows(input, rows) => Some(Call::Rows(*input, rows)),
            Event::Watermark(watermark) => Some(Call::Watermark(*watermark)),
            Event::Seal => Some(Call::Seal),
            Event::Restore => None,
        };
        let range = todo.range.take();
        let index = todo.index;
        let wanted = match call {
            Some(call) => link.operator.prepare(call, range, &mut context)?,
            None => None,
        };
        match wanted {
            Some(wanted) => {
                todo.wanted = Some(wanted);
                self.todo.push(todo);
            }
            None => match todo.event {
                Event::Rows(input, rows) => link.operator.process(input, rows, &mut context)?,
                Event::Watermark(watermark) => link.operator.watermark(watermark, &mut context)?,
                Event::Seal => link.operator.seal(&mut context)?,
                Event::Restore => link.operator.restore(&mut context)?,
            },
        }
        self.output.dead_letters.append(&mut emitted.dead_letters);
        self.output.late_rows += emitted.late_rows;
        for rows in emitted.rows.into_iter().rev() {
            self.todo.push(Todo::new(index + 1, Event::Rows(0, rows)));
        }
        Ok(())
    }
}

impl Todo {
    fn new(index: usize, event: Event) -> Todo {
        Todo {
            index,
            event,
            wanted: None,
            range: None,
        }
    }
}

/// After the last row there is nothing to wait for.
fn delayed(watermark: Timestamp, delay: Span) -> Timestamp {
    match watermark {
        Timestamp::MAX => Timestamp::MAX,
        earlier => earlier.minus(delay),
    }
}
