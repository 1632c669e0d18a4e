//! Who begins a generation does not wait for what is done behind the job's back.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use bytes::Bytes;
use common::kv::{KvError, KvStore, Visit};

use super::state_error::StateError;
use super::state_store_tests::{Job, OPTIONS, task};

const KEYS: u8 = 200;

/// A store whose first write takes until somebody lets it go on.
#[derive(Debug)]
struct Slow {
    store: Arc<dyn KvStore>,
    writes: AtomicUsize,
    begun: Barrier,
    goes_on: Barrier,
}

impl KvStore for Slow {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.store.get(key)
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, KvError> {
        if self.writes.fetch_add(1, Ordering::SeqCst) == 0 {
            self.begun.wait();
            self.goes_on.wait();
        }
        self.store.put(key, value)
    }

    fn delete(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.store.delete(key)
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, visit: &mut Visit<'_>) -> Result<(), KvError> {
        self.store.scan(start, end, visit)
    }

    fn flush(&self) -> Result<(), KvError> {
        self.store.flush()
    }
}

#[test]
fn a_fold_is_cut_short_by_the_next_generation_and_done_later() {
    let mut job = Job::new(1);
    for key in 0..KEYS {
        job.put(0, 0, 0, &[key], &[7; 20]);
    }
    job.checkpoint();
    let slow = Arc::new(Slow {
        store: Arc::new(job.disk.view.clone()),
        writes: AtomicUsize::new(0),
        begun: Barrier::new(2),
        goes_on: Barrier::new(2),
    });
    job.store = None;
    job.store = Some(job.disk.open_viewing(OPTIONS, slow.clone()));
    job.start();

    let (store, completed) = (job.store(), job.completed.unwrap());
    let history = job.history();
    let folded = thread::scope(|scope| {
        let fold =
            scope.spawn(|| store.fold(completed, &BTreeSet::new(), &BTreeSet::new(), &history));
        slow.begun.wait();
        scope.spawn(|| store.keep_only(&BTreeSet::from([task(0)])));
        while store.folding.give_way().is_ok() {
            thread::yield_now();
        }
        slow.goes_on.wait();
        fold.join().unwrap()
    });
    assert!(matches!(folded, Err(StateError::CutShort)), "{folded:?}");
    assert!(slow.writes.load(Ordering::SeqCst) < usize::from(KEYS));

    job.start();
    job.fold().unwrap();
    assert!(slow.writes.load(Ordering::SeqCst) > usize::from(KEYS));
    job.restart();
}
