//! What becomes of partitions whose records are acknowledged in memory when workers end without order.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use common::ids::{LeaderEpoch, NodeId, PartitionEpoch, PartitionId, TopicId, WorkerEpoch};
use common::offset::Offset;
use common::protocol::metadata::{LogEnd, PartitionImage};
use common::protocol::replicate::{IsrChange, IsrVerdict, LogEndReport};
use common::protocol::topic::{Durability, TopicConfig, UncleanRecovery};

use super::command::{Command, Outcome, Registration, Rejection};
use super::test_history::{History, create_topic, first_of, registration};

const TOPIC: TopicId = TopicId(Uuid::from_u128(77));

/// Three workers with a partition of which two replicas have to have everything.
struct Cluster {
    history: History,
    /// Their storages are 1, 2 and 3, and so are their numbers.
    lives: BTreeMap<NodeId, WorkerEpoch>,
    incarnations: u128,
}

impl Cluster {
    fn of(recovery: UncleanRecovery, replicas: &[u32]) -> Cluster {
        Cluster::with(Durability::Replicated, recovery, replicas)
    }

    fn with(durability: Durability, recovery: UncleanRecovery, replicas: &[u32]) -> Cluster {
        let mut history = History::announced();
        let lives = [1, 2, 3].map(|storage| history.active_worker(storage));
        let nodes: Vec<NodeId> = replicas.iter().copied().map(NodeId).collect();
        let Command::CreateTopic {
            id, name, replicas, ..
        } = create_topic(TOPIC, "t", &[&nodes])
        else {
            unreachable!("it creates a topic");
        };
        let config = TopicConfig {
            durability,
            unclean_recovery: recovery,
            min_insync_replicas: 2,
            ..TopicConfig::default()
        };
        let create = Command::CreateTopic {
            id,
            name,
            config,
            replicas,
        };
        history.command(create).unwrap();
        Cluster {
            history,
            lives: lives.into(),
            incarnations: 1_000,
        }
    }

    fn partition(&self) -> PartitionImage {
        self.history.metadata.topic(TOPIC).unwrap().partitions[0].clone()
    }

    /// Who leads, is in sync, and is suspect.
    fn stands(&self) -> (Option<u32>, Vec<u32>, Vec<u32>) {
        let partition = self.partition();
        let numbers = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
        (
            partition.leader.map(|node| node.0),
            numbers(&partition.isr),
            numbers(&partition.suspect),
        )
    }

    fn fence(&mut self, worker: u32) {
        let worker = NodeId(worker);
        let epoch = self.lives[&worker];
        let fence = Command::FenceWorker { worker, epoch };
        self.history.command(fence).unwrap();
    }

    fn register(&mut self, worker: u32, clean: bool) {
        self.incarnations += 1;
        self.register_as(worker, clean, self.incarnations);
    }

    fn register_as(&mut self, worker: u32, clean: bool, incarnation: u128) {
        let (node, life) = self.history.register(Registration {
            incarnation: Uuid::from_u128(incarnation),
            clean,
            ..registration(worker.into())
        });
        assert_eq!(node, NodeId(worker));
        self.lives.insert(node, life);
    }

    fn is_ready(&mut self, worker: u32) {
        let worker = NodeId(worker);
        let epoch = self.lives[&worker];
        let unfence = Command::UnfenceWorker { worker, epoch };
        self.history.command(unfence).unwrap();
    }

    /// It ends without order, and comes back.
    fn crash(&mut self, worker: u32) {
        self.register(worker, false);
        self.is_ready(worker);
    }

    fn says(&mut self, worker: u32, epoch: i32, log_end: i64, partition_epoch: PartitionEpoch) {
        let says = Command::AlterIsr {
            worker: NodeId(worker),
            epoch: self.lives[&NodeId(worker)],
            changes: Vec::new(),
            log_ends: vec![LogEndReport {
                partition: first_of(TOPIC),
                partition_epoch,
                log_end: LogEnd {
                    last_epoch: Some(LeaderEpoch(epoch)),
                    log_end: Offset(log_end),
                },
            }],
        };
        self.history.command(says).unwrap();
    }

    fn says_now(&mut self, worker: u32, epoch: i32, log_end: i64) {
        let partition_epoch = self.partition().partition_epoch;
        self.says(worker, epoch, log_end, partition_epoch);
    }

    /// The leader would have these in sync, of whom these have everything again.
    fn wishes(&mut self, isr: &[u32], recovered: &[u32]) -> bool {
        let lives = self.lives.clone();
        self.wishes_in(isr, recovered, &lives)
    }

    fn wishes_in(
        &mut self,
        isr: &[u32],
        recovered: &[u32],
        lives: &BTreeMap<NodeId, WorkerEpoch>,
    ) -> bool {
        let partition = self.partition();
        let leader = partition.leader.unwrap();
        let change = IsrChange {
            partition: first_of(TOPIC),
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            isr: isr
                .iter()
                .map(|n| (NodeId(*n), lives[&NodeId(*n)]))
                .collect(),
            recovered: recovered.iter().copied().map(NodeId).collect(),
        };
        let wish = Command::AlterIsr {
            worker: leader,
            epoch: self.lives[&leader],
            changes: vec![change],
            log_ends: Vec::new(),
        };
        match self.history.command(wish) {
            Ok(Outcome::IsrAltered(verdicts)) => verdicts[0] == IsrVerdict::Accepted,
            other => panic!("{other:?}"),
        }
    }

    fn recover(&mut self, leader: Option<u32>) -> Result<Outcome, Rejection> {
        self.history.command(Command::RecoverPartition {
            id: TOPIC,
            partition: PartitionId(0),
            leader: leader.map(NodeId),
        })
    }
}

#[test]
fn who_ended_without_order_is_not_in_sync_or_is_suspect_until_its_leader_vouches_for_it() {
    let mut cluster = Cluster::of(UncleanRecovery::Balanced, &[1, 2, 3]);
    let before = cluster.lives.clone();
    cluster.crash(1);
    assert_eq!(cluster.stands(), (Some(2), vec![2, 3], vec![]));
    cluster.crash(3);
    assert_eq!(cluster.stands(), (Some(2), vec![2, 3], vec![3]));
    assert!(
        !cluster.wishes_in(&[2, 3], &[3], &before),
        "that was its former life"
    );
    assert!(cluster.wishes(&[1, 2, 3], &[]));
    assert_eq!(cluster.stands(), (Some(2), vec![1, 2, 3], vec![3]));
    assert!(
        !cluster.wishes(&[2, 3], &[]),
        "one would be left that has everything"
    );
    assert!(cluster.wishes(&[2, 3], &[3]));
    assert_eq!(cluster.stands(), (Some(2), vec![2, 3], vec![]));
}

#[test]
fn who_ended_in_order_or_never_ended_has_what_it_had() {
    let mut cluster = Cluster::of(UncleanRecovery::Balanced, &[1, 2]);
    cluster.register(2, true);
    cluster.is_ready(2);
    assert_eq!(cluster.stands(), (Some(1), vec![1, 2], vec![]));
    cluster.crash(2);
    assert_eq!(cluster.stands(), (Some(1), vec![1, 2], vec![2]));
    // The same process, which was only not heard of: nothing new is known of it.
    cluster.fence(1);
    let first = 1 << 32;
    cluster.register_as(1, false, first);
    assert_eq!(cluster.stands(), (None, vec![1, 2], vec![2]));
    cluster.is_ready(1);
    assert_eq!(cluster.stands(), (Some(1), vec![1, 2], vec![2]));

    let recovery = UncleanRecovery::Balanced;
    let mut on_disk = Cluster::with(Durability::Fsync, recovery, &[1, 2]);
    on_disk.crash(2);
    assert_eq!(on_disk.stands(), (Some(1), vec![1, 2], vec![]));
}

#[test]
fn a_suspect_does_not_lead_while_somebody_has_everything_who_may_come_back() {
    let mut cluster = Cluster::of(UncleanRecovery::Balanced, &[1, 2]);
    cluster.crash(2);
    cluster.fence(1);
    assert_eq!(cluster.stands(), (None, vec![1, 2], vec![2]));
    cluster.says_now(2, 0, 50);
    assert_eq!(cluster.stands().0, None);
    cluster.register(1, true);
    cluster.is_ready(1);
    assert_eq!(cluster.stands(), (Some(1), vec![1, 2], vec![2]));
    assert!(cluster.partition().unclean.is_none());
    assert!(cluster.partition().log_ends.is_empty());
}

#[test]
fn of_suspects_only_the_longest_log_leads_when_all_have_said_where_theirs_end() {
    let mut cluster = Cluster::of(UncleanRecovery::Balanced, &[1, 2]);
    cluster.crash(2);
    let earlier = cluster.partition().partition_epoch;
    cluster.crash(1);
    assert_eq!(cluster.stands(), (None, vec![1, 2], vec![2, 1]));
    cluster.says(1, 0, 99, earlier);
    assert!(cluster.partition().log_ends.is_empty(), "that was before");
    cluster.says_now(1, 0, 40);
    // It says so again in every life: it may have lost still more.
    cluster.crash(1);
    cluster.says_now(2, 0, 50);
    assert_eq!(cluster.stands().0, None);
    cluster.says_now(1, 0, 30);
    assert_eq!(cluster.stands(), (Some(2), vec![1, 2], vec![1]));
    let partition = cluster.partition();
    assert_eq!(partition.unclean.unwrap().since, partition.leader_epoch);
    assert!(partition.log_ends.is_empty());
    assert!(cluster.wishes(&[1, 2], &[1]));
    assert_eq!(cluster.stands(), (Some(2), vec![1, 2], vec![]));
    assert!(cluster.partition().unclean.is_some(), "it stays to be seen");
}

/// It was taken for lost while it alone had not lost its memory, and whoever had led without what was committed.
#[test]
fn one_that_is_out_of_sync_and_has_the_longest_log_leads_where_all_in_sync_are_suspect() {
    let mut cluster = Cluster::of(UncleanRecovery::Balanced, &[1, 2, 3]);
    cluster.fence(3);
    assert_eq!(cluster.stands(), (Some(1), vec![1, 2], vec![]));
    cluster.crash(3);
    cluster.crash(1);
    cluster.crash(2);
    assert_eq!(cluster.stands(), (None, vec![1, 2], vec![1, 2]));
    cluster.says_now(3, 0, 28);
    cluster.says_now(1, 0, 27);
    cluster.says_now(2, 0, 27);
    assert_eq!(cluster.stands(), (Some(3), vec![1, 2, 3], vec![1, 2]));
}

/// The longest log was that of a replica that had said where it ends, and was given up before all others were suspect.
#[test]
fn a_replica_that_is_gone_does_not_lead_by_the_log_it_had() {
    let mut cluster = Cluster::of(UncleanRecovery::Balanced, &[1, 2, 3]);
    for worker in [3, 1, 2] {
        cluster.fence(worker);
    }
    assert_eq!(cluster.stands(), (None, vec![1, 2], vec![]));
    cluster.register(3, true);
    cluster.is_ready(3);
    cluster.says_now(3, 0, 50);
    let reassign = Command::Reassign {
        id: TOPIC,
        targets: vec![[1, 2].map(NodeId).into()],
    };
    cluster.history.command(reassign).unwrap();
    assert!(cluster.partition().log_ends.is_empty());
    cluster.crash(1);
    cluster.crash(2);
    assert_eq!(cluster.stands(), (None, vec![1, 2], vec![1, 2]));
    cluster.says_now(1, 0, 20);
    cluster.says_now(2, 0, 10);
    assert_eq!(cluster.stands(), (Some(1), vec![1, 2], vec![2]));
}

#[test]
fn the_longest_log_leads_once_its_worker_is_active() {
    let mut cluster = Cluster::of(UncleanRecovery::Balanced, &[1, 2]);
    cluster.crash(2);
    cluster.register(1, false);
    cluster.says_now(2, 0, 50);
    cluster.says_now(1, 0, 60);
    assert_eq!(cluster.stands().0, None);
    cluster.is_ready(1);
    assert_eq!(cluster.stands(), (Some(1), vec![1, 2], vec![2]));
}

#[test]
fn where_somebody_is_to_say_who_leads_nobody_leads_before_that() {
    let mut cluster = Cluster::of(UncleanRecovery::Manual, &[1, 2, 3]);
    let led = cluster.recover(Some(2));
    assert!(matches!(led, Err(Rejection::HasLeader { .. })), "{led:?}");
    for worker in [3, 2, 1] {
        cluster.crash(worker);
    }
    assert_eq!(cluster.stands(), (None, vec![1, 2], vec![2, 1]));
    let unknown = cluster.recover(None);
    assert!(
        matches!(unknown, Err(Rejection::NoLogEnd { .. })),
        "{unknown:?}"
    );
    cluster.says_now(1, 0, 30);
    cluster.says_now(2, 0, 50);
    assert_eq!(cluster.stands().0, None);
    let nobody = cluster.recover(Some(9));
    assert!(
        matches!(nobody, Err(Rejection::CannotLead { .. })),
        "{nobody:?}"
    );
    // One that has been out of sync may be all that is left.
    let mut other = Cluster {
        history: cluster.history.clone(),
        lives: cluster.lives.clone(),
        incarnations: cluster.incarnations,
    };
    other.recover(Some(3)).unwrap();
    assert_eq!(other.stands(), (Some(3), vec![1, 2, 3], vec![1, 2]));
    cluster.recover(None).unwrap();
    assert_eq!(cluster.stands(), (Some(2), vec![1, 2], vec![1]));
    assert!(cluster.partition().unclean.is_some());
}

#[test]
fn a_topic_that_is_set_to_balanced_goes_on_with_what_was_said() {
    let mut cluster = Cluster::of(UncleanRecovery::Manual, &[1, 2]);
    cluster.crash(2);
    cluster.crash(1);
    cluster.says_now(1, 0, 30);
    cluster.says_now(2, 0, 30);
    let config = TopicConfig {
        unclean_recovery: UncleanRecovery::Balanced,
        ..cluster
            .history
            .metadata
            .topic(TOPIC)
            .unwrap()
            .config
            .clone()
    };
    let alter = Command::AlterTopic {
        id: TOPIC,
        config,
        partitions: 1,
        added: Vec::new(),
    };
    cluster.history.command(alter).unwrap();
    assert_eq!(cluster.stands(), (Some(1), vec![1, 2], vec![2]));
}

#[test]
fn a_partition_arrives_where_it_moves_to_once_nobody_there_is_suspect() {
    let mut cluster = Cluster::of(UncleanRecovery::Balanced, &[1, 2]);
    cluster.crash(2);
    let target: Vec<NodeId> = [3, 2].map(NodeId).into();
    let reassign = Command::Reassign {
        id: TOPIC,
        targets: vec![target],
    };
    cluster.history.command(reassign).unwrap();
    assert!(cluster.wishes(&[1, 2, 3], &[]));
    assert_eq!(cluster.stands(), (Some(1), vec![3, 2, 1], vec![2]));
    assert!(cluster.wishes(&[1, 2, 3], &[2]));
    assert_eq!(cluster.stands(), (Some(3), vec![3, 2], vec![]));
    let replicas: BTreeSet<NodeId> = cluster.partition().replicas.into_iter().collect();
    assert_eq!(replicas, BTreeSet::from([NodeId(2), NodeId(3)]));
}
