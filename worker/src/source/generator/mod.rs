//! Deterministic streams for tests, demonstrations and benchmarks.
//!
//! Every row is a pure function of the seed and the row's number, so a stream is the same at any
//! parallelism and goes on from any position at once. Rows are dealt in turn over the splits: row `n` of
//! split `s` of `S` is row `n × S + s` of the stream.

mod draws;
mod stream;
mod pace;
mod nexmark;
mod clickstream;
mod payments;
mod sensors;

#[cfg(test)]
mod generator_tests;

use std::sync::Arc;

use arrow::array::Int64Array;
use common::error::Problem;
use common::limits::MAX_ROWS_PER_MESSAGE;
use common::plan::connector::GeneratorSource as Spec;
use common::schema::Column;
use common::time::Clock;
use futures_util::future::{FutureExt, LocalBoxFuture};

use super::{LINGER, Source, SourceError, SourceEvent, SourceRows, SplitState};
use crate::task::message::{Origin, Rows};
use pace::Pace;
use stream::Stream;

/// 2026-01-01T00:00:00Z: when every generated stream begins.
const START_MS: i64 = 1_767_225_600_000;
/// Rows given at once: enough to be quick, few enough to pass on soon.
const ROWS_PER_BATCH: usize = 4_096;
const _: () = assert!(ROWS_PER_BATCH <= MAX_ROWS_PER_MESSAGE);

/// The time of an event of a stream in which so many happen each second.
fn event_time(event: u64, events_per_second: u64) -> i64 {
    let since_start = u128::from(event) * 1_000 / u128::from(events_per_second);
    START_MS + i64::try_from(since_start).expect("a stream does not run for millions of years")
}

/// Generates one task's splits, in turn.
#[derive(Debug)]
pub(super) struct GeneratorSource {
    name: Arc<str>,
    stream: Stream,
    /// All splits of the source, of which this task has some.
    all_splits: u64,
    splits: Vec<Split>,
    /// Whose turn it is.
    turn: usize,
    rows: Option<u64>,
    pace: Option<Pace>,
    clock: Arc<dyn Clock>,
    said_exhausted: bool,
}

#[derive(Debug)]
struct Split {
    name: Arc<str>,
    number: u64,
    position: u64,
    /// Where it stood when the source was opened: the pace is counted from there.
    opened_at: u64,
    said_ended: bool,
}

impl GeneratorSource {
    pub(super) fn open(
        name: &str,
        spec: &Spec,
        columns: &[Column],
        context: &super::SourceContext,
    ) -> Result<GeneratorSource, Problem> {
        let all_splits = u64::from(spec.splits.max(1));
        let splits = (0..all_splits)
            .filter(|split| split % u64::from(context.parallelism) == u64::from(context.task_index))
            .map(|number| {
                let name: Arc<str> = number.to_string().into();
                let position = context.restored_position(&name).unwrap_or(0);
                let position = u64::try_from(position).unwrap_or(0);
                Split {
                    name,
                    number,
                    position,
                    opened_at: position,
                    said_ended: false,
                }
            });
        // Each split has its share of the rate; what does not divide evenly is lost in rounding up.
        let share = |rate: u64| Pace::new(rate.div_ceil(all_splits), context.clock.tick());
        Ok(GeneratorSource {
            name: name.into(),
            stream: Stream::new(spec, columns)?,
            all_splits,
            splits: splits.collect(),
            turn: 0,
            rows: spec.rows,
            pace: spec.rate.map(share),
            clock: context.clock.clone(),
            said_exhausted: false,
        })
    }

    async fn next_event(&mut self) -> Result<SourceEvent, SourceError> {
        loop {
            if let Some(event) = self.event_now() {
                return Ok(event);
            }
            let now = self.clock.tick();
            let waits = self.splits.iter().filter(|split| !split.said_ended);
            let wait = self.pace.and_then(|pace| {
                waits
                    .map(|split| pace.wait_for(split.position - split.opened_at, now))
                    .min()
            });
            match wait {
                Some(wait) => tokio::time::sleep(wait.max(LINGER).as_duration()).await,
                // Everything was said.
                None => std::future::pending().await,
            }
        }
    }

    /// What the splits have to say at this moment, each in its turn.
    fn event_now(&mut self) -> Option<SourceEvent> {
        for _ in 0..self.splits.len() {
            let index = self.turn;
            self.turn = (self.turn + 1) % self.splits.len();
            let end = self.end_of(&self.splits[index]);
            let split = &mut self.splits[index];
            if split.said_ended {
                continue;
            }
            if end.is_some_and(|end| split.position >= end) {
                split.said_ended = true;
                return Some(SourceEvent::Ended {
                    split: split.name.clone(),
                });
            }
            let mut count = ROWS_PER_BATCH as u64;
            if let Some(end) = end {
                count = count.min(end - split.position);
            }
            if let Some(pace) = &self.pace {
                let due = split.opened_at.saturating_add(pace.due(self.clock.tick()));
                count = count.min(due.saturating_sub(split.position));
            }
            if count > 0 {
                return Some(self.generate(index, count, end));
            }
        }
        let all_ended = self.splits.iter().all(|split| split.said_ended);
        if all_ended && !self.said_exhausted && (self.rows.is_some() || self.splits.is_empty()) {
            self.said_exhausted = true;
            return Some(SourceEvent::Exhausted);
        }
        None
    }

    /// How many rows a split has in all.
    fn end_of(&self, split: &Split) -> Option<u64> {
        let rows = self.rows?;
        Some(rows.saturating_sub(split.number).div_ceil(self.all_splits))
    }

    fn generate(&mut self, index: usize, count: u64, end: Option<u64>) -> SourceEvent {
        let split = &mut self.splits[index];
        let positions = split.position..split.position + count;
        let numbers: Vec<u64> = positions
            .clone()
            .map(|position| position * self.all_splits + split.number)
            .collect();
        let batch = self.stream.rows(&numbers);
        let signed = |position: u64| i64::try_from(position).expect("positions are small");
        let offsets = Int64Array::from_iter_values(positions.clone().map(signed));
        split.position = positions.end;
        SourceEvent::Rows(SourceRows {
            split: split.name.clone(),
            next_position: signed(split.position),
            dead_letters: Vec::new(),
            bytes: batch.get_array_memory_size() as u64,
            lag: end.map_or(0, |end| end - split.position),
            rows: Rows {
                batch,
                kinds: None,
                origin: Some(Origin {
                    source: self.name.clone(),
                    partition: u32::try_from(split.number).expect("splits are numbered in 32 bits"),
                    offsets,
                }),
            },
        })
    }
}

impl Source for GeneratorSource {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<SourceEvent, SourceError>> {
        self.next_event().boxed_local()
    }

    fn splits(&self) -> Vec<SplitState> {
        let state = |split: &Split| SplitState {
            split: split.name.clone(),
            position: i64::try_from(split.position).expect("positions are small"),
            end: None,
            of: None,
        };
        self.splits.iter().map(state).collect()
    }
}
