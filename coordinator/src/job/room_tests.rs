//! Jobs that are placed at the same time never share a slot.

use std::sync::Arc;

use common::ids::{ClusterId, ControlEpoch, Generation, JobId, MetadataVersion, NodeId, StorageId};
use common::plan::task_graph::{Stage, TaskGraph};
use common::protocol::job::{CreateJob, JobConfig, JobState};
use common::protocol::task::{Standbys, TaskAssignment};
use common::time::{Span, Timestamp};
use uuid::Uuid;

use super::facts::{Facts, slots_by_job, workers_for};
use crate::metadata::ClusterMetadata;
use crate::metadata::command::{Command, Entry, Outcome, Registration, Rejection};
use crate::metadata::division::Dividing;

fn apply(metadata: &mut ClusterMetadata, command: Command) -> Result<Outcome, Rejection> {
    let index = MetadataVersion(metadata.version().0 + 1);
    let entry = Entry {
        control_epoch: metadata.control_epoch(),
        at: Timestamp(0),
        command,
    };
    metadata.apply(index, &entry)
}

fn cluster_with_one_worker(slots: u32) -> ClusterMetadata {
    let mut metadata = ClusterMetadata::default();
    let cluster = ClusterId(Uuid::from_u128(1));
    apply(&mut metadata, Command::LeaderAnnounce { cluster }).unwrap();
    assert_ne!(metadata.control_epoch(), ControlEpoch(0));
    let registered = apply(
        &mut metadata,
        Command::RegisterWorker(Registration {
            cluster: None,
            worker: None,
            storage: StorageId(Uuid::from_u128(2)),
            incarnation: Uuid::from_u128(3),
            address: "http://127.0.0.1:1".to_owned(),
            version: String::new(),
            cores: 2,
            slots,
            memory_bytes: 0,
            operators: Vec::new(),
            rack: None,
            clean: true,
        }),
    );
    let Ok(Outcome::Registered { worker, epoch }) = registered else {
        panic!("{registered:?}");
    };
    apply(&mut metadata, Command::UnfenceWorker { worker, epoch }).unwrap();
    metadata
}

fn create(metadata: &mut ClusterMetadata, name: &str) -> JobId {
    let graph = TaskGraph {
        stages: vec![Stage {
            id: common::ids::StageId(0),
            parallelism: 2,
            source: None,
            operators: Vec::new(),
            sink: None,
        }],
        edges: Vec::new(),
        key_groups: 16,
    };
    let created = apply(
        metadata,
        Command::CreateJob {
            spec: Arc::new(CreateJob {
                name: name.parse().unwrap(),
                sql: None,
                graph: None,
                parallelism: None,
                checkpoint_interval_ms: None,
                config: JobConfig::default(),
                restore: None,
            }),
            job_graph: Arc::default(),
            graph: Arc::new(graph),
            checkpoint_interval: Span::from_secs(1),
            restored: None,
        },
    );
    match created {
        Ok(Outcome::JobCreated(job)) => job,
        other => panic!("{other:?}"),
    }
}

fn start(metadata: &mut ClusterMetadata, job: JobId) -> Result<Outcome, Rejection> {
    let row = metadata.job(job).unwrap();
    let tasks = row.graph.tasks().map(|task| TaskAssignment {
        task,
        worker: NodeId(1),
    });
    let command = Command::StartGeneration {
        job,
        generation: Generation(0),
        restore: None,
        dividing: Dividing::AsBefore,
        tasks: tasks.collect(),
        standbys: Standbys::new(),
        state: JobState::Deploying,
        reason: String::new(),
        failure: None,
    };
    apply(metadata, command)
}

#[test]
fn of_two_jobs_that_counted_on_the_same_slots_the_second_is_refused() {
    let mut metadata = cluster_with_one_worker(3);
    let (first, second) = (
        create(&mut metadata, "first"),
        create(&mut metadata, "second"),
    );
    assert!(start(&mut metadata, first).is_ok());
    let worker = NodeId(1);
    assert_eq!(
        start(&mut metadata, second),
        Err(Rejection::NoRoom {
            job: second,
            worker
        })
    );
    let used = slots_by_job(&metadata);
    let room = |job| workers_for(&metadata, &used, job)[&worker].free_slots;
    assert_eq!((room(first), room(second)), (3, 1));
    let facts = Facts::of(metadata.job(first).unwrap());
    assert_eq!(facts.running.unwrap().worker_of.len(), 2);
}

#[test]
fn a_worker_that_has_gone_is_given_nothing() {
    let mut metadata = cluster_with_one_worker(3);
    let job = create(&mut metadata, "late");
    let row = metadata.worker(NodeId(1)).unwrap();
    let (worker, epoch) = (row.id, row.epoch);
    apply(&mut metadata, Command::FenceWorker { worker, epoch }).unwrap();
    assert_eq!(
        start(&mut metadata, job),
        Err(Rejection::NoRoom { job, worker })
    );
}
