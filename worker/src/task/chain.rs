//! The operators of one task, one after another: rows, watermarks and barriers run through all of them.
//!
//! What one operator emits is the next one's input at once, in the same turn, so nothing waits between
//! them and a barrier never finds rows half way.

use common::ids::CheckpointId;
use common::key_group::KeyGroupRange;
use common::time::{Span, Timestamp};

use super::context::{Context, OperatorState, Outputs};
use super::dead_letter::DeadLetter;
use super::message::Rows;
use crate::operator::{Operator, OperatorError};

/// A chain and the state of its operators.
#[derive(Debug)]
pub struct Chain {
    links: Vec<Link>,
    watermark: Timestamp,
    /// How far the watermark behind the last operator stays behind.
    delay: Span,
    key_range: KeyGroupRange,
    key_groups: u16,
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
        }
    }

    /// Lets every operator rebuild what it keeps outside its tables.
    pub fn restore(&mut self) -> Result<ChainOutput, OperatorError> {
        self.through_all(|| Event::Restore)
    }

    /// Rows that arrived at the numbered input of the first operator.
    pub fn rows(&mut self, input: u16, rows: Rows) -> Result<ChainOutput, OperatorError> {
        let mut output = ChainOutput::default();
        self.run(0, Event::Rows(input, rows), &mut output)?;
        Ok(output)
    }

    pub fn watermark(&mut self, watermark: Timestamp) -> Result<ChainOutput, OperatorError> {
        assert!(watermark >= self.watermark, "a merged watermark fell");
        let output = self.through_all(|| Event::Watermark(watermark))?;
        self.watermark = watermark;
        Ok(output)
    }

    /// What the watermark of the chain's output is when that of its input is this.
    pub fn output_watermark(&self, watermark: Timestamp) -> Timestamp {
        delayed(watermark, self.delay)
    }

    /// Puts everything into the tables and seals them. What this emits belongs before the barrier.
    pub fn seal(&mut self, checkpoint: CheckpointId) -> Result<ChainOutput, OperatorError> {
        let output = self.through_all(|| Event::Seal)?;
        for table in self
            .links
            .iter_mut()
            .flat_map(|link| link.state.tables.values_mut())
        {
            table.seal(checkpoint);
        }
        Ok(output)
    }

    /// The operators with their ids and tables, in order.
    pub fn operators(&self) -> impl Iterator<Item = (&str, &dyn Operator, &OperatorState)> {
        self.links
            .iter()
            .map(|link| (link.id.as_str(), &*link.operator, &link.state))
    }

    pub fn states_mut(&mut self) -> impl Iterator<Item = (&str, &mut OperatorState)> {
        self.links
            .iter_mut()
            .map(|link| (link.id.as_str(), &mut link.state))
    }

    /// The same event for every operator in order; what one emits passes those behind it first.
    fn through_all(&mut self, event: impl Fn() -> Event) -> Result<ChainOutput, OperatorError> {
        let mut output = ChainOutput::default();
        for index in 0..self.links.len() {
            self.run(index, event(), &mut output)?;
        }
        Ok(output)
    }

    /// Gives an event to the operator at `index`, and what it emits to those behind it.
    fn run(
        &mut self,
        index: usize,
        event: Event,
        output: &mut ChainOutput,
    ) -> Result<(), OperatorError> {
        let Some(link) = self.links.get_mut(index) else {
            if let Event::Rows(_, rows) = event {
                output.rows.push(rows);
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
        match event {
            Event::Rows(input, rows) => link.operator.process(input, rows, &mut context)?,
            Event::Watermark(watermark) => {
                let watermark = delayed(watermark, link.delay);
                link.operator.watermark(watermark, &mut context)?;
            }
            Event::Seal => link.operator.seal(&mut context)?,
            Event::Restore => link.operator.restore(&mut context)?,
        }
        output.dead_letters.append(&mut emitted.dead_letters);
        output.late_rows += emitted.late_rows;
        for rows in emitted.rows {
            self.run(index + 1, Event::Rows(0, rows), output)?;
        }
        Ok(())
    }
}

/// After the last row there is nothing to wait for.
fn delayed(watermark: Timestamp, delay: Span) -> Timestamp {
    match watermark {
        Timestamp::MAX => Timestamp::MAX,
        earlier => earlier.minus(delay),
    }
}
