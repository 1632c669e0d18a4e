//! What becomes of a sled directory whose files are damaged. It must never hang or end the process, and
//! never give other entries than were put there without someone noticing: `Damaged`, or the digest.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use super::{Digest, KvError, KvStore, SledOptions, SledStore};
use crate::random::{Random, below, seeded};
use crate::time::Span;

const OPTIONS: SledOptions = SledOptions {
    cache_capacity: 1 << 20,
};
const KEYS: u32 = 2_000;
const MARKER: &[u8] = b"marker";

fn value(key: u32) -> Vec<u8> {
    key.to_be_bytes().repeat(20)
}

/// A store with known keys, overwritten a few times so that its log has seen garbage.
fn pristine(directory: &Path) {
    let store = SledStore::open(directory, OPTIONS).unwrap();
    let mut digest = Digest::default();
    for round in 0..3 {
        for key in 0..KEYS {
            let bytes = key.to_be_bytes();
            let value = if round == 2 {
                value(key)
            } else {
                vec![round; 50]
            };
            if let Some(before) = store.put(&bytes, &value).unwrap() {
                digest.remove(&bytes, &before);
            }
            digest.add(&bytes, &value);
        }
        store.flush().unwrap();
    }
    store.put(MARKER, &digest.to_bytes()).unwrap();
    store.flush().unwrap();
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    FlippedBit,
    Cut,
    Garbage,
    Gone,
}

fn inflict(damage: Damage, file: &Path, random: &mut Random) {
    let mut bytes = std::fs::read(file).unwrap();
    let at = below(random, bytes.len() as u64) as usize;
    match damage {
        Damage::FlippedBit => bytes[at] ^= 1 << below(random, 8),
        Damage::Cut => bytes.truncate(at),
        Damage::Garbage => {
            let count = below(random, 4096) as usize;
            for byte in bytes.iter_mut().skip(at).take(count) {
                *byte = below(random, 256) as u8;
            }
        }
        Damage::Gone => return std::fs::remove_file(file).unwrap(),
    }
    std::fs::write(file, &bytes).unwrap();
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Right,
    Damaged,
    NoticedByDigest,
}

/// Uses a store as its owner does: reads everything back, compares, writes, flushes.
fn use_it(directory: &Path) -> Result<Outcome, KvError> {
    let store = SledStore::open(directory, OPTIONS)?;
    let mut digest = Digest::default();
    let mut right = 0;
    store.scan(&[], None, &mut |key, found| {
        if let Ok(bytes) = <[u8; 4]>::try_from(key) {
            digest.add(key, found);
            right += u32::from(found == value(u32::from_be_bytes(bytes)));
        }
        ControlFlow::Continue(())
    })?;
    let expected = store.get(MARKER)?;
    for key in 0..200_u32 {
        store.put(&key.to_be_bytes(), b"overwritten")?;
    }
    store.flush()?;
    if expected.as_deref() != Some(&digest.to_bytes()[..]) {
        return Ok(Outcome::NoticedByDigest);
    }
    assert_eq!(right, KEYS, "entries are wrong and nobody noticed");
    Ok(Outcome::Right)
}

/// The same on a thread that is given up on when it takes too long.
fn use_it_in_time(directory: &Path) -> Outcome {
    let (sender, receiver) = mpsc::channel();
    let directory = directory.to_owned();
    std::thread::spawn(move || sender.send(use_it(&directory)));
    let outcome = receiver
        .recv_timeout(Span::from_secs(60).as_duration())
        .expect("the store answers in time and without a panic");
    match outcome {
        Ok(outcome) => outcome,
        Err(KvError::Damaged { .. }) => Outcome::Damaged,
        Err(error) => panic!("{error}: {error:?}"),
    }
}

#[test]
fn damage_to_any_file_is_noticed_in_time() {
    let source = tempfile::tempdir().unwrap();
    pristine(source.path());
    let mut random = seeded(1, 0);
    let mut outcomes = Vec::new();
    for damage in [
        Damage::FlippedBit,
        Damage::Cut,
        Damage::Garbage,
        Damage::Gone,
    ] {
        for file in files(source.path()) {
            for _ in 0..12 {
                let directory = tempfile::tempdir().unwrap();
                copy(source.path(), directory.path());
                let target = directory.path().join(file.file_name().unwrap());
                inflict(damage, &target, &mut random);
                outcomes.push(use_it_in_time(directory.path()));
            }
        }
    }
    assert!(outcomes.contains(&Outcome::Damaged));
    assert!(outcomes.contains(&Outcome::NoticedByDigest));
    let untouched = tempfile::tempdir().unwrap();
    copy(source.path(), untouched.path());
    assert_eq!(use_it_in_time(untouched.path()), Outcome::Right);
}

#[test]
fn a_store_that_is_open_elsewhere_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let first = SledStore::open(directory.path(), OPTIONS).unwrap();
    first.put(b"a", b"1").unwrap();
    let path = directory.path().to_owned();
    let second = std::thread::spawn(move || SledStore::open(&path, OPTIONS));
    first.flush().unwrap();
    drop(first);
    let second = second.join().unwrap().unwrap();
    assert_eq!(second.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
}
