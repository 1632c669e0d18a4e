//! The facts against what is heard of workers: which commands follow.

use std::collections::BTreeSet;

use common::ids::{NodeId, WorkerEpoch};
use common::time::Tick;

use super::topics::chosen;
use crate::liveness::machine::LivenessMachine;
use crate::metadata::ClusterMetadata;
use crate::metadata::command::Command;
use crate::metadata::nodes::WorkerStatus;
use crate::metadata::topics::TopicRow;

/// Leaders that move at once.
const MOVES: u32 = 256;
/// Topics whose replicas move at once.
const TOPICS_THAT_MOVE: usize = 4;

/// Has partitions led by the replica they were placed to be led by, where that can be.
pub fn balance(metadata: &ClusterMetadata) -> Option<Command> {
    let wanted = metadata.leaders_elsewhere().next().is_some();
    wanted.then_some(Command::PreferLeaders { most: MOVES })
}

/// Has replicas moved away from workers that are to be emptied, and those replaced that are on workers which
/// have been gone for long, where there are others to take them. A few topics at a time. What is on its way to such a
/// worker goes to another one.
pub fn move_replicas(metadata: &ClusterMetadata, gone: &BTreeSet<NodeId>) -> Vec<Command> {
    let leaves = |node: &NodeId| {
        let worker = metadata.worker(*node);
        gone.contains(node) || worker.is_some_and(|row| row.draining)
    };
    let topics = || metadata.topics_by_name();
    let is_lost = |row: &TopicRow| row.moving.values().flatten().any(leaves);
    let moving = topics().filter(|row| !row.moving.is_empty() && !is_lost(row));
    let moving = moving.count();
    let waiting = topics().filter(|row| {
        let mut replicas = row.partitions.iter().flat_map(|p| &p.replicas);
        is_lost(row) || row.moving.is_empty() && replicas.any(leaves)
    });
    let moves = waiting.filter_map(|row| {
        // With too few workers they stay where they are.
        let targets = chosen(metadata, row, None).ok()?;
        let changes = (0..).zip(&row.partitions).zip(&targets);
        let mut changes = changes.map(|((number, partition), target)| {
            row.moving.get(&number).unwrap_or(&partition.replicas) != target
        });
        changes.any(|changes| changes).then_some(Command::Reassign {
            id: row.id,
            targets,
        })
    });
    moves
        .take(TOPICS_THAT_MOVE.saturating_sub(moving))
        .collect()
}

/// Ends the epochs of the dead, gives work to those who are ready for it, and as little as can be to those that come
/// and go.
pub fn reconcile(metadata: &ClusterMetadata, heard: &LivenessMachine, now: Tick) -> Vec<Command> {
    let status = |(worker, epoch): (NodeId, WorkerEpoch)| {
        let row = metadata.worker(worker).filter(|row| row.epoch == epoch);
        row.map(|row| row.status)
    };
    let fences = heard
        .dead(now)
        .filter(|dead| !matches!(status(*dead), None | Some(WorkerStatus::Fenced)))
        .map(|(worker, epoch)| Command::FenceWorker { worker, epoch });
    let dead: Vec<NodeId> = heard.dead(now).map(|(worker, _)| worker).collect();
    let unfences = heard
        .ready()
        .filter(|ready| status(*ready) == Some(WorkerStatus::Registered))
        .filter(|(worker, _)| !dead.contains(worker))
        .map(|(worker, epoch)| Command::UnfenceWorker { worker, epoch });
    let quarantined = heard.quarantined(now);
    let quarantines = metadata.workers().filter_map(|row| {
        let is_now = quarantined.contains_key(&row.id);
        (is_now != row.quarantined).then_some(Command::QuarantineWorker {
            worker: row.id,
            quarantined: is_now,
        })
    });
    fences.chain(unfences).chain(quarantines).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use common::ids::{ClusterId, ControlEpoch, MetadataVersion, StorageId, TopicId, TopicName};
    use common::protocol::topic::TopicConfig;
    use common::time::{Span, Timestamp};

    use super::*;
    use crate::metadata::command::{Entry, Outcome, Registration};

    fn apply(metadata: &mut ClusterMetadata, command: Command) -> Outcome {
        let entry = Entry {
            control_epoch: metadata.control_epoch(),
            at: Timestamp(0),
            command,
        };
        let next = MetadataVersion(metadata.version().0 + 1);
        metadata.apply(next, &entry).unwrap()
    }

    /// Workers 1 to `workers`, and a topic with a copy on each of the first two.
    fn cluster(workers: u32) -> ClusterMetadata {
        let mut metadata = ClusterMetadata::default();
        let cluster = ClusterId(Uuid::from_u128(1));
        let announced = apply(&mut metadata, Command::LeaderAnnounce { cluster });
        assert!(announced != Outcome::Announced(ControlEpoch(0)));
        let mut nodes = Vec::new();
        for number in 1..=workers {
            let registered = apply(
                &mut metadata,
                Command::RegisterWorker(Registration {
                    cluster: Some(cluster),
                    worker: None,
                    storage: StorageId(Uuid::from_u128(number.into())),
                    incarnation: Uuid::from_u128(number.into()),
                    address: format!("http://127.0.0.1:{number}"),
                    version: String::new(),
                    cores: 1,
                    slots: 1,
                    memory_bytes: 1,
                    operators: Vec::new(),
                    rack: None,
                    clean: true,
                }),
            );
            let Outcome::Registered { worker, epoch } = registered else {
                panic!("it was not registered: {registered:?}");
            };
            apply(&mut metadata, Command::UnfenceWorker { worker, epoch });
            nodes.push(worker);
        }
        let create = Command::CreateTopic {
            id: TopicId(Uuid::from_u128(7)),
            name: TopicName::new("clicks").unwrap(),
            config: TopicConfig::default(),
            replicas: vec![nodes[..2].to_vec()],
        };
        apply(&mut metadata, create);
        metadata
    }

    fn targets(metadata: &ClusterMetadata, gone: &[NodeId]) -> Vec<Vec<NodeId>> {
        let moves = move_replicas(metadata, &gone.iter().copied().collect());
        let targets = moves.into_iter().map(|command| match command {
            Command::Reassign { targets, .. } => targets,
            other => panic!("replicas are moved by {other:?}"),
        });
        targets.flatten().collect()
    }

    #[test]
    fn new_replicas_go_to_those_that_are_not_quarantined_where_there_are_enough() {
        let mut metadata = cluster(4);
        let nodes: Vec<NodeId> = metadata.workers().map(|row| row.id).collect();
        let quarantine = |metadata: &mut ClusterMetadata, worker| {
            let quarantined = true;
            apply(
                metadata,
                Command::QuarantineWorker {
                    worker,
                    quarantined,
                },
            );
        };
        let fence = Command::FenceWorker {
            worker: nodes[0],
            epoch: metadata.worker(nodes[0]).unwrap().epoch,
        };
        apply(&mut metadata, fence);
        // The third has the fewest replicas.
        quarantine(&mut metadata, nodes[2]);
        assert_eq!(targets(&metadata, &nodes[..1]), [[nodes[1], nodes[3]]]);
        // What is there stays.
        quarantine(&mut metadata, nodes[1]);
        assert_eq!(targets(&metadata, &nodes[..1]), [[nodes[1], nodes[3]]]);
        quarantine(&mut metadata, nodes[3]);
        assert_eq!(targets(&metadata, &nodes[..1]), [[nodes[1], nodes[2]]]);
    }

    #[test]
    fn a_worker_that_comes_and_goes_is_quarantined_and_not_for_ever() {
        let mut metadata = cluster(2);
        let row = metadata.workers().next().unwrap().clone();
        let mut heard = LivenessMachine::new(Span::from_secs(3));
        for life in 0..6 {
            let epochs = BTreeMap::from([(row.id, WorkerEpoch(life))]);
            heard.follow(Tick(life), &epochs);
        }
        let commands = reconcile(&metadata, &heard, Tick(100));
        let quarantine = |quarantined| Command::QuarantineWorker {
            worker: row.id,
            quarantined,
        };
        assert_eq!(commands, [quarantine(true)]);
        apply(&mut metadata, quarantine(true));
        assert_eq!(reconcile(&metadata, &heard, Tick(100)), []);
        heard.follow(Tick(70_000), &BTreeMap::from([(row.id, WorkerEpoch(5))]));
        heard.heard(Tick(70_000), row.id, WorkerEpoch(5), 1, true);
        assert_eq!(
            reconcile(&metadata, &heard, Tick(70_000)),
            [quarantine(false)]
        );
    }

    #[test]
    fn replicas_leave_workers_that_are_emptied_or_given_up_where_others_can_take_them() {
        let mut metadata = cluster(3);
        let nodes: Vec<NodeId> = metadata.workers().map(|row| row.id).collect();
        assert!(targets(&metadata, &[]).is_empty());
        let fence = Command::FenceWorker {
            worker: nodes[0],
            epoch: metadata.worker(nodes[0]).unwrap().epoch,
        };
        apply(&mut metadata, fence);
        assert!(
            targets(&metadata, &[]).is_empty(),
            "it may be back in a moment"
        );
        assert_eq!(targets(&metadata, &nodes[..1]), [[nodes[1], nodes[2]]]);

        let mut metadata = cluster(3);
        let drain = Command::DrainWorker {
            worker: nodes[1],
            draining: true,
        };
        apply(&mut metadata, drain.clone());
        assert_eq!(targets(&metadata, &[]), [[nodes[0], nodes[2]]]);
        // The one that it goes to instead is drained as well.
        let Some(moved) = move_replicas(&metadata, &BTreeSet::new()).pop() else {
            panic!("it moves");
        };
        apply(&mut metadata, moved);
        assert!(targets(&metadata, &[]).is_empty(), "it is on its way");
        let other = Command::DrainWorker {
            worker: nodes[2],
            draining: true,
        };
        apply(&mut metadata, other);
        assert!(targets(&metadata, &[]).is_empty(), "nobody is left for it");
        let back = Command::DrainWorker {
            worker: nodes[1],
            draining: false,
        };
        apply(&mut metadata, back);
        assert_eq!(targets(&metadata, &[]), [[nodes[0], nodes[1]]]);
        let mut metadata = cluster(2);
        apply(&mut metadata, drain);
        assert!(
            targets(&metadata, &[]).is_empty(),
            "there is nobody to take it"
        );
    }
}
