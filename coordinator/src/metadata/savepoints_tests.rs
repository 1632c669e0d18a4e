//! A job goes on from a savepoint, and makes them one at a time.

use common::error::ErrorCode;
use common::ids::{CheckpointId, JobId};
use common::limits::SAVEPOINT_HISTORY;
use common::protocol::job::JobState;
use uuid::Uuid;

use super::command::{Command, Outcome, Rejection};
use super::jobs::Desired;
use super::savepoints::SavepointOutcome;
use super::test_history::{
    History, SAVED_AT, complete, counts, create_job, end, location, restored, task,
};

fn restore(history: &mut History, job: JobId) -> Result<Outcome, Rejection> {
    let generation = history.metadata.job(job).unwrap().generation;
    history.command(Command::RestoreJob {
        job,
        generation,
        restored: restored(),
    })
}

#[test]
fn a_job_begins_with_the_state_of_a_savepoint_until_workers_have_it() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let Command::CreateJob {
        spec,
        job_graph,
        graph,
        checkpoint_interval,
        restored: _,
    } = create_job("copy")
    else {
        unreachable!("it creates a job");
    };
    let created = history.command(Command::CreateJob {
        spec,
        job_graph,
        graph,
        checkpoint_interval,
        restored: Some(restored()),
    });
    let Ok(Outcome::JobCreated(job)) = created else {
        panic!("it was refused: {created:?}");
    };
    // Also the second time: whoever began may have been lost before anything was complete.
    for _ in 0..2 {
        history.start(job, worker);
        let row = history.metadata.job(job).unwrap();
        let deployment = row.deployment.as_ref().unwrap();
        assert_eq!(deployment.restore, Some(CheckpointId(SAVED_AT)));
        assert_eq!(deployment.savepoint, Some(restored().from.clone()));
        assert!(row.holders.is_empty());
    }
    let generation = history.metadata.job(job).unwrap().generation;
    let reserved = history.command(Command::ReserveEpochs { job, generation });
    let Ok(Outcome::EpochsReserved { first, .. }) = reserved else {
        panic!("it was refused: {reserved:?}");
    };
    assert_eq!(first, CheckpointId(SAVED_AT + 1), "numbers grow strictly");
    history
        .command(complete(job, generation, first.0, worker))
        .unwrap();
    let row = history.metadata.job(job).unwrap();
    assert_eq!((row.restored.as_ref(), row.holders.len()), (None, 2));
    assert_eq!(row.counts[&task(1)], counts(50, 1).plus(counts(first.0, 1)));
    history.start(job, worker);
    let row = history.metadata.job(job).unwrap();
    assert_eq!(row.deployment.as_ref().unwrap().savepoint, None);
}

#[test]
fn a_restored_job_counts_the_savepoint_above_every_number_it_ever_used() {
    let mut history = History::announced();
    let (worker, _) = history.active_worker(10);
    let job = history.job("counts");
    let first = history.start(job, worker);
    let generation = first;
    history
        .command(Command::ReserveEpochs { job, generation })
        .unwrap();
    history
        .command(complete(job, generation, 20, worker))
        .unwrap();
    let refused = restore(&mut history, job);
    assert!(
        matches!(refused, Err(Rejection::NotAtRest { .. })),
        "it runs"
    );
    history
        .command(end(job, generation, JobState::Failed, Some("lost")))
        .unwrap();
    let stale = history.command(Command::RestoreJob {
        job,
        generation,
        restored: restored(),
    });
    assert!(matches!(stale, Err(Rejection::FencedGeneration { .. })));
    let before = history.metadata.job(job).unwrap().clone();
    restore(&mut history, job).unwrap();
    let row = history.metadata.job(job).unwrap().clone();
    let at = before.reserved.next();
    assert_eq!((row.completed, row.reserved), (Some(at), at));
    assert_eq!((row.desired, row.holders.len()), (Desired::Running, 0));
    assert_eq!(row.state, JobState::Waiting);
    assert!(
        row.reason.contains("file:///savepoints/one"),
        "{}",
        row.reason
    );
    // What was committed stays, what was not is undone, and nothing of it is taken for what was restored.
    let image = row.image();
    assert_eq!(image.counts(first, CheckpointId(20)), Some(true));
    assert_eq!(image.counts(first, CheckpointId(21)), Some(false));
    assert_eq!(image.counts(first, at), Some(false));
    let next = history.start(job, worker);
    let row = history.metadata.job(job).unwrap();
    assert_eq!(row.deployment.as_ref().unwrap().restore, Some(at));
    assert_eq!(row.image().counts(first, at), Some(false));
    assert_eq!(row.image().counts(next, at), Some(true));
}

#[test]
fn one_savepoint_of_a_job_is_made_at_a_time_and_the_list_is_bounded() {
    let mut history = History::announced();
    let job = history.job("counts");
    let begin = |id: u128| Command::BeginSavepoint {
        job,
        id: Uuid::from_u128(id),
        location: location(),
        archive: false,
    };
    let fail = |id: u128| Command::EndSavepoint {
        job,
        id: Uuid::from_u128(id),
        outcome: SavepointOutcome::Failed {
            code: ErrorCode::Timeout,
            reason: "late".to_owned(),
        },
    };
    let last = SAVEPOINT_HISTORY as u128 + 5;
    for id in 0..last {
        history.command(begin(id)).unwrap();
        let other = history.command(begin(1_000 + id));
        assert!(matches!(other, Err(Rejection::SavepointUnderWay { .. })));
        history.command(fail(id)).unwrap();
        let again = history.command(fail(id));
        assert!(matches!(again, Err(Rejection::NoSavepoint { .. })));
    }
    let row = history.metadata.job(job).unwrap();
    assert_eq!(row.savepoints.len(), SAVEPOINT_HISTORY);
    assert_eq!(row.savepoints.back().unwrap().id, Uuid::from_u128(last - 1));
    assert!(row.savepoint_under_way().is_none());
}
