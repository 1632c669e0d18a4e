//! A table against a plain map: any interleaving of writes, seals, completions and rollbacks reads like the
//! map, and every checkpoint that is still kept reads like the map did when it was sealed.

use std::collections::BTreeMap;

use common::ids::CheckpointId;
use common::key_group::key_group;
use proptest::prelude::*;

use super::overlay::Overlay;
use super::stored::StoredRange;
use super::table::{At, EpochGone, Table};

type Map = BTreeMap<(i64, Vec<u8>), Vec<u8>>;

fn contents(table: &Table, at: At) -> Map {
    let entries = table.entries(at).expect("the state is kept");
    let sorted = entries
        .windows(2)
        .all(|pair| (pair[0].0, pair[0].1) < (pair[1].0, pair[1].1));
    assert!(sorted, "entries come by namespace and key, each once");
    entries
        .into_iter()
        .map(|(namespace, key, value)| ((namespace, key.to_vec()), value.to_vec()))
        .collect()
}

/// What is left of a delta once it is written and read back: applied to the map of the checkpoint before.
fn apply(map: &mut Map, delta: &Overlay) {
    let cleared: Vec<i64> = delta.cleared().collect();
    map.retain(|(namespace, _), _| !cleared.contains(namespace));
    for change in delta.sorted(16) {
        let key = (change.namespace, change.key.to_vec());
        match change.value {
            Some(value) => map.insert(key, value.to_vec()),
            None => map.remove(&key),
        };
    }
}

#[test]
fn a_read_sees_the_newest_layer_that_knows_the_key() {
    let mut table = Table::default();
    table.put(0, b"a", b"1");
    table.put(0, b"b", b"1");
    table.seal(CheckpointId(1));
    table.put(0, b"a", b"2");
    table.delete(0, b"b");
    assert_eq!(table.get(0, b"a"), Some(&b"2"[..]));
    assert_eq!(table.get(0, b"b"), None);
    assert_eq!(table.get(1, b"a"), None);
    let sealed = At::Completed(CheckpointId(1));
    assert_eq!(table.get_at(sealed, 0, b"b"), Ok(Some(&b"1"[..])));
    assert_eq!(table.size(), (2, 1));
}

#[test]
fn a_cleared_namespace_hides_every_older_layer_and_nothing_newer() {
    let mut table = Table::default();
    table.put(60_000, b"a", b"1");
    table.seal(CheckpointId(1));
    table.put(60_000, b"b", b"1");
    table.put(120_000, b"a", b"1");
    table.clear_namespace(60_000);
    assert_eq!(table.namespaces().collect::<Vec<_>>(), [120_000]);
    table.put(60_000, b"c", b"1");
    table.seal(CheckpointId(2));
    table.complete(CheckpointId(1));
    table.complete(CheckpointId(2));
    table.seal(CheckpointId(3));
    table.complete(CheckpointId(3));
    let mut keys = Vec::new();
    table.for_each(60_000, |key, _| keys.push(key.to_vec()));
    assert_eq!(keys, [b"c"]);
}

#[test]
fn what_comes_and_goes_within_one_checkpoint_leaves_no_trace() {
    let mut table = Table::default();
    table.put(0, b"a", b"1");
    table.delete(0, b"a");
    table.put(60_000, b"a", b"1");
    table.clear_namespace(60_000);
    table.seal(CheckpointId(1));
    assert!(table.delta(CheckpointId(1)).is_none());
}

#[test]
fn the_newest_completed_checkpoint_and_the_one_before_can_be_read() {
    let mut table = Table::default();
    for checkpoint in 1..=4 {
        table.put(0, b"a", &[checkpoint]);
        table.seal(CheckpointId(u64::from(checkpoint)));
        table.complete(CheckpointId(u64::from(checkpoint)));
    }
    let read = |checkpoint| table.get_at(At::Completed(CheckpointId(checkpoint)), 0, b"a");
    assert_eq!(read(4), Ok(Some(&[4][..])));
    assert_eq!(read(3), Ok(Some(&[3][..])));
    let gone = EpochGone {
        asked: CheckpointId(2),
        oldest: CheckpointId(3),
    };
    assert_eq!(read(2), Err(gone));
    assert_eq!(table.entries(At::Completed(CheckpointId(2))), None);
}

#[test]
fn values_of_any_size_are_overwritten_by_values_of_any_size() {
    let mut table = Table::default();
    let sizes = [
        0,
        1,
        7,
        8,
        9,
        100,
        5_000,
        (1 << 20) - 20,
        1 << 20,
        3 << 20,
        3,
    ];
    for (round, size) in sizes.into_iter().enumerate() {
        for key in 0..3_u8 {
            table.put(0, &[key], &vec![round as u8 + key; size]);
        }
        for key in 0..3_u8 {
            assert_eq!(table.get(0, &[key]).unwrap(), vec![round as u8 + key; size]);
        }
        assert_eq!(table.size(), (3 * (size as u64 + 1), 3));
    }
}

#[test]
fn keys_overwritten_again_and_again_do_not_fill_the_memory() {
    let mut overlay = Overlay::default();
    for round in 0..2_000_usize {
        for key in 0..20_u8 {
            overlay.put(0, &[key], &vec![key; (round * 37) % 900]);
        }
    }
    for change in overlay.sorted(1) {
        assert_eq!(
            change.value.unwrap(),
            vec![change.key[0]; (1_999 * 37) % 900]
        );
    }
    assert!(overlay.space(0).unwrap().footprint() < 400_000);
}

#[test]
fn a_delta_is_sorted_by_key_group_namespace_and_key() {
    let mut overlay = Overlay::default();
    for i in 0..500_u16 {
        overlay.put(i64::from(i % 3) * 1_000, &i.to_be_bytes(), b"");
    }
    let changes = overlay.sorted(64);
    assert!(changes.is_sorted_by_key(|c| (c.group, c.namespace, c.key)));
    assert!(changes.iter().all(|c| c.group == key_group(c.key, 64)));
    assert_eq!(changes.len(), 500);
}

#[derive(Clone, Debug)]
enum Step {
    Put(i64, u8, usize),
    Delete(i64, u8),
    Clear(i64),
    Seal,
    /// Completes one of the sealed checkpoints that may be completed.
    Complete(prop::sample::Index),
    Rollback,
    /// Someone holds a delta for a while, as persisting does.
    Hold,
}

fn step() -> impl Strategy<Value = Step> {
    let namespace = || 0_i64..3;
    let key = || 0_u8..6;
    prop_oneof![
        8 => (namespace(), key(), 0_usize..20).prop_map(|(n, k, v)| Step::Put(n, k, v)),
        3 => (namespace(), key()).prop_map(|(n, k)| Step::Delete(n, k)),
        1 => namespace().prop_map(Step::Clear),
        3 => Just(Step::Seal),
        2 => any::<prop::sample::Index>().prop_map(Step::Complete),
        1 => Just(Step::Rollback),
        1 => Just(Step::Hold),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn a_table_reads_like_a_map_now_and_at_every_checkpoint_it_keeps(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut table = Table::default();
        let mut live = Map::new();
        // What each sealed checkpoint saw; and what its deltas add up to.
        let mut sealed: BTreeMap<CheckpointId, Map> = BTreeMap::new();
        let mut replayed = Map::new();
        let (mut completed, mut previous) = (None, None);
        let mut next = CheckpointId(1);
        let mut held = Vec::new();
        for step in steps {
            match step {
                Step::Put(namespace, key, size) => {
                    let value = vec![key; size];
                    table.put(namespace, &[key], &value);
                    live.insert((namespace, vec![key]), value);
                }
                Step::Delete(namespace, key) => {
                    table.delete(namespace, &[key]);
                    live.remove(&(namespace, vec![key]));
                }
                Step::Clear(namespace) => {
                    table.clear_namespace(namespace);
                    live.retain(|(other, _), _| *other != namespace);
                }
                Step::Seal => {
                    table.seal(next);
                    if let Some(delta) = table.delta(next) {
                        apply(&mut replayed, &delta);
                    }
                    prop_assert_eq!(&replayed, &live);
                    sealed.insert(next, live.clone());
                    next = next.next();
                }
                Step::Complete(index) => {
                    let open: Vec<CheckpointId> =
                        sealed.keys().copied().filter(|c| completed < Some(*c)).collect();
                    if !open.is_empty() {
                        previous = completed;
                        completed = Some(*index.get(&open));
                        table.complete(completed.unwrap());
                    }
                }
                Step::Rollback => if let Some(to) = completed {
                    table.rollback(to).unwrap();
                    sealed.retain(|checkpoint, _| *checkpoint <= to);
                    live = sealed[&to].clone();
                    replayed = live.clone();
                },
                Step::Hold => held.extend(table.delta(CheckpointId(next.0 - 1))),
            }
            prop_assert_eq!(&contents(&table, At::Live), &live);
            for ((namespace, key), value) in &live {
                prop_assert_eq!(table.get(*namespace, key), Some(&value[..]));
            }
            let namespaces: Vec<i64> = table.namespaces().collect();
            let mut expected: Vec<i64> = live.keys().map(|(namespace, _)| *namespace).collect();
            expected.dedup();
            prop_assert_eq!(namespaces, expected);
            let bytes: usize = live.iter().map(|((_, key), value)| key.len() + value.len()).sum();
            prop_assert_eq!(table.size(), (bytes as u64, live.len() as u64));
            for (checkpoint, map) in &sealed {
                let at = At::Completed(*checkpoint);
                if previous <= Some(*checkpoint) {
                    prop_assert_eq!(&contents(&table, at), map);
                } else {
                    prop_assert_eq!(table.entries(at), None);
                }
            }
        }
    }

    #[test]
    fn pages_put_together_are_all_entries(
        entries in prop::collection::vec((0_i64..4, 0_u8..40), 0..60),
        limit in 1_usize..7,
    ) {
        let mut table = Table::default();
        for (i, (namespace, key)) in entries.iter().enumerate() {
            table.put(*namespace, &[*key], &[i as u8]);
            if i % 7 == 0 {
                table.seal(CheckpointId(i as u64 + 1));
            }
        }
        let mut paged = Vec::new();
        for namespace in table.namespaces_at(At::Live, i64::MIN).unwrap() {
            let mut after: Option<&[u8]> = None;
            loop {
                let nothing = StoredRange::default();
                let page: Vec<(Vec<u8>, Vec<u8>)> = table
                    .page(At::Live, namespace, after, &nothing, limit)
                    .unwrap()
                    .into_iter()
                    .map(|(key, value)| (key.to_vec(), value.to_vec()))
                    .collect();
                prop_assert!(page.len() <= limit);
                if page.is_empty() {
                    break;
                }
                paged.extend(page.into_iter().map(|(key, value)| (namespace, key, value)));
                after = paged.last().map(|(_, key, _)| key.as_slice());
            }
        }
        let all: Vec<_> = contents(&table, At::Live)
            .into_iter()
            .map(|((namespace, key), value)| (namespace, key, value))
            .collect();
        prop_assert_eq!(paged, all);
    }
}
