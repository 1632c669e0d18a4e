//! A task in the world: its machine, a source that fetches the clicks, a sink that appends the tallies.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use common::error::Problem;
use common::ids::{CheckpointId, TopicPartition};
use common::log_batch::LogBatches;
use common::offset::Offset;
use common::partitioner::partition_of_key;
use common::protocol::fetch::{FetchBatches, FetchedBatches};
use common::protocol::produce::{Acks, Append, PartitionAppend};
use common::time::Span;
use tokio::sync::Notify;
use worker::checkpoint::view_reader::{ViewError, ViewReader};
use worker::keyed_state::section::TableId;
use worker::keyed_state::stored::{Answer, Ask};
use worker::metadata_image::MetadataImage;
use worker::sink::SinkError;
use worker::sink::transactions::NoTransaction;
use worker::sink::write_queue::{NextAppend, Refusal, WriteQueue, judge};
use worker::source::{SourceEvent, SourceRows, SplitState};
use worker::task::chain::Question;
use worker::task::failure::Failure;
use worker::task::machine::TaskMachine;
use worker::task::message::Barrier;
use worker::task::sink_pump::{SinkCommand, SinkEnd, SinkEvent};
use worker::task::source_input::SourceFeed;

use super::env::Env;
use super::network::Request;
use super::partition::committed_fetch;
use super::sabotage::Sabotage;
use super::tally::{Click, click_rows, tallies_of};

/// How long a fetch waits for something to read.
const FETCH_WAIT: Span = Span::from_millis(200);

#[derive(Debug)]
pub struct RunningTask {
    pub machine: TaskMachine,
    /// Answers what is not in memory.
    pub reader: Option<ViewReader>,
    pub wake: Arc<Notify>,
    pub source: Option<ClickSource>,
    pub sink: TallySink,
    pub mailbox: VecDeque<Mail>,
    /// A turn is about to come.
    pub scheduled: bool,
}

/// What a task is told besides its data.
#[derive(Clone, Copy, Debug)]
pub enum Mail {
    Inject { barrier: Barrier, drain: bool },
    Complete(CheckpointId),
}

/// What a turn wants done elsewhere.
#[derive(Debug, Default)]
pub struct Wanted {
    pub appends: Vec<NextAppend>,
    /// Splits to be fetched from where they are.
    pub fetches: Vec<u32>,
    /// What the store is to be asked.
    pub question: Option<Question>,
}

/// Reads one task's partitions, a fetch of each under way at a time.
#[derive(Debug)]
pub struct ClickSource {
    pub clicks: TopicPartition,
    feed: SourceFeed,
    said: VecDeque<SourceEvent>,
    splits: BTreeMap<u32, Split>,
}

#[derive(Debug)]
struct Split {
    position: Offset,
    fetching: bool,
    /// The world lets it skip what it reads first.
    skip: bool,
}

/// Writes what a task gives it, in the order of its commands.
#[derive(Debug)]
pub struct TallySink {
    end: SinkEnd,
    queue: WriteQueue,
    tallies: Option<(TopicPartition, u32)>,
    /// Nothing goes on before everything before this barrier is stored.
    preparing: Option<CheckpointId>,
    failed: bool,
}

impl ClickSource {
    /// `splits`: where each of the task's partitions is to be read from. `restored`: they were read before.
    pub fn new(
        env: &Env,
        clicks: TopicPartition,
        feed: SourceFeed,
        splits: impl Iterator<Item = (u32, Offset)>,
        restored: bool,
    ) -> ClickSource {
        let mut said = VecDeque::new();
        let mut known = BTreeMap::new();
        for (number, position) in splits {
            let split = SplitState {
                split: number.to_string().into(),
                position: position.0,
                end: None,
                of: None,
            };
            said.push_back(SourceEvent::Discovered { split });
            let split = Split {
                position,
                fetching: false,
                skip: restored && env.sabotaged(Sabotage::SkipAfterRestore),
            };
            known.insert(number, split);
        }
        ClickSource {
            clicks,
            feed,
            said,
            splits: known,
        }
    }

    /// Gives the task what fits, and says which splits to fetch once everything was given.
    fn advance(&mut self, wake: &Notify) -> Vec<u32> {
        while let Some(event) = self.said.pop_front() {
            match self.feed.try_send(Ok(event)) {
                Ok(()) => wake.notify_one(),
                Err(tokio::sync::mpsc::error::TrySendError::Full(Ok(event))) => {
                    self.said.push_front(event);
                    return Vec::new();
                }
                Err(_) => return Vec::new(),
            }
        }
        let idle = self.splits.iter_mut().filter(|(_, split)| !split.fetching);
        idle.map(|(number, split)| {
            split.fetching = true;
            *number
        })
        .collect()
    }

    pub fn request(&self, split: u32) -> Option<FetchBatches> {
        let position = self.splits.get(&split)?.position;
        Some(committed_fetch(self.partition(split), position, FETCH_WAIT))
    }

    pub fn partition(&self, split: u32) -> TopicPartition {
        TopicPartition {
            partition: common::ids::PartitionId(split),
            ..self.clicks
        }
    }

    pub fn fetched(&mut self, env: &mut Env, split: u32, reply: FetchedBatches) {
        let partition = self.partition(split);
        let Some(state) = self.splits.get_mut(&split) else {
            return;
        };
        state.fetching = false;
        let mut clicks = Vec::new();
        for (offset, value) in records(reply.batches) {
            if offset < state.position {
                continue;
            }
            let verdict = env.checkers.committed.read(partition, offset, &value);
            env.check(verdict);
            clicks.push(Click::decode(&value));
        }
        state.position = reply.next_offset;
        let name: Arc<str> = split.to_string().into();
        if clicks.is_empty() {
            if reply.end_offset <= state.position {
                let (split, at) = (name, env.now);
                self.said.push_back(SourceEvent::CaughtUp { split, at });
            }
            return;
        }
        if std::mem::take(&mut state.skip) {
            clicks.clear();
        }
        self.said.push_back(SourceEvent::Rows(SourceRows {
            split: name,
            rows: click_rows(&clicks),
            next_position: reply.next_offset.0,
            dead_letters: Vec::new(),
            bytes: 0,
            lag: 0,
        }));
    }
}

impl TallySink {
    /// `tallies`: the first partition of the topic it writes to, and how many there are.
    pub fn new(
        end: SinkEnd,
        queue: WriteQueue,
        tallies: Option<(TopicPartition, u32)>,
    ) -> TallySink {
        TallySink {
            end,
            queue,
            tallies,
            preparing: None,
            failed: false,
        }
    }

    /// Performs the commands that are there, as far as nothing has to be waited for.
    fn advance(&mut self, env: &mut Env, wake: &Notify, image: &MetadataImage) -> Vec<NextAppend> {
        let mut appends = Vec::new();
        while !self.failed {
            if !self.dispatch(env, wake, image, &mut appends) {
                break;
            }
            if let Some(checkpoint) = self.preparing {
                if self.queue.bytes() > 0 || self.end.events.capacity() == 0 {
                    break;
                }
                self.queue.seal(checkpoint);
                self.preparing = None;
                self.tell(wake, SinkEvent::Prepared(checkpoint, None));
            }
            // As the pump would wait until the task has taken what it was told.
            if self.end.events.capacity() == 0 {
                break;
            }
            let Ok(command) = self.end.commands.try_recv() else {
                break;
            };
            // One place in the queue is free again.
            wake.notify_one();
            match command {
                SinkCommand::Rows(rows) => {
                    let (first, partitions) = self.tallies.expect("only a sink gets rows");
                    for tally in tallies_of(&rows) {
                        let key = tally.key().to_le_bytes();
                        let partition = TopicPartition {
                            partition: partition_of_key(&key, partitions),
                            ..first
                        };
                        let value = tally.encode();
                        let now = env.wall();
                        let pushed = self.queue.push(now, partition, Some(&key), Some(&value));
                        pushed.expect("a tally is small");
                    }
                }
                SinkCommand::DeadLetters(letters) => {
                    env.break_promise(format!("nothing is given up here: {letters:?}"));
                }
                SinkCommand::Barrier(checkpoint) => self.preparing = Some(checkpoint),
                SinkCommand::Commit { checkpoint, .. } => {
                    self.queue.completed(checkpoint);
                    self.tell(wake, SinkEvent::Committed(checkpoint));
                }
            }
        }
        appends
    }

    /// Begins the appends that can begin. False: one waits for a decision.
    fn dispatch(
        &mut self,
        env: &mut Env,
        wake: &Notify,
        image: &MetadataImage,
        appends: &mut Vec<NextAppend>,
    ) -> bool {
        loop {
            match self.queue.next_append() {
                Ok(None) => return true,
                Ok(Some(next)) => {
                    if env.sabotaged(Sabotage::PrepareUnstored) {
                        self.queue.stored(next.partition, next.bytes);
                    }
                    appends.push(next);
                }
                Err(NoTransaction::AllUndecided { oldest }) => {
                    match self.queue.decided(oldest, &image.jobs) {
                        Some(completed) => self.queue.completed(completed),
                        None => return false,
                    }
                }
                Err(NoTransaction::OutOfBits(error)) => {
                    self.fail(wake, SinkError::Fatal(error.to_string()));
                    return false;
                }
            }
        }
    }

    /// An append is over. The same one, if it has to be tried again.
    pub fn appended(
        &mut self,
        env: &Env,
        wake: &Notify,
        next: NextAppend,
        refused: Option<Problem>,
    ) -> Option<NextAppend> {
        let refusal = refused.map(|problem| judge(next.partition, &problem));
        match refusal {
            None | Some(Refusal::StoredBefore) => {
                if !env.sabotaged(Sabotage::PrepareUnstored) {
                    self.queue.stored(next.partition, next.bytes);
                }
                wake.notify_one();
                None
            }
            Some(Refusal::ForNow) => Some(next),
            Some(Refusal::ForGood(error)) => {
                self.fail(wake, error);
                None
            }
        }
    }

    fn fail(&mut self, wake: &Notify, error: SinkError) {
        self.failed = true;
        self.tell(wake, SinkEvent::Failed(error));
    }

    fn tell(&self, wake: &Notify, event: SinkEvent) {
        self.end
            .events
            .try_send(event)
            .expect("a task takes its sink's events before it gives it more barriers than fit");
        wake.notify_one();
    }
}

impl RunningTask {
    /// Runs source, task and sink once round.
    pub fn turn(&mut self, env: &mut Env, image: &MetadataImage) -> Result<Wanted, Failure> {
        self.scheduled = false;
        while let Some(mail) = self.mailbox.pop_front() {
            match mail {
                Mail::Inject { barrier, drain } => self.machine.inject(barrier, drain)?,
                Mail::Complete(checkpoint) => self.machine.complete(checkpoint),
            }
        }
        let mut wanted = Wanted::default();
        if let Some(source) = &mut self.source {
            wanted.fetches = source.advance(&self.wake);
        }
        if self.machine.turn()? {
            self.wake.notify_one();
        }
        wanted.appends = self.sink.advance(env, &self.wake, image);
        wanted.question = self.machine.question();
        Ok(wanted)
    }

    /// The store has found what it was asked.
    pub fn answer(&mut self, question: &Question) -> Result<(), Failure> {
        let answer = self.read(&question.table, question.ask.clone())?;
        self.machine.answered(question, answer);
        self.wake.notify_one();
        Ok(())
    }

    pub fn read(&self, table: &TableId, ask: Ask) -> Result<Answer, ViewError> {
        let reader = self.reader.as_ref().ok_or(ViewError::BuiltAnew)?;
        reader.answer(table, ask)
    }
}

pub fn append_request(next: &NextAppend) -> Request {
    Request::Append(Append {
        acks: Acks::All,
        batches: vec![PartitionAppend {
            partition: next.partition,
            leader_epoch: None,
            batch: next.batch.clone(),
        }],
    })
}

/// The records of fetched batches, with their offsets.
pub fn records(batches: Bytes) -> Vec<(Offset, Bytes)> {
    let mut found = Vec::new();
    for batch in LogBatches::new(batches) {
        let batch = batch.expect("what a leader serves is sound");
        let records = batch.records().expect("its records were validated");
        for record in records.iter() {
            let record = record.expect("its records were validated");
            let value = record.value.map(Bytes::copy_from_slice);
            found.push((record.offset, value.unwrap_or_default()));
        }
    }
    found
}
