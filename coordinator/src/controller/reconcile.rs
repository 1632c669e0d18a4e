//! The facts against what is heard of workers: which commands follow.

use std::collections::BTreeSet;

use common::ids::{NodeId, WorkerEpoch};
use common::time::Tick;

use super::topics::chosen;
use crate::liveness::machine::LivenessMachine;
use crate::metadata::ClusterMetadata;
use crate::metadata::command::Command;
use crate::metadata::nodes::WorkerStatus;

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
/// have been gone for long, where there are others to take them. A few topics at a time.
pub fn move_replicas(metadata: &ClusterMetadata, gone: &BTreeSet<NodeId>) -> Vec<Command> {
    let leaves = |node: &NodeId| {
        let worker = metadata.worker(*node);
        gone.contains(node) || worker.is_some_and(|row| row.draining)
    };
    let topics = || metadata.topics_by_name();
    let moving = topics().filter(|row| !row.moving.is_empty()).count();
    let waiting = topics().filter(|row| {
        let mut replicas = row.partitions.iter().flat_map(|p| &p.replicas);
        row.moving.is_empty() && replicas.any(leaves)
    });
    let moves = waiting.filter_map(|row| {
        // With too few workers they stay where they are.
        let targets = chosen(metadata, row, None).ok()?;
        Some(Command::Reassign {
            id: row.id,
            targets,
        })
    });
    moves
        .take(TOPICS_THAT_MOVE.saturating_sub(moving))
        .collect()
}

/// Ends the epochs of the dead, and gives work to those who are ready for it.
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
    fences.chain(unfences).collect()
}
