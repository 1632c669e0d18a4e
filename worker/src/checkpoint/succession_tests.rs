//! Successors have exactly what their predecessors had of their keys, whatever was folded, failed or begun anew on
//! the way.

use std::collections::BTreeSet;
use std::sync::Arc;

use common::ids::{CheckpointId, StageId, TaskId};
use common::key_group::{KeyGroupRange, key_group, owner};
use common::plan::redistribution::Share;
use proptest::prelude::*;

use super::folding::Purpose;
use super::state_error::StateError;
use super::state_store::RestoredTask;
use super::state_store_tests::{Job, Map, OPTIONS, contents, task};
use super::succession::{Advance, OwnTables, Successor};
use crate::keyed_state::section::TableId;

const GROUPS: u16 = OPTIONS.key_groups;
/// The number of the table that belongs to the task itself.
const OWN: u8 = 9;

fn is_own(table: &TableId) -> bool {
    table.operator == format!("operator {OWN}")
}

/// Everything, of those whose committables it takes.
fn inherit(of: Vec<(&Share, OwnTables)>) -> OwnTables {
    let mut all = OwnTables::new();
    for (share, tables) in of {
        for (id, table) in tables.into_iter().filter(|_| share.committables) {
            let kept = all.entry(id).or_default();
            for change in table.sorted(1) {
                kept.put(change.namespace, change.key, change.value.unwrap());
            }
        }
    }
    all
}

/// What operators 0 to 2 of one task take over of `before` tasks.
fn successor(index: u32, before: u32, after: u32) -> Successor {
    let own = KeyGroupRange::of_task(index, GROUPS, after);
    let share = |of: u32| {
        let groups = KeyGroupRange::of_task(of, GROUPS, before).and(own);
        let operators = (0..3).map(|number| format!("operator {number}"));
        Share {
            of: task(of),
            operators: operators.filter(|_| !groups.is_empty()).collect(),
            groups,
            splits: false,
            committables: of % after == index,
            time: true,
        }
    };
    let shares = (0..before).map(share);
    let taken = |share: &Share| share.committables || !share.operators.is_empty();
    Successor {
        task: TaskId {
            stage: StageId(7),
            index,
        },
        shares: shares.filter(taken).collect(),
        is_own,
        inherit: Arc::new(inherit),
    }
}

struct Division {
    job: Job,
    before: u32,
    successors: Vec<(Successor, Option<CheckpointId>)>,
}

impl Division {
    fn new(before: u32, after: u32) -> Division {
        let successors = (0..after).map(|index| (successor(index, before, after), None));
        Division {
            job: Job::new(before as usize),
            before,
            successors: successors.collect(),
        }
    }

    fn put(&mut self, table: u8, namespace: i64, key: u8, value: u8) {
        let index = owner(key_group(&[key], GROUPS), GROUPS, self.before) as usize;
        match value % 4 {
            0 => self.job.delete(index, table, namespace, &[key]),
            _ => self.job.put(index, table, namespace, &[key], &[value; 50]),
        }
        let index = usize::from(key) % self.before as usize;
        let own = [u8::try_from(index).unwrap(), key % 3];
        match value % 5 {
            1 => self.job.delete(index, OWN, 0, &own),
            _ => self.job.put(index, OWN, 0, &own, &[value]),
        }
    }

    fn clear(&mut self, table: u8, namespace: i64) {
        (0..self.before as usize).for_each(|index| self.job.clear(index, table, namespace));
    }

    /// Those that have not begun do, at the completed checkpoint.
    fn begin(&mut self) {
        let Some(at) = self.job.completed else { return };
        let history = self.job.history();
        for (successor, held) in self
            .successors
            .iter_mut()
            .filter(|(_, held)| held.is_none())
        {
            let store = self.job.store.as_ref().unwrap();
            let begun = store.begin_successor(self.job.generation, successor, at, &history);
            begun.unwrap();
            *held = Some(at);
        }
    }

    /// There is no memory for those that have begun.
    fn view(&self) {
        let begun = self.successors.iter().filter(|(_, held)| held.is_some());
        for (successor, _) in begun {
            let store = self.job.store.as_ref().unwrap();
            if !store.has_view(successor.task) {
                store.view_successor(successor).unwrap();
            }
        }
    }

    /// As a worker does that runs those before and not yet those after them.
    fn fold(&self) {
        let successors = self.successors.iter();
        let purposes = successors.map(|(of, _)| (of.task, Purpose::IsCopied));
        let purposes = purposes.collect();
        if let Some(completed) = self.job.completed {
            let (store, history) = (self.job.store.as_ref().unwrap(), self.job.history());
            let folded = store.fold(completed, &purposes, &history);
            folded.unwrap();
        }
    }

    fn advance(&mut self, to: CheckpointId) {
        while self.step(to) > 0 {}
    }

    /// How many got further.
    fn step(&mut self, to: CheckpointId) -> usize {
        let history = self.job.history();
        let store = self.job.store.as_ref().unwrap();
        let generation = self.job.generation;
        let (mut successors, mut chunks) = (Vec::new(), Vec::new());
        for (successor, held) in &mut self.successors {
            let Some(from) = held.filter(|from| *from < to) else {
                continue;
            };
            let advance = store.advance_of_successor(generation, successor, from, to, &history);
            let Ok(Advance::By(of_task)) = advance else {
                panic!("{advance:?}");
            };
            *held = of_task.last().map(|chunk| chunk.checkpoint);
            assert!(*held > Some(from) && *held <= Some(to));
            successors.push(&*successor);
            chunks.extend(of_task);
        }
        let advanced = store.advance_successors(generation, &successors, &chunks);
        advanced.unwrap();
        successors.len()
    }

    /// The generation ends, and the next one goes on with what counts of the successors.
    fn restart(&mut self) {
        self.job.restart();
        let history = self.job.history();
        for (successor, held) in &mut self.successors {
            let store = self.job.store.as_ref().unwrap();
            *held = store.held(successor.task, self.job.generation, &history);
            if let Some(held) = *held {
                store
                    .go_on_with_successor(self.job.generation, successor, held)
                    .unwrap();
            }
        }
    }

    /// What a successor is to have.
    fn expected(&self, successor: &Successor, after: u32) -> Map {
        let own = KeyGroupRange::of_task(successor.task.index, GROUPS, after);
        let mut expected = Map::new();
        for (index, map) in (0..).zip(&self.job.at_completed) {
            for ((table, namespace, key), value) in map {
                let mine = match *table {
                    OWN => index % after == successor.task.index,
                    _ => own.contains(key_group(key, GROUPS)),
                };
                if mine {
                    expected.insert((*table, *namespace, key.clone()), value.clone());
                }
            }
        }
        expected
    }

    /// What it begins with at the completed checkpoint. `spilling`: operators whose state need not be in memory.
    fn restore(&self, successor: &Successor, spilling: &BTreeSet<String>) -> RestoredTask {
        let (at, history) = (self.job.completed, self.job.history());
        let store = self.job.store.as_ref().unwrap();
        let restored = store.restore(self.job.generation, successor.task, at, &history, spilling);
        restored.unwrap()
    }

    fn check(&mut self) {
        self.begin();
        let last = self.job.persist();
        self.advance(last);
        self.job.complete(last);
        let history = self.job.history();
        let after = u32::try_from(self.successors.len()).unwrap();
        let kept: BTreeSet<TaskId> = self.successors.iter().map(|(of, _)| of.task).collect();
        self.job.store().await_no_successors();
        self.job.store().keep_only(&kept);
        self.job.store().sweep().unwrap();
        for reopened in [false, true] {
            if reopened {
                self.job.reopen();
                self.job.store().keep_only(&kept);
            }
            for (successor, _) in &self.successors {
                let found = contents(&self.restore(successor, &BTreeSet::new()).tables);
                assert_eq!(found, self.expected(successor, after), "{successor:?}");
            }
            let waiting = kept.iter().map(|task| (*task, Purpose::RunsAndWaits));
            let waiting = waiting.collect();
            let fold = self.job.store().fold(last, &waiting, &history);
            let folded: BTreeSet<TaskId> = fold.unwrap().iter().map(|folded| folded.task).collect();
            assert_eq!(folded, kept);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, i64, u8, u8),
    Clear(u8, i64),
    ClearOwn(u8),
    Checkpoint,
    /// Sealed, and never completed by itself.
    Fail,
    Fold,
    Begin,
    View,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0_u8..3, 0_i64..3, any::<u8>(), any::<u8>())
            .prop_map(|(table, namespace, key, value)| Step::Put(table, namespace, key, value)),
        1 => (0_u8..3, 0_i64..3).prop_map(|(table, namespace)| Step::Clear(table, namespace)),
        1 => any::<u8>().prop_map(Step::ClearOwn),
        4 => Just(Step::Checkpoint),
        1 => Just(Step::Fail),
        2 => Just(Step::Fold),
        1 => Just(Step::Begin),
        1 => Just(Step::View),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #[test]
    fn successors_have_what_their_predecessors_had(
        before in 1_u32..4,
        after in 1_u32..5,
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut division = Division::new(before, after);
        division.job.checkpoint();
        for step in steps {
            match step {
                Step::Put(table, namespace, key, value) => {
                    division.put(table, namespace, key, value);
                }
                Step::Clear(table, namespace) => division.clear(table, namespace),
                Step::ClearOwn(index) => {
                    let index = usize::from(index) % before as usize;
                    division.job.clear(index, OWN, 0);
                }
                Step::Checkpoint => {
                    let checkpoint = division.job.persist();
                    division.advance(checkpoint);
                    division.job.complete(checkpoint);
                }
                Step::Fail => {
                    let checkpoint = division.job.persist();
                    division.advance(checkpoint);
                }
                Step::Fold => division.fold(),
                Step::Begin => division.begin(),
                Step::View => division.view(),
                Step::Restart => division.restart(),
            }
        }
        division.check();
    }
}

/// The chunks between were folded and gone before somebody waited for them.
#[test]
fn what_has_gone_before_a_successor_had_it_is_noticed() {
    let mut division = Division::new(1, 2);
    division.put(0, 0, 1, 1);
    division.job.checkpoint();
    division.begin();
    division.job.store().await_no_successors();
    for value in 0..40 {
        division.put(0, 0, value, 1);
        division.job.checkpoint();
        division.job.fold().unwrap();
    }
    let (from, to) = (CheckpointId(1), division.job.completed.unwrap());
    let (successor, _) = &division.successors[0];
    let history = division.job.history();
    let advance = division.job.store().advance_of_successor(
        division.job.generation,
        successor,
        from,
        to,
        &history,
    );
    assert!(matches!(advance, Ok(Advance::Gap)), "{advance:?}");
}

/// It had the second only, of which the first was a part.
#[test]
fn a_successor_that_gets_two_checkpoints_at_once_has_the_first_if_that_is_the_last_to_be_completed()
{
    let mut division = Division::new(2, 3);
    division.put(0, 0, 1, 1);
    division.job.checkpoint();
    division.begin();
    division.put(0, 0, 1, 2);
    let first = division.job.persist();
    let second = division.job.persist();
    division.advance(second);
    division.job.complete(first);
    division.restart();
    for (successor, held) in &division.successors {
        assert_eq!(*held, Some(first), "{successor:?}");
    }
    division.check();
}

/// All of it was made at once, in memory, and written at once, while the job's checkpoint waited to be written.
#[test]
fn a_successor_that_is_far_behind_gets_there_in_steps() {
    let mut division = Division::new(2, 3);
    division.put(0, 0, 1, 1);
    division.job.checkpoint();
    division.begin();
    for key in 0..100 {
        division.put(0, 0, key, 1);
        division.job.checkpoint();
    }
    let (completed, mut steps) = (division.job.completed.unwrap(), 0);
    while division.step(completed) > 0 {
        steps += 1;
    }
    assert!((5..50).contains(&steps), "{steps}");
    division.check();
}

/// It made the successors' chunks those of its own generation, and what the newer one then sealed was refused.
#[test]
fn what_a_generation_that_is_over_still_prepares_changes_nothing() {
    let mut division = Division::new(2, 3);
    division.put(0, 0, 1, 1);
    division.job.checkpoint();
    let former = division.job.generation;
    division.restart();
    division.begin();
    let at = division.job.completed.unwrap();
    let history = division.job.history();
    let store = division.job.store.as_ref().unwrap();
    for (successor, _) in &division.successors {
        let begun = store.begin_successor(former, successor, at, &history);
        assert!(matches!(begun, Err(StateError::Stale { .. })), "{begun:?}");
        let gone_on = store.go_on_with_successor(former, successor, at);
        assert!(
            matches!(gone_on, Err(StateError::Stale { .. })),
            "{gone_on:?}"
        );
    }
    division.put(0, 0, 1, 2);
    let next = division.job.persist();
    division.job.complete(next);
    division.advance(next);
    division.check();
}

/// From its predecessors' base files on it took longer with every checkpoint, and in the end longer than until the
/// next one: the successors of a job with much state and few changes were never there.
#[test]
fn a_successor_that_keeps_up_reads_no_base_file_again() {
    let mut division = Division::new(2, 3);
    for key in 0..200 {
        division.put(0, 0, key, key);
        division.job.checkpoint();
    }
    division.job.fold().unwrap();
    division.begin();
    for index in 0..2 {
        let bases = division.job.disk.base_files(task(index));
        assert!(!bases.is_empty(), "task {index}");
        bases
            .iter()
            .for_each(|base| std::fs::write(base, b"").unwrap());
    }
    for key in 0..10 {
        division.put(0, 0, key, 100 + key);
        let checkpoint = division.job.persist();
        division.advance(checkpoint);
        division.job.complete(checkpoint);
    }
    division.check();
}

/// What was deleted until nothing was left stayed with the successor.
#[test]
fn what_predecessors_have_no_more_of_their_own_a_successor_has_not() {
    let mut division = Division::new(1, 1);
    division.put(0, 0, 70, 82);
    division.job.checkpoint();
    division.begin();
    // Nothing is known but what is on the disk.
    division.restart();
    division.put(0, 0, 145, 181);
    division.check();
    assert!(
        division.job.at_completed[0]
            .keys()
            .all(|(table, ..)| *table != OWN)
    );
}

/// Its view was built while the job waited, all of it.
#[test]
fn a_successor_that_is_too_large_for_memory_begins_with_a_view_and_reads_nothing_of_it() {
    let mut division = Division::new(1, 2);
    for key in 0..200 {
        division.put(0, 0, key, 1);
    }
    division.job.checkpoint();
    division.begin();
    division.view();
    for value in 0..40 {
        division.put(0, 0, value, 3);
        let checkpoint = division.job.persist();
        division.advance(checkpoint);
        division.job.complete(checkpoint);
        division.fold();
    }
    let kept: BTreeSet<TaskId> = division.successors.iter().map(|(of, _)| of.task).collect();
    division.job.store().await_no_successors();
    division.job.store().keep_only(&kept);
    for (successor, _) in &division.successors {
        let spilling = (0..3).map(|number| format!("operator {number}"));
        let restored = division.restore(successor, &spilling.collect());
        assert!(!restored.is_whole(), "it was read");
        let expected = division.expected(successor, 2);
        for (id, table) in &restored.tables {
            let number = id.operator.as_bytes().last().unwrap() - b'0';
            let of_table = expected.iter().filter(|((of, ..), _)| *of == number);
            let bytes = of_table.map(|((_, _, key), value)| key.len() + value.len());
            let (bytes, entries) = (bytes.clone().sum::<usize>(), bytes.count());
            assert_eq!(table.size(), (bytes as u64, entries as u64), "{id:?}");
        }
        let whole = division.restore(successor, &BTreeSet::new());
        assert_eq!(contents(&whole.tables), expected);
    }
}

/// It was made to its end, for minutes, and a deleted job's directory could not be removed meanwhile.
#[test]
fn a_view_of_a_successor_that_nobody_waits_for_any_more_is_cut_short() {
    let mut division = Division::new(1, 1);
    division.put(0, 0, 1, 1);
    division.job.checkpoint();
    division.begin();
    let (successor, _) = &division.successors[0];
    let store = division.job.store.as_ref().unwrap();
    store.await_no_successors();
    let viewed = store.view_successor(successor);
    assert!(matches!(viewed, Err(StateError::CutShort)), "{viewed:?}");
    assert!(!store.has_view(successor.task));
}
