//! Those who use the cluster: somebody creates topics and a job, producers send clicks, a reader reads
//! what is committed, and in the end the job is stopped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use common::error::ErrorCode;
use common::ids::{
    ClusterId, JobId, JobName, NodeId, PartitionId, ProducerEpoch, ProducerId, TopicId,
    TopicPartition,
};
use common::limits::MAX_WAIT;
use common::log_batch::{LogBatchBuilder, ProducerStamp};
use common::offset::Offset;
use common::protocol::job::{CreateJob, JobConfig};
use common::protocol::metadata::{FetchMetadata, WorkerImage};
use common::protocol::produce::{Acks, Append, PartitionAppend};
use common::protocol::topic::{Durability, FEWEST_MEMORIES, TopicConfig};
use common::time::Span;
use coordinator::metadata::command::Command;
use coordinator::metadata::jobs::Desired;
use coordinator::placement::racks::Racks;
use coordinator::placement::replicas::{Held, place};
use worker::metadata_image::MetadataImage;

use super::coordinators::Coordinators;
use super::env::{Env, Event, Timer as WorldTimer};
use super::network::{CallFailed, CallId, Process, Reply, Request};
use super::partition::committed_fetch;
use super::plan::Plan;
use super::swarm::Kind;
use super::tally::{self, CLICKS, COUNTED, Click, Shape, Tally};
use super::task::records;

const ME: Process = Process::Client;
const LOOK_EVERY: Span = Span::from_millis(50);
const READ_WAIT: Span = Span::from_millis(300);
const DEADLINE: Span = Span::from_secs(5);
/// Every so manyth read goes to whoever is a replica.
const READS_PASSED_ON: usize = 8;
/// How far moves are apart at most, and other numbers of tasks.
const MOVE_EVERY_MS: u64 = 10_000;
const RESCALE_EVERY_MS: u64 = 6_000;
/// Of a stage.
const MOST_TASKS: u32 = 3;

#[derive(Debug)]
pub enum Timer {
    Look,
    FetchMetadata,
    Produce(u32),
    Read(u32),
    /// So many more times replicas move to other workers.
    Move(u64),
    /// So many more times the job is to have more or fewer tasks.
    Rescale(u64),
}

#[derive(Debug)]
pub struct Client {
    plan: Plan,
    cluster: ClusterId,
    coordinators: Coordinators,
    image: MetadataImage,
    producers: Vec<Producer>,
    readers: Vec<Offset>,
    reads: usize,
    calls: BTreeMap<CallId, Purpose>,
    /// A command is on its way.
    asking: bool,
    wish: Wish,
}

/// What is wanted of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Run,
    /// It shall stop; nobody has confirmed that yet.
    Stop,
    Stopped,
}

/// Sends the clicks of one partition, batch by batch, each until it is acknowledged.
#[derive(Debug)]
struct Producer {
    batches: VecDeque<Vec<Click>>,
    sequence: i32,
}

#[derive(Debug)]
enum Purpose {
    Metadata,
    Command,
    Move,
    Rescale,
    Produce(u32),
    Read(u32),
}

impl Client {
    pub fn new(plan: &Plan, cluster: ClusterId, clicks: Vec<Vec<Vec<Click>>>) -> Client {
        let producers = clicks.into_iter().map(|batches| Producer {
            batches: batches.into(),
            sequence: 0,
        });
        Client {
            plan: plan.clone(),
            cluster,
            coordinators: Coordinators::new(plan.coordinators),
            image: MetadataImage::default(),
            producers: producers.collect(),
            readers: vec![Offset::ZERO; plan.tally_partitions as usize],
            reads: 0,
            calls: BTreeMap::new(),
            asking: false,
            wish: Wish::Run,
        }
    }

    pub fn start(&mut self, env: &mut Env) {
        self.fetch_metadata(env);
        after(env, LOOK_EVERY, Timer::Look);
        for partition in 0..self.plan.click_partitions {
            let delay = env.some_ms(500);
            after(env, delay, Timer::Produce(partition));
        }
        for partition in 0..self.plan.tally_partitions {
            after(env, LOOK_EVERY, Timer::Read(partition));
        }
        if self.plan.replicas.moves > 0 {
            let delay = env.some_ms(MOVE_EVERY_MS);
            after(env, delay, Timer::Move(self.plan.replicas.moves));
        }
        if self.plan.rescales > 0 {
            let delay = env.some_ms(RESCALE_EVERY_MS);
            after(env, delay, Timer::Rescale(self.plan.rescales));
        }
    }

    /// Every click was acknowledged.
    pub fn has_produced(&self) -> bool {
        self.producers
            .iter()
            .all(|producer| producer.batches.is_empty())
    }

    /// It is time to stop the job.
    pub fn stop_job(&mut self) {
        if self.wish == Wish::Run {
            self.wish = Wish::Stop;
        }
    }

    pub fn timer(&mut self, env: &mut Env, timer: Timer) {
        match timer {
            Timer::Look => {
                self.look(env);
                after(env, LOOK_EVERY, Timer::Look);
            }
            Timer::FetchMetadata => self.fetch_metadata(env),
            Timer::Produce(partition) => self.produce(env, partition),
            Timer::Read(partition) => self.read(env, partition),
            Timer::Move(left) => self.move_replicas(env, left),
            Timer::Rescale(left) => self.rescale(env, left),
        }
    }

    pub fn answer(&mut self, env: &mut Env, call: CallId, answer: Result<Reply, CallFailed>) {
        let purpose = self.calls.remove(&call);
        if self.coordinators.hear(call, &answer) {
            let waits = |purpose: &Purpose| matches!(purpose, Purpose::Metadata);
            if self.coordinators.give_up(&mut self.calls, waits) {
                self.fetch_metadata(env);
            }
        }
        match (purpose, answer) {
            (Some(Purpose::Metadata), Ok(Reply::Metadata(delta))) => {
                if let Some(image) = self.image.after(*delta, env.now) {
                    self.image = image;
                }
                self.fetch_metadata(env);
            }
            (Some(Purpose::Metadata), _) => {
                after(env, Span::from_millis(250), Timer::FetchMetadata);
            }
            // Whether it was done is seen in the facts.
            (Some(Purpose::Command), answer) => {
                self.asking = false;
                if self.wish == Wish::Stop && answer.is_ok() {
                    self.wish = Wish::Stopped;
                }
            }
            // Some moves are refused: there may be too few workers. Of a job that is not there, or over, nothing is wanted.
            (Some(Purpose::Move | Purpose::Rescale), _) => {}
            (Some(Purpose::Produce(partition)), answer) => {
                self.produced(env, partition, answer);
            }
            (Some(Purpose::Read(partition)), answer) => self.was_read(env, partition, answer),
            (None, _) => {}
        }
    }

    fn look(&mut self, env: &mut Env) {
        if self.asking {
            return;
        }
        let Some(command) = self.next_command() else {
            return;
        };
        self.asking = true;
        let request = Request::Command(Box::new(command));
        let coordinator = self.coordinators.current();
        self.call(env, coordinator, request, DEADLINE, Purpose::Command);
    }

    fn next_command(&self) -> Option<Command> {
        let active: Vec<NodeId> = self
            .image
            .workers
            .values()
            .filter(|worker| worker.active)
            .map(|worker| worker.id)
            .collect();
        if !self.image.topics.contains_key(&CLICKS) {
            // Everybody gets a share.
            let all = active.len() == self.plan.workers;
            return all.then(|| self.create_topic(CLICKS, &active)).flatten();
        }
        if !self.image.topics.contains_key(&COUNTED) {
            return self.create_topic(COUNTED, &active);
        }
        match self.job() {
            None => Some(self.create_job()),
            Some(job) if self.wish == Wish::Stop => Some(Command::SetDesired {
                job,
                desired: match self.plan.drain {
                    true => Desired::Drained,
                    false => Desired::Stopped,
                },
            }),
            Some(_) => None,
        }
    }

    pub fn job(&self) -> Option<JobId> {
        self.image.jobs.keys().next().copied()
    }

    /// `None`: there are too few workers yet.
    fn create_topic(&self, id: TopicId, active: &[NodeId]) -> Option<Command> {
        let copies = self.plan.replicas;
        let (partitions, replicas, enough) = match id == CLICKS {
            true => (
                self.plan.click_partitions,
                copies.clicks,
                copies.clicks_enough,
            ),
            false => (
                self.plan.tally_partitions,
                copies.tallies,
                copies.tallies_enough,
            ),
        };
        let held = active.iter().map(|worker| (*worker, Held::default()));
        let names = self.plan.shape();
        let replicas = place(partitions, replicas, &held.collect(), &Racks::default())?;
        Some(Command::CreateTopic {
            id,
            name: match id == CLICKS {
                true => names.clicks,
                false => names.tallies,
            },
            config: TopicConfig {
                segment_bytes: self.plan.segment_bytes,
                min_insync_replicas: enough,
                // In one memory only, a record would be lost with it.
                durability: match copies.in_memory && enough >= FEWEST_MEMORIES {
                    true => Durability::Replicated,
                    false => Durability::Fsync,
                },
                ..TopicConfig::default()
            },
            replicas,
        })
    }

    /// A topic's partitions shall have as many replicas as they have, on any of the workers.
    fn move_replicas(&mut self, env: &mut Env, left: u64) {
        if left > 1 {
            let delay = env.some_ms(MOVE_EVERY_MS);
            after(env, delay, Timer::Move(left - 1));
        }
        let (id, copies) = match env.draw(2) {
            0 => (CLICKS, self.plan.replicas.clicks),
            _ => (COUNTED, self.plan.replicas.tallies),
        };
        let Some(topic) = self.image.topics.get(&id) else {
            return;
        };
        let workers = self.image.workers.values().filter(|worker| worker.active);
        let active: Vec<NodeId> = workers.map(|worker| worker.id).collect();
        if active.len() < copies as usize {
            return;
        }
        env.strike(Kind::ReplicasMoved);
        let targets = topic.partitions.iter().map(|_| {
            let mut target = active.clone();
            while target.len() > copies as usize {
                let one = env.draw(target.len() as u64);
                target.remove(usize::try_from(one).expect("a few"));
            }
            target
        });
        let targets = targets.collect();
        let command = Command::Reassign { id, targets };
        env.trace(|| format!("{command:?}"));
        let request = Request::Command(Box::new(command));
        let coordinator = self.coordinators.current();
        self.call(env, coordinator, request, DEADLINE, Purpose::Move);
    }

    /// The job shall have as many tasks as chance says, which may be as many as it has.
    fn rescale(&mut self, env: &mut Env, left: u64) {
        if left > 1 {
            let delay = env.some_ms(RESCALE_EVERY_MS);
            after(env, delay, Timer::Rescale(left - 1));
        }
        let most = self.plan.click_partitions.min(MOST_TASKS);
        let mut some = |most: u32| 1 + u32::try_from(env.draw(most.into())).expect("a few");
        let shape = Shape {
            sources: some(most),
            operators: some(MOST_TASKS),
            ..self.plan.shape()
        };
        let request = Request::Rescale(shape);
        let coordinator = self.coordinators.current();
        self.call(env, coordinator, request, DEADLINE, Purpose::Rescale);
    }

    fn create_job(&self) -> Command {
        let shape: Shape = self.plan.shape();
        let spec = CreateJob {
            name: JobName::new("tally").expect("it is a name"),
            sql: None,
            graph: None,
            parallelism: None,
            checkpoint_interval_ms: None,
            config: JobConfig {
                archive: None,
                key_groups: tally::KEY_GROUPS,
                checkpoint_timeout: self.plan.checkpoint_timeout,
                // The world is rougher than a user would put up with.
                restart_budget: 1_000,
                standbys: self.plan.standbys.count,
            },
            restore: None,
        };
        Command::CreateJob {
            spec: Arc::new(spec),
            job_graph: Arc::new(tally::job_graph()),
            graph: Arc::new(tally::task_graph(&shape)),
            checkpoint_interval: self.plan.checkpoint_interval,
            restored: None,
        }
    }

    fn fetch_metadata(&mut self, env: &mut Env) {
        let request = Request::FetchMetadata(FetchMetadata {
            cluster: self.cluster,
            worker: None,
            since: self.image.version,
            wait: MAX_WAIT,
        });
        let deadline = Span(MAX_WAIT.0 + DEADLINE.0);
        let coordinator = self.coordinators.current();
        self.call(env, coordinator, request, deadline, Purpose::Metadata);
    }

    fn produce(&mut self, env: &mut Env, number: u32) {
        let producer = &self.producers[number as usize];
        let Some(batch) = producer.batches.front() else {
            return;
        };
        let partition = partition(CLICKS, number);
        let Some(leader) = self.leader(partition) else {
            return after(env, LOOK_EVERY, Timer::Produce(number));
        };
        let mut builder = LogBatchBuilder::new().producer(ProducerStamp {
            id: ProducerId(i64::from(number) + 1),
            epoch: ProducerEpoch(0),
            base_sequence: producer.sequence,
        });
        for click in batch {
            // The same bytes at every attempt.
            let at = common::time::Timestamp(click.time);
            builder.push(at, None, Some(&click.encode()), &[]);
        }
        let request = Request::Append(Append {
            acks: Acks::All,
            batches: vec![PartitionAppend {
                partition,
                leader_epoch: None,
                batch: builder.build().into_bytes(),
            }],
        });
        self.call(env, leader, request, DEADLINE, Purpose::Produce(number));
    }

    fn produced(&mut self, env: &mut Env, number: u32, answer: Result<Reply, CallFailed>) {
        let pause = match answer {
            Ok(Reply::Appended(placed)) => {
                let producer = &mut self.producers[number as usize];
                let batch = producer.batches.pop_front().expect("it was sent");
                producer.sequence += i32::try_from(batch.len()).expect("a small batch");
                let values: Vec<Bytes> = batch.iter().map(|click| click.encode().into()).collect();
                let base = placed.first().map(|placed| placed.base_offset);
                let base = base.expect("a batch has a place");
                let committed = &mut env.checkers.committed;
                let verdict = committed.acknowledged(partition(CLICKS, number), base, &values);
                env.check(verdict);
                env.some_ms(self.plan.produce_every_ms)
            }
            Ok(other) => {
                return env.break_promise(format!("an append was answered by {other:?}"));
            }
            Err(failed) if failed.is_retriable() => env.some_ms(200),
            Err(failed) => {
                return env.break_promise(format!("clicks are refused for good: {failed:?}"));
            }
        };
        after(env, pause, Timer::Produce(number));
    }

    fn read(&mut self, env: &mut Env, number: u32) {
        let partition = partition(COUNTED, number);
        self.reads += 1;
        let Some(leader) = self.leader_as_known_somewhere(partition) else {
            return after(env, LOOK_EVERY, Timer::Read(number));
        };
        let offset = self.readers[number as usize];
        let request = Request::Fetch(committed_fetch(partition, offset, READ_WAIT));
        self.call(env, leader, request, DEADLINE, Purpose::Read(number));
    }

    fn was_read(&mut self, env: &mut Env, number: u32, answer: Result<Reply, CallFailed>) {
        match answer {
            Ok(Reply::Fetched(reply)) => {
                let partition = partition(COUNTED, number);
                for (offset, value) in records(reply.batches) {
                    if offset < self.readers[number as usize] {
                        continue;
                    }
                    let verdict = env.checkers.committed.read(partition, offset, &value);
                    env.check(verdict);
                    let tally = Tally::decode(&value);
                    let verdict = env.checkers.outputs.output(partition, offset, tally);
                    env.check(verdict);
                }
                self.readers[number as usize] = reply.next_offset;
                after(env, Span(10), Timer::Read(number));
            }
            Err(CallFailed::Problem(problem)) if problem.code == ErrorCode::OffsetOutOfRange => {
                env.break_promise(format!("what was read is there no longer: {problem}"));
            }
            Ok(_) | Err(_) => after(env, Span(100), Timer::Read(number)),
        }
    }

    fn leader(&self, partition: TopicPartition) -> Option<Process> {
        self.image.leader(partition).map(process)
    }

    /// Now and then another replica, as if this were passed on by a node with facts of another time.
    fn leader_as_known_somewhere(&self, partition: TopicPartition) -> Option<Process> {
        if !self.reads.is_multiple_of(READS_PASSED_ON) {
            return self.leader(partition);
        }
        let replicas = &self.image.partition(partition)?.replicas;
        let replica = replicas[self.reads / READS_PASSED_ON % replicas.len()];
        self.image.workers.get(&replica).map(process)
    }

    fn call(
        &mut self,
        env: &mut Env,
        callee: Process,
        request: Request,
        deadline: Span,
        purpose: Purpose,
    ) {
        let call = env.call((ME, 0), callee, request, deadline);
        self.coordinators.asks(call, callee);
        self.calls.insert(call, purpose);
    }
}

fn process(worker: &WorkerImage) -> Process {
    Process::Worker(worker.address.parse().expect("an index"))
}

fn partition(topic: TopicId, number: u32) -> TopicPartition {
    TopicPartition {
        topic,
        partition: PartitionId(number),
    }
}

fn after(env: &mut Env, delay: Span, timer: Timer) {
    let event = Event::Timer {
        process: ME,
        life: 0,
        timer: WorldTimer::Client(timer),
    };
    env.after(delay, event);
}
