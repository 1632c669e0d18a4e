//! Who leads a partition and who is in sync, and what becomes of a topic.

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{
    LeaderEpoch, NodeId, PartitionEpoch, PartitionId, TopicId, TopicName, WorkerEpoch,
};
use common::protocol::replicate::{IsrChange, IsrVerdict};
use common::protocol::topic::TopicConfig;
use uuid::Uuid;

use super::command::{Command, Outcome, Registration, Rejection};
use super::test_history::{History, create_topic, first_of, registration};

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
