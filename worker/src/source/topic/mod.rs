//! Topics of this cluster: one split per partition, dealt over the tasks by number.
//!
//! A split's position is an offset. While the records of one fetch are decoded, the next fetch of the
//! same split is on its way, and no further one, so what waits is bounded. Records that are gone before
//! they were read end the job: going on elsewhere would lose or repeat them without a word.

mod log_requests;
mod reading;

use std::collections::VecDeque;
use std::sync::Arc;

use common::error::{ErrorCode, Problem};
use common::ids::{PartitionId, TopicId, TopicName, TopicPartition};
use common::log_batch::LogBatches;
use common::offset::Offset;
use common::plan::connector::{BoundedMode, Isolation, TopicSource as Spec};
use common::protocol::fetch::{FetchBatches, FetchedBatches, PartitionOffsets};
use common::protocol::metadata::TopicImage;
use common::schema::Column;
use common::time::{Clock, Span};
use common::transport::retry::Backoff;
use futures_util::future::{FutureExt, LocalBoxFuture, join_all};
use tokio::task::JoinSet;

use super::decoded::{Place, SourceDecoder};
use super::{CAUGHT_UP_EVERY, Source, SourceContext, SourceError, SourceEvent, SplitState};
use crate::log_client::LogClient;
use log_requests::{Fetched, fetch, start};
use reading::Reading;

/// What a task's fetches may bring together, and each of them at least and at most.
const FETCH_BUDGET: usize = 32 << 20;
const MIN_FETCH: usize = 128 << 10;
const MAX_FETCH: usize = 4 << 20;

/// Reads one task's partitions.
#[derive(Debug)]
pub(super) struct TopicSource {
    topic: TopicName,
    id: TopicId,
    log: LogClient,
    clock: Arc<dyn Clock>,
    isolation: Isolation,
    decoder: SourceDecoder,
    splits: Vec<Split>,
    fetches: JoinSet<Fetch>,
    max_bytes: u32,
    /// Of the partitions up to this number, which are this task's is known.
    dealt: u32,
    task_index: u32,
    parallelism: u32,
    bounded: bool,
    /// What is being decoded.
    current: Option<Reading>,
    said: VecDeque<SourceEvent>,
    /// That there is nothing to read was said: for ever, or until there is a partition.
    said_nothing: bool,
}

#[derive(Debug)]
struct Split {
    place: Place,
    partition: TopicPartition,
    /// What comes after the rows given so far.
    position: Offset,
    end: Option<Offset>,
    ended: bool,
}

/// The answer to one fetch of a split.
#[derive(Debug)]
struct Fetch {
    split: usize,
    result: Result<Fetched, Problem>,
    attempt: u32,
}

impl TopicSource {
    pub(super) async fn open(
        name: &str,
        spec: &Spec,
        columns: &[Column],
        context: &SourceContext,
    ) -> Result<TopicSource, Problem> {
        let topic = context.log.topic(&spec.topic).ok_or_else(|| {
            Problem::new(
                ErrorCode::UnknownTopic,
                format!("the topic \"{}\" does not exist", spec.topic),
            )
        })?;
        let restored = context.restored.iter().flatten();
        for split in restored {
            let read = split.of.as_deref();
            if read.is_some_and(|read| *read != *topic.id.to_string()) {
                return Err(Problem::new(
                    ErrorCode::UnknownTopic,
                    created_again(&spec.topic),
                ));
            }
        }
        let source: Arc<str> = spec.topic.as_str().into();
        let dealt = partitions_of(&topic);
        let own = (0..dealt).filter(|number| number % context.parallelism == context.task_index);
        let splits = own.map(|number| {
            let partition = TopicPartition {
                topic: topic.id,
                partition: PartitionId(number),
            };
            let place = Place {
                split: number.to_string().into(),
                source: source.clone(),
                partition: number,
            };
            async move {
                let (position, end) = start(spec, context, partition, &place.split).await?;
                Ok(Split {
                    place,
                    partition,
                    position,
                    end,
                    ended: false,
                })
            }
        });
        let splits: Vec<Split> = join_all(splits)
            .await
            .into_iter()
            .collect::<Result<_, Problem>>()?;
        let share = FETCH_BUDGET / splits.len().max(1);
        let max_bytes = share.clamp(MIN_FETCH, MAX_FETCH);
        let mut source = TopicSource {
            topic: spec.topic.clone(),
            id: topic.id,
            log: context.log.clone(),
            clock: context.clock.clone(),
            isolation: spec.isolation,
            decoder: SourceDecoder::new(
                name,
                spec.format,
                &spec.schema,
                columns,
                spec.bad_records,
            )?,
            max_bytes: u32::try_from(max_bytes).expect("a few megabytes"),
            dealt,
            task_index: context.task_index,
            parallelism: context.parallelism,
            bounded: spec.bounded == BoundedMode::Latest,
            fetches: JoinSet::new(),
            splits,
            current: None,
            said: VecDeque::new(),
            said_nothing: false,
        };
        for split in 0..source.splits.len() {
            // The first fetch waits for nothing: an empty partition must not hold the others back.
            source.fetch_or_end(split, source.splits[split].position, 0, Span(0));
        }
        Ok(source)
    }

    async fn next_event(&mut self) -> Result<SourceEvent, SourceError> {
        loop {
            if let Some(event) = self.said.pop_front() {
                return Ok(event);
            }
            if self.current.is_some() {
                self.decode()?;
                continue;
            }
            match self.fetches.join_next().await {
                Some(Ok(fetch)) => {
                    self.take(fetch)?;
                    // Lets the fetch that was just begun get on its way before this thread decodes.
                    tokio::task::yield_now().await;
                }
                Some(Err(error)) => {
                    return Err(SourceError::Broken(format!("a fetch was lost: {error}")));
                }
                None if !self.said_nothing => {
                    self.said_nothing = true;
                    self.said.push_back(match self.bounded {
                        true => SourceEvent::Exhausted,
                        false => SourceEvent::Waiting,
                    });
                }
                None if self.bounded => std::future::pending().await,
                None => self.wait_for_partitions().await?,
            }
        }
    }

    /// There are fewer partitions than tasks, and none for this one yet.
    async fn wait_for_partitions(&mut self) -> Result<(), SourceError> {
        let mut image = self.log.image();
        while self.splits.is_empty() {
            image.borrow_and_update();
            self.discover()?;
            if self.splits.is_empty() && image.changed().await.is_err() {
                return Err(SourceError::Broken("the worker is stopping".to_owned()));
            }
        }
        Ok(())
    }

    /// Takes its share of partitions that the topic has been given since. They begin with their first
    /// record; a bounded source has taken its ends and leaves them. What was known and is gone was deleted:
    /// nobody would ever answer for it.
    fn discover(&mut self) -> Result<(), SourceError> {
        let topic = self.log.topic(&self.topic).ok_or_else(|| {
            SourceError::Fatal(format!("the topic \"{}\" was deleted", self.topic))
        })?;
        if topic.id != self.id {
            return Err(SourceError::Fatal(created_again(&self.topic)));
        }
        if self.bounded {
            return Ok(());
        }
        let known = self.dealt;
        self.dealt = partitions_of(&topic).max(known);
        for number in known..self.dealt {
            if number % self.parallelism != self.task_index {
                continue;
            }
            let split = Split {
                place: Place {
                    split: number.to_string().into(),
                    source: self.topic.as_str().into(),
                    partition: number,
                },
                partition: TopicPartition {
                    topic: topic.id,
                    partition: PartitionId(number),
                },
                position: Offset::ZERO,
                end: None,
                ended: false,
            };
            let split_state = split.state();
            self.said
                .push_back(SourceEvent::Discovered { split: split_state });
            self.splits.push(split);
            self.fetch_or_end(self.splits.len() - 1, Offset::ZERO, 0, Span(0));
        }
        Ok(())
    }

    /// Begins the next fetch of a split, unless nothing more may be read of it.
    fn fetch_or_end(&mut self, split: usize, offset: Offset, attempt: u32, wait: Span) {
        let Split { partition, end, .. } = self.splits[split];
        if end.is_some_and(|end| offset >= end) {
            self.end_if_read(split);
            return;
        }
        let request = FetchBatches {
            partition,
            offset,
            max_bytes: self.max_bytes,
            wait,
            isolation: self.isolation,
        };
        let (log, clock) = (self.log.clone(), self.clock.clone());
        self.fetches.spawn(async move {
            if let Some(failed) = attempt.checked_sub(1) {
                let delay = Backoff::CALLS.delay(failed, u64::from(partition.partition.0));
                tokio::time::sleep(delay.as_duration()).await;
            }
            let result = fetch(&log, &*clock, request).await;
            Fetch {
                split,
                result,
                attempt,
            }
        });
    }

    fn end_if_read(&mut self, index: usize) {
        let split = &mut self.splits[index];
        if split.end.is_some_and(|end| split.position >= end) && !split.ended {
            split.ended = true;
            self.said.push_back(SourceEvent::Ended {
                split: split.place.split.clone(),
            });
        }
    }

    fn take(&mut self, fetch: Fetch) -> Result<(), SourceError> {
        let Fetch {
            split,
            result,
            attempt,
        } = fetch;
        self.discover()?;
        let fetched = match result {
            Ok(fetched) => fetched,
            Err(problem) if problem.code.is_retriable() => {
                let position = self.splits[split].position;
                self.fetch_or_end(split, position, attempt + 1, CAUGHT_UP_EVERY);
                return Ok(());
            }
            Err(problem) => return Err(self.failure(split, problem)),
        };
        let Fetched {
            offset,
            reply,
            nothing,
        } = fetched;
        let offsets = nothing.as_ref().map(|(offsets, _)| offsets);
        self.check_nothing_is_gone(split, offset, &reply, offsets)?;
        self.fetch_or_end(split, reply.next_offset, 0, CAUGHT_UP_EVERY);
        self.current = Some(Reading {
            split,
            batches: LogBatches::new(reply.batches),
            records: None,
            next_offset: reply.next_offset,
            end_offset: reply.end_offset,
            // With an open transaction there is more than may be read now: that is not silence.
            caught_up: nothing
                .filter(|(offsets, _)| offsets.committed_offset <= offset)
                .map(|(_, at)| at),
        });
        Ok(())
    }

    fn failure(&self, split: usize, problem: Problem) -> SourceError {
        let Split {
            place, position, ..
        } = &self.splits[split];
        let place = format!("topic \"{}\", partition {}", self.topic, place.partition);
        match problem.code {
            ErrorCode::OffsetOutOfRange => SourceError::Fatal(format!(
                "{place}: the record at offset {position} is no longer there: {problem}"
            )),
            ErrorCode::UnknownTopic | ErrorCode::UnknownPartition | ErrorCode::CorruptLog => {
                SourceError::Fatal(format!("{place}: {problem}"))
            }
            _ => SourceError::Broken(format!("{place}: {problem}")),
        }
    }

    fn check_nothing_is_gone(
        &self,
        split: usize,
        offset: Offset,
        reply: &FetchedBatches,
        offsets: Option<&PartitionOffsets>,
    ) -> Result<(), SourceError> {
        let gone = if reply.log_start_offset > offset {
            format!(
                "the records from {offset} to {} were deleted before they were read",
                reply.log_start_offset
            )
        } else if let Some(end) = offsets
            .map(|o| o.log_end_offset)
            .filter(|end| *end < offset)
        {
            format!("the log ends at {end}, before the offset {offset} that was read up to")
        } else {
            return Ok(());
        };
        Err(SourceError::Fatal(format!(
            "topic \"{}\", partition {}: {gone}",
            self.topic, self.splits[split].place.partition
        )))
    }

    /// Turns the next records of the current fetch into one batch of rows.
    fn decode(&mut self) -> Result<(), SourceError> {
        let Some(mut reading) = self.current.take() else {
            return Ok(());
        };
        let split = &self.splits[reading.split];
        let (next_position, finished) = reading.decode(split, &mut self.decoder)?;
        let index = reading.split;
        let caught_up = reading.caught_up.filter(|_| finished);
        let end = split
            .end
            .map_or(reading.end_offset, |end| end.min(reading.end_offset));
        let moved = next_position > split.position;
        let place = split.place.clone();
        if moved || self.decoder.len() > 0 {
            let lag = end.since(next_position);
            let rows = self.decoder.finish(&place, next_position.0, lag);
            self.splits[index].position = next_position;
            self.said.push_back(SourceEvent::Rows(rows));
        }
        self.end_if_read(index);
        // Of one that has an end there is more before that, though it may not be read yet.
        if let Some(at) = caught_up.filter(|_| self.splits[index].end.is_none()) {
            let split = place.split;
            self.said.push_back(SourceEvent::CaughtUp { split, at });
        }
        if !finished {
            self.current = Some(reading);
        }
        Ok(())
    }
}

impl Split {
    fn state(&self) -> SplitState {
        SplitState {
            split: self.place.split.clone(),
            position: self.position.0,
            end: self.end.map(|end| end.0),
            of: Some(self.partition.topic.to_string().into()),
        }
    }
}

/// Reading on at the old positions would skip records of the new topic, or repeat them.
fn created_again(topic: &TopicName) -> String {
    format!(
        "the topic \"{topic}\" was deleted and created again: its records are not those that were read before"
    )
}

fn partitions_of(topic: &TopicImage) -> u32 {
    u32::try_from(topic.partitions.len()).expect("a topic has at most 10,000 partitions")
}

impl Source for TopicSource {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<SourceEvent, SourceError>> {
        self.next_event().boxed_local()
    }

    fn splits(&self) -> Vec<SplitState> {
        self.splits.iter().map(Split::state).collect()
    }
}
