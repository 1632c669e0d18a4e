//! Answers of a view to what its task asks it: values of keys, stretches of namespaces.

use std::ops::ControlFlow;

use common::ids::TaskId;
use common::kv::{KvError, KvStore, after_prefix};

use super::view_layout::{
    ENTRY, LENGTH, catalog_key, entry_key, namespace_prefix, piece_count, piece_key, read_length,
};
use crate::keyed_state::section::TableId;
use crate::keyed_state::stored::{Answer, Ask, AskRange, StoredRange, Until};

/// What a task's view has of a table.
pub(super) fn answer(
    store: &dyn KvStore,
    task: TaskId,
    table: &TableId,
    ask: Ask,
) -> Result<Answer, KvError> {
    let id = store.get(&catalog_key(task, table))?;
    let Some(id) = id.and_then(|id| Some(u16::from_be_bytes(id[..].try_into().ok()?))) else {
        // Nothing was ever folded of it.
        return Ok(match ask {
            Ask::Keys(keys) => Answer::Keys(keys.into_iter().map(|(n, k)| (n, k, None)).collect()),
            Ask::Range(_) => Answer::Range(StoredRange::default()),
        });
    };
    match ask {
        Ask::Keys(mut keys) => {
            // Neighbours are on the same pages.
            keys.sort_unstable();
            let mut found = Vec::with_capacity(keys.len());
            for (namespace, key) in keys {
                let value = read_value(store, task, id, namespace, &key)?;
                found.push((namespace, key, value));
            }
            Ok(Answer::Keys(found))
        }
        Ask::Range(ask) => Ok(Answer::Range(read_range(store, task, id, &ask)?)),
    }
}

/// Reads on in each namespace until there are enough bytes; the range ends where the first of them does.
fn read_range(
    store: &dyn KvStore,
    task: TaskId,
    table: u16,
    ask: &AskRange,
) -> Result<StoredRange, KvError> {
    let mut range = StoredRange::default();
    let enough = ask.bytes / ask.namespaces.len().max(1);
    for namespace in &ask.namespaces {
        let prefix = namespace_prefix(ENTRY, task, table, *namespace);
        let end = after_prefix(&prefix);
        let mut start = prefix.clone();
        if let Some(after) = &ask.after {
            // The next key in order is this one and a zero.
            start.extend_from_slice(after);
            start.push(0);
        }
        let (mut bytes, mut cut) = (0, Vec::new());
        let until = &mut range.until;
        let entries = &mut range.entries;
        store.scan(&start, end.as_deref(), &mut |key, value| {
            let key = &key[prefix.len()..];
            if !until.includes(key) {
                return ControlFlow::Break(());
            }
            let length = read_length(value).unwrap_or(0);
            match piece_count(length) {
                1 => {
                    let value = value.get(LENGTH..).unwrap_or_default().to_vec();
                    drop(entries.insert((*namespace, key.to_vec()), value));
                }
                _ => cut.push(key.to_vec()),
            }
            bytes += key.len() + length;
            if bytes >= enough {
                *until = Until::Key(key.to_vec());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        for key in cut {
            if let Some(value) = read_value(store, task, table, *namespace, &key)? {
                range.entries.insert((*namespace, key), value);
            }
        }
    }
    Ok(range)
}

pub(super) fn read_value(
    store: &dyn KvStore,
    task: TaskId,
    table: u16,
    namespace: i64,
    key: &[u8],
) -> Result<Option<Vec<u8>>, KvError> {
    let Some(first) = store.get(&entry_key(task, table, namespace, key))? else {
        return Ok(None);
    };
    let mut value = first.get(LENGTH..).unwrap_or_default().to_vec();
    for number in 1..piece_count(read_length(&first).unwrap_or(0)) {
        let piece = store.get(&piece_key(task, table, namespace, key, number))?;
        value.extend_from_slice(&piece.unwrap_or_default());
    }
    Ok(Some(value))
}
