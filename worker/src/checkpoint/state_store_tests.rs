//! State comes back exactly as it was at the checkpoint, whatever happened to process, disk and view.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use common::ids::{CheckpointId, Generation, StageId, TaskId};
use common::kv::{KvError, KvStore, MemoryStore, Visit};
use common::random::{Random, below, seeded};
use common::seglog::memory::MemoryStorage;
use common::time::ManualClock;
use proptest::prelude::*;
use tempfile::TempDir;

use super::chunk::TaskChunk;
use super::folding::Purposes;
use super::state_error::StateError;
use super::state_store::{JobStateStore, StoreOptions, TaskTables, ViewPlace};
use crate::keyed_state::section::TableId;
use crate::keyed_state::table::{At, Table};

pub(super) const OPTIONS: StoreOptions = StoreOptions {
    key_groups: 8,
    view_cache_bytes: 1 << 20,
    resident_bytes: 1 << 20,
    fold_every: 2,
    fold_bytes: 1 << 20,
    base_after_bytes: 600,
    log_bytes: 4_000,
    step_bytes: 1_000,
};

/// Table number, namespace, key → value.
pub(crate) type Map = BTreeMap<(u8, i64, Vec<u8>), Vec<u8>>;

pub(crate) fn task(index: u32) -> TaskId {
    TaskId {
        stage: StageId(1),
        index,
    }
}

fn table_id(number: u8) -> TableId {
    TableId {
        operator: format!("operator {number}"),
        table: "counts".to_owned(),
    }
}

/// No operator's state is larger than memory.
fn whole() -> BTreeSet<String> {
    BTreeSet::new()
}

pub(crate) fn contents(tables: &TaskTables) -> Map {
    let mut map = Map::new();
    for (id, table) in tables {
        let number = id.operator.as_bytes().last().unwrap() - b'0';
        for (namespace, key, value) in table.entries(At::Live).unwrap() {
            map.insert((number, namespace, key.to_vec()), value.to_vec());
        }
    }
    map
}

/// The disk of a worker, as simulated as can be.
pub(crate) struct Disk {
    directory: TempDir,
    pub(crate) deltas: MemoryStorage,
    pub(crate) view: MemoryStore,
}

impl Disk {
    pub(crate) fn new() -> Disk {
        Disk {
            directory: tempfile::tempdir().unwrap(),
            deltas: MemoryStorage::new(Arc::new(ManualClock::default())),
            view: MemoryStore::new(),
        }
    }

    pub(crate) fn open(&self) -> JobStateStore {
        self.open_with(OPTIONS)
    }

    pub(super) fn open_with(&self, options: StoreOptions) -> JobStateStore {
        self.open_watched(options, || {})
    }

    /// `before_put` is called before each write to the view.
    pub(super) fn open_watched(
        &self,
        options: StoreOptions,
        before_put: impl Fn() + Send + Sync + 'static,
    ) -> JobStateStore {
        let view: Arc<dyn KvStore> = Arc::new(WatchedStore {
            store: self.view.clone(),
            before_put,
        });
        let thrown_away = self.view.clone();
        let place = ViewPlace {
            open: Box::new(move || Ok(Arc::clone(&view))),
            set_aside: Box::new(move || {
                thrown_away.wipe();
                Ok(())
            }),
        };
        let directory = self.directory.path();
        JobStateStore::assemble(directory, options, self.deltas.shared(), place).unwrap()
    }

    pub(crate) fn base_files(&self, task: TaskId) -> Vec<PathBuf> {
        let directory = self.directory.path().join(task.to_string());
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

/// A store whose writer is watched, or held.
struct WatchedStore<F> {
    store: MemoryStore,
    before_put: F,
}

impl<F> fmt::Debug for WatchedStore<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

impl<F: Fn() + Send + Sync> KvStore for WatchedStore<F> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.store.get(key)
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, KvError> {
        (self.before_put)();
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

/// A job of some tasks on one worker, next to a plain map of what each should have.
pub(crate) struct Job {
    pub(crate) disk: Disk,
    /// Empty only while it is opened anew.
    pub(crate) store: Option<JobStateStore>,
    pub(crate) generation: Generation,
    pub(crate) next: CheckpointId,
    pub(crate) completed: Option<CheckpointId>,
    pub(crate) finals: BTreeMap<Generation, Option<CheckpointId>>,
    pub(crate) tasks: Vec<(TaskTables, Map)>,
    /// What each task had at the completed checkpoint.
    pub(crate) at_completed: Vec<Map>,
}

impl Job {
    pub(crate) fn new(tasks: usize) -> Job {
        let disk = Disk::new();
        let mut job = Job {
            store: Some(disk.open()),
            disk,
            generation: Generation(0),
            next: CheckpointId(1),
            completed: None,
            finals: BTreeMap::new(),
            tasks: Vec::new(),
            at_completed: vec![Map::new(); tasks],
        };
        job.start();
        job
    }

    /// What the metadata says of the past.
    pub(crate) fn history(&self) -> impl Fn(Generation, CheckpointId) -> Option<bool> + use<> {
        let (current, completed, finals) = (self.generation, self.completed, self.finals.clone());
        move |generation, checkpoint| {
            if generation == current {
                (Some(checkpoint) <= completed).then_some(true)
            } else {
                Some(
                    finals
                        .get(&generation)
                        .is_some_and(|last| Some(checkpoint) <= *last),
                )
            }
        }
    }

    /// Begins a new generation from the last completed checkpoint, and checks that its state is there.
    pub(crate) fn start(&mut self) {
        self.finals.insert(self.generation, self.completed);
        self.generation = self.generation.next();
        let history = self.history();
        let mut tasks = Vec::new();
        for (index, expected) in (0..).zip(&self.at_completed) {
            let restored = self
                .store()
                .restore(
                    self.generation,
                    task(index),
                    self.completed,
                    &history,
                    &whole(),
                )
                .unwrap()
                .tables;
            assert_eq!(&contents(&restored), expected, "task {index}");
            tasks.push((restored, expected.clone()));
        }
        self.tasks = tasks;
    }

    pub(crate) fn put(
        &mut self,
        index: usize,
        table: u8,
        namespace: i64,
        key: &[u8],
        value: &[u8],
    ) {
        let (tables, map) = &mut self.tasks[index];
        tables
            .entry(table_id(table))
            .or_default()
            .put(namespace, key, value);
        map.insert((table, namespace, key.to_vec()), value.to_vec());
    }

    pub(crate) fn delete(&mut self, index: usize, table: u8, namespace: i64, key: &[u8]) {
        let (tables, map) = &mut self.tasks[index];
        tables
            .entry(table_id(table))
            .or_default()
            .delete(namespace, key);
        map.remove(&(table, namespace, key.to_vec()));
    }

    pub(crate) fn clear(&mut self, index: usize, table: u8, namespace: i64) {
        let (tables, map) = &mut self.tasks[index];
        tables
            .entry(table_id(table))
            .or_default()
            .clear_namespace(namespace);
        map.retain(|(t, n, _), _| (*t, *n) != (table, namespace));
    }

    fn seal(&mut self) -> (CheckpointId, Vec<TaskChunk>) {
        let checkpoint = self.next;
        self.next = self.next.next();
        let chunk = |(index, (tables, _)): (u32, &mut (TaskTables, Map))| {
            tables.values_mut().for_each(|table| table.seal(checkpoint));
            let changed =
                |(id, table): (&TableId, &Table)| Some((id.clone(), table.delta(checkpoint)?));
            TaskChunk {
                task: task(index),
                checkpoint,
                tables: tables.iter().filter_map(changed).collect(),
            }
        };
        let chunks = (0..).zip(&mut self.tasks).map(chunk).collect();
        (checkpoint, chunks)
    }

    pub(crate) fn persist(&mut self) -> CheckpointId {
        let (checkpoint, chunks) = self.seal();
        let bytes = self.store().persist(self.generation, chunks).unwrap();
        assert_eq!(bytes.len(), self.tasks.len());
        checkpoint
    }

    pub(crate) fn complete(&mut self, checkpoint: CheckpointId) {
        self.completed = Some(checkpoint);
        for ((tables, map), at_completed) in self.tasks.iter_mut().zip(&mut self.at_completed) {
            tables
                .values_mut()
                .for_each(|table| table.complete(checkpoint));
            at_completed.clone_from(map);
        }
    }

    pub(crate) fn checkpoint(&mut self) {
        let checkpoint = self.persist();
        self.complete(checkpoint);
    }

    pub(crate) fn fold(&self) -> Result<(), StateError> {
        match self.completed {
            Some(completed) => self
                .store()
                .fold(completed, &Purposes::new(), &self.history())
                .map(drop),
            None => Ok(()),
        }
    }

    /// The process ends and another begins.
    pub(crate) fn restart(&mut self) {
        self.reopen();
        self.start();
    }

    pub(crate) fn reopen(&mut self) {
        self.store = None;
        self.store = Some(self.disk.open());
    }

    pub(crate) fn store(&self) -> &JobStateStore {
        self.store.as_ref().expect("it is open")
    }

    pub(crate) fn lose_power(&mut self, random: &mut Random) {
        self.disk.deltas.lose_power(random);
        self.disk.view.lose_unflushed(random);
        self.restart();
    }
}

/// A job whose tasks have something in view, base file and chunks.
fn job_with_everything() -> Job {
    let mut job = Job::new(2);
    for round in 0..30_u8 {
        for index in 0..2 {
            job.put(
                index,
                round % 3,
                i64::from(round / 4) * 1_000,
                &[round % 7],
                &[round; 40],
            );
            job.delete(
                index,
                (round + 1) % 3,
                i64::from(round / 8) * 1_000,
                &[round % 5],
            );
            if round % 10 == 9 {
                job.clear(index, 1, i64::from(round / 10) * 1_000);
            }
        }
        job.checkpoint();
        if round < 27 {
            job.fold().unwrap();
        }
    }
    assert!(!job.disk.base_files(task(0)).is_empty());
    job
}

#[test]
fn a_restart_finds_what_was_there_at_the_completed_checkpoint() {
    let mut job = job_with_everything();
    job.put(0, 0, 0, b"not sealed", b"");
    job.restart();
    job.put(0, 0, 0, b"sealed, not completed", b"");
    job.persist();
    job.restart();
    job.checkpoint();
    job.restart();
}

#[test]
fn without_the_view_the_same_state_comes_from_base_file_and_chunks() {
    let mut job = job_with_everything();
    job.disk.view.wipe();
    job.restart();
    job.disk.view.damage();
    job.restart();
    job.fold().unwrap();
    job.restart();
}

#[test]
fn a_view_that_lost_or_changed_an_entry_is_not_believed() {
    let seeds = 40;
    for seed in 0..seeds {
        let mut job = job_with_everything();
        let entries = job.disk.view.entries();
        let at = below(&mut seeded(seed, 0), entries.len() as u64) as usize;
        let (key, value) = &entries[at];
        match seed % 2 {
            0 => job.disk.view.forge(key, None),
            _ => job.disk.view.forge(key, Some(&[value, &b"x"[..]].concat())),
        }
        job.restart();
    }
}

#[test]
fn a_fold_cut_short_anywhere_changes_nothing() {
    let mut random = seeded(1, 0);
    let mut whole = 0;
    for writes in 0.. {
        let mut job = job_with_everything();
        job.disk.view.fail_after(writes);
        // The view's trouble is its own: the fold goes on without it.
        job.fold().unwrap();
        let done = job.disk.view.writes_left().is_some_and(|left| left > 0);
        job.lose_power(&mut random);
        job.put(1, 0, 0, b"next", b"life");
        job.checkpoint();
        job.fold().unwrap();
        job.restart();
        if done {
            whole = writes;
            break;
        }
    }
    assert!(whole > 10, "only {whole} writes were cut short");
}

#[test]
fn a_base_file_half_written_or_one_too_many_does_no_harm() {
    let mut job = job_with_everything();
    let newest = job.disk.base_files(task(0)).pop().unwrap();
    std::fs::write(newest.with_extension("tmp"), b"half").unwrap();
    let older = newest.with_file_name("base-00000000000000000001.bin");
    std::fs::copy(&newest, &older).unwrap();
    job.disk.view.wipe();
    job.restart();
    assert_eq!(job.disk.base_files(task(0)), [newest]);
}

#[test]
fn damage_to_a_base_file_is_never_read_as_state() {
    let mut job = job_with_everything();
    job.disk.view.wipe();
    let path = job.disk.base_files(task(0)).pop().unwrap();
    let sound = std::fs::read(&path).unwrap();
    let history = job.history();
    // The magic number at the start tells people what it is; nothing depends on it.
    for at in 8..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&path, &damaged).unwrap();
        job.reopen();
        let restored =
            job.store()
                .restore(Generation(9), task(0), job.completed, &history, &whole());
        assert!(
            matches!(restored, Err(StateError::Base(_) | StateError::Lost { .. })),
            "byte {at}"
        );
    }
    std::fs::write(&path, &sound).unwrap();
    job.restart();
}

#[test]
fn a_base_file_that_is_gone_or_damaged_is_written_anew_from_the_view() {
    type Harm = fn(&PathBuf);
    let harms: [Harm; 3] = [
        |path| std::fs::remove_file(path).unwrap(),
        |path| std::fs::write(path, b"short").unwrap(),
        |path| {
            let mut bytes = std::fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            std::fs::write(path, bytes).unwrap();
        },
    ];
    for harm in harms {
        let mut job = job_with_everything();
        job.fold().unwrap();
        harm(&job.disk.base_files(task(0)).pop().unwrap());
        job.restart();
        for round in 0..30_u8 {
            job.put(0, 0, 0, &[round], &[round; 40]);
            job.checkpoint();
            job.fold().unwrap();
        }
        job.disk.view.wipe();
        job.restart();
    }
}

#[test]
fn state_that_is_not_all_here_is_lost_and_not_empty() {
    let mut job = job_with_everything();
    let history = job.history();
    let gone = Some(CheckpointId(job.next.0 + 5));
    let restored = job
        .store()
        .restore(Generation(9), task(0), gone, &history, &whole());
    assert!(matches!(restored, Err(StateError::Lost { .. })));
    let restored = job
        .store()
        .restore(Generation(9), task(7), job.completed, &history, &whole());
    assert!(matches!(restored, Err(StateError::Lost { .. })));
    for path in job.disk.base_files(task(0)) {
        std::fs::remove_file(path).unwrap();
    }
    job.disk.view.wipe();
    job.reopen();
    let restored = job
        .store()
        .restore(Generation(9), task(0), job.completed, &history, &whole());
    assert!(matches!(restored, Err(StateError::Lost { .. })));
}

#[test]
fn a_generation_that_was_replaced_can_persist_nothing() {
    let mut job = job_with_everything();
    let former = job.generation;
    let (_, chunks) = job.seal();
    job.start();
    let refused = job.store().persist(former, chunks);
    assert!(matches!(refused, Err(StateError::Stale { .. })));
    job.checkpoint();
    job.restart();
}

#[test]
fn what_did_not_fit_on_the_disk_goes_with_the_next_checkpoint() {
    for room in [0, 1, 50, 100, 150, 250] {
        let mut job = job_with_everything();
        job.put(0, 0, 0, b"full", &[1; 30]);
        job.put(1, 0, 0, b"full", &[1; 30]);
        job.disk
            .deltas
            .set_quota(Some(job.disk.deltas.used() + room));
        let (_, chunks) = job.seal();
        let full = job.store().persist(job.generation, chunks).unwrap_err();
        assert!(full.is_disk_full() && !full.is_fatal(), "{full}");
        job.disk.deltas.set_quota(None);
        job.put(0, 0, 0, b"room again", b"");
        job.checkpoint();
        job.restart();
    }
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged() {
    let mut job = job_with_everything();
    job.disk.deltas.fail_syncs(1);
    let (_, chunks) = job.seal();
    assert!(
        job.store()
            .persist(job.generation, chunks)
            .unwrap_err()
            .is_fatal()
    );
    let (_, chunks) = job.seal();
    assert!(
        job.store()
            .persist(job.generation, chunks)
            .unwrap_err()
            .is_fatal()
    );
    job.lose_power(&mut seeded(3, 0));
}

#[test]
fn deltas_and_values_of_any_size_come_back() {
    let mut job = Job::new(1);
    let sizes = [
        0,
        4_091,
        4_092,
        4_093,
        6_000,
        1 << 20,
        (1 << 20) + 1,
        3 << 20,
    ];
    for round in 0..3_u8 {
        for (key, size) in (0_u8..).zip(sizes) {
            // Every value has every size in turn, so that pieces come and go.
            let size = sizes[(usize::from(key) + usize::from(round)) % sizes.len()].min(size * 2);
            job.put(0, 0, 0, &[key], &vec![key + round; size]);
        }
        job.checkpoint();
        job.fold().unwrap();
        job.restart();
    }
    for key in 0..40_u8 {
        job.put(0, 0, 0, &[key], &vec![key; 1 << 20]);
    }
    job.checkpoint();
    job.restart();
}

#[test]
fn chunks_are_let_go_once_they_are_in_base_files() {
    let mut job = Job::new(2);
    for round in 0..400_u32 {
        // The second task changes almost nothing, and must not hold up the log all the same.
        job.put(0, 0, 0, &(round % 10).to_be_bytes(), &[1; 100]);
        job.checkpoint();
        job.fold().unwrap();
    }
    assert!(
        job.disk.deltas.used() < 3 * OPTIONS.log_bytes,
        "the log has {} bytes",
        job.disk.deltas.used()
    );
    assert_eq!(job.disk.base_files(task(0)).len(), 1);
    job.restart();
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, u8, i64, u8, usize),
    Delete(usize, u8, i64, u8),
    Clear(usize, u8, i64),
    Persist,
    Checkpoint,
    Fold,
    FoldCutShort(u64),
    NewGeneration,
    Kill,
    LosePower,
    LoseView,
    DamageView,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0_usize..2, 0_u8..2, 0_i64..3);
    prop_oneof![
        10 => (place(), 0_u8..8, 0_usize..60).prop_map(|((i, t, n), k, v)| Step::Put(i, t, n, k, v)),
        3 => (place(), 0_u8..8).prop_map(|((i, t, n), k)| Step::Delete(i, t, n, k)),
        1 => place().prop_map(|(i, t, n)| Step::Clear(i, t, n)),
        1 => Just(Step::Persist),
        5 => Just(Step::Checkpoint),
        3 => Just(Step::Fold),
        1 => (0_u64..30).prop_map(Step::FoldCutShort),
        1 => Just(Step::NewGeneration),
        1 => Just(Step::Kill),
        1 => Just(Step::LosePower),
        1 => Just(Step::LoseView),
        1 => Just(Step::DamageView),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_life_begins_with_the_state_of_the_completed_checkpoint(
        steps in prop::collection::vec(step(), 1..120),
        seed in any::<u64>(),
    ) {
        let mut random = seeded(seed, 0);
        let mut job = Job::new(2);
        for step in steps {
            match step {
                Step::Put(index, table, namespace, key, size) => {
                    job.put(index, table, namespace, &[key], &vec![key; size]);
                }
                Step::Delete(index, table, namespace, key) => {
                    job.delete(index, table, namespace, &[key]);
                }
                Step::Clear(index, table, namespace) => job.clear(index, table, namespace),
                Step::Persist => drop(job.persist()),
                Step::Checkpoint => job.checkpoint(),
                Step::Fold => job.fold().unwrap(),
                Step::FoldCutShort(writes) => {
                    job.disk.view.fail_after(writes);
                    job.fold().unwrap();
                    job.lose_power(&mut random);
                }
                Step::NewGeneration => job.start(),
                Step::Kill => job.restart(),
                Step::LosePower => job.lose_power(&mut random),
                Step::LoseView => {
                    job.disk.view.wipe();
                    job.restart();
                }
                Step::DamageView => {
                    job.disk.view.damage();
                    job.restart();
                }
            }
        }
        job.restart();
    }
}

/// A job on the real file system and sled.
fn sled_job(directory: &Path, rounds: u64) -> (JobStateStore, Map) {
    let store = JobStateStore::open(directory, OPTIONS).unwrap();
    let history = |_, checkpoint| Some(checkpoint <= CheckpointId(rounds));
    let mut tables = store
        .restore(Generation(1), task(0), None, &history, &whole())
        .unwrap()
        .tables;
    for round in 1..=rounds {
        let checkpoint = CheckpointId(round);
        let table = tables.entry(table_id(0)).or_default();
        for key in 0..50_u64 {
            table.put(0, &(key * round).to_be_bytes(), &[round as u8; 60]);
        }
        table.seal(checkpoint);
        let delta = table.delta(checkpoint).unwrap();
        let chunk = TaskChunk {
            task: task(0),
            checkpoint,
            tables: vec![(table_id(0), delta)],
        };
        store.persist(Generation(1), vec![chunk]).unwrap();
        table.complete(checkpoint);
        let history = |_, c| Some(c <= checkpoint);
        store.fold(checkpoint, &Purposes::new(), &history).unwrap();
    }
    let map = contents(&tables);
    (store, map)
}

#[test]
fn damage_to_any_file_of_the_view_costs_nothing_but_time() {
    const ROUNDS: u64 = 9;
    let history = |_, checkpoint| Some(checkpoint <= CheckpointId(ROUNDS));
    let mut random = seeded(5, 0);
    for round in 0..24 {
        let directory = tempfile::tempdir().unwrap();
        let (store, expected) = sled_job(directory.path(), ROUNDS);
        drop(store);
        let view = directory.path().join("state.sled");
        let mut files: Vec<PathBuf> = std::fs::read_dir(&view)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        let file = &files[round / 3 % files.len()];
        let mut bytes = std::fs::read(file).unwrap();
        let at = below(&mut random, bytes.len() as u64) as usize;
        match round % 3 {
            0 => bytes[at] ^= 1 << below(&mut random, 8),
            1 => bytes.truncate(at),
            _ => bytes.fill(0),
        }
        std::fs::write(file, &bytes).unwrap();
        for generation in [2, 3] {
            let store = JobStateStore::open(directory.path(), OPTIONS).unwrap();
            let at = Some(CheckpointId(ROUNDS));
            let restored = store
                .restore(Generation(generation), task(0), at, &history, &whole())
                .unwrap()
                .tables;
            assert_eq!(contents(&restored), expected);
            store
                .fold(CheckpointId(ROUNDS), &Purposes::new(), &history)
                .unwrap();
        }
    }
}

#[test]
fn a_store_waits_until_the_one_before_it_is_gone() {
    let disk = Arc::new(Disk::new());
    let former = disk.open();
    former
        .restore(Generation(1), task(0), None, &|_, _| None, &whole())
        .unwrap();
    let next = {
        let disk = Arc::clone(&disk);
        std::thread::spawn(move || disk.open())
    };
    let mut table = Table::default();
    table.put(0, b"written", b"meanwhile");
    table.seal(CheckpointId(1));
    let tables = vec![(table_id(0), table.delta(CheckpointId(1)).unwrap())];
    let chunk = TaskChunk {
        task: task(0),
        checkpoint: CheckpointId(1),
        tables,
    };
    former.persist(Generation(1), vec![chunk]).unwrap();
    drop(former);
    let next = next.join().unwrap();
    let counts = |_, _| Some(true);
    let at = Some(CheckpointId(1));
    let restored = next
        .restore(Generation(2), task(0), at, &counts, &whole())
        .unwrap()
        .tables;
    assert_eq!(contents(&restored).len(), 1);
}

#[test]
fn a_job_that_is_removed_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("7");
    drop(sled_job(&path, 5));
    JobStateStore::remove(&path).unwrap();
    JobStateStore::remove(&path).unwrap();
    assert!(!path.exists());
}
