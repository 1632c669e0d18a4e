//! Decides what moves now, and says why nothing does.
//!
//! It keeps nothing but since when workers have been there; what is on the move is in the metadata, so a
//! new coordinator goes on with it.
#![warn(clippy::wildcard_enum_match_arm)]

use std::collections::{BTreeMap, BTreeSet};

use common::ids::{NodeId, PartitionId, WorkerEpoch};
use common::protocol::metadata::PartitionImage;
use common::time::{Span, Tick};

use super::jobs::{Jobs, Step, under_way};
use super::replicas::{Partition, Replicas};
use super::status::{State, Status, UnderWay};
use crate::metadata::ClusterMetadata;
use crate::metadata::command::Command;
use crate::metadata::topics::TopicRow;
use crate::placement::racks::Racks;

/// A worker is given something once it has been there for so long: longer than a session, so that one that
/// ends right after its start gets nothing.
pub const SETTLED_AFTER: Span = Span::from_secs(5);
/// Partitions that move at once; never more than a quarter of all.
const AT_ONCE: usize = 8;
const PART_AT_ONCE: usize = 4;
/// Of those, so many to one worker.
const TO_ONE: usize = 4;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RebalanceMachine {
    /// Since when workers may be given work, in which life of theirs.
    since: BTreeMap<NodeId, (WorkerEpoch, Tick)>,
    jobs: Jobs,
    begun: u64,
}

/// What is to be done, and how things stand.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub commands: Vec<Command>,
    pub status: Status,
}

impl RebalanceMachine {
    pub fn look(&mut self, now: Tick, metadata: &ClusterMetadata) -> Decision {
        self.follow(now, metadata);
        let (settled, unsettled) = self.workers(now);
        let mut commands = replicas(metadata, &settled);
        let mut moves = moving(metadata);
        let mut reason = String::new();
        // One kind after the other.
        if commands.is_empty() && coming_along(metadata).next().is_none() {
            match self.jobs.look(now, metadata, &settled) {
                Step::Move(command) => commands.push(command),
                Step::Wait(obstacle) => reason = obstacle,
                Step::Nothing => {}
            }
        }
        self.begun += commands.len() as u64;
        moves.extend(under_way(metadata));
        if commands.is_empty()
            && reason.is_empty()
            && let Some(worker) = unsettled
        {
            reason =
                format!("worker {worker} is given something once it is there for {SETTLED_AFTER}");
        }
        let state = match (commands.is_empty() && moves.is_empty(), reason.is_empty()) {
            (false, _) => State::Moving,
            (true, false) => State::Waiting,
            (true, true) => State::Balanced,
        };
        let status = Status {
            state,
            reason,
            moves,
            begun: self.begun,
        };
        Decision { commands, status }
    }

    fn follow(&mut self, now: Tick, metadata: &ClusterMetadata) {
        let open = metadata.open_workers().filter(|row| !row.quarantined);
        let open: BTreeMap<NodeId, WorkerEpoch> = open.map(|row| (row.id, row.epoch)).collect();
        self.since
            .retain(|worker, (epoch, _)| open.get(worker) == Some(epoch));
        for (worker, epoch) in open {
            self.since.entry(worker).or_insert((epoch, now));
        }
    }

    /// The workers among which things are made even, and one that is not there for long enough.
    fn workers(&self, now: Tick) -> (BTreeSet<NodeId>, Option<NodeId>) {
        let is_settled = |since: Tick| now.since(since) >= SETTLED_AFTER;
        let since = || self.since.iter().map(|(worker, (_, at))| (*worker, *at));
        let settled = since().filter(|(_, at)| is_settled(*at));
        let mut unsettled = since().filter(|(_, at)| !is_settled(*at));
        let settled = settled.map(|(worker, _)| worker).collect();
        (settled, unsettled.next().map(|(worker, _)| worker))
    }
}

/// The next replicas that move, a few at a time.
fn replicas(metadata: &ClusterMetadata, workers: &BTreeSet<NodeId>) -> Vec<Command> {
    let mut coming: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut moving = 0;
    for (partition, target) in coming_along(metadata) {
        moving += 1;
        for worker in target.iter().filter(|node| !partition.isr.contains(node)) {
            *coming.entry(*worker).or_default() += 1;
        }
    }
    let partitions: Vec<Partition> = metadata
        .topics_by_name()
        .flat_map(|row| partitions(metadata, row))
        .collect();
    let most = AT_ONCE.min((partitions.len() / PART_AT_ONCE).max(1));
    let racks = Racks::of(metadata.workers().map(|row| (row.id, row.rack.as_deref())));
    let mut replicas = Replicas::new(workers, &racks, partitions);
    let mut commands = Vec::new();
    while moving + commands.len() < most {
        let full = coming.iter().filter(|(_, coming)| **coming >= TO_ONE);
        let full = full.map(|(worker, _)| *worker).collect();
        let Some(next) = replicas.improve(&full) else {
            break;
        };
        *coming.entry(next.to).or_default() += 1;
        commands.push(Command::MoveReplica {
            id: next.topic,
            partition: next.partition,
            partition_epoch: next.epoch,
            target: next.target,
        });
    }
    commands
}

/// Partitions on the move, and to which replicas. What nobody leads waits for something else, maybe for ever.
fn coming_along(
    metadata: &ClusterMetadata,
) -> impl Iterator<Item = (&PartitionImage, &Vec<NodeId>)> {
    let moving = metadata.topics_by_name().flat_map(|row| {
        let moving = row.moving.iter();
        moving.map(|(number, target)| (&row.partitions[*number as usize], target))
    });
    moving.filter(|(partition, _)| partition.leader.is_some())
}

fn partitions(metadata: &ClusterMetadata, row: &TopicRow) -> Vec<Partition> {
    let each = (0..).zip(&row.partitions).map(|(number, partition)| {
        let moving = row.moving.get(&number);
        let well = |node: &NodeId| {
            partition.isr.contains(node)
                && !partition.suspect.contains(node)
                && metadata.is_active(*node)
        };
        let all_well = partition.replicas.iter().all(well);
        Partition {
            topic: row.id,
            number: PartitionId(number),
            epoch: partition.partition_epoch,
            replicas: moving.unwrap_or(&partition.replicas).clone(),
            settled: moving.is_none() && partition.leader.is_some() && all_well,
        }
    });
    each.collect()
}

/// The partitions that are on their way, by whomever they were sent.
fn moving(metadata: &ClusterMetadata) -> Vec<UnderWay> {
    let of_topic = |row: &TopicRow| -> Vec<UnderWay> {
        let moves = row.moving.iter().map(|(number, target)| {
            let partition = &row.partitions[*number as usize];
            let joining = target.iter().filter(|node| !partition.isr.contains(node));
            let leaving = partition
                .replicas
                .iter()
                .filter(|node| !target.contains(node));
            UnderWay::Replica {
                topic: row.name.to_string(),
                partition: *number,
                from: leaving.map(|node| node.0).collect(),
                to: joining.map(|node| node.0).collect(),
            }
        });
        moves.collect()
    };
    metadata
        .topics_by_name()
        .flat_map(|row| of_topic(row))
        .collect()
}
