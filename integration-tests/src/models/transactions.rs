//! Model: a job's exactly-once output in two partitions, decided by whoever leads them from the facts.
//!
//! Scope: two generations of one writer, which write a few records, pass a few barriers, and know nothing of
//! being replaced; two partitions whose leaders hear of the facts late. Those of the first change, lose what
//! was not committed, and hear of everything from the beginning; what is in the second is committed. The writers' transactions, what a log knows of its producers and
//! transactions, the decisions and the metadata are the product's; logs hold real batches. Who acknowledges a
//! checkpoint, and when, is what the sinks promise; how that is gathered is the model of `generations`.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash};
use std::sync::Arc;

use common::ids::{
    CheckpointId, Generation, JobId, LeaderEpoch, NodeId, PartitionId, ProducerEpoch, ProducerId,
    TaskId, TopicId, TopicPartition,
};
use common::log_batch::{
    LogBatch, LogBatchBuilder, ProducerStamp, TransactionOutcome, end_transaction,
};
use common::offset::Offset;
use common::protocol::checkpoint::CheckpointKind;
use common::protocol::job::JobState;
use common::protocol::metadata::JobImage;
use common::protocol::task::{Standbys, TaskAssignment};
use common::time::{Span, Timestamp};
use coordinator::metadata::command::{Command, EpochCompleted};
use coordinator::metadata::division::Dividing;
use uuid::Uuid;
use worker::log::derived::Derived;
use worker::log::producer_state::Verdict;
use worker::partition::reconcile::{JobFacts, Marker, admit, markers};
use worker::partition::transactions::touching;
use worker::sink::transactions::{Transactions, Writer};

use super::explorer::{Model, Property, digest_all};
use super::facts::Facts;

const PARTITIONS: usize = 2;
const NOW: Timestamp = Timestamp(0);

/// How much may happen.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Records of the first generation, and of the second.
    pub records: [u8; 2],
    /// Barriers, of all generations together.
    pub barriers: u8,
    /// Changes of leaders.
    pub elections: u8,
    /// Leaders refuse writers of the past. It only saves work.
    pub fenced: bool,
    pub mistake: Option<Mistake>,
}

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// What an older generation left is decided by the checkpoint that was completed last.
    CommitByCheckpointAlone,
    /// A leader commits the transactions of a checkpoint that is not complete.
    CommitUndecided,
    /// A sink says that it is prepared while its appends may still be lost.
    PrepareUncommitted,
}

impl Mistake {
    pub const ALL: [Mistake; 3] = [
        Mistake::CommitByCheckpointAlone,
        Mistake::CommitUndecided,
        Mistake::PrepareUncommitted,
    ];
}

#[derive(Clone, Debug)]
pub struct State {
    facts: Arc<Facts>,
    job: JobId,
    worker: NodeId,
    /// What the metadata said of the job, version after version.
    history: Vec<Arc<JobFacts>>,
    writers: Vec<Arc<JobWriter>>,
    partitions: [Arc<Partition>; PARTITIONS],
    barriers: u64,
    elections: u8,
    /// Every checkpoint that was completed, with its generation.
    completed: Vec<(Generation, CheckpointId)>,
    /// What was decided, wherever; whether it was decided again by another leader, or otherwise.
    decisions: BTreeMap<(usize, ProducerId, ProducerEpoch), TransactionOutcome>,
    again: bool,
    otherwise: bool,
}

/// The task with the sink, in one generation. It goes on as long as it likes.
#[derive(Clone, Debug)]
struct JobWriter {
    generation: Generation,
    transactions: Transactions,
    records: Vec<Record>,
    /// Passed, and not acknowledged yet.
    barrier: Option<CheckpointId>,
    acknowledged: Option<CheckpointId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Record {
    partition: usize,
    stamp: ProducerStamp,
    /// The barrier that came after it.
    sealed: Option<CheckpointId>,
}

#[derive(Clone, Debug)]
struct Partition {
    log: Vec<LogBatch>,
    derived: Derived,
    committed: usize,
    /// How much of the history its leader has heard of.
    heard: usize,
    reign: LeaderEpoch,
}

/// The numbers are those of writers, of their records, and of partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start,
    Stop,
    Write(usize, usize),
    /// A record arrives at its partition's leader, maybe once more, maybe much later.
    Append(usize, usize),
    /// A barrier passes, which none does that begins when its generation is over.
    Seal(usize),
    Acknowledge(usize),
    Complete(usize),
    /// All there is in the first partition becomes committed.
    Commit,
    /// Another replica leads it, which has what was committed, or everything.
    Elect(Has),
    /// A leader hears of the facts as they are now, and decides.
    Hear(usize),
    /// It decides what has come since.
    Decide(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    Everything,
    WhatWasCommitted,
}

fn place(partition: usize) -> TopicPartition {
    TopicPartition {
        topic: TopicId(Uuid::from_u128(2)),
        partition: PartitionId(u32::try_from(partition).expect("a few")),
    }
}

fn offset(length: usize) -> Offset {
    Offset(i64::try_from(length).expect("a few"))
}

impl Model for Output {
    type State = State;
    type Action = Action;

    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn initial(&self) -> State {
        let mut facts = Facts::new();
        let (worker, _) = facts.register(0, 0);
        let job = facts.create_job(Span::from_secs(1));
        let mut state = State {
            facts: Arc::new(facts),
            job,
            worker,
            history: Vec::new(),
            writers: Vec::new(),
            partitions: [0, 1].map(|_| Arc::new(Partition::new())),
            barriers: 0,
            elections: 0,
            completed: Vec::new(),
            decisions: BTreeMap::new(),
            again: false,
            otherwise: false,
        };
        state.start();
        state
    }

    fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        if state.facts.job(state.job).deployment.is_some() {
            actions.push(match state.writers.len() {
                1 => Action::Start,
                _ => Action::Stop,
            });
        }
        for (index, writer) in state.writers.iter().enumerate() {
            if writer.records.len() < usize::from(self.records[index]) {
                let partitions = 0..PARTITIONS;
                actions.extend(partitions.map(|partition| Action::Write(index, partition)));
            }
            for (number, record) in writer.records.iter().enumerate() {
                if !state.partitions[record.partition].has(record.stamp) {
                    actions.push(Action::Append(index, number));
                }
            }
            let runs = state.facts.job(state.job).generation == writer.generation;
            if runs && writer.barrier.is_none() && state.barriers < u64::from(self.barriers) {
                actions.push(Action::Seal(index));
            }
            if writer.barrier.is_some() && self.is_prepared(state, writer) {
                actions.push(Action::Acknowledge(index));
            }
            if writer.acknowledged.is_some() {
                actions.push(Action::Complete(index));
            }
        }
        for (index, partition) in state.partitions.iter().enumerate() {
            if partition.heard + 1 < state.history.len() {
                actions.push(Action::Hear(index));
            }
            if !partition
                .markers(&self.believed(state, partition))
                .is_empty()
            {
                actions.push(Action::Decide(index));
            }
        }
        let unstable = &state.partitions[0];
        if unstable.is_behind() {
            actions.push(Action::Commit);
        }
        if state.elections < self.elections && !unstable.log.is_empty() {
            actions.push(Action::Elect(Has::Everything));
            if unstable.is_behind() {
                actions.push(Action::Elect(Has::WhatWasCommitted));
            }
        }
        actions
    }

    fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Start => state.start(),
            Action::Stop => {
                let row = state.facts.job(state.job);
                let stop = Command::EndGeneration {
                    job: state.job,
                    generation: row.generation,
                    state: JobState::Stopped,
                    reason: String::new(),
                    failure: None,
                };
                let stopped = Arc::make_mut(&mut state.facts).command(stop);
                stopped.expect("it runs");
                state.note_facts();
            }
            Action::Write(index, partition) => {
                let writer = Arc::make_mut(&mut state.writers[index]);
                let stamp = writer.transactions.stamp(place(partition), 1);
                writer.records.push(Record {
                    partition,
                    stamp: stamp.expect("there are slots for all of them"),
                    sealed: None,
                });
            }
            Action::Append(index, number) => {
                let record = state.writers[index].records[number];
                let facts = self.believed(state, &state.partitions[record.partition]);
                self.append(state, record, &facts);
            }
            Action::Seal(index) => {
                state.barriers += 1;
                let checkpoint = CheckpointId(state.barriers);
                let writer = Arc::make_mut(&mut state.writers[index]);
                writer.transactions.seal(checkpoint);
                writer.barrier = Some(checkpoint);
                for record in &mut writer.records {
                    record.sealed.get_or_insert(checkpoint);
                }
            }
            Action::Acknowledge(index) => {
                let writer = Arc::make_mut(&mut state.writers[index]);
                writer.acknowledged = writer.barrier.take();
            }
            Action::Complete(index) => state.complete(index),
            Action::Commit => Arc::make_mut(&mut state.partitions[0]).commit(),
            Action::Elect(has) => {
                state.elections += 1;
                Arc::make_mut(&mut state.partitions[0]).elect(has);
                self.decide(state, 0);
            }
            Action::Hear(index) => {
                let last = state.history.len() - 1;
                Arc::make_mut(&mut state.partitions[index]).heard = last;
                self.decide(state, index);
            }
            Action::Decide(index) => self.decide(state, index),
        }
        if state.partitions[1].is_behind() {
            Arc::make_mut(&mut state.partitions[1]).commit();
        }
    }

    fn digest(&self, state: &State, hasher: &mut DefaultHasher) {
        state.facts.digest_job(state.job, hasher);
        digest_all(
            state.history.iter().map(|facts| {
                let job = &facts[&state.job];
                (job.generation, job.completed, &job.finals, job.running)
            }),
            hasher,
        );
        for writer in &state.writers {
            (&writer.transactions, &writer.records).hash(hasher);
            (writer.barrier, writer.acknowledged).hash(hasher);
        }
        for partition in &state.partitions {
            let log = partition.log.iter();
            digest_all(log.map(|batch| batch.bytes()), hasher);
            let Derived {
                producers,
                transactions,
                ..
            } = &partition.derived;
            (producers, transactions).hash(hasher);
            (partition.committed, partition.heard, partition.reign).hash(hasher);
        }
        (state.barriers, state.elections, &state.completed).hash(hasher);
        (&state.decisions, state.again, state.otherwise).hash(hasher);
    }

    fn properties(&self) -> Vec<Property<State>> {
        let mut properties: Vec<Property<State>> = vec![
            Property::always(
                "readers see what lies before a completed checkpoint, all of it, and nothing else",
                |state| (0..PARTITIONS).all(|partition| state.readers_see_what_counts(partition)),
            ),
            Property::always("what lies before a completed checkpoint stays", |state| {
                let records = state
                    .records()
                    .filter(|(generation, record)| state.counts(*generation, record));
                let mut records = records.map(|(_, record)| record);
                records.all(|record| {
                    let partition = &state.partitions[record.partition];
                    let log = &partition.log[..partition.committed];
                    log.iter()
                        .any(|batch| batch.header().producer == Some(record.stamp))
                })
            }),
            Property::always("every leader decides alike", |state| !state.otherwise),
            Property::sometimes("the second generation's output is read", |state| {
                state.is_decided(Generation(2), TransactionOutcome::Commit)
            }),
            Property::sometimes("what a writer of the past left is taken back", |state| {
                state.is_decided(Generation(1), TransactionOutcome::Abort)
            }),
            Property::sometimes("one partition has decided, the other has not", |state| {
                let decided = |partition: &Partition| {
                    let transactions = &partition.derived.transactions;
                    !partition.log.is_empty() && transactions.open().next().is_none()
                };
                decided(&state.partitions[0]) != decided(&state.partitions[1])
                    && state
                        .partitions
                        .iter()
                        .all(|partition| !partition.log.is_empty())
            }),
            Property::stays_open("everything is decided, and read", |state| {
                state.partitions.iter().all(|partition| {
                    let transactions = &partition.derived.transactions;
                    let committed = offset(partition.committed);
                    partition.committed == partition.log.len()
                        && transactions.last_stable_offset(committed) == committed
                })
            }),
        ];
        if self.elections > 0 {
            let name = "a leader decides again what one before it has";
            properties.push(Property::sometimes(name, |state| state.again));
        }
        if !self.fenced {
            let name = "a writer of the past appends where its end was heard of";
            properties.push(Property::sometimes(name, |state| state.zombie_wrote()));
        }
        properties
    }
}

impl Output {
    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// All that was written before the barrier can no longer be lost.
    fn is_prepared(&self, state: &State, writer: &JobWriter) -> bool {
        writer.records.iter().all(|record| {
            let partition = &state.partitions[record.partition];
            let end = match self.makes(Mistake::PrepareUncommitted) {
                true => partition.log.len(),
                false => partition.committed,
            };
            let log = partition.log[..end].iter();
            record.sealed.is_none()
                || log
                    .map(|batch| batch.header().producer)
                    .any(|p| p == Some(record.stamp))
        })
    }

    fn decide(&self, state: &mut State, index: usize) {
        let facts = self.believed(state, &state.partitions[index]);
        state.decide(index, &facts);
    }

    /// The facts a leader decides by.
    fn believed(&self, state: &State, partition: &Partition) -> Arc<JobFacts> {
        let heard = &state.history[partition.heard];
        let change: fn(&mut JobImage) = match self.mistake {
            Some(Mistake::CommitByCheckpointAlone) => |job| {
                for last in job.finals.values_mut() {
                    *last = job.completed;
                }
            },
            Some(Mistake::CommitUndecided) => |job| {
                job.completed = Some(job.completed.unwrap_or_default().next());
            },
            Some(Mistake::PrepareUncommitted) | None => return Arc::clone(heard),
        };
        let mut believed = JobFacts::clone(heard);
        believed.values_mut().for_each(change);
        Arc::new(believed)
    }

    /// As a log does it: repetitions first, then what this append may not overtake, then whether it may come.
    fn append(&self, state: &mut State, record: Record, facts: &JobFacts) {
        let index = record.partition;
        let stamp = record.stamp;
        match state.partitions[index].derived.producers.check(stamp, 1) {
            Ok(Verdict::Next) => {}
            Ok(Verdict::Duplicate(_)) | Err(_) => return,
        }
        let transactions = &state.partitions[index].derived.transactions;
        if transactions.open_of(stamp.id).is_some() {
            state.decide(index, facts);
        }
        let partition = Arc::make_mut(&mut state.partitions[index]);
        let admitted = admit(stamp, true, &partition.derived.transactions, facts);
        if self.fenced && admitted.is_err() {
            return;
        }
        // What no leader could make sense of yet is refused in any case.
        if admitted.is_err_and(|refusal| refusal.is_temporary()) {
            return;
        }
        let mut builder = LogBatchBuilder::new().transactional(stamp);
        builder.push(NOW, None, None, &[]);
        partition.write(builder.build());
    }
}

impl State {
    /// The next generation begins, from what was completed last.
    fn start(&mut self) {
        let row = self.facts.job(self.job);
        let (generation, restore) = (row.generation, row.completed);
        let tasks: Vec<TaskId> = row.graph.tasks().collect();
        let worker = self.worker;
        let start = Command::StartGeneration {
            job: self.job,
            generation,
            restore,
            dividing: Dividing::AsBefore,
            tasks: tasks
                .iter()
                .map(|task| TaskAssignment {
                    task: *task,
                    worker,
                })
                .collect(),
            standbys: Standbys::new(),
            state: JobState::Deploying,
            reason: String::new(),
            failure: None,
        };
        let facts = Arc::make_mut(&mut self.facts);
        facts.command(start).expect("there is room");
        let generation = generation.next();
        let job = self.job;
        let reserved = facts.command(Command::ReserveEpochs { job, generation });
        reserved.expect("it runs");
        let writer = Writer {
            job,
            generation,
            task: 1,
        };
        self.writers.push(Arc::new(JobWriter {
            generation,
            transactions: Transactions::new(writer, restore),
            records: Vec::new(),
            barrier: None,
            acknowledged: None,
        }));
        self.note_facts();
    }

    fn complete(&mut self, index: usize) {
        let writer = Arc::make_mut(&mut self.writers[index]);
        let generation = writer.generation;
        let checkpoint = writer.acknowledged.take().expect("it acknowledged");
        let tasks: Vec<TaskId> = self.facts.job(self.job).graph.tasks().collect();
        let holders = tasks.into_iter().map(|task| (task, vec![self.worker]));
        let complete = Command::EpochCompleted(EpochCompleted {
            job: self.job,
            generation,
            checkpoint,
            kind: CheckpointKind::Periodic,
            holders: holders.collect(),
            positions: BTreeMap::new(),
            counts: BTreeMap::new(),
            duration: Span(0),
            delta_bytes: 0,
            state_bytes: 0,
        });
        // Whatever does not fit the facts changes nothing.
        if Arc::make_mut(&mut self.facts).command(complete).is_ok() {
            self.completed.push((generation, checkpoint));
            self.note_facts();
        }
    }

    fn note_facts(&mut self) {
        let image = self.facts.job(self.job).image();
        let facts = JobFacts::from([(self.job, image)]);
        if self.history.last().is_none_or(|last| **last != facts) {
            self.history.push(Arc::new(facts));
        }
    }

    fn decide(&mut self, index: usize, facts: &JobFacts) {
        let partition = Arc::make_mut(&mut self.partitions[index]);
        for marker in partition.markers(facts) {
            let Marker {
                producer,
                epoch,
                outcome,
            } = marker;
            partition.write(end_transaction(producer, epoch, outcome, NOW));
            match self.decisions.insert((index, producer, epoch), outcome) {
                Some(before) if before == outcome => self.again = true,
                Some(_) => self.otherwise = true,
                None => {}
            }
        }
    }

    fn records(&self) -> impl Iterator<Item = (Generation, &Record)> {
        let writers = self.writers.iter();
        writers.flat_map(|writer| {
            let records = writer.records.iter();
            records.map(|record| (writer.generation, record))
        })
    }

    /// Whether it lies before a completed checkpoint of its own generation.
    fn counts(&self, generation: Generation, record: &Record) -> bool {
        let mut completed = self.completed.iter();
        record.sealed.is_some_and(|sealed| {
            completed.any(|(of, checkpoint)| *of == generation && sealed <= *checkpoint)
        })
    }

    fn readers_see_what_counts(&self, index: usize) -> bool {
        let partition = &self.partitions[index];
        let transactions = &partition.derived.transactions;
        let stable = transactions.last_stable_offset(offset(partition.committed));
        let aborted = touching(transactions.aborted(), Offset::ZERO, stable);
        partition.log.iter().all(|batch| {
            let header = batch.header();
            if header.control || header.base_offset >= stable {
                return true;
            }
            let mut records = self.records();
            let counts = records.any(|(generation, record)| {
                header.producer == Some(record.stamp)
                    && record.partition == index
                    && self.counts(generation, record)
            });
            let hidden = aborted.iter().any(|transaction| transaction.covers(header));
            counts != hidden
        })
    }

    fn is_decided(&self, generation: Generation, how: TransactionOutcome) -> bool {
        let writers = self.writers.iter();
        let mut writers = writers.filter(|writer| writer.generation == generation);
        writers.any(|writer| {
            writer.records.iter().any(|record| {
                let of = (record.partition, record.stamp.id, record.stamp.epoch);
                self.decisions.get(&of) == Some(&how)
            })
        })
    }

    fn zombie_wrote(&self) -> bool {
        let partitions = self.partitions.iter();
        let mut heard = partitions.filter(|partition| {
            let facts = &self.history[partition.heard][&self.job];
            facts.generation > Generation(1)
        });
        heard.any(|partition| {
            let open = partition.derived.transactions.open();
            let facts = &self.history[partition.heard];
            open.count() > 0 && !partition.markers(facts).is_empty()
        })
    }
}

impl Partition {
    fn new() -> Partition {
        Partition {
            log: Vec::new(),
            derived: Derived::default(),
            committed: 0,
            heard: 0,
            reign: LeaderEpoch(0),
        }
    }

    fn has(&self, stamp: ProducerStamp) -> bool {
        let mut log = self.log.iter();
        log.any(|batch| batch.header().producer == Some(stamp))
    }

    fn markers(&self, facts: &JobFacts) -> Vec<Marker> {
        markers(&self.derived.transactions, facts)
    }

    fn write(&mut self, mut batch: LogBatch) {
        batch.stamp(offset(self.log.len()), self.reign);
        let recorded = self.derived.record(batch.header(), &batch, None, NOW);
        recorded.expect("it comes next");
        self.log.push(batch);
    }

    fn is_behind(&self) -> bool {
        self.committed < self.log.len()
    }

    fn commit(&mut self) {
        self.committed = self.log.len();
        let committed = offset(self.committed);
        self.derived.transactions.committed(committed);
    }

    fn elect(&mut self, has: Has) {
        self.reign = self.reign.next();
        self.heard = 0;
        if has == Has::WhatWasCommitted {
            self.log.truncate(self.committed);
        }
        self.derived = Derived::default();
        for batch in &self.log {
            let recorded = self.derived.record(batch.header(), batch, None, NOW);
            recorded.expect("it was recorded before");
        }
        let committed = offset(self.committed);
        self.derived.transactions.committed(committed);
    }
}
