//! The cluster's metadata in a model: the real one, changed by the real `apply`.
//!
//! Versions of the metadata become worker epochs and deployment versions, and what is rejected counts too. So
//! that worlds in which the same has happened are the same, each life of a worker and each generation begins
//! at a round number, which only says how many there were before.

use std::hash::{DefaultHasher, Hash};
use std::sync::Arc;

use common::ids::{
    ClusterId, JobId, JobName, MetadataVersion, NodeId, StorageId, TaskId, TopicName, WorkerEpoch,
};
use common::plan::task_graph::TaskGraph;
use common::protocol::job::{CreateJob, JobConfig};
use common::protocol::task::TaskAssignment;
use common::time::{Span, Timestamp};
use coordinator::metadata::ClusterMetadata;
use coordinator::metadata::command::{Command, Entry, Outcome, Registration, Rejection};
use coordinator::metadata::jobs::JobRow;
use uuid::Uuid;

use crate::sim::tally::{Shape, job_graph, operators, task_graph};

/// More commands than come between two beginnings.
const ROUND: u64 = 1_000;
const SLOTS: u32 = 8;

#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) metadata: ClusterMetadata,
    beginnings: u64,
}

impl Facts {
    pub(super) fn new() -> Facts {
        let mut facts = Facts {
            metadata: ClusterMetadata::default(),
            beginnings: 0,
        };
        let cluster = ClusterId(Uuid::from_u128(7));
        let announced = facts.command(Command::LeaderAnnounce { cluster });
        announced.expect("it is the first");
        facts
    }

    pub(super) fn command(&mut self, command: Command) -> Result<Outcome, Rejection> {
        if matches!(
            command,
            Command::RegisterWorker(_) | Command::StartGeneration { .. }
        ) {
            self.beginnings += 1;
            let round = MetadataVersion(self.beginnings * ROUND);
            assert!(self.metadata.version() < round, "too much has happened");
            self.metadata.apply_nothing(round);
        }
        let version = MetadataVersion(self.metadata.version().0 + 1);
        let entry = Entry {
            control_epoch: self.metadata.control_epoch(),
            at: Timestamp(0),
            command,
        };
        self.metadata.apply(version, &entry)
    }

    /// A worker process introduces itself, and is given work at once. `index` says whose disk it has, `life`
    /// which process of that disk it is.
    pub(super) fn register(&mut self, index: usize, life: u64) -> (NodeId, WorkerEpoch) {
        let storage = u128::try_from(index).expect("a few");
        let registered = self.command(Command::RegisterWorker(Registration {
            cluster: None,
            worker: None,
            storage: StorageId(Uuid::from_u128(storage)),
            incarnation: Uuid::from_u128(storage << 64 | u128::from(life)),
            address: String::new(),
            version: String::new(),
            cores: 1,
            slots: SLOTS,
            memory_bytes: 0,
            operators: operators().names().map(str::to_owned).collect(),
            rack: None,
            clean: false,
        }));
        let Ok(Outcome::Registered { worker, epoch }) = registered else {
            unreachable!("a worker can always register: {registered:?}");
        };
        let unfenced = self.command(Command::UnfenceWorker { worker, epoch });
        unfenced.expect("it has just been registered");
        (worker, epoch)
    }

    /// A worker's session is over.
    pub(super) fn fence(&mut self, worker: NodeId) {
        let row = self.metadata.worker(worker).expect("it is registered");
        let epoch = row.epoch;
        let fenced = self.command(Command::FenceWorker { worker, epoch });
        fenced.expect("it is active");
    }

    /// A job of two tasks, one with the source and one with the sink.
    pub(super) fn create_job(&mut self, checkpoint_interval: Span) -> JobId {
        let graph = graph();
        let created = self.command(Command::CreateJob {
            spec: Arc::new(CreateJob {
                name: JobName::new("tallies").expect("it is a name"),
                sql: None,
                graph: None,
                parallelism: None,
                checkpoint_interval_ms: None,
                config: JobConfig::default(),
                restore: None,
            }),
            job_graph: Arc::new(job_graph()),
            graph: Arc::new(graph),
            checkpoint_interval,
            restored: None,
        });
        match created {
            Ok(Outcome::JobCreated(job)) => job,
            other => unreachable!("there is no other job: {other:?}"),
        }
    }

    pub(super) fn job(&self, job: JobId) -> &JobRow {
        self.metadata.job(job).expect("it was created")
    }

    pub(super) fn digest_job(&self, job: JobId, hasher: &mut DefaultHasher) {
        let row = self.job(job);
        (row.state, row.desired, row.halting, &row.reason).hash(hasher);
        (row.generation, row.completed, row.reserved).hash(hasher);
        (&row.finals, &row.holders).hash(hasher);
        let deployment = row.deployment.as_ref();
        let deployment = deployment.map(|deployment| {
            let next = deployment.next.as_ref();
            let next = next.map(|next| (placed(&next.tasks), &next.standbys));
            let tasks = placed(&deployment.tasks);
            (deployment.version, tasks, &deployment.standbys, next)
        });
        deployment.hash(hasher);
        let division = row.division.as_ref();
        let division = division.map(|division| division.graph.tasks().collect::<Vec<_>>());
        (division, row.cutting_over, row.next_stage()).hash(hasher);
    }

    pub(super) fn digest_workers(&self, hasher: &mut DefaultHasher) {
        self.beginnings.hash(hasher);
        for row in self.metadata.workers() {
            (row.epoch, row.status).hash(hasher);
        }
    }
}

/// Two tasks, one with the source and one with the sink.
pub(super) fn graph() -> TaskGraph {
    let name = |name: &str| TopicName::new(name).expect("it is a name");
    task_graph(&Shape {
        clicks: name("clicks"),
        tallies: name("tallies"),
        sources: 1,
        operators: 1,
        spills: false,
    })
}

fn placed(tasks: &[TaskAssignment]) -> Vec<(TaskId, NodeId)> {
    let tasks = tasks.iter();
    tasks.map(|task| (task.task, task.worker)).collect()
}
