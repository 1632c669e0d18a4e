//! What commands do to the facts: stories for each rule, and random histories for what always holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use common::error::ErrorCode;
use common::ids::{
    CheckpointId, ClusterId, ControlEpoch, Generation, JobId, JobName, LeaderEpoch,
    MetadataVersion, NodeId, PartitionEpoch, PartitionId, StageId, StorageId, TaskId, TopicId,
    TopicName, TopicPartition, WorkerEpoch,
};
use common::limits::{POSITIONS_HISTORY, SAVEPOINT_HISTORY};
use common::objects::location::Location;
use common::offset::Offset;
use common::plan::task_graph::{PlannedSource, Stage, TaskGraph};
use common::protocol::checkpoint::{CheckpointKind, TaskCounts};
use common::protocol::job::{CreateJob, JobConfig, JobState};
use common::protocol::metadata::{
    JobImage, LogEnd, MetadataDelta, PartitionImage, TopicImage, WorkerImage,
};
use common::protocol::replicate::{IsrChange, IsrVerdict, LogEndReport};
use common::protocol::savepoint::RestoredFrom;
use common::protocol::task::{Deployment, Standbys, TaskAssignment};
use common::protocol::topic::{Durability, TopicConfig, UncleanRecovery};
use common::time::{Span, Timestamp};

use super::ClusterMetadata;
use super::command::{Command, Entry, EpochCompleted, Outcome, Registration, Rejection};
use super::division::Dividing;
use super::jobs::Desired;
use super::nodes::WorkerStatus;
use super::savepoints::{Restored, SavepointOutcome};

/// Metadata, and the commands that made it.
#[derive(Clone, Default)]
pub(super) struct History {
    pub(super) metadata: ClusterMetadata,
    entries: Vec<Entry>,
}

impl History {
    pub(super) fn announced() -> History {
        let mut history = History::default();
        history.announce();
        history
    }

    fn announce(&mut self) -> ControlEpoch {
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

    fn entry(
        &mut self,
        control_epoch: ControlEpoch,
        command: Command,
    ) -> Result<Outcome, Rejection> {
        let index = MetadataVersion(self.metadata.version().0 + 1);
        let at = Timestamp(i64::try_from(index.0).unwrap() * 1_000);
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

    fn topic(&mut self, name: &str, replicas: &[&[NodeId]]) -> TopicId {
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

/// A job of one stage with two tasks.
pub(super) fn first_of(topic: TopicId) -> TopicPartition {
    TopicPartition {
        topic,
        partition: PartitionId(0),
    }
}

fn create_job(name: &str) -> Command {
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

fn task(index: u32) -> TaskId {
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

fn counts(rows_in: u64, late_rows: u64) -> TaskCounts {
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

fn end(job: JobId, generation: Generation, state: JobState, failure: Option<&str>) -> Command {
    Command::EndGeneration {
        job,
        generation,
        state,
        reason: "because".to_owned(),
        failure: failure.map(str::to_owned),
    }
}

#[test]
fn what_tasks_have_done_adds_up_over_generations_and_only_as_far_as_it_counts() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let job = history.job("counts");
    let mut next = 1;
    for total in [counts(10, 1), counts(20, 2), counts(30, 3)] {
        let generation = history.start(job, worker);
        let reserve = Command::ReserveEpochs { job, generation };
        history.command(reserve).unwrap();
        // Of what each counts since its generation began, only the last one counts.
        for rows_in in [4, 10] {
            let Command::EpochCompleted(mut completed) = complete(job, generation, next, worker)
            else {
                unreachable!("that is what it is");
            };
            completed.counts = [(task(1), counts(rows_in, 1))].into();
            history.command(Command::EpochCompleted(completed)).unwrap();
            next += 1;
        }
        let row = history.metadata.job(job).unwrap();
        assert_eq!(row.counts[&task(1)], total);
        let ended = end(job, generation, JobState::Recovering, Some("lost"));
        history.command(ended).unwrap();
        let row = history.metadata.job(job).unwrap();
        assert_eq!(row.counts_before[&task(1)], total);
    }
}

#[test]
fn positions_of_past_checkpoints_are_kept_for_the_latest_of_them() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let job = history.job("counts");
    let generation = history.start(job, worker);
    let reserve = Command::ReserveEpochs { job, generation };
    history.command(reserve).unwrap();
    let count = POSITIONS_HISTORY as u64 + 3;
    for checkpoint in 1..=count {
        let command = complete(job, generation, checkpoint, worker);
        history.command(command).unwrap();
    }
    let row = history.metadata.job(job).unwrap();
    let kept = row.checkpoints.iter().filter(|c| c.positions.is_some());
    let kept: Vec<u64> = kept.map(|c| c.checkpoint.0).collect();
    assert_eq!(kept, (4..=count).collect::<Vec<_>>());
}

#[test]
fn the_predecessor_of_a_process_had_its_storage_another_incarnation_and_another_address() {
    let mut history = History::announced();
    let (first, _) = history.active_worker(10);
    let before = registration(10);
    let asked = |storage: u128, incarnation: Uuid, address: &str| {
        let storage = StorageId(Uuid::from_u128(storage));
        let found = history.metadata.predecessor(storage, incarnation, address);
        found.map(|row| row.id)
    };
    let another = Uuid::from_u128(99);
    let elsewhere = "http://copy:7171";
    assert_eq!(asked(10, another, elsewhere), Some(first));
    // The same process behind a new address, its next life at the old one, and a worker nobody has seen.
    assert_eq!(asked(10, before.incarnation, elsewhere), None);
    assert_eq!(asked(10, another, &before.address), None);
    assert_eq!(asked(20, another, elsewhere), None);
}

#[test]
fn a_data_directory_keeps_its_worker_id_and_every_life_has_a_new_epoch() {
    let mut history = History::announced();
    let (first, epoch) = history.active_worker(10);
    let (second, _) = history.active_worker(20);
    assert_ne!(first, second);

    let next_life = Registration {
        worker: Some(first),
        incarnation: Uuid::from_u128(99),
        ..registration(10)
    };
    let (again, next_epoch) = history.register(next_life.clone());
    assert_eq!(again, first);
    assert!(next_epoch > epoch);
    assert!(
        !history.metadata.is_active(first),
        "it has yet to recover its logs"
    );
    let old = Command::UnfenceWorker {
        worker: first,
        epoch,
    };
    assert!(matches!(
        history.command(old),
        Err(Rejection::FencedWorkerEpoch { .. })
    ));

    // The reply was lost, so the same process asks again, and asks also without knowing its id.
    assert_eq!(history.register(next_life.clone()), (first, next_epoch));
    let forgetful = Registration {
        worker: None,
        ..next_life.clone()
    };
    assert_eq!(history.register(forgetful), (first, next_epoch));

    // Fenced, the same process begins a new epoch.
    let fence = Command::FenceWorker {
        worker: first,
        epoch: next_epoch,
    };
    assert_eq!(history.command(fence), Ok(Outcome::Done));
    let (_, third_epoch) = history.register(next_life);
    assert!(third_epoch > next_epoch);
}

#[test]
fn a_worker_of_another_cluster_or_with_another_disk_is_refused() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let before = history.metadata.clone();
    for (request, expected) in [
        (
            Registration {
                cluster: Some(ClusterId(Uuid::from_u128(2))),
                ..registration(30)
            },
            "WrongCluster",
        ),
        (
            Registration {
                worker: Some(worker),
                ..registration(30)
            },
            "OtherStorage",
        ),
        (
            Registration {
                worker: Some(NodeId(77)),
                ..registration(30)
            },
            "UnknownWorker",
        ),
    ] {
        let rejection = history
            .command(Command::RegisterWorker(request))
            .unwrap_err();
        assert!(
            format!("{rejection:?}").starts_with(expected),
            "{rejection:?}"
        );
    }
    assert!(history.metadata.workers().eq(before.workers()));
}

#[test]
fn a_partition_is_led_while_an_in_sync_replica_is_active_and_each_leader_has_its_own_epoch() {
    let mut history = History::announced();
    let (worker, epoch) = history.active_worker(10);
    let topic = history.topic("t", &[&[worker]]);
    let le = LeaderEpoch;
    let pe = PartitionEpoch;
    assert_eq!(history.lead(topic), (Some(worker), le(0), pe(0)));

    history
        .command(Command::FenceWorker { worker, epoch })
        .unwrap();
    assert_eq!(history.lead(topic), (None, le(1), pe(1)));
    assert_eq!(
        history.metadata.topic(topic).unwrap().partitions[0].isr,
        [worker]
    );

    let (_, epoch) = history.register(registration(10));
    assert_eq!(history.lead(topic), (None, le(1), pe(1)));
    history
        .command(Command::UnfenceWorker { worker, epoch })
        .unwrap();
    assert_eq!(history.lead(topic), (Some(worker), le(2), pe(2)));

    // A new process with the same disk proves the old one gone, without waiting for its session.
    let next_life = Registration {
        incarnation: Uuid::from_u128(5),
        ..registration(10)
    };
    history.register(next_life);
    assert_eq!(history.lead(topic), (None, le(3), pe(3)));
}

#[test]
fn another_in_sync_replica_takes_over_and_the_lost_one_leaves_the_set() {
    let mut history = History::announced();
    let (a, epoch_a) = history.active_worker(10);
    let (b, epoch_b) = history.active_worker(20);
    let topic = history.topic("t", &[&[a, b]]);
    history
        .command(Command::FenceWorker {
            worker: a,
            epoch: epoch_a,
        })
        .unwrap();
    assert_eq!(
        history.lead(topic),
        (Some(b), LeaderEpoch(1), PartitionEpoch(1))
    );
    assert_eq!(
        history.metadata.topic(topic).unwrap().partitions[0].isr,
        [b]
    );
    history
        .command(Command::FenceWorker {
            worker: b,
            epoch: epoch_b,
        })
        .unwrap();
    assert_eq!(
        history.lead(topic),
        (None, LeaderEpoch(2), PartitionEpoch(2))
    );
    // The first to be lost lacks records: it must not lead, the last one must.
    let (_, epoch_a) = history.register(registration(10));
    history
        .command(Command::UnfenceWorker {
            worker: a,
            epoch: epoch_a,
        })
        .unwrap();
    assert_eq!(history.lead(topic).0, None);
    let (_, epoch_b) = history.register(registration(20));
    history
        .command(Command::UnfenceWorker {
            worker: b,
            epoch: epoch_b,
        })
        .unwrap();
    assert_eq!(history.lead(topic).0, Some(b));
}

#[test]
fn leaders_go_back_to_who_was_to_lead_once_it_has_everything_again() {
    let mut history = History::announced();
    let (a, epoch_a) = history.active_worker(10);
    let (b, epoch_b) = history.active_worker(20);
    let topics = [0; 3].map(|_| history.topic(&format!("t{}", history.entries.len()), &[&[a, b]]));
    let led_by = |history: &History, node: NodeId| {
        let led = topics
            .iter()
            .filter(|topic| history.lead(**topic).0 == Some(node));
        led.count()
    };
    let fence = Command::FenceWorker {
        worker: a,
        epoch: epoch_a,
    };
    history.command(fence).unwrap();
    let (_, again) = history.register(registration(10));
    let unfence = Command::UnfenceWorker {
        worker: a,
        epoch: again,
    };
    history.command(unfence).unwrap();
    let prefer = |history: &mut History, most| {
        history.command(Command::PreferLeaders { most }).unwrap();
        led_by(history, a)
    };
    assert_eq!(prefer(&mut history, 9), 0, "it lacks records");
    for topic in topics {
        let (_, leader_epoch, partition_epoch) = history.lead(topic);
        let change = IsrChange {
            partition: first_of(topic),
            leader_epoch,
            partition_epoch,
            isr: BTreeMap::from([(a, again), (b, epoch_b)]),
            recovered: BTreeSet::new(),
        };
        let changes = vec![change];
        let command = Command::AlterIsr {
            worker: b,
            epoch: epoch_b,
            changes,
            log_ends: Vec::new(),
        };
        history.command(command).unwrap();
    }
    assert_eq!(history.metadata.leaders_elsewhere().count(), 3);
    assert_eq!(prefer(&mut history, 2), 2);
    assert_eq!(prefer(&mut history, 2), 3);
    assert_eq!(history.metadata.leaders_elsewhere().count(), 0);
    assert_eq!(history.lead(topics[0]).1, LeaderEpoch(2));
}

#[test]
fn a_partition_moves_once_its_new_replicas_are_in_sync_and_not_before() {
    let mut history = History::announced();
    let workers = [10, 20, 30].map(|storage| history.active_worker(storage));
    let [(a, epoch_a), (b, epoch_b), (c, epoch_c)] = workers;
    let lives = BTreeMap::from([(a, epoch_a), (b, epoch_b), (c, epoch_c)]);
    let topic = history.topic("t", &[&[a, b]]);
    let partition = |history: &History| {
        let row = history.metadata.topic(topic).unwrap();
        (row.partitions[0].clone(), row.moving.get(&0).cloned())
    };
    let reassign = |history: &mut History, target: &[NodeId]| {
        let targets = vec![target.to_vec()];
        history.command(Command::Reassign { id: topic, targets })
    };
    reassign(&mut history, &[c, b]).unwrap();
    let (moving, target) = partition(&history);
    assert_eq!((moving.replicas, target), (vec![c, b, a], Some(vec![c, b])));
    assert_eq!((moving.isr, moving.leader), (vec![a, b], Some(a)));
    // Whoever changes their mind goes back at once: all of those are in sync.
    reassign(&mut history, &[a, b]).unwrap();
    let (back, target) = partition(&history);
    assert_eq!(
        (back.replicas, back.leader, target),
        (vec![a, b], Some(a), None)
    );
    assert_eq!(
        back.leader_epoch,
        LeaderEpoch(1),
        "a reign that knows nothing of c"
    );

    reassign(&mut history, &[c, b]).unwrap();
    let (moving, _) = partition(&history);
    let change = IsrChange {
        partition: first_of(topic),
        leader_epoch: moving.leader_epoch,
        partition_epoch: moving.partition_epoch,
        isr: lives,
        recovered: BTreeSet::new(),
    };
    let changes = vec![change];
    let command = Command::AlterIsr {
        worker: a,
        epoch: epoch_a,
        changes,
        log_ends: Vec::new(),
    };
    history.command(command).unwrap();
    let (moved, target) = partition(&history);
    assert_eq!((moved.replicas, target), (vec![c, b], None));
    assert_eq!((moved.isr, moved.leader), (vec![c, b], Some(c)));
    assert_eq!(moved.leader_epoch, LeaderEpoch(2));
    for wrong in [&[][..], &[NodeId(99)]] {
        let refused = reassign(&mut history, wrong);
        assert!(
            matches!(refused, Err(Rejection::NoReplica { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn one_partition_moves_if_its_record_is_the_one_that_it_was_decided_on() {
    let mut history = History::announced();
    let [a, b, c] = [10, 20, 30].map(|storage| history.active_worker(storage).0);
    let topic = history.topic("t", &[&[a], &[b]]);
    let send = |history: &mut History, partition: u32, epoch, target: &[NodeId]| {
        history.command(Command::MoveReplica {
            id: topic,
            partition: PartitionId(partition),
            partition_epoch: PartitionEpoch(epoch),
            target: target.to_vec(),
        })
    };
    send(&mut history, 1, 0, &[c]).unwrap();
    let row = history.metadata.topic(topic).unwrap();
    assert_eq!(row.moving, BTreeMap::from([(1, vec![c])]));
    assert_eq!(row.partitions[1].replicas, [c, b]);
    assert_eq!(row.partitions[0].replicas, [a]);
    for (partition, epoch) in [(1, 0), (0, 1), (7, 0)] {
        let late = send(&mut history, partition, epoch, &[a]);
        assert!(matches!(late, Err(Rejection::TopicChanged(_))), "{late:?}");
    }
    for wrong in [&[][..], &[NodeId(99)]] {
        let refused = send(&mut history, 0, 0, wrong);
        let refused_rightly = matches!(refused, Err(Rejection::NoReplica { .. }));
        assert!(refused_rightly, "{refused:?}");
    }
}

#[test]
fn the_leader_says_who_is_in_sync_and_is_believed_about_those_who_live() {
    let mut history = History::announced();
    let workers = [10, 20, 30].map(|storage| history.active_worker(storage));
    let [(a, epoch_a), (b, epoch_b), (c, epoch_c)] = workers;
    let topic = history.topic("t", &[&[a, b, c]]);
    let isr = |history: &History| {
        let partition = &history.metadata.topic(topic).unwrap().partitions[0];
        (partition.isr.clone(), partition.partition_epoch)
    };
    let wish = |history: &mut History, members: &[(NodeId, WorkerEpoch)]| {
        let (_, leader_epoch, partition_epoch) = history.lead(topic);
        let change = IsrChange {
            partition: first_of(topic),
            leader_epoch,
            partition_epoch,
            isr: members.iter().copied().collect(),
            recovered: BTreeSet::new(),
        };
        let outcome = history.command(Command::AlterIsr {
            worker: a,
            epoch: epoch_a,
            changes: vec![change],
            log_ends: Vec::new(),
        });
        match outcome {
            Ok(Outcome::IsrAltered(verdicts)) => verdicts[0] == IsrVerdict::Accepted,
            other => panic!("{other:?}"),
        }
    };
    assert!(wish(&mut history, &[(a, epoch_a), (c, epoch_c)]));
    assert_eq!(isr(&history), (vec![a, c], PartitionEpoch(1)));
    assert_eq!(
        history.lead(topic),
        (Some(a), LeaderEpoch(0), PartitionEpoch(1))
    );
    // Back in, in the order of the replicas.
    assert!(wish(
        &mut history,
        &[(c, epoch_c), (b, epoch_b), (a, epoch_a)]
    ));
    assert_eq!(isr(&history).0, [a, b, c]);
    // Never without the leader, and not one who has no replica.
    assert!(!wish(&mut history, &[(b, epoch_b), (c, epoch_c)]));
    let (d, epoch_d) = history.active_worker(40);
    assert!(!wish(&mut history, &[(a, epoch_a), (d, epoch_d)]));
    // Nor in a life that has ended, or before it is there again.
    let fence = Command::FenceWorker {
        worker: b,
        epoch: epoch_b,
    };
    history.command(fence).unwrap();
    assert_eq!(isr(&history).0, [a, c]);
    let all = |b_epoch| [(a, epoch_a), (b, b_epoch), (c, epoch_c)];
    assert!(!wish(&mut history, &all(epoch_b)));
    let (_, again) = history.register(registration(20));
    assert!(!wish(&mut history, &all(again)));
    let unfence = Command::UnfenceWorker {
        worker: b,
        epoch: again,
    };
    history.command(unfence).unwrap();
    assert!(!wish(&mut history, &all(epoch_b)));
    assert!(wish(&mut history, &all(again)));
    // Who says so must be alive as well.
    let fence = Command::FenceWorker {
        worker: a,
        epoch: epoch_a,
    };
    history.command(fence).unwrap();
    let late = Command::AlterIsr {
        worker: a,
        epoch: epoch_a,
        changes: Vec::new(),
        log_ends: Vec::new(),
    };
    assert!(matches!(
        history.command(late),
        Err(Rejection::FencedWorkerEpoch { .. })
    ));
}

#[test]
fn a_quarantined_worker_leads_only_what_nobody_else_can() {
    let mut history = History::announced();
    let (a, epoch_a) = history.active_worker(10);
    let (b, _) = history.active_worker(20);
    let both = history.topic("both", &[&[a, b]]);
    let alone = history.topic("alone", &[&[a]]);
    let quarantine = |quarantined| Command::QuarantineWorker {
        worker: a,
        quarantined,
    };
    history.command(quarantine(true)).unwrap();
    assert_eq!(history.lead(both).0, Some(a), "what it has it keeps");
    let fence = Command::FenceWorker {
        worker: a,
        epoch: epoch_a,
    };
    history.command(fence).unwrap();
    let (_, again) = history.active_worker(10);
    assert_eq!(history.lead(both).0, Some(b));
    assert_eq!(history.lead(alone).0, Some(a));
    assert!(
        history.metadata.worker(a).unwrap().quarantined,
        "in its next life, too"
    );
    let (_, leader_epoch, partition_epoch) = history.lead(both);
    let change = IsrChange {
        partition: first_of(both),
        leader_epoch,
        partition_epoch,
        isr: BTreeMap::from([(a, again), (b, WorkerEpoch(0))]),
        recovered: BTreeSet::new(),
    };
    let command = Command::AlterIsr {
        worker: b,
        epoch: history.metadata.worker(b).unwrap().epoch,
        changes: vec![change],
        log_ends: Vec::new(),
    };
    history.command(command).unwrap();
    let elsewhere = |history: &History| history.metadata.leaders_elsewhere().count();
    assert_eq!(elsewhere(&history), 0);
    history.command(quarantine(false)).unwrap();
    assert_eq!(elsewhere(&history), 1);
}

#[test]
fn topics_have_one_name_each_and_grow_only_from_what_was_seen() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let topic = history.topic("t", &[&[worker]]);
    let name = TopicName::new("t").unwrap();
    let same_name = create_topic(TopicId(Uuid::from_u128(99)), "t", &[&[worker]]);
    assert_eq!(
        history.command(same_name),
        Err(Rejection::TopicExists(name.clone()))
    );
    let nowhere = create_topic(TopicId(Uuid::from_u128(99)), "u", &[&[NodeId(9)]]);
    assert_eq!(
        history.command(nowhere),
        Err(Rejection::NoReplica { partition: 0 })
    );

    let grow = |partitions| Command::AlterTopic {
        id: topic,
        config: TopicConfig {
            retention_ms: None,
            ..TopicConfig::default()
        },
        partitions,
        added: vec![vec![worker], vec![worker]],
    };
    assert_eq!(history.command(grow(1)), Ok(Outcome::Done));
    assert_eq!(
        history.command(grow(1)),
        Err(Rejection::TopicChanged(name.clone()))
    );
    let row = history.metadata.topic_named(&name).unwrap();
    assert_eq!((row.partitions.len(), row.config.retention_ms), (3, None));

    let before = history.metadata.version();
    history.command(Command::DeleteTopic { id: topic }).unwrap();
    let again = history.topic("t", &[&[worker]]);
    assert_ne!(again, topic);
    let delta = history.metadata.delta_since(before);
    assert_eq!(delta.removed_topics, [topic]);
    assert_eq!(delta.topics.len(), 1);
}

#[test]
fn a_job_goes_through_its_life_and_every_ended_generation_has_a_final_checkpoint() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let job = history.job("j");
    let image = |history: &History| history.metadata.job(job).unwrap().image();

    let first = history.start(job, worker);
    assert_eq!(first, Generation(1));
    assert!(image(&history).running);
    history
        .command(Command::GenerationRuns {
            job,
            generation: first,
        })
        .unwrap();
    let reserved = history.command(Command::ReserveEpochs {
        job,
        generation: first,
    });
    let Ok(Outcome::EpochsReserved {
        first: lowest,
        last,
    }) = reserved
    else {
        panic!("nothing reserved: {reserved:?}");
    };
    assert_eq!(lowest, CheckpointId(1));

    for (checkpoint, accepted) in [
        (2, true),
        (2, false),
        (1, false),
        (last.0 + 1, false),
        (3, true),
    ] {
        let outcome = history.command(complete(job, first, checkpoint, worker));
        assert_eq!(
            outcome.is_ok(),
            accepted,
            "checkpoint {checkpoint}: {outcome:?}"
        );
    }
    // Sealed under this generation: not decided while it may still complete.
    assert_eq!(image(&history).counts(first, CheckpointId(3)), Some(true));
    assert_eq!(image(&history).counts(first, CheckpointId(4)), None);

    let wrong = start_generation(job, first, Some(CheckpointId(2)), worker);
    assert!(matches!(
        history.command(wrong),
        Err(Rejection::WrongRestore { .. })
    ));
    let second = history.start(job, worker);
    assert_eq!(image(&history).finals[&first], Some(CheckpointId(3)));
    assert_eq!(image(&history).counts(first, CheckpointId(4)), Some(false));
    assert_eq!(image(&history).counts(first, CheckpointId(3)), Some(true));
    // What the first generation still sends is of the past.
    for late in [
        complete(job, first, 4, worker),
        Command::GenerationRuns {
            job,
            generation: first,
        },
        end(job, first, JobState::Failed, Some("late")),
        start_generation(job, first, Some(CheckpointId(3)), worker),
        Command::ReserveEpochs {
            job,
            generation: first,
        },
    ] {
        let outcome = history.command(late);
        assert!(
            matches!(outcome, Err(Rejection::FencedGeneration { .. })),
            "{outcome:?}"
        );
    }

    history
        .command(end(job, second, JobState::Failed, Some("it broke")))
        .unwrap();
    let row = history.metadata.job(job).unwrap();
    assert_eq!(
        (row.state, row.desired),
        (JobState::Failed, Desired::Stopped)
    );
    assert_eq!(row.failures.back().unwrap().reason, "it broke");
    assert!(row.deployment.is_none());
    // Everything of a job that is over is decided at once.
    assert_eq!(image(&history).counts(second, CheckpointId(4)), Some(false));
    let late = history.command(complete(job, Generation(3), 5, worker));
    assert_eq!(late, Err(Rejection::NotRunning { job }));
}

#[test]
fn checkpoint_ids_are_reserved_for_ever() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let job = history.job("j");
    let mut highest = CheckpointId(0);
    for _ in 0..3 {
        let generation = history.start(job, worker);
        match history.command(Command::ReserveEpochs { job, generation }) {
            Ok(Outcome::EpochsReserved { first, last }) => {
                assert!(first > highest && last > first);
                highest = last;
            }
            other => panic!("nothing reserved: {other:?}"),
        }
        history.announce();
    }
}

#[test]
fn a_job_can_be_deleted_once_it_is_over_and_is_then_known_only_for_its_transactions() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let job = history.job("j");
    let generation = history.start(job, worker);
    assert!(matches!(
        history.command(Command::DeleteJob { job }),
        Err(Rejection::JobAlive { .. })
    ));
    history
        .command(end(job, generation, JobState::Cancelled, None))
        .unwrap();
    let resume = Command::SetDesired {
        job,
        desired: Desired::Running,
    };
    assert!(matches!(
        history.command(resume),
        Err(Rejection::JobOver { .. })
    ));
    history.command(Command::DeleteJob { job }).unwrap();
    assert_eq!(
        history.command(Command::DeleteJob { job }),
        Err(Rejection::UnknownJob(job))
    );
    let again = history.job("j");
    assert_ne!(again, job);
    let row = history.metadata.job(job).unwrap();
    assert!(row.image().deleted && row.spec.sql.is_none());
    assert_eq!(row.image().counts(generation, CheckpointId(1)), Some(false));
}

#[test]
fn what_a_user_wants_while_a_generation_runs_is_noted_in_it() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let job = history.job("j");
    let want = |desired| Command::SetDesired { job, desired };
    history.start(job, worker);
    history.command(want(Desired::Paused)).unwrap();
    history.command(want(Desired::Running)).unwrap();
    assert!(
        history.metadata.job(job).unwrap().halting,
        "its sources may have stopped reading"
    );
    history.start(job, worker);
    let halting = |history: &History| history.metadata.job(job).unwrap().halting;
    assert!(!halting(&history));
    history.command(want(Desired::Drained)).unwrap();
    history.command(want(Desired::Drained)).unwrap();
    assert!(!halting(&history), "nothing else was wanted of it");
    history.command(want(Desired::Stopped)).unwrap();
    history.command(want(Desired::Drained)).unwrap();
    assert!(halting(&history), "windows may not close any more");
}

#[test]
fn a_completed_checkpoint_does_not_send_the_tasks_again() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let job = history.job("j");
    let generation = history.start(job, worker);
    let started = history.metadata.version();
    assert_eq!(
        history
            .metadata
            .delta_since(MetadataVersion(0))
            .deployments
            .len(),
        1
    );
    let deployment = history
        .metadata
        .job(job)
        .unwrap()
        .deployment
        .clone()
        .unwrap();
    assert_eq!((deployment.version, deployment.restore), (started, None));
    history
        .command(Command::ReserveEpochs { job, generation })
        .unwrap();
    history
        .command(complete(job, generation, 1, worker))
        .unwrap();
    let delta = history.metadata.delta_since(started);
    assert_eq!((delta.jobs.len(), delta.deployments.len()), (1, 0));
}

#[test]
fn what_a_job_has_yet_to_read_is_told_once_a_minute_until_it_is_over() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let Command::CreateJob {
        spec,
        job_graph,
        graph,
        checkpoint_interval,
        restored,
    } = create_job("reader")
    else {
        unreachable!("it creates a job");
    };
    let source = serde_json::json!({"connector": "topic", "topic": "clicks", "schema": []});
    let mut graph = TaskGraph::clone(&graph);
    graph.stages[0].source = Some(PlannedSource {
        name: "clicks".to_owned(),
        spec: serde_json::from_value(source).unwrap(),
        columns: Vec::new(),
    });
    let created = history.command(Command::CreateJob {
        spec,
        job_graph,
        graph: Arc::new(graph),
        checkpoint_interval,
        restored,
    });
    let Ok(Outcome::JobCreated(job)) = created else {
        panic!("it was refused: {created:?}");
    };
    let generation = history.start(job, worker);
    history
        .command(Command::ReserveEpochs { job, generation })
        .unwrap();
    let mut told = |checkpoint: u64, position: i64| {
        let Command::EpochCompleted(mut completed) = complete(job, generation, checkpoint, worker)
        else {
            unreachable!("it completes a checkpoint");
        };
        let splits = [("0".to_owned(), position), ("1".to_owned(), 7)];
        completed.positions = [(task(0), splits.into())].into();
        let before = history.metadata.version();
        history.command(Command::EpochCompleted(completed)).unwrap();
        let delta = history.metadata.delta_since(before);
        let holds = delta.holds.first().cloned();
        holds.map(|holds| {
            holds
                .positions
                .values()
                .flatten()
                .map(|(p, o)| (p.0, o.0))
                .collect()
        })
    };
    let first: Option<Vec<(u32, i64)>> = told(1, 10);
    assert_eq!(first, Some(vec![(0, 10), (1, 7)]));
    // A second passes with each.
    for checkpoint in 2..=60 {
        assert_eq!(told(checkpoint, 20), None, "{checkpoint}");
    }
    assert_eq!(told(61, 30), Some(vec![(0, 30), (1, 7)]));
    let before = history.metadata.version();
    let over = end(job, generation, JobState::Cancelled, None);
    history.command(over).unwrap();
    let delta = history.metadata.delta_since(before);
    assert!(delta.holds[0].positions.is_empty());
}

#[test]
fn commands_of_a_former_reign_change_nothing() {
    let mut history = History::announced();
    let (worker, epoch) = history.active_worker(10);
    let old = history.metadata.control_epoch();
    history.announce();
    let before = history.metadata.delta_since(MetadataVersion(0));
    let outcome = history.entry(old, Command::FenceWorker { worker, epoch });
    assert!(matches!(outcome, Err(Rejection::StaleControlEpoch { .. })));
    let after = history.metadata.delta_since(MetadataVersion(0));
    assert_eq!(after.version.0, before.version.0 + 1);
    assert_eq!(
        (after.workers, after.topics),
        (before.workers, before.topics)
    );
}

#[test]
fn a_batch_takes_effect_as_a_whole_or_not_at_all() {
    let mut history = History::announced();
    let (worker, epoch) = history.active_worker(10);
    let topic = create_topic(TopicId(Uuid::from_u128(50)), "t", &[&[worker]]);
    let fails = Command::FenceWorker {
        worker,
        epoch: WorkerEpoch(epoch.0 + 100),
    };
    let refused = history.command(Command::Batch(vec![topic.clone(), fails]));
    assert!(matches!(refused, Err(Rejection::FencedWorkerEpoch { .. })));
    assert_eq!(history.metadata.topics_by_name().count(), 0);
    let done = history.command(Command::Batch(vec![topic, create_job("j")]));
    assert!(
        matches!(&done, Ok(Outcome::Batch(all)) if all.len() == 2),
        "{done:?}"
    );
    let nested = Command::Batch(vec![Command::Batch(Vec::new())]);
    assert_eq!(history.command(nested), Err(Rejection::NestedBatch));
}

#[test]
fn a_reader_from_before_what_is_remembered_is_told_everything() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let kept = history.topic("kept", &[&[worker]]);
    let early = history.metadata.version();
    for number in 0..1_100 {
        let topic = history.topic(&format!("t{number}"), &[&[worker]]);
        history.command(Command::DeleteTopic { id: topic }).unwrap();
    }
    let delta = history.metadata.delta_since(early);
    assert!(delta.full && delta.topics.len() == 1 && delta.topics[0].id == kept);
    let recent = MetadataVersion(history.metadata.version().0 - 4);
    let delta = history.metadata.delta_since(recent);
    assert!(!delta.full && delta.removed_topics.len() == 2, "{delta:?}");
    // And so is one that is ahead: the coordinator has lost its data, or is another one.
    let ahead = MetadataVersion(history.metadata.version().0 + 1);
    assert!(history.metadata.delta_since(ahead).full);
}

/// A worker's image, as deltas make it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Image {
    version: MetadataVersion,
    topics: BTreeMap<TopicId, TopicImage>,
    workers: BTreeMap<NodeId, WorkerImage>,
    jobs: BTreeMap<JobId, JobImage>,
    deployments: BTreeMap<JobId, Arc<Deployment>>,
}

impl Image {
    fn follow(&mut self, delta: MetadataDelta) {
        if delta.full {
            *self = Image::default();
        } else {
            assert_eq!(delta.since, self.version);
        }
        self.version = delta.version;
        self.topics
            .extend(delta.topics.into_iter().map(|t| (t.id, t)));
        self.workers
            .extend(delta.workers.into_iter().map(|w| (w.id, w)));
        self.deployments
            .extend(delta.deployments.into_iter().map(|d| (d.job, d)));
        for topic in delta.removed_topics {
            self.topics.remove(&topic);
        }
        for job in delta.jobs {
            if !job.running {
                self.deployments.remove(&job.id);
            }
            self.jobs.insert(job.id, job);
        }
    }

    fn of(metadata: &ClusterMetadata) -> Image {
        let mut image = Image::default();
        let mut everything = metadata.delta_since(MetadataVersion(u64::MAX));
        assert!(everything.full);
        everything.since = MetadataVersion(0);
        image.follow(everything);
        image
    }
}

const SAVED_AT: u64 = 7;

fn location() -> Location {
    "file:///savepoints".parse().unwrap()
}

fn restored() -> Arc<Restored> {
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

fn restore(history: &mut History, job: JobId) -> Result<Outcome, Rejection> {
    let generation = history.metadata.job(job).unwrap().generation;
    history.command(Command::RestoreJob {
        job,
        generation,
        restored: restored(),
    })
}

#[test]
fn a_job_begins_with_the_state_of_a_savepoint_until_workers_have_it() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let Command::CreateJob {
        spec,
        job_graph,
        graph,
        checkpoint_interval,
        restored: _,
    } = create_job("copy")
    else {
        unreachable!("it creates a job");
    };
    let created = history.command(Command::CreateJob {
        spec,
        job_graph,
        graph,
        checkpoint_interval,
        restored: Some(restored()),
    });
    let Ok(Outcome::JobCreated(job)) = created else {
        panic!("it was refused: {created:?}");
    };
    // Also the second time: whoever began may have been lost before anything was complete.
    for _ in 0..2 {
        history.start(job, worker);
        let row = history.metadata.job(job).unwrap();
        let deployment = row.deployment.as_ref().unwrap();
        assert_eq!(deployment.restore, Some(CheckpointId(SAVED_AT)));
        assert_eq!(deployment.savepoint, Some(restored().from.clone()));
        assert!(row.holders.is_empty());
    }
    let generation = history.metadata.job(job).unwrap().generation;
    let reserved = history.command(Command::ReserveEpochs { job, generation });
    let Ok(Outcome::EpochsReserved { first, .. }) = reserved else {
        panic!("it was refused: {reserved:?}");
    };
    assert_eq!(first, CheckpointId(SAVED_AT + 1), "numbers grow strictly");
    history
        .command(complete(job, generation, first.0, worker))
        .unwrap();
    let row = history.metadata.job(job).unwrap();
    assert_eq!((row.restored.as_ref(), row.holders.len()), (None, 2));
    assert_eq!(row.counts[&task(1)], counts(50, 1).plus(counts(first.0, 1)));
    history.start(job, worker);
    let row = history.metadata.job(job).unwrap();
    assert_eq!(row.deployment.as_ref().unwrap().savepoint, None);
}

#[test]
fn a_restored_job_counts_the_savepoint_above_every_number_it_ever_used() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let job = history.job("counts");
    let first = history.start(job, worker);
    let generation = first;
    history
        .command(Command::ReserveEpochs { job, generation })
        .unwrap();
    history
        .command(complete(job, generation, 20, worker))
        .unwrap();
    let refused = restore(&mut history, job);
    assert!(
        matches!(refused, Err(Rejection::NotAtRest { .. })),
        "it runs"
    );
    history
        .command(end(job, generation, JobState::Failed, Some("lost")))
        .unwrap();
    let stale = history.command(Command::RestoreJob {
        job,
        generation,
        restored: restored(),
    });
    assert!(matches!(stale, Err(Rejection::FencedGeneration { .. })));
    let before = history.metadata.job(job).unwrap().clone();
    restore(&mut history, job).unwrap();
    let row = history.metadata.job(job).unwrap().clone();
    let at = before.reserved.next();
    assert_eq!((row.completed, row.reserved), (Some(at), at));
    assert_eq!((row.desired, row.holders.len()), (Desired::Running, 0));
    assert_eq!(row.state, JobState::Waiting);
    assert!(
        row.reason.contains("file:///savepoints/one"),
        "{}",
        row.reason
    );
    // What was committed stays, what was not is undone, and nothing of it is taken for what was restored.
    let image = row.image();
    assert_eq!(image.counts(first, CheckpointId(20)), Some(true));
    assert_eq!(image.counts(first, CheckpointId(21)), Some(false));
    assert_eq!(image.counts(first, at), Some(false));
    let next = history.start(job, worker);
    let row = history.metadata.job(job).unwrap();
    assert_eq!(row.deployment.as_ref().unwrap().restore, Some(at));
    assert_eq!(row.image().counts(first, at), Some(false));
    assert_eq!(row.image().counts(next, at), Some(true));
}

#[test]
fn one_savepoint_of_a_job_is_made_at_a_time_and_the_list_is_bounded() {
    let mut history = History::announced();
    let job = history.job("counts");
    let begin = |id: u128| Command::BeginSavepoint {
        job,
        id: Uuid::from_u128(id),
        location: location(),
        archive: false,
    };
    let fail = |id: u128| Command::EndSavepoint {
        job,
        id: Uuid::from_u128(id),
        outcome: SavepointOutcome::Failed {
            code: ErrorCode::Timeout,
            reason: "late".to_owned(),
        },
    };
    let last = SAVEPOINT_HISTORY as u128 + 5;
    for id in 0..last {
        history.command(begin(id)).unwrap();
        let other = history.command(begin(1_000 + id));
        assert!(matches!(other, Err(Rejection::SavepointUnderWay { .. })));
        history.command(fail(id)).unwrap();
        let again = history.command(fail(id));
        assert!(matches!(again, Err(Rejection::NoSavepoint { .. })));
    }
    let row = history.metadata.job(job).unwrap();
    assert_eq!(row.savepoints.len(), SAVEPOINT_HISTORY);
    assert_eq!(row.savepoints.back().unwrap().id, Uuid::from_u128(last - 1));
    assert!(row.savepoint_under_way().is_none());
}

/// What somebody may ask for, before it is known whether the facts allow it.
#[derive(Clone, Debug)]
enum Intent {
    Announce,
    Register {
        storage: u8,
        incarnation: u8,
    },
    Fence {
        worker: u32,
        stale: bool,
    },
    Unfence {
        worker: u32,
        stale: bool,
    },
    Create {
        topic: u8,
        partitions: u8,
        worker: u32,
    },
    Grow {
        topic: u8,
        worker: u32,
    },
    Delete {
        topic: u8,
    },
    /// `members`: which of the partition's replicas.
    AlterIsr {
        topic: u8,
        members: [bool; 4],
        /// Every suspect has everything again.
        recovers: bool,
        stale: bool,
    },
    Report {
        topic: u8,
        worker: u32,
        log_end: i32,
        stale: bool,
    },
    Recover {
        topic: u8,
        leader: Option<u32>,
    },
    Prefer {
        most: u8,
    },
    Quarantine {
        worker: u32,
        quarantined: bool,
    },
    Reassign {
        topic: u8,
        workers: Vec<u32>,
    },
    Deploy {
        job: u8,
    },
    Want {
        job: u32,
        desired: Desired,
    },
    Start {
        job: u32,
        worker: u32,
        stale: bool,
    },
    Run {
        job: u32,
    },
    Reserve {
        job: u32,
    },
    Complete {
        job: u32,
        ahead: u8,
        worker: u32,
    },
    End {
        job: u32,
        state: JobState,
        failure: bool,
    },
    DeleteJob {
        job: u32,
    },
    Restore {
        job: u32,
    },
    BeginSavepoint {
        job: u32,
    },
    EndSavepoint {
        job: u32,
    },
    Producers {
        count: u8,
    },
}

fn intent() -> impl Strategy<Value = Intent> {
    let worker = 1..4_u32;
    let job = 1..4_u32;
    let desired = prop::sample::select(vec![
        Desired::Running,
        Desired::Paused,
        Desired::Stopped,
        Desired::Cancelled,
    ]);
    let ended = prop::sample::select(vec![
        JobState::Waiting,
        JobState::Recovering,
        JobState::Paused,
        JobState::Stopped,
        JobState::Finished,
        JobState::Failed,
        JobState::Cancelled,
    ]);
    prop_oneof![
        1 => Just(Intent::Announce),
        3 => (0..4_u8, 0..2_u8).prop_map(|(storage, incarnation)| Intent::Register { storage, incarnation }),
        2 => (worker.clone(), any::<bool>()).prop_map(|(worker, stale)| Intent::Fence { worker, stale }),
        4 => (worker.clone(), prop::bool::weighted(0.2)).prop_map(|(worker, stale)| Intent::Unfence { worker, stale }),
        3 => (0..4_u8, 1..4_u8, worker.clone()).prop_map(|(topic, partitions, worker)| Intent::Create { topic, partitions, worker }),
        1 => (0..4_u8, worker.clone()).prop_map(|(topic, worker)| Intent::Grow { topic, worker }),
        1 => (0..4_u8).prop_map(|topic| Intent::Delete { topic }),
        6 => (0..4_u8, any::<[bool; 4]>(), any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(topic, members, recovers, stale)| Intent::AlterIsr { topic, members, recovers, stale }),
        4 => (0..4_u8, worker.clone(), 0..4_i32, prop::bool::weighted(0.2))
            .prop_map(|(topic, worker, log_end, stale)| Intent::Report { topic, worker, log_end, stale }),
        1 => (0..4_u8, prop::option::of(worker.clone()))
            .prop_map(|(topic, leader)| Intent::Recover { topic, leader }),
        2 => (0..3_u8).prop_map(|most| Intent::Prefer { most }),
        1 => (worker.clone(), any::<bool>())
            .prop_map(|(worker, quarantined)| Intent::Quarantine { worker, quarantined }),
        3 => (0..4_u8, prop::sample::subsequence(vec![1, 2, 3], 1..=3).prop_shuffle())
            .prop_map(|(topic, workers)| Intent::Reassign { topic, workers }),
        2 => (0..3_u8).prop_map(|job| Intent::Deploy { job }),
        1 => (job.clone(), desired).prop_map(|(job, desired)| Intent::Want { job, desired }),
        4 => (job.clone(), worker.clone(), prop::bool::weighted(0.2)).prop_map(|(job, worker, stale)| Intent::Start { job, worker, stale }),
        2 => job.clone().prop_map(|job| Intent::Run { job }),
        2 => job.clone().prop_map(|job| Intent::Reserve { job }),
        4 => (job.clone(), 0..3_u8, worker).prop_map(|(job, ahead, worker)| Intent::Complete { job, ahead, worker }),
        1 => (job.clone(), ended, any::<bool>()).prop_map(|(job, state, failure)| Intent::End { job, state, failure }),
        1 => job.clone().prop_map(|job| Intent::Restore { job }),
        1 => job.clone().prop_map(|job| Intent::BeginSavepoint { job }),
        1 => job.clone().prop_map(|job| Intent::EndSavepoint { job }),
        1 => job.prop_map(|job| Intent::DeleteJob { job }),
        1 => (0..9_u8).prop_map(|count| Intent::Producers { count }),
    ]
}

impl Intent {
    /// The command, as somebody who knows the facts would write it, or who knows older ones.
    fn command(&self, metadata: &ClusterMetadata) -> Command {
        let epoch = |worker: u32, stale: bool| {
            let current = metadata.worker(NodeId(worker)).map_or(0, |row| row.epoch.0);
            WorkerEpoch(current.saturating_sub(u64::from(stale)))
        };
        let name = |topic: u8| TopicName::new(format!("t{topic}")).unwrap();
        let topic_id = |topic: u8| {
            let row = metadata.topic_named(&name(topic));
            row.map_or(TopicId(Uuid::nil()), |row| row.id)
        };
        let generation = |job: u32, stale: bool| {
            let current = metadata.job(JobId(job)).map_or(0, |row| row.generation.0);
            Generation(current.saturating_sub(u32::from(stale)))
        };
        // Of the odd ones, records are acknowledged in memory.
        let config = |topic: u8| TopicConfig {
            durability: match topic % 2 {
                0 => Durability::Fsync,
                _ => Durability::Replicated,
            },
            unclean_recovery: match topic {
                3 => UncleanRecovery::Manual,
                _ => UncleanRecovery::Balanced,
            },
            ..TopicConfig::default()
        };
        let completed = |job: u32| metadata.job(JobId(job)).and_then(|row| row.completed);
        match *self {
            Intent::Announce => Command::LeaderAnnounce {
                cluster: ClusterId(Uuid::from_u128(1)),
            },
            Intent::Register {
                storage,
                incarnation,
            } => Command::RegisterWorker(Registration {
                incarnation: Uuid::from_u128(u128::from(incarnation)),
                ..registration(u128::from(storage))
            }),
            Intent::Fence { worker, stale } => Command::FenceWorker {
                worker: NodeId(worker),
                epoch: epoch(worker, stale),
            },
            Intent::Unfence { worker, stale } => Command::UnfenceWorker {
                worker: NodeId(worker),
                epoch: epoch(worker, stale),
            },
            Intent::Create {
                topic,
                partitions,
                worker,
            } => Command::CreateTopic {
                id: TopicId(Uuid::from_u128(u128::from(metadata.version().0) + 1000)),
                name: name(topic),
                config: config(topic),
                replicas: vec![vec![NodeId(worker), NodeId(worker % 3 + 1)]; partitions.into()],
            },
            Intent::Grow { topic, worker } => Command::AlterTopic {
                id: topic_id(topic),
                config: config(topic),
                partitions: 1,
                added: vec![vec![NodeId(worker)]],
            },
            Intent::Delete { topic } => Command::DeleteTopic {
                id: topic_id(topic),
            },
            Intent::AlterIsr {
                topic,
                members,
                recovers,
                stale,
            } => {
                let row = metadata.topic_named(&name(topic));
                let partition = row.map(|row| row.partitions[0].clone());
                let leader = partition.as_ref().and_then(|partition| partition.leader);
                let worker = leader.unwrap_or(NodeId(1));
                let changes = partition.into_iter().map(|partition| {
                    let replicas = partition.replicas.iter().zip(members);
                    let wanted = replicas.filter(|(node, member)| *member || **node == worker);
                    let current = partition.partition_epoch.0;
                    let earlier = PartitionEpoch(current.saturating_sub(u32::from(stale)));
                    IsrChange {
                        partition: first_of(topic_id(topic)),
                        leader_epoch: partition.leader_epoch,
                        partition_epoch: earlier,
                        isr: wanted
                            .map(|(node, _)| (*node, epoch(node.0, false)))
                            .collect(),
                        recovered: partition
                            .suspect
                            .iter()
                            .copied()
                            .filter(|node| recovers || node.0 == 2)
                            .collect(),
                    }
                });
                Command::AlterIsr {
                    worker,
                    epoch: epoch(worker.0, false),
                    changes: changes.collect(),
                    log_ends: Vec::new(),
                }
            }
            Intent::Report {
                topic,
                worker,
                log_end,
                stale,
            } => {
                let row = metadata.topic_named(&name(topic));
                let partition_epoch = row.map_or(0, |row| row.partitions[0].partition_epoch.0);
                let earlier = partition_epoch.saturating_sub(u32::from(stale));
                Command::AlterIsr {
                    worker: NodeId(worker),
                    epoch: epoch(worker, false),
                    changes: Vec::new(),
                    log_ends: vec![LogEndReport {
                        partition: first_of(topic_id(topic)),
                        partition_epoch: PartitionEpoch(earlier),
                        log_end: LogEnd {
                            last_epoch: Some(LeaderEpoch(log_end % 2)),
                            log_end: Offset(log_end.into()),
                        },
                    }],
                }
            }
            Intent::Recover { topic, leader } => Command::RecoverPartition {
                id: topic_id(topic),
                partition: PartitionId(0),
                leader: leader.map(NodeId),
            },
            Intent::Quarantine {
                worker,
                quarantined,
            } => Command::QuarantineWorker {
                worker: NodeId(worker),
                quarantined,
            },
            Intent::Prefer { most } => Command::PreferLeaders { most: most.into() },
            Intent::Reassign { topic, ref workers } => {
                let row = metadata.topic_named(&name(topic));
                let count = row.map_or(1, |row| row.partitions.len());
                let target: Vec<NodeId> = workers.iter().copied().map(NodeId).collect();
                Command::Reassign {
                    id: topic_id(topic),
                    targets: vec![target; count],
                }
            }
            Intent::Deploy { job } => create_job(&format!("j{job}")),
            Intent::Want { job, desired } => Command::SetDesired {
                job: JobId(job),
                desired,
            },
            Intent::Start { job, worker, stale } => start_generation(
                JobId(job),
                generation(job, stale),
                completed(job),
                NodeId(worker),
            ),
            Intent::Run { job } => Command::GenerationRuns {
                job: JobId(job),
                generation: generation(job, false),
            },
            Intent::Reserve { job } => Command::ReserveEpochs {
                job: JobId(job),
                generation: generation(job, false),
            },
            Intent::Complete { job, ahead, worker } => complete(
                JobId(job),
                generation(job, false),
                completed(job).map_or(0, |c| c.0) + u64::from(ahead),
                NodeId(worker),
            ),
            Intent::End {
                job,
                state,
                failure,
            } => end(
                JobId(job),
                generation(job, false),
                state,
                failure.then_some("failed"),
            ),
            Intent::Restore { job } => Command::RestoreJob {
                job: JobId(job),
                generation: generation(job, false),
                restored: restored(),
            },
            Intent::BeginSavepoint { job } => Command::BeginSavepoint {
                job: JobId(job),
                id: Uuid::from_u128(metadata.version().0.into()),
                location: location(),
                archive: metadata.version().0.is_multiple_of(2),
            },
            Intent::EndSavepoint { job } => {
                let row = metadata.job(JobId(job));
                let under_way = row.and_then(|row| row.savepoint_under_way());
                Command::EndSavepoint {
                    job: JobId(job),
                    id: under_way.map_or(Uuid::nil(), |savepoint| savepoint.id),
                    outcome: SavepointOutcome::Complete {
                        place: location(),
                        generation: generation(job, false),
                        checkpoint: completed(job).unwrap_or_default(),
                        bytes: 3,
                    },
                }
            }
            Intent::DeleteJob { job } => Command::DeleteJob { job: JobId(job) },
            Intent::Producers { count } => Command::AllocProducerIds {
                count: count.into(),
            },
        }
    }
}

/// What holds in every state, and from one state to the next. `recovers`: somebody has taken loss into account.
fn check(before: &ClusterMetadata, after: &ClusterMetadata, recovers: bool) {
    assert_eq!(after.version().0, before.version().0 + 1);
    for topic in after.topics_by_name() {
        for (number, partition) in topic.partitions.iter().enumerate() {
            assert!(partition.isr.len() >= topic.config.min_insync_replicas as usize);
            let replicas: BTreeSet<NodeId> = partition.replicas.iter().copied().collect();
            assert!(partition.isr.iter().all(|node| replicas.contains(node)));
            let suspect = |node: &NodeId| partition.suspect.contains(node);
            if let Some(leader) = partition.leader {
                assert!(partition.isr.contains(&leader) && after.is_active(leader));
                assert!(!suspect(&leader) && partition.log_ends.is_empty());
            } else {
                let could = |node: &NodeId| after.is_active(*node) && !suspect(node);
                assert!(!partition.isr.iter().any(could), "it could be led");
            }
            let in_sync = |node| partition.isr.contains(node);
            assert!(partition.suspect.iter().all(in_sync));
            assert!(partition.log_ends.keys().all(suspect));
            let earlier = before
                .topic(topic.id)
                .and_then(|t| t.partitions.get(number));
            // What suspects say of their logs changes nothing else, or has one of them lead.
            let but_for_said = |earlier: &PartitionImage| PartitionImage {
                log_ends: partition.log_ends.clone(),
                ..earlier.clone()
            };
            if let Some(earlier) = earlier.filter(|earlier| but_for_said(earlier) != *partition) {
                let doubted = earlier
                    .isr
                    .iter()
                    .all(|node| earlier.suspect.contains(node));
                let unclean = partition.unclean != earlier.unclean;
                assert!(!unclean || earlier.leader.is_none());
                assert!(!unclean || doubted || recovers, "somebody had everything");
                assert!(partition.partition_epoch > earlier.partition_epoch);
                let same_leader = partition.leader == earlier.leader;
                let same_reign = partition.leader_epoch == earlier.leader_epoch;
                assert!(same_leader || !same_reign);
                // Nothing else ends a reign than another leader and a move; replicas that go always do.
                let some_went = earlier.replicas.iter().any(|node| !replicas.contains(node));
                let moved = before.topic(topic.id).map(|earlier| &earlier.moving)
                    != Some(&topic.moving)
                    || earlier.replicas != partition.replicas;
                assert!(same_reign || !same_leader || moved);
                assert!(!some_went || !same_reign);
                assert!(partition.leader_epoch >= earlier.leader_epoch);
            }
        }
    }
    for worker in after.workers() {
        let Some(earlier) = before.worker(worker.id) else {
            assert_eq!(worker.epoch.0, after.version().0);
            continue;
        };
        assert_eq!(earlier.storage, worker.storage);
        assert!(worker.epoch >= earlier.epoch);
        let came_back =
            earlier.status == WorkerStatus::Fenced && worker.status != WorkerStatus::Fenced;
        assert!(
            !came_back || worker.epoch > earlier.epoch,
            "an ended epoch lives again"
        );
    }
    for job in after.jobs.values() {
        let Some(earlier) = before.job(job.id) else {
            continue;
        };
        assert!(job.generation >= earlier.generation && job.completed >= earlier.completed);
        assert!(job.completed <= Some(job.reserved));
        assert!(
            job.deployment
                .as_ref()
                .is_none_or(|d| d.generation == job.generation)
        );
        assert!(!job.state.is_terminal() || job.deployment.is_none());
        // What was decided of a transaction stays decided.
        let (then, now) = (earlier.image(), job.image());
        for generation in (0..=then.generation.0).map(Generation) {
            for checkpoint in (0..12).map(CheckpointId) {
                if let Some(decided) = then.counts(generation, checkpoint) {
                    assert_eq!(now.counts(generation, checkpoint), Some(decided));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_is_asked_for_the_invariants_hold_and_every_image_is_a_state_of_the_log(
        intents in prop::collection::vec((intent(), any::<bool>()), 1..120),
    ) {
        let mut history = History::announced();
        let mut image = Image::default();
        for (intent, follows) in intents {
            let before = history.metadata.clone();
            let command = intent.command(&before);
            let recovers = matches!(command, Command::RecoverPartition { .. });
            let outcome = history.command(command);
            if outcome.is_err() {
                let mut unchanged = before.clone();
                unchanged.version = history.metadata.version();
                prop_assert_eq!(&unchanged, &history.metadata);
            }
            check(&before, &history.metadata, recovers);
            if follows {
                image.follow(history.metadata.delta_since(image.version));
                prop_assert_eq!(&image, &Image::of(&history.metadata));
            }
        }
    }

    #[test]
    fn the_same_commands_give_the_same_bytes_and_a_snapshot_with_its_tail_gives_what_all_of_them_give(
        intents in prop::collection::vec(intent(), 1..80),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut history = History::announced();
        for intent in intents {
            let command = intent.command(&history.metadata);
            let _outcome = history.command(command);
        }
        let replay = |mut metadata: ClusterMetadata, entries: &[Entry]| {
            for entry in entries {
                let index = MetadataVersion(metadata.version().0 + 1);
                let _outcome = metadata.apply(index, entry);
            }
            metadata
        };
        let cut = cut.index(history.entries.len());
        let (head, tail) = history.entries.split_at(cut);
        let prefix = replay(ClusterMetadata::default(), head);
        let restored = ClusterMetadata::from_snapshot(&prefix.to_snapshot()).unwrap();
        prop_assert_eq!(&restored, &prefix);
        let restored = replay(restored, tail);
        prop_assert_eq!(&restored, &history.metadata);
        prop_assert_eq!(restored.to_snapshot(), history.metadata.to_snapshot());
    }
}

#[test]
fn a_damaged_snapshot_is_told_from_a_sound_one() {
    let mut history = History::announced();
    history.active_worker(10);
    let sound = history.metadata.to_snapshot();
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x10;
        assert!(
            ClusterMetadata::from_snapshot(&damaged).is_err(),
            "byte {at}"
        );
        assert!(
            ClusterMetadata::from_snapshot(&sound[..at]).is_err(),
            "cut at {at}"
        );
    }
}
