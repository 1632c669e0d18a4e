//! What a store gives to a savepoint, taken by another one, is the state it had at that checkpoint; under whatever
//! number, and whatever happens on the way.

use std::collections::BTreeSet;

use common::ids::{CheckpointId, Generation, TaskId};
use common::protocol::savepoint::SavePosition;
use common::savepoint::ObjectOf;
use common::time::{Span, Tick};
use proptest::prelude::*;

use super::saving::SavedPiece;
use super::state_error::StateError;
use super::state_store::JobStateStore;
use super::state_store_tests::{Disk, Job, Map, contents, task};

/// The objects of a task's state, each of about so many bytes.
fn saved(job: &Job, of: TaskId, room: usize) -> Result<Vec<SavedPiece>, StateError> {
    let at = job.completed.unwrap();
    let mut pieces: Vec<SavedPiece> = Vec::new();
    let mut position = Some(SavePosition::Start);
    while let Some(next) = position {
        let piece = job
            .store()
            .save(Tick(0), of, at, next, &job.history(), room)?;
        position = piece.next;
        pieces.push(piece);
    }
    Ok(pieces)
}

/// What another store makes of them, as the state at this checkpoint.
fn restored(
    store: &JobStateStore,
    pieces: &[SavedPiece],
    from: CheckpointId,
    at: CheckpointId,
) -> Map {
    let mut restoring = store.begin_restore(task(0), from).unwrap();
    for piece in pieces {
        restoring.add(piece.of, &piece.bytes).unwrap();
    }
    assert!(!store.is_restored(task(0), at));
    store.finish_restore(restoring, at).unwrap();
    assert!(store.is_restored(task(0), at));
    read(store, at)
}

fn read(store: &JobStateStore, at: CheckpointId) -> Map {
    let nothing_counts = |_, _| Some(false);
    let spilling = BTreeSet::new();
    let restored = store.restore(Generation(1), task(0), Some(at), &nothing_counts, &spilling);
    contents(&restored.unwrap().tables)
}

/// With a base file and chunks after it, as many as there are checkpoints after the last fold.
fn job(rounds: u8, folded: u8) -> Job {
    let mut job = Job::new(1);
    for round in 0..rounds {
        for key in 0..20_u8 {
            job.put(
                0,
                round % 3,
                i64::from(key % 2),
                &[key, round % 5],
                &[round; 30],
            );
        }
        job.delete(0, (round + 1) % 3, 0, &[round, round % 5]);
        job.checkpoint();
        if round < folded {
            job.fold().unwrap();
        }
    }
    job
}

#[test]
fn a_base_file_and_what_follows_it_go_in_objects_and_come_back() {
    for (rounds, folded) in [(9, 6), (9, 9), (3, 0), (1, 0)] {
        let job = job(rounds, folded);
        for room in [1, 700, 1 << 20] {
            let pieces = saved(&job, task(0), room).unwrap();
            let names: BTreeSet<&String> = pieces.iter().map(|piece| &piece.name).collect();
            assert_eq!(names.len(), pieces.len(), "every object has its own name");
            let has_base = pieces
                .iter()
                .any(|piece| matches!(piece.of, ObjectOf::Base { .. }));
            assert_eq!(has_base, folded > 0);
            let other = Disk::new();
            let (from, at) = (job.completed.unwrap(), CheckpointId(1_000));
            let state = restored(&other.open(), &pieces, from, at);
            assert_eq!(state, job.at_completed[0]);
            // After a crash it is still there, and nothing is left of what was fetched.
            assert_eq!(read(&other.open(), at), job.at_completed[0]);
        }
    }
}

#[test]
fn what_is_being_saved_stays_while_the_job_goes_on() {
    let mut job = job(9, 6);
    let (at, expected) = (job.completed.unwrap(), job.at_completed[0].clone());
    let history = job.history();
    let mut next = SavePosition::Start;
    let mut pieces = Vec::new();
    for round in 0_u8.. {
        let piece = job.store().save(Tick(0), task(0), at, next, &history, 500);
        let piece = piece.unwrap();
        let after = piece.next;
        pieces.push(piece);
        let Some(after) = after else { break };
        next = after;
        // Base files take each other's place, and the log lets go of what is in them.
        for key in 0..100 {
            job.put(0, 0, 0, &[key], &[round; 100]);
        }
        job.checkpoint();
        job.fold().unwrap();
    }
    assert!(pieces.len() > 3);
    let other = Disk::new();
    assert_eq!(restored(&other.open(), &pieces, at, at), expected);
    // Nobody has asked for so long that nobody will.
    job.store().end_loans(Tick(0).plus(Span::from_secs(60)));
    job.checkpoint();
    job.fold().unwrap();
    let gone = job
        .store()
        .save(Tick(0), task(0), at, SavePosition::Start, &history, 500);
    assert!(matches!(gone, Err(StateError::Lost { .. })), "{gone:?}");
}

#[test]
fn what_has_to_wait_for_its_turn_is_kept_until_then() {
    let mut job = job(9, 6);
    let (at, expected) = (job.completed.unwrap(), job.at_completed[0].clone());
    job.store().keep(Tick(0), task(0), at);
    for round in 0..10_u8 {
        for key in 0..100 {
            job.put(0, 0, 0, &[key], &[round; 100]);
        }
        job.checkpoint();
        job.fold().unwrap();
    }
    assert!(job.store().base_at(task(0)) > Some(at));
    let newest = job.completed.replace(at);
    let pieces = saved(&job, task(0), 500).unwrap();
    job.completed = newest;
    let other = Disk::new();
    assert_eq!(restored(&other.open(), &pieces, at, at), expected);
}

#[test]
fn what_is_damaged_on_the_way_is_not_taken() {
    let job = job(9, 6);
    let pieces = saved(&job, task(0), 700).unwrap();
    let from = job.completed.unwrap();
    for damaged in 0..pieces.len() {
        let disk = Disk::new();
        let store = disk.open();
        let mut restoring = store.begin_restore(task(0), from).unwrap();
        let mut refused = false;
        for (index, piece) in pieces.iter().enumerate() {
            let mut bytes = piece.bytes.to_vec();
            if index == damaged {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x20;
            }
            let added = restoring.add(piece.of, &bytes.into());
            refused |= added.is_err();
            if refused {
                break;
            }
        }
        refused = refused
            || store
                .finish_restore(restoring, CheckpointId(1_000))
                .is_err();
        assert!(refused, "piece {damaged}");
        assert!(!store.is_restored(task(0), CheckpointId(1_000)));
    }
}

#[test]
fn what_is_missing_is_not_read_over() {
    let job = job(9, 6);
    let pieces = saved(&job, task(0), 700).unwrap();
    let from = job.completed.unwrap();
    for missing in 0..pieces.len() {
        let disk = Disk::new();
        let store = disk.open();
        let mut restoring = store.begin_restore(task(0), from).unwrap();
        let others = pieces
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != missing);
        let added = others
            .map(|(_, piece)| restoring.add(piece.of, &piece.bytes))
            .collect::<Result<Vec<()>, _>>();
        let finished = added.and_then(|_| store.finish_restore(restoring, CheckpointId(1_000)));
        assert!(finished.is_err(), "piece {missing} of {}", pieces.len());
    }
}

#[test]
fn a_restore_that_was_cut_short_begins_anew() {
    let job = job(9, 6);
    let pieces = saved(&job, task(0), 700).unwrap();
    let from = job.completed.unwrap();
    let disk = Disk::new();
    let store = disk.open();
    let mut cut_short = store.begin_restore(task(0), from).unwrap();
    for piece in &pieces[..pieces.len() / 2] {
        cut_short.add(piece.of, &piece.bytes).unwrap();
    }
    drop((cut_short, store));
    let state = restored(&disk.open(), &pieces, from, CheckpointId(1_000));
    assert_eq!(state, job.at_completed[0]);
}

#[test]
fn a_restored_job_goes_on_and_nothing_of_its_own_past_comes_back() {
    let old = job(9, 6);
    let pieces = saved(&old, task(0), 700).unwrap();
    let from = old.completed.unwrap();
    // The same worker has gone further, with checkpoints that count and one that does not.
    let mut ahead = job(14, 10);
    ahead.put(0, 0, 0, b"sealed", b"not completed");
    ahead.persist();
    let at = CheckpointId(1_000);
    ahead.finals.insert(ahead.generation, ahead.completed);
    let mut restoring = ahead.store().begin_restore(task(0), from).unwrap();
    for piece in &pieces {
        restoring.add(piece.of, &piece.bytes).unwrap();
    }
    ahead.store().finish_restore(restoring, at).unwrap();
    ahead.generation = ahead.generation.next();
    ahead.completed = Some(at);
    ahead.next = at.next();
    ahead.at_completed = vec![old.at_completed[0].clone()];
    // Each begins with the restored state, which is compared, and adds to it.
    ahead.start();
    ahead.put(0, 2, 0, b"new", b"after");
    ahead.checkpoint();
    ahead.restart();
    ahead.fold().unwrap();
    ahead.restart();
    ahead.disk.view.wipe();
    ahead.restart();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_state_comes_back_in_objects_of_any_size(
        rounds in 1_u8..16,
        folded in 0_u8..16,
        room in 1_usize..5_000,
        number in 1_u64..2_000,
    ) {
        let job = job(rounds, folded);
        let pieces = saved(&job, task(0), room).unwrap();
        let other = Disk::new();
        let (from, at) = (job.completed.unwrap(), CheckpointId(number));
        let state = restored(&other.open(), &pieces, from, at);
        prop_assert_eq!(&state, &job.at_completed[0]);
    }
}
