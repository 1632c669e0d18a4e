//! What every `KvStore` has to do: each test runs on sled and in memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;

use super::{KvError, KvStore, MAX_VALUE_BYTES, MemoryStore, SledOptions, SledStore, scan_prefix};
use crate::random::{below, seeded};

const OPTIONS: SledOptions = SledOptions {
    cache_capacity: 1 << 20,
};

fn sled(directory: &Path) -> SledStore {
    SledStore::open(directory, OPTIONS).unwrap()
}

fn on_every_store(test: impl Fn(&dyn KvStore)) {
    test(&MemoryStore::new());
    let directory = tempfile::tempdir().unwrap();
    test(&sled(directory.path()));
}

fn all(store: &dyn KvStore, start: &[u8], end: Option<&[u8]>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    store
        .scan(start, end, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

#[test]
fn what_is_put_is_got_and_what_is_deleted_is_not() {
    on_every_store(|store| {
        assert_eq!(store.get(b"a").unwrap(), None);
        store.put(b"a", b"1").unwrap();
        store.put(b"", b"empty key").unwrap();
        store.put(b"b", b"").unwrap();
        assert_eq!(store.put(b"a", b"2").unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(store.get(b"a").unwrap().as_deref(), Some(&b"2"[..]));
        assert_eq!(store.get(b"").unwrap().as_deref(), Some(&b"empty key"[..]));
        assert_eq!(store.get(b"b").unwrap().as_deref(), Some(&b""[..]));
        assert_eq!(store.delete(b"a").unwrap().as_deref(), Some(&b"2"[..]));
        assert_eq!(store.delete(b"never there").unwrap(), None);
        assert_eq!(store.get(b"a").unwrap(), None);
        let largest = vec![7; MAX_VALUE_BYTES];
        store.put(b"large", &largest).unwrap();
        assert_eq!(store.get(b"large").unwrap().unwrap(), largest);
    });
}

#[test]
fn a_scan_may_stop_and_its_visitor_may_write() {
    on_every_store(|store| {
        for i in 0..10_u8 {
            store.put(&[i], &[i]).unwrap();
        }
        let mut seen = Vec::new();
        store
            .scan(&[2], None, &mut |key, _| {
                seen.push(key[0]);
                store.delete(key).unwrap();
                if seen.len() == 3 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .unwrap();
        assert_eq!(seen, [2, 3, 4]);
        assert_eq!(all(store, &[], None).len(), 7);
        assert!(all(store, &[5], Some(&[5])).is_empty());
        assert!(all(store, &[6], Some(&[5])).is_empty());
    });
}

#[test]
fn a_prefix_is_scanned_up_to_its_last_key() {
    on_every_store(|store| {
        for key in [
            &b"a"[..],
            b"a\xfe",
            b"a\xff",
            b"a\xff\xff",
            b"b",
            b"\xff\xff",
        ] {
            store.put(key, b"").unwrap();
        }
        let count = |prefix: &[u8]| {
            let mut count = 0;
            scan_prefix(store, prefix, &mut |_, _| {
                count += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
            count
        };
        assert_eq!(
            [count(b"a"), count(b"a\xff"), count(b"\xff"), count(b"")],
            [4, 2, 1, 6]
        );
    });
}

#[test]
fn what_was_flushed_is_there_after_opening_again() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..5_u8 {
        let store = sled(directory.path());
        for earlier in 0..round {
            assert_eq!(store.get(&[earlier]).unwrap().unwrap(), [earlier; 100][..]);
        }
        store.put(&[round], &[round; 100]).unwrap();
        store.flush().unwrap();
    }
}

#[test]
fn a_crash_loses_only_the_newest_writes_and_no_flushed_one() {
    for seed in 0..200 {
        let store = MemoryStore::new();
        let mut random = seeded(seed, 0);
        let flushed = below(&mut random, 20) as u8;
        for i in 0..20 {
            if i == flushed {
                store.flush().unwrap();
            }
            store.put(&[i], &[]).unwrap();
        }
        store.lose_unflushed(&mut random);
        let left = all(&store, &[], None).len();
        assert!(left >= usize::from(flushed));
        let expected: Vec<_> = (0..left as u8).map(|i| (vec![i], vec![])).collect();
        assert_eq!(all(&store, &[], None), expected);
    }
}

#[test]
fn a_damaged_store_says_so_to_everyone() {
    let store = MemoryStore::new();
    store.damage();
    assert!(matches!(store.get(b"a"), Err(KvError::Damaged { .. })));
    assert!(matches!(store.put(b"a", b""), Err(KvError::Damaged { .. })));
    assert!(matches!(store.flush(), Err(KvError::Damaged { .. })));
}

#[test]
fn threads_that_write_read_and_flush_at_once_do_not_disturb_each_other() {
    on_every_store(|store| {
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                scope.spawn(move || {
                    let mut random = seeded(7, thread);
                    let mut model = BTreeMap::new();
                    let prefix = thread.to_be_bytes();
                    for step in 0..3_000_u64 {
                        let key = [&prefix[..], &below(&mut random, 200).to_be_bytes()].concat();
                        match below(&mut random, 10) {
                            0..=5 => {
                                let size = below(&mut random, 600) as usize;
                                let value = vec![step as u8; size];
                                store.put(&key, &value).unwrap();
                                model.insert(key, Bytes::from(value));
                            }
                            6 => {
                                store.delete(&key).unwrap();
                                model.remove(&key);
                            }
                            7 | 8 => assert_eq!(store.get(&key).unwrap().as_ref(), model.get(&key)),
                            _ if step % 97 == 0 => store.flush().unwrap(),
                            _ => {}
                        }
                    }
                    let found = all(store, &prefix, Some(&(thread + 1).to_be_bytes()));
                    assert!(
                        found
                            .iter()
                            .map(|(k, v)| (k, &v[..]))
                            .eq(model.iter().map(|(k, v)| (k, &v[..])))
                    );
                });
            }
        });
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn a_store_is_an_ordered_map(
        steps in prop::collection::vec(
            (prop::collection::vec(0_u8..4, 0..4), prop::option::of(prop::collection::vec(any::<u8>(), 0..20))),
            0..100,
        ),
        start in prop::collection::vec(0_u8..4, 0..4),
        end in prop::collection::vec(0_u8..4, 0..4),
    ) {
        on_every_store(|store| {
            let mut model = BTreeMap::new();
            for (key, value) in &steps {
                match value {
                    Some(value) => {
                        store.put(key, value).unwrap();
                        model.insert(key.clone(), value.clone());
                    }
                    None => {
                        store.delete(key).unwrap();
                        model.remove(key);
                    }
                }
            }
            let expected: Vec<_> = model
                .iter()
                .filter(|(key, _)| **key >= start && **key < end)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            assert_eq!(all(store, &start, Some(&end)), expected);
            assert_eq!(all(store, &[], None), model.into_iter().collect::<Vec<_>>());
        });
    }
}
