//! What runs here compared with what should: which generations to stop and which to start (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::ids::{CheckpointId, Generation, JobId, NodeId, TaskId, WorkerEpoch};
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
///
/// `running`: with the worker epoch under which it was started. A worker that was taken for dead and has
/// registered again has another one, and nothing that was decided before goes on.
pub fn changes(
    image: &MetadataImage,
    me: NodeId,
    my_epoch: WorkerEpoch,
    running: &BTreeMap<JobId, (Generation, WorkerEpoch)>,
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
            !tasks_here(deployment, me, my_epoch).is_empty() || !stood_by(deployment, me).is_empty()
        })
        .map(|(job, deployment)| (*job, deployment))
        .collect();
    let runs = |deployment: &Deployment| {
        let began = running.get(&deployment.job);
        began.is_some_and(|(generation, epoch)| {
            let of_this_life = *epoch == my_epoch || deployment.version.0 > my_epoch.0;
            *generation == deployment.generation && of_this_life
        })
    };
    let is_wanted = |job: &JobId| wanted.get(job).is_some_and(|deployment| runs(deployment));
    Changes {
        stop: running
            .iter()
            .filter(|(job, _)| !is_wanted(job))
            .map(|(job, (generation, _))| (*job, *generation))
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

/// What is completed of the generation of a job that runs here. What another one has completed is not the state of
/// its tasks: a worker that slept hears of the next generation, and perhaps not yet that its own is over.
pub fn completed(
    image: &MetadataImage,
    job: JobId,
    generation: Generation,
) -> Option<CheckpointId> {
    let facts = image.jobs.get(&job)?;
    facts.completed.filter(|_| facts.generation == generation)
}

/// The tasks of a generation that run on a worker.
///
/// A generation that was started before this life of the worker began lost its tasks here with the former
/// one. Starting them again would set them behind the others.
pub fn tasks_here(deployment: &Deployment, me: NodeId, my_epoch: WorkerEpoch) -> BTreeSet<TaskId> {
    let lives = deployment.version.0 > my_epoch.0;
    let tasks = deployment
        .tasks
        .iter()
        .filter(|assignment| lives && assignment.worker == me);
    tasks.map(|assignment| assignment.task).collect()
}

/// The tasks of a generation that a worker stands by for, in whichever life.
pub fn stood_by(deployment: &Deployment, me: NodeId) -> BTreeSet<TaskId> {
    let standbys = deployment.standbys.iter();
    let here = standbys.filter(|(_, workers)| workers.contains(&me));
    here.map(|(task, _)| *task).collect()
}

/// The tasks with state of the job's next division that a worker is to run, or to stand by for.
pub fn successors_here(deployment: &Deployment, me: NodeId) -> BTreeSet<TaskId> {
    let Some(next) = &deployment.next else {
        return BTreeSet::new();
    };
    let run = next
        .tasks
        .iter()
        .filter(|assignment| assignment.worker == me);
    let stood_by = next
        .standbys
        .iter()
        .filter(|(_, workers)| workers.contains(&me));
    let here = run
        .map(|assignment| assignment.task)
        .chain(stood_by.map(|(task, _)| *task));
    here.filter(|task| next.graph.stage(task.stage).has_state())
        .collect()
}

/// Whether a task of the next division is to run on a worker.
pub fn is_to_run_here(deployment: &Deployment, me: NodeId, task: TaskId) -> bool {
    let tasks = deployment.next.iter().flat_map(|next| &next.tasks);
    let mut here = tasks.filter(|assignment| assignment.worker == me);
    here.any(|assignment| assignment.task == task)
}

#[cfg(test)]
mod tests {
    use common::ids::{JobName, MetadataVersion, StageId};
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
            savepoint: None,
            graph: TaskGraph::default(),
            tasks: vec![TaskAssignment {
                task,
                worker: NodeId(worker),
            }],
            standbys: BTreeMap::new(),
            next: None,
            still: false,
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
            .map(|(j, g)| (JobId(*j), (Generation(*g), WorkerEpoch(10))))
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
    fn what_another_generation_has_completed_is_not_told_to_this_one() {
        let mut image = image(1, 2, 20, 1);
        let completed = |image: &MetadataImage, job, generation| {
            completed(image, JobId(job), Generation(generation))
        };
        assert_eq!(completed(&image, 1, 2), None);
        let facts = image.jobs.get_mut(&JobId(1)).unwrap();
        facts.completed = Some(CheckpointId(7));
        assert_eq!(completed(&image, 1, 2), Some(CheckpointId(7)));
        assert_eq!(completed(&image, 1, 1), None);
        assert_eq!(completed(&image, 2, 2), None);
    }

    #[test]
    fn tasks_of_other_workers_and_of_a_former_life_are_not_started() {
        assert!(compare(&image(1, 2, 20, 2), &[], &[]).start.is_empty());
        assert!(compare(&image(1, 2, 9, 1), &[], &[]).start.is_empty());
    }

    #[test]
    fn a_standby_takes_part_in_whichever_life() {
        let mut image = image(1, 2, 9, 2);
        let deployment = image.deployments.get_mut(&JobId(1)).unwrap();
        let task = deployment.tasks[0].task;
        Arc::make_mut(deployment).standbys = [(task, vec![NodeId(1)])].into();
        let started = compare(&image, &[], &[]).start;
        assert_eq!(started[0].generation, Generation(2));
        assert!(tasks_here(&started[0], NodeId(1), WorkerEpoch(10)).is_empty());
        // Its tasks ran in this generation, until the worker was taken for dead.
        let running = [(JobId(1), (Generation(2), WorkerEpoch(5)))].into();
        let changes = changes(
            &image,
            NodeId(1),
            WorkerEpoch(10),
            &running,
            &BTreeSet::new(),
        );
        assert_eq!((changes.stop.len(), changes.start.len()), (1, 1));
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
