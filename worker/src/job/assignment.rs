//! What runs here compared with what should: which generations to stop and which to start (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::ids::{Generation, JobId, NodeId, WorkerEpoch};
use common::protocol::task::Deployment;

use crate::metadata_image::MetadataImage;

/// What to do, stops before starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    pub stop: Vec<(JobId, Generation)>,
    pub start: Vec<Arc<Deployment>>,
    /// Jobs that no longer exist: what is kept of them here can go.
    pub forget: Vec<JobId>,
}

/// Compares the newest facts with what runs and what is kept on disk.
pub fn changes(
    image: &MetadataImage,
    me: NodeId,
    my_epoch: WorkerEpoch,
    running: &BTreeMap<JobId, Generation>,
    kept: &BTreeSet<JobId>,
) -> Changes {
    // An image from before this life knows nothing of it: in the empty one every job seems to be gone.
    if image.version.0 < my_epoch.0 {
        return Changes::default();
    }
    let wanted: BTreeMap<JobId, &Arc<Deployment>> = image
        .deployments
        .iter()
        .filter(|(_, deployment)| {
            // A generation that was started before this life began lost its tasks here with the former
            // one. Starting them again would set them behind the others.
            deployment.version.0 > my_epoch.0
                && deployment
                    .tasks
                    .iter()
                    .any(|assignment| assignment.worker == me)
        })
        .map(|(job, deployment)| (*job, deployment))
        .collect();
    let is_wanted = |job: &JobId, generation: &Generation| {
        wanted
            .get(job)
            .is_some_and(|deployment| deployment.generation == *generation)
    };
    let runs =
        |deployment: &Deployment| running.get(&deployment.job) == Some(&deployment.generation);
    Changes {
        stop: running
            .iter()
            .filter(|(job, generation)| !is_wanted(job, generation))
            .map(|(job, generation)| (*job, *generation))
            .collect(),
        start: wanted
            .values()
            .filter(|deployment| !runs(deployment))
            .map(|deployment| (*deployment).clone())
            .collect(),
        forget: kept
            .iter()
            .filter(|job| !image.jobs.contains_key(job) && !running.contains_key(job))
            .copied()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{JobName, MetadataVersion, StageId, TaskId};
    use common::plan::task_graph::TaskGraph;
    use common::protocol::metadata::JobImage;
    use common::protocol::task::TaskAssignment;
    use common::time::Span;

    use super::*;

    fn image(job: u32, generation: u32, version: u64, worker: u32) -> MetadataImage {
        let name = JobName::new("j").unwrap();
        let task = TaskId {
            stage: StageId(0),
            index: 0,
        };
        let deployment = Deployment {
            job: JobId(job),
            name: name.clone(),
            generation: Generation(generation),
            version: MetadataVersion(version),
            restore: None,
            graph: TaskGraph::default(),
            tasks: vec![TaskAssignment {
                task,
                worker: NodeId(worker),
            }],
            checkpoint_interval: Span::from_secs(1),
        };
        let job_image = JobImage {
            id: JobId(job),
            name,
            generation: Generation(generation),
            completed: None,
            finals: BTreeMap::new(),
            running: true,
            deleted: false,
        };
        let mut image = MetadataImage::default();
        image.version = MetadataVersion(100);
        image.jobs.insert(JobId(job), job_image);
        image.deployments.insert(JobId(job), Arc::new(deployment));
        image
    }

    fn compare(image: &MetadataImage, running: &[(u32, u32)], kept: &[u32]) -> Changes {
        let running = running
            .iter()
            .map(|(j, g)| (JobId(*j), Generation(*g)))
            .collect();
        let kept = kept.iter().map(|j| JobId(*j)).collect();
        changes(image, NodeId(1), WorkerEpoch(10), &running, &kept)
    }

    #[test]
    fn a_new_generation_replaces_the_old_one() {
        let changes = compare(&image(1, 2, 20, 1), &[(1, 1)], &[1]);
        assert_eq!(changes.stop, [(JobId(1), Generation(1))]);
        assert_eq!(changes.start[0].generation, Generation(2));
        assert!(changes.forget.is_empty());
    }

    #[test]
    fn what_already_runs_is_left_alone() {
        assert_eq!(
            compare(&image(1, 2, 20, 1), &[(1, 2)], &[1]),
            Changes::default()
        );
    }

    #[test]
    fn tasks_of_other_workers_and_of_a_former_life_are_not_started() {
        assert!(compare(&image(1, 2, 20, 2), &[], &[]).start.is_empty());
        assert!(compare(&image(1, 2, 9, 1), &[], &[]).start.is_empty());
    }

    #[test]
    fn a_worker_that_has_just_started_does_not_forget_the_jobs_on_its_disk() {
        assert_eq!(
            compare(&MetadataImage::default(), &[], &[1]),
            Changes::default()
        );
    }

    #[test]
    fn a_job_that_is_gone_is_stopped_and_then_forgotten() {
        let mut gone = MetadataImage::default();
        gone.version = MetadataVersion(100);
        assert_eq!(compare(&gone, &[(1, 2)], &[1]).stop.len(), 1);
        assert!(compare(&gone, &[(1, 2)], &[1]).forget.is_empty());
        assert_eq!(compare(&gone, &[], &[1]).forget, [JobId(1)]);
    }
}
