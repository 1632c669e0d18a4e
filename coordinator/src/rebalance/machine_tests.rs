//! Workers that join, leave and come back, and what moves for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::ids::{
    CheckpointId, ClusterId, JobId, JobName, MetadataVersion, NodeId, PartitionId, StageId,
    StorageId, TaskId, TopicId, TopicName, TopicPartition, WorkerEpoch,
};
use common::plan::task_graph::{Stage, TaskGraph};
use common::protocol::checkpoint::CheckpointKind;
use common::protocol::job::{CreateJob, JobConfig, JobState};
use common::protocol::replicate::IsrChange;
use common::protocol::task::{Standbys, TaskAssignment};
use common::protocol::topic::TopicConfig;
use common::time::{Span, Tick, Timestamp};
use uuid::Uuid;

use super::machine::RebalanceMachine;
use super::status::{State, Status, UnderWay};
use crate::metadata::ClusterMetadata;
use crate::metadata::command::{Command, Entry, EpochCompleted, Outcome, Registration};
use crate::metadata::division::Dividing;

struct World {
    metadata: ClusterMetadata,
    machine: RebalanceMachine,
    now: u64,
    checkpoint: u64,
    /// Of a worker that joins.
    slots: u32,
}

const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(1));

impl World {
    fn new(workers: u32) -> World {
        let mut world = World {
            metadata: ClusterMetadata::default(),
            machine: RebalanceMachine::default(),
            now: 1_000,
            checkpoint: 0,
            slots: 8,
        };
        world.apply(Command::LeaderAnnounce { cluster: CLUSTER });
        for _ in 0..workers {
            world.join();
        }
        world
    }

    fn apply(&mut self, command: Command) -> Outcome {
        let entry = Entry {
            control_epoch: self.metadata.control_epoch(),
            at: Timestamp(0),
            command,
        };
        let next = MetadataVersion(self.metadata.version().0 + 1);
        self.metadata.apply(next, &entry).unwrap()
    }

    fn join(&mut self) -> NodeId {
        let number = self.metadata.workers().count() as u128 + 1;
        self.register(number)
    }

    fn register(&mut self, number: u128) -> NodeId {
        let registered = self.apply(Command::RegisterWorker(Registration {
            cluster: Some(CLUSTER),
            worker: None,
            storage: StorageId(Uuid::from_u128(number)),
            incarnation: Uuid::from_u128(number << 64 | u128::from(self.metadata.version().0)),
            address: format!("http://127.0.0.1:{number}"),
            version: String::new(),
            cores: 1,
            slots: self.slots,
            memory_bytes: 1,
            operators: Vec::new(),
            rack: None,
            clean: true,
        }));
        let Outcome::Registered { worker, epoch } = registered else {
            panic!("it was not registered: {registered:?}");
        };
        self.apply(Command::UnfenceWorker { worker, epoch });
        worker
    }

    fn epoch(&self, worker: NodeId) -> WorkerEpoch {
        self.metadata.worker(worker).unwrap().epoch
    }

    /// Its copies go round the workers.
    fn topic(&mut self, partitions: u32, copies: u32) -> TopicId {
        let workers: Vec<NodeId> = self.metadata.workers().map(|row| row.id).collect();
        let replicas = (0..partitions).map(|number| {
            let copies =
                (number..number + copies).map(|place| workers[place as usize % workers.len()]);
            copies.collect()
        });
        let id = TopicId(Uuid::from_u128(self.metadata.version().0.into()));
        self.apply(Command::CreateTopic {
            id,
            name: TopicName::new(format!("topic-{}", self.metadata.version().0)).unwrap(),
            config: TopicConfig::default(),
            replicas: replicas.collect(),
        });
        id
    }

    fn wait(&mut self, span: Span) {
        self.now += span.0;
    }

    fn look(&mut self) -> (Vec<Command>, Status) {
        let decision = self.machine.look(Tick(self.now), &self.metadata);
        for command in &decision.commands {
            self.apply(command.clone());
        }
        (decision.commands, decision.status)
    }

    /// Looks for so long; what was decided.
    fn look_for(&mut self, span: Span) -> Vec<Command> {
        let until = self.now + span.0;
        let mut all = Vec::new();
        while self.now < until {
            self.wait(Span(500));
            all.extend(self.look().0);
        }
        all
    }

    /// Everything on the move is in sync.
    fn arrive(&mut self) {
        let rows: Vec<_> = self.metadata.topics_by_name().cloned().collect();
        for row in rows {
            for (number, target) in &row.moving {
                let partition = &row.partitions[*number as usize];
                let all = partition.isr.iter().chain(target);
                let leader = partition.leader.unwrap();
                let change = IsrChange {
                    partition: TopicPartition {
                        topic: row.id,
                        partition: PartitionId(*number),
                    },
                    leader_epoch: partition.leader_epoch,
                    partition_epoch: partition.partition_epoch,
                    isr: all.map(|node| (*node, self.epoch(*node))).collect(),
                    recovered: BTreeSet::new(),
                };
                self.apply(Command::AlterIsr {
                    worker: leader,
                    epoch: self.epoch(leader),
                    changes: vec![change],
                    log_ends: Vec::new(),
                });
            }
        }
    }

    fn replicas(&self) -> BTreeMap<NodeId, usize> {
        let mut counts: BTreeMap<NodeId, usize> =
            self.metadata.workers().map(|row| (row.id, 0)).collect();
        let partitions = self
            .metadata
            .topics_by_name()
            .flat_map(|row| &row.partitions);
        for node in partitions.flat_map(|partition| &partition.replicas) {
            *counts.get_mut(node).unwrap() += 1;
        }
        counts
    }

    /// A job of one stage with state that runs on these workers; the next one stands by.
    fn job(&mut self, name: &str, workers: &[NodeId]) -> JobId {
        let aggregate = serde_json::json!({
            "type": "aggregate", "id": "sum", "inputs": ["in"], "keys": [], "aggregates": [],
        });
        let operator = common::plan::task_graph::PlannedOperator {
            spec: serde_json::from_value(aggregate).unwrap(),
            inputs: Vec::new(),
            output: Vec::new(),
            time_column: None,
            input_mode: common::plan::edge::ChangelogMode::Append,
            output_mode: common::plan::edge::ChangelogMode::Append,
        };
        let created = self.apply(Command::CreateJob {
            spec: Arc::new(CreateJob {
                name: JobName::new(name).unwrap(),
                sql: None,
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
                    parallelism: u32::try_from(workers.len()).unwrap(),
                    source: None,
                    operators: vec![operator],
                    sink: None,
                }],
                edges: Vec::new(),
                key_groups: 256,
            }),
            checkpoint_interval: Span::from_secs(1),
            restored: None,
        });
        let Outcome::JobCreated(job) = created else {
            panic!("it was not created: {created:?}");
        };
        self.start(job, workers);
        job
    }

    fn start(&mut self, job: JobId, workers: &[NodeId]) {
        let row = self.metadata.job(job).unwrap();
        let stage = row.graph.stages[0].id;
        let all: Vec<NodeId> = self.metadata.workers().map(|row| row.id).collect();
        let after = |node: &NodeId| all[(node.0 as usize) % all.len()];
        let tasks = (0..)
            .zip(workers)
            .map(|(index, worker)| (TaskId { stage, index }, *worker));
        let standbys = tasks
            .clone()
            .map(|(task, worker)| (task, vec![after(&worker)]));
        let standbys = standbys.filter(|_| all.len() > 1).collect();
        let start = Command::StartGeneration {
            job,
            generation: row.generation,
            restore: row.completed,
            dividing: Dividing::AsBefore,
            tasks: tasks
                .map(|(task, worker)| TaskAssignment { task, worker })
                .collect(),
            standbys,
            state: JobState::Deploying,
            reason: String::new(),
            failure: None,
        };
        let Outcome::GenerationStarted(generation) = self.apply(start) else {
            panic!("it was not started");
        };
        self.apply(Command::GenerationRuns { job, generation });
        self.complete(job, &[]);
    }

    /// Everybody has everything, but for those who are away.
    fn complete(&mut self, job: JobId, away: &[NodeId]) {
        let row = self.metadata.job(job).unwrap();
        let (generation, deployment) = (row.generation, row.deployment.clone().unwrap());
        let holders = deployment.tasks.iter().map(|of| {
            let standbys = deployment.standbys.get(&of.task).into_iter().flatten();
            let all = std::iter::once(&of.worker).chain(standbys).copied();
            (
                of.task,
                all.filter(|worker| !away.contains(worker)).collect(),
            )
        });
        let holders = holders.collect();
        self.checkpoint += 1;
        self.apply(Command::ReserveEpochs { job, generation });
        self.apply(Command::EpochCompleted(EpochCompleted {
            job,
            generation,
            checkpoint: CheckpointId(self.checkpoint),
            kind: CheckpointKind::Periodic,
            holders,
            positions: BTreeMap::new(),
            counts: BTreeMap::new(),
            duration: Span(10),
            delta_bytes: 1,
            state_bytes: 1,
        }));
    }

    fn standbys(&self, job: JobId) -> Standbys {
        let row = self.metadata.job(job).unwrap();
        row.deployment.as_ref().unwrap().standbys.clone()
    }
}

const LONG: Span = Span::from_secs(20);

#[test]
fn one_that_joins_gets_replicas_a_few_at_a_time_once_it_has_been_there_for_a_while() {
    let mut world = World::new(2);
    world.topic(8, 1);
    world.topic(8, 2);
    assert_eq!(world.look_for(LONG), []);
    assert_eq!(world.look().1.state, State::Balanced);
    let joined = world.join();
    assert_eq!(world.look_for(Span::from_secs(5)), []);
    let (_, status) = world.look();
    assert!(status.reason.contains("worker 3"), "{status:?}");
    let mut moves = 0;
    for _ in 0..10 {
        world.wait(Span(500));
        let (commands, status) = world.look();
        assert!(commands.len() <= 4, "{commands:?}");
        moves += commands.len();
        assert_eq!(world.look().0, [], "not more before those are there");
        if !commands.is_empty() {
            assert_eq!(status.state, State::Moving);
        }
        world.arrive();
    }
    assert_eq!(moves, 8);
    let counts = world.replicas();
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [8; 3]);
    let (commands, status) = world.look();
    assert_eq!(
        (commands, status.state, status.begun),
        (vec![], State::Balanced, 8)
    );
    // Nothing goes back when it is only restarted.
    world.register(3);
    assert_eq!(world.epoch(joined).0, world.metadata.version().0 - 1);
    world.arrive();
    assert_eq!(world.look_for(LONG), []);
}

#[test]
fn one_that_is_drained_quarantined_or_gone_gets_nothing() {
    type Ending = fn(&World, NodeId) -> Command;
    let endings: [Ending; 3] = [
        |_, worker| Command::DrainWorker {
            worker,
            draining: true,
        },
        |_, worker| Command::QuarantineWorker {
            worker,
            quarantined: true,
        },
        |world, worker| Command::FenceWorker {
            worker,
            epoch: world.epoch(worker),
        },
    ];
    for ending in endings {
        let mut world = World::new(2);
        world.topic(12, 1);
        let first = NodeId(1);
        world.job("totals", &[first, first, first, first]);
        let joined = world.join();
        let end = ending(&world, joined);
        world.apply(end);
        // What is even without it may change.
        for command in world.look_for(LONG) {
            let text = format!("{command:?}");
            assert!(!text.contains("NodeId(3)"), "{text}");
        }
    }
}

#[test]
fn one_that_comes_and_goes_gets_nothing_until_it_stays() {
    let mut world = World::new(2);
    world.topic(12, 1);
    world.join();
    for _ in 0..5 {
        assert_eq!(world.look_for(Span::from_secs(4)), []);
        world.register(3);
    }
    assert!(!world.look_for(Span::from_secs(6)).is_empty());
}

#[test]
fn a_partition_that_is_not_well_stays() {
    let mut world = World::new(3);
    let topic = world.topic(6, 2);
    world.look_for(LONG);
    let lost = NodeId(3);
    let epoch = world.epoch(lost);
    world.apply(Command::FenceWorker {
        worker: lost,
        epoch,
    });
    world.join();
    for command in world.look_for(LONG) {
        let Command::MoveReplica { partition, .. } = command else {
            panic!("{command:?}");
        };
        let row = world.metadata.topic(topic).unwrap();
        let partition = &row.partitions[partition.0 as usize];
        assert!(!partition.replicas.contains(&lost), "{partition:?}");
    }
}

#[test]
fn tasks_go_to_one_that_joins_together_and_one_job_after_the_other() {
    let mut world = World::new(2);
    let [a, b] = [1, 2].map(NodeId);
    let jobs = ["first", "second"].map(|name| world.job(name, &[a, b, a, b]));
    assert_eq!(world.look_for(LONG), []);
    let joined = world.join();
    let decided = world.look_for(LONG);
    let [Command::Divide { job, division, .. }] = &decided[..] else {
        panic!("{decided:?}");
    };
    assert_eq!(*job, jobs[0]);
    let division = division.as_ref().unwrap();
    assert_eq!(division.parallelism, 4);
    let stage = StageId(1);
    let places = [2, 3].map(|index| (TaskId { stage, index }, joined));
    assert_eq!(division.places, places.into());
    let (_, status) = world.look();
    assert_eq!(status.state, State::Moving);
    let moves = [UnderWay::Tasks {
        job: "first".to_owned(),
        tasks: 2,
        to: vec![3],
    }];
    assert_eq!(status.moves, moves);
    // It is lost: the job stays as it is, and is left alone for a while.
    let epoch = world.epoch(joined);
    let fence = Command::FenceWorker {
        worker: joined,
        epoch,
    };
    world.apply(fence);
    world.wait(Span(500));
    let taken_back = world.look().0;
    let taken_back = matches!(&taken_back[..], [Command::Divide { division: None, .. }]);
    assert!(taken_back);
    world.register(3);
    let other = world.look_for(LONG);
    let of_other = matches!(&other[..], [Command::Divide { job, .. }] if *job == jobs[1]);
    assert!(of_other, "{other:?}");
}

#[test]
fn a_job_that_is_changed_starts_or_has_no_checkpoint_is_left_alone_and_it_says_why() {
    let mut world = World::new(1);
    let job = world.job("totals", &[NodeId(1); 4]);
    world.join();
    // Just started again.
    world.look_for(Span::from_secs(4));
    world.start(job, &[NodeId(1); 4]);
    assert_eq!(world.look_for(Span::from_secs(4)), []);
    let (_, status) = world.look();
    assert_eq!(status.state, State::Waiting);
    assert!(status.reason.contains("has not run for 5s"), "{status:?}");
    // A standby that lags.
    world.complete(job, &[NodeId(2)]);
    assert_eq!(world.look_for(LONG), []);
    let (_, status) = world.look();
    assert!(status.reason.contains("standbys"), "{status:?}");
    world.complete(job, &[]);
    let row = world.metadata.job(job).unwrap();
    let (first_stage, mut graph) = (row.next_stage(), (*row.graph).clone());
    graph.stages[0].id = first_stage;
    graph.stages[0].parallelism = 2;
    world.apply(Command::Divide {
        job,
        first_stage,
        division: Some(crate::metadata::division::PlannedDivision {
            parallelism: 2,
            graph: Arc::new(graph),
            places: BTreeMap::new(),
            update: None,
        }),
    });
    assert_eq!(world.look_for(LONG), []);
    let (_, status) = world.look();
    assert!(status.reason.contains("is being changed"), "{status:?}");
}

#[test]
fn standbys_go_to_one_that_joins_and_has_no_room_for_tasks() {
    let mut world = World::new(2);
    let [a, b] = [1, 2].map(NodeId);
    let jobs = ["first", "second"].map(|name| world.job(name, &[a, b]));
    world.slots = 0;
    let joined = world.join();
    let decided = world.look_for(LONG);
    assert!(
        matches!(&decided[..], [Command::AssignStandbys { job, .. }] if *job == jobs[0]),
        "{decided:?}"
    );
    // Who stood by stays until the other one has everything; meanwhile nothing else moves of it.
    let standbys = world.standbys(jobs[0]);
    let (index, both) = standbys
        .values()
        .enumerate()
        .find(|(_, all)| all.len() == 2)
        .unwrap();
    assert_eq!(both[..], [joined, [b, a][index]]);
    let expected = [UnderWay::Standbys {
        job: "first".to_owned(),
        tasks: 1,
        to: vec![3],
    }];
    assert_eq!(world.look().1.moves, expected);
    world.complete(jobs[0], &[]);
    assert_eq!(world.look_for(LONG), []);
}
