//! Who begins a generation does not wait for what is done behind the job's back.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use common::protocol::standby::{PieceOf, StandbyPosition};
use common::time::Tick;

use super::folding::{Purpose, Purposes};
use super::state_error::StateError;
use super::state_store_tests::{Disk, Job, OPTIONS, task};
use super::task_turns::TaskTurns;

const KEYS: u8 = 200;

#[test]
fn a_fold_is_cut_short_by_the_next_generation_and_done_later() {
    let mut job = Job::new(1);
    for key in 0..KEYS {
        job.put(0, 0, 0, &[key], &[7; 20]);
    }
    job.checkpoint();
    // The first write takes until somebody lets it go on.
    let writes = Arc::new(AtomicUsize::new(0));
    let (begun, goes_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let first_is_slow = {
        let (writes, begun, goes_on) = (writes.clone(), begun.clone(), goes_on.clone());
        move || {
            if writes.fetch_add(1, Ordering::SeqCst) == 0 {
                begun.wait();
                goes_on.wait();
            }
        }
    };
    job.store = None;
    job.store = Some(job.disk.open_watched(OPTIONS, first_is_slow));
    job.start();

    let (store, completed) = (job.store(), job.completed.unwrap());
    let history = job.history();
    let folded = thread::scope(|scope| {
        let fold = scope.spawn(|| store.fold(completed, &Purposes::new(), &history));
        begun.wait();
        scope.spawn(|| store.keep_only(&BTreeSet::from([task(0)])));
        while store.folding.give_way().is_ok() {
            thread::yield_now();
        }
        goes_on.wait();
        fold.join().unwrap()
    });
    assert!(matches!(folded, Err(StateError::CutShort)), "{folded:?}");
    assert!(writes.load(Ordering::SeqCst) < usize::from(KEYS));

    job.start();
    job.fold().unwrap();
    assert!(writes.load(Ordering::SeqCst) > usize::from(KEYS));
    job.restart();
}

/// The next generation waited until a base file was written, however large it was.
#[test]
fn writing_a_base_file_is_cut_short_too() {
    let mut job = Job::new(1);
    for key in 0..1 << 14 {
        job.put(0, 0, 0, &u32::to_be_bytes(key), &[7; 100]);
    }
    job.checkpoint();
    let (store, completed) = (job.store(), job.completed.unwrap());
    let counts = job.history();
    let is_waited_for = || store.folding.give_way().is_err();
    // Asked right before it is written.
    let history = |generation, checkpoint| {
        while !is_waited_for() {
            thread::yield_now();
        }
        counts(generation, checkpoint)
    };
    let of_job = BTreeSet::from([task(0)]);
    let copied = Purposes::from([(task(0), Purpose::IsCopied)]);
    let folded = thread::scope(|scope| {
        let fold = scope.spawn(|| store.fold(completed, &copied, &history));
        while store.folding.is_free() {
            thread::yield_now();
        }
        scope.spawn(|| store.keep_only(&of_job));
        fold.join().unwrap()
    });
    assert!(matches!(folded, Err(StateError::CutShort)), "{folded:?}");
    assert!(job.disk.base_files(task(0)).is_empty());

    job.start();
    job.fold().unwrap();
    assert!(!job.disk.base_files(task(0)).is_empty());
    job.restart();
}

/// A fold waited for a successor's, and the next generation for the fold.
#[test]
fn a_fold_does_not_wait_for_who_writes_the_base_file() {
    let mut job = Job::new(1);
    for key in 0..KEYS {
        job.put(0, 0, 0, &[key], &[7; 20]);
    }
    job.checkpoint();
    let copied = Purposes::from([(task(0), Purpose::IsCopied)]);
    let (store, completed) = (job.store(), job.completed.unwrap());
    let turn = store.writing_bases.take(task(0));
    let folded = store.fold(completed, &copied, &job.history());
    folded.unwrap();
    assert!(job.disk.base_files(task(0)).is_empty());
    // There is nothing to make a view of yet.
    let viewed = job.fold();
    assert!(
        matches!(viewed, Err(StateError::InUse { .. })),
        "{viewed:?}"
    );

    drop(turn);
    job.fold().unwrap();
    assert!(!job.disk.base_files(task(0)).is_empty());
    job.restart();
}

/// It waited for a successor's, which may be large, and everything that was kept of its worker with it.
#[test]
fn what_is_kept_does_not_wait_for_who_writes_the_base_file_of_another_task() {
    let mut job = Job::new(2);
    for key in 0..KEYS {
        job.put(0, 0, 0, &[key], &[7; 20]);
    }
    job.checkpoint();
    job.fold().unwrap();
    let position = StandbyPosition {
        task: task(0),
        after: None,
        records: 0,
        base: None,
    };
    let store = job.store();
    let lent = store.lend(
        Tick(0),
        job.generation,
        position,
        &job.history(),
        usize::MAX,
    );
    let (PieceOf::Base { at, length }, bytes) = &lent.unwrap()[0] else {
        panic!("its chunks are in a base file");
    };

    let disk = Disk::new();
    let copy = disk.open();
    let _turn = copy.writing_bases.take(task(1));
    assert!(copy.writing_bases.try_take(task(1)).is_none());
    copy.keep_base(task(0), *at, *length, bytes).unwrap();
    assert_eq!(copy.base_at(task(0)), Some(at.checkpoint));
}

#[test]
fn a_turn_is_of_one_task_and_given_back() {
    let turns = TaskTurns::default();
    let turn = turns.take(task(0));
    assert!(turns.try_take(task(0)).is_none());
    assert!(
        turns.try_take(task(0)).is_none(),
        "asking takes it from nobody"
    );
    assert!(turns.try_take(task(1)).is_some());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| drop(turns.take(task(0))));
        drop(turn);
        waiting.join().unwrap();
    });
    assert!(turns.try_take(task(0)).is_some());
}
