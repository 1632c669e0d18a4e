//! A worker that leads every partition of one topic in memory, for tests of what reads and writes topics.
//!
//! It speaks the calls of a real one over a real connection, keeps each batch as it came, knows repeated
//! sequences, and fails when it is told to.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use common::error::{ErrorCode, Problem};
use common::ids::{
    Generation, JobId, JobName, LeaderEpoch, MetadataVersion, NodeId, PartitionEpoch, PartitionId,
    TopicId, TopicName, TopicPartition, WorkerEpoch,
};
use common::log_batch::{LogBatch, LogBatchBuilder};
use common::offset::Offset;
use common::protocol::fetch::{FetchBatches, FetchedBatches, ListOffsets, PartitionOffsets};
use common::protocol::metadata::{
    JobImage, MetadataDelta, PartitionImage, TopicImage, WorkerImage,
};
use common::protocol::produce::{Append, Appended, AppendedBatch};
use common::protocol::topic::TopicConfig;
use common::time::{Span, Tick, Timestamp};
use common::transport::client::Transport;
use common::transport::server::{HttpServer, register};
use tokio::sync::watch;
use uuid::Uuid;

use crate::log_client::LogClient;
use crate::metadata_image::MetadataImage;

pub(crate) const TOPIC: TopicId = TopicId(Uuid::from_u128(7));
pub(crate) const JOB: JobId = JobId(3);

/// The partitions, as tests see and change them.
#[derive(Debug, Default)]
pub(crate) struct TestPartition {
    pub(crate) batches: Vec<LogBatch>,
    pub(crate) log_start: i64,
    /// Readers of committed records see nothing from here on.
    pub(crate) stable: Option<i64>,
    next: i64,
}

#[derive(Debug, Default)]
pub(crate) struct TestState {
    pub(crate) partitions: BTreeMap<u32, TestPartition>,
    /// What the next calls are answered with instead.
    pub(crate) failures: VecDeque<ErrorCode>,
    /// The next appends are carried out, but answered with a timeout.
    pub(crate) lost_answers: u32,
    pub(crate) appends: u32,
    pub(crate) fetches: u32,
}

#[derive(Debug)]
pub(crate) struct TestLog {
    pub(crate) client: LogClient,
    pub(crate) transport: Transport,
    image: watch::Sender<Arc<MetadataImage>>,
    state: Arc<Mutex<TestState>>,
    _server: HttpServer,
}

impl TestLog {
    /// Serves a topic of this name with so many partitions.
    pub(crate) fn start(topic: &str, partitions: u32) -> TestLog {
        let state = Arc::new(Mutex::new(TestState {
            partitions: (0..partitions)
                .map(|p| (p, TestPartition::default()))
                .collect(),
            ..TestState::default()
        }));
        let shared = state.clone();
        let server = HttpServer::start(
            "test",
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            1,
            Span(0),
            move |config| {
                let (append, fetch, list) = (shared.clone(), shared.clone(), shared.clone());
                register(config, move |call: Append| {
                    let answer = append.lock().unwrap().append(call);
                    async move { answer }
                });
                register(config, move |call: FetchBatches| {
                    let answer = fetch.lock().unwrap().fetch(&call);
                    async move {
                        let empty = answer.as_ref().is_ok_and(|a| a.batches.is_empty());
                        if empty {
                            tokio::time::sleep(call.wait.as_duration()).await;
                        }
                        answer
                    }
                });
                register(config, move |call: ListOffsets| {
                    let answer = list.lock().unwrap().offsets(&call);
                    async move { answer }
                });
            },
        )
        .unwrap();
        let partition = PartitionImage {
            replicas: vec![NodeId(1)],
            isr: vec![NodeId(1)],
            leader: Some(NodeId(1)),
            leader_epoch: LeaderEpoch(1),
            partition_epoch: PartitionEpoch(1),
            ..PartitionImage::default()
        };
        let delta = MetadataDelta {
            version: MetadataVersion(1),
            full: true,
            topics: vec![TopicImage {
                id: TOPIC,
                name: TopicName::new(topic).unwrap(),
                config: TopicConfig::default(),
                partitions: (0..partitions).map(|_| partition.clone()).collect(),
            }],
            workers: vec![WorkerImage {
                id: NodeId(1),
                epoch: WorkerEpoch(1),
                address: format!("http://{}", server.address()),
                active: true,
            }],
            ..MetadataDelta::default()
        };
        let image = MetadataImage::default().after(delta, Tick(0)).unwrap();
        let (image, watch) = watch::channel(Arc::new(image));
        let transport = Transport::start("test").unwrap();
        TestLog {
            client: LogClient::new(watch, transport.clone()),
            transport,
            image,
            state,
            _server: server,
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, TestState> {
        self.state.lock().unwrap()
    }

    /// Appends one batch of values, as any producer would.
    pub(crate) fn produce(&self, partition: u32, values: &[&str]) {
        let mut builder = LogBatchBuilder::new();
        for value in values {
            builder.push(Timestamp(0), None, Some(value.as_bytes()), &[]);
        }
        self.state().put(partition, builder.build());
    }

    /// The values in a partition, in order.
    pub(crate) fn values(&self, partition: u32) -> Vec<String> {
        let mut values = Vec::new();
        for batch in &self.state().partitions[&partition].batches {
            for record in batch.records().unwrap().iter() {
                let value = record.unwrap().value.unwrap_or(b"-").to_vec();
                values.push(String::from_utf8(value).unwrap());
            }
        }
        values
    }

    /// Gives the topic more partitions.
    pub(crate) fn grow(&self, partitions: u32) {
        let mut state = self.state();
        for number in 0..partitions {
            state.partitions.entry(number).or_default();
        }
        self.image.send_modify(|image| {
            let mut topic = image.topics[&TOPIC].as_ref().clone();
            let partition = topic.partitions[0].clone();
            topic.partitions = (0..partitions).map(|_| partition.clone()).collect();
            let delta = MetadataDelta {
                since: image.version,
                version: MetadataVersion(image.version.0 + 1),
                topics: vec![topic],
                ..MetadataDelta::default()
            };
            *image = Arc::new(image.after(delta, Tick(0)).unwrap());
        });
    }

    /// Another topic has the name, with as many partitions. Nothing is led of it.
    pub(crate) fn recreate(&self) {
        self.image.send_modify(|image| {
            let mut topic = image.topics[&TOPIC].as_ref().clone();
            topic.id = TopicId(Uuid::from_u128(8));
            let delta = MetadataDelta {
                since: image.version,
                version: MetadataVersion(image.version.0 + 1),
                removed_topics: vec![TOPIC],
                topics: vec![topic],
                ..MetadataDelta::default()
            };
            *image = Arc::new(image.after(delta, Tick(0)).unwrap());
        });
    }

    /// Makes it a fact that the job has completed this checkpoint.
    pub(crate) fn complete(&self, generation: u32, checkpoint: u64) {
        let job = JobImage {
            id: JOB,
            name: JobName::new("job").unwrap(),
            generation: Generation(generation),
            completed: Some(common::ids::CheckpointId(checkpoint)),
            finals: BTreeMap::new(),
            running: true,
            deleted: false,
        };
        self.image.send_modify(|image| {
            let delta = MetadataDelta {
                since: image.version,
                version: MetadataVersion(image.version.0 + 1),
                jobs: vec![job],
                ..MetadataDelta::default()
            };
            *image = Arc::new(image.after(delta, Tick(0)).unwrap());
        });
    }
}

impl TestState {
    fn fail(&mut self) -> Result<(), Problem> {
        match self.failures.pop_front() {
            Some(code) => Err(Problem::new(code, "as the test said")),
            None => Ok(()),
        }
    }

    fn put(&mut self, partition: u32, mut batch: LogBatch) -> (i64, bool) {
        let log = self.partitions.get_mut(&partition).unwrap();
        let stamp = batch.header().producer;
        if let Some(stamp) = stamp {
            let same = |known: &&LogBatch| known.header().producer == Some(stamp);
            if let Some(known) = log.batches.iter().find(same) {
                return (known.header().base_offset.0, true);
            }
        }
        let base = log.next;
        batch.stamp(Offset(base), LeaderEpoch(1));
        log.next += i64::from(batch.header().record_count);
        log.batches.push(batch);
        (base, false)
    }

    fn append(&mut self, call: Append) -> Result<Appended, Problem> {
        self.appends += 1;
        self.fail()?;
        let mut results = Vec::new();
        for append in call.batches {
            let batch = LogBatch::parse(append.batch).unwrap();
            let records = batch.header().record_count;
            let (base, duplicate) = self.put(append.partition.partition.0, batch);
            results.push(Ok(AppendedBatch {
                base_offset: Offset(base),
                records,
                duplicate,
                timestamp: Timestamp(0),
            }));
        }
        if let Some(left) = self.lost_answers.checked_sub(1) {
            self.lost_answers = left;
            return Err(Problem::new(ErrorCode::Timeout, "the answer is lost"));
        }
        Ok(Appended { results })
    }

    fn fetch(&mut self, call: &FetchBatches) -> Result<FetchedBatches, Problem> {
        self.fetches += 1;
        self.fail()?;
        let log = &self.partitions[&call.partition.partition.0];
        if call.offset.0 < log.log_start || call.offset.0 > log.next {
            return Err(Problem::new(ErrorCode::OffsetOutOfRange, "it is not there"));
        }
        let end = log.stable.unwrap_or(log.next);
        let mut bytes = BytesMut::new();
        let mut next = call.offset;
        for batch in &log.batches {
            let range = batch.header().offsets();
            let wanted = range.end > call.offset && range.end.0 <= end;
            if wanted && (bytes.is_empty() || bytes.len() < call.max_bytes as usize) {
                bytes.extend_from_slice(batch.bytes());
                next = range.end;
            }
        }
        Ok(FetchedBatches {
            batches: Bytes::from(bytes),
            next_offset: next,
            log_start_offset: Offset(log.log_start),
            end_offset: Offset(end),
        })
    }

    fn offsets(&mut self, call: &ListOffsets) -> Result<PartitionOffsets, Problem> {
        self.fail()?;
        let log = &self.partitions[&call.partition.partition.0];
        Ok(PartitionOffsets {
            log_start_offset: Offset(log.log_start),
            last_stable_offset: Offset(log.stable.unwrap_or(log.next)),
            committed_offset: Offset(log.next),
            log_end_offset: Offset(log.next),
            at: call.at.map(|time| Offset(time.0)),
        })
    }
}

pub(crate) fn partition(number: u32) -> TopicPartition {
    TopicPartition {
        topic: TOPIC,
        partition: PartitionId(number),
    }
}
