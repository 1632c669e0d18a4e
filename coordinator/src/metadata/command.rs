//! The whole vocabulary of the command log: what can be asked of the metadata, and what it answers.
//!
//! A command names the facts it was decided on (an epoch, a generation, a name that must be free) and
//! changes nothing if they no longer hold. Ids and times that nobody can compute again travel inside.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use common::error::{ErrorCode, Problem};
use common::ids::{
    CheckpointId, ClusterId, ControlEpoch, Generation, JobId, JobName, NodeId, PartitionEpoch,
    PartitionId, ProducerId, StageId, StorageId, TaskId, TopicId, TopicName, WorkerEpoch,
};
use common::objects::location::Location;
use common::plan::JobGraph;
use common::plan::task_graph::TaskGraph;
use common::protocol::checkpoint::{CheckpointKind, TaskCounts};
use common::protocol::job::{CreateJob, JobState};
use common::protocol::replicate::{IsrChange, IsrVerdict, LogEndReport};
use common::protocol::task::{NextDivision, Standbys, TaskAssignment};
use common::protocol::topic::TopicConfig;
use common::time::{Span, Timestamp};

use super::division::{Dividing, PlannedDivision};
use super::jobs::Desired;
use super::savepoints::{Restored, SavepointOutcome};

/// One entry of the command log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The reign under which it was proposed; a command of a former one changes nothing.
    pub control_epoch: ControlEpoch,
    /// When it was proposed, for people.
    pub at: Timestamp,
    pub command: Command,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The first command of every coordinator; its own index becomes the control epoch. The very first
    /// one of all names the cluster.
    LeaderAnnounce {
        cluster: ClusterId,
    },

    RegisterWorker(Registration),
    FenceWorker {
        worker: NodeId,
        epoch: WorkerEpoch,
    },
    /// The worker has recovered its logs and may be given work.
    UnfenceWorker {
        worker: NodeId,
        epoch: WorkerEpoch,
    },
    /// The worker is to be emptied, or may be given work again.
    DrainWorker {
        worker: NodeId,
        draining: bool,
    },
    /// The worker's sessions end too often, or did not for a while.
    QuarantineWorker {
        worker: NodeId,
        quarantined: bool,
    },

    CreateTopic {
        id: TopicId,
        name: TopicName,
        config: TopicConfig,
        /// The replicas of each partition, the preferred leader first.
        replicas: Vec<Vec<NodeId>>,
    },
    /// `partitions`: how many there were when the replicas of the added ones were chosen.
    AlterTopic {
        id: TopicId,
        config: TopicConfig,
        partitions: u32,
        added: Vec<Vec<NodeId>>,
    },
    DeleteTopic {
        id: TopicId,
    },
    /// The partitions, of which there were as many, are to have these replicas, the preferred leader first.
    Reassign {
        id: TopicId,
        targets: Vec<Vec<NodeId>>,
    },
    /// One partition, whose record has not changed since, is to have these replicas, the preferred leader first.
    MoveReplica {
        id: TopicId,
        partition: PartitionId,
        partition_epoch: PartitionEpoch,
        target: Vec<NodeId>,
    },
    /// So many partitions at most are led by their preferred replicas again.
    PreferLeaders {
        most: u32,
    },
    /// Leaders on this worker would have others in sync. Each change is made by itself, or not.
    AlterIsr {
        worker: NodeId,
        epoch: WorkerEpoch,
        changes: Vec<IsrChange>,
        /// Where suspect logs of this worker end, of partitions that nobody leads.
        #[serde(default)]
        log_ends: Vec<LogEndReport>,
    },
    /// This partition goes on although committed records may be lost with that. `leader`: with this replica;
    /// `None`: with the longest of the logs that are known.
    RecoverPartition {
        id: TopicId,
        partition: PartitionId,
        leader: Option<NodeId>,
    },

    CreateJob {
        spec: Arc<CreateJob>,
        /// What the spec says, as a graph; and what it was planned to be.
        job_graph: Arc<JobGraph>,
        graph: Arc<TaskGraph>,
        checkpoint_interval: Span,
        /// The state it begins with; `None`: with nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        restored: Option<Arc<Restored>>,
    },
    SetDesired {
        job: JobId,
        desired: Desired,
    },
    /// The next generation begins, from the last completed checkpoint.
    StartGeneration {
        job: JobId,
        generation: Generation,
        restore: Option<CheckpointId>,
        #[serde(default)]
        dividing: Dividing,
        tasks: Vec<TaskAssignment>,
        #[serde(default)]
        standbys: Standbys,
        /// `Deploying` or `Recovering`.
        state: JobState,
        reason: String,
        /// What ended the generation before, if it failed.
        failure: Option<String>,
    },
    /// These workers keep the state of this generation's tasks from now on.
    AssignStandbys {
        job: JobId,
        generation: Generation,
        standbys: Standbys,
    },
    /// The job is to be divided into tasks in this way.
    Divide {
        job: JobId,
        first_stage: StageId,
        division: Option<PlannedDivision>,
    },
    /// The tasks of the division that is wanted are prepared beside those of this generation.
    PrepareDivision {
        job: JobId,
        generation: Generation,
        next: Arc<NextDivision>,
        standbys: Standbys,
    },
    /// The next checkpoint of this generation is its last, and the job goes on divided as it was prepared.
    CutOver {
        job: JobId,
        generation: Generation,
    },
    /// Every task of this generation runs.
    GenerationRuns {
        job: JobId,
        generation: Generation,
    },
    /// This generation ends, and nothing of the job runs.
    EndGeneration {
        job: JobId,
        generation: Generation,
        state: JobState,
        reason: String,
        failure: Option<String>,
    },
    /// The next block of checkpoint ids, none of which was ever given out.
    ReserveEpochs {
        job: JobId,
        generation: Generation,
    },
    /// The one point at which a checkpoint counts.
    EpochCompleted(EpochCompleted),
    /// A savepoint is to be made, below this location.
    BeginSavepoint {
        job: JobId,
        id: Uuid,
        location: Location,
        /// Nobody asked for it.
        #[serde(default)]
        archive: bool,
    },
    /// Nothing is left of it in its store.
    ForgetSavepoint {
        job: JobId,
        id: Uuid,
    },
    EndSavepoint {
        job: JobId,
        id: Uuid,
        outcome: SavepointOutcome,
    },
    /// A job of which nothing runs goes on with the state of a savepoint, whatever it had since.
    RestoreJob {
        job: JobId,
        generation: Generation,
        restored: Arc<Restored>,
    },
    DeleteJob {
        job: JobId,
    },

    AllocProducerIds {
        count: u32,
    },

    /// All of them or none.
    Batch(Vec<Command>),
}

/// A worker process, as it introduced itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    pub cluster: Option<ClusterId>,
    pub worker: Option<NodeId>,
    pub storage: StorageId,
    pub incarnation: Uuid,
    pub address: String,
    pub version: String,
    pub cores: u32,
    pub slots: u32,
    pub memory_bytes: u64,
    pub operators: Vec<String>,
    #[serde(default)]
    pub rack: Option<String>,
    /// Its last life ended in order: everything it had acknowledged was on its disk.
    #[serde(default)]
    pub clean: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochCompleted {
    pub job: JobId,
    pub generation: Generation,
    pub checkpoint: CheckpointId,
    pub kind: CheckpointKind,
    /// Which workers have the state of each task at this checkpoint, the one it runs on first.
    pub holders: BTreeMap<TaskId, Vec<NodeId>>,
    /// Of source tasks: split → the position after the last row before the barrier.
    pub positions: BTreeMap<TaskId, BTreeMap<String, i64>>,
    /// What each task has done before the barrier, since its generation began.
    #[serde(default)]
    pub counts: BTreeMap<TaskId, TaskCounts>,
    /// From the first barrier to the last acknowledgement.
    pub duration: Span,
    pub delta_bytes: u64,
    pub state_bytes: u64,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Announced(ControlEpoch),
    Registered {
        worker: NodeId,
        epoch: WorkerEpoch,
    },
    TopicCreated(TopicId),
    IsrAltered(Vec<IsrVerdict>),
    JobCreated(JobId),
    GenerationStarted(Generation),
    /// `first` to `last`, both included.
    EpochsReserved {
        first: CheckpointId,
        last: CheckpointId,
    },
    /// `first` and the ones after it, as many as were asked for.
    ProducerIds {
        first: ProducerId,
    },
    Batch(Vec<Outcome>),
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("control epoch {proposed} has ended, it is {current} now")]
    StaleControlEpoch {
        proposed: ControlEpoch,
        current: ControlEpoch,
    },
    #[error("this is cluster {ours}, not {theirs}")]
    WrongCluster { ours: ClusterId, theirs: ClusterId },
    #[error("worker {worker} is not known here")]
    UnknownWorker { worker: NodeId },
    #[error("worker {worker} is the last one that may be given work")]
    LastWorker { worker: NodeId },
    #[error("worker {worker} has another data directory")]
    OtherStorage { worker: NodeId },
    #[error("worker epoch {epoch} of worker {worker} has ended")]
    FencedWorkerEpoch { worker: NodeId, epoch: WorkerEpoch },
    #[error("topic \"{0}\" exists")]
    TopicExists(TopicName),
    #[error("there is no topic {0}")]
    UnknownTopic(TopicId),
    #[error("topic \"{0}\" was changed at the same time")]
    TopicChanged(TopicName),
    #[error("partition {partition} has no replica that could lead it")]
    NoReplica { partition: usize },
    #[error("partition {partition} is led by worker {leader}")]
    HasLeader {
        partition: PartitionId,
        leader: NodeId,
    },
    #[error("there is no partition {partition}")]
    UnknownPartition { partition: PartitionId },
    #[error("worker {worker} has no replica of partition {partition}, or is not active")]
    CannotLead {
        partition: PartitionId,
        worker: NodeId,
    },
    #[error("no active replica of partition {partition} has said where its log ends")]
    NoLogEnd { partition: PartitionId },
    #[error("job \"{0}\" exists")]
    JobExists(JobName),
    #[error("there is no job {0}")]
    UnknownJob(JobId),
    #[error("generation {generation} of job {job} has ended, it is {current} now")]
    FencedGeneration {
        job: JobId,
        generation: Generation,
        current: Generation,
    },
    #[error("job {job} cannot go from {from} to {to}")]
    IllegalTransition {
        job: JobId,
        from: JobState,
        to: JobState,
    },
    #[error("job {job} runs nothing")]
    NotRunning { job: JobId },
    #[error("job \"{job}\" is {state}, which cannot be undone")]
    JobOver { job: JobName, state: JobState },
    #[error("job \"{job}\" is {state}: only a job of which nothing runs can be deleted")]
    JobAlive { job: JobName, state: JobState },
    #[error("a savepoint of job \"{job}\" is being made below \"{location}\"")]
    SavepointUnderWay { job: JobName, location: Location },
    #[error("no savepoint {id} of job {job} is being made")]
    NoSavepoint { job: JobId, id: Uuid },
    #[error("job \"{job}\" is {state}: its state cannot be replaced now")]
    NotAtRest { job: JobName, state: JobState },
    #[error("job {job} has used up its generations")]
    GenerationsExhausted { job: JobId },
    #[error("the last completed checkpoint of job {job} is {completed:?}, not {restore:?}")]
    WrongRestore {
        job: JobId,
        restore: Option<CheckpointId>,
        completed: Option<CheckpointId>,
    },
    #[error("job \"{job}\" was divided into tasks in another way meanwhile")]
    DividedMeanwhile { job: JobName },
    #[error("the next division of job {job} is not prepared")]
    NotPrepared { job: JobId },
    #[error("worker {worker} has no room for job {job}")]
    NoRoom { job: JobId, worker: NodeId },
    #[error("the assignment does not name every task of job {job} once")]
    WrongTasks { job: JobId },
    #[error(
        "checkpoint {checkpoint} of job {job} is not above {completed:?} or was never reserved"
    )]
    WrongCheckpoint {
        job: JobId,
        checkpoint: CheckpointId,
        completed: Option<CheckpointId>,
    },
    #[error("a batch holds no other batch and no announcement")]
    NestedBatch,
}

impl Rejection {
    pub fn code(&self) -> ErrorCode {
        match self {
            Rejection::StaleControlEpoch { .. } => ErrorCode::StaleControlEpoch,
            Rejection::WrongCluster { .. } => ErrorCode::WrongCluster,
            Rejection::UnknownWorker { .. } => ErrorCode::UnknownWorker,
            Rejection::FencedWorkerEpoch { .. } => ErrorCode::FencedWorkerEpoch,
            Rejection::TopicExists(_) | Rejection::JobExists(_) => ErrorCode::AlreadyExists,
            Rejection::UnknownTopic(_) => ErrorCode::UnknownTopic,
            Rejection::UnknownJob(_) => ErrorCode::UnknownJob,
            Rejection::FencedGeneration { .. } => ErrorCode::FencedGeneration,
            Rejection::NoReplica { .. } => ErrorCode::NoWorkers,
            Rejection::UnknownPartition { .. } => ErrorCode::UnknownPartition,
            Rejection::OtherStorage { .. }
            | Rejection::LastWorker { .. }
            | Rejection::TopicChanged(_)
            | Rejection::HasLeader { .. }
            | Rejection::CannotLead { .. }
            | Rejection::NoLogEnd { .. }
            | Rejection::IllegalTransition { .. }
            | Rejection::NotRunning { .. }
            | Rejection::JobOver { .. }
            | Rejection::JobAlive { .. }
            | Rejection::SavepointUnderWay { .. }
            | Rejection::NoSavepoint { .. }
            | Rejection::NotAtRest { .. }
            | Rejection::GenerationsExhausted { .. }
            | Rejection::WrongRestore { .. }
            | Rejection::WrongTasks { .. }
            | Rejection::DividedMeanwhile { .. }
            | Rejection::NotPrepared { .. }
            | Rejection::NoRoom { .. }
            | Rejection::WrongCheckpoint { .. } => ErrorCode::Conflict,
            Rejection::NestedBatch => ErrorCode::Internal,
        }
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Problem {
        let problem = Problem::new(rejection.code(), rejection.to_string());
        match rejection {
            Rejection::WrongCluster { .. } => problem
                .hint("Check the coordinator's address, or start with an empty data directory."),
            Rejection::OtherStorage { .. } | Rejection::UnknownWorker { .. } => {
                problem.hint("Start the worker with an empty data directory.")
            }
            Rejection::TopicExists(_) | Rejection::JobExists(_) => {
                problem.hint("Choose another name, or delete the old one first.")
            }
            Rejection::LastWorker { .. } => problem.hint("Start another worker first."),
            Rejection::TopicChanged(_) => problem.hint("Read the topic again and repeat."),
            Rejection::DividedMeanwhile { .. } => problem.hint("Read the job again and repeat."),
            Rejection::HasLeader { .. } => problem.hint("There is nothing to recover."),
            Rejection::CannotLead { .. } => {
                problem.hint("GET /v1/topics/{topic} names its replicas, GET /v1/workers says who is active.")
            }
            Rejection::NoLogEnd { .. } => problem.hint(
                "Start one of its in-sync replicas, or name the replica that is to lead: \"leader\".",
            ),
            Rejection::JobOver { .. } => problem.hint("Deploy it again under another name."),
            Rejection::JobAlive { .. } => problem.hint("Stop or cancel it first."),
            Rejection::SavepointUnderWay { .. } => problem.hint(
                "GET /v1/jobs/{job}/savepoints shows when it is done; then ask again.",
            ),
            Rejection::NotAtRest { .. } => problem.hint(
                "A job is restored when it is WAITING, PAUSED, STOPPED or FAILED: stop it first. One that is over is deployed anew, with \"restore\".",
            ),
            Rejection::StaleControlEpoch { .. }
            | Rejection::FencedWorkerEpoch { .. }
            | Rejection::UnknownTopic(_)
            | Rejection::NoReplica { .. }
            | Rejection::UnknownPartition { .. }
            | Rejection::UnknownJob(_)
            | Rejection::FencedGeneration { .. }
            | Rejection::IllegalTransition { .. }
            | Rejection::NotRunning { .. }
            | Rejection::NoSavepoint { .. }
            | Rejection::GenerationsExhausted { .. }
            | Rejection::WrongRestore { .. }
            | Rejection::WrongTasks { .. }
            | Rejection::NotPrepared { .. }
            | Rejection::NoRoom { .. }
            | Rejection::WrongCheckpoint { .. }
            | Rejection::NestedBatch => problem,
        }
    }
}
