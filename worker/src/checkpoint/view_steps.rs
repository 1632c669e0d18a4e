//! The steps of a fold, so that a crash in the middle of it costs one step and not the whole view.
//!
//! Before a step is written, the marker says which one it is and what the digest is once all of it is
//! written. A store loses the newest of its writes and no others: what a crash leaves is everything up to
//! some marker, and a part of its step. That step is written again, which changes nothing of what is there,
//! and the digest must be the marker's. A store that lost anything else has another one, and is built anew.

use std::ops::ControlFlow;

use common::ids::TaskId;
use common::kv::{Digest, KvError, KvStore, scan_prefix};

use super::changes::Changes;
use super::state_error::StateError;
use super::view::FLUSH_BYTES;
use super::view_layout::{
    ENTRY, PIECE, cut, entry_key, namespace_prefix, piece_count, piece_key, piece_number,
    piece_prefix, read_length, stored_length,
};
use super::view_sizes::ViewSizes;
use crate::keyed_state::overlay::Change;
use crate::keyed_state::section::TableId;

/// A step ends with this many changes, or as many bytes: its pages are read before they are written, and
/// should still be there.
const STEP_CHANGES: usize = 512;
const STEP_BYTES: usize = 256 << 10;

/// Keys that are removed at once.
const REMOVED_AT_ONCE: usize = 4_096;

/// A part of a fold. Writing it twice is like writing it once.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Clear(i64),
    Set(&'a [Change<'a>]),
}

/// The number of a step, its table, and what it does; says whether to go on.
type VisitStep<'v> =
    &'v mut dyn FnMut(u64, &TableId, Step<'_>) -> Result<ControlFlow<()>, StateError>;

/// One write to the store; `None` deletes.
pub(super) struct Write {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

impl Write {
    pub(super) fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// Goes through changes in steps: the same changes in the same ones, always.
pub(super) fn for_each_step(changes: &Changes<'_>, visit: VisitStep<'_>) -> Result<(), StateError> {
    let mut number = 0;
    let mut visit = |table: &TableId, step: Step<'_>| {
        number += 1;
        visit(number, table, step)
    };
    for table in changes.tables() {
        for namespace in changes.cleared(table) {
            if visit(table, Step::Clear(namespace))?.is_break() {
                return Ok(());
            }
        }
        for stretch in changes.stretches(table) {
            let read = changes.read(table, &stretch)?;
            let sorted = read.sorted(1);
            let mut rest = &sorted[..];
            while !rest.is_empty() {
                let (step, others) = rest.split_at(step_length(rest));
                if visit(table, Step::Set(step))?.is_break() {
                    return Ok(());
                }
                rest = others;
            }
        }
    }
    Ok(())
}

/// How many of these changes are one step: at least one.
fn step_length(changes: &[Change<'_>]) -> usize {
    let mut bytes = 0;
    let fits = |change: &&Change<'_>| {
        let fits = bytes < STEP_BYTES;
        bytes += change.key.len() + change.value.map_or(0, <[u8]>::len);
        fits
    };
    changes.iter().take(STEP_CHANGES).take_while(fits).count()
}

impl Step<'_> {
    /// What it sets, one write after the other; `digest` and `sizes` become what they are when all of it is written.
    pub(super) fn prepare(
        self,
        store: &dyn KvStore,
        task: TaskId,
        table: u16,
        digest: &mut Digest,
        sizes: &mut ViewSizes,
    ) -> Result<Vec<Write>, KvError> {
        let mut writes = Vec::new();
        match self {
            Step::Clear(namespace) => {
                sizes.clear(namespace);
                for kind in [ENTRY, PIECE] {
                    let prefix = namespace_prefix(kind, task, table, namespace);
                    scan_prefix(store, &prefix, &mut |key, value| {
                        digest.remove(key, value);
                        ControlFlow::Continue(())
                    })?;
                }
            }
            Step::Set(changes) => {
                for change in changes {
                    let entry = store.get(&entry_key(task, table, change.namespace, change.key))?;
                    let length = entry.as_deref().and_then(read_length);
                    if let Some(length) = length {
                        sizes.remove(change.namespace, change.key, length);
                    }
                    if let Some(value) = change.value {
                        sizes.add(change.namespace, change.key, value.len());
                    }
                    let first = writes.len();
                    let pieces = piece_count(length.unwrap_or(0));
                    push_writes(&mut writes, task, table, *change, pieces);
                    for (number, write) in writes[first..].iter().enumerate() {
                        let before = match number {
                            0 => entry.clone(),
                            _ => store.get(&write.key)?,
                        };
                        if let Some(before) = before {
                            digest.remove(&write.key, &before);
                        }
                        if let Some(value) = &write.value {
                            digest.add(&write.key, value);
                        }
                    }
                }
            }
        }
        Ok(writes)
    }

    /// Writes it again, where some of it may have been written before.
    pub(super) fn repeat(
        self,
        store: &dyn KvStore,
        task: TaskId,
        table: u16,
    ) -> Result<(), KvError> {
        let changes = match self {
            Step::Clear(namespace) => return clear(store, task, table, namespace),
            Step::Set(changes) => changes,
        };
        let mut writes = Vec::new();
        for change in changes {
            // The entry may tell of its new value already: only the pieces say how many there were.
            let prefix = piece_prefix(task, table, change.namespace, change.key);
            let mut pieces = 1;
            scan_prefix(store, &prefix, &mut |key, _| {
                pieces = pieces.max(1 + piece_number(key));
                ControlFlow::Continue(())
            })?;
            push_writes(&mut writes, task, table, *change, pieces);
        }
        perform(store, &writes)
    }

    /// Writes it, once it is prepared.
    pub(super) fn write(
        self,
        store: &dyn KvStore,
        task: TaskId,
        table: u16,
        writes: &[Write],
    ) -> Result<(), KvError> {
        match self {
            Step::Clear(namespace) => clear(store, task, table, namespace),
            Step::Set(_) => perform(store, writes),
        }
    }
}

/// What a change writes where a value of so many pieces may have been.
pub(super) fn push_writes(
    writes: &mut Vec<Write>,
    task: TaskId,
    table: u16,
    change: Change<'_>,
    pieces_before: usize,
) {
    let (namespace, key) = (change.namespace, change.key);
    let pieces = change.value.map(cut).unwrap_or_default();
    let first = change.value.map(|value| {
        let length = stored_length(value).to_be_bytes();
        [&length[..], pieces[0]].concat()
    });
    writes.push(Write {
        key: entry_key(task, table, namespace, key),
        value: first,
    });
    for number in 1..pieces.len().max(pieces_before) {
        writes.push(Write {
            key: piece_key(task, table, namespace, key, number),
            value: pieces.get(number).map(|piece| piece.to_vec()),
        });
    }
}

fn perform(store: &dyn KvStore, writes: &[Write]) -> Result<(), KvError> {
    for write in writes {
        match &write.value {
            Some(value) => store.put(&write.key, value)?,
            None => store.delete(&write.key)?,
        };
    }
    Ok(())
}

fn clear(store: &dyn KvStore, task: TaskId, table: u16, namespace: i64) -> Result<(), KvError> {
    for kind in [ENTRY, PIECE] {
        remove_all(store, &namespace_prefix(kind, task, table, namespace))?;
    }
    Ok(())
}

/// Removes every key that begins with `prefix`.
pub(super) fn remove_all(store: &dyn KvStore, prefix: &[u8]) -> Result<(), KvError> {
    let mut unflushed = 0;
    loop {
        let mut keys = Vec::new();
        scan_prefix(store, prefix, &mut |key, _| {
            keys.push(key.to_vec());
            match keys.len() < REMOVED_AT_ONCE {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        for key in &keys {
            store.delete(key)?;
            unflushed += key.len();
        }
        if unflushed >= FLUSH_BYTES / 4 {
            unflushed = 0;
            store.flush()?;
        }
        if keys.len() < REMOVED_AT_ONCE {
            return Ok(());
        }
    }
}
