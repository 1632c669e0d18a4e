//! A task whose state is mostly in the view against a plain map: whatever is folded, forgotten, lost and
//! restored, and whenever, reads give what the map has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use common::ids::{CheckpointId, Generation, StageId, TaskId};
use common::random::{Random, below, seeded};
use proptest::prelude::*;

use super::chunk::TaskChunk;
use super::folding::{FoldedTask, Purposes};
use super::state_error::StateError;
use super::state_store::{JobStateStore, RestoredTask, StoreOptions, lock};
use super::state_store_tests::{Disk, OPTIONS};
use super::view_reader::{ViewError, ViewReader};
use crate::keyed_state::section::TableId;
use crate::keyed_state::stored::{Answer, Ask, LARGEST_STORED_VALUE, StoredRange, Until};
use crate::keyed_state::table::{At, Table};

type Map = BTreeMap<(i64, Vec<u8>), Vec<u8>>;

const TASK: TaskId = TaskId {
    stage: StageId(1),
    index: 0,
};

/// After so many writes somebody begins to wait for who writes to this store.
type Interruption = Arc<Mutex<Option<(u64, Arc<JobStateStore>)>>>;

fn open(disk: &Disk, options: StoreOptions, interruption: &Interruption) -> JobStateStore {
    let interruption = Arc::clone(interruption);
    disk.open_watched(options, move || {
        let mut after = lock(&interruption);
        match after.take() {
            Some((0, store)) => store.folding.hurry(true),
            Some((writes, store)) => *after = Some((writes - 1, store)),
            None => {}
        }
    })
}

struct Job {
    disk: Disk,
    options: StoreOptions,
    store: Option<Arc<JobStateStore>>,
    interruption: Interruption,
    task: RestoredTask,
    generation: Generation,
    next: CheckpointId,
    completed: Option<CheckpointId>,
    previous: Option<CheckpointId>,
    finals: BTreeMap<Generation, Option<CheckpointId>>,
    live: Map,
    /// At the completed checkpoint and the one before.
    at_completed: Map,
    at_previous: Map,
}

fn id() -> TableId {
    TableId {
        operator: "large".to_owned(),
        table: "t".to_owned(),
    }
}

impl Job {
    fn new(resident_bytes: u64) -> Job {
        Job::with(StoreOptions {
            resident_bytes,
            ..OPTIONS
        })
    }

    fn with(options: StoreOptions) -> Job {
        let disk = Disk::new();
        let interruption = Interruption::default();
        let mut job = Job {
            store: Some(Arc::new(open(&disk, options, &interruption))),
            interruption,
            disk,
            options,
            task: RestoredTask::default(),
            generation: Generation(0),
            next: CheckpointId(1),
            completed: None,
            previous: None,
            finals: BTreeMap::new(),
            live: Map::new(),
            at_completed: Map::new(),
            at_previous: Map::new(),
        };
        job.start();
        job
    }

    fn history(&self) -> impl Fn(Generation, CheckpointId) -> Option<bool> + use<> {
        let (current, completed, finals) = (self.generation, self.completed, self.finals.clone());
        move |generation, checkpoint| match generation == current {
            true => (Some(checkpoint) <= completed).then_some(true),
            false => Some(
                finals
                    .get(&generation)
                    .is_some_and(|last| Some(checkpoint) <= *last),
            ),
        }
    }

    fn start(&mut self) {
        self.finals.insert(self.generation, self.completed);
        self.generation = self.generation.next();
        let spilling = BTreeSet::from([id().operator]);
        let store = self.store.as_ref().unwrap();
        let history = self.history();
        self.task = store
            .restore(self.generation, TASK, self.completed, &history, &spilling)
            .unwrap();
        self.previous = self.completed;
        self.live.clone_from(&self.at_completed);
        self.at_previous.clone_from(&self.at_completed);
    }

    fn table(&mut self) -> &mut Table {
        self.task.tables.entry(id()).or_insert_with(|| {
            let mut table = Table::default();
            table.spill();
            table
        })
    }

    fn ask(&self, ask: Ask) -> Answer {
        let reader = self.task.reader.as_ref().expect("something was folded");
        reader.answer(&id(), ask).unwrap()
    }

    /// As an operator does before it touches a key.
    fn prepare(&mut self, namespace: i64, key: u8) {
        let unknown = self.table().unknown([(namespace, &[key][..])]);
        if !unknown.is_empty() {
            let answer = self.ask(Ask::Keys(unknown));
            self.table().load(answer);
        }
    }

    fn put(&mut self, namespace: i64, key: u8, value: Vec<u8>) {
        self.prepare(namespace, key);
        self.table().put(namespace, &[key], &value);
        self.live.insert((namespace, vec![key]), value);
    }

    fn checkpoint(&mut self) {
        let checkpoint = self.next;
        self.next = checkpoint.next();
        self.table().seal(checkpoint);
        let delta = self.table().delta(checkpoint);
        let chunk = TaskChunk {
            task: TASK,
            checkpoint,
            tables: delta.map(|delta| (id(), delta)).into_iter().collect(),
        };
        let store = self.store.as_ref().unwrap();
        store.persist(self.generation, vec![chunk]).unwrap();
        self.previous = self.completed.replace(checkpoint);
        self.at_previous = std::mem::replace(&mut self.at_completed, self.live.clone());
        self.table().complete(checkpoint);
    }

    fn try_fold(&self) -> Result<Vec<FoldedTask>, StateError> {
        let Some(oldest) = self.previous else {
            return Ok(Vec::new());
        };
        let history = self.history();
        let store = self.store.as_ref().unwrap();
        store.fold(oldest, &Purposes::new(), &history)
    }

    fn fold(&mut self) {
        let folded = self.try_fold().unwrap();
        self.take_folded(folded);
    }

    /// After so many writes somebody waits for it, and then begins a generation.
    fn fold_interrupted(&mut self, writes: u64) {
        let store = Arc::clone(self.store.as_ref().unwrap());
        *lock(&self.interruption) = Some((writes, Arc::clone(&store)));
        let folded = self.try_fold();
        lock(&self.interruption).take();
        store.folding.hurry(false);
        match folded {
            Err(StateError::CutShort) => {}
            folded => self.take_folded(folded.unwrap()),
        }
        self.start();
    }

    fn take_folded(&mut self, folded: Vec<FoldedTask>) {
        for folded in folded {
            let like = |reader| folded.reader.is_like(reader);
            if self.task.reader.as_ref().is_some_and(like) || !self.table().needs_store() {
                self.table().folded(folded.at);
                self.task.reader = Some(folded.reader);
            } else {
                // What was let go is not there any more: the generation ends.
                return self.start();
            }
        }
    }

    /// The view cannot be written any more after so many writes; the power fails.
    fn fold_cut_short(&mut self, writes: u64, random: &mut Random) {
        self.disk.view.fail_after(writes);
        drop(self.try_fold().unwrap());
        self.disk.deltas.lose_power(random);
        self.disk.view.lose_unflushed(random);
        self.restart();
    }

    fn restart(&mut self) {
        self.store = None;
        let opened = open(&self.disk, self.options, &self.interruption);
        self.store = Some(Arc::new(opened));
        self.start();
    }

    /// All there is, as readers of the state and windows read it: in ranges.
    fn read(&mut self, at: At) -> Map {
        let mut map = Map::new();
        let namespaces = self.table().namespaces_at(at, i64::MIN).unwrap();
        for namespace in namespaces {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let ask = self
                    .table()
                    .ask_range(at, [namespace], after.as_deref(), 100);
                let range = match ask.map(|ask| self.ask(Ask::Range(ask))) {
                    Some(Answer::Range(range)) => range,
                    Some(Answer::Keys(_)) => unreachable!("a range was asked for"),
                    None => StoredRange::default(),
                };
                self.table()
                    .for_each_in(at, namespace, after.as_deref(), &range, |key, value| {
                        let before = map.insert((namespace, key.to_vec()), value.to_vec());
                        assert_eq!(before, None, "each entry comes once");
                    });
                match range.until {
                    Until::Key(last) => after = Some(last),
                    Until::End => break,
                }
            }
        }
        map
    }

    fn check(&mut self) {
        assert_eq!(self.read(At::Live), self.live);
        if let Some(completed) = self.completed {
            assert_eq!(self.read(At::Completed(completed)), self.at_completed);
        }
        if let Some(previous) = self.previous {
            assert_eq!(self.read(At::Completed(previous)), self.at_previous);
        }
        let bytes: usize = self.live.iter().map(|((_, k), v)| k.len() + v.len()).sum();
        let size = (bytes as u64, self.live.len() as u64);
        assert_eq!(self.table().size(), size);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(i64, u8, usize),
    Delete(i64, u8),
    Clear(i64),
    Checkpoint,
    Fold,
    FoldCutShort(u64),
    FoldInterrupted(u64),
    Evict(u64),
    NewGeneration,
    Kill,
    LoseView,
}

fn step() -> impl Strategy<Value = Step> {
    let namespace = || 0_i64..3;
    let key = || 0_u8..12;
    let size = || prop_oneof![20 => 0_usize..60, 1 => 4_000_usize..9_000];
    prop_oneof![
        10 => (namespace(), key(), size()).prop_map(|(n, k, v)| Step::Put(n, k, v)),
        3 => (namespace(), key()).prop_map(|(n, k)| Step::Delete(n, k)),
        1 => namespace().prop_map(Step::Clear),
        6 => Just(Step::Checkpoint),
        4 => Just(Step::Fold),
        1 => (0_u64..30).prop_map(Step::FoldCutShort),
        2 => (0_u64..30).prop_map(Step::FoldInterrupted),
        5 => prop_oneof![Just(300), Just(u64::MAX)].prop_map(Step::Evict),
        1 => Just(Step::NewGeneration),
        1 => Just(Step::Kill),
        1 => Just(Step::LoseView),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn state_that_is_mostly_on_disk_reads_like_a_map(
        steps in prop::collection::vec(step(), 1..120),
        resident_bytes in prop_oneof![Just(0), Just(150), Just(1 << 20)],
        seed in any::<u64>(),
    ) {
        let mut random = seeded(seed, 0);
        let mut job = Job::new(resident_bytes);
        for step in steps {
            match step {
                Step::Put(namespace, key, size) => job.put(namespace, key, vec![key; size]),
                Step::Delete(namespace, key) => {
                    job.prepare(namespace, key);
                    job.table().delete(namespace, &[key]);
                    job.live.remove(&(namespace, vec![key]));
                }
                Step::Clear(namespace) => {
                    job.table().clear_namespace(namespace);
                    job.live.retain(|(other, _), _| *other != namespace);
                }
                Step::Checkpoint => job.checkpoint(),
                Step::Fold => job.fold(),
                Step::FoldCutShort(writes) => job.fold_cut_short(writes, &mut random),
                Step::FoldInterrupted(writes) => job.fold_interrupted(writes),
                Step::Evict(bytes) => {
                    job.table().evict(bytes);
                }
                Step::NewGeneration => job.start(),
                Step::Kill => job.restart(),
                Step::LoseView => {
                    job.disk.view.wipe();
                    job.restart();
                }
            }
            job.check();
        }
        job.restart();
        job.check();
    }
}

/// Two completed checkpoints with some entries, folded and not in memory.
fn spilled() -> Job {
    spilled_of(50)
}

/// A hundred values of so many bytes, all on disk only.
fn spilled_of(bytes: usize) -> Job {
    let mut job = Job::new(0);
    for key in 0..100 {
        job.put(0, key, vec![key; bytes]);
    }
    job.checkpoint();
    job.checkpoint();
    job.fold();
    job.checkpoint();
    job.fold();
    while job.table().evict(u64::MAX) {}
    assert!(job.table().needs_store());
    job
}

#[test]
fn a_view_that_was_given_up_answers_nothing_any_more() {
    let mut job = spilled();
    let reader = job.task.reader.clone().unwrap();
    job.put(0, 1, vec![9; 50]);
    job.checkpoint();
    job.checkpoint();
    job.disk.view.damage();
    // The fold finds out, and the next one builds it anew.
    assert!(job.try_fold().unwrap().is_empty());
    let keys = || Ask::Keys(vec![(0, vec![5])]);
    let refused = reader.answer(&id(), keys());
    assert!(matches!(refused, Err(ViewError::BuiltAnew)), "{refused:?}");
    let folded = job.try_fold().unwrap();
    assert_eq!(folded.len(), 1);
    assert!(!folded[0].reader.is_like(&reader));
    assert!(reader.answer(&id(), keys()).is_err());
    let found = Answer::Keys(vec![(0, vec![5], Some(vec![5; 50]))]);
    assert_eq!(folded[0].reader.answer(&id(), keys()).unwrap(), found);
}

/// The chunks it lacked were dropped with the base file, so it was begun anew and its task started again.
/// Found by the simulator in world 1, where nothing goes wrong.
#[test]
fn a_view_that_lags_behind_its_base_file_keeps_its_readers() {
    let mut job = Job::with(StoreOptions {
        fold_every: 6,
        base_after_bytes: 1,
        ..OPTIONS
    });
    let mut reader: Option<ViewReader> = None;
    for round in 0..30 {
        job.put(0, round, vec![round; 50]);
        job.checkpoint();
        job.fold();
        let folded = job.task.reader.clone();
        let others = reader.iter().zip(&folded).filter(|(a, b)| !a.is_like(b));
        assert_eq!(others.count(), 0, "round {round}");
        reader = folded;
    }
    assert!(reader.is_some());
}

/// It waited for ever for a fold of a checkpoint at which nothing had changed. Found by the simulator.
#[test]
fn what_was_restored_at_a_checkpoint_without_changes_is_known_to_be_folded() {
    let mut job = spilled();
    job.checkpoint();
    job.restart();
    assert!(!job.table().is_folded(), "nobody has said so yet");
    for _ in 0..2 {
        job.checkpoint();
        job.fold();
    }
    assert!(job.table().is_folded());
}

/// It read all of the view, and all of a gigabyte takes many seconds.
#[test]
fn a_generation_on_the_same_worker_begins_with_the_view_and_reads_nothing_of_it() {
    let mut job = spilled_of(300);
    job.options.resident_bytes = 1 << 20;
    job.restart();
    assert!(!job.table().needs_store(), "there is memory for all of it");
    for writes in [None, Some(3)] {
        job.put(0, 1, vec![9; 50]);
        job.checkpoint();
        job.checkpoint();
        match writes {
            Some(writes) => job.fold_interrupted(writes),
            None => job.start(),
        }
        assert!(job.table().needs_store());
        assert!(job.table().footprint() < 1_000);
        job.check();
    }
}

/// It looked into the view for each of millions of keys that had changed since, which took minutes; all of it had
/// been read in seconds.
#[test]
fn what_a_view_is_far_behind_of_is_read_in_one_stretch_if_there_is_room() {
    let mut job = spilled();
    for key in 0..50 {
        job.prepare(0, key);
        job.put(0, key, vec![7; 50]);
    }
    job.checkpoint();
    job.checkpoint();
    job.options.resident_bytes = 1 << 20;
    job.restart();
    assert!(job.task.reader.is_none() && !job.table().needs_store());
    job.check();
    // The view is still there, and folds go on over it.
    job.put(0, 1, vec![8; 50]);
    job.checkpoint();
    job.checkpoint();
    job.disk.view.fail_after(u64::MAX);
    job.fold();
    let writes = u64::MAX - job.disk.view.writes_left().unwrap();
    assert!(writes < 100, "{writes} writes, of 100 keys");
    job.check();
    job.options.resident_bytes = 0;
    job.restart();
    assert!(job.task.reader.is_some());
    job.check();
}

#[test]
fn a_value_that_no_view_keeps_comes_back_from_the_base_file() {
    let mut job = spilled();
    job.put(0, 7, vec![7; LARGEST_STORED_VALUE + 1]);
    for _ in 0..3 {
        job.checkpoint();
        job.fold();
        while job.table().evict(u64::MAX) {}
        job.check();
    }
    job.restart();
    job.check();
    job.checkpoint();
    job.fold();
    while job.table().evict(u64::MAX) {}
    job.check();
}

#[test]
fn what_is_restored_takes_no_more_memory_than_there_is() {
    let mut job = Job::new(20_000);
    for round in 0..20 {
        for key in 0..=255 {
            job.put(round, key, vec![key; 100]);
        }
        job.checkpoint();
        job.fold();
        while job.table().evict(u64::MAX) {}
    }
    job.checkpoint();
    job.fold();
    for lose_view in [false, true] {
        if lose_view {
            job.disk.view.wipe();
        }
        job.restart();
        let footprint = job.table().footprint();
        assert!(
            footprint < 100_000,
            "{footprint} of {:?}",
            job.table().size()
        );
        assert!(job.table().size().0 > 500_000);
        job.check();
    }
}

/// Some thousand entries, small ones and some of several pieces, in the view and nowhere else.
fn large(seed: u64) -> Job {
    let mut job = Job::with(StoreOptions {
        resident_bytes: 0,
        // A process that dies in a fold lets no chunks go after it.
        log_bytes: 64 << 20,
        ..OPTIONS
    });
    let mut random = seeded(seed, 0);
    job.change(&mut random, 3_000);
    job.checkpoint();
    job.checkpoint();
    job.fold();
    job
}

impl Job {
    /// Changes one half of the entries and empties a namespace, in two checkpoints that are complete.
    fn change_and_complete(&mut self) {
        self.table().clear_namespace(1);
        self.live.retain(|(namespace, _), _| *namespace != 1);
        self.change(&mut seeded(8, 0), 3_000);
        self.checkpoint();
        self.checkpoint();
    }

    /// Writes and deletes at random, so many times.
    fn change(&mut self, random: &mut Random, times: u64) {
        for _ in 0..times {
            let key = below(random, 2_500).to_be_bytes().to_vec();
            let namespace = i64::try_from(below(random, 3)).unwrap();
            let unknown = self.table().unknown([(namespace, &key[..])]);
            if !unknown.is_empty() {
                let answer = self.ask(Ask::Keys(unknown));
                self.table().load(answer);
            }
            match below(random, 400) {
                0..40 => {
                    self.table().delete(namespace, &key);
                    self.live.remove(&(namespace, key));
                }
                size => {
                    let size = if size < 44 { 9_000 } else { 20 };
                    let value = vec![u8::try_from(below(random, 256)).unwrap(); size];
                    self.table().put(namespace, &key, &value);
                    self.live.insert((namespace, key), value);
                }
            }
        }
    }
}

#[test]
fn a_crash_in_a_fold_costs_one_step_of_it_and_not_the_view() {
    let writes_of_a_fold = {
        let mut job = large(7);
        job.change_and_complete();
        job.disk.view.fail_after(u64::MAX);
        job.fold();
        u64::MAX - job.disk.view.writes_left().unwrap()
    };
    assert!(writes_of_a_fold > 3_000, "{writes_of_a_fold}");
    for cut in (0..writes_of_a_fold).step_by(331) {
        let mut job = large(7);
        job.change_and_complete();
        job.disk.view.fail_after(cut);
        job.try_fold().unwrap();
        job.disk.view.lose_unflushed(&mut seeded(cut, 1));

        job.disk.view.fail_after(u64::MAX);
        job.options.resident_bytes = 8 << 20;
        job.restart();
        let a_step = writes_of_a_fold / 4;
        let writes = u64::MAX - job.disk.view.writes_left().unwrap();
        assert!(
            writes < a_step,
            "{writes} of {writes_of_a_fold} writes after a crash at {cut}"
        );
        job.check();
        job.fold();
        assert!(job.task.reader.is_some(), "no view after a crash at {cut}");
        let writes = u64::MAX - job.disk.view.writes_left().unwrap();
        assert!(
            writes < writes_of_a_fold + a_step,
            "{writes} writes for a fold of {writes_of_a_fold} after a crash at {cut}: the view was built anew"
        );
        job.check();
        // And folds go on over it.
        job.change(&mut seeded(cut, 2), 100);
        job.checkpoint();
        job.checkpoint();
        job.fold();
        job.check();
        job.restart();
        job.check();
    }
}
