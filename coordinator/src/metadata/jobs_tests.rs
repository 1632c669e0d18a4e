//! A job's life: its generations, its checkpoints and what they count, and its end.

use std::sync::Arc;

use common::ids::{CheckpointId, Generation, JobId, MetadataVersion, NodeId};
use common::limits::POSITIONS_HISTORY;
use common::plan::task_graph::{PlannedSource, TaskGraph};
use common::protocol::job::JobState;
use common::time::Span;

use super::command::{Command, Outcome, Rejection};
use super::jobs::Desired;
use super::test_history::{History, complete, counts, create_job, end, start_generation, task};

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

/// A job that reads a topic, and the generation that runs it.
fn reader(history: &mut History, worker: NodeId) -> (JobId, Generation) {
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
    (job, generation)
}

/// Where the job may read again from, as workers are told with this checkpoint.
fn told(
    history: &mut History,
    (job, generation): (JobId, Generation),
    checkpoint: u64,
    position: i64,
) -> Option<Vec<(u32, i64)>> {
    let worker = NodeId(1);
    let Command::EpochCompleted(mut completed) = complete(job, generation, checkpoint, worker)
    else {
        unreachable!("it completes a checkpoint");
    };
    let splits = [("0".to_owned(), position), ("1".to_owned(), 7)];
    completed.positions = [(task(0), splits.into())].into();
    let before = history.metadata.version();
    history.command(Command::EpochCompleted(completed)).unwrap();
    let delta = history.metadata.delta_since(before);
    let holds = delta.holds.first()?;
    let positions = holds.positions.values().flatten();
    Some(positions.map(|(p, o)| (p.0, o.0)).collect())
}

#[test]
fn what_a_job_has_yet_to_read_is_told_once_a_minute_until_it_is_over() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let running = reader(&mut history, worker);
    let first = told(&mut history, running, 1, 10);
    assert_eq!(first, Some(vec![(0, 10), (1, 7)]));
    // A second passes with each.
    for checkpoint in 2..=60 {
        assert_eq!(told(&mut history, running, checkpoint, 20), None);
    }
    let next = told(&mut history, running, 61, 30);
    assert_eq!(next, Some(vec![(0, 30), (1, 7)]));
    let before = history.metadata.version();
    let over = end(running.0, running.1, JobState::Cancelled, None);
    history.command(over).unwrap();
    let delta = history.metadata.delta_since(before);
    assert!(delta.holds[0].positions.is_empty());
}

/// It was told again only once the right time had come to where the wrong one was, and nothing was held until then.
#[test]
fn what_a_job_has_yet_to_read_is_told_again_when_the_clock_is_set_back() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let running = reader(&mut history, worker);
    history.ahead = Span::from_secs(365 * 24 * 3_600);
    assert!(told(&mut history, running, 1, 10).is_some());
    history.ahead = Span(0);
    assert!(told(&mut history, running, 2, 20).is_some());
    assert_eq!(told(&mut history, running, 3, 30), None);
}
