//! The facts against what is heard of workers: which commands follow.

use common::ids::{NodeId, WorkerEpoch};
use common::time::Tick;

use crate::liveness::machine::LivenessMachine;
use crate::metadata::ClusterMetadata;
use crate::metadata::command::Command;
use crate::metadata::nodes::WorkerStatus;

/// Leaders that move at once.
const MOVES: u32 = 256;

/// Has partitions led by the replica they were placed to be led by, where that can be.
pub fn balance(metadata: &ClusterMetadata) -> Option<Command> {
    let wanted = metadata.leaders_elsewhere().next().is_some();
    wanted.then_some(Command::PreferLeaders { most: MOVES })
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
