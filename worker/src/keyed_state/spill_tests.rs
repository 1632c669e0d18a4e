//! A table that keeps only some of itself in memory against a plain map: whatever is written, sealed,
//! completed, folded, forgotten and restored, and whenever, it reads like the map.

use std::collections::BTreeMap;
use std::convert::Infallible;

use common::ids::CheckpointId;
use proptest::prelude::*;

use super::overlay::Overlay;
use super::stored::{Answer, Ask, AskRange, LARGEST_STORED_VALUE, StoredRange, Until};
use super::table::{At, StoredTable, Table};

pub(crate) type Map = BTreeMap<(i64, Vec<u8>), Vec<u8>>;

#[derive(Clone, Debug)]
enum Step {
    Put(i64, u8, usize),
    Delete(i64, u8),
    Clear(i64),
    Seal,
    Complete(usize),
    /// The store gets everything up to one of the checkpoints it may have; the table is not told yet.
    FoldBegins(usize),
    FoldEnds,
    Evict(u64),
    /// From the completed checkpoint, with so many entries in memory.
    Restore(usize),
    /// To the completed checkpoint, with what is in memory.
    Rollback,
}

fn step() -> impl Strategy<Value = Step> {
    let namespace = || 0_i64..3;
    let key = || 0_u8..12;
    prop_oneof![
        12 => (namespace(), key(), 0_usize..20).prop_map(|(n, k, v)| Step::Put(n, k, v)),
        4 => (namespace(), key()).prop_map(|(n, k)| Step::Delete(n, k)),
        1 => namespace().prop_map(Step::Clear),
        4 => Just(Step::Seal),
        4 => any::<usize>().prop_map(Step::Complete),
        3 => any::<usize>().prop_map(Step::FoldBegins),
        3 => Just(Step::FoldEnds),
        5 => prop_oneof![Just(1), Just(300), Just(u64::MAX)].prop_map(Step::Evict),
        1 => (0_usize..20).prop_map(Step::Restore),
        1 => Just(Step::Rollback),
    ]
}

/// A table, its store, and what both should have.
struct World {
    table: Table,
    store: Map,
    /// How far the store is, and the table knows.
    stored_at: Option<CheckpointId>,
    told: Option<CheckpointId>,
    live: Map,
    sealed: BTreeMap<CheckpointId, Map>,
    deltas: BTreeMap<CheckpointId, Overlay>,
    completed: Option<CheckpointId>,
    previous: Option<CheckpointId>,
    next: CheckpointId,
    asked: usize,
}

impl World {
    fn new() -> World {
        let mut table = Table::default();
        table.spill();
        World {
            table,
            store: Map::new(),
            stored_at: None,
            told: None,
            live: Map::new(),
            sealed: BTreeMap::new(),
            deltas: BTreeMap::new(),
            completed: None,
            previous: None,
            next: CheckpointId(1),
            asked: 0,
        }
    }

    /// As an operator does before it touches a key.
    fn prepare(&mut self, namespace: i64, key: u8) {
        let unknown = self.table.unknown([(namespace, &[key][..])]);
        if !unknown.is_empty() {
            self.asked += 1;
            self.table.load(answer(&self.store, Ask::Keys(unknown)));
        }
    }

    fn act(&mut self, step: Step) {
        match step {
            Step::Put(namespace, key, size) => {
                self.prepare(namespace, key);
                let value = vec![key; size];
                self.table.put(namespace, &[key], &value);
                self.live.insert((namespace, vec![key]), value);
            }
            Step::Delete(namespace, key) => {
                self.prepare(namespace, key);
                self.table.delete(namespace, &[key]);
                self.live.remove(&(namespace, vec![key]));
            }
            Step::Clear(namespace) => {
                self.table.clear_namespace(namespace);
                self.live.retain(|(other, _), _| *other != namespace);
            }
            Step::Seal => {
                self.table.seal(self.next);
                if let Some(delta) = self.table.delta(self.next) {
                    // A copy: the table may take over what nobody else holds.
                    self.deltas.insert(self.next, (*delta).clone());
                }
                self.sealed.insert(self.next, self.live.clone());
                self.next = self.next.next();
            }
            Step::Complete(index) => {
                let sealed = self.sealed.keys().copied();
                let open: Vec<_> = sealed.filter(|c| self.completed < Some(*c)).collect();
                if !open.is_empty() {
                    self.previous = self.completed;
                    self.completed = Some(open[index % open.len()]);
                    self.table.complete(self.completed.unwrap());
                }
            }
            Step::FoldBegins(index) => {
                let sealed = self.sealed.keys().copied();
                let may_be: Vec<_> = sealed
                    .filter(|c| self.stored_at < Some(*c) && Some(*c) <= self.previous)
                    .collect();
                if !may_be.is_empty() {
                    let to = may_be[index % may_be.len()];
                    self.store.clone_from(&self.sealed[&to]);
                    self.stored_at = Some(to);
                }
            }
            Step::FoldEnds => {
                if let Some(at) = self.stored_at.filter(|at| self.told < Some(*at)) {
                    self.table.folded(at);
                    self.told = Some(at);
                }
            }
            Step::Evict(bytes) => {
                self.table.evict(bytes);
            }
            Step::Restore(in_memory) => {
                if let Some(at) = self.completed {
                    self.restore(at, in_memory);
                }
            }
            Step::Rollback => {
                if let Some(at) = self.completed {
                    self.table.rollback(at).unwrap();
                    self.forget_after(at);
                }
            }
        }
    }

    fn restore(&mut self, at: CheckpointId, in_memory: usize) {
        let mut stored = StoredTable::default();
        for (number, ((namespace, key), value)) in self.store.iter().enumerate() {
            let size: &mut (u64, u64) = stored.sizes.entry(*namespace).or_default();
            *size = (size.0 + (key.len() + value.len()) as u64, size.1 + 1);
            if number < in_memory {
                stored.entries.put(*namespace, key, value);
            }
        }
        let mut changes = Overlay::default();
        let replayed = self.deltas.range(..=at);
        for (_, delta) in replayed.filter(|(delta, _)| self.stored_at < Some(**delta)) {
            for namespace in delta.cleared() {
                changes.clear_namespace(namespace);
            }
            for change in delta.sorted(1) {
                match change.value {
                    Some(value) => changes.put(change.namespace, change.key, value),
                    None => changes.delete(change.namespace, change.key),
                }
            }
        }
        let store = &self.store;
        let mut ask = |ask| Ok::<_, Infallible>(answer(store, ask));
        self.table = Table::restored_from_store(at, stored, changes, &mut ask).unwrap();
        self.told = self.stored_at;
        self.previous = Some(at);
        self.forget_after(at);
    }

    fn forget_after(&mut self, at: CheckpointId) {
        self.live = self.sealed[&at].clone();
        self.sealed.retain(|checkpoint, _| *checkpoint <= at);
        self.deltas.retain(|checkpoint, _| *checkpoint <= at);
    }

    /// All there is, read in pages of so many bytes and entries.
    fn read(&self, at: At, bytes: usize, limit: usize) -> Map {
        let mut map = Map::new();
        for namespace in self.table.namespaces_at(at, i64::MIN).unwrap() {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let ask = self
                    .table
                    .ask_range(at, [namespace], after.as_deref(), bytes);
                let range = match ask.map(|ask| answer(&self.store, Ask::Range(ask))) {
                    Some(Answer::Range(range)) => range,
                    Some(Answer::Keys(_)) => unreachable!("a range was asked for"),
                    None => StoredRange::default(),
                };
                let page = self
                    .table
                    .page(at, namespace, after.as_deref(), &range, limit)
                    .unwrap();
                for (key, value) in &page {
                    let before = map.insert((namespace, key.to_vec()), value.to_vec());
                    assert_eq!(before, None, "each entry comes once");
                }
                after = match (page.len() == limit, &range.until) {
                    (true, _) => page.last().map(|(key, _)| key.to_vec()),
                    (false, Until::Key(last)) => Some(last.clone()),
                    (false, Until::End) => break,
                };
            }
        }
        map
    }

    fn check(&mut self, pages: (usize, usize)) {
        let (bytes, limit) = pages;
        assert_eq!(self.read(At::Live, bytes, limit), self.live);
        let size = self.live.iter().map(|((_, k), v)| k.len() + v.len());
        let size = (size.sum::<usize>() as u64, self.live.len() as u64);
        assert_eq!(self.table.size(), size);
        for (checkpoint, map) in &self.sealed {
            if self.previous <= Some(*checkpoint) {
                assert_eq!(&self.read(At::Completed(*checkpoint), bytes, limit), map);
            }
        }
        for ((namespace, key), value) in &self.live {
            if self.table.is_known(*namespace, key) {
                assert_eq!(self.table.get(*namespace, key), Some(&value[..]));
            }
        }
    }
}

/// What a store with these entries answers.
pub(crate) fn answer(store: &Map, ask: Ask) -> Answer {
    match ask {
        Ask::Keys(keys) => {
            let found = keys.into_iter().map(|(namespace, key)| {
                let value = store.get(&(namespace, key.clone())).cloned();
                (namespace, key, value)
            });
            Answer::Keys(found.collect())
        }
        Ask::Range(AskRange {
            namespaces,
            after,
            bytes,
        }) => {
            let wanted = |namespace: &i64, key: &[u8]| {
                namespaces.contains(namespace) && after.as_deref().is_none_or(|after| key > after)
            };
            let mut found: Vec<_> = store
                .iter()
                .filter(|((namespace, key), _)| wanted(namespace, key))
                .collect();
            found.sort_by_key(|((namespace, key), _)| (key, namespace));
            let mut range = StoredRange::default();
            let mut taken = 0;
            for (number, ((namespace, key), value)) in found.iter().enumerate() {
                taken += key.len() + value.len();
                let entry = ((*namespace, key.clone()), (*value).clone());
                range.entries.insert(entry.0, entry.1);
                let next = found.get(number + 1).map(|((_, next), _)| next);
                if taken >= bytes && next.is_some_and(|next| next != key) {
                    range.until = Until::Key(key.clone());
                    break;
                }
            }
            Answer::Range(range)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn a_table_that_is_mostly_in_its_store_reads_like_a_map(
        steps in prop::collection::vec(step(), 1..120),
        pages in (1_usize..60, 1_usize..5),
    ) {
        let mut world = World::new();
        for step in steps {
            world.act(step);
            world.check(pages);
        }
    }
}

/// A table with `keys` completed and folded entries of a hundred bytes.
fn folded(keys: u32) -> World {
    let mut world = World::new();
    for key in 0..keys {
        let key = key.to_be_bytes();
        world.table.put(0, &key, &[7; 96]);
        world.live.insert((0, key.to_vec()), vec![7; 96]);
    }
    for step in [Step::Seal, Step::Complete(0), Step::Seal, Step::Complete(0)] {
        world.act(step);
    }
    world.act(Step::FoldBegins(0));
    world.act(Step::FoldEnds);
    world
}

fn evict_to(table: &mut Table, bytes: u64) {
    while table.footprint() > bytes && table.evict(table.footprint() - bytes) {}
}

#[test]
fn what_is_evicted_gives_its_memory_back_and_what_is_read_again_takes_no_more_than_that() {
    let mut world = folded(100_000);
    let before = world.table.footprint();
    assert!(before > 10_000_000, "{before}");
    evict_to(&mut world.table, before / 2);
    let half = world.table.footprint();
    assert!(half < before * 6 / 10, "{half} of {before}");
    assert!(half > before * 3 / 10, "more than was asked for: {half}");
    while world.table.evict(u64::MAX) {}
    assert!(world.table.footprint() < 4_096);
    assert_eq!(world.table.size(), (100_000 * 100, 100_000));

    for round in 0..20_u32 {
        let keys: Vec<[u8; 4]> = (round * 1_000..(round + 1) * 1_000)
            .map(u32::to_be_bytes)
            .collect();
        let unknown = world.table.unknown(keys.iter().map(|key| (0, &key[..])));
        assert_eq!(unknown.len(), 1_000);
        world.table.load(answer(&world.store, Ask::Keys(unknown)));
        assert!(
            keys.iter()
                .all(|key| world.table.get(0, key) == Some(&[7; 96][..]))
        );
        while world.table.evict(u64::MAX) {}
    }
    assert!(world.table.footprint() < 4_096);
}

/// All of it at a stroke took seconds of a large table, and barriers waited.
#[test]
fn memory_is_given_back_a_little_at_a_time() {
    let mut world = folded(100_000);
    let before = world.table.footprint();
    let mut times = 1;
    assert!(world.table.evict(u64::MAX));
    assert!(world.table.footprint() > before / 2);
    while world.table.evict(u64::MAX) {
        times += 1;
    }
    assert!(times > 1);
    assert!(world.table.footprint() < 4_096);
    // Enough is enough.
    let mut world = folded(100_000);
    evict_to(&mut world.table, before / 4 * 3);
    assert!(world.table.footprint() > before / 2);
}

#[test]
fn what_the_store_does_not_have_yet_stays() {
    let mut world = folded(1_000);
    let (changed, gone) = (5_u32.to_be_bytes(), 6_u32.to_be_bytes());
    world.table.put(0, &changed, b"new");
    world.table.delete(0, &gone);
    world
        .table
        .put(0, b"large", &vec![1; LARGEST_STORED_VALUE + 1]);
    world.act(Step::Seal);
    world.act(Step::Complete(0));
    world.act(Step::Seal);
    world.act(Step::Complete(0));
    while world.table.evict(u64::MAX) {}
    assert_eq!(world.table.get(0, &changed), Some(&b"new"[..]));
    assert_eq!(world.table.get(0, &gone), None);
    assert!(!world.table.is_known(0, &7_u32.to_be_bytes()));

    // Folded, they may go; but what the store does not keep stays for good.
    world.table.folded(CheckpointId(3));
    while world.table.evict(u64::MAX) {}
    assert!(!world.table.is_known(0, &changed));
    assert!(!world.table.is_known(0, &gone));
    assert!(world.table.is_known(0, b"large"));
}

#[test]
#[should_panic(expected = "that the store was not asked for")]
fn who_reads_a_key_without_asking_is_stopped() {
    let mut world = folded(10);
    while world.table.evict(u64::MAX) {}
    world.table.get(0, &3_u32.to_be_bytes());
}
