//! For tests: facts, and the commands that made them.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::ids::{
    CheckpointId, ClusterId, ControlEpoch, Generation, JobId, JobName, LeaderEpoch,
    MetadataVersion, NodeId, PartitionEpoch, PartitionId, StageId, StorageId, TaskId, TopicId,
    TopicName, TopicPartition, WorkerEpoch,
};
use common::objects::location::Location;
use common::plan::task_graph::{Stage, TaskGraph};
use common::protocol::checkpoint::{CheckpointKind, TaskCounts};
use common::protocol::job::{CreateJob, JobConfig, JobState};
use common::protocol::savepoint::RestoredFrom;
use common::protocol::task::{Standbys, TaskAssignment};
use common::protocol::topic::TopicConfig;
use common::time::{Span, Timestamp};
use uuid::Uuid;

use super::ClusterMetadata;
use super::command::{Command, Entry, EpochCompleted, Outcome, Registration, Rejection};
use super::division::Dividing;
use super::savepoints::Restored;

/// Metadata, and the commands that made it.
#[derive(Clone, Default)]
pub(super) struct History {
    pub(super) metadata: ClusterMetadata,
    pub(super) entries: Vec<Entry>,
    /// How far the clock of who decides is ahead.
    pub(super) ahead: Span,
}

impl History {
    pub(super) fn announced() -> History {
        let mut history = History::default();
        history.announce();
        history
    }

    pub(super) fn announce(&mut self) -> ControlEpoch {
        let cluster = ClusterId(Uuid::from_u128(1));
        let outcome = self.command(Command::LeaderAnnounce { cluster });
        let Ok(Outcome::Announced(epoch)) = outcome else {
            panic!("an announcement was refused: {outcome:?}");
        };
        epoch
    }

    pub(super) fn command(&mut self, command: Command) -> Result<Outcome, Rejection> {
        let control_epoch = self.metadata.control_epoch();
        self.entry(control_epoch, command)
    }

    pub(super) fn entry(
        &mut self,
        control_epoch: ControlEpoch,
        command: Command,
    ) -> Result<Outcome, Rejection> {
        let index = MetadataVersion(self.metadata.version().0 + 1);
        let at = Timestamp(i64::try_from(index.0).unwrap() * 1_000).plus(self.ahead);
        let entry = Entry {
            control_epoch,
            at,
            command,
        };
        let outcome = self.metadata.apply(index, &entry);
        self.entries.push(entry);
        outcome
    }

    pub(super) fn register(&mut self, request: Registration) -> (NodeId, WorkerEpoch) {
        match self.command(Command::RegisterWorker(request)) {
            Ok(Outcome::Registered { worker, epoch }) => (worker, epoch),
            other => panic!("not registered: {other:?}"),
        }
    }

    /// A registered worker that may be given work.
    pub(super) fn active_worker(&mut self, storage: u128) -> (NodeId, WorkerEpoch) {
        let (worker, epoch) = self.register(registration(storage));
        self.command(Command::UnfenceWorker { worker, epoch })
            .unwrap();
        (worker, epoch)
    }

    pub(super) fn topic(&mut self, name: &str, replicas: &[&[NodeId]]) -> TopicId {
        let id = TopicId(Uuid::from_u128(u128::from(self.metadata.version().0)));
        let command = create_topic(id, name, replicas);
        assert_eq!(self.command(command), Ok(Outcome::TopicCreated(id)));
        id
    }

    pub(super) fn job(&mut self, name: &str) -> JobId {
        match self.command(create_job(name)) {
            Ok(Outcome::JobCreated(job)) => job,
            other => panic!("not created: {other:?}"),
        }
    }

    pub(super) fn start(&mut self, job: JobId, worker: NodeId) -> Generation {
        let row = self.metadata.job(job).unwrap();
        let command = start_generation(job, row.generation, row.completed, worker);
        match self.command(command) {
            Ok(Outcome::GenerationStarted(generation)) => generation,
            other => panic!("not started: {other:?}"),
        }
    }

    /// Leader, leader epoch and partition epoch of a topic's first partition.
    pub(super) fn lead(&self, topic: TopicId) -> (Option<NodeId>, LeaderEpoch, PartitionEpoch) {
        let partition = &self.metadata.topic(topic).unwrap().partitions[0];
        (
            partition.leader,
            partition.leader_epoch,
            partition.partition_epoch,
        )
    }
}

pub(super) fn registration(storage: u128) -> Registration {
    Registration {
        cluster: None,
        worker: None,
        storage: StorageId(Uuid::from_u128(storage)),
        incarnation: Uuid::from_u128(storage << 32),
        address: format!("http://w{storage}:7171"),
        version: "1".to_owned(),
        cores: 2,
        slots: 32,
        memory_bytes: 1 << 30,
        operators: Vec::new(),
        rack: None,
        clean: false,
    }
}

pub(super) fn create_topic(id: TopicId, name: &str, replicas: &[&[NodeId]]) -> Command {
    Command::CreateTopic {
        id,
        name: TopicName::new(name).unwrap(),
        config: TopicConfig::default(),
        replicas: replicas.iter().map(|nodes| nodes.to_vec()).collect(),
    }
}

pub(super) fn first_of(topic: TopicId) -> TopicPartition {
    TopicPartition {
        topic,
        partition: PartitionId(0),
    }
}

/// A job of one stage with two tasks.
pub(super) fn create_job(name: &str) -> Command {
    Command::CreateJob {
        spec: Arc::new(CreateJob {
            name: JobName::new(name).unwrap(),
            sql: Some("INSERT INTO x SELECT * FROM y".to_owned()),
            graph: None,
            parallelism: None,
            checkpoint_interval_ms: None,
            config: JobConfig::default(),
            restore: None,
        }),
        job_graph: Arc::default(),
        graph: Arc::new(TaskGraph {
            stages: vec![Stage {
                id: StageId(0),
                parallelism: 2,
                source: None,
                operators: Vec::new(),
                sink: None,
            }],
            edges: Vec::new(),
            key_groups: 256,
        }),
        checkpoint_interval: Span::from_secs(1),
        restored: None,
    }
}

pub(super) fn task(index: u32) -> TaskId {
    TaskId {
        stage: StageId(0),
        index,
    }
}

pub(super) fn start_generation(
    job: JobId,
    generation: Generation,
    restore: Option<CheckpointId>,
    worker: NodeId,
) -> Command {
    Command::StartGeneration {
        job,
        generation,
        restore,
        dividing: Dividing::AsBefore,
        tasks: [0, 1]
            .map(|index| TaskAssignment {
                task: task(index),
                worker,
            })
            .to_vec(),
        standbys: Standbys::new(),
        state: JobState::Deploying,
        reason: String::new(),
        failure: None,
    }
}

pub(super) fn counts(rows_in: u64, late_rows: u64) -> TaskCounts {
    TaskCounts {
        rows_in,
        late_rows,
        ..TaskCounts::default()
    }
}

pub(super) fn complete(
    job: JobId,
    generation: Generation,
    checkpoint: u64,
    worker: NodeId,
) -> Command {
    Command::EpochCompleted(EpochCompleted {
        job,
        generation,
        checkpoint: CheckpointId(checkpoint),
        kind: CheckpointKind::Periodic,
        holders: [0, 1].map(|index| (task(index), vec![worker])).into(),
        positions: BTreeMap::new(),
        counts: [0, 1]
            .map(|index| (task(index), counts(checkpoint, u64::from(index))))
            .into(),
        duration: Span(10),
        delta_bytes: 1,
        state_bytes: 2,
    })
}

pub(super) fn end(
    job: JobId,
    generation: Generation,
    state: JobState,
    failure: Option<&str>,
) -> Command {
    Command::EndGeneration {
        job,
        generation,
        state,
        reason: "because".to_owned(),
        failure: failure.map(str::to_owned),
    }
}

pub(super) const SAVED_AT: u64 = 7;

pub(super) fn location() -> Location {
    "file:///savepoints".parse().unwrap()
}

pub(super) fn restored() -> Arc<Restored> {
    Arc::new(Restored {
        from: RestoredFrom {
            place: location().join("one"),
            checkpoint: CheckpointId(SAVED_AT),
            manifest_crc32c: 1,
        },
        positions: BTreeMap::new(),
        counts: [0, 1]
            .map(|index| (task(index), counts(50, u64::from(index))))
            .into(),
        bytes: 100,
    })
}
